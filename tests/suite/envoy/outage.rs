//! Envoy while gatekey cannot decide: it forwards nothing and answers 503.

use std::time::Duration;

use gatekey::api::proto::Tenant;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::{bearer, envoy_of, envoy_of_orders, setup};
use crate::support::{Client, Gatekey};

const DEADLINE: Duration = Duration::from_mins(1);

async fn acme(admin: &Client) {
    let tenant = Tenant {
        tenant_id: "acme".to_owned(),
        ..Tenant::default()
    };
    admin.set_tenant(tenant).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_passes_while_gatekey_is_gone_and_all_is_well_when_it_is_back() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    acme(&admin).await;
    let envoy = envoy_of_orders(&server, &admin).await;
    let (_, plaintext) = admin.issue("acme", &["orders:read"]).await;
    let good = [bearer(&plaintext)];
    assert_eq!(envoy.get("/orders", &good).await.status, 200);
    let addr = server.addr().to_string();
    let stopped = server.kill9();
    for _ in 0..20 {
        let answer = envoy.get("/orders", &good).await;
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    let again = stopped.setup().clone().env("GATEKEY_LISTEN", addr);
    let _again = again.start().await;
    let recovered = async {
        while envoy.get("/orders", &good).await.status != 200 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(DEADLINE, recovered).await.expect("it recovers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_passes_with_a_credential_or_a_rule_that_is_wrong_and_the_log_says_why() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    acme(&admin).await;
    let (_, plaintext) = admin.issue("acme", &["orders:read"]).await;
    let rule = json!({ "gatekey.tenant": "acme", "gatekey.scopes": "orders:read" });
    let (_, weak) = admin.issue("system", &["acme:keys:get"]).await;
    for credential in ["gk_nothing", &*weak, &*plaintext] {
        let routes = vec![("/", "orders", rule.clone())];
        let mut setup = setup(server.addr(), &admin, routes).await;
        credential.clone_into(&mut setup.credential);
        let envoy = setup.start().await;
        let answer = envoy.get("/", &[bearer(&plaintext)]).await;
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    server.wait_for_log("call refused").await;

    let routes = vec![
        (
            "/typo",
            "orders",
            json!({ "gatekey.tenant": "acme", "gatekey.scope": "orders:read" }),
        ),
        (
            "/empty",
            "orders",
            json!({ "gatekey.tenant": "acme", "gatekey.scopes": "" }),
        ),
        (
            "/wild",
            "orders",
            json!({ "gatekey.tenant": "acme", "gatekey.scopes": "orders:*" }),
        ),
        (
            "/none",
            "orders",
            json!({ "gatekey.scopes": "orders:read" }),
        ),
    ];
    let envoy = envoy_of(&server, &admin, routes).await;
    for target in ["/typo", "/empty", "/wild", "/none"] {
        let answer = envoy.get(target, &[bearer(&plaintext)]).await;
        assert_eq!(answer.status, 503, "{target}: {answer:?}");
    }
    server.wait_for_log("correct Envoy's configuration").await;
    let logs = server.logs();
    assert!(!logs.contains(&plaintext), "no secret is logged");
}
