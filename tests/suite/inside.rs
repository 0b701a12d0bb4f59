//! The server's database, seen from outside: to look at what the server wrote, or to get in its way.

use std::str::FromStr as _;

use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, SqliteConnection,
    sqlite::SqliteConnectOptions,
};

use crate::support::Setup;

/// A connection of the test's own.
pub enum Inside {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Inside {
    /// Opens the database of a setup, which a server must have made.
    pub async fn of(setup: &Setup) -> Self {
        let url = setup.database_url();
        if url.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(url).expect("a URL of SQLite");
            let opened = SqliteConnection::connect_with(&options).await;
            Self::Sqlite(opened.expect("the file is there"))
        } else {
            let opened = PgConnection::connect(url).await;
            Self::Postgres(opened.expect("the database is there"))
        }
    }

    /// Runs a statement.
    pub async fn run(&mut self, sql: &'static str) {
        let ran = match self {
            Self::Sqlite(connection) => connection.execute(sql).await.map(drop),
            Self::Postgres(connection) => connection.execute(sql).await.map(drop),
        };
        ran.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Runs a statement that holds values of the test's own.
    pub async fn change(&mut self, sql: String) {
        let sql = AssertSqlSafe(sql);
        let ran = match self {
            Self::Sqlite(connection) => connection.execute(sql).await.map(drop),
            Self::Postgres(connection) => connection.execute(sql).await.map(drop),
        };
        ran.expect("the statement is right");
    }

    /// The texts of a query with one column.
    pub async fn texts(&mut self, sql: &'static str) -> Vec<String> {
        let texts = match self {
            Self::Sqlite(connection) => sqlx::query_scalar(sql).fetch_all(connection).await,
            Self::Postgres(connection) => sqlx::query_scalar(sql).fetch_all(connection).await,
        };
        texts.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Makes every change wait, until [`Inside::let_go`] or the end of this connection.
    pub async fn hold(&mut self) {
        self.run(match self {
            Self::Sqlite(_) => "BEGIN IMMEDIATE",
            Self::Postgres(_) => "BEGIN; LOCK TABLE log_head IN EXCLUSIVE MODE",
        })
        .await;
    }

    /// Lets changes go on.
    pub async fn let_go(&mut self) {
        self.run("ROLLBACK").await;
    }
}
