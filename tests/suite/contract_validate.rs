//! Validate, as the contract has it: each reason, the order of the checks, and what is told to whom.
#![allow(
    clippy::unwrap_used,
    reason = "in a test: clippy takes only functions with `#[test]` for one"
)]

use std::time::{Duration, Instant, SystemTime};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use gatekey::api::proto::{
    CreateKeyRequest, Key, Owner, Reason, Tenant, ValidateRequest, ValidateResponse,
};
use tokio::time::sleep;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    contract_keys::{refused, sealed, sorted, span, start, update},
    contract_rotation::{rotate, rotation},
    support::{
        Client,
        client::{ask, ask_header, bad_fields, new_key, texts},
        on_both_engines,
    },
};

/// How long to wait for a key to expire.
const DEADLINE: Duration = Duration::from_secs(20);

/// Asserts a reason and all that must go with it: the status, and what may be told.
#[track_caller]
fn assert_decision(answer: &ValidateResponse, reason: Reason) {
    let http_status = match reason {
        Reason::Unspecified => unreachable!("no answer leaves the reason out"),
        Reason::Allowed => 200,
        Reason::CredentialMissing
        | Reason::Malformed
        | Reason::NotFound
        | Reason::Revoked
        | Reason::Expired
        | Reason::Suspended => 401,
        Reason::TenantSuspended
        | Reason::OwnerSuspended
        | Reason::OwnerNotPermitted
        | Reason::AudienceNotAllowed
        | Reason::IpNotAllowed
        | Reason::InsufficientScope => 403,
    };
    assert_eq!(
        (answer.reason(), answer.http_status),
        (reason, http_status),
        "{answer:?}"
    );
    assert_eq!(answer.allowed, reason == Reason::Allowed, "{answer:?}");
    assert!(!answer.message.is_empty(), "{answer:?}");
    let lacking = reason == Reason::InsufficientScope;
    assert_eq!(!answer.missing_scopes.is_empty(), lacking, "{answer:?}");
    if matches!(
        reason,
        Reason::CredentialMissing | Reason::Malformed | Reason::NotFound
    ) {
        let told = ValidateResponse {
            reason: 0,
            message: String::new(),
            http_status: 0,
            ..answer.clone()
        };
        assert_eq!(told, ValidateResponse::default(), "nothing is proven");
    } else {
        let told = [&answer.key_id, &answer.tenant_id, &answer.owner_id];
        assert!(told.iter().all(|text| !text.is_empty()), "{answer:?}");
    }
}

/// Asks, and asserts the decision.
async fn decided(client: &Client, question: ValidateRequest, reason: Reason) -> ValidateResponse {
    let answer = client.validate(question).await;
    assert_decision(&answer, reason);
    answer
}

/// Asks until the key is expired.
pub async fn until_expired(client: &Client, plaintext: &str) {
    let started = Instant::now();
    while client.reason(plaintext).await != Reason::Expired {
        assert!(started.elapsed() < DEADLINE, "it does not expire");
        sleep(Duration::from_millis(20)).await;
    }
}

fn requiring(plaintext: &str, scopes: &[&str]) -> ValidateRequest {
    ValidateRequest {
        required_scopes: texts(scopes),
        ..ask(plaintext)
    }
}

fn basic(username: &str, plaintext: &str) -> ValidateRequest {
    let pair = BASE64_STANDARD.encode(format!("{username}:{plaintext}"));
    ask_header(&format!("Basic {pair}"))
}

/// The record of the owner that keys have here unless they say otherwise.
fn owner(tenant: &str, scopes: &[&str]) -> Owner {
    Owner {
        tenant_id: tenant.to_owned(),
        owner_id: "alice".to_owned(),
        scopes: texts(scopes),
        ..Owner::default()
    }
}

fn named(tenant: &str) -> Tenant {
    Tenant {
        tenant_id: tenant.to_owned(),
        ..Tenant::default()
    }
}

/// The key with another character in its secret, and the right checksum.
fn with_wrong_secret(plaintext: &str) -> String {
    let (summed, _) = plaintext.split_at(plaintext.len() - 6);
    let (rest, last) = summed.split_at(summed.len() - 1);
    sealed(&format!("{rest}{}", if last == "a" { "b" } else { "a" }))
}

on_both_engines! {
    async fn a_good_key_is_allowed_and_all_about_it_is_told(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (key, plaintext) = admin.create(CreateKeyRequest {
            metadata: [("plan".to_owned(), "gold\n".to_owned()), ("ü".to_owned(), String::new())].into(),
            ttl: span(3600),
            ..new_key("default", &["jobs:*", "edit_orders"])
        }).await;

        let answer = decided(&admin, ask(&plaintext), Reason::Allowed).await;
        let told = ValidateResponse {
            key_id: key.key_id,
            tenant_id: "default".to_owned(),
            owner_id: "alice".to_owned(),
            scopes: texts(&["jobs:*", "edit_orders"]),
            metadata: key.metadata,
            expires_at: key.expires_at,
            ..answer.clone()
        };
        assert_eq!(answer, told);
        assert_eq!(answer.metadata["plan"], "gold\n");
        assert!(answer.expires_at.is_some());
    }

    async fn what_is_not_shaped_like_a_key_is_malformed(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (_, key) = admin.issue("default", &["a"]).await;
        let typo = key.replace(&key[5..6], if &key[5..6] == "x" { "y" } else { "x" });
        let body = &key[3..];
        for text in [
            "gk", "gk_", "_", &typo, &key[..key.len() - 1], &format!("{key}0"), &format!("{key} {key}"),
            &format!("Bearer {key}"), body,
            &sealed(&format!("GK_{}", &body[..59])), &sealed(&format!("_{}", &body[..59])),
            &sealed(&format!("gk__{}", &body[..59])), &sealed(&format!("gk_{}", &body[..58])),
            &sealed(&format!("{}_{}", "a".repeat(25), &body[..59])), &"x".repeat(5000), "ключ", "gk\0",
        ] {
            decided(&admin, ask(text), Reason::Malformed).await;
        }
        for value in [
            &key, "Bearer x", &format!("Digest {key}"), &format!("Bearer{key}"),
            "Basic !!!!", &format!("Basic {key}"), &format!("Basic {}", BASE64_STANDARD.encode(&key)),
            &format!("Bearer {typo}"),
        ] {
            decided(&admin, ask_header(value), Reason::Malformed).await;
        }
        // It is told before anything else, such as another tenant.
        let elsewhere = ValidateRequest { tenant_id: "nowhere".to_owned(), ..ask(&typo) };
        decided(&admin, elsewhere, Reason::Malformed).await;
    }

    async fn no_credential_and_an_empty_one_are_missing(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        for text in ["", " ", "\n"] {
            decided(&admin, ask(text), Reason::CredentialMissing).await;
        }
        let user = format!("Basic {}", BASE64_STANDARD.encode("user:"));
        for value in ["", " ", "Bearer", "Bearer ", "basic", &user] {
            decided(&admin, ask_header(value), Reason::CredentialMissing).await;
        }
        decided(&admin, ValidateRequest::default(), Reason::CredentialMissing).await;
        let elsewhere = ValidateRequest { tenant_id: "nowhere".to_owned(), ..ValidateRequest::default() };
        decided(&admin, elsewhere, Reason::CredentialMissing).await;
    }

    async fn white_space_around_a_key_is_forgiven(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        admin.set_tenant(Tenant { basic_usernames: texts(&["api"]), ..named("default") }).await;
        let (_, key) = admin.issue("default", &["a"]).await;
        for question in [
            ask(&format!(" \t{key}\r\n")),
            ask_header(&format!("Bearer {key}")),
            ask_header(&format!("  bearer   {key} \n")),
            ask_header(&format!("BEARER \t{key}")),
            basic("api", &format!(" {key}\n")),
        ] {
            decided(&admin, question, Reason::Allowed).await;
        }
    }

    async fn an_unknown_id_a_wrong_secret_and_another_tenants_key_have_one_answer(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        admin.set_tenant(named("acme")).await;
        let (revoked, dead) = admin.issue("default", &["a"]).await;
        let (_, key) = admin.issue("default", &["a"]).await;
        admin.revoke(&revoked, "leaked").await;

        let of = |tenant: &str, key: &str| ValidateRequest { tenant_id: tenant.to_owned(), ..ask(key) };
        let unknown = sealed(&format!("gk_{}{}", "0".repeat(16), &key[19..62]));
        let first = decided(&admin, ask(&unknown), Reason::NotFound).await;
        for question in [
            ask(&with_wrong_secret(&key)),
            ask(&with_wrong_secret(&dead)),
            ask(&sealed(&format!("other_{}", &key[3..62]))),
            of("acme", &key),
            of("nowhere", &key),
            of("acme", &dead),
            basic("api", &key),
        ] {
            assert_eq!(decided(&admin, question, Reason::NotFound).await, first);
        }
        decided(&admin, of("default", &key), Reason::Allowed).await;
        decided(&admin, of("default", &dead), Reason::Revoked).await;
    }

    async fn basic_takes_the_user_names_that_the_tenant_lists_now(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let acme = |names: &[&str]| Tenant { basic_usernames: texts(names), ..named("acme") };
        admin.set_tenant(acme(&["api", "bot ü"])).await;
        let (_, key) = admin.issue("acme", &["a"]).await;
        let (_, elsewhere) = admin.issue("default", &["a"]).await;

        for name in ["api", "bot ü"] {
            decided(&admin, basic(name, &key), Reason::Allowed).await;
            decided(&admin, basic(name, &elsewhere), Reason::NotFound).await;
        }
        for name in ["", "API", "api ", "alice", "*"] {
            decided(&admin, basic(name, &key), Reason::NotFound).await;
        }
        let bare = BASE64_STANDARD.encode(format!("api:{key}"));
        decided(&admin, ask_header(&format!("bASIC {}", bare.trim_end_matches('='))), Reason::Allowed).await;

        admin.set_tenant(acme(&["bot ü"])).await;
        decided(&admin, basic("api", &key), Reason::NotFound).await;
        decided(&admin, basic("bot ü", &key), Reason::Allowed).await;
    }

    async fn of_all_causes_the_first_in_the_contracts_order_is_told(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        admin.set_tenant(named("acme")).await;
        let limited = CreateKeyRequest {
            audiences: texts(&["web"]),
            allowed_cidrs: texts(&["10.0.0.0/8"]),
            ..new_key("acme", &["jobs:read"])
        };
        let short = CreateKeyRequest { ttl: span(1), ..limited.clone() };
        let (revoked, revoked_text) = admin.create(short.clone()).await;
        let (expired, expired_text) = admin.create(short).await;
        let (key, text) = admin.create(limited).await;
        for key in [&revoked, &expired, &key] {
            update(&admin, Key { suspended: Some(true), ..key.clone() }, &["suspended"]).await.unwrap();
        }
        let rules = Tenant { required_owner_scope: "keys:use".to_owned(), ..named("acme") };
        admin.set_tenant(Tenant { suspended: Some(true), ..rules.clone() }).await;
        let own = |suspended, scopes: &[&str]| Owner {
            suspended: Some(suspended),
            audiences: texts(&["web", "app"]),
            ..owner("acme", scopes)
        };
        admin.set_owner(own(true, &["jobs:*"])).await;
        until_expired(&admin, &expired_text).await;
        until_expired(&admin, &revoked_text).await;
        admin.revoke(&revoked, "leaked").await;

        // Every cause is there. One after the other is taken away.
        let bad = |text: &str| ValidateRequest {
            client_ip: "192.0.2.1".to_owned(),
            ..requiring(text, &["jobs:write"])
        };
        decided(&admin, bad(&format!("{text}0")), Reason::Malformed).await;
        let elsewhere = ValidateRequest { tenant_id: "default".to_owned(), ..bad(&revoked_text) };
        decided(&admin, elsewhere, Reason::NotFound).await;
        decided(&admin, bad(&revoked_text), Reason::Revoked).await;
        decided(&admin, bad(&expired_text), Reason::Expired).await;
        decided(&admin, bad(&text), Reason::Suspended).await;
        update(&admin, Key { suspended: Some(false), ..key.clone() }, &["suspended"]).await.unwrap();
        decided(&admin, bad(&text), Reason::TenantSuspended).await;
        admin.set_tenant(rules).await;
        decided(&admin, bad(&text), Reason::OwnerSuspended).await;
        admin.set_owner(own(false, &["jobs:*"])).await;
        decided(&admin, bad(&text), Reason::OwnerNotPermitted).await;
        admin.set_owner(own(false, &["jobs:*", "keys:use"])).await;
        decided(&admin, bad(&text), Reason::AudienceNotAllowed).await;
        let placed = ValidateRequest { audience: "web".to_owned(), ..bad(&text) };
        decided(&admin, placed.clone(), Reason::IpNotAllowed).await;
        let near = ValidateRequest { client_ip: "10.1.2.3".to_owned(), ..placed };
        let answer = decided(&admin, near.clone(), Reason::InsufficientScope).await;
        assert_eq!(answer.missing_scopes, ["jobs:write"]);
        let entitled = ValidateRequest { required_scopes: texts(&["jobs:read"]), ..near };
        decided(&admin, entitled, Reason::Allowed).await;
    }

    async fn at_the_instant_of_expires_at_a_key_is_expired_and_not_before(setup: Setup) {
        #[expect(clippy::disallowed_methods, reason = "the server's clock is this machine's")]
        let now = || SystemTime::now();
        let (_server, admin) = start(&setup).await;
        let (key, text) = admin.create(CreateKeyRequest { ttl: span(1), ..new_key("default", &["a"]) }).await;
        let end = SystemTime::try_from(key.expires_at.expect("it expires")).unwrap();
        let (mut allowed, started) = (0, Instant::now());
        loop {
            let before = now();
            let answer = admin.validate(ask(&text)).await;
            assert_eq!(answer.expires_at, key.expires_at);
            if answer.reason() == Reason::Expired {
                assert!(now() >= end, "expired too early");
                assert_decision(&answer, Reason::Expired);
                break;
            }
            assert!(before < end, "expired too late");
            assert_decision(&answer, Reason::Allowed);
            allowed += 1;
            assert!(started.elapsed() < DEADLINE, "it does not expire");
        }
        assert!(allowed > 0, "it was good before");
    }

    async fn wildcards_grant_what_the_contract_says(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (key, text) = admin.issue("default", &["a"]).await;
        for (scope, granted, refused) in [
            ("jobs:*", &["jobs:read", "jobs:runs:read"][..], &["jobs", "job:read", "jobs2:read"][..]),
            ("*:read", &["jobs:read", "x:read"], &["jobs:runs:read", "read", "jobs:write"]),
            ("*", &["a", "jobs:read", "a:b:c:d:e:f:g:h"], &[]),
            ("a:*:c", &["a:b:c"], &["a:c", "a:b:b:c", "a:b:c:d"]),
            ("*:*", &["a:b", "a:b:c"], &["a"]),
            ("edit_orders", &["edit_orders"], &["edit_orders:x", "edit", "Edit_orders"]),
            ("a.b-c/d:E9", &["a.b-c/d:E9"], &["a.b-c/d:e9", "axb-c/d:E9"]),
        ] {
            update(&admin, Key { scopes: texts(&[scope]), ..key.clone() }, &["scopes"]).await.unwrap();
            decided(&admin, requiring(&text, granted), Reason::Allowed).await;
            let all: Vec<_> = granted.iter().chain(refused).copied().collect();
            if !refused.is_empty() {
                let answer = decided(&admin, requiring(&text, &all), Reason::InsufficientScope).await;
                assert_eq!(answer.missing_scopes, refused, "of {scope}");
            }
        }
    }

    async fn of_any_scopes_one_in_force_is_enough(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (_, text) = admin.issue("default", &["jobs:*", "edit"]).await;
        for (required, any, missing) in [
            (&[][..], &["jobs:read", "other"][..], &[][..]),
            (&[], &["other", "edit"], &[]),
            (&["edit"], &["jobs:read"], &[]),
            (&[], &["other", "x:read"], &["other", "x:read"]),
            (&["edit"], &["other"], &["other"]),
            (&["other"], &["edit"], &["other"]),
            (&["other"], &["x:read"], &["other", "x:read"]),
        ] {
            let question = ValidateRequest { any_scopes: texts(any), ..requiring(&text, required) };
            let reason = if missing.is_empty() { Reason::Allowed } else { Reason::InsufficientScope };
            assert_eq!(decided(&admin, question, reason).await.missing_scopes, missing);
        }
    }

    async fn a_suspended_tenants_keys_are_refused_and_it_gets_no_new_ones(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        admin.set_tenant(named("acme")).await;
        let (key, text) = admin.issue("acme", &["a"]).await;
        admin.set_tenant(Tenant { suspended: Some(true), ..named("acme") }).await;
        decided(&admin, ask(&text), Reason::TenantSuspended).await;
        let answer = admin.try_create(new_key("acme", &["a"])).await;
        refused(answer, Code::FailedPrecondition, "TENANT_SUSPENDED");
        let answer = rotate(&admin, rotation(&key)).await;
        refused(answer, Code::FailedPrecondition, "TENANT_SUSPENDED");
        admin.set_tenant(named("acme")).await;
        decided(&admin, ask(&text), Reason::Allowed).await;
    }

    async fn the_scopes_in_force_are_those_of_the_key_and_of_its_owner_today(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (_, text) = admin.issue("default", &["jobs:*", "orders:read", "admin"]).await;
        let in_force = |client: Client, text: String| async move {
            sorted(decided(&client, ask(&text), Reason::Allowed).await.scopes)
        };
        assert_eq!(in_force(admin.clone(), text.clone()).await, ["admin", "jobs:*", "orders:read"]);

        admin.set_owner(owner("default", &["*:read", "jobs:runs:write", "other"])).await;
        assert_eq!(in_force(admin.clone(), text.clone()).await, ["jobs:read", "jobs:runs:write", "orders:read"]);
        let wanted = ["jobs:read", "jobs:write", "jobs:runs:write", "admin", "other", "x:read"];
        let answer = decided(&admin, requiring(&text, &wanted), Reason::InsufficientScope).await;
        assert_eq!(answer.missing_scopes, ["jobs:write", "admin", "other", "x:read"]);
        assert_eq!(sorted(answer.scopes), ["jobs:read", "jobs:runs:write", "orders:read"]);

        // No scope never means every scope.
        admin.set_owner(owner("default", &[])).await;
        assert!(in_force(admin.clone(), text.clone()).await.is_empty());
        decided(&admin, requiring(&text, &["jobs:read"]), Reason::InsufficientScope).await;

        admin.set_owner(owner("default", &["*"])).await;
        decided(&admin, requiring(&text, &["jobs:read", "admin"]), Reason::Allowed).await;
    }

    async fn a_tenant_may_permit_keys_only_to_owners_with_a_record(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        admin.set_tenant(named("acme")).await;
        let (_, text) = admin.issue("acme", &["a"]).await;
        decided(&admin, ask(&text), Reason::Allowed).await;
        admin.set_tenant(Tenant { require_owner: true, ..named("acme") }).await;
        decided(&admin, ask(&text), Reason::OwnerNotPermitted).await;
        admin.set_owner(owner("acme", &["a"])).await;
        decided(&admin, ask(&text), Reason::Allowed).await;

        for (required, reason) in [("a", Reason::Allowed), ("b", Reason::OwnerNotPermitted)] {
            let rules = Tenant { required_owner_scope: required.to_owned(), ..named("acme") };
            admin.set_tenant(rules).await;
            decided(&admin, ask(&text), reason).await;
        }
        admin.set_owner(owner("acme", &["*"])).await;
        decided(&admin, ask(&text), Reason::Allowed).await;
    }

    async fn audiences_are_those_of_the_key_and_of_its_owner(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (key, text) = admin.issue("default", &["a"]).await;
        let no = Reason::AudienceNotAllowed;
        for (of_key, of_owner, asked, reason) in [
            (&[][..], &[][..], "", Reason::Allowed),
            (&[], &[], "anywhere", Reason::Allowed),
            (&["web", "app"], &[], "app", Reason::Allowed),
            (&["web", "app"], &[], "", no),
            (&["web", "app"], &[], "we", no),
            (&["web", "app"], &[], "Web", no),
            (&[], &["web"], "web", Reason::Allowed),
            (&[], &["web"], "", no),
            (&[], &["web"], "app", no),
            (&["web", "app"], &["app", "cli"], "app", Reason::Allowed),
            (&["web", "app"], &["app", "cli"], "web", no),
            (&["web", "app"], &["app", "cli"], "cli", no),
        ] {
            update(&admin, Key { audiences: texts(of_key), ..key.clone() }, &["audiences"]).await.unwrap();
            admin.set_owner(Owner { audiences: texts(of_owner), ..owner("default", &["*"]) }).await;
            decided(&admin, ValidateRequest { audience: asked.to_owned(), ..ask(&text) }, reason).await;
        }
    }

    async fn a_key_with_networks_is_good_in_them_alone(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let nets = ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "::ffff:198.51.100.0/120"];
        let (key, text) = admin.create(CreateKeyRequest {
            allowed_cidrs: texts(&nets),
            ..new_key("default", &["a"])
        }).await;
        let from = |ip: &str| ValidateRequest { client_ip: ip.to_owned(), ..ask(&text) };
        for ip in [
            "10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3", "192.0.2.7", "2001:db8::1",
            "2001:0DB8:ffff:ffff:ffff:ffff:ffff:ffff", "198.51.100.9", "::ffff:198.51.100.9",
            "10.1.2.3:5678", "[2001:db8::1]:80", "[2001:db8::1]", "[::ffff:10.1.2.3]:80",
        ] {
            decided(&admin, from(ip), Reason::Allowed).await;
        }
        for ip in [
            "", "9.255.255.255", "11.0.0.0", "192.0.2.8", "::ffff:192.0.2.8", "2001:db9::", "198.51.101.0", "::1",
        ] {
            decided(&admin, from(ip), Reason::IpNotAllowed).await;
        }
        update(&admin, Key { allowed_cidrs: Vec::new(), ..key }, &["allowed_cidrs"]).await.unwrap();
        for ip in ["", "9.255.255.255", "::1"] {
            decided(&admin, from(ip), Reason::Allowed).await;
        }
    }

    async fn a_question_that_makes_no_sense_is_an_error_that_names_every_field(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (_, text) = admin.issue("default", &["*"]).await;
        let error = admin.try_validate(ValidateRequest {
            tenant_id: "Not a tenant".to_owned(),
            required_scopes: texts(&["fine", "jobs:*", "a b", ""]),
            any_scopes: texts(&["fine", "*"]),
            audience: "a\nb".to_owned(),
            client_ip: "localhost".to_owned(),
            ..ask(&text)
        }).await.unwrap_err();
        let wrong = [
            "any_scopes[1]", "audience", "client_ip", "required_scopes[1]", "required_scopes[2]", "required_scopes[3]", "tenant_id",
        ];
        assert_eq!(sorted(bad_fields(&error)), wrong);
        assert!(!format!("{error:?}").contains(&text));
        let list = ValidateRequest { client_ip: "10.1.2.3, 192.0.2.1".to_owned(), ..ask(&text) };
        let error = admin.try_validate(list).await.unwrap_err();
        assert_eq!(bad_fields(&error), ["client_ip"]);
        let details = error.get_details_bad_request().expect("the field is named");
        assert!(details.field_violations[0].description.contains("trusted proxy"), "{details:?}");

        let many: Vec<_> = (0..257).map(|n| format!("s{n}")).collect();
        let asking = |count: usize| ValidateRequest { required_scopes: many[..count].to_vec(), ..ask(&text) };
        decided(&admin, asking(256), Reason::Allowed).await;
        assert_eq!(bad_fields(&admin.try_validate(asking(257)).await.unwrap_err()), ["required_scopes"]);
    }
}
