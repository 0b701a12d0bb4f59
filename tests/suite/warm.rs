//! The warm start: what is in memory before a server says that it is ready.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use gatekey::api::{
    READINESS,
    proto::{
        CreateKeyRequest, Key, Owner, Reason, Tenant, UpdateKeyRequest, ValidateRequest,
        ValidateResponse,
    },
};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    inside::Inside,
    support::{
        Client, Database, Gatekey, Setup,
        client::{ask, ask_header, new_key, texts},
        on_both_engines,
    },
};

const READY: &str = r#""message":"ready""#;
/// From here on every look into the store for a key fails.
const LOSE_KEYS: &str = "ALTER TABLE keys RENAME TO lost";

/// Keys of every kind that can be allowed, as they are asked about.
async fn all_kinds(admin: &Client) -> Vec<ValidateRequest> {
    admin
        .set_tenant(Tenant {
            tenant_id: "acme".to_owned(),
            basic_usernames: texts(&["api"]),
            required_owner_scope: "keys".to_owned(),
            ..Tenant::default()
        })
        .await;
    admin
        .set_owner(Owner {
            tenant_id: "acme".to_owned(),
            owner_id: "alice".to_owned(),
            scopes: texts(&["jobs:*", "keys"]),
            audiences: texts(&["web", "api"]),
            ..Owner::default()
        })
        .await;
    let (_, plain) = admin.issue("default", &["jobs:read", "reports:*"]).await;
    let limited = CreateKeyRequest {
        owner_id: "böb \"the\\owner\"".to_owned(),
        audiences: texts(&["web"]),
        allowed_cidrs: texts(&["192.0.2.0/24", "2001:db8::/32"]),
        metadata: [("plan".to_owned(), "gold\n\"é\"".to_owned())].into(),
        ttl: Some(prost_types::Duration {
            seconds: 3600,
            nanos: 0,
        }),
        ..new_key("default", &["jobs:read"])
    };
    let (_, limited) = admin.create(limited).await;
    let (_, owned) = admin.issue("acme", &["*:read"]).await;
    let basic = BASE64_STANDARD.encode(format!("api:{owned}"));
    let at_web = |question, ip: &str| ValidateRequest {
        audience: "web".to_owned(),
        client_ip: ip.to_owned(),
        required_scopes: texts(&["jobs:read"]),
        ..question
    };
    vec![
        at_web(ask(&plain), ""),
        at_web(ask(&limited), "192.0.2.7"),
        at_web(ask(&limited), "198.51.100.1"),
        at_web(ask(&owned), ""),
        at_web(ask_header(&format!("Basic {basic}")), ""),
    ]
}

async fn answers(admin: &Client, asked: &[ValidateRequest]) -> Vec<ValidateResponse> {
    let mut answers = Vec::new();
    for question in asked {
        answers.push(admin.validate(question.clone()).await);
    }
    answers
}

async fn suspend(admin: &Client, key: Key) {
    let request = UpdateKeyRequest {
        key: Some(Key {
            suspended: Some(true),
            ..key
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: texts(&["suspended"]),
        }),
    };
    let answer = admin.keys.clone().update_key(request).await;
    answer.expect("the key is suspended");
}

/// Before a key of it is used, so that the answer is that of the warm start.
async fn a_tenant_stays_suspended(setup: Setup) {
    let server = setup.start().await;
    let admin = server.admin().await;
    let mut tenant = Tenant {
        tenant_id: "acme".to_owned(),
        ..Tenant::default()
    };
    admin.set_tenant(tenant.clone()).await;
    let (_, plaintext) = admin.issue("acme", &["jobs:read"]).await;
    tenant.suspended = Some(true);
    admin.set_tenant(tenant).await;
    let server = server.stop().await.start().await;
    server.wait_for_log(READY).await;
    let reason = server.admin().await.reason(&plaintext).await;
    assert_eq!(reason, Reason::TenantSuspended);
}

on_both_engines! {
    async fn a_suspended_tenant_is_suspended_after_a_warm_start(setup: Setup) {
        a_tenant_stays_suspended(setup).await;
    }

    async fn keys_that_can_be_allowed_answer_alike_without_the_store_once_it_is_ready(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (revoked, revoked_plaintext) = admin.issue("default", &["jobs:read"]).await;
        admin.revoke(&revoked, "lost").await;
        let (suspended, suspended_plaintext) = admin.issue("default", &["jobs:read"]).await;
        suspend(&admin, suspended).await;
        let asked = all_kinds(&admin).await;
        let before = answers(&admin, &asked).await;
        let reasons: Vec<_> = before.iter().map(ValidateResponse::reason).collect();
        let [good, elsewhere] = [Reason::Allowed, Reason::IpNotAllowed];
        assert_eq!(reasons, [good, good, elsewhere, good, good]);

        let server = server.stop().await.start().await;
        server.wait_for_log(READY).await;
        assert!(server.logs().contains(r#""keys":3"#), "{}", server.logs());
        Inside::of(&setup).await.run(LOSE_KEYS).await;
        let admin = server.admin().await;
        assert_eq!(answers(&admin, &asked).await, before);
        for barred in [revoked_plaintext, suspended_plaintext] {
            let answer = admin.try_validate(ask(&barred)).await;
            let error = answer.expect_err("it was not read before it was asked about");
            assert_eq!(error.code(), Code::Unavailable);
        }
    }

    async fn as_many_as_asked_for_are_in_memory_the_newest_first(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let mut plaintexts = Vec::new();
        for _ in 0..3 {
            plaintexts.push(admin.issue("default", &["jobs:read"]).await.1);
        }
        server.stop().await;
        let mut inside = Inside::of(&setup).await;
        for (warm_keys, warm) in [("0", 0), ("2", 2), ("100", 3)] {
            let server = setup.clone().env("GATEKEY_WARM_KEYS", warm_keys).start().await;
            server.wait_for_log(READY).await;
            inside.run(LOSE_KEYS).await;
            let admin = server.admin().await;
            for (age, plaintext) in plaintexts.iter().rev().enumerate() {
                let answer = admin.try_validate(ask(plaintext)).await;
                assert_eq!(answer.is_ok(), age < warm, "{warm_keys}: {answer:?}");
            }
            server.stop().await;
            inside.run("ALTER TABLE lost RENAME TO keys").await;
        }
    }

    async fn a_key_that_cannot_be_read_keeps_no_other_from_memory(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (_, good) = admin.issue("default", &["jobs:read"]).await;
        admin.issue("default", &["broken"]).await;
        let stopped = server.stop().await;
        let mut inside = Inside::of(&setup).await;
        inside.run(r#"UPDATE keys SET scopes = 'none' WHERE scopes = '["broken"]'"#).await;
        let server = stopped.start().await;
        server.wait_for_log(READY).await;
        inside.run(LOSE_KEYS).await;
        assert_eq!(server.admin().await.reason(&good).await, Reason::Allowed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_keys_are_read_calls_are_answered_and_it_is_not_ready_and_a_stop_is_a_stop() {
    let setup = Gatekey::postgres(&Database::create().await);
    setup.start().await.stop().await;
    let mut inside = Inside::of(&setup).await;
    inside.run("BEGIN; LOCK TABLE owners").await;
    let server = setup.start().await;
    let admin = server.admin().await;
    let typo = admin.reason("not a key").await;
    assert_eq!(typo, Reason::Malformed);
    let mut probe = HealthClient::new(admin.channel);
    let request = HealthCheckRequest {
        service: READINESS.to_owned(),
    };
    let health = probe.check(request).await.expect("it answers");
    assert_eq!(health.into_inner().status(), ServingStatus::NotServing);
    let stopped = server.stop().await;
    assert!(!stopped.logs().contains(READY));
}
