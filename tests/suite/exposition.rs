//! `/metrics` over HTTP: the two text formats, and requests that are not for them.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
};

use tokio::task::block_in_place;

use crate::support::{Gatekey, tool};

const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_format_is_the_one_that_is_asked_for_and_both_say_the_same() {
    let server = served().await;
    let get = |accept: &str| request(server.metrics(), "GET", "/metrics", accept);
    for accept in ["", "Accept: */*\r\n", "Accept: text/html\r\n"] {
        let answer = get(accept);
        assert_eq!((answer.status, &*answer.kind), (200, CLASSIC), "{accept}");
        assert!(!answer.body.contains("# EOF") && !answer.body.contains("# UNIT"));
        assert!(answer.body.contains("# TYPE gatekey_calls_total counter\n"));
        assert!(answer.body.contains("\ngatekey_calls_total{"));
    }
    let openmetrics = get(
        "Accept: application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5\r\n",
    );
    assert_eq!((openmetrics.status, &*openmetrics.kind), (200, OPENMETRICS));
    assert!(openmetrics.body.ends_with("\n# EOF\n"));
    assert!(openmetrics.body.contains("# TYPE gatekey_calls counter\n"));

    let samples = |body: &str| {
        let lines = body.lines().filter(|line| !line.starts_with('#'));
        let names = lines.filter_map(|line| line.rsplit_once(' '));
        names.map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(samples(&get("").body), samples(&openmetrics.body));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promtool_finds_nothing_wrong_with_the_classic_page() {
    let server = served().await;
    let page = request(server.metrics(), "GET", "/metrics", "").body;
    let [_, promtool] = block_in_place(tool::prometheus);
    let mut check = Command::new(&promtool[0])
        .args(&promtool[1..])
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it was seen to run");
    let mut stdin = check.stdin.take().expect("a pipe");
    stdin.write_all(page.as_bytes()).expect("it reads");
    drop(stdin);
    let output = check.wait_with_output().expect("it is our child");
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && printed.is_empty(), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_methods_and_paths_are_answered_as_http_has_it() {
    let server = served().await;
    let ask = |method: &str, path: &str| request(server.metrics(), method, path, "");
    assert_eq!(ask("GET", "/metrics?name[]=up").status, 200);
    let head = ask("HEAD", "/metrics");
    assert_eq!((head.status, &*head.kind, &*head.body), (200, CLASSIC, ""));
    for path in ["/", "/metrics/", "/Metrics", "/metrics/../metrics"] {
        assert_eq!(ask("GET", path).status, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let answer = ask(method, "/metrics");
        assert_eq!(
            (answer.status, answer.allow.as_deref()),
            (405, Some("GET, HEAD")),
            "{method}"
        );
    }
}

async fn served() -> Gatekey {
    let setup = Gatekey::sqlite().env("GATEKEY_METRICS_LISTEN", "127.0.0.1:0");
    let server = setup.start().await;
    let admin = server.admin().await;
    let (_, plaintext) = admin.issue("default", &["jobs:read"]).await;
    admin.reason(&plaintext).await;
    server
}

struct Answer {
    status: u16,
    kind: String,
    allow: Option<String>,
    body: String,
}

/// Sends one request with these further header lines, and reads the answer to its end.
fn request(addr: SocketAddr, method: &str, path: &str, headers: &str) -> Answer {
    let text =
        format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n{headers}\r\n");
    let answer = block_in_place(|| {
        let mut stream = TcpStream::connect(addr).expect("it listens");
        stream.write_all(text.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .expect("it answers in UTF-8");
        answer
    });
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_owned())
    };
    Answer {
        status: status.expect("a status"),
        kind: header("content-type").unwrap_or_default(),
        allow: header("allow"),
        body: body.to_owned(),
    }
}
