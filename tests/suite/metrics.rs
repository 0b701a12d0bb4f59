//! Metrics, read by a real Prometheus: what is counted, the alerts, and every query of the dashboard.

use std::{path::Path, process::Command};

use gatekey::api::proto::{KeyState, Reason, Tenant};
use serde_json::Value as Json;
use tokio::task::{block_in_place, spawn_blocking};
use tonic::{Code, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use crate::support::{
    Authority, Client, Gatekey,
    client::new_key,
    on_both_engines,
    prometheus::{Prometheus, get},
    tool,
};

const LISTEN: (&str, &str) = ("GATEKEY_METRICS_LISTEN", "127.0.0.1:0");
const RULES: &str = "helm/gatekey/files/rules.yaml";
const DOCS: &str = include_str!("../../docs/metrics.md");

/// The page, as Prometheus reads it.
pub fn page(server: &Gatekey) -> String {
    let (good, page) = block_in_place(|| get(server.metrics(), "/metrics")).expect("it answers");
    assert!(good, "{page}");
    page
}

/// The value of a sample, by its name with its labels.
pub fn sample(page: &str, name: &str) -> f64 {
    let values = page
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let values: Vec<_> = values.collect();
    let [value] = values[..] else {
        panic!("{name} is there {} times in\n{page}", values.len());
    };
    value.parse().expect("a number")
}

/// The same, of what is counted.
pub fn count(page: &str, name: &str) -> u64 {
    format!("{}", sample(page, name))
        .parse()
        .expect("a whole number")
}

/// Does a bit of everything: a tenant, two keys, one of them revoked; 20 validates allowed, some not; calls that fail.
async fn exercise(client: &Client) -> Vec<String> {
    let tenant = Tenant {
        tenant_id: "acme-tenant".to_owned(),
        ..Tenant::default()
    };
    client.set_tenant(tenant).await;
    let (key, plaintext) = client.issue("acme-tenant", &["jobs:read"]).await;
    for _ in 0..20 {
        assert_eq!(client.reason(&plaintext).await, Reason::Allowed);
    }
    let (gone, revoked) = client.issue("acme-tenant", &["jobs:read"]).await;
    client.revoke(&gone, "lost").await;
    assert_eq!(client.reason(&revoked).await, Reason::Revoked);
    for _ in 0..3 {
        assert_eq!(client.reason("no key at all").await, Reason::Malformed);
    }
    let mut nameless = new_key("acme-tenant", &["jobs:read"]);
    nameless.scopes.clear();
    let refused = client.try_create(nameless).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_ne!(key.state, KeyState::Revoked as i32);
    vec![plaintext, revoked, key.key_id, gone.key_id, key.owner_id]
}

/// Calls a method that nobody knows.
async fn call_unknown(client: &Client, path: &'static str) {
    let mut grpc = tonic::client::Grpc::new(client.channel.clone());
    grpc.ready().await.unwrap();
    let codec = ProstCodec::<(), ()>::default();
    let request = tonic::Request::new(());
    let answer = grpc
        .unary(request, PathAndQuery::from_static(path), codec)
        .await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
}

on_both_engines! {
    async fn what_was_called_decided_and_changed_is_counted_and_nothing_named(setup: Setup) {
        let server = setup.env(LISTEN.0, LISTEN.1).start().await;
        // From then on memory answers.
        server.wait_for_log(r#""message":"ready""#).await;
        let client = server.admin().await;
        let mut secrets = exercise(&client).await;
        call_unknown(&client, "/strange.Service/Method").await;
        call_unknown(&client, "/gatekey.v1.KeyService/Strange").await;
        let page = page(&server);

        let called = |method: &str, code: &str| {
            count(&page, &format!("gatekey_calls_total{{method=\"{method}\",code=\"{code}\"}}"))
        };
        assert_eq!(called("gatekey.v1.KeyService/Validate", "OK"), 24);
        assert_eq!(called("gatekey.v1.KeyService/CreateKey", "OK"), 2);
        assert_eq!(called("gatekey.v1.KeyService/CreateKey", "INVALID_ARGUMENT"), 1);
        assert_eq!(called("unknown", "UNIMPLEMENTED"), 2);
        let decided = |reason: &str| count(&page, &format!("gatekey_decisions_total{{reason=\"{reason}\"}}"));
        assert_eq!(["ALLOWED", "REVOKED", "MALFORMED", "EXPIRED"].map(decided), [20, 1, 3, 0]);
        let took = |method: &str| {
            count(&page, &format!("gatekey_call_duration_seconds_count{{method=\"gatekey.v1.KeyService/{method}\"}}"))
        };
        assert_eq!(took("CreateKey"), 3);
        assert!((1..24).contains(&took("Validate")), "a part of them is timed: {}", took("Validate"));

        assert!(count(&page, "gatekey_cache_hits_total") >= 19);
        assert!(count(&page, "gatekey_cache_misses_total") >= 1);
        assert_eq!(count(&page, "gatekey_argon2_hashes_total"), 2);
        assert!(count(&page, "gatekey_store_call_duration_seconds_count{call=\"load\"}") >= 1);
        // A tenant, two keys and a revocation.
        assert_eq!(count(&page, "gatekey_store_call_duration_seconds_count{call=\"commit\"}"), 4);
        assert_eq!(count(&page, "gatekey_revision_applied"), 4);
        assert_eq!(count(&page, "gatekey_revision_lag"), 0);
        assert!(sample(&page, "gatekey_lease_remaining_seconds") > 0.0);
        assert!(count(&page, "gatekey_enforcement_duration_seconds_count") >= 1);
        assert_eq!(count(&page, "gatekey_enforcement_waiting"), 0);
        assert!(count(&page, "gatekey_connections{port=\"main\"}") >= 1);
        assert!(sample(&page, "process_resident_memory_bytes") > 1e6);

        secrets.push("acme-tenant".to_owned());
        secrets.push("trange".to_owned());
        secrets.push(server.admin_token());
        for secret in secrets {
            assert!(!page.contains(&secret), "the page names {secret}");
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_docs_tell_of_every_metric_and_of_no_other() {
    let server = Gatekey::sqlite().env(LISTEN.0, LISTEN.1).start().await;
    let page = page(&server);
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut there: Vec<_> = types
        .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    let rows = DOCS
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let named = |name: &&str| name.starts_with("gatekey_") || name.starts_with("process_");
    let mut told: Vec<_> = rows.filter(named).map(str::to_owned).collect();
    there.sort();
    told.sort();
    assert_eq!(told, there);
    assert_eq!(
        get(server.metrics(), "/").map(|(good, _)| good),
        Some(false)
    );
}

#[test]
fn promtool_finds_nothing_wrong_with_the_rules() {
    let [_, promtool] = tool::prometheus();
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join(RULES);
    let mut check = Command::new(&promtool[0]);
    check
        .args(&promtool[1..])
        .args(["check", "rules", "--lint=all", "--lint-fatal"]);
    tool::run(check.arg(rules));
}

/// What is 0 while all is well, so that a query of it shows a number, but none above 0.
const ALL_IS_WELL: [(&str, &str); 13] = [
    ("gatekey_admin_", "changes are over before one looks"),
    (
        "code=~\"UNKNOWN|INTERNAL",
        "no call fails because of the server",
    ),
    ("gatekey_store_failures_total", "the store fails no call"),
    ("gatekey_argon2_refused_total", "it takes a flood"),
    ("gatekey_loads_running", "it is over before one looks"),
    ("gatekey_loads_queued", "every load is answered soon"),
    ("gatekey_argon2_queued", "there may be a core for each hash"),
    ("gatekey_loads_refused_total", "it takes a flood"),
    ("gatekey_revision_lag", "one replica applies what it writes"),
    ("gatekey_enforcement_waiting", "there is no other replica"),
    (
        "gatekey_enforcement_pending_total",
        "there is no other replica",
    ),
    (
        "gatekey_connections_refused_total",
        "it takes 16384 connections",
    ),
    ("gatekey_usage_lost_total", "uses are written in time"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prometheus_finds_numbers_for_every_query_of_the_dashboard_and_evaluates_every_alert() {
    let authority = Authority::new("ours");
    let server = Gatekey::sqlite()
        .env(LISTEN.0, LISTEN.1)
        // So that keys have to leave.
        .env("GATEKEY_CACHE_KEYS", "64")
        .encrypted(&authority)
        .start()
        .await;
    let client = async || {
        let token = server.admin_token();
        let client = server.encrypted(authority.trusted(), Some(&token)).await;
        client.expect("no certificate is needed")
    };
    // Before the first reading, so that every series is in all of them.
    exercise(&client().await).await;
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join(RULES);
    let prometheus = block_in_place(|| Prometheus::start(server.metrics(), &rules));

    // That it is absent is over with the first reading.
    let all_is_well = |data: &Json| {
        let rules = data["groups"][0]["rules"].as_array();
        rules.is_some_and(|rules| {
            rules
                .iter()
                .all(|rule| rule["health"] == "ok" && rule["state"] == "inactive")
        })
    };
    let data = block_in_place(|| prometheus.wait_for("/api/v1/rules", all_is_well));
    let alerts = data["groups"][0]["rules"].as_array().expect("rules");
    assert!(alerts.len() > 10, "{data}");
    for alert in alerts {
        let action = alert["annotations"]["action"].as_str().unwrap_or_default();
        assert!(action.len() > 20 && !action.contains('\n'), "{alert}");
        let row = format!("| `{}` |", alert["name"].as_str().expect("a name"));
        assert!(
            DOCS.contains(&row),
            "docs/metrics.md does not tell of {row}"
        );
    }

    let dashboard: Json =
        serde_json::from_str(include_str!("../../helm/gatekey/files/dashboard.json"))
            .expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let panels = panels.iter().filter(|panel| panel["type"] != "row");
    let targets = panels.flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let queries = targets.map(|target| {
        let query = target["expr"].as_str().expect("a query");
        let quiet = |(metric, _): &(&str, _)| query.contains(metric);
        let least = if ALL_IS_WELL.iter().any(quiet) {
            0.0
        } else {
            f64::MIN_POSITIVE
        };
        let variables = ["namespace", "job", "pod", "instance"];
        let query = variables.iter().fold(query.to_owned(), |query, variable| {
            assert!(
                query.contains(&format!("{variable}=~\"${variable}\"")),
                "{query}"
            );
            query.replace(&format!("${variable}"), ".*")
        });
        let query = query.replace("$__rate_interval", "1m");
        assert!(
            !query.contains('$'),
            "{query} has a variable that is not known here"
        );
        (query, least)
    });
    let queries: Vec<_> = queries.collect();
    assert!(queries.len() > 30, "{queries:?}");
    let look = spawn_blocking(move || {
        for (query, least) in queries {
            prometheus.number(&query, least);
        }
        prometheus
    });
    // So that each look finds something new.
    let busy = async || {
        loop {
            exercise(&client().await).await;
        }
    };
    let prometheus = tokio::select! {
        prometheus = look => prometheus.expect("every query finds a number"),
        _ = async { tokio::join!(busy(), busy(), busy(), busy()) } => unreachable!("they go on"),
    };

    // And one that has something to say.
    server.stop().await;
    let pending = block_in_place(|| prometheus.query("ALERTS{alertname=\"GatekeyAbsent\"}"));
    assert_eq!(pending[0]["metric"]["severity"], "critical");
}
