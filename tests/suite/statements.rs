//! Every fixed statement is one that both engines take, against the schema that they migrated.

use std::str::FromStr as _;

use gatekey::store::statements::{ALL, POSTGRES, REPLICAS_OF_ONE_PROCESS, SQLITE};
use sqlx::{Connection as _, Executor as _, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::support::{Database, Gatekey};

#[tokio::test]
async fn sqlite_prepares_every_statement() {
    let server = Gatekey::sqlite().start().await;
    let options = SqliteConnectOptions::from_str(server.setup().database_url()).unwrap();
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    connection.execute(REPLICAS_OF_ONE_PROCESS).await.unwrap();
    for statement in SQLITE.all().iter().chain(ALL) {
        let prepared = (&mut connection)
            .prepare(sqlx::SqlStr::from_static(statement))
            .await;
        prepared.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

#[tokio::test]
async fn postgresql_prepares_every_statement() {
    let database = Database::create().await;
    let _server = Gatekey::postgres(&database).start().await;
    let mut connection = database.connect().await;
    for statement in POSTGRES.all().iter().chain(ALL) {
        let prepared = (&mut connection)
            .prepare(sqlx::SqlStr::from_static(statement))
            .await;
        prepared.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}
