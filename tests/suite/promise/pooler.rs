//! Behind PgBouncer in transaction mode nobody hears of changes: replicas find them by polling alone.

use gatekey::api::proto::{EnforcementState, Reason};
use tokio::task::{JoinSet, block_in_place};

use crate::support::client::key_target;
use crate::support::{
    Database, Gatekey,
    pgbouncer::Pgbouncer,
    postgres::{Cluster, Stop},
};

const REPLICAS: usize = 3;
const KEYS: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_behind_a_transaction_pooler_keep_the_promise() {
    let cluster = block_in_place(Cluster::start);
    let pooler = block_in_place(|| Pgbouncer::start(cluster.addr(), &[]));
    let database = Database::create_in(&cluster).await;
    // A revocation that had to wait for a lease would not be answered in this test's time.
    let setup = Gatekey::postgres(&database)
        .env("GATEKEY_DATABASE_URL", database.url_at(pooler.addr()))
        .env("GATEKEY_LEASE", "10m");

    // All at once on an empty database: one of them brings the schema up to date.
    let mut starting = JoinSet::new();
    for _ in 0..REPLICAS {
        let setup = setup.clone();
        starting.spawn(async move { setup.start().await });
    }
    let servers = starting.join_all().await;
    let mut clients = Vec::new();
    for server in &servers {
        server.wait_for_log(r#""message":"ready""#).await;
        clients.push(server.admin().await);
    }
    for number in 0..KEYS {
        let (key, plaintext) = clients[number % REPLICAS].issue("default", &["a"]).await;
        for client in &clients {
            assert_eq!(client.reason(&plaintext).await, Reason::Allowed);
        }
        let answer = clients[(number + 1) % REPLICAS].revoke(&key, "").await;
        assert_eq!(
            answer.enforcement.unwrap().state(),
            EnforcementState::Enforced
        );
        for client in &clients {
            assert_eq!(client.reason(&plaintext).await, Reason::Revoked);
        }
    }

    // The pooler stays, and what is behind it starts again.
    let (key, plaintext) = clients[0].issue("default", &["a"]).await;
    block_in_place(|| cluster.stop_as(Stop::Fast));
    block_in_place(|| cluster.start_again());
    let mut keys = clients[1].keys.clone();
    let request = gatekey::api::proto::RevokeKeyRequest {
        tenant_id: key.tenant_id,
        target: key_target(key.key_id),
        reason: String::new(),
    };
    let revoked = loop {
        match keys.revoke_key(request.clone()).await {
            Ok(answer) => break answer.into_inner(),
            Err(error) => assert_eq!(error.code(), tonic::Code::Unavailable, "{error:?}"),
        }
    };
    assert_eq!(
        revoked.enforcement.unwrap().state(),
        EnforcementState::Enforced
    );
    for client in &clients {
        assert_eq!(client.reason(&plaintext).await, Reason::Revoked);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_does_not_keep_prepared_statements_is_named() {
    let cluster = block_in_place(Cluster::start);
    let pooler =
        block_in_place(|| Pgbouncer::start(cluster.addr(), &["max_prepared_statements=0"]));
    let database = Database::create_in(&cluster).await;
    let setup =
        Gatekey::postgres(&database).env("GATEKEY_DATABASE_URL", database.url_at(pooler.addr()));
    let (_, stderr) = setup.start_expecting_failure().await;
    assert!(
        stderr.contains("does not keep prepared statements"),
        "{stderr}"
    );
}
