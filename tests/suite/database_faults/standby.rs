//! A load counts only from a primary: behind a fixed address there may be a standby that is behind.

use std::time::{Duration, Instant};

use gatekey::api::proto::{EnforcementState, GetKeyRequest, Reason};
use sqlx::Connection as _;
use tokio::task::block_in_place;
use tonic::Code;

use super::{change, logged, recovered};
use crate::{
    program::Program,
    support::{Client, Database, Gatekey, client::ask, postgres::Cluster, proxy::Proxy},
};

const KEYS: usize = 5;
const LEASE: Duration = Duration::from_secs(2);
/// How long the replica is asked, while its address leads to the standby.
const ASKED: Duration = Duration::from_secs(4);

/// A primary with a standby, and a database that both have.
struct Pair {
    primary: Cluster,
    standby: Cluster,
    database: Database,
}

impl Pair {
    async fn start() -> Self {
        let primary = block_in_place(Cluster::start);
        let database = Database::create_in(&primary).await;
        let standby = block_in_place(|| primary.standby());
        Self {
            primary,
            standby,
            database,
        }
    }

    /// Waits until the standby has what the primary has now, and then stops its replay.
    async fn freeze(&self) {
        let mut primary = self.database.connect().await;
        let sent: String = sqlx::query_scalar("SELECT pg_current_wal_lsn()::text")
            .fetch_one(&mut primary)
            .await
            .expect("a position");
        let url = self.database.url_at(self.standby.addr());
        let mut standby = sqlx::PgConnection::connect(&url).await.expect("a standby");
        let has = "SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn";
        while !sqlx::query_scalar::<_, bool>(has)
            .bind(&sent)
            .fetch_one(&mut standby)
            .await
            .expect("a position")
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sqlx::query("SELECT pg_wal_replay_pause()")
            .execute(&mut standby)
            .await
            .expect("replay is paused");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_led_to_a_standby_allows_no_revoked_key() {
    let pair = Pair::start().await;
    let proxy = Proxy::start(pair.primary.addr()).await;
    let setup = Gatekey::postgres(&pair.database).env("GATEKEY_LEASE", format!("{LEASE:?}"));
    let far = setup
        .clone()
        .env("GATEKEY_DATABASE_URL", pair.database.url_at(proxy.addr()))
        .env("GATEKEY_WARM_KEYS", "0");
    let (near, far) = (setup.start().await, far.start().await);
    let (admin, asked) = (near.admin().await, far.admin().await);
    let mut keys = Vec::new();
    for _ in 0..KEYS {
        keys.push(admin.issue("default", &["a"]).await);
    }
    let living = admin.issue("default", &["a"]).await.1;
    let (caller, caller_secret) = admin.issue("system", &["*"]).await;
    // Some are in the cache of the replica, and others must be loaded.
    for (_, plaintext) in &keys[..KEYS / 2] {
        assert_eq!(asked.reason(plaintext).await, Reason::Allowed);
    }
    pair.freeze().await;

    proxy.lead_to(pair.standby.addr());
    proxy.cut_once().await;
    let revoked = keys.iter().map(|(key, _)| key).chain([&caller]);
    for key in revoked {
        let answer = admin.revoke(key, "").await;
        let state = answer.enforcement.expect("every change has it").state();
        assert_eq!(state, EnforcementState::Enforced);
    }

    let (began, mut unavailable) = (Instant::now(), 0);
    let as_revoked = asked.with(&caller_secret);
    while began.elapsed() < ASKED {
        for (_, plaintext) in &keys {
            unavailable += refuses(&asked, plaintext).await;
        }
        unavailable += refuses(&as_revoked, &living).await;
        unavailable += refuses(&asked, &living).await;
        let request = GetKeyRequest {
            tenant_id: "default".to_owned(),
            key_id: keys[0].0.key_id.clone(),
        };
        let stale = asked.keys.clone().get_key(request).await;
        assert_eq!(stale.expect_err("a stale key").code(), Code::Unavailable);
        assert!(change(&asked, "alice").await.is_err());
    }
    // The connections to the standby stay open.
    proxy.lead_to(pair.primary.addr());
    let took = recovered(|| async {
        let reason = asked.try_validate(ask(&living)).await;
        reason.is_ok_and(|answer| answer.allowed) && change(&asked, "alice").await.is_ok()
    })
    .await;
    for (_, plaintext) in &keys {
        assert_eq!(asked.reason(plaintext).await, Reason::Revoked);
    }
    println!("{unavailable} calls UNAVAILABLE, 0 allowed; well again after {took:?}");
    assert_eq!(logged(&far, "panicked"), 0);
}

/// Asserts that a call has no answer, and above all not that the key is allowed: 1.
async fn refuses(caller: &Client, plaintext: &str) -> usize {
    match caller.try_validate(ask(plaintext)).await {
        Ok(answer) => panic!("a decision by a standby: {answer:?}"),
        Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
    }
    1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_does_not_start_on_a_standby_and_says_why() {
    let pair = Pair::start().await;
    let setup = Gatekey::postgres(&pair.database);
    setup.start().await.stop().await;
    pair.freeze().await;
    let proxy = Proxy::start(pair.standby.addr()).await;
    let url = pair.database.url_at(proxy.addr());
    let mut server = Program::of(&setup, &[])
        .env("GATEKEY_DATABASE_URL", url)
        .start();
    let line = server.wait_for("does not answer yet").await;
    assert!(
        line.contains("it takes no changes: it is a standby"),
        "{line}"
    );
    proxy.lead_to(pair.primary.addr());
    server.serving().await;
}
