//! PlaneConnection: workspaces whose administrators manage keys.

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use gatekey::api::proto::{
    CreateKeyRequest, EventType, Key, KeyState, ListEventsRequest, ListKeysRequest, Reason,
    RevokeKeyRequest, RotateKeyRequest, Tenant,
};
use tokio::{sync::watch, task::JoinSet};
use tonic::{Code, Request};

use super::{asking, assert_refused, assert_shown_once, defined, ids, key_of, may, of_tenant};
use crate::support::client::key_target;
use crate::{
    contract_admin::list,
    contract_events::{TRACE, traced},
    contract_keys::{get, later, refused, span, update},
    contract_rotation::{rotate, rotation},
    support::{
        Client,
        client::{ask, new_key},
        on_both_engines,
    },
};

const PRODUCT: &str = "PlaneConnection";
const TENANT: &str = "acme";
const DAY: i64 = 86_400;

/// How many rotations C4 goes through, unless this variable says for how long it is to go on.
const ROTATIONS: usize = 3;
const ROTATE_FOR: &str = "GATEKEY_TEST_ROTATE_SECONDS";
/// How many clients use the key meanwhile.
const CLIENTS: usize = 4;

fn key(scopes: &[&str]) -> CreateKeyRequest {
    key_of(TENANT, "ops", scopes)
}

on_both_engines! {
    async fn c1_only_an_admin_manages_keys(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (_, credential) = admin.issue("system", &["acme:keys:*"]).await;
        let manager = admin.with(&credential);
        let (made, plaintext) = manager.create(key(&["*"])).await;
        assert_eq!(manager.reason(&plaintext).await, Reason::Allowed);

        let (_, credential) = admin.issue("system", &["acme:keys:validate"]).await;
        let backend = admin.with(&credential);
        assert_eq!(backend.reason(&plaintext).await, Reason::Allowed);
        let denied = (Code::PermissionDenied, "ACTION_NOT_GRANTED");
        refused(backend.try_create(key(&["*"])).await, denied.0, denied.1);
        refused(list(&backend, of_tenant(TENANT)).await, denied.0, denied.1);
        refused(rotate(&backend, rotation(&made)).await, denied.0, denied.1);
        refused(update(&backend, made.clone(), &["label"]).await, denied.0, denied.1);
        let revoke = RevokeKeyRequest {
            tenant_id: TENANT.to_owned(),
            target: key_target(made.key_id.clone()),
            reason: String::new(),
        };
        refused(backend.keys.clone().revoke_key(revoke).await, denied.0, denied.1);
        // And a workspace's administrator has no say in another one.
        let elsewhere = manager.try_create(new_key("default", &["*"])).await;
        refused(elsewhere, Code::NotFound, "TENANT_NOT_FOUND");
        assert_eq!(get(&admin, &made.key_id).await.state(), KeyState::Active);
    }

    async fn c2_permissions_are_read_only_read_write_or_modules(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let ending = CreateKeyRequest { ttl: span(30 * DAY), label: "board".to_owned(), ..key(&["trips:*"]) };
        let (ending, modules) = admin.create(ending).await;
        assert_eq!((&*ending.label, ending.expires_at), ("board", later(ending.created_at, 30 * DAY)));
        let (lasting, read_only) = admin.create(key(&["*:read"])).await;
        assert_eq!(lasting.expires_at, None);
        let (_, read_write) = admin.create(key(&["*"])).await;
        for (plaintext, scope, granted) in [
            (&read_only, "trips:read", true),
            (&read_only, "crew:read", true),
            (&read_only, "trips:write", false),
            (&read_write, "crew:write", true),
            (&read_write, "trips:legs:delete", true),
            (&modules, "trips:write", true),
            (&modules, "trips:legs:read", true),
            (&modules, "crew:read", false),
        ] {
            let expected = if granted { Reason::Allowed } else { Reason::InsufficientScope };
            assert_eq!(may(&admin, plaintext, scope).await, expected, "{scope}");
        }
    }

    async fn c3_the_key_is_shown_once(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        assert_shown_once(&admin, key(&["trips:*"])).await;
    }

    async fn c4_a_rotation_refuses_no_request(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (mut old, old_text) = admin.create(key(&["trips:*"])).await;
        let mut traffic = Traffic::start(&admin, old_text).await;
        let (started, asked_for) = (Instant::now(), env::var(ROTATE_FOR).ok());
        let asked_for = asked_for.map(|text| Duration::from_secs(text.parse().expect("seconds")));
        let mut rotations = 0;
        while asked_for.map_or(rotations < ROTATIONS, |span| started.elapsed() < span) {
            // A new key …
            let overlapping = RotateKeyRequest { overlap: span(3600), ..rotation(&old) };
            let answer = rotate(&admin, overlapping).await.expect("it is rotated");
            let (new, new_text) = (answer.key.expect("a key"), answer.plaintext_key);
            // … verified, and switched to by everybody …
            assert_eq!(may(&admin, &new_text, "trips:read").await, Reason::Allowed);
            traffic.switch_to(new_text).await;
            // … and the old one revoked.
            admin.revoke(&old, "rotated").await;
            old = new;
            rotations += 1;
        }
        let requests = traffic.stop().await;
        println!("{rotations} rotations under {requests} requests in {:.1?}", started.elapsed());
        assert!(requests > (rotations * CLIENTS) as u64);
    }

    async fn c5_a_revoked_key_stops_at_once(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        for _ in 0..5 {
            let (key, plaintext) = admin.create(key(&["*"])).await;
            assert_eq!(may(&admin, &plaintext, "trips:read").await, Reason::Allowed);
            admin.revoke(&key, "lost laptop").await;
            let answer = admin.validate(asking(&plaintext, &["trips:read"])).await;
            assert_refused(&answer, Reason::Revoked, 401);
        }
    }

    async fn c6_revoked_keys_stay_in_the_list_and_stay_revoked(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (key, plaintext) = admin.create(key(&["*"])).await;
        let revoked = admin.revoke(&key, "lost laptop").await.key.expect("a key");
        let listed = list(&admin, of_tenant(TENANT)).await.expect("a page");
        assert_eq!(listed.keys, std::slice::from_ref(&revoked));
        assert_eq!(revoked.state(), KeyState::Revoked);
        assert_eq!((&*revoked.revoked_by, &*revoked.revoke_reason), ("admin", "lost laptop"));
        let renewed = Key {
            suspended: Some(false),
            expires_at: later(key.created_at, DAY),
            label: "again".to_owned(),
            ..key
        };
        for path in ["suspended", "expires_at", "label"] {
            let answer = update(&admin, renewed.clone(), &[path]).await;
            refused(answer, Code::FailedPrecondition, "KEY_REVOKED");
        }
        refused(rotate(&admin, rotation(&revoked)).await, Code::FailedPrecondition, "KEY_REVOKED");
        assert_eq!(get(&admin, &revoked.key_id).await, revoked);
        assert_eq!(admin.reason(&plaintext).await, Reason::Revoked);
    }

    async fn c7_the_log_tells_who_did_what_when_to_which_key_in_which_call(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (bot, credential) = admin.issue("system", &["acme:*"]).await;
        let manager = admin.with(&credential);
        let created = manager.keys.clone().create_key(traced(key(&["*"]))).await;
        let created = created.expect("it is made").into_inner().key.expect("a key");
        let suspended = Key { suspended: Some(true), ..created.clone() };
        update(&manager, suspended, &["suspended"]).await.expect("it is suspended");
        let revoked = admin.revoke(&created, "lost laptop").await.key.expect("a key");

        let request = ListEventsRequest {
            tenant_id: TENANT.to_owned(),
            key_id: created.key_id.clone(),
            ..ListEventsRequest::default()
        };
        let events = admin.events.clone().list_events(Request::new(request)).await;
        let events = events.expect("events").into_inner().events;
        let told: Vec<_> = events.iter().map(|event| (event.r#type(), &*event.actor)).collect();
        assert_eq!(told, [
            (EventType::KeyRevoked, "admin"),
            (EventType::KeyUpdated, &*bot.key_id),
            (EventType::KeyCreated, &*bot.key_id),
        ]);
        for event in &events {
            assert_eq!((&event.key_id, &*event.owner_id), (&created.key_id, "ops"));
        }
        let (last, first) = (&events[0], &events[2]);
        assert_eq!((first.at, first.revision), (created.created_at, created.revision));
        assert_eq!((last.at, last.revision), (revoked.revoked_at, revoked.revision));
        assert_eq!(first.trace_id, TRACE);
    }

    async fn c8_keys_live_ninety_days_and_those_that_end_soon_are_listed(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (older, _) = admin.create(key(&["*"])).await;
        admin.set_tenant(Tenant {
            tenant_id: TENANT.to_owned(),
            max_ttl: span(90 * DAY),
            default_ttl: span(90 * DAY),
            ..Tenant::default()
        }).await;
        let too_long = CreateKeyRequest { ttl: span(91 * DAY), ..key(&["*"]) };
        refused(admin.try_create(too_long).await, Code::FailedPrecondition, "MAX_TTL");
        let (usual, _) = admin.create(key(&["*"])).await;
        assert_eq!(usual.expires_at, later(usual.created_at, 90 * DAY));
        let (soon, _) = admin.create(CreateKeyRequest { ttl: span(6 * DAY), ..key(&["*"]) }).await;
        // What was made before the rule goes on as it was.
        assert_eq!(get(&admin, &older.key_id).await.expires_at, None);
        for (days, expected) in [(5, vec![]), (7, vec![&*soon.key_id]), (91, vec![&*soon.key_id, &*usual.key_id])] {
            let request = ListKeysRequest {
                expires_before: later(soon.created_at, days * DAY),
                states: vec![KeyState::Active.into()],
                ..of_tenant(TENANT)
            };
            let listed = list(&admin, request).await.expect("a page");
            assert_eq!(ids(&listed.keys), expected, "within {days} days");
        }
    }
}

/// Clients that use the key all along, each the one that it was told last; none is ever refused.
struct Traffic {
    key: watch::Sender<String>,
    requests: Arc<AtomicU64>,
    clients: JoinSet<()>,
    /// How many clients have been answered about each key told.
    switched: watch::Receiver<usize>,
}

impl Traffic {
    async fn start(admin: &Client, first: String) -> Self {
        let (key, told) = watch::channel(first);
        let (counter, switched) = watch::channel(0);
        let (requests, mut clients) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
        for _ in 0..CLIENTS {
            let (admin, requests) = (admin.clone(), Arc::clone(&requests));
            let (mut told, counter) = (told.clone(), counter.clone());
            clients.spawn(async move {
                let mut current = String::new();
                while told.has_changed().is_ok() {
                    let key = told.borrow_and_update().clone();
                    let answer = admin.validate(ask(&key)).await;
                    assert!(answer.allowed, "a request was refused: {answer:?}");
                    requests.fetch_add(1, Ordering::Relaxed);
                    if current != key {
                        current = key;
                        counter.send_modify(|count| *count += 1);
                    }
                }
            });
        }
        let mut traffic = Self {
            key,
            requests,
            clients,
            switched,
        };
        traffic.until_all_use(1).await;
        traffic
    }

    /// Tells all clients another key, and waits until each uses it.
    async fn switch_to(&mut self, key: String) {
        let told = *self.switched.borrow() / CLIENTS;
        self.key.send_replace(key);
        self.until_all_use(told + 1).await;
    }

    /// Waits until all clients use the key that they were told as the one at this place.
    async fn until_all_use(&mut self, place: usize) {
        tokio::select! {
            all = self.switched.wait_for(|count| *count == place * CLIENTS) => {
                all.expect("the clients go on");
            }
            ended = self.clients.join_next() => panic!("a client has ended: {ended:?}"),
        }
    }

    /// Ends the traffic, and tells how many requests there were.
    async fn stop(self) -> u64 {
        drop(self.key);
        self.clients.join_all().await;
        self.requests.load(Ordering::Relaxed)
    }
}
