//! The cost of Envoy's external authorization by gatekey.
//!
//! `cargo bench --bench envoy` measures the server CPU of a Check beside that of a Validate, and the latency of a request
//! through Envoy without authorization, with Envoy's own API keys, and with gatekey. It needs `h2load` (Debian:
//! `nghttp2-client`) and only prints. Rounds take turns; figures are medians over the rounds.
#![allow(
    clippy::cast_precision_loss,
    reason = "figures for people: three digits are enough"
)]

#[path = "../../tests/suite/envoy/proxy.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod proxy;
#[path = "../../tests/suite/support/mod.rs"]
#[allow(
    unused_imports,
    unused_macros,
    reason = "the tests use more of it than a benchmark does"
)]
mod support;
#[path = "../../tests/suite/envoy/upstream.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod upstream;
#[path = "../validate/usage.rs"]
#[allow(dead_code, reason = "another benchmark uses more of it")]
mod usage;

use std::{fs, net::SocketAddr, path::Path, process::Command};

use gatekey::api::{
    ext_authz::proto::{AttributeContext, CheckRequest, Entry, attribute_context},
    proto::{ValidateRequest, validate_request::Credential},
};
use prost::Message;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use proxy::{Envoy, Setup};
use support::{Gatekey, tool};

const ROUNDS: usize = 5;
const VALIDATE: &str = "/gatekey.v1.KeyService/Validate";
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

fn main() {
    if cfg!(debug_assertions) {
        return eprintln!("Only an optimised build is worth measuring: cargo bench --bench envoy");
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let server = Gatekey::sqlite().env("GATEKEY_LOG", "info").start().await;
        let admin = server.admin().await;
        let (_, credential) = admin.issue("system", &["*:keys:validate"]).await;
        let scopes = ["jobs:read", "jobs:write", "reports:*"];
        let (_, key) = admin.issue("default", &scopes).await;
        cost(&server, &credential, &key);
        latency(&server, &credential, &key).await;
    });
}

/// Compares the server CPU of a Check with that of a Validate.
fn cost(server: &Gatekey, credential: &str, key: &str) {
    let folder = TempDir::new().expect("a temporary folder");
    let validate = ValidateRequest {
        credential: Some(Credential::Key(key.to_owned())),
        required_scopes: vec!["jobs:read".to_owned()],
        ..ValidateRequest::default()
    };
    let calls = [
        ("Validate", VALIDATE, frame(&validate)),
        ("Check", CHECK, frame(&check(key))),
    ];
    let mut figures = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for (figures, (name, path, body)) in figures.iter_mut().zip(&calls) {
            let file = folder.path().join(name);
            fs::write(&file, body).expect("the folder takes files");
            let count = 200_000;
            let before = usage::cpu(server.pid());
            h2load(
                server.addr(),
                path,
                [8, 8, count],
                &[
                    "content-type: application/grpc".to_owned(),
                    "te: trailers".to_owned(),
                    format!("authorization: Bearer {credential}"),
                ],
                Some(&file),
                None,
            );
            let used = usage::cpu(server.pid()).saturating_sub(before);
            // The first round warms up.
            if round > 0 {
                figures.push(used.as_secs_f64() * 1e6 / f64::from(count));
            }
        }
    }
    let ratios = figures[1].iter().zip(&figures[0]);
    let ratio = median(ratios.map(|(check, validate)| check / validate).collect());
    let [validate, check] = figures.map(median);
    println!("| call, hot, 8 connections × 8 calls | server CPU, µs |\n|---|---|");
    println!("| Validate | {validate:.1} |\n| Check | {check:.1} |");
    println!("| Check / Validate (goal: at most 1.35) | {ratio:.2} |\n");
}

/// Compares the latencies of requests through Envoy.
async fn latency(server: &Gatekey, credential: &str, key: &str) {
    let rule = json!({ "gatekey.tenant": "default", "gatekey.scopes": "jobs:read", "gatekey.header": "x-api-key" });
    let own = json!([{
        "name": "envoy.filters.http.api_key_auth",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth",
            "credentials": [{ "key": key, "client": "me" }],
            "key_sources": [{ "header": "x-api-key" }],
        },
    }]);
    let envoy = async |filters: Option<Json>| {
        let setup = Setup {
            gatekey: server.addr(),
            credential: credential.to_owned(),
            routes: vec![("/", "reports", rule.clone())],
            filter: Json::Null,
            filters,
        };
        setup.start().await
    };
    let envoys: [(&str, Envoy); 3] = [
        ("none", envoy(Some(json!([]))).await),
        ("Envoy's `api_key_auth`", envoy(Some(own)).await),
        ("gatekey", envoy(None).await),
    ];
    println!("| authorization | shape | requests/s | p50, µs | p99, µs |\n|---|---|---|---|---|");
    for [connections, streams, count] in [[1, 1, 5_000], [8, 8, 50_000]] {
        let mut figures = [Vec::new(), Vec::new(), Vec::new()];
        for round in 0..=ROUNDS {
            for (figures, (_, envoy)) in figures.iter_mut().zip(&envoys) {
                let header = [format!("x-api-key: {key}")];
                let folder = TempDir::new().expect("a temporary folder");
                let log = folder.path().join("log");
                let shape = [connections, streams, count];
                let rate = tokio::task::block_in_place(|| {
                    h2load(envoy.addr, "/", shape, &header, None, Some(&log))
                });
                if round > 0 {
                    let latencies = latencies(&log);
                    let at = |share: usize| latencies[latencies.len() * share / 100];
                    figures.push([rate, at(50), at(99)]);
                }
            }
        }
        for (figures, (name, _)) in figures.iter().zip(&envoys) {
            let column = |at: usize| median(figures.iter().map(|row| row[at]).collect());
            let [rate, p50, p99] = [column(0), column(1), column(2)];
            println!("| {name} | {connections}×{streams} | {rate:.0} | {p50:.0} | {p99:.0} |");
        }
    }
}

/// A Check as Envoy sends it for a request of a browser.
fn check(key: &str) -> CheckRequest {
    let entry = |(key, value): (&'static str, String)| Entry {
        key: key.into(),
        value: value.into(),
    };
    let headers = [
        (":authority", "api.example.com"),
        (":method", "GET"),
        (":path", "/orders/7?page=2"),
        (":scheme", "https"),
        ("accept", "application/json, text/plain, */*"),
        ("accept-encoding", "gzip, deflate, br"),
        (
            "user-agent",
            "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        ),
        ("x-forwarded-for", "198.51.100.7"),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "0f2c5a52-4c5e-4b39-9c2b-7e3f4a1d9b11"),
    ];
    let headers = headers.map(|(name, value)| (name, value.to_owned()));
    let authorization = ("authorization", format!("Bearer {key}"));
    let rule = [
        ("gatekey.tenant", "default"),
        ("gatekey.scopes", "jobs:read"),
    ];
    CheckRequest {
        attributes: Some(AttributeContext {
            source: None,
            request: Some(attribute_context::Request {
                http: Some(attribute_context::HttpRequest {
                    method: "GET".into(),
                    headers: headers
                        .into_iter()
                        .chain([authorization])
                        .map(entry)
                        .collect(),
                    path: "/orders/7?page=2".into(),
                    host: "api.example.com".into(),
                    header_map: None,
                }),
            }),
            context_extensions: rule
                .map(|(name, value)| entry((name, value.to_owned())))
                .into(),
        }),
    }
}

/// Runs h2load with this many connections, streams and calls, which must all succeed. Returns the calls a second.
fn h2load(
    addr: SocketAddr,
    path: &str,
    [connections, streams, calls]: [u32; 3],
    headers: &[String],
    body: Option<&Path>,
    log: Option<&Path>,
) -> f64 {
    let mut command = Command::new("h2load");
    command
        .args(["-t", "1", "-c", &connections.to_string()])
        .args(["-m", &streams.to_string(), "-n", &calls.to_string()]);
    for header in headers {
        command.args(["-H", header]);
    }
    if let Some(body) = body {
        command.arg("-d").arg(body);
    }
    if let Some(log) = log {
        command.arg(format!("--log-file={}", log.display()));
    }
    let printed = tool::run(command.arg(format!("http://{addr}{path}")));
    let all = format!("status codes: {calls} 2xx, 0 3xx, 0 4xx, 0 5xx");
    assert!(
        printed.contains(&all),
        "not every call succeeded:\n{printed}"
    );
    let rate = printed.lines().find_map(|line| {
        let rate = line.strip_prefix("finished in")?.split(", ").nth(1)?;
        rate.strip_suffix(" req/s")?.parse().ok()
    });
    rate.unwrap_or_else(|| panic!("no rate in:\n{printed}"))
}

/// The latencies of a log of h2load, in microseconds, in order of size.
fn latencies(log: &Path) -> Vec<f64> {
    let log = fs::read_to_string(log).expect("h2load has written its log");
    let latency = |line: &str| line.split('\t').nth(2)?.parse().ok();
    let mut latencies: Vec<f64> = log.lines().filter_map(latency).collect();
    latencies.sort_by(f64::total_cmp);
    latencies
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn frame(message: &impl Message) -> Vec<u8> {
    let encoded = message.encode_to_vec();
    let length = u32::try_from(encoded.len()).expect("a request is short");
    [&[0][..], &length.to_be_bytes(), &encoded].concat()
}
