//! In tenant `system`, a caller takes nothing from a key or an owner that holds what the caller does not hold.

use gatekey::api::proto::{
    CreateKeyRequest, Key, OnLimit, Owner, Reason, RevokeKeysRequest, RotateKeyRequest, Tenant,
    UpdateKeyRequest,
};
use tonic::{Code, Status};

use crate::support::client::owner_target;
use crate::support::{
    Client, Setup,
    client::{ask, error_reason, new_key, texts, whole_owner},
    on_both_engines,
};

/// What every stronger principal of these tests holds, and what the caller does not.
const STRONG: &[&str] = &["*"];
/// What the caller holds, and a part of it.
const STEWARD: &[&str] = &["system:*"];
const WEAK: &[&str] = &["system:keys:list"];

on_both_engines! {
    async fn nobody_changes_or_suspends_a_stronger_key(setup: Setup) {
        prove_keys_are_left_alone(&setup).await;
    }

    async fn nobody_narrows_or_suspends_a_stronger_owner(setup: Setup) {
        prove_owners_are_left_alone(&setup).await;
    }

    async fn nobody_replaces_a_stronger_key_by_a_new_one(setup: Setup) {
        prove_no_key_is_replaced(&setup).await;
    }

    async fn a_stronger_key_can_be_revoked(setup: Setup) {
        prove_revoking_goes_on(&setup).await;
    }
}

async fn prove_keys_are_left_alone(setup: &Setup) {
    let server = setup.start().await;
    let (admin, steward) = callers(&server.admin().await).await;
    let (strong, plaintext) = admin.create(system_key("root", STRONG)).await;
    let (weak, _) = admin.create(system_key("team", STEWARD)).await;
    let narrowed = Key {
        scopes: texts(WEAK),
        audiences: texts(&["elsewhere"]),
        allowed_cidrs: texts(&["192.0.2.0/24"]),
        suspended: Some(true),
        label: "another".to_owned(),
        expires_at: Some(prost_types::Timestamp {
            seconds: 4_000_000_000,
            nanos: 0,
        }),
        ..Key::default()
    };
    for path in [
        "scopes",
        "audiences",
        "allowed_cidrs",
        "suspended",
        "label",
        "expires_at",
    ] {
        let to = |key: &Key| Key {
            key_id: key.key_id.clone(),
            ..narrowed.clone()
        };
        assert_stronger(update(&steward, to(&strong), path).await, path);
        update(&steward, to(&weak), path)
            .await
            .expect("a key that is no stronger");
    }
    for overlap in [0, 60] {
        let rotate = RotateKeyRequest {
            key_id: strong.key_id.clone(),
            overlap: Some(prost_types::Duration {
                seconds: overlap,
                nanos: 0,
            }),
            ..RotateKeyRequest::default()
        };
        assert_stronger(steward.keys.clone().rotate_key(rotate).await, "RotateKey");
    }
    assert_eq!(admin.validate(ask(&plaintext)).await.scopes, STRONG);
}

async fn prove_owners_are_left_alone(setup: &Setup) {
    let server = setup.start().await;
    let (admin, steward) = callers(&server.admin().await).await;
    admin.set_owner(owner("recorded", STRONG)).await;
    // Without a record an owner is as strong as the keys it has, a suspended one among them.
    let (_, plaintext) = admin.create(system_key("bare", STRONG)).await;
    let (asleep, _) = admin.create(system_key("asleep", STRONG)).await;
    let suspended = Key {
        key_id: asleep.key_id,
        suspended: Some(true),
        ..Key::default()
    };
    update(&admin, suspended, "suspended")
        .await
        .expect("the admin may");
    for name in ["recorded", "bare", "asleep"] {
        for changed in [
            owner(name, WEAK),
            owner(name, &[]),
            Owner {
                suspended: Some(true),
                ..owner(name, WEAK)
            },
            Owner {
                audiences: texts(&["elsewhere"]),
                ..owner(name, STEWARD)
            },
        ] {
            let what = format!("{changed:?}");
            assert_stronger(put(&steward, changed).await, &what);
        }
    }
    assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);

    // One that is no stronger is the steward's to change, and so is one that has lost its strong key.
    let (gone, _) = admin.create(system_key("weak", STRONG)).await;
    admin.revoke(&gone, "").await;
    admin.create(system_key("weak", STEWARD)).await;
    for scopes in [STEWARD, WEAK, &[]] {
        put(&steward, owner("weak", scopes))
            .await
            .expect("it holds no more");
    }
    // In another tenant scopes are no rights over gatekey.
    admin
        .set_owner(Owner {
            tenant_id: "default".to_owned(),
            ..owner("alice", STRONG)
        })
        .await;
    let (_, credential) = admin
        .create(system_key("clerk", &["default:owners:write"]))
        .await;
    let alice = Owner {
        tenant_id: "default".to_owned(),
        ..owner("alice", &[])
    };
    put(&admin.with(&credential), alice)
        .await
        .expect("it may write owners there");
}

async fn prove_no_key_is_replaced(setup: &Setup) {
    let server = setup.start().await;
    let (admin, steward) = callers(&server.admin().await).await;
    let (_, plaintext) = admin.create(system_key("root", STRONG)).await;
    let (weak, _) = admin.create(system_key("root", WEAK)).await;
    let limit = |max| Tenant {
        tenant_id: "system".to_owned(),
        max_active_keys_per_owner: max,
        on_limit: OnLimit::ReplaceOldest.into(),
        ..Tenant::default()
    };
    admin.set_tenant(limit(2)).await;
    assert_stronger(
        steward.try_create(system_key("root", WEAK)).await,
        "CreateKey",
    );
    admin.set_tenant(limit(1)).await;
    // Without an overlap the rotated key leaves its place, and the strong one has none.
    let rotate = RotateKeyRequest {
        key_id: weak.key_id,
        ..RotateKeyRequest::default()
    };
    let rotated = steward.keys.clone().rotate_key(rotate).await;
    assert_stronger(rotated, "RotateKey");
    assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);

    let (_, replaced) = admin.create(system_key("team", STEWARD)).await;
    steward.create(system_key("team", WEAK)).await;
    assert_eq!(admin.reason(&replaced).await, Reason::Revoked);
    // One who holds as much may.
    admin.create(system_key("root", WEAK)).await;
    assert_eq!(admin.reason(&plaintext).await, Reason::Revoked);
}

async fn prove_revoking_goes_on(setup: &Setup) {
    let server = setup.start().await;
    let (admin, steward) = callers(&server.admin().await).await;
    let (first, plaintext) = admin.create(system_key("root", STRONG)).await;
    steward.revoke(&first, "stolen").await;
    assert_eq!(admin.reason(&plaintext).await, Reason::Revoked);
    let (_, plaintext) = admin.create(system_key("root", STRONG)).await;
    let all = RevokeKeysRequest {
        tenant_id: "system".to_owned(),
        target: owner_target("root".to_owned()),
        ..RevokeKeysRequest::default()
    };
    let revoked = steward.keys.clone().revoke_keys(all).await;
    assert_eq!(
        revoked.expect("it may revoke").into_inner().revoked_count,
        1
    );
    assert_eq!(admin.reason(&plaintext).await, Reason::Revoked);
}

/// The admin, and one who may do everything in tenant `system` and nothing elsewhere.
async fn callers(admin: &Client) -> (Client, Client) {
    let (_, credential) = admin.create(system_key("steward", STEWARD)).await;
    (admin.clone(), admin.with(&credential))
}

fn system_key(owner_id: &str, scopes: &[&str]) -> CreateKeyRequest {
    CreateKeyRequest {
        owner_id: owner_id.to_owned(),
        ..new_key("system", scopes)
    }
}

fn owner(owner_id: &str, scopes: &[&str]) -> Owner {
    Owner {
        tenant_id: "system".to_owned(),
        owner_id: owner_id.to_owned(),
        scopes: texts(scopes),
        ..Owner::default()
    }
}

async fn update(client: &Client, key: Key, path: &str) -> Result<(), Status> {
    let request = UpdateKeyRequest {
        key: Some(Key { revision: 0, ..key }),
        update_mask: Some(prost_types::FieldMask {
            paths: texts(&[path]),
        }),
    };
    client.keys.clone().update_key(request).await.map(drop)
}

async fn put(client: &Client, owner: Owner) -> Result<(), Status> {
    let set = client.owners.clone().update_owner(whole_owner(owner)).await;
    set.map(drop)
}

#[track_caller]
fn assert_stronger<T>(answer: Result<T, Status>, what: &str) {
    let Err(status) = answer else {
        panic!("{what} was carried out");
    };
    assert_eq!(status.code(), Code::PermissionDenied, "{what}: {status:?}");
    assert_eq!(error_reason(&status), "STRONGER_PRINCIPAL", "{what}");
}
