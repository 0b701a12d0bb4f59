//! When keys were last used: gathered beside the calls, written in batches, lost by no ordinary stop.

use std::time::{Duration, SystemTime};

use gatekey::api::proto::{
    GetKeyRequest, Key, ListKeysRequest, LookupKeyRequest, Reason, ValidateRequest,
};
use tokio::time;

use crate::{
    inside::Inside,
    support::{
        Client, Database, Gatekey,
        client::{ask, ask_header, texts},
        on_both_engines,
    },
};

/// Far beyond what a use may take to be seen.
const DEADLINE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(50);

const UNWRITTEN: &str = "uses of keys could not be written";

on_both_engines! {
    async fn a_use_is_told_by_get_list_and_lookup(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (key, plaintext) = admin.issue("default", &["jobs:read"]).await;
        let (unused, _) = admin.issue("default", &["jobs:read"]).await;
        assert_eq!((key.last_used_at, &*key.last_used_ip), (None, ""));

        #[expect(clippy::disallowed_methods, reason = "the server's clock is this machine's")]
        let now = || SystemTime::now();
        let before = now();
        assert!(use_from(&admin, &plaintext, "2001:db8::7").await);
        let used = used(&admin, &key).await;
        let at = SystemTime::try_from(used.last_used_at.expect("a time")).expect("a time");
        assert!(before <= at && at <= now(), "{at:?}");
        assert_eq!(used.last_used_ip, "2001:db8::7");

        let listed = list(&admin).await;
        assert!(listed.contains(&used), "{listed:?}");
        let listed = listed.iter().find(|listed| listed.key_id == unused.key_id);
        assert_eq!(listed.expect("it is listed").last_used_at, None);
        let lookup = LookupKeyRequest { plaintext_key: plaintext, ..LookupKeyRequest::default() };
        let found = admin.keys.clone().lookup_key(lookup).await;
        let found = found.expect("it is found").into_inner();
        assert_eq!(found.key.as_ref(), Some(&used));
    }

    async fn hits_and_misses_count_and_what_was_refused_does_not(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (_, used) = admin.issue("default", &["jobs:read"]).await;
        let (_, refused) = admin.issue("default", &["jobs:read"]).await;
        for n in 0..10 {
            assert!(use_from(&admin, &used, &format!("10.0.0.{n}")).await);
        }
        let lacking = ValidateRequest {
            required_scopes: texts(&["jobs:write"]),
            ..ask(&refused)
        };
        assert_eq!(admin.validate(lacking).await.reason(), Reason::InsufficientScope);
        let lookup = LookupKeyRequest { plaintext_key: refused, ..LookupKeyRequest::default() };
        admin.keys.clone().lookup_key(lookup).await.expect("it is found");
        // A stop loses nothing.
        let stopped = server.stop().await;
        let mut inside = Inside::of(stopped.setup()).await;
        assert_eq!(usage(&mut inside).await, ["10 from 10.0.0.9"]);
    }

    async fn a_use_without_an_address_is_told_without_one(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (key, plaintext) = admin.issue("default", &["jobs:read"]).await;
        assert!(use_from(&admin, &plaintext, "10.0.0.1").await);
        let header = ask_header(&format!("Bearer {plaintext}"));
        assert!(admin.validate(header).await.allowed);
        let again = server.stop().await.start().await;
        let told = get(&again.admin().await, &key).await;
        assert!(told.last_used_at.is_some());
        assert_eq!(told.last_used_ip, "", "the last use came from nobody knows where");
    }

    async fn a_credential_of_gatekeys_own_is_used_by_each_call_from_its_peer(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (key, plaintext) = admin.issue("system", &["*:keys:list"]).await;
        list(&admin.with(&plaintext)).await;
        assert_eq!(used(&admin, &key).await.last_used_ip, "127.0.0.1");
    }

    async fn uses_wait_for_nobody_and_are_no_change(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (key, plaintext) = admin.issue("default", &["jobs:read"]).await;
        let mut inside = Inside::of(&setup).await;
        inside.hold().await;
        for _ in 0..100 {
            assert!(use_from(&admin, &plaintext, "10.0.0.1").await);
        }
        inside.let_go().await;
        used(&admin, &key).await;
        let head = inside.texts("SELECT CAST(revision AS TEXT) FROM log_head").await;
        assert_eq!(head, [key.revision.to_string()]);
        assert_eq!(get(&admin, &key).await.revision, key.revision);
    }

    async fn what_could_not_be_written_is_kept_and_written_later(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (key, plaintext) = admin.issue("default", &["jobs:read"]).await;
        let mut inside = Inside::of(&setup).await;
        inside.run("ALTER TABLE key_usage RENAME TO gone").await;
        for n in 0..5 {
            assert!(use_from(&admin, &plaintext, &format!("10.0.0.{n}")).await);
        }
        server.wait_for_log(UNWRITTEN).await;
        for n in 5..10 {
            assert!(use_from(&admin, &plaintext, &format!("10.0.0.{n}")).await);
        }
        inside.run("ALTER TABLE gone RENAME TO key_usage").await;
        server.wait_for_log("uses of keys are written again").await;
        assert_eq!(used(&admin, &key).await.last_used_ip, "10.0.0.9");
        assert_eq!(usage(&mut inside).await, ["10 from 10.0.0.9"]);
        assert_eq!(server.logs().matches(UNWRITTEN).count(), 1);
    }

    async fn a_stop_does_not_wait_for_ever_for_a_store_that_takes_no_uses(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (_, plaintext) = admin.issue("default", &["jobs:read"]).await;
        let mut inside = Inside::of(&setup).await;
        inside.run("ALTER TABLE key_usage RENAME TO gone").await;
        assert!(use_from(&admin, &plaintext, "10.0.0.1").await);
        let stopped = server.stop().await;
        assert!(stopped.logs().contains("the last uses of keys are lost"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_replicas_the_later_use_is_the_last_and_counts_add() {
    let database = Database::create().await;
    let setup = Gatekey::postgres(&database);
    let (one, other) = (setup.start().await, setup.start().await);
    let (admin, elsewhere) = (one.admin().await, other.admin().await);
    let (_, plaintext) = admin.issue("default", &["jobs:read"]).await;
    assert!(use_from(&admin, &plaintext, "10.0.0.1").await);
    assert!(use_from(&admin, &plaintext, "10.0.0.2").await);
    assert!(use_from(&elsewhere, &plaintext, "10.0.0.3").await);
    // The later use is written first.
    other.stop().await;
    one.stop().await;
    let mut inside = Inside::of(&setup).await;
    assert_eq!(usage(&mut inside).await, ["3 from 10.0.0.3"]);
}

/// Asks about a key presented from this address, and says whether it is allowed.
pub async fn use_from(client: &Client, plaintext: &str, client_ip: &str) -> bool {
    let request = ValidateRequest {
        client_ip: client_ip.to_owned(),
        ..ask(plaintext)
    };
    client.validate(request).await.allowed
}

/// The key, once its use is told.
pub async fn used(client: &Client, key: &Key) -> Key {
    let told = async {
        loop {
            let told = get(client, key).await;
            if told.last_used_at.is_some() {
                return told;
            }
            time::sleep(POLL).await;
        }
    };
    let told = time::timeout(DEADLINE, told).await;
    told.expect("a use is told within seconds")
}

async fn get(client: &Client, key: &Key) -> Key {
    let request = GetKeyRequest {
        key_id: key.key_id.clone(),
        ..GetKeyRequest::default()
    };
    let got = client.keys.clone().get_key(request).await;
    got.expect("it is there")
        .into_inner()
        .key
        .expect("it is there")
}

async fn list(client: &Client) -> Vec<Key> {
    let request = ListKeysRequest {
        tenant_id: "default".to_owned(),
        ..ListKeysRequest::default()
    };
    let listed = client.keys.clone().list_keys(request).await;
    listed.expect("a page").into_inner().keys
}

/// What is stored of the uses of all keys.
async fn usage(inside: &mut Inside) -> Vec<String> {
    inside
        .texts("SELECT uses || ' from ' || last_used_ip FROM key_usage")
        .await
}
