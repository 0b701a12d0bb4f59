//! PostgreSQL, or what speaks its protocol: one primary, many replicas of gatekey.

use std::{str::FromStr as _, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions as _, Connection as _, PgPool,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
    query, query_scalar,
};
use tokio::{sync::Mutex, time};

use super::{OpenError, Store, loaders::Loaders, measured::Measured, text};

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
/// The statements that read many keys at once: all, those that were used, those that were not.
const WARM: [&str; 3] = text::WARM_POSTGRES;
/// The function that says where in a text another stands; 0: nowhere.
const POSITION: &str = "strpos";

/// Reads have connections of their own, so that mutations, which wait for each other, cannot keep a
/// Validate from the store.
const READERS: u32 = 16;
/// How many of them loads of keys have at most, and how many they keep when there is nothing to load.
const LOADS: usize = 12;
const LOADERS: usize = 8;
const WRITERS: u32 = 4;
/// For what replicas know of each other; one of these listens.
const PULSES: u32 = 5;
/// What changes are told by.
const CHANNEL: &str = "gatekey";
const LISTEN_RETRY: Duration = Duration::from_secs(1);
/// How long a statement waits for a connection.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a connection may be idle and still be taken for one that answers.
const IDLE: Duration = Duration::from_secs(1);
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
    Ok(Arc::new(Measured::new(sql::SqlStore {
        loaders: Loaders::new(reader.clone(), LOADERS),
        reader,
        writer,
        pulse,
        hints: Hints::default(),
        loads_at_once: LOADS,
        lock: None,
    })))
}

/// Notifications: they get lost when the listener reconnects, and a half-open connection brings
/// none.
#[derive(Default)]
struct Hints(Mutex<Hearing>);

/// Whether and how this process hears of changes.
#[derive(Default)]
enum Hearing {
    #[default]
    NotYet,
    Listening(Box<PgListener>),
    /// Sessions are shared: what one listens for would reach whoever uses it next, amid an answer.
    Never,
}

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
        let mut hearing = self.0.lock().await;
        if matches!(*hearing, Hearing::NotYet) {
            *hearing = listen(pool).await.unwrap_or_default();
        }
        let heard = match &mut *hearing {
            Hearing::Listening(listener) => {
                let heard = listener.recv().await.is_ok();
                // One look is enough for all.
                while listener.next_buffered().is_some() {}
                heard
            }
            Hearing::Never => std::future::pending().await,
            Hearing::NotYet => false,
        };
        if !heard {
            *hearing = Hearing::NotYet;
            drop(hearing);
            time::sleep(LISTEN_RETRY).await;
        }
    }

    async fn close(&self) {
        *self.0.lock().await = Hearing::NotYet;
    }
}

async fn listen(pool: &PgPool) -> Result<Hearing, sqlx::Error> {
    if shares_sessions(pool).await? {
        tracing::info!("a transaction pooler is before the store: changes are found by polling");
        return Ok(Hearing::Never);
    }
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    Ok(Hearing::Listening(Box::new(listener)))
}

/// Whether a transaction pooler is between: one connection's statements run in more than one
/// session, or two connections' in the same. A pooler with little to do gives the session that was
/// used last, so that one look would nearly be enough.
async fn shares_sessions(pool: &PgPool) -> Result<bool, sqlx::Error> {
    const LOOKS: usize = 5;
    const SESSION: &str = "SELECT pg_backend_pid()";
    let session = query_scalar::<_, i32>;
    let mut first = pool.acquire().await?;
    for _ in 0..LOOKS {
        let before = session(SESSION).fetch_one(&mut *first).await?;
        let mut second = pool.begin().await?;
        let theirs = session(SESSION).fetch_one(&mut *second).await?;
        // Theirs is taken while their transaction is open.
        if theirs == before || session(SESSION).fetch_one(&mut *first).await? != before {
            return Ok(true);
        }
        second.rollback().await?;
    }
    Ok(false)
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
        .acquire_timeout(PATIENCE)
        // A trip that doubles what a read costs: only where a connection may have been broken off
        // meanwhile. What is broken off nevertheless is tried again.
        .test_before_acquire(false)
        .before_acquire(|connection, pooled| {
            Box::pin(async move {
                if pooled.idle_for > IDLE {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_release(|connection, _| {
            // sqlx asks by itself whether a connection that is given back still answers, and
            // would wait for that for as long as TCP does, while nobody else gets one instead.
            Box::pin(async move {
                let answered = time::timeout(PATIENCE, connection.ping()).await;
                answered.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
                Ok(true)
            })
        });
    Ok(pool.connect_with(options).await?)
}
