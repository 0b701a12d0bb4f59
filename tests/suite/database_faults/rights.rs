//! A server whose role may read and write rows, and nothing else.

use gatekey::api::proto::Reason;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::{
    program::Program,
    support::{Database, Gatekey, Setup},
};

/// A database that belongs to `postgres`, and a role with no right in it yet.
async fn guarded(role: &str) -> (Setup, Setup, PgConnection) {
    let database = Database::create().await;
    let mut inside = PgConnection::connect(&database.url())
        .await
        .expect("it is there");
    let role_is = format!("CREATE ROLE {role} LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC");
    inside
        .execute(AssertSqlSafe(role_is))
        .await
        .expect("a role");
    let owner = Gatekey::postgres(&database);
    let url = database.url().replace("//postgres@", &format!("//{role}@"));
    let limited = owner.clone().env("GATEKEY_DATABASE_URL", url);
    (owner, limited, inside)
}

const HINT: &str = "its schema is missing or behind this version, and this role may not change it: run `gatekey \
                    migrate` with a role that owns the schema";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_needs_no_right_to_change_a_schema_that_is_up_to_date() {
    let (owner, limited, mut inside) = guarded("rows_only").await;
    Program::of(&owner, &["migrate"]).end().await.was_silent();
    let grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO rows_only";
    inside.execute(grant).await.expect("rights");
    let server = limited.start().await;
    let admin = server.admin().await;
    let (key, plaintext) = admin.issue("default", &["a"]).await;
    assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
    admin.revoke(&key, "").await;
    assert_eq!(admin.reason(&plaintext).await, Reason::Revoked);
    server.stop().await;
    // Nothing is left to do, so that this needs no right either.
    Program::of(&limited, &["migrate"]).end().await.was_silent();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_is_behind_is_told_in_one_line_to_a_role_that_may_not_change_it() {
    let (owner, limited, mut inside) = guarded("rows_only_behind").await;
    let refused = async |setup: &Setup| {
        for arguments in [&["serve"][..], &["migrate"]] {
            let ended = Program::of(setup, arguments).end().await;
            let line = ended.deny_reason();
            assert!(
                line.starts_with("gatekey: GATEKEY_DATABASE_URL is invalid: "),
                "{line}"
            );
            assert!(line.ends_with(HINT), "{line}");
        }
    };
    refused(&limited).await;
    Program::of(&owner, &["migrate"]).end().await.was_silent();
    // Without any right in the tables it sees none, and may make none.
    refused(&limited).await;
    let grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO rows_only_behind; \
                 DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)";
    inside.execute(grant).await.expect("rights");
    refused(&limited).await;
}
