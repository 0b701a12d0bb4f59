//! Rules from the routes file, for an Envoy whose routes have none.

use std::{fs, path::PathBuf, time::Duration};

use gatekey::api::proto::Tenant;
use serde_json::{Value as Json, json};
use tokio::time::{sleep, timeout};

use super::{bearer, envoy_of, metrics_of, proxy::Envoy};
use crate::support::{Client, Gatekey, Setup, on_both_engines};

const DEADLINE: Duration = Duration::from_mins(1);

const ROUTES: &str = "
routes:
  - host: '*.example.com'
    methods: [GET]
    path_prefix: /orders/admin
    tenant: acme
    scopes: [orders:admin]
  - host: api.example.com
    path_prefix: /orders
    tenant: acme
    any_scopes: [orders:read, orders:admin]
    forward_credential: true
  - host: other.example.com
    path_prefix: /
    tenant: acme
";

/// A setup with a routes file of this content, and the path of the file.
fn with_routes(setup: Setup, routes: &str) -> (Setup, PathBuf) {
    let file = setup.folder().join("routes.yaml");
    fs::write(&file, routes).expect("the folder takes files");
    let setup = setup
        .env("GATEKEY_ROUTES_FILE", file.display().to_string())
        .env("GATEKEY_METRICS_LISTEN", "127.0.0.1:0");
    (setup, file)
}

async fn start(setup: &Setup) -> (Gatekey, Client, Envoy) {
    let server = setup.start().await;
    let admin = server.admin().await;
    let tenant = Tenant {
        tenant_id: "acme".to_owned(),
        ..Tenant::default()
    };
    admin.set_tenant(tenant).await;
    let rule = json!({ "gatekey.tenant": "acme", "gatekey.scopes": "jobs:read" });
    let routes = vec![("/jobs", "orders", rule), ("/", "orders", Json::Null)];
    let envoy = envoy_of(&server, &admin, routes).await;
    (server, admin, envoy)
}

on_both_engines! {
    async fn the_first_route_that_matches_has_the_rule(setup: Setup) {
        let (setup, _) = with_routes(setup, ROUTES);
        let (_server, admin, envoy) = start(&setup).await;
        let (_, reader) = admin.issue("acme", &["orders:read"]).await;
        let (_, chief) = admin.issue("acme", &["orders:admin"]).await;
        let (_, worker) = admin.issue("acme", &["jobs:read"]).await;
        let reader = [bearer(&reader)];
        for (target, status) in [
            ("/orders", 200),
            ("/orders/7?x=../admin", 200),
            ("/orders/", 200),
            ("/orders/administrator", 200),
            ("/ordersx", 403),
            ("/orders/admin", 403),
            ("/jobs", 403),
            ("/", 403),
            // Paths that a service could read as another one.
            ("/orders/%61dmin", 403),
            ("/orders/admin;x=1", 403),
            ("/orders/x/../admin", 403),
            ("/orders//admin", 403),
            ("/orders/x/%2e%2e/admin", 403),
            ("/orders/x%2f..%2fadmin", 403),
            ("/orders/x\\..\\admin", 403),
        ] {
            let answer = envoy.get(target, &reader).await;
            assert_eq!(answer.status, status, "{target}: {answer:?}");
        }
        let answer = envoy.get("/orders", &reader).await;
        assert!(answer.received("authorization").is_some(), "{answer:?}");
        let answer = envoy.get("/orders/admin/7", &[bearer(&chief)]).await;
        assert_eq!((answer.status, answer.received("authorization")), (200, None));
        // The rule of the route comes before the file.
        assert_eq!(envoy.get("/jobs", &[bearer(&worker)]).await.status, 200);
        assert_eq!(envoy.get("/none", &reader).await.code(), "NO_RULE");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_file_is_applied_as_a_whole_and_a_broken_one_is_refused() {
    let (setup, file) = with_routes(Gatekey::sqlite(), ROUTES);
    let (server, admin, envoy) = start(&setup).await;
    let (_, reader) = admin.issue("acme", &["orders:read"]).await;
    let reader = [bearer(&reader)];
    assert_eq!(envoy.get("/orders", &reader).await.status, 200);
    let metric = |line: &str| {
        let page = metrics_of(&server);
        assert!(page.contains(&format!("\n{line}\n")), "{line}: {page}");
    };
    metric("gatekey_routes 3");

    fs::write(&file, ROUTES.replace("orders:admin", "orders:*")).expect("a file");
    let line = "reload of the routes file failed; keeping the previous routes";
    timeout(DEADLINE, server.wait_for_log(line))
        .await
        .expect("it is refused");
    let logs = server.logs();
    assert!(logs.contains("routes[0].scopes[0] must be"), "{logs}");
    assert!(logs.contains("routes[1].any_scopes[1] must be"), "{logs}");
    metric("gatekey_routes_reloads_total{result=\"failed\"} 1");
    assert_eq!(envoy.get("/orders", &reader).await.status, 200);

    // Under load each request is decided by the old rules or by the new ones.
    let both = ROUTES.replace("/orders", "/invoices") + "  - {path_prefix: /ready, tenant: acme}\n";
    let staged = file.with_extension("new");
    fs::write(&staged, both).expect("a file");
    fs::rename(&staged, &file).expect("it is replaced");
    let (mut old, mut new) = (0, 0);
    let replaced = async {
        while new < 50 {
            let before = envoy.get("/invoices", &reader).await.status;
            let after = envoy.get("/orders", &reader).await.status;
            match (before, after) {
                // A replacement between both requests is seen by the second.
                (403, 200) => old += 1,
                (200, 403) => new += 1,
                (403, 403) if new == 0 => {}
                other => panic!("{other:?} after {old} and {new}"),
            }
        }
    };
    timeout(DEADLINE, replaced).await.expect("it is replaced");
    metric("gatekey_routes 4");
    metric("gatekey_routes_reloads_total{result=\"ok\"} 1");

    // A file that is gone changes nothing either.
    fs::remove_file(&file).expect("it is there");
    let gone = async {
        let failed = "gatekey_routes_reloads_total{result=\"failed\"} 2";
        while !metrics_of(&server).contains(failed) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(DEADLINE, gone).await.expect("it is seen");
    assert_eq!(envoy.get("/invoices", &reader).await.status, 200);
}

#[tokio::test]
async fn a_broken_file_ends_the_start_with_one_line_that_names_the_variable() {
    let many = "  - {path_prefix: /, tenant: acme}\n".repeat(1001);
    for (routes, why) in [
        ("", "it must have one field, routes, with a list"),
        ("routes: {}", "it must have one field, routes, with a list"),
        (
            "routes: []\nrules: []",
            "it must have one field, routes, with a list",
        ),
        ("routes: [", "it is not YAML that can be read: "),
        (
            "routes:\n  - {path_prefix: /, tenant: acme, tenant: other}",
            "it is not YAML that can be read: ",
        ),
        ("routes:\n  - x", "routes[0] must be a mapping"),
        (
            "routes:\n  - {path_prefix: orders, tenant: Acme, scopes: []}\n  - {path_prefix: /, tenant: acme, scope: [a]}",
            "routes[0].path_prefix must be a path that begins with /, without empty or dotted segments; routes[0].scopes must be a list of one text or more; routes[0].tenant must be a tenant_id, or * for every tenant; routes[1] may have host, ",
        ),
        (
            "routes:\n  - {path_prefix: /, tenant: acme, scope: [a]}",
            "routes[0] may have host, ",
        ),
        (
            "routes:\n  - {path_prefix: /, scopes: [a]}",
            "routes[0].tenant must be a tenant_id",
        ),
        (
            "routes:\n  - {path_prefix: /, tenant: acme, host: 'api:80'}",
            "routes[0].host must be a name without a port",
        ),
        (
            "routes:\n  - {path_prefix: /, tenant: acme, methods: [get]}",
            "routes[0].methods must have at most 16 methods in upper case",
        ),
        (
            "routes:\n  - {path_prefix: /, tenant: acme, header: Host}",
            "routes[0].header must not be host or begin with x-gatekey-",
        ),
        (
            &format!("routes:\n{many}"),
            "it must have at most 1000 routes",
        ),
        (&"#".repeat(1024 * 1024 + 1), "it must have at most 1 MiB"),
    ] {
        let (setup, file) = with_routes(Gatekey::sqlite(), routes);
        let (_, stderr) = setup.start_expecting_failure().await;
        let line = format!("GATEKEY_ROUTES_FILE is invalid: {}: {why}", file.display());
        assert!(stderr.contains(&line), "{line}\n{stderr}");
    }
    let setup = Gatekey::sqlite().env("GATEKEY_ROUTES_FILE", "/nowhere/routes.yaml");
    let (_, stderr) = setup.start_expecting_failure().await;
    let line = "GATEKEY_ROUTES_FILE is invalid: /nowhere/routes.yaml: No such file";
    assert!(stderr.contains(line), "{stderr}");
}
