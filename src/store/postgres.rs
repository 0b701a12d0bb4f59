//! PostgreSQL, or a database that speaks its protocol: one primary, many replicas of gatekey.

use std::{str::FromStr as _, sync::Arc, time::Duration};

use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, PgPool, Row as _,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
    query, query_scalar, raw_sql,
};
use tokio::{sync::Mutex, time};

use super::{
    OpenError, Store, StoreError, idle_connections::IdleConnections, instrumented::Instrumented,
    statements, trust::Trust,
};
use crate::domain::token::KeyId;

mod schema;

#[path = "sql.rs"]
mod sql;

type Db = sqlx::Postgres;

const DIALECT: statements::Dialect = statements::POSTGRES;
/// The function that returns the position of one text in another, or 0.
const POSITION: &str = "strpos";
/// Tests whether this session can change anything: it is on a primary and not read-only.
const IS_WRITABLE: &str = "SELECT current_setting('transaction_read_only') = 'off'";

/// Reads have their own connections, so that mutations, which wait for each other, cannot block a
/// Validate.
const READERS: u32 = 16;
/// The maximum number of reader connections that key loads use at once.
const LOADS: usize = 12;
/// The maximum number of reader connections that key loads keep while idle.
const LOADERS: usize = 8;
const WRITERS: u32 = 4;
/// Connections for coordination between replicas; one of them listens for notifications.
const PULSES: u32 = 5;
/// The notification channel for changes.
const CHANNEL: &str = "gatekey";
const LISTEN_RETRY: Duration = Duration::from_secs(1);
/// The timeout of a statement that waits for a connection.
const PATIENCE: Duration = Duration::from_secs(3);
/// The idle time up to which a connection is used without a ping.
const IDLE: Duration = Duration::from_secs(1);
pub(super) async fn open(url: &str) -> Result<Arc<dyn Store>, OpenError> {
    let options = PgConnectOptions::from_str(url)?
        .application_name("gatekey")
        .extra_float_digits(None) // no number here is a float, and a transaction pooler refuses it
        .disable_statement_logging();
    // Connects without a pool first, because a pool hides the reason of a failed connection.
    let connecting = time::timeout(PATIENCE, options.connect()).await;
    let mut connection = connecting
        .map_err(|_| OpenError::Unreachable(format!("no answer within {PATIENCE:?}")))??;
    let limits = AssertSqlSafe(limits("SET"));
    raw_sql(limits).execute(&mut connection).await?;
    let schema = schema::prepare(&mut connection).await?;
    let _ = connection.close().await;
    let trust = Arc::<Trust>::default();
    let session = Arc::<str>::from(settings("SET", &schema));
    let pool = |connections| pool(connections, options.clone(), &session, &trust);
    let (reader, writer, pulse) = (
        pool(READERS).await?,
        pool(WRITERS).await?,
        pool(PULSES).await?,
    );
    for pool in [&reader, &writer, &pulse] {
        // If a pooler mixes up sessions, the first statements of the same name fail here.
        let head = query(DIALECT.head).fetch_one(pool).await?;
        if !head.try_get("writable")? {
            return Err(OpenError::ReadOnly);
        }
    }
    let store = sql::SqlStore {
        loaders: IdleConnections::new(reader.clone(), LOADERS),
        reader,
        writer,
        pulse,
        hints: Hints::default(),
        loads_at_once: LOADS,
        begin: format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; {}",
            settings("SET LOCAL", &schema)
        ),
        lock: None,
    };
    Ok(Instrumented::start(store, trust))
}

/// Returns the settings that must hold regardless of the defaults of the server, the database or
/// the role. Each transaction that changes something repeats them, because behind a transaction
/// pooler the next statement may run in another session. They cannot be startup parameters, because
/// a pooler rejects those.
///
/// The server enforces the timeouts, so that a hanging replica cannot block others forever.
/// `default_transaction_read_only` is unchanged, because it is used to fence a primary.
fn settings(set: &str, schema: &str) -> String {
    let path = format!("{set} search_path = {}; ", quoted(schema));
    path + &limits(set)
}

/// Returns the settings without the schema, which is unknown at first.
fn limits(set: &str) -> String {
    [
        ("statement_timeout", "'30s'"),
        ("lock_timeout", "'10s'"),
        ("idle_in_transaction_session_timeout", "'10s'"),
        ("synchronous_commit", "on"),
        ("default_transaction_isolation", "'read committed'"),
    ]
    .map(|(name, value)| format!("{set} {name} = {value}"))
    .join("; ")
}

/// Quotes an SQL identifier.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns a list of ids as [`DIALECT`] takes it.
fn id_list(ids: &[KeyId]) -> Vec<&str> {
    ids.iter().map(KeyId::as_bare).collect()
}

/// Rejects a session that takes no changes.
async fn admit(connection: &mut PgConnection) -> Result<(), StoreError> {
    let writable: bool = query_scalar(IS_WRITABLE).fetch_one(connection).await?;
    writable.then_some(()).ok_or(StoreError::ReadOnly)
}

/// Notifications of changes. They get lost when the listener reconnects, and a half-open connection
/// delivers none.
#[derive(Default)]
struct Hints(Mutex<Hearing>);

/// The state of this process's listener.
#[derive(Default)]
enum Hearing {
    #[default]
    NotYet,
    Listening(Box<PgListener>),
    /// Sessions are shared: a notification would reach the session's next user, in the middle of a
    /// response.
    Never,
}

impl Hints {
    /// Runs outside the mutation's transaction, where it would lock the whole database, and a full
    /// queue would fail the commit.
    async fn send(&self, pool: &PgPool) {
        // A notification is only a hint, so an error is ignored.
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
                // One poll covers all buffered notifications.
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

/// Returns whether a transaction pooler is in front of the database: the statements of one
/// connection run in more than one session, or those of two connections in the same. A pooler with
/// little load assigns the session that was used last, so that one check would nearly suffice.
async fn shares_sessions(pool: &PgPool) -> Result<bool, sqlx::Error> {
    const LOOKS: usize = 5;
    const SESSION: &str = "SELECT pg_backend_pid()";
    let session = query_scalar::<_, i32>;
    let mut first = pool.acquire().await?;
    for _ in 0..LOOKS {
        let before = session(SESSION).fetch_one(&mut *first).await?;
        let mut second = sql::Transaction::begin(pool, "BEGIN").await?;
        let theirs = session(SESSION).fetch_one(second.connection()).await?;
        // The second connection holds its session while its transaction is open.
        if theirs == before || session(SESSION).fetch_one(&mut *first).await? != before {
            return Ok(true);
        }
        second.commit().await?;
    }
    Ok(false)
}

async fn pool(
    connections: u32,
    options: PgConnectOptions,
    session: &Arc<str>,
    trust: &Arc<Trust>,
) -> Result<PgPool, OpenError> {
    let (session, trust) = (Arc::clone(session), Arc::clone(trust));
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE)
        // A ping is a round trip that doubles the cost of a read, so `before_acquire` pings only
        // connections that may have broken while idle. Statements that are interrupted nevertheless
        // are retried.
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            let settings = AssertSqlSafe(session.to_string());
            Box::pin(async move { raw_sql(settings).execute(connection).await.map(drop) })
        })
        .before_acquire(move |connection, pooled| {
            let trusted = trust.covers(pooled.age);
            Box::pin(async move {
                if !trusted {
                    return Ok(false);
                }
                if pooled.idle_for > IDLE {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_release(|connection, _| {
            // sqlx pings a returned connection itself, but would wait for the response until TCP
            // gives up, and no other caller could get a connection in its place.
            Box::pin(async move {
                let answered = time::timeout(PATIENCE, connection.ping()).await;
                answered.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
                Ok(true)
            })
        });
    Ok(pool.connect_with(options).await?)
}
