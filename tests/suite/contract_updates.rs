//! UpdateKey, UpdateOwner and UpdateTenant, as AIP-134 has them: masks, populated fields, revisions.
#![allow(
    clippy::unwrap_used,
    reason = "clippy takes only functions with `#[test]` for tests"
)]

use gatekey::api::proto::{
    EnforcementState, Key, KeyState, OnLimit, Owner, Reason, Tenant, UpdateKeyRequest,
    UpdateOwnerRequest, UpdateTenantRequest,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    contract_keys::{get, refused, span, start},
    support::{
        Client,
        client::{bad_fields, mask, new_key, texts},
        on_both_engines,
    },
};

fn owner(owner: &str) -> Owner {
    Owner {
        tenant_id: "default".to_owned(),
        owner_id: owner.to_owned(),
        ..Owner::default()
    }
}

fn tenant(tenant: &str) -> Tenant {
    Tenant {
        tenant_id: tenant.to_owned(),
        ..Tenant::default()
    }
}

/// Updates an owner; no paths are no mask.
async fn update_owner(client: &Client, owner: Owner, paths: &[&str]) -> Result<Owner, Status> {
    let request = UpdateOwnerRequest {
        owner: Some(owner),
        update_mask: (!paths.is_empty()).then(|| mask(paths)),
        allow_missing: false,
    };
    let answer = client.owners.clone().update_owner(request).await?;
    let answer = answer.into_inner();
    let state = answer.enforcement.unwrap().state();
    assert_eq!(state, EnforcementState::Enforced);
    Ok(answer.owner.unwrap())
}

/// Updates a tenant; no paths are no mask.
async fn update_tenant(client: &Client, tenant: Tenant, paths: &[&str]) -> Result<Tenant, Status> {
    let request = UpdateTenantRequest {
        tenant: Some(tenant),
        update_mask: (!paths.is_empty()).then(|| mask(paths)),
        allow_missing: false,
    };
    let answer = client.tenants.clone().update_tenant(request).await?;
    let answer = answer.into_inner();
    let state = answer.enforcement.unwrap().state();
    assert_eq!(state, EnforcementState::Enforced);
    Ok(answer.tenant.unwrap())
}

/// Updates a key; no paths are no mask.
async fn update_key(client: &Client, key: Key, paths: &[&str]) -> Result<Key, Status> {
    let request = UpdateKeyRequest {
        key: Some(key),
        update_mask: (!paths.is_empty()).then(|| mask(paths)),
    };
    let answer = client.keys.clone().update_key(request).await?.into_inner();
    let state = answer.enforcement.unwrap().state();
    assert_eq!(state, EnforcementState::Enforced);
    Ok(answer.key.unwrap())
}

/// What is said about the only wrong field of a request.
fn told(error: &Status) -> (String, String) {
    let details = error.get_details_bad_request().expect("BadRequest");
    let [wrong] = &details.field_violations[..] else {
        panic!("{details:?}");
    };
    (wrong.field.clone(), wrong.description.clone())
}

on_both_engines! {
    async fn an_owner_is_suspended_and_resumed_without_losing_anything(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (_, text) = admin.issue("default", &["jobs:read"]).await;
        let whole = Owner {
            scopes: texts(&["jobs:*"]),
            audiences: texts(&["web"]),
            display_name: "Alice".to_owned(),
            ..owner("alice")
        };
        let set = admin.set_owner(whole).await;
        assert_eq!(set.suspended, Some(false));
        for (suspended, reason) in [(true, Reason::OwnerSuspended), (false, Reason::AudienceNotAllowed)] {
            let change = Owner { suspended: Some(suspended), ..owner("alice") };
            let changed = update_owner(&admin, change, &[]).await.unwrap();
            assert!(changed.revision > set.revision);
            assert_eq!(changed, Owner { suspended: Some(suspended), revision: changed.revision, ..set.clone() });
            assert_eq!(admin.reason(&text).await, reason);
        }
    }

    async fn an_owners_fields_change_as_the_mask_says(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let whole = Owner {
            scopes: texts(&["jobs:*"]),
            audiences: texts(&["web"]),
            suspended: Some(true),
            display_name: "Alice".to_owned(),
            ..owner("alice")
        };
        let mut wanted = admin.set_owner(whole).await;

        // A field that the mask does not name stays, whatever the request has for it.
        let change = Owner { scopes: texts(&["a", "b"]), display_name: "\n".to_owned(), ..owner("alice") };
        let changed = update_owner(&admin, change, &["scopes", "audiences"]).await.unwrap();
        wanted = Owner { scopes: texts(&["a", "b"]), audiences: Vec::new(), revision: changed.revision, ..wanted };
        assert_eq!(changed, wanted);

        let change = Owner { display_name: "A.".to_owned(), ..owner("alice") };
        let changed = update_owner(&admin, change, &["*"]).await.unwrap();
        let bare = Owner { display_name: "A.".to_owned(), suspended: Some(false), ..owner("alice") };
        assert_eq!(changed, Owner { revision: changed.revision, ..bare });
        refused(update_owner(&admin, Owner { suspended: Some(true), ..owner("bob") }, &[]).await, Code::NotFound, "OWNER_NOT_FOUND");
    }

    async fn a_tenants_rules_change_as_the_mask_says(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let whole = Tenant {
            display_name: "Acme".to_owned(),
            key_prefix: "acme".to_owned(),
            scope_catalog: texts(&["a", "b"]),
            max_ttl: span(90),
            default_ttl: span(60),
            require_expiry: true,
            max_active_keys_per_owner: 3,
            on_limit: OnLimit::ReplaceOldest.into(),
            require_owner: true,
            required_owner_scope: "a".to_owned(),
            basic_usernames: texts(&["api"]),
            ..tenant("acme")
        };
        let mut wanted = admin.set_tenant(whole).await;
        let change = Tenant { suspended: Some(true), max_ttl: span(61), ..tenant("acme") };
        let changed = update_tenant(&admin, change, &[]).await.unwrap();
        wanted = Tenant { suspended: Some(true), max_ttl: span(61), revision: changed.revision, ..wanted };
        assert_eq!(changed, wanted);

        let change = Tenant { suspended: Some(false), ..tenant("acme") };
        let changed = update_tenant(&admin, change, &["suspended", "require_owner", "on_limit"]).await.unwrap();
        wanted = Tenant {
            suspended: Some(false),
            require_owner: false,
            on_limit: OnLimit::Reject.into(),
            revision: changed.revision,
            ..wanted
        };
        assert_eq!(changed, wanted);

        let changed = update_tenant(&admin, tenant("acme"), &["*"]).await.unwrap();
        let bare = Tenant { suspended: Some(false), on_limit: OnLimit::Reject.into(), ..tenant("acme") };
        assert_eq!(changed, Tenant { revision: changed.revision, ..bare });
        let nowhere = Tenant { suspended: Some(true), ..tenant("nowhere") };
        refused(update_tenant(&admin, nowhere, &[]).await, Code::NotFound, "TENANT_NOT_FOUND");
    }

    async fn a_default_lifetime_above_the_maximum_is_found_beside_what_stays(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let before = admin.set_tenant(Tenant { default_ttl: span(60), max_ttl: span(90), ..tenant("acme") }).await;
        for (change, field) in [
            (Tenant { default_ttl: span(91), ..tenant("acme") }, "tenant.default_ttl"),
            (Tenant { max_ttl: span(59), ..tenant("acme") }, "tenant.max_ttl"),
            (Tenant { max_ttl: span(1), default_ttl: span(2), ..tenant("acme") }, "tenant.default_ttl"),
        ] {
            let error = update_tenant(&admin, change, &[]).await;
            let error = refused(error, Code::InvalidArgument, "INVALID_FIELDS");
            assert_eq!(bad_fields(&error), [field]);
        }
        let change = Tenant { max_ttl: span(60), ..tenant("acme") };
        let changed = update_tenant(&admin, change, &[]).await.unwrap();
        assert_eq!(changed, Tenant { max_ttl: span(60), revision: changed.revision, ..before });
    }

    async fn a_key_that_was_read_and_changed_is_written_back_without_a_mask(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let request = gatekey::api::proto::CreateKeyRequest {
            description: "text".to_owned(),
            audiences: texts(&["web"]),
            allowed_cidrs: texts(&["10.0.0.0/8"]),
            metadata: [("plan".to_owned(), "gold".to_owned())].into(),
            ttl: span(3600),
            ..new_key("default", &["a"])
        };
        let (key, _) = admin.create(request).await;
        assert_eq!(key.suspended, Some(false));
        let change = Key { label: "new".to_owned(), suspended: Some(true), ..key.clone() };
        let changed = update_key(&admin, change.clone(), &[]).await.unwrap();
        let state = KeyState::Suspended.into();
        assert_eq!(changed, Key { revision: changed.revision, state, ..change });

        let bare = Key { key_id: key.key_id.clone(), suspended: Some(false), ..Key::default() };
        let resumed = update_key(&admin, bare, &[]).await.unwrap();
        assert_eq!(resumed, Key { label: "new".to_owned(), revision: resumed.revision, ..key.clone() });

        let all = Key { key_id: key.key_id.clone(), label: "all".to_owned(), scopes: texts(&["b"]), ..Key::default() };
        let replaced = update_key(&admin, all, &["*"]).await.unwrap();
        assert_eq!((&*replaced.label, &*replaced.description, replaced.expires_at), ("all", "", None));
        assert!(replaced.metadata.is_empty() && replaced.audiences.is_empty() && replaced.allowed_cidrs.is_empty());
        assert_eq!(get(&admin, &key.key_id).await, replaced);
    }

    async fn an_update_of_another_revision_changes_nothing(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let alice = admin.set_owner(Owner { scopes: texts(&["a"]), ..owner("alice") }).await;
        let acme = admin.set_tenant(tenant("acme")).await;
        let (key, _) = admin.issue("default", &["a"]).await;

        let change = |revision| Key { label: "new".to_owned(), revision, ..key.clone() };
        for revision in [key.revision - 1, key.revision + 1, -1] {
            let error = update_key(&admin, change(revision), &["label"]).await;
            let error = refused(error, Code::Aborted, "REVISION_MISMATCH");
            let info = error.get_details_error_info().unwrap();
            assert_eq!(info.metadata["revision"], key.revision.to_string());
        }
        let changed = update_key(&admin, change(key.revision), &["label"]).await.unwrap();
        refused(update_key(&admin, change(key.revision), &[]).await, Code::Aborted, "REVISION_MISMATCH");
        assert_eq!(get(&admin, &key.key_id).await, changed);

        let change = Owner { suspended: Some(true), ..alice.clone() };
        let changed = update_owner(&admin, change.clone(), &[]).await.unwrap();
        refused(update_owner(&admin, change, &[]).await, Code::Aborted, "REVISION_MISMATCH");
        assert_eq!(update_owner(&admin, changed.clone(), &["*"]).await.unwrap().scopes, ["a"]);

        let change = Tenant { suspended: Some(true), ..acme };
        update_tenant(&admin, change.clone(), &["suspended"]).await.unwrap();
        refused(update_tenant(&admin, change, &["*"]).await, Code::Aborted, "REVISION_MISMATCH");
    }

    async fn a_path_that_is_no_field_is_named_with_the_possible_ones(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        admin.set_owner(owner("alice")).await;
        let unknown = update_owner(&admin, owner("alice"), &["scopes", "displayName", "owner_id"]).await;
        let (field, description) = told(&unknown.unwrap_err());
        assert_eq!(field, "update_mask");
        let wanted = "has unknown path `displayName`, unknown path `owner_id`; it may have `scopes`, `audiences`, \
            `suspended`, `display_name`, or `*` for all";
        assert_eq!(description, wanted);

        let (key, _) = admin.issue("default", &["a"]).await;
        let bare = Key { key_id: key.key_id.clone(), ..Key::default() };
        let (field, description) = told(&update_key(&admin, bare.clone(), &["metadata.plan"]).await.unwrap_err());
        assert_eq!(field, "update_mask");
        assert!(description.contains("`metadata.plan`") && description.contains("`allowed_cidrs`"), "{description}");

        for error in [
            update_key(&admin, bare, &[]).await.unwrap_err(),
            update_owner(&admin, owner("alice"), &[]).await.unwrap_err(),
            update_tenant(&admin, tenant("default"), &[]).await.unwrap_err(),
        ] {
            let (field, description) = told(&error);
            assert_eq!(field, "update_mask");
            assert!(description.contains("none is populated"), "{description}");
        }
    }

    async fn what_a_request_lacks_is_said_to_be_required(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let nameless = Owner { scopes: texts(&["a"]), ..Owner::default() };
        let error = update_owner(&admin, nameless, &[]).await.unwrap_err();
        let details = error.get_details_bad_request().unwrap().field_violations;
        let told: Vec<_> = details.iter().map(|wrong| (&*wrong.field, &*wrong.description)).collect();
        assert_eq!(told, [("owner.tenant_id", "is required"), ("owner.owner_id", "is required")]);
        let error = update_tenant(&admin, tenant(""), &["suspended"]).await.unwrap_err();
        assert!(error.message().contains("tenant.tenant_id is required"), "{error:?}");
        let error = update_key(&admin, Key { suspended: Some(true), ..Key::default() }, &[]).await.unwrap_err();
        assert!(error.message().contains("key.key_id is required"), "{error:?}");
    }

    async fn an_update_creates_what_is_missing_if_it_is_allowed_to(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let whole = Owner { scopes: texts(&["a"]), display_name: "Alice".to_owned(), ..owner("alice") };
        let request = UpdateOwnerRequest {
            owner: Some(whole.clone()),
            update_mask: Some(mask(&["scopes"])),
            allow_missing: true,
        };
        let mut owners = admin.owners.clone();
        let stale = UpdateOwnerRequest { owner: Some(Owner { revision: 7, ..whole.clone() }), ..request.clone() };
        refused(owners.update_owner(stale).await, Code::Aborted, "REVISION_MISMATCH");
        let created = owners.update_owner(request.clone()).await.unwrap().into_inner().owner.unwrap();
        assert_eq!(created, Owner { suspended: Some(false), revision: created.revision, ..whole });

        let again = UpdateOwnerRequest {
            owner: Some(Owner { scopes: texts(&["b"]), display_name: "B.".to_owned(), ..owner("alice") }),
            ..request
        };
        let changed = owners.update_owner(again).await.unwrap().into_inner().owner.unwrap();
        assert_eq!(changed, Owner { scopes: texts(&["b"]), revision: changed.revision, ..created });

        let request = UpdateTenantRequest {
            tenant: Some(Tenant { key_prefix: "acme".to_owned(), ..tenant("acme") }),
            update_mask: None,
            allow_missing: true,
        };
        let created = admin.tenants.clone().update_tenant(request).await.unwrap().into_inner();
        assert_eq!(created.tenant.unwrap().key_prefix, "acme");
        // With nothing populated it is only seen to that there is one.
        let request = UpdateTenantRequest { tenant: Some(tenant("acme")), update_mask: None, allow_missing: true };
        let kept = admin.tenants.clone().update_tenant(request).await.unwrap().into_inner();
        assert_eq!(kept.tenant.unwrap().key_prefix, "acme");
    }
}
