//! PostgreSQL, or what speaks its protocol: one primary, many replicas of gatekey.

use std::{str::FromStr as _, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions as _, PgPool,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
    query,
};
use tokio::{sync::Mutex, time};

use super::{OpenError, Store, text};

#[path = "sql.rs"]
mod sql;

type Db = sqlx::Postgres;

const BEGIN: &str = "BEGIN";
/// The statement that reads many keys at once.
const WARM: &str = text::WARM_POSTGRES;
/// The function that says where in a text another stands; 0: nowhere.
const POSITION: &str = "strpos";

/// Reads have connections of their own, so that mutations, which wait for each other, cannot keep a
/// Validate from the store.
const READERS: u32 = 16;
const WRITERS: u32 = 4;
/// For what replicas know of each other; one of these listens.
const PULSES: u32 = 5;
/// What changes are told by.
const CHANNEL: &str = "gatekey";
const LISTEN_RETRY: Duration = Duration::from_secs(1);
/// How long a statement waits for a connection.
const PATIENCE: Duration = Duration::from_secs(3);
/// What the server ends by itself, so that a replica that hangs holds up nobody for ever.
const LIMITS: [(&str, &str); 3] = [
    ("statement_timeout", "30s"),
    ("lock_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "10s"),
];

/// Replicas that start together take turns: the migrator holds an advisory lock.
static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

pub(super) async fn open(url: &str) -> Result<Arc<dyn Store>, OpenError> {
    let options = PgConnectOptions::from_str(url)?
        .application_name("gatekey")
        .disable_statement_logging();
    // A migration may take its time.
    let migrating = pool(1, options.clone()).await?;
    MIGRATIONS.run(&migrating).await?;
    migrating.close().await;

    let options = options.options(LIMITS);
    let reader = pool(READERS, options.clone()).await?;
    let writer = pool(WRITERS, options.clone()).await?;
    let pulse = pool(PULSES, options).await?;
    Ok(Arc::new(sql::SqlStore {
        reader,
        writer,
        pulse,
        hints: Hints::default(),
        lock: None,
    }))
}

/// Notifications: they get lost when the listener reconnects, never come behind a transaction
/// pooler, and a half-open connection brings none.
#[derive(Default)]
struct Hints(Mutex<Option<PgListener>>);

impl Hints {
    /// Not in the mutation's own transaction: there it would take a lock on the whole database,
    /// and a full queue would fail the commit.
    async fn send(&self, pool: &PgPool) {
        // It is only a hint.
        let _ = query("SELECT pg_notify($1, '')")
            .bind(CHANNEL)
            .execute(pool)
            .await;
    }

    async fn next(&self, pool: &PgPool) {
        let mut listener = self.0.lock().await;
        if listener.is_none() {
            *listener = listen(pool).await.ok();
        }
        let heard = match listener.as_mut() {
            Some(listener) => {
                let heard = listener.recv().await.is_ok();
                // One look is enough for all.
                while listener.next_buffered().is_some() {}
                heard
            }
            None => false,
        };
        if !heard {
            *listener = None;
            drop(listener);
            time::sleep(LISTEN_RETRY).await;
        }
    }

    async fn close(&self) {
        *self.0.lock().await = None;
    }
}

async fn listen(pool: &PgPool) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

async fn pool(connections: u32, options: PgConnectOptions) -> Result<PgPool, OpenError> {
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE);
    Ok(pool.connect_with(options).await?)
}
