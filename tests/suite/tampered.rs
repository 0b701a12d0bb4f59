//! Somebody who can write to the database changes what keys are checked by: no secret of theirs is accepted.

use argon2::{Algorithm, Argon2, Params, Version};
use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine as _};
use gatekey::api::proto::Reason;
use tonic::Code;

use crate::{
    inside::Inside,
    metrics::{count, page},
    peppers::{forged, give, pepper},
    program::Program,
    support::{
        Setup,
        client::{ask, error_reason},
        on_both_engines,
    },
};

const REJECTED: &str = "gatekey_verifiers_rejected_total";

on_both_engines! {
    async fn a_key_whose_mac_was_removed_is_not_accepted_by_another_argon2_hash(setup: Setup) {
        prove_no_mac_is_no_key(&setup).await;
    }

    async fn a_key_under_an_unknown_pepper_is_not_accepted_by_another_argon2_hash(setup: Setup) {
        prove_unknown_pepper_is_no_key(&setup).await;
    }

    async fn an_argon2_hash_out_of_bounds_is_not_accepted(setup: Setup) {
        prove_bounds(&setup).await;
    }

    async fn a_peppers_record_that_was_changed_ends_the_start(setup: Setup) {
        give(&setup, &[pepper("p1")]);
        setup.start().await.stop().await;
        Inside::of(&setup).await.run("UPDATE peppers SET argon2_until = 1000000").await;
        let ended = Program::of(&setup, &[]).end().await;
        let end = "the pepper p1 is not the one that the store knows by that id";
        assert!(ended.deny_reason().ends_with(end), "{}", ended.deny_reason());
    }

    /// What remains: who removes every record makes the next start look like the first one.
    async fn a_start_that_finds_no_record_of_any_pepper_says_which_keys_argon2_decides_about(setup: Setup) {
        give(&setup, &[pepper("p1")]);
        let server = setup.start().await;
        let quiet = "is used with this database for the first time";
        server.admin().await.issue("default", &["a"]).await;
        assert!(!server.logs().contains(quiet), "an empty database has no such keys");
        let stopped = server.stop().await;
        Inside::of(&setup).await.run("DELETE FROM peppers").await;
        stopped.start().await.wait_for_log(quiet).await;
    }
}

async fn prove_no_mac_is_no_key(setup: &Setup) {
    let setup = setup.clone().env("GATEKEY_METRICS_LISTEN", "127.0.0.1:0");
    give(&setup, &[pepper("p1")]);
    let server = setup.start().await;
    let admin = server.admin().await;
    let (key, plaintext) = admin.issue("default", &["a"]).await;
    let (_, other) = admin.issue("default", &["a"]).await;
    let stopped = server.stop().await;
    let forged = forged(&plaintext);
    let hash = phc(&forged, 19456, 2);
    let bare = key.key_id.trim_start_matches("key_");
    for change in [
        "secret_mac = NULL, mac_pepper = NULL",
        "mac_pepper = NULL",
        "created_revision = 0",
        "created_revision = -1",
    ] {
        let change =
            format!("UPDATE keys SET {change}, secret_phc = '{hash}' WHERE key_id = '{bare}'");
        Inside::of(&setup).await.change(change).await;
        let server = stopped.start().await;
        let admin = server.admin().await;
        assert_eq!(admin.reason(&other).await, Reason::Allowed);
        for text in [&forged, &plaintext] {
            assert_eq!(admin.reason(text).await, Reason::NotFound);
        }
        assert_eq!(count(&page(&server), REJECTED), 2);
        server.wait_for_log("a stored verifier was rejected").await;
        server.stop().await;
    }
}

async fn prove_unknown_pepper_is_no_key(setup: &Setup) {
    give(setup, &[pepper("p1")]);
    let server = setup.start().await;
    let (key, plaintext) = server.admin().await.issue("default", &["a"]).await;
    let stopped = server.stop().await;
    let forged = forged(&plaintext);
    let hash = phc(&forged, 19456, 2);
    let bare = key.key_id.trim_start_matches("key_");
    let change = format!(
        "UPDATE keys SET mac_pepper = 'evil', secret_phc = '{hash}' WHERE key_id = '{bare}'"
    );
    Inside::of(setup).await.change(change).await;
    let server = stopped.start().await;
    let admin = server.admin().await;
    for text in [&forged, &plaintext] {
        // It may be right under a pepper that this replica lacks: nobody can say here.
        let error = admin.try_validate(ask(text)).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error:?}");
        assert_eq!(error_reason(&error), "UNKNOWN_PEPPER");
    }
    admin.revoke(&key, "tampered with").await;
    assert_eq!(admin.reason(&plaintext).await, Reason::NotFound);
}

async fn prove_bounds(setup: &Setup) {
    let setup = setup.clone().env("GATEKEY_PEPPER_FILE", "none");
    let server = setup.start().await;
    let (key, plaintext) = server.admin().await.issue("default", &["a"]).await;
    let stopped = server.stop().await;
    let bare = key.key_id.trim_start_matches("key_");
    for (memory, passes, reason) in [
        (1024, 1, Reason::Allowed),
        (1023, 1, Reason::NotFound),
        (8, 1, Reason::NotFound),
        (65 * 1024, 1, Reason::NotFound),
        (1024, 9, Reason::NotFound),
    ] {
        let hash = phc(&plaintext, memory, passes);
        let change = format!("UPDATE keys SET secret_phc = '{hash}' WHERE key_id = '{bare}'");
        Inside::of(&setup).await.change(change).await;
        let server = stopped.start().await;
        let decided = server.admin().await.reason(&plaintext).await;
        assert_eq!(decided, reason, "m={memory},t={passes}");
        server.stop().await;
    }
}

/// The Argon2id hash of a text, as a row has it.
fn phc(text: &str, memory: u32, passes: u32) -> String {
    let params = Params::new(memory, passes, 1, None).expect("parameters that Argon2 knows");
    let (salt, mut hash) = ([7; 16], [0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(text.as_bytes(), &salt, &mut hash)
        .expect("it can be hashed");
    let [salt, hash] = [&salt[..], &hash].map(|bytes| BASE64_STANDARD_NO_PAD.encode(bytes));
    format!("$argon2id$v=19$m={memory},t={passes},p=1${salt}${hash}")
}
