//! A database with a million keys in it, written past gatekey: making them through its door would take argon2 four hours.
//!
//! Ten keys an owner, labels and ends that differ (the older a key, the earlier its end, in the year 2096 and later), and among the three scopes of each key one that only its owner's keys have. MACs are right, so that
//! every key is good; the argon2 hash is one for all, for nothing may ask it.

use std::{fmt::Write as _, fs, time::Instant};

use gatekey::{
    domain::token::{DEFAULT_PREFIX, KeyId},
    service::secret::Peppers,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};
use tokio::sync::OnceCell;

use crate::{
    keys::key,
    report::name,
    support::{Engine, Setup},
};

/// How many keys are stored: those of numbers below this.
pub const KEYS: u64 = 1_000_000;

const KEYS_AN_OWNER: u64 = 10;
/// When the key at place 0 would expire, in microseconds.
pub const END: i64 = 4_000_000_000_000_000;
const ROWS_A_STATEMENT: usize = 1000;
/// A hash of nothing that anybody asks.
const PHC: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGFza3MgaXQ$NhZr1OZOdXxGZF3uL3JmUW1hdGNoZWQgYnkgbm9ib2R5";

/// Such a database, and how servers are started on it.
pub struct Stored {
    pub setup: Setup,
    /// A credential that may validate every tenant's keys.
    pub caller: String,
}

/// One for each engine, made when it is first wanted.
#[derive(Default)]
pub struct Stores {
    sqlite: OnceCell<Stored>,
    postgres: OnceCell<Stored>,
}

impl Stores {
    pub async fn on(&self, engine: Engine) -> &Stored {
        let cell = match engine {
            Engine::Sqlite => &self.sqlite,
            Engine::Postgres => &self.postgres,
        };
        cell.get_or_init(|| Stored::fill(engine)).await
    }
}

/// An empty database, and how servers are started on it.
pub async fn empty(engine: Engine) -> Setup {
    engine.setup().await.env("GATEKEY_LOG", "info")
}

impl Stored {
    async fn fill(engine: Engine) -> Self {
        let setup = empty(engine).await;
        let server = setup.start().await;
        let (_, caller) = server
            .admin()
            .await
            .issue("system", &["*:keys:validate"])
            .await;
        server.stop().await;

        let start = Instant::now();
        let pepper = fs::read_to_string(setup.folder().join("gatekey.pepper"));
        let peppers = Peppers::parse(&pepper.expect("the server has a pepper"));
        let peppers = peppers.expect("the server could read it");
        let mut writer = Writer::open(engine, &setup).await;
        let mut keys: Vec<_> = (0..KEYS).map(|number| (key(number).0, number)).collect();
        keys.sort_unstable();
        // Rows lie in the order of their revisions, as they do when keys are made one by one.
        for (chunk, keys) in keys.chunks(ROWS_A_STATEMENT).enumerate() {
            let first = 1 + chunk * ROWS_A_STATEMENT;
            writer
                .execute(insert(keys, first, &peppers, writer.unhex()))
                .await;
        }
        writer
            .execute(format!("UPDATE log_head SET revision = revision + {KEYS}"))
            .await;
        writer.finish().await;
        eprintln!(
            "{KEYS} keys stored in {} in {:.1?}",
            name(engine),
            start.elapsed()
        );
        Self { setup, caller }
    }
}

/// The statement that inserts these keys.
fn insert(keys: &[(KeyId, u64)], first: usize, peppers: &Peppers, unhex: &str) -> String {
    let pepper = peppers.current().expect("the server has a pepper");
    let mut rows = String::new();
    for (place, &(id, number)) in (first..).zip(keys) {
        let mac = peppers.mac(pepper, key(number).1.expose());
        let mac = mac
            .expect("the pepper is known")
            .map(|byte| format!("{byte:02x}"));
        let comma = if rows.is_empty() { "" } else { "," };
        let (id, owner, mac) = (id.as_bare(), number / KEYS_AN_OWNER, mac.concat());
        write!(rows, "{comma}('{id}',{owner},'{mac}',{place})").expect("memory takes all");
    }
    format!(
        "INSERT INTO keys (key_id, tenant_id, owner_id, label, description, prefix, scopes, audiences, allowed_cidrs, \
         metadata, suspended, created_at, created_by, expires_at, hash_version, secret_phc, secret_mac, mac_pepper, \
         created_revision, revision) \
         SELECT column1, 'default', 'owner-' || column2, 'key ' || column4, '', '{DEFAULT_PREFIX}', \
         '[\"jobs:read\",\"reports:*\",\"owner-' || column2 || ':write\"]', '[]', '[]', '{{}}', FALSE, \
         1700000000000000, 'admin', {END} + column4, 'v1', '{PHC}', {unhex}, '{pepper}', revision + column4, revision + column4 \
         FROM log_head, (VALUES {rows}) AS v"
    )
}

/// A connection to the database while no gatekey has it open.
enum Writer {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Writer {
    async fn open(engine: Engine, setup: &Setup) -> Self {
        let url = setup.database_url();
        let opened = match engine {
            Engine::Sqlite => SqliteConnection::connect(url).await.map(Self::Sqlite),
            Engine::Postgres => PgConnection::connect(url).await.map(Self::Postgres),
        };
        let mut writer = opened.unwrap_or_else(|error| panic!("{url} does not open: {error}"));
        if engine == Engine::Sqlite {
            // A crash would cost a run of the benchmark.
            writer.execute("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -1000000").await;
        }
        writer.execute("BEGIN").await;
        writer
    }

    /// What makes bytes of the third column.
    fn unhex(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "unhex(column3)",
            Self::Postgres(_) => "decode(column3, 'hex')",
        }
    }

    async fn execute(&mut self, statement: impl Into<String>) {
        let statement = sqlx::raw_sql(AssertSqlSafe(statement.into()));
        let done = match self {
            Self::Sqlite(connection) => statement.execute(connection).await.map(drop),
            Self::Postgres(connection) => statement.execute(connection).await.map(drop),
        };
        done.unwrap_or_else(|error| panic!("the keys are not stored: {error}"));
    }

    /// Leaves nothing to be done later, while something is measured.
    async fn finish(mut self) {
        self.execute("COMMIT").await;
        let closed = match self {
            Self::Sqlite(connection) => connection.close().await,
            Self::Postgres(_) => {
                self.execute("VACUUM (ANALYZE) keys").await;
                self.execute("CHECKPOINT").await;
                let Self::Postgres(connection) = self else {
                    return;
                };
                connection.close().await
            }
        };
        closed.expect("the keys are stored");
    }
}
