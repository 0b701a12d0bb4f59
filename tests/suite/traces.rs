//! Traces, seen by a real collector: what a caller began arrives there with gatekey's part in it,
//! and a collector that is away is no caller's concern.

use std::{net::TcpListener, process::Stdio, time::Duration};

use gatekey::api::proto::{
    CreateKeyRequest, CreateKeyResponse, ListEventsRequest,
    event_service_client::EventServiceClient, key_service_client::KeyServiceClient,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    time,
};
use tonic::Request;

use crate::support::{process::Gatekey, tool};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_call_that_began_in_a_client_arrives_at_a_real_collector_with_its_parent() {
    let mut collector = Collector::start().await;
    let gatekey = Gatekey::sqlite()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .start()
        .await;

    let created = create_key(&gatekey, true).await;
    let key_id = created.key.expect("a key").key_id;

    let mut events = EventServiceClient::connect(format!("http://{}", gatekey.addr()))
        .await
        .unwrap();
    let list = ListEventsRequest {
        tenant_id: "default".to_owned(),
        key_id,
        ..ListEventsRequest::default()
    };
    let listed = events.list_events(as_admin(&gatekey, list)).await.unwrap();
    let [event] = &listed.into_inner().events[..] else {
        panic!("one change is one event");
    };
    assert_eq!(event.trace_id, TRACE);

    let admin_token = gatekey.admin_token();
    gatekey.stop().await;
    let span = collector.span("gatekey.v1.KeyService/CreateKey").await;
    assert_eq!(field(&span, "Trace ID"), TRACE);
    assert_eq!(field(&span, "Parent ID"), PARENT);
    assert_eq!(field(&span, "Kind"), "SPAN_KIND_SERVER");
    assert_eq!(field(&span, "Status code"), "STATUS_CODE_UNSET");
    assert_eq!(field(&span, "-> rpc.method"), "Str(CreateKey)");
    assert_eq!(field(&span, "-> rpc.grpc.status_code"), "Int(0)");
    for (child, kind) in [
        ("argon2", "SPAN_KIND_INTERNAL"),
        ("store begin", "SPAN_KIND_CLIENT"),
        ("store commit", "SPAN_KIND_CLIENT"),
    ] {
        let child = collector.seen_span(TRACE, child);
        assert_eq!(field(&child, "Parent ID"), field(&span, "ID"));
        assert_eq!(field(&child, "Kind"), kind);
    }
    for secret in [created.plaintext_key, admin_token] {
        assert!(!collector.seen.contains(&secret), "a trace holds a secret");
    }
}

#[tokio::test]
async fn a_collector_that_is_away_fails_neither_the_start_nor_a_call() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let gatekey = Gatekey::sqlite()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", nobody)
        .start()
        .await;
    assert!(create_key(&gatekey, true).await.key.is_some());
    gatekey.stop().await;
}

#[tokio::test]
async fn the_sampler_that_is_set_decides() {
    let mut collector = Collector::start().await;
    let gatekey = Gatekey::sqlite()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .env("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        .start()
        .await;
    // Spans are sent in this order.
    create_key(&gatekey, false).await;
    create_key(&gatekey, true).await;
    gatekey.stop().await;
    let first = collector.span("gatekey.v1.KeyService/CreateKey").await;
    assert_eq!(field(&first, "Trace ID"), TRACE);
}

/// Creates a key as the admin, inside a trace that began elsewhere or in none.
async fn create_key(gatekey: &Gatekey, traced: bool) -> CreateKeyResponse {
    let mut request = as_admin(
        gatekey,
        CreateKeyRequest {
            tenant_id: "default".to_owned(),
            owner_id: "ada".to_owned(),
            label: "traced".to_owned(),
            scopes: vec!["jobs:read".to_owned()],
            ..CreateKeyRequest::default()
        },
    );
    if traced {
        let traceparent = format!("00-{TRACE}-{PARENT}-01");
        request
            .metadata_mut()
            .insert("traceparent", traceparent.parse().unwrap());
    }
    let mut keys = KeyServiceClient::connect(format!("http://{}", gatekey.addr()))
        .await
        .unwrap();
    keys.create_key(request).await.unwrap().into_inner()
}

fn as_admin<T>(gatekey: &Gatekey, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {}", gatekey.admin_token());
    request
        .metadata_mut()
        .insert("authorization", bearer.parse().unwrap());
    request
}

/// rotel, printing what it receives.
struct Collector {
    port: u16,
    lines: Lines<BufReader<ChildStdout>>,
    /// All it has printed so far.
    seen: String,
    // Killed when it is dropped; its folder goes after it.
    _process: Child,
    _folder: TempDir,
}

impl Collector {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (port, http) = (free_port(), free_port());
        let mut process = Command::new(tool::rotel())
            .args(["start", "--exporter", "blackhole"])
            .args(["--debug-log", "traces", "--debug-log-verbosity", "detailed"])
            .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{port}")])
            .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
            .arg("--pid-file")
            .arg(folder.path().join("pid"))
            .arg("--log-file")
            .arg(folder.path().join("log"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        time::timeout(DEADLINE, async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                time::sleep(Duration::from_millis(20)).await; // it says nothing when it listens
            }
        })
        .await
        .expect("rotel does not listen");
        Self {
            port,
            lines,
            seen: String::new(),
            _process: process,
            _folder: folder,
        }
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The only span of that name in a trace, of those that have been seen: children end before their parents.
    fn seen_span(&self, trace: &str, name: &str) -> Vec<String> {
        let spans = self.seen.split("Span #");
        let spans = spans.map(|span| span.lines().map(str::to_owned).collect::<Vec<_>>());
        let found: Vec<_> = spans
            .filter(|span| field(span, "Trace ID") == trace && field(span, "Name") == name)
            .collect();
        let [span] = &found[..] else {
            panic!("{name} is there {} times in:\n{}", found.len(), self.seen);
        };
        span.clone()
    }

    /// Waits for a span of that name, and returns its lines up to its status.
    async fn span(&mut self, name: &str) -> Vec<String> {
        let mut span = Vec::new();
        let found = time::timeout(DEADLINE, async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                self.seen.push_str(&line);
                self.seen.push('\n');
                if line.starts_with("Span #") {
                    span.clear();
                }
                span.push(line);
                let whole = span.last().unwrap().contains("rpc.grpc.status_code");
                if whole && field(&span, "Name") == name {
                    return;
                }
            }
        });
        assert!(found.await.is_ok(), "no {name} in:\n{}", self.seen);
        span
    }
}

/// The value of a line such as `    Parent ID      : 00f067aa0ba902b7`; empty without one.
fn field<'a>(span: &'a [String], name: &str) -> &'a str {
    span.iter()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map_or("", |(_, value)| value.trim())
}

/// A port that was free a moment ago: rotel cannot be given an open socket, and does not say
/// which port it took.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
