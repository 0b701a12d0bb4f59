//! PostgreSQL, or what speaks its protocol: one primary, many replicas of gatekey.

use std::{str::FromStr as _, sync::Arc, time::Duration};

use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, PgPool, Row as _,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
    query, query_scalar, raw_sql,
};
use tokio::{sync::Mutex, time};

use super::{
    OpenError, Store, StoreError, loaders::Loaders, measured::Measured, text, trust::Trust,
};

mod schema;

#[path = "sql.rs"]
mod sql;

type Db = sqlx::Postgres;

const DIALECT: text::Dialect = text::POSTGRES;
/// The function that says where in a text another stands; 0: nowhere.
const POSITION: &str = "strpos";
/// Whether this session can change anything: it is on a primary, and not read-only.
const IS_WRITABLE: &str = "SELECT current_setting('transaction_read_only') = 'off'";

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
pub(super) async fn open(url: &str) -> Result<Arc<dyn Store>, OpenError> {
    let options = PgConnectOptions::from_str(url)?
        .application_name("gatekey")
        .extra_float_digits(None) // no number here is a float, and a transaction pooler refuses it
        .disable_statement_logging();
    // By itself, because a pool hides why it could not connect.
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
        // Sessions that a pooler mixes up show with the first statements of the same name.
        let head = query(DIALECT.head).fetch_one(pool).await?;
        if !head.try_get("writable")? {
            return Err(OpenError::ReadOnly);
        }
    }
    let store = sql::SqlStore {
        loaders: Loaders::new(reader.clone(), LOADERS),
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
    Ok(Measured::start(store, trust))
}

/// What must hold whatever the server, the database or the role has as its defaults. For each
/// transaction that changes something it is said again, because behind a transaction pooler the
/// next statement may run in another session; a pooler refuses it as the connection starts.
///
/// The timeouts are kept by the server, so that a replica that hangs holds up nobody for ever.
/// `default_transaction_read_only` is left as it is: it is how a primary is fenced.
fn settings(set: &str, schema: &str) -> String {
    let path = format!("{set} search_path = {}; ", quoted(schema));
    path + &limits(set)
}

/// The same without the schema, which is not known at first.
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

/// A name as SQL has it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Refuses a session that takes no changes.
async fn admit(connection: &mut PgConnection) -> Result<(), StoreError> {
    let writable: bool = query_scalar(IS_WRITABLE).fetch_one(connection).await?;
    writable.then_some(()).ok_or(StoreError::ReadOnly)
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
        let mut second = sql::Transaction::begin(pool, "BEGIN").await?;
        let theirs = session(SESSION).fetch_one(second.connection()).await?;
        // Theirs is taken while their transaction is open.
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
        // A trip that doubles what a read costs: only where a connection may have been broken off
        // meanwhile. What is broken off nevertheless is tried again.
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
