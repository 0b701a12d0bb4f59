//! A primary that is made read-only for a while: changes fail and Validate goes on, and afterwards no session that
//! began read-only is in the way.

use gatekey::api::proto::Reason;
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::task::{JoinSet, block_in_place};
use tonic::Code;

use super::{change, logged, recovered, writable};
use crate::support::{Database, Gatekey, client::new_key, postgres::Cluster};

/// For all sessions, and for those that begin from now on once more, so that they stay so.
const ON: &str = "ALTER SYSTEM SET default_transaction_read_only = on";
const OFF: &str = "ALTER SYSTEM RESET default_transaction_read_only";
const CALLERS: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_possible_again_soon_after_a_database_was_read_only() {
    let cluster = block_in_place(Cluster::start);
    let database = Database::create_in(&cluster).await;
    let setup = Gatekey::postgres(&database)
        .env("GATEKEY_LEASE", "30s")
        .env("GATEKEY_METRICS_LISTEN", "127.0.0.1:0");
    let server = setup.start().await;
    // Before, nothing is kept in the cache.
    server.wait_for_log(r#""message":"ready""#).await;
    let admin = server.admin().await;
    let (key, plaintext) = admin.issue("default", &["a"]).await;
    assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
    assert!(writable(&server));

    let mut inside = PgConnection::connect(&database.url())
        .await
        .expect("it is there");
    run(&mut inside, "SET default_transaction_read_only = off").await;
    run(&mut inside, ON).await;
    run(
        &mut inside,
        "ALTER ROLE postgres SET default_transaction_read_only = on",
    )
    .await;
    run(&mut inside, "SELECT pg_reload_conf()").await;
    // Waits for no replica, unlike other changes: a replica cannot acknowledge what was committed just
    // before.
    while admin.try_create(new_key("default", &["a"])).await.is_ok() {}
    // Each pool has sessions now that began read-only.
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let admin = admin.clone();
        callers.spawn(async move { change(&admin, "bob").await });
    }
    for refused in callers.join_all().await {
        assert_eq!(refused.expect_err("a change").code(), Code::Unavailable);
    }
    assert!(!writable(&server));
    assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
    assert_eq!(logged(&server, "the database takes no changes: nothing"), 1);

    run(
        &mut inside,
        "ALTER ROLE postgres RESET default_transaction_read_only",
    )
    .await;
    run(&mut inside, OFF).await;
    run(&mut inside, "SELECT pg_reload_conf()").await;
    let took = recovered(|| async { change(&admin, "bob").await.is_ok() }).await;
    println!("changes possible again after {took:?}");
    admin.revoke(&key, "").await;
    assert_eq!(admin.reason(&plaintext).await, Reason::Revoked);
    assert!(writable(&server));
    assert_eq!(logged(&server, "the database takes changes again"), 1);
    // By now every session of every pool takes changes.
    for _ in 0..CALLERS {
        change(&admin, "bob").await.expect("changes are possible");
    }
}

async fn run(connection: &mut PgConnection, sql: &'static str) {
    let ran = connection.execute(sql).await;
    ran.unwrap_or_else(|error| panic!("{sql}: {error}"));
}
