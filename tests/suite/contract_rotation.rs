//! RotateKey, as the contract has it: a successor with the same owner, scopes and limits, and the old key's end.
#![allow(
    clippy::unwrap_used,
    reason = "in a test: clippy takes only functions with `#[test]` for one"
)]

use gatekey::api::proto::{
    CreateKeyRequest, EnforcementState, Key, KeyState, Reason, RotateKeyRequest, RotateKeyResponse,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    contract_admin::{acme, five_keys},
    contract_keys::{get, later, refused, span, start},
    contract_validate::until_expired,
    support::{
        Client,
        client::{bad_fields, new_key, texts},
        on_both_engines,
    },
};

pub async fn rotate(
    client: &Client,
    request: RotateKeyRequest,
) -> Result<RotateKeyResponse, Status> {
    Ok(client.keys.clone().rotate_key(request).await?.into_inner())
}

/// A rotation that takes effect at once.
pub fn rotation(key: &Key) -> RotateKeyRequest {
    RotateKeyRequest {
        key_id: key.key_id.clone(),
        ..RotateKeyRequest::default()
    }
}

on_both_engines! {
    async fn a_rotation_without_overlap_ends_the_old_key_at_once(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        acme(&admin).await;
        let (bot, credential) = admin.issue("system", &["acme:*"]).await;
        let (old, old_text) = admin.create(CreateKeyRequest {
            description: "d".to_owned(),
            allowed_cidrs: texts(&["10.0.0.0/8"]),
            audiences: texts(&["web"]),
            metadata: [("k".to_owned(), "v".to_owned())].into(),
            ..new_key("acme", &["a", "b:*"])
        }).await;
        let answer = rotate(&admin.with(&credential), rotation(&old)).await.unwrap();
        let (new, new_text) = (answer.key.unwrap(), answer.plaintext_key);
        assert_eq!(answer.enforcement.unwrap().state(), EnforcementState::Enforced);
        assert_eq!(new, Key {
            key_id: new.key_id.clone(),
            key_prefix: new.key_prefix.clone(),
            created_at: new.created_at,
            created_by: bot.key_id,
            rotated_from: old.key_id.clone(),
            revision: new.revision,
            ..old.clone()
        });
        assert!(new.revision > old.revision && new.key_id != old.key_id);
        assert!(new_text.contains(&new.key_id[4..]) && new_text != old_text);
        assert_eq!(get(&admin, &new.key_id).await, new);

        assert_eq!(admin.reason(&old_text).await, Reason::Expired);
        assert_eq!(admin.reason(&new_text).await, Reason::AudienceNotAllowed);
        let ended = get(&admin, &old.key_id).await;
        assert_eq!(ended, Key {
            rotated_to: new.key_id,
            expires_at: new.created_at,
            state: KeyState::Expired.into(),
            revision: ended.revision,
            ..old
        });
    }

    async fn a_rotation_with_overlap_lets_both_keys_work_until_then(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let month = 30 * 24 * 3600;
        let (old, old_text) = admin.issue("default", &["a"]).await;
        let answer = rotate(&admin, RotateKeyRequest { overlap: span(month), ..rotation(&old) }).await.unwrap();
        let new = answer.key.unwrap();
        for text in [&old_text, &answer.plaintext_key] {
            assert_eq!(admin.reason(text).await, Reason::Allowed);
        }
        let kept = get(&admin, &old.key_id).await;
        assert_eq!((kept.expires_at, kept.rotated_to), (later(new.created_at, month), new.key_id.clone()));

        // The overlap does not lengthen a life that ends before, and ends by itself.
        let (short, _) = admin.create(CreateKeyRequest { ttl: span(60), ..new_key("default", &["a"]) }).await;
        rotate(&admin, RotateKeyRequest { overlap: span(3600), ..rotation(&short) }).await.unwrap();
        assert_eq!(get(&admin, &short.key_id).await.expires_at, short.expires_at);
        let last = rotate(&admin, RotateKeyRequest { overlap: span(1), ..rotation(&new) }).await.unwrap();
        until_expired(&admin, &answer.plaintext_key).await;
        assert_eq!(admin.reason(&last.plaintext_key).await, Reason::Allowed);
    }

    async fn a_successor_lives_as_long_as_the_old_key_was_made_to_or_as_asked(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (old, _) = admin.create(CreateKeyRequest { ttl: span(7200), ..new_key("default", &["a"]) }).await;
        let next = async |old: &Key, ttl, expires_at| {
            let request = RotateKeyRequest { ttl, expires_at, ..rotation(old) };
            rotate(&admin, request).await.unwrap().key.unwrap()
        };
        let second = next(&old, None, None).await;
        assert_eq!(second.expires_at, later(second.created_at, 7200));
        let third = next(&second, span(60), None).await;
        assert_eq!(third.expires_at, later(third.created_at, 60));
        let end = later(third.created_at, 600);
        let fourth = next(&third, None, end).await;
        assert_eq!(fourth.expires_at, end);
        let (forever, _) = admin.issue("default", &["a"]).await;
        let fifth = next(&forever, None, None).await;
        assert_eq!(fifth.expires_at, None);

        for (ttl, expires_at, field) in [
            (span(0), None, "ttl"), (span(-1), None, "ttl"), (span(1), end, "ttl"),
            (None, old.created_at, "expires_at"),
        ] {
            let error = rotate(&admin, RotateKeyRequest { ttl, expires_at, ..rotation(&fourth) }).await.unwrap_err();
            assert_eq!(bad_fields(&error), [field]);
        }
    }

    async fn a_key_that_does_not_work_has_no_successor(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let keys = five_keys(&admin).await;
        for (place, reason) in [(2, "KEY_SUSPENDED"), (3, "KEY_REVOKED"), (4, "KEY_EXPIRED")] {
            let key = &keys[place].0;
            let before = get(&admin, &key.key_id).await;
            refused(rotate(&admin, rotation(key)).await, Code::FailedPrecondition, reason);
            assert_eq!(get(&admin, &key.key_id).await, before);
        }

        let key = &keys[0].0;
        for overlap in [span(30 * 24 * 3600 + 1), span(-1)] {
            let error = rotate(&admin, RotateKeyRequest { overlap, ..rotation(key) }).await.unwrap_err();
            assert_eq!(bad_fields(&error), ["overlap"]);
        }
        let elsewhere = RotateKeyRequest { tenant_id: "default".to_owned(), ..rotation(key) };
        refused(rotate(&admin, elsewhere).await, Code::NotFound, "KEY_NOT_FOUND");

        for (overlap, key) in [(span(60), &keys[0].0), (None, &keys[1].0)] {
            let request = RotateKeyRequest { overlap, tenant_id: "acme".to_owned(), ..rotation(key) };
            let successor = rotate(&admin, request.clone()).await.unwrap().key.unwrap();
            let error = refused(rotate(&admin, request).await, Code::FailedPrecondition, "KEY_ROTATED");
            assert_eq!(error.get_details_error_info().unwrap().metadata["key_id"], successor.key_id);
            assert_eq!(error.get_details_resource_info().unwrap().resource_name, successor.key_id);
        }
    }
}
