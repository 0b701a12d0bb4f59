//! A key's later life, as the contract has it: listed, found, changed.
#![allow(
    clippy::assigning_clones,
    clippy::items_after_statements,
    clippy::unwrap_used,
    reason = "in a test, short tables; clippy takes only functions with `#[test]` for tests"
)]

use gatekey::api::proto::{
    CreateKeyRequest, EnforcementState, GetKeyRequest, Key, KeyState, ListKeysRequest,
    ListKeysResponse, LookupKeyRequest, Reason, Tenant,
};
use prost_types::Timestamp;
use tonic::{Code, Status};

use crate::{
    contract_keys::{get, later, refused, sealed, sorted, span, start, update},
    contract_validate::until_expired,
    support::{
        Client,
        client::{bad_fields, new_key, texts, unused},
        on_both_engines,
    },
};

/// The id of no key.
pub const UNKNOWN: &str = "key_0000000000000000";

/// All that UpdateKey may change.
const MASK: [&str; 8] = [
    "suspended",
    "expires_at",
    "metadata",
    "allowed_cidrs",
    "audiences",
    "scopes",
    "description",
    "label",
];

pub async fn list(client: &Client, request: ListKeysRequest) -> Result<ListKeysResponse, Status> {
    let page = client.keys.clone().list_keys(request).await?.into_inner();
    Ok(ListKeysResponse {
        keys: page.keys.into_iter().map(unused).collect(),
        ..page
    })
}

/// The labels of a page of keys.
fn labels(page: &ListKeysResponse) -> Vec<&str> {
    page.keys.iter().map(|key| &*key.label).collect()
}

async fn get_of(client: &Client, tenant: &str, key_id: &str) -> Result<Key, Status> {
    let request = GetKeyRequest {
        key_id: key_id.to_owned(),
        tenant_id: tenant.to_owned(),
    };
    let answer = client.keys.clone().get_key(request).await?;
    Ok(unused(answer.into_inner().key.expect("a key")))
}

async fn look_up(client: &Client, tenant: &str, plaintext: &str) -> Result<Key, Status> {
    let request = LookupKeyRequest {
        plaintext_key: plaintext.to_owned(),
        tenant_id: tenant.to_owned(),
    };
    let answer = client.keys.clone().lookup_key(request).await?;
    Ok(unused(answer.into_inner().key.expect("a key")))
}

pub async fn acme(client: &Client) {
    let tenant_id = "acme".to_owned();
    client
        .set_tenant(Tenant {
            tenant_id,
            ..Tenant::default()
        })
        .await;
}

pub fn labelled(tenant: &str, owner: &str, label: &str) -> CreateKeyRequest {
    CreateKeyRequest {
        owner_id: owner.to_owned(),
        label: label.to_owned(),
        ..new_key(tenant, &["a"])
    }
}

/// Five keys of `acme`, told by their labels: two active, one in each other state. And one elsewhere.
pub async fn five_keys(admin: &Client) -> Vec<(Key, String)> {
    acme(admin).await;
    let with_ttl = |ttl, request| CreateKeyRequest {
        ttl: span(ttl),
        ..request
    };
    let keys = vec![
        admin.create(labelled("acme", "alice", "alpha")).await,
        admin
            .create(with_ttl(3600, labelled("acme", "bob", "beta 100%")))
            .await,
        admin.create(labelled("acme", "alice", "alpha_2")).await,
        admin.create(labelled("acme", "alice", "gamma")).await,
        admin
            .create(with_ttl(1, labelled("acme", "bob", "Alpha")))
            .await,
    ];
    admin.create(labelled("default", "alice", "alpha")).await;
    let suspended = Key {
        suspended: Some(true),
        ..keys[2].0.clone()
    };
    update(admin, suspended, &["suspended"]).await.unwrap();
    admin.revoke(&keys[3].0, "leaked").await;
    until_expired(admin, &keys[4].1).await;
    keys
}

on_both_engines! {
    async fn keys_are_listed_newest_first_in_every_state_or_as_filtered(setup: Setup) {
        use KeyState::{Active, Expired, Revoked, Suspended};
        let (_server, admin) = start(&setup).await;
        let keys = five_keys(&admin).await;
        // A change does not move a key.
        update(&admin, Key { description: "changed".to_owned(), ..keys[0].0.clone() }, &["description"]).await.unwrap();
        let soon = later(keys[1].0.expires_at, 1);

        type Change = fn(&mut ListKeysRequest);
        let cases: [(Change, &[&str]); 19] = [
            (|_| {}, &["Alpha", "gamma", "alpha_2", "beta 100%", "alpha"]),
            (|r| r.owner_id = "alice".to_owned(), &["gamma", "alpha_2", "alpha"]),
            (|r| r.owner_id = "Alice".to_owned(), &[]),
            (|r| r.states = vec![Active.into()], &["beta 100%", "alpha"]),
            (|r| r.states = vec![Suspended.into()], &["alpha_2"]),
            (|r| r.states = vec![Expired.into()], &["Alpha"]),
            (|r| r.states = vec![Revoked.into()], &["gamma"]),
            (|r| r.states = vec![Revoked.into(), Active.into()], &["gamma", "beta 100%", "alpha"]),
            (|r| r.states = vec![Active.into(), Expired.into(), Revoked.into(), Suspended.into()],
                &["Alpha", "gamma", "alpha_2", "beta 100%", "alpha"]),
            (|r| r.label_contains = "alpha".to_owned(), &["alpha_2", "alpha"]),
            (|r| r.label_contains = "pha".to_owned(), &["Alpha", "alpha_2", "alpha"]),
            (|r| r.label_contains = "_".to_owned(), &["alpha_2"]),
            (|r| r.label_contains = "%".to_owned(), &["beta 100%"]),
            (|r| r.label_contains = "' OR 1=1".to_owned(), &[]),
            // `expires_before` is filled in below.
            (|r| r.expires_before = Some(Timestamp::default()), &["Alpha", "beta 100%"]),
            (|r| (r.expires_before, r.states) = (Some(Timestamp::default()), vec![Active.into()]), &["beta 100%"]),
            (|r| (r.owner_id, r.label_contains) = ("alice".to_owned(), "pha".to_owned()), &["alpha_2", "alpha"]),
            (|r| (r.owner_id, r.states) = ("bob".to_owned(), vec![Expired.into(), Revoked.into()]), &["Alpha"]),
            (|r| (r.owner_id, r.label_contains, r.states, r.expires_before) =
                ("bob".to_owned(), "beta".to_owned(), vec![Active.into()], Some(Timestamp::default())), &["beta 100%"]),
        ];
        for (change, wanted) in cases {
            let mut request = ListKeysRequest { tenant_id: "acme".to_owned(), ..ListKeysRequest::default() };
            change(&mut request);
            request.expires_before = request.expires_before.and(soon);
            let page = list(&admin, request.clone()).await.unwrap();
            assert_eq!((labels(&page), &*page.next_page_token), (wanted.to_vec(), ""), "{request:?}");
        }

        // A key that expires at that instant does not expire before it.
        let request = |expires_before| ListKeysRequest {
            tenant_id: "acme".to_owned(),
            expires_before,
            ..ListKeysRequest::default()
        };
        let page = list(&admin, request(keys[1].0.expires_at)).await.unwrap();
        assert_eq!(labels(&page), ["Alpha"]);

        // A list tells what GetKey tells.
        let page = list(&admin, request(None)).await.unwrap();
        for (listed, state) in page.keys.iter().zip([Expired, Revoked, Suspended, Active, Active]) {
            assert_eq!((listed.state(), listed), (state, &get(&admin, &listed.key_id).await));
        }
    }

    async fn a_list_comes_in_pages_that_miss_and_repeat_nothing(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        five_keys(&admin).await;
        let query = ListKeysRequest { tenant_id: "acme".to_owned(), page_size: 2, ..ListKeysRequest::default() };
        let mut pages = Vec::new();
        let mut token = String::new();
        loop {
            let page = list(&admin, ListKeysRequest { page_token: token, ..query.clone() }).await.unwrap();
            pages.push(labels(&page).join(" "));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
            // One that is made meanwhile belongs before the pages that follow.
            admin.create(labelled("acme", "bob", "late")).await;
        }
        assert_eq!(pages, ["Alpha gamma", "alpha_2 beta 100%", "alpha"]);

        let exact = ListKeysRequest { page_size: 7, ..query.clone() };
        let page = list(&admin, exact.clone()).await.unwrap();
        assert_eq!((page.keys.len(), &*page.next_page_token), (7, ""));
        // Another size goes on in the same list.
        let token = list(&admin, query.clone()).await.unwrap().next_page_token;
        let rest = list(&admin, ListKeysRequest { page_token: token.clone(), ..exact }).await.unwrap();
        assert_eq!(labels(&rest), ["Alpha", "gamma", "alpha_2", "beta 100%", "alpha"]);

        type Change = fn(&mut ListKeysRequest);
        let others: [Change; 8] = [
            |r| r.tenant_id = "default".to_owned(),
            |r| r.owner_id = "bob".to_owned(),
            |r| r.label_contains = "a".to_owned(),
            |r| r.states = vec![KeyState::Active.into()],
            |r| r.expires_before = Some(Timestamp::default()),
            |r| r.page_token.push('A'),
            |r| r.page_token = "MTIz".to_owned(),
            |r| r.page_token = "no token".to_owned(),
        ];
        for change in others {
            let mut other = ListKeysRequest { page_token: token.clone(), ..query.clone() };
            change(&mut other);
            assert_eq!(bad_fields(&list(&admin, other).await.unwrap_err()), ["page_token"]);
        }
        for (page_size, right) in [(0, true), (1, true), (1000, true), (1001, true), (i32::MAX, true), (-1, false), (i32::MIN, false)] {
            match list(&admin, ListKeysRequest { page_size, ..query.clone() }).await {
                Ok(page) => assert!(right && page.keys.len() == if page_size == 1 { 1 } else { 7 }, "{page_size}"),
                Err(error) => assert!(!right && bad_fields(&error) == ["page_size"], "{page_size}: {error:?}"),
            }
        }
    }

    async fn a_list_that_makes_no_sense_is_refused(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let error = list(&admin, ListKeysRequest {
            owner_id: "o".repeat(256),
            states: vec![KeyState::Active.into(), 0, 99],
            label_contains: "l".repeat(121),
            expires_before: Some(Timestamp { seconds: 0, nanos: -1 }),
            page_size: -1,
            page_token: "x".to_owned(),
            ..ListKeysRequest::default()
        }).await;
        let error = refused(error, Code::InvalidArgument, "INVALID_FIELDS");
        let wrong = [
            "expires_before", "label_contains", "owner_id", "page_size", "page_token", "states[1]", "states[2]",
        ];
        assert_eq!(sorted(bad_fields(&error)), wrong);
        let nowhere = ListKeysRequest { tenant_id: "nowhere".to_owned(), ..ListKeysRequest::default() };
        refused(list(&admin, nowhere).await, Code::NotFound, "TENANT_NOT_FOUND");
    }

    async fn a_key_is_found_by_its_id(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        acme(&admin).await;
        let (key, _) = admin.issue("acme", &["a"]).await;
        for tenant in ["", "acme"] {
            assert_eq!(get_of(&admin, tenant, &key.key_id).await.unwrap(), key);
        }
        let id = &*key.key_id;
        for (tenant, key_id) in [("default", id), ("nowhere", id), ("", UNKNOWN), ("acme", UNKNOWN)] {
            refused(get_of(&admin, tenant, key_id).await, Code::NotFound, "KEY_NOT_FOUND");
        }
        for key_id in ["", &id[4..], "key_", &UNKNOWN[1..], &id[..19], &format!("{id}0"), "key_00000000000000-0"] {
            assert_eq!(bad_fields(&get_of(&admin, "", key_id).await.unwrap_err()), ["key_id"], "{key_id}");
        }
    }

    async fn a_key_that_was_found_somewhere_is_looked_up_in_every_state(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let keys = five_keys(&admin).await;
        for (key, text) in &keys {
            let kept = get(&admin, &key.key_id).await;
            for (tenant, text) in [("", text.clone()), ("acme", text.clone()), ("", format!("\n {text}\t")), ("", format!("Bearer {text}"))] {
                assert_eq!(look_up(&admin, tenant, &text).await.unwrap(), kept);
            }
            refused(look_up(&admin, "default", text).await, Code::NotFound, "KEY_NOT_FOUND");
        }
        let text = &keys[0].1;
        let unknown = sealed(&format!("gk_{}{}", "0".repeat(16), &text[19..62]));
        let other_secret = sealed(&format!("{}{}", &text[..19], "0".repeat(43)));
        for text in [unknown, other_secret] {
            refused(look_up(&admin, "", &text).await, Code::NotFound, "KEY_NOT_FOUND");
        }
        for text in ["", "gk_x", &text[..text.len() - 1], &format!("Basic {text}")] {
            let error = look_up(&admin, "", text).await.unwrap_err();
            assert_eq!(bad_fields(&error), ["plaintext_key"]);
            assert!(text.is_empty() || !format!("{error:?}").contains(text));
        }
    }

    async fn an_update_changes_what_its_mask_names_and_nothing_else(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (mut key, text) = admin.create(CreateKeyRequest { ttl: span(60), ..new_key("default", &["a"]) }).await;
        let other = Key {
            key_id: key.key_id.clone(),
            label: "other".to_owned(),
            description: "a\nb".to_owned(),
            scopes: texts(&["b:*", "c"]),
            audiences: texts(&["web"]),
            allowed_cidrs: texts(&["10.0.0.0/8"]),
            metadata: [("k".to_owned(), "v".to_owned())].into(),
            expires_at: later(key.expires_at, 3600),
            suspended: Some(true),
            // None of these may be changed.
            owner_id: "bob".to_owned(),
            created_by: "bob".to_owned(),
            ..Key::default()
        };
        type Set = fn(&mut Key, &Key);
        let paths: [(&str, Set); 8] = [
            ("label", |key, other| key.label.clone_from(&other.label)),
            ("description", |key, other| key.description.clone_from(&other.description)),
            ("scopes", |key, other| key.scopes.clone_from(&other.scopes)),
            ("audiences", |key, other| key.audiences.clone_from(&other.audiences)),
            ("allowed_cidrs", |key, other| key.allowed_cidrs.clone_from(&other.allowed_cidrs)),
            ("metadata", |key, other| key.metadata.clone_from(&other.metadata)),
            ("expires_at", |key, other| key.expires_at = other.expires_at),
            ("suspended", |key, _| (key.suspended, key.state) = (Some(true), KeyState::Suspended.into())),
        ];
        for (path, set) in paths {
            let answer = update(&admin, other.clone(), &[path]).await.unwrap();
            assert_eq!(answer.enforcement.unwrap().state(), EnforcementState::Enforced);
            let changed = answer.key.unwrap();
            assert!(changed.revision > key.revision, "{path}");
            key.revision = changed.revision;
            set(&mut key, &other);
            assert_eq!((path, &changed), (path, &key));
            assert_eq!(get(&admin, &key.key_id).await, key);
        }
        assert_eq!(admin.reason(&text).await, Reason::Suspended);

        // All at once, back to what a message has when it says nothing.
        let cleared = Key {
            key_id: key.key_id.clone(),
            label: "back".to_owned(),
            scopes: texts(&["a"]),
            ..Key::default()
        };
        let changed = update(&admin, cleared, &MASK).await.unwrap().key.unwrap();
        assert_eq!((changed.expires_at, changed.state()), (None, KeyState::Active));
        assert_eq!((&*changed.label, &*changed.description), ("back", ""));
        assert_eq!(changed.scopes, ["a"]);
        assert!(changed.metadata.is_empty() && changed.allowed_cidrs.is_empty() && changed.audiences.is_empty());
        assert_eq!(admin.reason(&text).await, Reason::Allowed);
    }

    async fn an_update_that_makes_no_sense_changes_nothing(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        acme(&admin).await;
        let (key, _) = admin.issue("acme", &["a"]).await;
        for (paths, field) in [
            (&["owner_id"][..], "update_mask"), (&["label", "key_id"], "update_mask"),
            (&["*", "id"], "update_mask"), (&["metadata.k"], "update_mask"), (&["state"], "update_mask"),
        ] {
            let error = update(&admin, Key { label: "x".to_owned(), ..key.clone() }, paths).await.unwrap_err();
            assert_eq!(bad_fields(&error), [field], "{paths:?}");
        }
        let bad = Key {
            key_id: "x".to_owned(),
            tenant_id: "X".to_owned(),
            label: "l".repeat(121),
            description: "d".repeat(1025),
            scopes: Vec::new(),
            audiences: texts(&[""]),
            allowed_cidrs: texts(&["x"]),
            metadata: [("k".to_owned(), "v".repeat(4096))].into(),
            expires_at: key.created_at,
            ..Key::default()
        };
        let error = refused(update(&admin, bad, &MASK).await, Code::InvalidArgument, "INVALID_FIELDS");
        let wrong = [
            "key.allowed_cidrs[0]", "key.audiences[0]", "key.description", "key.expires_at", "key.key_id", "key.label",
            "key.metadata", "key.scopes", "key.tenant_id",
        ];
        assert_eq!(sorted(bad_fields(&error)), wrong);
        for elsewhere in [
            Key { tenant_id: "default".to_owned(), ..key.clone() },
            Key { key_id: UNKNOWN.to_owned(), ..key.clone() },
        ] {
            refused(update(&admin, elsewhere, &["label"]).await, Code::NotFound, "KEY_NOT_FOUND");
        }
        assert_eq!(get(&admin, &key.key_id).await, key);
    }
}
