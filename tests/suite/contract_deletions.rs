//! Owners and tenants that come into being once, and end.
#![allow(
    clippy::unwrap_used,
    reason = "clippy takes only functions with `#[test]` for tests"
)]

use gatekey::api::proto::{
    CreateKeyRequest, CreateOwnerRequest, CreateTenantRequest, DeleteOwnerRequest,
    DeleteOwnerResponse, DeleteTenantRequest, EnforcementState, Event, EventType, GetOwnerRequest,
    GetTenantRequest, Key, ListEventsRequest, Owner, Reason, Tenant,
};
use prost_types::value::Kind;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::{
    contract_keys::{refused, start, update},
    support::{
        Client,
        client::{error_reason, new_key, texts},
        on_both_engines,
    },
};

fn owner(tenant: &str, owner: &str) -> Owner {
    Owner {
        tenant_id: tenant.to_owned(),
        owner_id: owner.to_owned(),
        scopes: texts(&["*"]),
        ..Owner::default()
    }
}

fn tenant(tenant: &str) -> Tenant {
    Tenant {
        tenant_id: tenant.to_owned(),
        ..Tenant::default()
    }
}

async fn create_owner(client: &Client, owner: Owner) -> Result<Owner, Status> {
    let request = CreateOwnerRequest { owner: Some(owner) };
    let answer = client.owners.clone().create_owner(request).await?;
    let answer = answer.into_inner();
    let state = answer.enforcement.unwrap().state();
    assert_eq!(state, EnforcementState::Enforced);
    Ok(answer.owner.unwrap())
}

async fn create_tenant(client: &Client, tenant: Tenant) -> Result<Tenant, Status> {
    let request = CreateTenantRequest {
        tenant: Some(tenant),
    };
    let answer = client.tenants.clone().create_tenant(request).await?;
    Ok(answer.into_inner().tenant.unwrap())
}

async fn delete_owner(
    client: &Client,
    tenant: &str,
    revoke_keys: bool,
) -> Result<DeleteOwnerResponse, Status> {
    let request = DeleteOwnerRequest {
        tenant_id: tenant.to_owned(),
        owner_id: "alice".to_owned(),
        revoke_keys,
    };
    let answer = client.owners.clone().delete_owner(request).await?;
    Ok(answer.into_inner())
}

async fn delete_tenant(client: &Client, tenant: &str) -> Result<Tenant, Status> {
    let request = DeleteTenantRequest {
        tenant_id: tenant.to_owned(),
    };
    let answer = client.tenants.clone().delete_tenant(request).await?;
    Ok(answer.into_inner().tenant.unwrap())
}

async fn get_owner(client: &Client, tenant: &str) -> Result<Owner, Status> {
    let request = GetOwnerRequest {
        tenant_id: tenant.to_owned(),
        owner_id: "alice".to_owned(),
    };
    let answer = client.owners.clone().get_owner(request).await?;
    Ok(answer.into_inner().owner.unwrap())
}

/// The newest event.
async fn newest(client: &Client) -> Event {
    let request = ListEventsRequest {
        page_size: 1,
        ..ListEventsRequest::default()
    };
    let answer = client.events.clone().list_events(request).await.unwrap();
    answer.into_inner().events.remove(0)
}

/// A number in the details of an event.
fn number(event: &Event, name: &str) -> Option<f64> {
    let details = event.details.as_ref().unwrap();
    match details.fields.get(name)?.kind.as_ref()? {
        Kind::NumberValue(number) => Some(*number),
        _ => None,
    }
}

/// A caller with a key of tenant `system` that has these scopes.
async fn caller(admin: &Client, scopes: &[&str]) -> Client {
    let (_, plaintext) = admin.issue("system", scopes).await;
    admin.with(&plaintext)
}

on_both_engines! {
    async fn an_owner_and_a_tenant_are_created_once(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let whole = Owner { revision: 77, ..owner("default", "alice") };
        let created = create_owner(&admin, whole.clone()).await.unwrap();
        assert_eq!(created, Owner { suspended: Some(false), revision: created.revision, ..whole });
        assert_ne!(created.revision, 77);
        refused(create_owner(&admin, owner("default", "alice")).await, Code::AlreadyExists, "OWNER_ALREADY_EXISTS");
        refused(create_owner(&admin, owner("nowhere", "alice")).await, Code::NotFound, "TENANT_NOT_FOUND");
        assert_eq!(get_owner(&admin, "default").await.unwrap(), created);

        create_tenant(&admin, Tenant { key_prefix: "acme".to_owned(), ..tenant("acme") }).await.unwrap();
        for existing in ["acme", "default", "system"] {
            refused(create_tenant(&admin, tenant(existing)).await, Code::AlreadyExists, "TENANT_ALREADY_EXISTS");
        }
        let request = GetTenantRequest { tenant_id: "acme".to_owned() };
        let kept = admin.tenants.clone().get_tenant(request).await.unwrap().into_inner().tenant.unwrap();
        assert_eq!(kept.key_prefix, "acme");
    }

    async fn of_many_who_create_the_same_at_once_one_does(setup: Setup) {
        let (server, admin) = start(&setup).await;
        let mut calls = JoinSet::new();
        for number in 0..8 {
            let client = server.admin().await;
            calls.spawn(async move {
                let display_name = number.to_string();
                let new = Tenant { display_name: display_name.clone(), ..tenant("acme") };
                let tenant = create_tenant(&client, new).await.map(|tenant| tenant.display_name);
                let new = Owner { display_name, ..owner("default", "alice") };
                let owner = create_owner(&client, new).await.map(|owner| owner.display_name);
                [tenant, owner]
            });
        }
        let (mut tenants, mut owners) = (Vec::new(), Vec::new());
        for [tenant, owner] in calls.join_all().await {
            for (answer, created, reason) in [
                (tenant, &mut tenants, "TENANT_ALREADY_EXISTS"),
                (owner, &mut owners, "OWNER_ALREADY_EXISTS"),
            ] {
                match answer {
                    Ok(name) => created.push(name),
                    Err(status) => assert_eq!((status.code(), &*error_reason(&status)), (Code::AlreadyExists, reason)),
                }
            }
        }
        assert_eq!((tenants.len(), owners.len()), (1, 1));
        assert_eq!(get_owner(&admin, "default").await.unwrap().display_name, owners[0]);
    }

    async fn an_owner_whose_keys_could_work_is_not_deleted(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        create_owner(&admin, owner("default", "alice")).await.unwrap();
        let (key, text) = admin.issue("default", &["a"]).await;
        refused(delete_owner(&admin, "default", false).await, Code::FailedPrecondition, "OWNER_HAS_KEYS");
        assert_eq!(admin.reason(&text).await, Reason::Allowed);
        update(&admin, Key { suspended: Some(true), ..key.clone() }, &["suspended"]).await.unwrap();
        refused(delete_owner(&admin, "default", false).await, Code::FailedPrecondition, "OWNER_HAS_KEYS");
        // Keys that are over need no limit, nor do another owner's keys need this one.
        admin.revoke(&key, "").await;
        let brief = Some(prost_types::Duration { seconds: 0, nanos: 1000 });
        admin.create(CreateKeyRequest { ttl: brief, ..new_key("default", &["a"]) }).await;
        admin.create(CreateKeyRequest { owner_id: "bob".to_owned(), ..new_key("default", &["a"]) }).await;
        let deleted = delete_owner(&admin, "default", false).await.unwrap();
        assert_eq!((deleted.revoked_count, deleted.enforcement.unwrap().state()), (0, EnforcementState::Enforced));
        let event = newest(&admin).await;
        assert_eq!((event.r#type(), number(&event, "revoked_count")), (EventType::OwnerDeleted, None));
        refused(get_owner(&admin, "default").await, Code::NotFound, "OWNER_NOT_FOUND");
    }

    async fn an_owner_and_its_keys_end_in_one_change(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        create_owner(&admin, owner("default", "alice")).await.unwrap();
        let (first, first_text) = admin.issue("default", &["a"]).await;
        let (_, second_text) = admin.issue("default", &["b"]).await;
        let other = CreateKeyRequest { owner_id: "bob".to_owned(), ..new_key("default", &["a"]) };
        let (_, other_text) = admin.create(other).await;

        // Who may not revoke keys may not do it this way either.
        let writer = caller(&admin, &["default:owners:write"]).await;
        refused(delete_owner(&writer, "default", true).await, Code::PermissionDenied, "ACTION_NOT_GRANTED");
        assert_eq!(admin.reason(&first_text).await, Reason::Allowed);

        let deleted = delete_owner(&admin, "default", true).await.unwrap();
        assert_eq!((deleted.revoked_count, deleted.enforcement.unwrap().state()), (2, EnforcementState::Enforced));
        for text in [&first_text, &second_text] {
            assert_eq!(admin.reason(text).await, Reason::Revoked);
        }
        assert_eq!(admin.reason(&other_text).await, Reason::Allowed);
        let event = newest(&admin).await;
        assert_eq!((event.r#type(), &*event.owner_id), (EventType::OwnerDeleted, "alice"));
        assert_eq!(number(&event, "revoked_count"), Some(2.0));
        let key = crate::contract_keys::get(&admin, &first.key_id).await;
        assert_eq!((key.revision, &*key.revoke_reason), (event.revision, "the owner was deleted"));
        refused(delete_owner(&admin, "default", true).await, Code::NotFound, "OWNER_NOT_FOUND");
    }

    async fn a_tenant_that_never_had_a_key_is_deleted_with_its_owners(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        create_tenant(&admin, tenant("acme")).await.unwrap();
        for name in ["alice", "bob"] {
            create_owner(&admin, owner("acme", name)).await.unwrap();
        }
        // Owners are deleted by whoever may delete them.
        let writer = caller(&admin, &["acme:tenants:write"]).await;
        refused(delete_tenant(&writer, "acme").await, Code::PermissionDenied, "ACTION_NOT_GRANTED");
        let writer = caller(&admin, &["acme:tenants:write", "acme:owners:write"]).await;
        let deleted = delete_tenant(&writer, "acme").await.unwrap();
        let event = newest(&admin).await;
        assert_eq!((event.r#type(), &*event.tenant_id), (EventType::TenantDeleted, "acme"));
        assert_eq!((event.revision, number(&event, "deleted_owner_count")), (deleted.revision, Some(2.0)));

        refused(delete_tenant(&writer, "acme").await, Code::NotFound, "TENANT_NOT_FOUND");
        refused(admin.try_create(new_key("acme", &["a"])).await, Code::NotFound, "TENANT_NOT_FOUND");
        create_tenant(&admin, tenant("acme")).await.unwrap();
        refused(get_owner(&admin, "acme").await, Code::NotFound, "OWNER_NOT_FOUND");
        let writer = caller(&admin, &["acme:tenants:write"]).await;
        delete_tenant(&writer, "acme").await.unwrap();
    }

    async fn a_tenant_that_had_a_key_and_those_that_gatekey_needs_are_kept(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        create_tenant(&admin, tenant("acme")).await.unwrap();
        let (key, _) = admin.issue("acme", &["a"]).await;
        admin.revoke(&key, "").await;
        let before = newest(&admin).await;
        for kept in ["acme", "default", "system"] {
            let error = refused(delete_tenant(&admin, kept).await, Code::FailedPrecondition, "TENANT_IN_USE");
            assert!(error.message().contains("the tenant cannot be deleted"), "{error:?}");
        }
        assert_eq!(newest(&admin).await, before);
    }
}
