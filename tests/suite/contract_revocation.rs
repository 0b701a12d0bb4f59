//! RevokeKey and RevokeKeys, as the contract has them: for ever, once, and in force when they answer.
#![allow(
    clippy::unwrap_used,
    reason = "in a test: clippy takes only functions with `#[test]` for one"
)]

use gatekey::api::proto::{
    EnforcementState, Key, KeyState, ListKeysRequest, Reason, RevokeKeyRequest, RevokeKeysRequest,
    RevokeKeysResponse, revoke_key_request, revoke_keys_request,
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::client::{ALL_OWNERS, key_target, owner_target};
use crate::{
    contract_admin::{UNKNOWN, acme, five_keys, labelled, list},
    contract_keys::{get, refused, sealed, sorted, start, update},
    contract_rotation::{rotate, rotation},
    support::{Client, client::bad_fields, on_both_engines},
};

async fn revoke_all(client: &Client, request: RevokeKeysRequest) -> RevokeKeysResponse {
    let answer = client.keys.clone().revoke_keys(request).await;
    answer.expect("the keys are revoked").into_inner()
}

/// Asserts that every change to a key is refused because it is revoked, or was never there.
async fn assert_no_change(admin: &Client, key: &Key, code: Code, reason: &str) {
    refused(update(admin, key.clone(), &["label"]).await, code, reason);
    refused(rotate(admin, rotation(key)).await, code, reason);
}

on_both_engines! {
    async fn a_revoked_key_stays_as_it_was_revoked_for_ever(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        acme(&admin).await;
        let (bot, credential) = admin.issue("system", &["acme:*"]).await;
        let (key, text) = admin.issue("acme", &["a"]).await;
        let answer = admin.with(&credential).revoke(&key, "leaked\nin a log").await;
        assert_eq!(answer.enforcement.as_ref().unwrap().state(), EnforcementState::Enforced);
        assert_eq!(admin.reason(&text).await, Reason::Revoked);
        let revoked = answer.key.clone().unwrap();
        assert_eq!(revoked, Key {
            state: KeyState::Revoked.into(),
            revoked_at: revoked.revoked_at,
            revoked_by: bot.key_id,
            revoke_reason: "leaked\nin a log".to_owned(),
            revision: revoked.revision,
            ..key.clone()
        });
        assert!(revoked.revoked_at.is_some() && revoked.revision > key.revision);

        assert_eq!(admin.revoke(&key, "another reason").await, answer);
        assert_no_change(&admin, &key, Code::FailedPrecondition, "KEY_REVOKED").await;
        assert_eq!(get(&admin, &key.key_id).await, revoked);
    }

    async fn a_key_is_revoked_only_where_it_is(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        acme(&admin).await;
        let (key, text) = admin.issue("acme", &["a"]).await;
        let revoke = |tenant: &str, key_id: &str, reason: String| {
            let request = RevokeKeyRequest { tenant_id: tenant.to_owned(), target: key_target(key_id), reason };
            let mut keys = admin.keys.clone();
            async move { keys.revoke_key(request).await }
        };
        for (tenant, key_id) in [("default", &*key.key_id), ("nowhere", &key.key_id), ("acme", UNKNOWN)] {
            refused(revoke(tenant, key_id, String::new()).await, Code::NotFound, "KEY_NOT_FOUND");
        }
        let error = revoke("A", "key_", "r".repeat(1025)).await.unwrap_err();
        assert_eq!(sorted(bad_fields(&error)), ["key_id", "reason", "tenant_id"]);
        assert_eq!(admin.reason(&text).await, Reason::Allowed);
        revoke("acme", &key.key_id, "ü".repeat(1024)).await.unwrap();
        assert_eq!(get(&admin, &key.key_id).await.revoke_reason, "ü".repeat(1024));
        assert_no_change(&admin, &Key { key_id: UNKNOWN.to_owned(), ..key }, Code::NotFound, "KEY_NOT_FOUND").await;
    }

    async fn all_active_keys_of_an_owner_or_of_a_tenant_are_revoked_in_one_change(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let keys = five_keys(&admin).await;
        let (third, third_text) = admin.create(labelled("acme", "bob", "delta")).await;
        let ask = |owner: &str, dry_run| RevokeKeysRequest {
            tenant_id: "acme".to_owned(),
            target: if owner.is_empty() { ALL_OWNERS } else { owner_target(owner) },
            reason: "breach".to_owned(),
            dry_run,
        };
        // Bob has one that expired, and two that are active.
        let dry = RevokeKeysResponse { revoked_count: 2, ..RevokeKeysResponse::default() };
        assert_eq!(revoke_all(&admin, ask("bob", true)).await, dry);
        for text in [&keys[1].1, &third_text] {
            assert_eq!(admin.reason(text).await, Reason::Allowed);
        }
        let answer = revoke_all(&admin, ask("bob", false)).await;
        assert_eq!((answer.revoked_count, answer.enforcement.unwrap().state()), (2, EnforcementState::Enforced));
        for (key, text) in [(&keys[1].0, &keys[1].1), (&third, &third_text)] {
            assert_eq!(admin.reason(text).await, Reason::Revoked);
            let key = get(&admin, &key.key_id).await;
            assert_eq!((&*key.revoke_reason, &*key.revoked_by, key.revision), ("breach", "admin", answer.revision));
        }
        assert_eq!(get(&admin, &keys[4].0.key_id).await.state(), KeyState::Expired);
        assert_eq!(admin.reason(&keys[0].1).await, Reason::Allowed);
        assert_eq!(revoke_all(&admin, ask("bob", false)).await.revoked_count, 0);
        assert_eq!(revoke_all(&admin, ask("nobody", false)).await.revoked_count, 0);

        let (last, _) = admin.create(labelled("acme", "carol", "epsilon")).await;
        let planned = revoke_all(&admin, ask("", true)).await.revoked_count;
        let answer = revoke_all(&admin, RevokeKeysRequest { reason: "closed".to_owned(), ..ask("", false) }).await;
        assert_eq!(answer.revoked_count, planned);
        for (key, reason) in [(&keys[0].0, "closed"), (&last, "closed"), (&third, "breach"), (&keys[3].0, "leaked")] {
            assert_eq!(get(&admin, &key.key_id).await.revoke_reason, reason);
        }
        let elsewhere = ListKeysRequest { tenant_id: "default".to_owned(), ..ListKeysRequest::default() };
        assert_eq!(list(&admin, elsewhere).await.unwrap().keys[0].state(), KeyState::Active);

        let mut client = admin.keys.clone();
        let nowhere = RevokeKeysRequest { tenant_id: "nowhere".to_owned(), target: ALL_OWNERS, ..RevokeKeysRequest::default() };
        refused(client.revoke_keys(nowhere).await, Code::NotFound, "TENANT_NOT_FOUND");
        let wrong = RevokeKeysRequest {
            target: owner_target("\n"),
            reason: "r".repeat(1025),
            ..RevokeKeysRequest::default()
        };
        let error = client.revoke_keys(wrong).await.unwrap_err();
        assert_eq!(sorted(bad_fields(&error)), ["owner_id", "reason", "tenant_id"]);
    }

    async fn an_empty_or_missing_owner_never_revokes_the_keys_of_a_tenant(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        acme(&admin).await;
        let (_, text) = admin.issue("acme", &["a"]).await;
        let owners_false = Some(revoke_keys_request::Target::AllOwners(false));
        for (target, field, right) in [
            (None, "owner_id", "all_owners"),
            (owner_target(""), "owner_id", "all_owners"),
            (owners_false, "all_owners", "owner_id"),
        ] {
            for dry_run in [true, false] {
                let (tenant_id, target) = ("acme".to_owned(), target.clone());
                let request = RevokeKeysRequest { tenant_id, target, dry_run, ..RevokeKeysRequest::default() };
                let error = admin.keys.clone().revoke_keys(request).await.unwrap_err();
                assert_eq!(error.code(), Code::InvalidArgument);
                let violations = error.get_details_bad_request().unwrap().field_violations;
                assert_eq!(violations.len(), 1);
                assert_eq!(violations[0].field, field);
                assert!(violations[0].description.contains(right), "{violations:?}");
            }
        }
        assert_eq!(admin.reason(&text).await, Reason::Allowed);
    }

    async fn a_key_that_was_found_is_revoked_by_its_plaintext(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        acme(&admin).await;
        let (key, text) = admin.issue("acme", &["a"]).await;
        let (other, other_text) = admin.issue("acme", &["a"]).await;
        let (_, blind) = admin.issue("system", &["default:*"]).await;
        let (_, scanner) = admin.issue("system", &["*:keys:revoke"]).await;
        let request = |tenant: &str, plaintext: &str| RevokeKeyRequest {
            tenant_id: tenant.to_owned(),
            target: Some(revoke_key_request::Target::PlaintextKey(plaintext.to_owned())),
            reason: "found in a repository".to_owned(),
        };
        // A key with the id of one key and the secret of another one.
        let id = key.key_id.strip_prefix("key_").unwrap();
        let other_id = other.key_id.strip_prefix("key_").unwrap();
        let body = other_text[..other_text.len() - 6].replace(other_id, id);
        let forged = sealed(&body);

        let by_scanner = admin.with(&scanner);
        let mut keys = by_scanner.keys.clone();
        refused(keys.revoke_key(request("", &forged)).await, Code::NotFound, "KEY_NOT_FOUND");
        refused(keys.revoke_key(request("default", &text)).await, Code::NotFound, "KEY_NOT_FOUND");
        refused(admin.with(&blind).keys.revoke_key(request("", &text)).await, Code::NotFound, "KEY_NOT_FOUND");
        let error = keys.revoke_key(request("A", &text[1..])).await.unwrap_err();
        assert_eq!(sorted(bad_fields(&error)), ["plaintext_key", "tenant_id"]);
        let nothing = RevokeKeyRequest { target: None, ..request("", "") };
        let error = keys.revoke_key(nothing).await.unwrap_err();
        assert_eq!(bad_fields(&error), ["key_id"]);
        assert_eq!(admin.reason(&text).await, Reason::Allowed);

        let answer = keys.revoke_key(request("", &format!(" {text}\n"))).await.unwrap().into_inner();
        assert_eq!(answer.enforcement.as_ref().unwrap().state(), EnforcementState::Enforced);
        assert_eq!(answer.key.as_ref().unwrap().key_id, key.key_id);
        assert_eq!(admin.reason(&text).await, Reason::Revoked);
        assert_eq!(admin.reason(&other_text).await, Reason::Allowed);
        let again = keys.revoke_key(request("acme", &text)).await.unwrap().into_inner().key.unwrap();
        assert_eq!(again.revoked_at, answer.key.unwrap().revoked_at);
    }
}
