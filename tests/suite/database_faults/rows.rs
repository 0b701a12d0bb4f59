//! Rows that somebody edited by hand: each denies, is shown as far as it can be read, and spoils nothing else.

use std::time::{Duration, Instant};

use gatekey::api::proto::{
    CreateKeyRequest, Event, EventType, GetKeyRequest, Key, ListEventsRequest, ListKeysRequest,
    ListOwnersRequest, ListTenantsRequest, Owner, Reason, Tenant, UpdateKeyRequest,
    UpdateOwnerRequest, UpdateTenantRequest, WatchEventsRequest,
};
use tokio::time::sleep;
use tonic::Code;

use crate::{
    inside::Inside,
    support::{
        Client, Setup,
        client::{ask, error_reason, new_key, next_event, texts},
        on_both_engines,
    },
};

/// How long a replica may take to follow the log.
const DEADLINE: Duration = Duration::from_secs(20);

/// What is wrong with a key's row, in words that both engines take.
const KEYS: [&str; 7] = [
    "UPDATE keys SET scopes = 'no JSON' WHERE label = 'damaged'",
    "UPDATE keys SET scopes = '[\"a:*:\"]' WHERE label = 'damaged'",
    "UPDATE keys SET audiences = '{}' WHERE label = 'damaged'",
    "UPDATE keys SET allowed_cidrs = '[\"10.0.0.0/99\"]' WHERE label = 'damaged'",
    "UPDATE keys SET metadata = '[1]' WHERE label = 'damaged'",
    "UPDATE keys SET rotated_to = 'short' WHERE label = 'damaged'",
    "UPDATE keys SET metadata = '' WHERE label = 'damaged'",
];
/// Only SQLite keeps a value of another type than the column's.
const SQLITE_KEYS: [&str; 4] = [
    "UPDATE keys SET created_at = 'yesterday' WHERE label = 'damaged'",
    "UPDATE keys SET revoked_at = 'never' WHERE label = 'damaged'",
    "UPDATE keys SET scopes = x'ff' WHERE label = 'damaged'",
    "UPDATE keys SET owner_id = x'ff00' WHERE label = 'damaged'",
];

async fn issue(admin: &Client, tenant: &str, label: &str) -> (Key, String) {
    let request = CreateKeyRequest {
        label: label.to_owned(),
        ..new_key(tenant, &["*"])
    };
    admin.create(request).await
}

async fn list(admin: &Client) -> Vec<Key> {
    let request = ListKeysRequest {
        tenant_id: "default".to_owned(),
        ..ListKeysRequest::default()
    };
    let page = admin.keys.clone().list_keys(request).await;
    page.expect("a page").into_inner().keys
}

async fn damaged_key(setup: &Setup, admin: &Client, damage: &'static str) {
    let (key, plaintext) = issue(admin, "default", "damaged").await;
    Inside::of(setup).await.run(damage).await;
    assert_eq!(
        admin.reason(&plaintext).await,
        Reason::Suspended,
        "{damage}"
    );

    let listed = list(admin).await;
    let found = listed.iter().find(|listed| listed.key_id == key.key_id);
    let found = found.unwrap_or_else(|| panic!("{damage}: it is not listed"));
    assert!(found.unreadable && found.suspended(), "{damage}: {found:?}");
    assert_eq!(found.label, "damaged");
    let others = listed.iter().filter(|other| other.label == "whole");
    assert!(others.clone().count() == 2 && others.clone().all(|other| !other.unreadable));

    let key_id = || (key.tenant_id.clone(), key.key_id.clone());
    let (tenant_id, key_id) = key_id();
    let get = GetKeyRequest { tenant_id, key_id };
    let got = admin
        .keys
        .clone()
        .get_key(get)
        .await
        .expect("the key")
        .into_inner();
    assert!(got.key.expect("a key").unreadable);
    let update = UpdateKeyRequest {
        key: Some(Key {
            suspended: Some(false),
            ..key.clone()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: texts(&["suspended"]),
        }),
    };
    let refused = admin
        .keys
        .clone()
        .update_key(update)
        .await
        .expect_err("it is damaged");
    assert_eq!(error_reason(&refused), "KEY_UNREADABLE");

    let revoked = admin.revoke(&key, "damaged").await.key.expect("a key");
    assert_eq!(revoked.revoke_reason, "damaged");
    assert_eq!(admin.reason(&plaintext).await, Reason::Revoked, "{damage}");
    // What was there stays, for whoever looks into it.
    let unreadable = list(admin).await.into_iter().filter(|key| key.unreadable);
    let still_damaged = !damage.contains("revoked_at");
    assert_eq!(unreadable.count(), usize::from(still_damaged), "{damage}");
    Inside::of(setup).await.run("UPDATE keys SET label = 'done', scopes = '[\"a\"]', audiences = '[]', \
        allowed_cidrs = '[]', metadata = '{}', rotated_to = NULL, created_at = 1, owner_id = 'alice' \
        WHERE label = 'damaged'").await;
}

async fn damaged_owner(setup: &Setup, admin: &Client) {
    let owner = Owner {
        tenant_id: "default".to_owned(),
        owner_id: "alice".to_owned(),
        scopes: texts(&["*"]),
        ..Owner::default()
    };
    admin.set_owner(owner.clone()).await;
    admin
        .set_owner(Owner {
            owner_id: "bob".to_owned(),
            ..owner.clone()
        })
        .await;
    let (_, plaintext) = issue(admin, "default", "owned").await;
    Inside::of(setup)
        .await
        .run("UPDATE owners SET scopes = '[7]' WHERE owner_id = 'alice'")
        .await;
    assert_eq!(admin.reason(&plaintext).await, Reason::OwnerSuspended);
    let request = ListOwnersRequest {
        tenant_id: "default".to_owned(),
        ..ListOwnersRequest::default()
    };
    let page = admin
        .owners
        .clone()
        .list_owners(request)
        .await
        .expect("a page")
        .into_inner();
    let unreadable: Vec<_> = page.owners.iter().map(|owner| owner.unreadable).collect();
    assert_eq!(unreadable, [true, false]);
    let update = UpdateOwnerRequest {
        owner: Some(Owner {
            suspended: Some(false),
            ..owner.clone()
        }),
        ..UpdateOwnerRequest::default()
    };
    let refused = admin.owners.clone().update_owner(update).await;
    let refused = refused.expect_err("the rest of it is damaged");
    assert_eq!(error_reason(&refused), "OWNER_UNREADABLE");
    assert!(!admin.set_owner(owner).await.unreadable);
    assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
}

async fn damaged_tenant(setup: &Setup, admin: &Client) {
    let tenant = Tenant {
        tenant_id: "acme".to_owned(),
        ..Tenant::default()
    };
    admin.set_tenant(tenant.clone()).await;
    let (key, plaintext) = issue(admin, "acme", "a key").await;
    Inside::of(setup)
        .await
        .run("UPDATE tenants SET max_ttl = -1 WHERE tenant_id = 'acme'")
        .await;
    assert_eq!(admin.reason(&plaintext).await, Reason::TenantSuspended);
    let request = ListTenantsRequest::default();
    let page = admin
        .tenants
        .clone()
        .list_tenants(request)
        .await
        .expect("a page")
        .into_inner();
    let unreadable: Vec<_> = page
        .tenants
        .iter()
        .map(|tenant| tenant.unreadable)
        .collect();
    assert_eq!(unreadable, [true, false, false]);
    let refused = admin
        .try_create(new_key("acme", &["a"]))
        .await
        .expect_err("it is damaged");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(error_reason(&refused), "TENANT_UNREADABLE");
    let (other, _) = issue(admin, "default", "another").await;
    admin.revoke(&other, "").await;
    let update = UpdateTenantRequest {
        tenant: Some(Tenant {
            display_name: "Acme".to_owned(),
            ..tenant.clone()
        }),
        ..UpdateTenantRequest::default()
    };
    let refused = admin.tenants.clone().update_tenant(update).await;
    let refused = refused.expect_err("the rest of it is damaged");
    assert_eq!(error_reason(&refused), "TENANT_UNREADABLE");
    assert!(!admin.set_tenant(tenant).await.unreadable);
    assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
    admin.revoke(&key, "").await;
}

/// A caller whose own key is damaged is nobody, and so is a secret whose verifier is.
async fn damaged_credentials(setup: &Setup, admin: &Client) {
    let (_, secret) = issue(admin, "system", "caller").await;
    let (_, plaintext) = issue(admin, "default", "verified").await;
    let mut inside = Inside::of(setup).await;
    inside
        .run("UPDATE keys SET scopes = '[' WHERE label = 'caller'")
        .await;
    let damage = match inside {
        Inside::Sqlite(_) => "UPDATE keys SET secret_mac = x'00' WHERE label = 'verified'",
        Inside::Postgres(_) => "UPDATE keys SET secret_mac = '\\x00' WHERE label = 'verified'",
    };
    inside.run(damage).await;
    let refused = admin
        .with(&secret)
        .try_validate(ask(&plaintext))
        .await
        .expect_err("nobody");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(admin.reason(&plaintext).await, Reason::NotFound);
}

/// What is wrong with an event, in words that both engines take.
const EVENTS: [&str; 5] = [
    "UPDATE events SET kind = 'from_the_future' WHERE revision = (SELECT MAX(revision) FROM events)",
    "UPDATE events SET details = '[' WHERE revision = (SELECT MAX(revision) FROM events)",
    "UPDATE events SET details = '{}', key_id = 'short' \
     WHERE revision = (SELECT MAX(revision) FROM events)",
    "UPDATE events SET details = '7' WHERE revision = (SELECT MAX(revision) FROM events)",
    "UPDATE events SET kind = '' WHERE revision = (SELECT MAX(revision) FROM events)",
];
/// Revokes every key, and gives the change the next revision and an event that nobody can read. A
/// newer version of gatekey might.
const REVOKED_BY_A_NEWER_VERSION: &str = "BEGIN; \
    UPDATE log_head SET revision = revision + 1; \
    UPDATE keys SET revoked_at = 1, revoked_by = 'admin', revoke_reason = ''; \
    INSERT INTO events (revision, at, actor, kind, tenant_id, details) \
    SELECT revision, 1700000000000000, 'admin', 'from_the_future', 'default', '{}' FROM log_head; \
    COMMIT";

async fn events(admin: &Client) -> Vec<Event> {
    let request = ListEventsRequest::default();
    let page = admin.events.clone().list_events(request).await;
    page.expect("a page").into_inner().events
}

/// The events from the first on, as a watcher gets them.
async fn watched(admin: &Client, count: usize) -> Vec<Event> {
    let watch = WatchEventsRequest {
        start_revision: 1,
        ..WatchEventsRequest::default()
    };
    let watching = admin.events.clone().watch_events(watch).await;
    let mut stream = watching.expect("a stream").into_inner();
    let mut events = Vec::new();
    while events.len() < count {
        events.push(next_event(&mut stream).await);
    }
    events
}

async fn damaged_event(setup: &Setup, admin: &Client, damage: &'static str) {
    let (key, _) = issue(admin, "default", "whole").await;
    Inside::of(setup).await.run(damage).await;
    let listed = events(admin).await;
    let unreadable = EventType::Unspecified;
    let shown = &listed[0];
    assert!(shown.unreadable, "{damage}: {shown:?}");
    assert_eq!((shown.revision, &*shown.actor), (key.revision, "admin"));
    assert_eq!(shown.r#type() == unreadable, damage.contains("kind"));
    let watched = watched(admin, listed.len()).await;
    assert!(watched.iter().rev().eq(&listed), "{damage}");
    // The damage stays; the next event is read as ever.
    issue(admin, "default", "whole").await;
    assert!(!events(admin).await[0].unreadable);
}

/// A replica that cannot read what an event touched takes nothing for true that it knew before.
async fn event_of_a_newer_version(setup: &Setup, admin: &Client) {
    let (_, plaintext) = issue(admin, "default", "cached").await;
    for _ in 0..2 {
        assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
    }
    Inside::of(setup)
        .await
        .run(REVOKED_BY_A_NEWER_VERSION)
        .await;
    let started = Instant::now();
    while admin.reason(&plaintext).await != Reason::Revoked {
        assert!(started.elapsed() < DEADLINE, "the replica still allows it");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(events(admin).await[0].unreadable);
}

on_both_engines! {
    async fn an_event_that_cannot_be_read_is_listed_and_invalidates_all_keys(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        for damage in EVENTS {
            damaged_event(&setup, &admin, damage).await;
        }
        event_of_a_newer_version(&setup, &admin).await;
    }
}

async fn times(setup: &Setup, admin: &Client) {
    let (key, plaintext) = issue(admin, "default", "timeless").await;
    Inside::of(setup)
        .await
        .run(
            "UPDATE keys SET created_at = -9223372036854775807, \
        expires_at = 9223372036854775807 WHERE label = 'timeless'",
        )
        .await;
    let listed = list(admin).await;
    let found = listed
        .into_iter()
        .find(|listed| listed.key_id == key.key_id)
        .expect("the key");
    assert_eq!(found.created_at.expect("a time").seconds, -62_135_596_800);
    assert_eq!(found.expires_at.expect("a time").seconds, 253_402_300_799);
    assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
}

async fn all(setup: Setup) {
    let server = setup.start().await;
    let admin = server.admin().await;
    for _ in 0..2 {
        issue(&admin, "default", "whole").await;
    }
    let sqlite = setup.database_url().starts_with("sqlite:");
    let more = if sqlite { &SQLITE_KEYS[..] } else { &[] };
    for damage in KEYS.iter().chain(more) {
        damaged_key(&setup, &admin, damage).await;
    }
    damaged_owner(&setup, &admin).await;
    damaged_tenant(&setup, &admin).await;
    damaged_credentials(&setup, &admin).await;
    times(&setup, &admin).await;
}

on_both_engines! {
    async fn a_row_that_cannot_be_read_denies_and_spoils_nothing(setup: Setup) {
        all(setup).await;
    }
}
