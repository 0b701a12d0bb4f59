//! PostgreSQL, or what speaks its protocol: one primary, many replicas of gatekey.

use std::{str::FromStr as _, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions as _,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use super::{OpenError, Store};

#[path = "sql.rs"]
mod sql;

type Db = sqlx::Postgres;

const BEGIN: &str = "BEGIN";
/// The function that says where in a text another stands; 0: nowhere.
const POSITION: &str = "strpos";

const CONNECTIONS: u32 = 16;
/// How long a statement waits for a connection.
const PATIENCE: Duration = Duration::from_secs(3);

/// Replicas that start together take turns: the migrator holds an advisory lock.
static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

pub(super) async fn open(url: &str) -> Result<Arc<dyn Store>, OpenError> {
    let options = PgConnectOptions::from_str(url)?
        .application_name("gatekey")
        .disable_statement_logging();
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(PATIENCE)
        .connect_with(options)
        .await?;
    MIGRATIONS.run(&pool).await?;
    Ok(Arc::new(sql::SqlStore::new(pool.clone(), pool, None)))
}
