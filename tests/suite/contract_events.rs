//! EventService, as the contract has it: one event for each change, to be listed and to be followed.
#![allow(
    clippy::unwrap_used,
    reason = "in a test: clippy takes only functions with `#[test]` for one"
)]

use gatekey::api::proto::{
    CreateKeyRequest, CreateTenantRequest, DeleteOwnerRequest, Event, EventType, Key,
    ListEventsRequest, ListEventsResponse, Owner, RevokeKeyRequest, RevokeKeysRequest,
    RotateKeyRequest, Tenant, WatchEventsRequest, WatchEventsResponse,
};
use prost_types::value::Kind;
use tokio::task::JoinSet;
use tonic::{Code, Request, Status, Streaming};

use crate::support::client::{ALL_OWNERS, key_target, owner_target};
use crate::{
    contract_keys::{refused, sorted, span, start, update},
    support::{
        Client,
        client::{bad_fields, new_key, next_event, texts},
        on_both_engines,
    },
};

pub const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

async fn list(client: &Client, request: ListEventsRequest) -> Result<ListEventsResponse, Status> {
    Ok(client
        .events
        .clone()
        .list_events(request)
        .await?
        .into_inner())
}

/// All events of a tenant, or of all, oldest first.
async fn history(client: &Client, tenant: &str) -> Vec<Event> {
    let request = ListEventsRequest {
        tenant_id: tenant.to_owned(),
        page_size: 1000,
        ..ListEventsRequest::default()
    };
    let mut events = list(client, request).await.expect("the log").events;
    events.reverse();
    events
}

async fn watch(
    client: &Client,
    tenant: &str,
    revision: i64,
) -> Result<Streaming<WatchEventsResponse>, Status> {
    let request = WatchEventsRequest {
        start_revision: revision,
        tenant_id: tenant.to_owned(),
        ..WatchEventsRequest::default()
    };
    Ok(client
        .events
        .clone()
        .watch_events(request)
        .await?
        .into_inner())
}

/// The next so many events.
async fn next(stream: &mut Streaming<WatchEventsResponse>, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        events.push(next_event(stream).await);
    }
    events
}

pub fn traced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    request
        .metadata_mut()
        .insert("traceparent", parent.parse().expect("it is ASCII"));
    request
}

/// The names of what an event tells, in order.
fn told(event: &Event) -> Vec<String> {
    let details = event.details.as_ref().expect("details");
    details.fields.keys().cloned().collect()
}

/// A text in an event's details; a list of them joined by blanks.
fn text(event: &Event, name: &str) -> String {
    fn read(kind: Option<&Kind>) -> String {
        match kind {
            Some(Kind::StringValue(text)) => text.clone(),
            Some(Kind::ListValue(list)) => {
                let texts: Vec<_> = list
                    .values
                    .iter()
                    .map(|value| read(value.kind.as_ref()))
                    .collect();
                texts.join(" ")
            }
            other => panic!("no text: {other:?}"),
        }
    }
    let details = event.details.as_ref().expect("details");
    read(
        details
            .fields
            .get(name)
            .and_then(|value| value.kind.as_ref()),
    )
}

fn named(tenant: &str) -> Tenant {
    Tenant {
        tenant_id: tenant.to_owned(),
        ..Tenant::default()
    }
}

fn owner(tenant: &str, name: &str) -> Owner {
    Owner {
        tenant_id: tenant.to_owned(),
        owner_id: name.to_owned(),
        ..Owner::default()
    }
}

fn revocation(tenant: &str, owner: &str) -> RevokeKeysRequest {
    RevokeKeysRequest {
        tenant_id: tenant.to_owned(),
        target: if owner.is_empty() {
            ALL_OWNERS
        } else {
            owner_target(owner)
        },
        reason: "breach".to_owned(),
        dry_run: false,
    }
}

/// One change of each type in tenant `acme`, all by the caller: what each event must tell, and the last key.
async fn one_of_each(client: &Client) -> Vec<Event> {
    let mut wanted = Vec::new();
    let mut expect = |kind: EventType, key_id: &str, owner_id: &str, revision| {
        wanted.push(Event {
            revision,
            r#type: kind.into(),
            tenant_id: "acme".to_owned(),
            key_id: key_id.to_owned(),
            owner_id: owner_id.to_owned(),
            ..Event::default()
        });
    };
    let create = CreateTenantRequest {
        tenant: Some(named("acme")),
    };
    let create = client.tenants.clone().create_tenant(traced(create)).await;
    let tenant = create.unwrap().into_inner().tenant.unwrap();
    expect(EventType::TenantCreated, "", "", tenant.revision);
    let record = client.set_owner(owner("acme", "bob")).await;
    expect(EventType::OwnerCreated, "", "bob", record.revision);

    let (key, _) = client.issue("acme", &["a", "b:*"]).await;
    expect(EventType::KeyCreated, &key.key_id, "alice", key.revision);
    let changed = Key {
        label: "new".to_owned(),
        scopes: texts(&["c"]),
        ..key.clone()
    };
    let changed = update(client, changed, &["scopes", "label"])
        .await
        .unwrap()
        .key
        .unwrap();
    expect(
        EventType::KeyUpdated,
        &key.key_id,
        "alice",
        changed.revision,
    );
    let rotation = RotateKeyRequest {
        key_id: key.key_id.clone(),
        overlap: span(60),
        ..RotateKeyRequest::default()
    };
    let second = client
        .keys
        .clone()
        .rotate_key(rotation)
        .await
        .unwrap()
        .into_inner()
        .key
        .unwrap();
    expect(EventType::KeyRotated, &key.key_id, "alice", second.revision);
    let revoked = client.revoke(&key, "leaked").await.key.unwrap();
    expect(
        EventType::KeyRevoked,
        &key.key_id,
        "alice",
        revoked.revision,
    );

    let all = client
        .keys
        .clone()
        .revoke_keys(revocation("acme", "alice"))
        .await
        .unwrap()
        .into_inner();
    expect(EventType::KeysRevoked, "", "alice", all.revision);
    let gone = DeleteOwnerRequest {
        tenant_id: "acme".to_owned(),
        owner_id: "bob".to_owned(),
        revoke_keys: false,
    };
    let gone = client
        .owners
        .clone()
        .delete_owner(gone)
        .await
        .unwrap()
        .into_inner()
        .owner
        .unwrap();
    expect(EventType::OwnerDeleted, "", "bob", gone.revision);
    wanted
}

on_both_engines! {
    async fn the_history_of_a_key_has_the_rotation_that_made_it_and_the_change_that_ended_it(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (first, _) = admin.issue("default", &["jobs:read"]).await;
        let (other, _) = admin.issue("default", &["jobs:read"]).await;
        let rotate = RotateKeyRequest { key_id: first.key_id.clone(), ..RotateKeyRequest::default() };
        let second = admin.keys.clone().rotate_key(rotate).await.unwrap().into_inner().key.unwrap();
        let all = revocation("default", "");
        admin.keys.clone().revoke_keys(all).await.unwrap();
        let (later, _) = admin.issue("default", &["jobs:read"]).await;
        let kinds = |events: Vec<Event>| events.iter().map(Event::r#type).collect::<Vec<_>>();
        for (key, expected) in [
            (&first, vec![EventType::KeyRotated, EventType::KeyCreated]),
            (&second, vec![EventType::KeysRevoked, EventType::KeyRotated]),
            (&other, vec![EventType::KeysRevoked, EventType::KeyCreated]),
            (&later, vec![EventType::KeyCreated]),
        ] {
            let request = ListEventsRequest { key_id: key.key_id.clone(), ..ListEventsRequest::default() };
            let listed = list(&admin, request).await.unwrap().events;
            assert_eq!(kinds(listed), expected, "{}", key.key_id);
        }
        let of_owner = ListEventsRequest { owner_id: second.owner_id.clone(), ..ListEventsRequest::default() };
        let listed = kinds(list(&admin, of_owner).await.unwrap().events);
        assert!(listed.contains(&EventType::KeysRevoked), "{listed:?}");
        let of_nobody = ListEventsRequest { owner_id: "nobody".to_owned(), ..ListEventsRequest::default() };
        assert_eq!(list(&admin, of_nobody).await.unwrap().events, []);
    }

    async fn a_watch_from_now_sends_only_what_comes_after_it(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        admin.issue("default", &["jobs:read"]).await;
        let both = WatchEventsRequest { start_revision: 1, from_now: true, ..WatchEventsRequest::default() };
        let refused = admin.events.clone().watch_events(both).await.map(|_| ()).unwrap_err();
        assert_eq!(bad_fields(&refused), ["from_now"]);
        let from_now = WatchEventsRequest { from_now: true, ..WatchEventsRequest::default() };
        let mut stream = admin.events.clone().watch_events(from_now).await.unwrap().into_inner();
        let (key, _) = admin.issue("default", &["jobs:read"]).await;
        let events = next(&mut stream, 1).await;
        assert_eq!(events[0].key_id, key.key_id);
    }

    async fn each_change_is_one_event_that_says_who_what_and_when(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (bot, credential) = admin.issue("system", &["acme:*"]).await;
        let wanted = one_of_each(&admin.with(&credential)).await;
        let events = history(&admin, "acme").await;
        for (event, mut wanted) in events.iter().zip(wanted) {
            assert!(event.at.unwrap().seconds >= bot.created_at.unwrap().seconds);
            (wanted.at, wanted.details) = (event.at, event.details.clone());
            wanted.actor.clone_from(&bot.key_id);
            if event.r#type() == EventType::TenantCreated {
                wanted.trace_id = TRACE.into();
            }
            assert_eq!(*event, wanted);
        }
        let [tenant, put, created, updated, rotated, revoked, all, deleted] = &events[..] else {
            panic!("{} events", events.len())
        };
        assert!(events.is_sorted_by(|one, next| one.revision < next.revision));

        assert_eq!(told(tenant), [
            "basic_usernames", "default_ttl", "display_name", "key_prefix", "max_active_keys_per_owner", "max_ttl",
            "on_limit", "require_expiry", "require_owner", "required_owner_scope", "scope_catalog",
            "suspended",
        ]);
        assert_eq!(text(tenant, "on_limit"), "ON_LIMIT_REJECT");
        assert_eq!(told(put), ["audiences", "display_name", "scopes", "suspended"]);
        assert_eq!(told(created), ["expires_at", "label", "scopes"]);
        assert_eq!((text(created, "label"), text(created, "scopes")), ("a key".to_owned(), "a b:*".to_owned()));
        assert_eq!(told(updated), ["label", "scopes"]);
        assert_eq!((text(updated, "label"), text(updated, "scopes")), ("new".to_owned(), "c".to_owned()));
        assert!(told(rotated).contains(&"rotated_to".to_owned()));
        assert_eq!((told(revoked), text(revoked, "reason")), (texts(&["reason"]), "leaked".to_owned()));
        assert_eq!((told(all), text(all, "reason")), (texts(&["key_ids", "reason", "revoked_count"]), "breach".to_owned()));
        assert_eq!(text(all, "key_ids"), text(rotated, "rotated_to"));
        assert!(told(deleted).is_empty());

        let by_admin = history(&admin, "system").await;
        let [made] = &by_admin[..] else { panic!("one key of tenant system was made") };
        assert_eq!((&*made.actor, &made.key_id, &*made.trace_id), ("admin", &bot.key_id, ""));
    }

    async fn what_changes_nothing_is_no_event(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let once = CreateKeyRequest { request_id: "r".to_owned(), ..new_key("default", &["a"]) };
        let (key, text) = admin.create(once.clone()).await;
        let before = history(&admin, "default").await;
        assert_eq!(before.len(), 1);

        admin.validate(crate::support::client::ask(&text)).await;
        admin.try_create(once).await.unwrap_err();
        admin.try_create(new_key("default", &[])).await.unwrap_err();
        update(&admin, key.clone(), &["owner_id"]).await.unwrap_err();
        let mut keys = admin.keys.clone();
        keys.revoke_keys(RevokeKeysRequest { dry_run: true, ..revocation("default", "") }).await.unwrap();
        keys.revoke_keys(revocation("default", "nobody")).await.unwrap();
        let elsewhere = RevokeKeyRequest {
            tenant_id: "system".to_owned(),
            target: key_target(key.key_id.clone()),
            ..RevokeKeyRequest::default()
        };
        keys.revoke_key(elsewhere).await.unwrap_err();
        assert_eq!(history(&admin, "default").await, before);

        admin.revoke(&key, "").await;
        admin.revoke(&key, "again").await;
        update(&admin, key, &["label"]).await.unwrap_err();
        let after = history(&admin, "default").await;
        assert_eq!(after.len(), 2);
        assert!(!format!("{after:?}").contains(&text));
    }

    async fn events_are_listed_newest_first_by_each_filter(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (bot, credential) = admin.issue("system", &["acme:*"]).await;
        one_of_each(&admin.with(&credential)).await;
        admin.set_owner(owner("acme", "alice")).await;
        admin.issue("default", &["a"]).await;
        let all = list(&admin, ListEventsRequest::default()).await.unwrap().events;
        assert_eq!(all.len(), 11);
        assert!(all.is_sorted_by(|one, next| one.revision > next.revision), "newest first");
        let key_id = all.iter().find(|event| event.r#type() == EventType::KeyRotated).unwrap().key_id.clone();
        let middle = all[5].at;

        let found = async |request: ListEventsRequest| {
            let events = list(&admin, request).await.unwrap().events;
            events.iter().map(|event| event.revision).collect::<Vec<_>>()
        };
        let such = |is: &dyn Fn(&Event) -> bool| -> Vec<_> {
            all.iter().filter(|event| is(event)).map(|event| event.revision).collect()
        };
        let any = ListEventsRequest::default;
        let nanos = |event: &Event| event.at.map(|at| (at.seconds, at.nanos));
        let split = middle.map(|at| (at.seconds, at.nanos));

        let acme = such(&|event| event.tenant_id == "acme");
        assert_eq!(acme.len(), 9);
        assert_eq!(found(ListEventsRequest { tenant_id: "acme".to_owned(), ..any() }).await, acme);
        let of_key = such(&|event| event.key_id == key_id);
        assert_eq!(of_key.len(), 4);
        assert_eq!(found(ListEventsRequest { key_id: key_id.clone(), ..any() }).await, of_key);
        let of_owner = such(&|event| event.owner_id == "alice");
        assert_eq!(of_owner.len(), 8);
        assert_eq!(found(ListEventsRequest { owner_id: "alice".to_owned(), ..any() }).await, of_owner);
        let of_bot = such(&|event| event.actor == bot.key_id);
        assert_eq!(of_bot.len(), 8);
        assert_eq!(found(ListEventsRequest { actor: bot.key_id.clone(), ..any() }).await, of_bot);
        let two = [EventType::OwnerDeleted, EventType::KeysRevoked];
        for kinds in [&[EventType::KeyCreated][..], &two, &[EventType::OwnerCreated]] {
            let types = kinds.iter().map(|kind| (*kind).into()).collect();
            let wanted = such(&|event| kinds.contains(&event.r#type()));
            assert_eq!(found(ListEventsRequest { types, ..any() }).await, wanted);
        }
        // A time is in what begins with it, and not in what ends with it.
        assert_eq!(found(ListEventsRequest { after: middle, ..any() }).await, such(&|event| nanos(event) >= split));
        assert_eq!(found(ListEventsRequest { before: middle, ..any() }).await, such(&|event| nanos(event) < split));
        let both = ListEventsRequest {
            tenant_id: "acme".to_owned(),
            owner_id: "alice".to_owned(),
            actor: "admin".to_owned(),
            types: vec![EventType::OwnerCreated.into()],
            after: middle,
            ..any()
        };
        assert_eq!(found(both).await, [all[1].revision]);
        for nothing in [
            ListEventsRequest { tenant_id: "nowhere".to_owned(), ..any() },
            ListEventsRequest { key_id: "key_0000000000000000".to_owned(), ..any() },
            ListEventsRequest { owner_id: "nobody".to_owned(), ..any() },
            ListEventsRequest { actor: "nobody".to_owned(), ..any() },
            ListEventsRequest { after: middle, before: middle, ..any() },
        ] {
            assert!(found(nothing).await.is_empty());
        }
    }

    async fn events_come_in_pages(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        for name in ["a", "b", "c", "d", "e"] {
            admin.set_owner(owner("default", name)).await;
        }
        let query = ListEventsRequest { tenant_id: "default".to_owned(), page_size: 2, ..ListEventsRequest::default() };
        let (mut pages, mut token) = (Vec::new(), String::new());
        loop {
            let page = list(&admin, ListEventsRequest { page_token: token, ..query.clone() }).await.unwrap();
            pages.push(page.events.iter().map(|event| &*event.owner_id).collect::<String>());
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
            admin.set_owner(owner("default", "late")).await;
        }
        assert_eq!(pages, ["ed", "cb", "a"]);

        let token = list(&admin, query.clone()).await.unwrap().next_page_token;
        let other = ListEventsRequest { owner_id: "a".to_owned(), page_token: token, ..query };
        assert_eq!(bad_fields(&list(&admin, other).await.unwrap_err()), ["page_token"]);
        let wrong = ListEventsRequest {
            tenant_id: "Not a tenant".to_owned(),
            key_id: "x".to_owned(),
            owner_id: "\n".to_owned(),
            actor: "\n".to_owned(),
            types: vec![EventType::KeyCreated.into(), 0, 99],
            page_size: -1,
            ..ListEventsRequest::default()
        };
        let error = refused(list(&admin, wrong).await, Code::InvalidArgument, "INVALID_FIELDS");
        let wrong = ["actor", "key_id", "owner_id", "page_size", "tenant_id", "types[1]", "types[2]"];
        assert_eq!(sorted(bad_fields(&error)), wrong);
    }

    async fn a_watch_tells_what_was_and_then_what_happens_in_order_and_without_a_gap(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        for name in ["a", "b", "c"] {
            admin.set_owner(owner("default", name)).await;
        }
        let past = history(&admin, "default").await;
        let mut from_start = watch(&admin, "", 0).await.unwrap();
        let mut from_second = watch(&admin, "default", past[1].revision).await.unwrap();
        assert_eq!(next(&mut from_start, 3).await, past);
        assert_eq!(next(&mut from_second, 2).await, past[1..]);
        let mut from_future = watch(&admin, "default", past[2].revision + 1).await.unwrap();

        // Many at once, and in a tenant that only the first one watches.
        admin.set_tenant(named("acme")).await;
        let mut changes = JoinSet::new();
        for n in 0..40 {
            let admin = admin.clone();
            let tenant = if n % 4 == 0 { "acme" } else { "default" };
            changes.spawn(async move { admin.set_owner(owner(tenant, &n.to_string())).await });
        }
        changes.join_all().await;
        let (key, _) = admin.issue("default", &["a"]).await;
        admin.revoke(&key, "").await;

        let all = history(&admin, "").await;
        assert_eq!(all.len(), 3 + 1 + 40 + 2);
        let here: Vec<_> = all.iter().filter(|event| event.tenant_id == "default").cloned().collect();
        assert_eq!(next(&mut from_start, 43).await, all[3..]);
        assert_eq!(next(&mut from_second, 32).await, here[3..]);
        assert_eq!(next(&mut from_future, 32).await, here[3..]);
        assert_eq!(next(&mut watch(&admin, "default", 0).await.unwrap(), 35).await, here);

        let error = watch(&admin, "X", -1).await.map(|_| ());
        let error = refused(error, Code::InvalidArgument, "INVALID_FIELDS");
        assert_eq!(sorted(bad_fields(&error)), ["start_revision", "tenant_id"]);
    }
}
