//! One caller with many calls delays its own calls, and not those of others.
//!
//! Each load runs for `GATEKEY_ATTACK_SECONDS` (5 by default) and prints figures.

use std::{
    env,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use gatekey::api::proto::{
    Key, ListKeysRequest, Owner, Reason, RevokeKeyRequest, RevokeKeysRequest, UpdateKeyRequest,
    UpdateOwnerRequest, revoke_keys_request,
};
use tokio::{task::JoinSet, time};
use tonic::{Code, Status};

use crate::support::client::{key_target, owner_target};
use crate::{
    cancelled::DEFAULT_COST,
    flood::resident,
    indistinguishable::unknown,
    inside::Inside,
    metrics,
    support::{
        Client, Gatekey, Setup,
        client::{error_reason, new_key, whole_owner},
        on_both_engines,
    },
};

const DEADLINE: Duration = Duration::from_secs(20);
/// Calls of the load at once, and the connections that they come over.
const CALLS: usize = 64;
const CONNECTIONS: usize = 4;
/// The wait of a caller that was refused.
const BACKOFF: Duration = Duration::from_millis(200);
/// The longest that an admin's RevokeKey may take under each of the loads.
const REVOKE_MAX: Duration = Duration::from_secs(1);
/// Keys that are written past gatekey: more than a dry run counts.
const STORED: usize = 120_000;
/// The key of number n; 25 of them are the owner's `rare`.
const STORE: &str = "INSERT INTO keys (key_id, tenant_id, owner_id, label, description, prefix, scopes, \
    audiences, allowed_cidrs, metadata, suspended, created_at, created_by, hash_version, \
    secret_phc, created_revision, revision) \
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 120000) \
    SELECT CAST(1000000000000000 + n AS TEXT), 'default', CASE WHEN n % 4800 = 7 THEN 'rare' ELSE 'usual' END, \
    'key ' || n, '', 'gk', '[\"a\"]', '[]', '[]', '{}', FALSE, 0, 'admin', 'v1', '', n, n FROM numbers";
/// Calls of one caller that may be under way at once.
const CALLS_EACH: usize = 256;
/// Changes that have their turn at once.
const RUNNING: usize = 2;
/// More than may wait for Argon2, of strangers and of one issuer.
const HASHES: usize = 400;

on_both_engines! {
    async fn under_64_dry_runs_an_admin_revokes_within_a_second(setup: Setup) {
        revoke_under(setup, "64 dry runs", |client, _| Box::pin(dry_run(client, ""))).await;
    }

    async fn under_64_creates_an_admin_revokes_within_a_second(setup: Setup) {
        revoke_under(setup, "64 CreateKeys", |client, _| Box::pin(create(client))).await;
    }

    async fn under_64_updates_an_admin_revokes_within_a_second(setup: Setup) {
        revoke_under(setup, "64 UpdateKeys", |client, n| Box::pin(update(client, n))).await;
    }

    async fn under_64_puts_of_owners_an_admin_revokes_within_a_second(setup: Setup) {
        revoke_under(setup, "64 UpdateOwners", |client, n| Box::pin(put(client, n))).await;
    }

    async fn under_64_slow_lists_an_admin_revokes_within_a_second(setup: Setup) {
        revoke_under(setup, "64 ListKeys", |client, _| Box::pin(list(client))).await;
    }

    async fn a_dry_run_counts_up_to_100000_keys_and_waits_for_no_change(setup: Setup) {
        count_while_changes_are_held(setup).await;
    }

    async fn a_full_queue_of_one_caller_delays_no_other_and_revocations_come_first(setup: Setup) {
        take_turns(setup).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_pepper_strangers_starve_neither_issuers_nor_known_keys() {
    let server = Gatekey::sqlite()
        .env("GATEKEY_PEPPER_FILE", "none")
        .env("GATEKEY_ARGON2", DEFAULT_COST)
        .start()
        .await;
    server
        .wait_for_log("GATEKEY_PEPPER_FILE=none is for trials")
        .await;
    issue_under(&server, "strangers", |client, _| Box::pin(guess(client))).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_pepper_one_issuer_starves_neither_others_nor_known_keys() {
    let server = Gatekey::sqlite()
        .env("GATEKEY_PEPPER_FILE", "none")
        .env("GATEKEY_ARGON2", DEFAULT_COST)
        .start()
        .await;
    issue_under(&server, "CreateKeys", |client, _| Box::pin(create(client))).await;
    server.stop().await;
}

type Call = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

fn attack_time() -> Duration {
    let seconds = env::var("GATEKEY_ATTACK_SECONDS").map(|text| text.parse());
    Duration::from_secs(seconds.map_or(5, |seconds| seconds.expect("a number of seconds")))
}

/// Calls that are made again and again by one caller.
struct Attack {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    calls: JoinSet<()>,
}

impl Attack {
    /// Begins `at_once` calls, of which each is followed by the next.
    async fn begin(
        server: &Gatekey,
        credential: &str,
        at_once: usize,
        call: fn(Client, usize) -> Call,
    ) -> Self {
        let mut this = Self {
            over: Arc::default(),
            answered: Arc::default(),
            refused: Arc::default(),
            calls: JoinSet::new(),
        };
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(server.client(Some(credential)).await);
        }
        for number in 0..at_once {
            let client = clients[number % CONNECTIONS].clone();
            let over = Arc::clone(&this.over);
            let (answered, refused) = (Arc::clone(&this.answered), Arc::clone(&this.refused));
            this.calls.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    match call(client.clone(), number).await {
                        Ok(()) => {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(status) => {
                            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                            refused.fetch_add(1, Ordering::Relaxed);
                            time::sleep(BACKOFF).await;
                        }
                    }
                }
            });
        }
        this
    }

    /// Ends it, and returns how many calls were answered and how many refused.
    async fn end(mut self) -> (u64, u64) {
        self.over.store(true, Ordering::Relaxed);
        while let Some(call) = self.calls.join_next().await {
            call.expect("it fails only as expected");
        }
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (count(&self.answered), count(&self.refused))
    }
}

/// A server with [`STORED`] keys, and the credential of a caller with rights in one tenant.
async fn stored(setup: &Setup) -> (Gatekey, Client, String) {
    let setup = setup.clone().env("GATEKEY_LOG", "info");
    let setup = setup.env("GATEKEY_METRICS_LISTEN", "127.0.0.1:0");
    let setup = setup.env("GATEKEY_ARGON2", DEFAULT_COST);
    let server = setup.start().await;
    let (_, narrow) = server.admin().await.issue("system", &["default:*"]).await;
    // A running server would wait for the events of these revisions.
    server.stop().await;
    let mut inside = Inside::of(&setup).await;
    inside.run(STORE).await;
    inside.run("UPDATE log_head SET revision = 120000").await;
    drop(inside);
    let server = setup.start().await;
    server.wait_for_log(r#""message":"ready""#).await;
    let admin = server.admin().await;
    (server, admin, narrow)
}

fn stored_key_id(number: usize) -> String {
    format!("key_{}", 1_000_000_000_000_000 + number)
}

async fn revoke(admin: &Client, number: usize) -> Result<Duration, Status> {
    let request = RevokeKeyRequest {
        tenant_id: "default".to_owned(),
        target: key_target(stored_key_id(number)),
        reason: String::new(),
    };
    let began = Instant::now();
    admin.keys.clone().revoke_key(request).await?;
    Ok(began.elapsed())
}

async fn revoke_under(setup: Setup, what: &str, call: fn(Client, usize) -> Call) {
    let (server, admin, narrow) = stored(&setup).await;
    let before = resident(&server);
    let attack = Attack::begin(&server, &narrow, CALLS, call).await;
    let (began, mut took) = (Instant::now(), Vec::new());
    while began.elapsed() < attack_time() {
        // Far from the keys that the load changes.
        let revoked = revoke(&admin, STORED - took.len()).await;
        took.push(revoked.expect("the key is revoked"));
        time::sleep(Duration::from_millis(50)).await;
    }
    let after = resident(&server);
    let (answered, refused) = attack.end().await;
    took.sort();
    let (middle, longest) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "under {what} ({answered} answered, {refused} refused): {} RevokeKeys, p50 {middle:?}, \
         longest {longest:?}; RSS {before} KiB before, {after} KiB after",
        took.len()
    );
    assert!(answered > 0, "the load did nothing");
    assert!(longest <= REVOKE_MAX, "a RevokeKey took {longest:?}");
    server.stop().await;
}

async fn dry_run(client: Client, owner: &str) -> Result<(), Status> {
    let request = dry_run_of(owner);
    client.keys.clone().revoke_keys(request).await.map(drop)
}

fn dry_run_of(owner: &str) -> RevokeKeysRequest {
    RevokeKeysRequest {
        tenant_id: "default".to_owned(),
        target: match owner {
            "" => Some(revoke_keys_request::Target::AllOwners(true)),
            owner => owner_target(owner),
        },
        dry_run: true,
        ..RevokeKeysRequest::default()
    }
}

async fn create(client: Client) -> Result<(), Status> {
    client
        .try_create(new_key("default", &["a"]))
        .await
        .map(drop)
}

async fn update(client: Client, number: usize) -> Result<(), Status> {
    let request = UpdateKeyRequest {
        key: Some(Key {
            key_id: stored_key_id(number + 1),
            label: "another label".to_owned(),
            ..Key::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["label".to_owned()],
        }),
    };
    client.keys.clone().update_key(request).await.map(drop)
}

fn owner(name: String) -> UpdateOwnerRequest {
    whole_owner(Owner {
        tenant_id: "default".to_owned(),
        owner_id: name,
        ..Owner::default()
    })
}

async fn put(client: Client, number: usize) -> Result<(), Status> {
    let request = owner(format!("owner {number}"));
    client.owners.clone().update_owner(request).await.map(drop)
}

async fn list(client: Client) -> Result<(), Status> {
    let request = ListKeysRequest {
        tenant_id: "default".to_owned(),
        label_contains: "nowhere".to_owned(),
        ..ListKeysRequest::default()
    };
    client.keys.clone().list_keys(request).await.map(drop)
}

/// Calls with a well formed key that was never issued.
async fn guess(client: Client) -> Result<(), Status> {
    match create(client.with(&unknown())).await {
        Err(status) if status.code() == Code::Unauthenticated => Ok(()),
        other => other,
    }
}

async fn count_while_changes_are_held(setup: Setup) {
    let (server, admin, _) = stored(&setup).await;
    let mut inside = Inside::of(server.setup()).await;
    inside.hold().await;
    for (owner, expected) in [
        ("", (100_000, true)),
        ("rare", (25, false)),
        ("nobody", (0, false)),
    ] {
        let mut keys = admin.keys.clone();
        let counting = time::timeout(DEADLINE, keys.revoke_keys(dry_run_of(owner)));
        let counted = counting.await.expect("it waits for no change");
        let counted = counted.expect("it is counted").into_inner();
        assert_eq!((counted.revoked_count, counted.count_capped), expected);
        assert_eq!((counted.revision, counted.enforcement), (0, None));
    }
    inside.let_go().await;
    server.stop().await;
}

async fn take_turns(setup: Setup) {
    let (server, admin, narrow) = stored(&setup).await;
    // A connection takes 128 calls.
    let mut connections = Vec::new();
    for _ in 0..=CALLS_EACH / 100 {
        connections.push(server.client(Some(&narrow)).await);
    }
    let set_owner = |client: &Client, name: String| {
        let mut owners = client.owners.clone();
        async move {
            let answer = owners.update_owner(owner(name)).await?.into_inner();
            Ok::<_, Status>(answer.owner.expect("an owner").revision)
        }
    };
    // Its credential is in the cache from here on.
    let head = set_owner(&connections[0], "first".to_owned())
        .await
        .expect("there is room");
    let mut inside = Inside::of(server.setup()).await;
    inside.hold().await;

    let mut many = JoinSet::new();
    // Ten are too many.
    for number in 0..CALLS_EACH + 10 {
        let connection = &connections[number / 100];
        many.spawn(set_owner(connection, format!("owner {number}")));
    }
    for _ in 0..10 {
        let refused = many.join_next().await.expect("there are more");
        let status = refused
            .expect("it does not panic")
            .expect_err("the caller has too many calls");
        assert_eq!(
            (status.code(), &*error_reason(&status)),
            (Code::ResourceExhausted, "CALLS_BUSY")
        );
    }
    let own = tokio::spawn(set_owner(&admin, "of the admin".to_owned()));
    queued(&server, "changes", CALLS_EACH - RUNNING + 1).await;
    let revoking = {
        let admin = admin.clone();
        tokio::spawn(async move { revoke(&admin, 1).await })
    };
    queued(&server, "revocations", 1).await;
    inside.let_go().await;

    revoking
        .await
        .expect("it does not panic")
        .expect("it is revoked");
    let own = own.await.expect("it does not panic").expect("it is put");
    // Those that had their turn, the revocation, one of the many, and then this one at the latest.
    let running = i64::try_from(RUNNING).expect("it is small");
    let before = own - head - 1;
    assert!(before <= running + 2, "{before} changes were first");
    let revision = "SELECT CAST(revision AS TEXT) FROM keys WHERE key_id = '1000000000000001'";
    let revoked: i64 = inside.texts(revision).await[0].parse().expect("a number");
    let before = revoked - head - 1;
    assert!(
        before <= running + 1,
        "{before} changes were before the revocation"
    );
    for answer in many.join_all().await {
        answer.expect("each has its turn");
    }
    server.stop().await;
}

async fn queued(server: &Gatekey, queue: &str, waiting: usize) {
    let name = format!("gatekey_admin_queued{{queue=\"{queue}\"}}");
    let deadline = Instant::now() + DEADLINE;
    while metrics::count(&metrics::page(server), &name) != waiting as u64 {
        assert!(Instant::now() < deadline, "{waiting} wait in {queue}");
        time::sleep(Duration::from_millis(5)).await;
    }
}

/// Issues keys and validates them for the first time, each with an Argon2 hash of its own.
async fn issue_under(server: &Gatekey, what: &str, call: fn(Client, usize) -> Call) {
    let admin = server.admin().await;
    let (_, narrow) = admin.issue("system", &["default:*"]).await;
    let before = resident(server);
    let attack = Attack::begin(server, &narrow, HASHES, call).await;
    let (began, mut took) = (Instant::now(), Vec::new());
    while began.elapsed() < attack_time() {
        let issuing = Instant::now();
        let (_, plaintext) = admin.issue("default", &["a"]).await;
        let issued = issuing.elapsed();
        let validating = Instant::now();
        assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
        took.push((issued, validating.elapsed()));
    }
    let after = resident(server);
    let (answered, refused) = attack.end().await;
    let longest = took
        .iter()
        .copied()
        .reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)));
    println!(
        "under {what} ({answered} answered, {refused} refused): {} keys issued and validated, the \
         longest times {longest:?}; RSS {before} KiB before, {after} KiB after",
        took.len()
    );
    assert!(refused > 0, "the load found room for all its hashes");
}
