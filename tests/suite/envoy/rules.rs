//! Rules from the configuration of Envoy's routes.

use gatekey::api::proto::{Owner, Tenant};
use serde_json::{Value as Json, json};
use tonic::{Code, Request, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{bearer, envoy_of, envoy_of_orders, setup};
use crate::support::{
    Client,
    client::{new_key, texts},
    on_both_engines,
};

async fn tenants(admin: &Client) {
    for tenant_id in ["acme", "other"] {
        let tenant_id = tenant_id.to_owned();
        let tenant = Tenant {
            tenant_id,
            ..Tenant::default()
        };
        admin.set_tenant(tenant).await;
    }
}

on_both_engines! {
    async fn a_key_with_the_scope_passes_and_the_service_learns_whose_it_is(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        tenants(&admin).await;
        let envoy = envoy_of_orders(&server, &admin).await;
        let (key, plaintext) = admin.issue("acme", &["orders:*", "jobs:read"]).await;

        let answer = envoy.get("/orders/7?page=2", &[bearer(&plaintext)]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["path"], "/orders/7?page=2");
        let received = |name| answer.received(name);
        assert_eq!(received("x-gatekey-key-id"), Some(key.key_id.clone()));
        assert_eq!(received("x-gatekey-tenant").as_deref(), Some("acme"));
        assert_eq!(received("x-gatekey-owner").as_deref(), Some("alice"));
        assert_eq!(received("x-gatekey-scopes").as_deref(), Some("orders:* jobs:read"));
        assert_eq!(received("authorization"), None);
        let expected = json!({
            "reason": "ALLOWED",
            "key_id": key.key_id,
            "tenant_id": "acme",
            "owner_id": "alice",
            "scopes": ["orders:*", "jobs:read"],
        });
        assert_eq!(envoy.metadata("ALLOWED").await, expected);
    }

    async fn a_refusal_has_the_status_the_challenge_and_the_body_of_its_reason(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        tenants(&admin).await;
        let envoy = envoy_of_orders(&server, &admin).await;
        let (_, other_scope) = admin.issue("acme", &["jobs:read"]).await;
        let (_, other_tenant) = admin.issue("other", &["orders:read"]).await;
        let (_, system) = admin.issue("system", &["*:keys:validate"]).await;
        let mut elsewhere = new_key("acme", &["orders:read"]);
        elsewhere.allowed_cidrs = texts(&["10.0.0.0/8"]);
        let (_, elsewhere) = admin.create(elsewhere).await;
        let mut audience = new_key("acme", &["orders:read"]);
        audience.audiences = texts(&["billing"]);
        let (_, audience) = admin.create(audience).await;
        let (revoked, revoked_key) = admin.issue("acme", &["orders:read"]).await;
        admin.revoke(&revoked, "").await;

        let invalid = Some("Bearer realm=\"acme\", error=\"invalid_token\"");
        let scope = "Bearer realm=\"acme\", error=\"insufficient_scope\", scope=\"orders:read\"";
        for (credential, status, code, challenge) in [
            ("", 401, "CREDENTIAL_MISSING", Some("Bearer realm=\"acme\"")),
            ("gk_typo", 401, "MALFORMED", invalid),
            (&*other_tenant, 401, "NOT_FOUND", invalid),
            (&*system, 401, "NOT_FOUND", invalid),
            (&*revoked_key, 401, "REVOKED", invalid),
            (&*elsewhere, 403, "IP_NOT_ALLOWED", None),
            (&*audience, 403, "AUDIENCE_NOT_ALLOWED", None),
            (&*other_scope, 403, "INSUFFICIENT_SCOPE", Some(scope)),
        ] {
            let header = (!credential.is_empty()).then(|| bearer(credential));
            let header: Vec<_> = header.into_iter().collect();
            let answer = envoy.get("/orders", &header).await;
            assert_eq!((answer.status, &*answer.code()), (status, code), "{answer:?}");
            assert_eq!(answer.header("www-authenticate"), challenge, "{answer:?}");
            assert_eq!(answer.header("content-type"), Some("application/json"));
            let message = answer.json()["error"]["message"].clone();
            assert!(message.as_str().is_some_and(|it| it.ends_with('.')), "{answer:?}");
        }
        // A route without a rule forwards nothing.
        let routes = vec![("/", "orders", Json::Null)];
        let envoy = envoy_of(&server, &admin, routes).await;
        let answer = envoy.get("/", &[bearer(&other_scope)]).await;
        assert_eq!((answer.status, &*answer.code()), (403, "NO_RULE"));
        assert_eq!(envoy.metadata("NO_RULE").await, json!({ "reason": "NO_RULE" }));
    }

    async fn a_revoked_key_is_refused_from_the_next_request_on(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        tenants(&admin).await;
        let envoy = envoy_of_orders(&server, &admin).await;
        let (key, plaintext) = admin.issue("acme", &["orders:read"]).await;
        for _ in 0..20 {
            let answer = envoy.get("/orders", &[bearer(&plaintext)]).await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        let revoked = admin.revoke(&key, "").await;
        let state = revoked.enforcement.expect("an enforcement").state();
        assert_eq!(state, gatekey::api::proto::EnforcementState::Enforced);
        for _ in 0..20 {
            let answer = envoy.get("/orders", &[bearer(&plaintext)]).await;
            assert_eq!((answer.status, &*answer.code()), (401, "REVOKED"));
        }
    }

    async fn no_client_sets_the_headers_of_gatekey(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        tenants(&admin).await;
        let envoy = envoy_of_orders(&server, &admin).await;
        let (key, plaintext) = admin.issue("acme", &["orders:read"]).await;
        let mut headers = vec![bearer(&plaintext)];
        for name in ["key-id", "tenant", "owner", "scopes", "admin"] {
            headers.push(format!("X-Gatekey-{name}: forged"));
            headers.push(format!("x-gatekey-{name}: forged, too"));
            headers.push(format!("x_gatekey_{}: forged", name.replace('-', "_")));
            headers.push(format!("x-gatekey_{}: forged", name.replace('-', "_")));
        }
        let answer = envoy.get("/orders", &headers).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(!answer.body.contains("forged"), "{answer:?}");
        assert_eq!(answer.received("x-gatekey-key-id"), Some(key.key_id));

        // An owner without scopes in force has none in the header either.
        let (_, plaintext) = admin.issue("acme", &["orders:read"]).await;
        let owner = Owner {
            tenant_id: "acme".to_owned(),
            owner_id: "alice".to_owned(),
            scopes: texts(&["jobs:read"]),
            ..Owner::default()
        };
        admin.set_owner(owner).await;
        let rule = json!({ "gatekey.tenant": "acme" });
        let envoy = envoy_of(&server, &admin, vec![("/", "orders", rule)]).await;
        let headers = [bearer(&plaintext), "x-gatekey-scopes: forged".to_owned()];
        let answer = envoy.get("/", &headers).await;
        assert_eq!((answer.status, answer.received("x-gatekey-scopes")), (200, None));
    }

    async fn each_field_of_a_rule_does_what_it_says(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        tenants(&admin).await;
        let any = json!({ "gatekey.tenant": "*", "gatekey.any_scopes": "orders:read, orders:write" });
        let billing = json!({ "gatekey.tenant": "acme", "gatekey.audience": "billing" });
        let header = json!({ "gatekey.tenant": "acme", "gatekey.header": "X-API-Key" });
        let query = json!({ "gatekey.tenant": "acme", "gatekey.query_parameter": "api_key" });
        let forward = json!({
            "gatekey.tenant": "acme",
            "gatekey.header": "server_api_key",
            "gatekey.forward_credential": "true",
            "another.service": "is not gatekey's business",
        });
        let routes = vec![
            ("/any", "orders", any),
            ("/billing", "orders", billing),
            ("/header", "orders", header),
            ("/query", "orders", query),
            ("/forward", "orders", forward),
        ];
        let envoy = envoy_of(&server, &admin, routes).await;
        let (_, key) = admin.issue("acme", &["orders:write"]).await;
        let (_, other) = admin.issue("other", &["jobs:read"]).await;
        let (_, system) = admin.issue("system", &["*:keys:validate", "orders:read"]).await;
        let mut audience = new_key("acme", &["orders:read"]);
        audience.audiences = texts(&["billing"]);
        let (_, audience) = admin.create(audience).await;
        let status = async |target: &str, header: String| {
            envoy.get(target, &[header]).await.status
        };

        assert_eq!(status("/any", bearer(&key)).await, 200);
        assert_eq!(status("/any", bearer(&other)).await, 403);
        assert_eq!(status("/any", bearer(&system)).await, 401);
        assert_eq!(status("/billing", bearer(&audience)).await, 200);

        let answer = envoy.get("/header", &[format!("x-api-key: {key}")]).await;
        assert_eq!((answer.status, answer.received("x-api-key")), (200, None));
        assert_eq!(status("/header", bearer(&key)).await, 401);

        let answer = envoy.get("/forward", &[format!("server_api_key: {key}")]).await;
        assert_eq!((answer.status, answer.received("server_api_key")), (200, Some(key.clone())));

        let none = "accept: */*".to_owned();
        let target = format!("/query?a=1&api_key={key}&b=2");
        let answer = envoy.get(&target, std::slice::from_ref(&none)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["path"], "/query?a=1&b=2");
        assert_eq!(status(&target, bearer(&key)).await, 401);
        assert_eq!(status(&format!("{target}&api_key={key}"), none.clone()).await, 401);
        assert_eq!(status(&format!("/any?api_key={key}"), none).await, 401);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_values_of_the_credential_are_malformed() {
    let server = crate::support::Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    tenants(&admin).await;
    let (_, key) = admin.issue("acme", &["orders:read"]).await;
    for raw in [false, true] {
        let rule = json!({ "gatekey.tenant": "acme", "gatekey.header": "x-api-key" });
        let bearer_rule = json!({ "gatekey.tenant": "acme" });
        let routes = vec![("/key", "orders", rule), ("/", "orders", bearer_rule)];
        let mut setup = setup(server.addr(), &admin, routes).await;
        setup.filter = json!({ "encode_raw_headers": raw });
        let envoy = setup.start().await;
        let good = envoy.get("/", &[bearer(&key)]).await;
        assert_eq!(good.status, 200, "{good:?}");
        let basic = "Authorization: Basic Og==".to_owned();
        for headers in [
            [bearer(&key), bearer(&key)],
            [bearer(&key), "Authorization: x".to_owned()],
            [basic, bearer(&key)],
        ] {
            let answer = envoy.get("/", &headers).await;
            assert_eq!((answer.status, &*answer.code()), (401, "MALFORMED"));
        }
        let twice = [format!("x-api-key: {key}"), format!("X-API-Key: {key}")];
        let answer = envoy.get("/key", &twice).await;
        assert_eq!((answer.status, &*answer.code()), (401, "MALFORMED"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_and_grpc_pass_and_a_refused_grpc_call_gets_a_grpc_status() {
    let server = crate::support::Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    tenants(&admin).await;
    let rule = json!({ "gatekey.tenant": "acme", "gatekey.scopes": "orders:read" });
    let routes = vec![
        ("/reports", "reports", rule.clone()),
        ("/grpc.health.v1.Health/", "grpc", rule),
    ];
    let envoy = envoy_of(&server, &admin, routes).await;
    let (key, plaintext) = admin.issue("acme", &["orders:read"]).await;
    let (_, other) = admin.issue("acme", &["jobs:read"]).await;

    let answer = envoy.get("/reports", &[bearer(&plaintext)]).await;
    assert_eq!(answer.json()["version"], "HTTP/2.0");
    assert_eq!(
        answer.received("x-gatekey-key-id"),
        Some(key.key_id.clone())
    );

    // A gRPC client speaks HTTP/2 with Envoy.
    let endpoint = Endpoint::from_shared(format!("http://{}", envoy.addr)).expect("a URL");
    let channel = endpoint.connect().await.expect("Envoy takes connections");
    let call = async |credential: Option<&str>| {
        let mut request = Request::new(HealthCheckRequest::default());
        if let Some(credential) = credential {
            let value = format!("Bearer {credential}").parse().expect("ASCII");
            request.metadata_mut().insert("authorization", value);
        }
        HealthClient::new(channel.clone()).check(request).await
    };
    call(Some(&plaintext)).await.expect("it is forwarded");
    let refused = call(Some(&other)).await.expect_err("it lacks the scope");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert!(
        refused.message().starts_with("INSUFFICIENT_SCOPE: "),
        "{refused:?}"
    );
    let challenge = refused.metadata().get("www-authenticate");
    assert!(challenge.is_some(), "{refused:?}");
    admin.revoke(&key, "").await;
    let refused = call(Some(&plaintext)).await.expect_err("it is revoked");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    assert_eq!(refused.message(), "REVOKED: The key was revoked.");
    let refused = call(None).await.expect_err("there is no credential");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_use_is_recorded_with_the_address_of_the_client() {
    let server = crate::support::Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    tenants(&admin).await;
    let envoy = envoy_of_orders(&server, &admin).await;
    let mut here = new_key("acme", &["orders:read"]);
    here.allowed_cidrs = texts(&["127.0.0.0/8"]);
    here.owner_id = "Łukasz 100%".to_owned();
    let (key, plaintext) = admin.create(here).await;
    let answer = envoy.get("/orders", &[bearer(&plaintext)]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let owner = answer.received("x-gatekey-owner");
    assert_eq!(owner.as_deref(), Some("%C5%81ukasz%20100%25"));
    assert_eq!(envoy.metadata("ALLOWED").await["owner_id"], "Łukasz 100%");
    let used = crate::usage::used(&admin, &key).await;
    assert_eq!(used.last_used_ip, "127.0.0.1");
}
