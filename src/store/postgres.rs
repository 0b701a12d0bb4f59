//! PostgreSQL, or what speaks its protocol: one primary, many replicas of gatekey.

use std::{str::FromStr as _, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions as _, PgPool,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
    query,
};
use tokio::{sync::Mutex, time};

use super::{OpenError, Store, text};

#[path = "sql.rs"]
mod sql;

type Db = sqlx::Postgres;

/// A mutation, with limits that the server keeps by itself, so that a replica that hangs holds up
/// nobody for ever. They are told here and not as the connection starts, for a transaction pooler
/// refuses that.
const BEGIN: &str = "BEGIN; \
     SET LOCAL statement_timeout = '30s'; \
     SET LOCAL lock_timeout = '10s'; \
     SET LOCAL idle_in_transaction_session_timeout = '10s'";
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
/// Any number, as long as every release has the same.
const MIGRATION_LOCK: i64 = 0x6761_7465_6b65_7900;

pub(super) async fn open(url: &str) -> Result<Arc<dyn Store>, OpenError> {
    let options = PgConnectOptions::from_str(url)?
        .application_name("gatekey")
        .extra_float_digits(None) // no number here is a float, and a transaction pooler refuses it
        .disable_statement_logging();
    let migrating = pool(1, options.clone()).await?;
    migrate(&migrating).await?;
    migrating.close().await;
    let reader = pool(READERS, options.clone()).await?;
    let writer = pool(WRITERS, options.clone()).await?;
    let pulse = pool(PULSES, options).await?;
    for pool in [&reader, &writer, &pulse] {
        // Sessions that a pooler mixes up show with the first statements of the same name.
        query(text::HEAD).execute(pool).await?;
    }
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

/// Brings the schema up to date. Replicas that start together take turns: the lock is the
/// transaction's, and not the session's as sqlx's own would be, for behind a transaction pooler
/// the unlocking could reach another session.
async fn migrate(pool: &PgPool) -> Result<(), OpenError> {
    let mut transaction = pool.begin().await?;
    query("SELECT pg_advisory_xact_lock($1)")
        .bind(MIGRATION_LOCK)
        .execute(&mut *transaction)
        .await?;
    let mut migrations = sqlx::migrate!("migrations/postgres");
    migrations.set_locking(false);
    migrations.run(&mut *transaction).await?;
    Ok(transaction.commit().await?)
}

async fn pool(connections: u32, options: PgConnectOptions) -> Result<PgPool, OpenError> {
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE);
    Ok(pool.connect_with(options).await?)
}
