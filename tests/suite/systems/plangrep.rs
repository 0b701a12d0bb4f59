//! Plangrep: Bearer keys with a label and few scopes.

use std::{path::Path, time::SystemTime};

use gatekey::api::proto::{
    CreateKeyRequest, Key, KeyState, Reason, RevokeKeysRequest, ValidateResponse,
};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::{asking, assert_refused, defined, key_of};
use crate::support::client::{ALL_OWNERS, key_target};
use crate::{
    contract_keys::{get, later, refused, span},
    contract_rotation::{rotate, rotation},
    contract_validate::until_expired,
    inside::Inside,
    secrecy::{dump, search::Search},
    support::{
        client::{ask, ask_header, bad_fields, error_reason, new_key, texts},
        on_both_engines,
    },
    usage::{use_from, used},
};

const PRODUCT: &str = "Plangrep";
const TENANT: &str = "plangrep";

fn key() -> CreateKeyRequest {
    key_of(TENANT, "user_7", &["jobs:read", "artifacts:read"])
}

on_both_engines! {
    async fn g1_what_is_wrong_with_a_request_is_named_all_at_once(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (whole, _) = admin.create(CreateKeyRequest { label: "é".repeat(120), ..key() }).await;
        assert_eq!(whole.expires_at, None);
        let ending = CreateKeyRequest { expires_at: later(whole.created_at, 60), ..key() };
        assert!(admin.create(ending).await.0.expires_at.is_some());

        let wrong = CreateKeyRequest {
            label: "é".repeat(121),
            scopes: Vec::new(),
            expires_at: whole.created_at,
            ..key()
        };
        let error = admin.try_create(wrong).await.expect_err("all of it is wrong");
        let mut fields = bad_fields(&error);
        fields.sort();
        assert_eq!(fields, ["expires_at", "label", "scopes"]);

        let unknown = CreateKeyRequest { scopes: texts(&["jobs:delete", "jobs:read", "admin"]), ..key() };
        let error = refused(admin.try_create(unknown).await, Code::FailedPrecondition, "SCOPE_CATALOG");
        let failure = error.get_details_precondition_failure().expect("what was broken");
        let broken: Vec<_> = failure.violations.iter().map(|broken| (&*broken.r#type, &*broken.subject)).collect();
        assert_eq!(broken, [("SCOPE_CATALOG", "jobs:delete"), ("SCOPE_CATALOG", "admin")]);
    }

    async fn g2_the_answer_tells_all_about_the_key_and_its_plaintext_once(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (mut key, plaintext) = admin.create(CreateKeyRequest { ttl: span(3600), ..key() }).await;
        let id = key.key_id.strip_prefix("key_").expect("`key_` and the id").to_owned();
        assert_eq!(key, Key {
            key_id: format!("key_{id}"),
            tenant_id: TENANT.to_owned(),
            owner_id: "user_7".to_owned(),
            label: "a key".to_owned(),
            key_prefix: format!("pgk_live_{}", &id[..4]),
            scopes: texts(&["jobs:read", "artifacts:read"]),
            suspended: Some(false),
            state: KeyState::Active.into(),
            created_by: "admin".to_owned(),
            created_at: key.created_at,
            expires_at: later(key.created_at, 3600),
            hash_version: "v1".to_owned(),
            revision: key.revision,
            ..Key::default()
        });
        assert!(key.created_at.is_some());
        assert!(plaintext.starts_with(&format!("pgk_live_{id}")), "{plaintext}");
        assert_eq!(plaintext.len(), "pgk_live_".len() + 16 + 43 + 6);
        // In time it tells when it was used and when it was revoked, too.
        assert!(use_from(&admin, &plaintext, "192.0.2.7").await);
        key = used(&admin, &key).await;
        assert_eq!(key.last_used_ip, "192.0.2.7");
        let revoked = admin.revoke(&key, "over").await.key.expect("a key");
        assert!(revoked.revoked_at.is_some() && revoked.last_used_at == key.last_used_at);
    }

    async fn g3_only_a_hash_is_stored(setup: Setup) {
        let (server, admin) = defined(&setup, PRODUCT).await;
        let mut plaintexts = Vec::new();
        for _ in 0..6 {
            let (key, plaintext) = admin.create(key()).await;
            let rotated = rotate(&admin, rotation(&key)).await.expect("it is rotated");
            assert_eq!(admin.reason(&rotated.plaintext_key).await, Reason::Allowed);
            assert_eq!(admin.reason(&plaintext).await, Reason::Expired);
            plaintexts.extend([plaintext, rotated.plaintext_key]);
        }
        let search = Search::new(&plaintexts, &server.admin_token());
        let stopped = server.kill9();
        search.finds_nothing_in_text(stopped.logs(), "the log");
        search.finds_nothing_in(setup.folder());
        if setup.database_url().starts_with("sqlite:") {
            search.finds_a_key_id_in(setup.folder());
            return;
        }
        let mut inside = Inside::of(&setup).await;
        inside.run("CHECKPOINT").await;
        let data = inside.texts("SHOW data_directory").await.concat();
        search.finds_nothing_in(Path::new(&data));
        search.finds_a_key_id_in(Path::new(&data));
        // In PostgreSQL's own files a long value is compressed.
        search.finds_nothing_in(dump(&mut inside).await.path());
    }

    async fn g4_a_key_of_the_product_manages_no_keys(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (key, plaintext) = admin.create(key()).await;
        let (_, all) = admin.issue("default", &["*"]).await;
        for credential in [&plaintext, &all] {
            let caller = admin.with(credential);
            refused(caller.try_create(new_key(TENANT, &["jobs:read"])).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
            let revoke = gatekey::api::proto::RevokeKeyRequest {
                tenant_id: TENANT.to_owned(),
                target: key_target(key.key_id.clone()),
                ..Default::default()
            };
            refused(caller.keys.clone().revoke_key(revoke).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
            refused(caller.try_validate(ask(&plaintext)).await, Code::Unauthenticated, "CREDENTIAL_INVALID");
        }
        assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
    }

    async fn g5_a_key_is_presented_as_a_bearer_token(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (key, plaintext) = admin.create(key()).await;
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let answer = admin.validate(ask_header(&format!("{scheme} {plaintext}"))).await;
            assert_eq!((answer.allowed, &answer.key_id), (true, &key.key_id));
        }
        for value in [plaintext.clone(), format!("Token {plaintext}")] {
            assert_refused(&admin.validate(ask_header(&value)).await, Reason::Malformed, 401);
        }
    }

    async fn g6_revoked_keys_are_refused_on_the_very_next_request(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (one, one_text) = admin.create(key()).await;
        let mut others = Vec::new();
        for _ in 0..4 {
            others.push(admin.create(key()).await.1);
        }
        assert_eq!(admin.reason(&one_text).await, Reason::Allowed);
        admin.revoke(&one, "leaked").await;
        for _ in 0..100 {
            assert_eq!(admin.reason(&one_text).await, Reason::Revoked);
        }
        for plaintext in &others {
            assert_eq!(admin.reason(plaintext).await, Reason::Allowed);
        }
        let all = RevokeKeysRequest { tenant_id: TENANT.to_owned(), target: ALL_OWNERS, ..RevokeKeysRequest::default() };
        let answer = admin.keys.clone().revoke_keys(all).await.expect("they are revoked");
        assert_eq!(answer.into_inner().revoked_count, 4);
        for _ in 0..25 {
            for plaintext in &others {
                assert_eq!(admin.reason(plaintext).await, Reason::Revoked);
            }
        }
    }

    async fn g7_a_key_tells_when_and_from_where_it_was_last_used(setup: Setup) {
        #[expect(clippy::disallowed_methods, reason = "the server's clock is this machine's")]
        let now = || SystemTime::now();
        let (server, admin) = defined(&setup, PRODUCT).await;
        let (key, plaintext) = admin.create(key()).await;
        assert!(use_from(&admin, &plaintext, "192.0.2.7").await);
        let told = used(&admin, &key).await;
        assert_eq!(told.last_used_ip, "192.0.2.7");
        let before = now();
        assert!(use_from(&admin, &plaintext, "2001:db8::1").await);
        let after = now();
        // SIGTERM loses nothing.
        let server = server.stop().await.start().await;
        let admin = server.admin().await;
        let told = used(&admin, &key).await;
        assert_eq!(told.last_used_ip, "2001:db8::1");
        let at = SystemTime::try_from(told.last_used_at.expect("a time")).expect("a time");
        assert!(before <= at && at <= after, "{before:?} {at:?} {after:?}");
    }

    async fn g8_expired_keys_behave_like_revoked_ones(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (revoked, revoked_text) = admin.create(CreateKeyRequest { ttl: span(3600), ..key() }).await;
        let (expired, expired_text) = admin.create(CreateKeyRequest { ttl: span(1), ..key() }).await;
        admin.revoke(&revoked, "").await;
        until_expired(&admin, &expired_text).await;
        let revoked_answer = admin.validate(asking(&revoked_text, &["jobs:write"])).await;
        let expired_answer = admin.validate(asking(&expired_text, &["jobs:write"])).await;
        assert_refused(&revoked_answer, Reason::Revoked, 401);
        assert_refused(&expired_answer, Reason::Expired, 401);
        // They differ in what they say, and in nothing else.
        assert_eq!(expired_answer, ValidateResponse {
            reason: Reason::Expired.into(),
            message: expired_answer.message.clone(),
            key_id: expired.key_id,
            expires_at: expired.expires_at,
            ..revoked_answer
        });
    }

    async fn g9_refusals_have_a_reason_to_program_against_and_a_message(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (key, plaintext) = admin.create(key()).await;
        for (question, reason) in [
            (ask("nonsense"), Reason::Malformed),
            (asking(&plaintext, &["jobs:write"]), Reason::InsufficientScope),
            (ask(&plaintext), Reason::Allowed),
        ] {
            let answer = admin.validate(question).await;
            assert_eq!(answer.reason(), reason);
            assert!(answer.message.ends_with('.'), "a sentence: {}", answer.message);
        }
        admin.revoke(&key, "").await;
        assert_eq!(admin.reason(&plaintext).await.as_str_name(), "REASON_REVOKED");
        let error = admin.try_create(key_of(TENANT, "", &[])).await.expect_err("it is refused");
        assert_eq!(error_reason(&error), "INVALID_FIELDS");
        assert!(!error.message().is_empty());
        assert_eq!(get(&admin, &key.key_id).await.state(), KeyState::Revoked);
    }
}
