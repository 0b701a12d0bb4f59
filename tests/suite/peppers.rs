//! Peppers from end to end: rotated, lost, wrong, and not the same on two replicas.

use std::{fs, path::PathBuf, time::Duration};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use gatekey::api::proto::{CreateKeyRequest, Key, Reason};
use tokio::time;
use tonic::Code;

use crate::{
    inside::Inside,
    metrics,
    program::Program,
    support::{
        Client, Database, Gatekey, Setup,
        client::{ask, error_reason, new_key},
        on_both_engines, write_secret,
    },
};

/// What the log says of a pepper that may go.
const UNUSED: &str = "no working key is under this pepper any more";

on_both_engines! {
    async fn a_rotated_pepper_takes_over_each_key_as_it_is_used_and_the_old_one_can_go(setup: Setup) {
        give(&setup, &[pepper("old")]);
        let server = setup.start().await;
        let admin = server.admin().await;
        let one = admin.issue("default", &["jobs:read"]).await;
        let two = admin.issue("default", &["jobs:read"]).await;
        let three = admin.issue("default", &["jobs:read"]).await;
        admin.revoke(&three.0, "over").await;
        let stopped = server.stop().await;

        let old = file(&setup);
        let old = fs::read_to_string(old).expect("it was given");
        give(&setup, &[pepper("new"), old.trim().to_owned()]);
        let server = stopped.start().await;
        let admin = server.admin().await;
        let mut inside = Inside::of(&setup).await;
        assert_eq!(peppers_of_keys(&mut inside).await, ["old", "old", "old"]);
        assert_eq!(admin.reason(&one.1).await, Reason::Allowed);
        assert_eq!(admin.reason(&forged(&two.1)).await, Reason::NotFound);
        until(&mut inside, &["new", "old", "old"]).await;
        assert!(!server.logs().contains(UNUSED), "two keys are under it");
        let new = admin.issue("default", &["jobs:read"]).await;

        // A revoked key moves as any other does.
        validate_all(&admin, &[(&two, Reason::Allowed), (&three, Reason::Revoked)]).await;
        server.wait_for_log(UNUSED).await;
        until(&mut inside, &["new"; 4]).await;
        let line = told_unused(&server);
        assert_eq!(line["fields"]["pepper"], "old");
        assert_eq!(line["fields"]["keys"], "new: 3, old: 0");
        let all = [
            (&one, Reason::Allowed),
            (&two, Reason::Allowed),
            (&three, Reason::Revoked),
            (&new, Reason::Allowed),
        ];
        validate_all(&admin, &all).await;
        let stopped = server.stop().await;

        let rotated = fs::read_to_string(file(&setup)).expect("it was given");
        let rotated = rotated.lines().next().expect("a line").to_owned();
        give(&setup, &[rotated]);
        let server = stopped.start().await;
        let admin = server.admin().await;
        validate_all(&admin, &all).await;
        for (_, plaintext) in [&one, &new] {
            assert_eq!(admin.reason(&forged(plaintext)).await, Reason::NotFound);
        }
    }

    async fn a_pepper_is_named_as_unused_only_once_no_working_key_needs_it_and_a_newer_one_is_current(setup: Setup) {
        prove_only_older_peppers_are_named(&setup).await;
    }

    async fn an_old_pepper_that_went_too_soon_is_missed_at_the_start_and_costs_no_key_once_forgotten(setup: Setup) {
        let old = pepper("old");
        give(&setup, std::slice::from_ref(&old));
        let server = setup.start().await;
        let key = server.admin().await.issue("default", &["jobs:read"]).await;
        let stopped = server.stop().await;
        let new = pepper("new");
        give(&setup, &[new.clone(), old]);
        let stopped = stopped.start().await.stop().await;
        give(&setup, &[new]);
        let ended = Program::of(&setup, &[]).end().await;
        let deny_reason = ended.deny_reason();
        assert!(deny_reason.contains("working keys are still under (old)"), "{deny_reason}");
        assert!(deny_reason.contains("gatekey migrate --forget-peppers"), "{deny_reason}");
        Program::of(&setup, &["migrate", "--forget-peppers"]).end().await.was_silent();
        let server = stopped.start().await;
        let admin = server.admin().await;
        assert_eq!(admin.reason(&forged(&key.1)).await, Reason::NotFound);
        validate_all(&admin, &[(&key, Reason::Allowed)]).await;
        until(&mut Inside::of(&setup).await, &["new"]).await;
    }

    async fn a_store_without_peppers_takes_to_one(setup: Setup) {
        let bare = setup.clone().env("GATEKEY_PEPPER_FILE", "none");
        let server = bare.start().await;
        let key = server.admin().await.issue("default", &["jobs:read"]).await;
        server.stop().await;
        give(&setup, &[pepper("first")]);
        let server = setup.start().await;
        let admin = server.admin().await;
        validate_all(&admin, &[(&key, Reason::Allowed)]).await;
        until(&mut Inside::of(&setup).await, &["first"]).await;
        server.stop().await;
        let server = bare.start().await;
        let admin = server.admin().await;
        validate_all(&admin, &[(&key, Reason::Allowed)]).await;
        assert_eq!(admin.reason(&forged(&key.1)).await, Reason::NotFound);
    }

    async fn another_pepper_under_a_known_id_is_refused_in_one_line(setup: Setup) {
        let known = pepper("p7");
        give(&setup, std::slice::from_ref(&known));
        let server = setup.start().await;
        let key = server.admin().await.issue("default", &["jobs:read"]).await;
        server.stop().await;
        let wrong = pepper("p7");
        for lines in [vec![wrong.clone()], vec![pepper("p8"), wrong.clone()]] {
            give(&setup, &lines);
            let ended = Program::of(&setup, &[]).end().await;
            let deny_reason = ended.deny_reason();
            let end = ": the pepper p7 is not the one that the store knows by that id";
            assert!(deny_reason.starts_with("gatekey: GATEKEY_PEPPER_FILE is invalid: "), "{deny_reason}");
            assert!(deny_reason.ends_with(end), "{deny_reason}");
            assert!(!deny_reason.contains(&wrong[3..]), "{deny_reason}");
        }
        give(&setup, &[known]);
        let server = setup.start().await;
        validate_all(&server.admin().await, &[(&key, Reason::Allowed)]).await;
    }

    async fn peppers_that_the_store_never_saw_are_refused_until_the_lost_ones_are_forgotten(setup: Setup) {
        give(&setup, &[pepper("lost")]);
        let server = setup.start().await;
        let admin = server.admin().await;
        let key = admin.issue("default", &["jobs:read"]).await;
        let stopped = server.stop().await;

        let unrelated = pepper("other");
        give(&setup, std::slice::from_ref(&unrelated));
        let ended = Program::of(&setup, &[]).end().await;
        let deny_reason = ended.deny_reason();
        assert!(deny_reason.starts_with("gatekey: GATEKEY_PEPPER_FILE is invalid: "), "{deny_reason}");
        assert!(deny_reason.contains("(lost)"), "{deny_reason}");
        assert!(deny_reason.contains("gatekey migrate --forget-peppers"), "{deny_reason}");
        assert!(!deny_reason.contains(&unrelated[6..]), "{deny_reason}");

        Program::of(&setup, &["migrate", "--forget-peppers"]).end().await.was_silent();
        let server = stopped.start().await;
        let admin = server.admin().await;
        assert_eq!(admin.reason(&forged(&key.1)).await, Reason::NotFound);
        validate_all(&admin, &[(&key, Reason::Allowed)]).await;
        until(&mut Inside::of(&setup).await, &["other"]).await;
        assert_eq!(admin.reason(&forged(&key.1)).await, Reason::NotFound);
    }
}

#[tokio::test]
async fn on_sqlite_a_lost_pepper_file_is_not_made_anew_until_it_is_forgotten() {
    let setup = Gatekey::sqlite();
    let server = setup.start().await;
    let admin = server.admin().await;
    let key = admin.issue("default", &["jobs:read"]).await;
    let revoked = admin.issue("default", &["jobs:read"]).await;
    admin.revoke(&revoked.0, "over").await;
    server.stop().await;
    let lost = fs::read_to_string(file(&setup)).expect("it was made");
    fs::remove_file(file(&setup)).expect("it is ours");

    for _ in 0..2 {
        let ended = Program::of(&setup, &[]).end().await;
        let deny_reason = ended.deny_reason();
        assert!(
            deny_reason.starts_with("gatekey: GATEKEY_PEPPER_FILE is invalid: gatekey.pepper: "),
            "{deny_reason}"
        );
        assert!(
            deny_reason.contains("gatekey migrate --forget-peppers"),
            "{deny_reason}"
        );
        assert!(!file(&setup).exists(), "a new one would hide the loss");
    }

    Program::of(&setup, &["migrate", "--forget-peppers"])
        .end()
        .await
        .was_silent();
    let server = setup.start().await;
    let made = fs::read_to_string(file(&setup)).expect("it was made");
    assert_ne!(made, lost);
    let id = made.split(':').next().expect("it has an id");
    let admin = server.admin().await;
    for (_, plaintext) in [&key, &revoked] {
        assert_eq!(admin.reason(&forged(plaintext)).await, Reason::NotFound);
    }
    validate_all(
        &admin,
        &[(&key, Reason::Allowed), (&revoked, Reason::Revoked)],
    )
    .await;
    until(&mut Inside::of(&setup).await, &[id, id]).await;
    validate_all(
        &admin,
        &[(&key, Reason::Allowed), (&revoked, Reason::Revoked)],
    )
    .await;
}

#[tokio::test]
async fn a_replica_with_an_unrelated_pepper_is_refused_and_the_first_goes_on() {
    let setup = Gatekey::postgres(&Database::create().await);
    let first = setup.start().await;
    let admin = first.admin().await;
    let key = admin.issue("default", &["jobs:read"]).await;
    for id in ["p1", "q1"] {
        let other = setup.folder().join("other.pepper");
        write_secret(&other, &pepper(id));
        let ended = Program::of(&setup, &[])
            .env("GATEKEY_PEPPER_FILE", &other)
            .end()
            .await;
        let deny_reason = ended.deny_reason();
        let start = format!(
            "gatekey: GATEKEY_PEPPER_FILE is invalid: {}: ",
            other.display()
        );
        assert!(deny_reason.starts_with(&start), "{deny_reason}");
    }
    validate_all(&admin, &[(&key, Reason::Allowed)]).await;
    let mut inside = Inside::of(&setup).await;
    assert_eq!(inside.texts("SELECT pepper_id FROM peppers").await, ["p1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_replicas_with_unrelated_peppers_that_start_together_one_serves() {
    for ids in [
        ["p1", "p1"],
        ["p1", "q1"],
        ["p1", "p1"],
        ["p1", "q1"],
        ["p1", "p1"],
        ["p1", "q1"],
    ] {
        let setup = Gatekey::postgres(&Database::create().await);
        // So that the two meet at the peppers, not at the schema.
        Program::of(&setup, &["migrate"]).end().await.was_silent();
        let replica = |place: usize| {
            let file = setup.folder().join(format!("{place}.pepper"));
            write_secret(&file, &pepper(ids[place]));
            Program::of(&setup, &[])
                .env("GATEKEY_PEPPER_FILE", file)
                .start()
        };
        let (mut one, mut two) = (replica(0), replica(1));
        let decided = tokio::join!(one.decided(), two.decided());
        let serving = usize::from(decided.0) + usize::from(decided.1);
        assert_eq!(serving, 1, "of {ids:?}");
    }
}

#[tokio::test]
async fn replicas_in_the_midst_of_a_rotation_take_each_others_keys() {
    let setup = Gatekey::postgres(&Database::create().await);
    let (old, new) = (pepper("old"), pepper("new"));
    give(&setup, &[old.clone(), new.clone()]);
    let before = setup.start().await;
    let rotated = setup.folder().join("rotated.pepper");
    write_secret(&rotated, &format!("{new}\n{old}\n"));
    let after = setup
        .clone()
        .env("GATEKEY_PEPPER_FILE", rotated.display().to_string());
    let after = after.start().await;
    let (before, after) = (before.admin().await, after.admin().await);
    let of_old = before.issue("default", &["jobs:read"]).await;
    let of_new = after.issue("default", &["jobs:read"]).await;
    for _ in 0..3 {
        for replica in [&before, &after] {
            validate_all(
                replica,
                &[(&of_old, Reason::Allowed), (&of_new, Reason::Allowed)],
            )
            .await;
            assert_eq!(replica.reason(&forged(&of_new.1)).await, Reason::NotFound);
        }
    }
}

#[tokio::test]
async fn a_replica_that_lacks_the_newest_pepper_cannot_decide_about_its_keys() {
    let setup = Gatekey::postgres(&Database::create().await);
    let (old, new) = (pepper("old"), pepper("new"));
    give(&setup, std::slice::from_ref(&old));
    let before = setup.start().await;
    give(&setup, &[new, old]);
    let after = setup.start().await;
    let (before, after) = (before.admin().await, after.admin().await);
    let (key, plaintext) = after.issue("default", &["jobs:read"]).await;
    let error = before.try_validate(ask(&plaintext)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
    assert_eq!(error_reason(&error), "UNKNOWN_PEPPER");
    assert_eq!(after.reason(&plaintext).await, Reason::Allowed);
    after.revoke(&key, "over").await;
    assert_eq!(before.reason(&plaintext).await, Reason::NotFound);
}

async fn prove_only_older_peppers_are_named(setup: &Setup) {
    const COUNTED: &str = "working keys by pepper";
    let setup = setup.clone().env("GATEKEY_METRICS_LISTEN", "127.0.0.1:0");
    let (old, new) = (pepper("old"), pepper("new"));
    give(&setup, std::slice::from_ref(&old));
    let server = setup.start().await;
    let admin = server.admin().await;
    let working = admin.issue("default", &["jobs:read"]).await;
    let revoked = admin.issue("default", &["jobs:read"]).await;
    admin.revoke(&revoked.0, "over").await;
    let expiring = CreateKeyRequest {
        ttl: Some(prost_types::Duration {
            seconds: 0,
            nanos: 1000,
        }),
        ..new_key("default", &["jobs:read"])
    };
    admin.create(expiring).await;
    let stopped = server.stop().await;

    // The new one is known everywhere before it is used.
    give(&setup, &[old.clone(), new.clone()]);
    let server = stopped.start().await;
    server.wait_for_log(COUNTED).await;
    let keys = |pepper| format!("gatekey_pepper_keys{{pepper=\"{pepper}\"}}");
    let page = metrics::page(&server);
    assert_eq!(
        ["old", "new"].map(|id| metrics::count(&page, &keys(id))),
        [1, 0]
    );
    let stopped = server.stop().await;
    assert!(
        !stopped.logs().contains(UNUSED),
        "the new one is needed soon"
    );

    give(&setup, &[new.clone(), old]);
    let server = stopped.start().await;
    server.wait_for_log(COUNTED).await;
    assert!(
        !server.logs().contains(UNUSED),
        "one key is under the old one"
    );
    validate_all(&server.admin().await, &[(&working, Reason::Allowed)]).await;
    // What is revoked or expired is under it, and needs it no more.
    server.wait_for_log(UNUSED).await;
    let fields = &told_unused(&server)["fields"];
    assert_eq!(
        (&fields["pepper"], &fields["keys"]),
        (&"old".into(), &"new: 1, old: 0".into())
    );
    let page = metrics::page(&server);
    assert_eq!(
        ["old", "new"].map(|id| metrics::count(&page, &keys(id))),
        [0, 1]
    );
    let stopped = server.stop().await;
    let mut inside = Inside::of(&setup).await;
    assert_eq!(peppers_of_keys(&mut inside).await, ["new", "old", "old"]);

    give(&setup, &[new]);
    let server = stopped.start().await;
    let admin = server.admin().await;
    validate_all(
        &admin,
        &[(&working, Reason::Allowed), (&revoked, Reason::NotFound)],
    )
    .await;
}

/// A line of a pepper file, with a pepper of its own.
pub fn pepper(id: &str) -> String {
    format!(
        "{id}:{}",
        BASE64_STANDARD.encode(rand::random::<[u8; 32]>())
    )
}

fn file(setup: &Setup) -> PathBuf {
    setup.folder().join("gatekey.pepper")
}

/// Makes these lines the pepper file.
pub fn give(setup: &Setup, lines: &[String]) {
    write_secret(&file(setup), &(lines.join("\n") + "\n"));
}

/// A key with the same id, another secret and a right checksum.
pub fn forged(plaintext: &str) -> String {
    let (body, secret_at) = (plaintext.len() - 6, plaintext.len() - 6 - 43);
    let first = if &plaintext[secret_at..=secret_at] == "A" {
        "B"
    } else {
        "A"
    };
    let mut forged = plaintext[..body].to_owned();
    forged.replace_range(secret_at..=secret_at, first);
    let mut sum = crc32fast::hash(forged.as_bytes()) as usize;
    let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut tail = [0; 6];
    for digit in tail.iter_mut().rev() {
        *digit = digits[sum % 62];
        sum /= 62;
    }
    forged.extend(tail.map(char::from));
    forged
}

async fn validate_all(client: &Client, keys: &[(&(Key, String), Reason)]) {
    for ((key, plaintext), reason) in keys {
        assert_eq!(client.reason(plaintext).await, *reason, "{}", key.key_id);
    }
}

/// Which pepper each key's MAC was made under, oldest key first; `none` without one.
async fn peppers_of_keys(inside: &mut Inside) -> Vec<String> {
    let sql = "SELECT COALESCE(mac_pepper, 'none') FROM keys ORDER BY created_revision";
    inside.texts(sql).await
}

/// Waits until the keys have been moved to these peppers. The server does so after it has answered, and tells nobody.
async fn until(inside: &mut Inside, peppers: &[&str]) {
    let moved = time::timeout(Duration::from_secs(20), async {
        while peppers_of_keys(inside).await != peppers {
            time::sleep(Duration::from_millis(10)).await;
        }
    });
    let in_time = moved.await.is_ok();
    assert!(in_time, "{:?}", peppers_of_keys(inside).await);
}

/// The log line about the pepper that may go, of which there is one.
fn told_unused(server: &Gatekey) -> serde_json::Value {
    let logs = server.logs();
    let lines: Vec<_> = logs.lines().filter(|line| line.contains(UNUSED)).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    serde_json::from_str(lines[0]).expect("a line is an object")
}
