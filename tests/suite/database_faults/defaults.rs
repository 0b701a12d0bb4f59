//! What a role, a database or a server has as its defaults changes nothing that matters.

use gatekey::api::proto::{ListKeysRequest, Reason, RotateKeyRequest};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::task::JoinSet;

use crate::support::{Client, Database, Gatekey};

const DEFAULTS: [&str; 7] = [
    "default_transaction_isolation = 'serializable'",
    "statement_timeout = '20ms'",
    "lock_timeout = '1ms'",
    "idle_in_transaction_session_timeout = '1ms'",
    "search_path = 'elsewhere'",
    "synchronous_commit = off",
    "default_transaction_deferrable = on",
];
const CALLERS: usize = 8;

/// For a role whose defaults were fine when the tables were made, and are not any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_calls_work_whatever_the_role_has_as_its_defaults() {
    let database = Database::create().await;
    let url = database.url().replace("//postgres@", "//odd@");
    let mut inside = PgConnection::connect(&database.url())
        .await
        .expect("it is there");
    let mut run = async |sql: String| {
        let ran = inside.execute(AssertSqlSafe(sql)).await;
        ran.expect("a statement of the test");
    };
    run("CREATE ROLE odd LOGIN SUPERUSER".to_owned()).await;
    let setup = Gatekey::postgres(&database).env("GATEKEY_DATABASE_URL", url);
    let server = setup.start().await;
    let (_, before) = server.admin().await.issue("default", &["a"]).await;
    server.stop().await;
    run("CREATE SCHEMA elsewhere".to_owned()).await;
    for default in DEFAULTS {
        run(format!("ALTER ROLE odd SET {default}")).await;
    }

    let (one, two) = (setup.start().await, setup.start().await);
    assert_eq!(one.admin().await.reason(&before).await, Reason::Allowed);
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let server = if number % 2 == 0 { &one } else { &two };
        callers.spawn(main_calls(server.admin().await, number));
    }
    callers.join_all().await;
}

/// Issues, reads, rotates and revokes.
async fn main_calls(admin: Client, number: usize) {
    super::change(&admin, &format!("owner {number}"))
        .await
        .expect("an owner");
    let (key, plaintext) = admin.issue("default", &["a"]).await;
    assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
    let request = RotateKeyRequest {
        tenant_id: "default".to_owned(),
        key_id: key.key_id,
        ..RotateKeyRequest::default()
    };
    let rotated = admin.keys.clone().rotate_key(request).await;
    let rotated = rotated.expect("the key is rotated").into_inner();
    admin.revoke(&rotated.key.expect("a key"), "").await;
    assert_eq!(admin.reason(&rotated.plaintext_key).await, Reason::Revoked);
    let request = ListKeysRequest {
        tenant_id: "default".to_owned(),
        ..ListKeysRequest::default()
    };
    admin.keys.clone().list_keys(request).await.expect("a page");
}
