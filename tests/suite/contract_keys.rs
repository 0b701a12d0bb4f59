//! CreateKey, as the contract has it: what a key is made of, what may be asked for, each limit at its edge.
#![allow(
    clippy::assigning_clones,
    clippy::items_after_statements,
    clippy::unwrap_used,
    reason = "in a test, short tables; clippy takes only functions with `#[test]` for tests"
)]

use std::{collections::BTreeSet, fmt::Debug};

use gatekey::api::proto::{
    CreateKeyRequest, GetKeyRequest, Key, KeyState, ListKeysRequest, Reason, Tenant,
    UpdateKeyRequest, UpdateKeyResponse,
};
use prost_types::{Duration, FieldMask, Timestamp};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::{
    Client, Gatekey, Setup,
    client::{bad_fields, error_reason, new_key, texts, unused},
    on_both_engines,
};

/// A server, and a caller who may do everything.
pub async fn start(setup: &Setup) -> (Gatekey, Client) {
    let server = setup.start().await;
    let admin = server.admin().await;
    (server, admin)
}

/// Asserts that a call was refused with this code and reason, and gives the error.
#[track_caller]
pub fn refused<T: Debug>(answer: Result<T, Status>, code: Code, reason: &str) -> Status {
    let error = answer.expect_err("the call is refused");
    assert_eq!(
        (error.code(), &*error_reason(&error)),
        (code, reason),
        "{error:?}"
    );
    error
}

/// Sets what `paths` name to what `key` has.
pub async fn update(
    client: &Client,
    key: Key,
    paths: &[&str],
) -> Result<UpdateKeyResponse, Status> {
    let request = UpdateKeyRequest {
        key: Some(Key { revision: 0, ..key }),
        update_mask: Some(FieldMask {
            paths: texts(paths),
        }),
    };
    Ok(client.keys.clone().update_key(request).await?.into_inner())
}

/// The key as it is now.
pub async fn get(client: &Client, key_id: &str) -> Key {
    let request = GetKeyRequest {
        key_id: key_id.to_owned(),
        ..GetKeyRequest::default()
    };
    let answer = client.keys.clone().get_key(request).await.expect("a key");
    unused(answer.into_inner().key.expect("a key"))
}

/// A span of whole seconds.
#[expect(clippy::unnecessary_wraps, reason = "that is how a message holds it")]
pub fn span(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

/// The time so many seconds later.
pub fn later(time: Option<Timestamp>, seconds: i64) -> Option<Timestamp> {
    time.map(|time| Timestamp {
        seconds: time.seconds + seconds,
        ..time
    })
}

/// The texts in the order of their bytes.
pub fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

/// The text and its checksum: CRC-32 (IEEE) bit by bit, and six digits of base 62.
pub fn sealed(text: &str) -> String {
    const DIGITS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let shift = |crc: u32, _| (crc >> 1) ^ (0xEDB8_8320 * (crc & 1));
    let step = |crc: u32, byte: u8| (0..8).fold(crc ^ u32::from(byte), shift);
    let crc = !text.bytes().fold(u32::MAX, step);
    let digit = |place| DIGITS[(crc / 62_u32.pow(place) % 62) as usize];
    let digits = (0..6).rev().map(digit).map(char::from);
    text.chars().chain(digits).collect()
}

/// Returns the text with another last character.
pub fn with_other_end(text: &str) -> String {
    let (start, end) = text.split_at(text.len() - 1);
    format!("{start}{}", if end == "x" { 'y' } else { 'x' })
}

/// A request in which everything is as large as it may be.
fn at_every_limit() -> CreateKeyRequest {
    let longest = [&*"s".repeat(64); 8].join(":");
    let scopes = (1..256).map(|n| format!("s{n}"));
    CreateKeyRequest {
        owner_id: format!("{}a", "é".repeat(127)), // 255 bytes
        label: "ü".repeat(120),
        description: "ü".repeat(1023) + "\n",
        scopes: [longest].into_iter().chain(scopes).collect(),
        audiences: (0..64).map(|n| format!("{n:0>255}")).collect(),
        allowed_cidrs: (0..64).map(|n| format!("10.{n}.0.0/16")).collect(),
        metadata: [("k".repeat(255), "ü".repeat(1920) + "v")].into(), // 4096 bytes
        request_id: "r".repeat(128),
        ..new_key("default", &[])
    }
}

type Change = fn(&mut CreateKeyRequest);

/// A time that is not past yet.
const FAR: Option<Timestamp> = Some(Timestamp {
    seconds: 4_000_000_000,
    nanos: 0,
});

/// What makes a request at every limit a wrong one, by the one field that is then named.
const TOO_MUCH: &[(&str, Change)] = &[
    ("tenant_id", |r| r.tenant_id.clear()),
    ("tenant_id", |r| r.tenant_id = "t".repeat(64)),
    ("tenant_id", |r| r.tenant_id = "-t".into()),
    ("tenant_id", |r| r.tenant_id = "Default".into()),
    ("owner_id", |r| r.owner_id.clear()),
    ("owner_id", |r| r.owner_id.push('a')),
    ("owner_id", |r| r.owner_id = "a\tb".into()),
    ("owner_id", |r| r.owner_id = "a\u{7f}".into()),
    ("label", |r| r.label.clear()),
    ("label", |r| r.label.push('a')),
    ("label", |r| r.label = "a\nb".into()),
    ("description", |r| r.description.push('a')),
    ("scopes", |r| r.scopes.clear()),
    ("scopes", |r| r.scopes.push("one:more".into())),
    ("scopes[0]", |r| r.scopes[0].push('s')),
    ("scopes[0]", |r| r.scopes[0].push_str(":s")),
    ("scopes[3]", |r| r.scopes[3].clear()),
    ("scopes[3]", |r| r.scopes[3] = "a b".into()),
    ("scopes[3]", |r| r.scopes[3] = "jobs*".into()),
    ("scopes[3]", |r| r.scopes[3] = "jobs::read".into()),
    ("audiences", |r| r.audiences.push("one more".into())),
    ("audiences[63]", |r| r.audiences[63].push('a')),
    ("audiences[63]", |r| r.audiences[63].clear()),
    ("allowed_cidrs", |r| r.allowed_cidrs.push("::/0".into())),
    ("allowed_cidrs[1]", |r| r.allowed_cidrs[1] = "::/129".into()),
    ("allowed_cidrs[1]", |r| r.allowed_cidrs[1] = "host".into()),
    ("metadata", |r| {
        drop(r.metadata.insert("a".into(), String::new()));
    }),
    ("metadata", |r| {
        r.metadata = [(String::new(), String::new())].into();
    }),
    ("expires_at", |r| r.expires_at = Some(Timestamp::default())),
    ("expires_at", |r| {
        r.expires_at = later(FAR, i64::MAX - 4_000_000_000);
    }),
    ("expires_at", |r| {
        r.expires_at = FAR.map(|at| Timestamp { nanos: -1, ..at });
    }),
    ("ttl", |r| r.ttl = span(0)),
    ("ttl", |r| r.ttl = span(-1)),
    ("ttl", |r| r.ttl = span(i64::MAX)),
    ("ttl", |r| (r.expires_at, r.ttl) = (FAR, span(1))),
    ("request_id", |r| r.request_id.push('r')),
    ("request_id", |r| r.request_id = "r\n".into()),
];

on_both_engines! {
    async fn a_plaintext_is_prefix_id_secret_and_checksum(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let (key, plaintext) = admin.issue("default", &["a"]).await;
            let (prefix, body) = plaintext.rsplit_once('_').unwrap();
            assert_eq!((prefix, body.len()), ("gk", 16 + 43 + 6), "{}", key.key_id);
            assert!(body.bytes().all(|byte| byte.is_ascii_alphanumeric()));
            assert_eq!(key.key_id, format!("key_{}", &body[..16]));
            assert_eq!(key.key_prefix, format!("gk_{}", &body[..4]));
            assert!(sealed(&plaintext[..plaintext.len() - 6]) == plaintext, "the checksum");
            assert!(seen.insert(body[..16].to_owned()) && seen.insert(body[16..59].to_owned()));
        }
    }

    async fn a_tenants_prefix_is_that_of_its_new_keys_and_old_keys_keep_theirs(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let longest = format!("a{}9", "_".repeat(22));
        let mut keys = Vec::new();
        for prefix in ["", "pgk_live", &longest, "z", ""] {
            admin.set_tenant(Tenant {
                tenant_id: "acme".to_owned(),
                key_prefix: prefix.to_owned(),
                ..Tenant::default()
            }).await;
            let (key, plaintext) = admin.issue("acme", &["a"]).await;
            let start = format!("{}_", if prefix.is_empty() { "gk" } else { prefix });
            assert!(plaintext.starts_with(&format!("{start}{}", &key.key_id[4..])));
            assert_eq!(plaintext.len(), start.len() + 16 + 43 + 6);
            assert!(sealed(&plaintext[..plaintext.len() - 6]) == plaintext, "the checksum");
            assert_eq!(key.key_prefix, format!("{start}{}", &key.key_id[4..8]));
            keys.push((key, plaintext));
        }
        for (key, plaintext) in keys {
            assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
            assert_eq!(get(&admin, &key.key_id).await.key_prefix, key.key_prefix);
        }
    }

    async fn a_new_key_is_as_asked_and_is_kept_so(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (maker, credential) = admin.issue("system", &["default:keys:*"]).await;
        let asked = CreateKeyRequest {
            owner_id: "svc/ü 1".to_owned(),
            label: " nightly <b>%".to_owned(),
            description: "two\nlines\t".to_owned(),
            audiences: texts(&["web", "https://a.example/x?y=z"]),
            allowed_cidrs: texts(&["10.0.0.0/8", "192.0.2.7", "2001:DB8::/32"]),
            metadata: [("plan".to_owned(), "\"gold\"\\".to_owned())].into(),
            ..new_key("default", &["jobs:read", "orders:*", "*"])
        };
        let (key, _) = admin.with(&credential).create(asked.clone()).await;
        assert_eq!(key, Key {
            key_id: key.key_id.clone(),
            tenant_id: "default".to_owned(),
            owner_id: asked.owner_id,
            label: asked.label,
            description: asked.description,
            key_prefix: key.key_prefix.clone(),
            scopes: asked.scopes,
            audiences: asked.audiences,
            allowed_cidrs: texts(&["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]),
            metadata: asked.metadata,
            suspended: Some(false),
            state: KeyState::Active.into(),
            created_at: key.created_at,
            created_by: maker.key_id,
            hash_version: key.hash_version.clone(),
            revision: key.revision,
            ..Key::default()
        });
        assert!(key.revision > maker.revision && !key.hash_version.is_empty());
        assert!(key.created_at.unwrap().seconds >= maker.created_at.unwrap().seconds);
        assert_eq!(maker.created_by, "admin");
        assert_eq!(get(&admin, &key.key_id).await, key);
    }

    async fn a_key_expires_as_asked_or_never(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (forever, _) = admin.issue("default", &["a"]).await;
        assert_eq!(forever.expires_at, None);

        let ttl = Some(Duration { seconds: 90, nanos: 500_000_000 });
        let (key, _) = admin.create(CreateKeyRequest { ttl, ..new_key("default", &["a"]) }).await;
        let nanos = |at: Option<Timestamp>| at.map(|at| at.seconds * 1_000_000_000 + i64::from(at.nanos));
        assert_eq!(nanos(key.expires_at).unwrap() - nanos(key.created_at).unwrap(), 90_500_000_000);

        let expires_at = later(forever.created_at, 3600);
        let (key, _) = admin.create(CreateKeyRequest { expires_at, ..new_key("default", &["a"]) }).await;
        assert_eq!(key.expires_at, expires_at);
        assert_eq!(get(&admin, &key.key_id).await.expires_at, expires_at);

        let ttl = span(315_576_000_000); // the longest that a Duration can hold
        let (key, text) = admin.create(CreateKeyRequest { ttl, ..new_key("default", &["a"]) }).await;
        assert!(key.expires_at.unwrap().seconds <= 253_402_300_799, "a Timestamp ends with the year 9999");
        assert_eq!(admin.reason(&text).await, Reason::Allowed);

        let past = CreateKeyRequest { expires_at: forever.created_at, ..new_key("default", &["a"]) };
        assert_eq!(bad_fields(&admin.try_create(past).await.unwrap_err()), ["expires_at"]);
    }

    async fn a_repeated_request_id_is_told_the_first_calls_key(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        admin.set_tenant(Tenant { tenant_id: "acme".to_owned(), ..Tenant::default() }).await;
        let asked = CreateKeyRequest { request_id: "r 1".to_owned(), ..new_key("default", &["a"]) };
        let (first, _) = admin.create(asked.clone()).await;
        admin.revoke(&first, "").await;
        let other = CreateKeyRequest { owner_id: "bob".to_owned(), label: "b".to_owned(), ..asked.clone() };
        for again in [&asked, &other] {
            let error = refused(admin.try_create(again.clone()).await, Code::AlreadyExists, "REQUEST_REPEATED");
            assert_eq!(error.get_details_error_info().unwrap().metadata["key_id"], first.key_id);
            let resource = error.get_details_resource_info().expect("ResourceInfo");
            assert_eq!((&*resource.resource_type, resource.resource_name), ("gatekey.v1.Key", first.key_id.clone()));
        }
        // It is the tenant's own, and only what succeeded counts.
        admin.create(CreateKeyRequest { tenant_id: "acme".to_owned(), ..asked.clone() }).await;
        let fresh = CreateKeyRequest { request_id: "r 2".to_owned(), ..asked };
        admin.try_create(CreateKeyRequest { label: String::new(), ..fresh.clone() }).await.unwrap_err();
        admin.create(fresh).await;
    }

    async fn twenty_calls_at_once_with_one_request_id_make_one_key(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let asked = CreateKeyRequest { request_id: "once".to_owned(), ..new_key("default", &["a"]) };
        let mut calls = JoinSet::new();
        for _ in 0..20 {
            let (admin, asked) = (admin.clone(), asked.clone());
            calls.spawn(async move { admin.try_create(asked).await });
        }
        let (made, refusals): (Vec<_>, Vec<_>) = calls.join_all().await.into_iter().partition(Result::is_ok);
        let [Ok(made)] = &made[..] else { panic!("{} calls made a key", made.len()) };
        let key_id = &made.key.as_ref().unwrap().key_id;
        for deny_reason in refusals {
            let error = refused(deny_reason, Code::AlreadyExists, "REQUEST_REPEATED");
            assert_eq!(&error.get_details_error_info().unwrap().metadata["key_id"], key_id);
        }
        let all = ListKeysRequest { tenant_id: "default".to_owned(), ..ListKeysRequest::default() };
        let keys = admin.keys.clone().list_keys(all).await.unwrap().into_inner().keys;
        assert_eq!(keys.iter().map(|key| &key.key_id).collect::<Vec<_>>(), [key_id]);
    }

    async fn everything_may_be_as_large_as_its_limit_and_nothing_larger(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let asked = at_every_limit();
        assert_eq!(asked.metadata.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>(), 4096);
        assert_eq!((asked.owner_id.len(), asked.scopes.len()), (255, 256));
        for (field, change) in TOO_MUCH {
            let mut wrong = asked.clone();
            change(&mut wrong);
            let error = admin.try_create(wrong).await.unwrap_err();
            assert_eq!(bad_fields(&error), [*field], "{error:?}");
        }
        let (key, text) = admin.create(asked.clone()).await;
        let kept = get(&admin, &key.key_id).await;
        assert_eq!((kept.owner_id, kept.label, kept.description), (asked.owner_id, asked.label, asked.description));
        assert_eq!((kept.scopes, kept.audiences), (asked.scopes, asked.audiences.clone()));
        assert_eq!((kept.allowed_cidrs, kept.metadata), (asked.allowed_cidrs, asked.metadata));
        assert_eq!(admin.reason(&text).await, Reason::AudienceNotAllowed);
    }

    async fn all_that_is_wrong_with_a_request_is_told_at_once(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let error = admin.try_create(CreateKeyRequest {
            tenant_id: "Not a tenant".to_owned(),
            description: "d".repeat(1025),
            scopes: texts(&["fine", "not fine", "a:", "fine:too"]),
            audiences: texts(&["", "web"]),
            allowed_cidrs: texts(&["::/129"]),
            metadata: [("a".to_owned(), "v".repeat(4096))].into(),
            expires_at: Some(Timestamp::default()),
            request_id: "r".repeat(129),
            ..CreateKeyRequest::default()
        }).await;
        let error = refused(error, Code::InvalidArgument, "INVALID_FIELDS");
        let wrong = [
            "allowed_cidrs[0]", "audiences[0]", "description", "expires_at", "label", "metadata", "owner_id",
            "request_id", "scopes[1]", "scopes[2]", "tenant_id",
        ];
        assert_eq!(sorted(bad_fields(&error)), wrong);
        let told = error.get_details_bad_request().unwrap().field_violations;
        assert!(told.iter().all(|violation| !violation.description.is_empty()));
    }

    async fn a_field_that_is_wrong_twice_is_told_once(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let free = new_key("default", &["a"]);
        let metadata = [(String::new(), "too much".repeat(1000))].into();
        for (field, wrong) in [
            ("metadata", CreateKeyRequest { metadata, ..free.clone() }),
            ("ttl", CreateKeyRequest { expires_at: FAR, ttl: span(0), ..free.clone() }),
        ] {
            assert_eq!(bad_fields(&admin.try_create(wrong).await.unwrap_err()), [field]);
        }
        let (key, _) = admin.create(free).await;
        let error = update(&admin, key.clone(), &["state", "revision"]).await.unwrap_err();
        assert_eq!(bad_fields(&error), ["update_mask"]);
        let error = update(&admin, Key { label: String::new(), ..key }, &["label", "label"]).await.unwrap_err();
        assert_eq!(bad_fields(&error), ["key.label"]);
    }

    async fn a_key_of_a_tenant_that_is_not_there_is_not_made(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let nowhere = "t".repeat(63);
        refused(admin.try_create(new_key(&nowhere, &["a"])).await, Code::NotFound, "TENANT_NOT_FOUND");
    }
}
