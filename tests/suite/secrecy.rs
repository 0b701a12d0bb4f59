//! No secret is where it should not be: not in the store, not in the log, not in an error, not in `Debug`.

mod life;
mod message;
pub mod search;

use std::{fs, path::Path};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use gatekey::api::proto::GetKeyRequest;
use tempfile::TempDir;
use tokio::task::block_in_place;
use tonic::Request;

use self::{
    life::Life,
    search::{PEPPER, Search},
};
use crate::{
    inside::Inside,
    support::{Database, Gatekey, Setup, client::error_reason, postgres::Cluster, write_secret},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_no_secret_is_in_the_store_the_log_or_an_error() {
    let setup = Gatekey::sqlite();
    let search = live(&setup).await;
    search.finds_nothing_in(setup.folder());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgresql_no_secret_is_in_the_store_the_log_or_an_error() {
    let cluster = block_in_place(Cluster::start);
    let setup = Gatekey::postgres(&Database::create_in(&cluster).await);
    let search = live(&setup).await;
    search.finds_nothing_in(setup.folder());

    let mut inside = Inside::of(&setup).await;
    inside.run("CHECKPOINT").await;
    let data = inside.texts("SHOW data_directory").await.concat();
    search.finds_nothing_in(Path::new(&data));
    search.finds_a_key_id_in(Path::new(&data));
    let dump = dump(&mut inside).await;
    search.finds_nothing_in(dump.path());
    search.finds_a_key_id_in(dump.path());
}

#[tokio::test]
async fn an_unknown_encoding_is_refused_and_not_repeated() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    let (_, plaintext) = admin.issue("default", &["jobs:read"]).await;
    let mut request = Request::new(GetKeyRequest::default());
    let value = plaintext.parse().expect("a key is ASCII");
    request.metadata_mut().insert("grpc-encoding", value);
    let refused = admin.keys.clone().get_key(request).await;
    let status = refused.expect_err("there is no such encoding");
    assert!(!format!("{status:?}").contains(&plaintext), "{status:?}");
    assert_ne!(error_reason(&status), "UNKNOWN_METHOD", "{status:?}");
}

/// Lives through all that is done with secrets, looking at each answer, at the log and, on SQLite, at the files as they
/// are while the server runs and once it was killed.
async fn live(setup: &Setup) -> Search {
    let pepper = format!("p1:{}\n", BASE64_STANDARD.encode(PEPPER));
    write_secret(&setup.folder().join("gatekey.pepper"), &pepper);
    let server = setup.start().await;
    let mut life = Life {
        admin: server.admin().await,
        plaintexts: Vec::new(),
        seen: Vec::new(),
    };
    life.issue_and_rotate().await;
    life.look_up().await;
    life.validate().await;
    life.call_as_a_stranger(&server).await;
    life.paste_in_the_wrong_place().await;
    life.send_garbage().await;
    life.read_back().await;

    let search = Search::new(&life.plaintexts, &server.admin_token());
    for text in &life.seen {
        search.finds_nothing_in_text(text, "an answer or an error");
    }
    search.finds_nothing_in(setup.folder());
    search.finds_nothing_in_text(&server.stdout(), "stdout");
    let stopped = server.kill9();
    search.finds_nothing_in_text(stopped.logs(), "the log");
    assert!(stopped.logs().contains("key_created"), "the log is on");
    if setup.database_url().starts_with("sqlite:") {
        search.finds_a_key_id_in(setup.folder());
    }
    search.finds_nothing_in(setup.folder());
    let stopped = stopped.start().await.stop().await;
    search.finds_nothing_in_text(stopped.logs(), "the log");
    search
}

/// All rows of all tables, as text: in PostgreSQL's own files a long value is compressed.
pub async fn dump(inside: &mut Inside) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    let tables = inside
        .texts(
            "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public'",
        )
        .await;
    assert!(tables.iter().any(|table| table == "keys"), "{tables:?}");
    let Inside::Postgres(connection) = inside else {
        panic!("COPY is PostgreSQL's")
    };
    for table in tables {
        let sql = sqlx::AssertSqlSafe(format!("SELECT t::text FROM {table} AS t"));
        let rows: Vec<String> = sqlx::query_scalar(sql)
            .fetch_all(&mut *connection)
            .await
            .expect("the table can be read");
        fs::write(folder.path().join(table), rows.join("\n")).expect("a file");
    }
    folder
}
