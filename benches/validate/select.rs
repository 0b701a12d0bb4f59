//! A bare `SELECT` of a key's row by primary key through sqlx: the least that a cold Validate can cost.

use sqlx::{
    PgPool, SqlitePool,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

const ROW: &str = "SELECT * FROM keys WHERE key_id = $1";

/// The table of keys, read past gatekey.
pub enum Select {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Select {
    /// Opens the database that gatekey serves, or served, from.
    pub async fn open(url: &str, connections: u32) -> Self {
        let opened = if url.starts_with("sqlite:") {
            let options: SqliteConnectOptions = url.parse().expect("gatekey opened it");
            let pool = SqlitePoolOptions::new().max_connections(connections);
            pool.connect_with(options.read_only(true))
                .await
                .map(Self::Sqlite)
        } else {
            let pool = PgPoolOptions::new().max_connections(connections);
            pool.connect(url).await.map(Self::Postgres)
        };
        opened.unwrap_or_else(|error| panic!("{url} does not open: {error}"))
    }

    /// Reads one row, which must be there.
    pub async fn row(&self, id: &str) {
        let read = match self {
            Self::Sqlite(pool) => sqlx::query(ROW).bind(id).fetch_one(pool).await.map(drop),
            Self::Postgres(pool) => sqlx::query(ROW).bind(id).fetch_one(pool).await.map(drop),
        };
        read.unwrap_or_else(|error| panic!("key {id} is not read: {error}"));
    }
}
