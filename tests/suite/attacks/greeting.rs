//! Clients that do not speak what the port speaks: they get one readable line where they can read one,
//! and are closed quickly.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time,
};
use tokio::{process::Command, task::block_in_place};
use tokio_rustls::TlsConnector;

use super::raw::{PREFACE, connect_and_send};
use crate::support::{Authority, Gatekey, Setup, tool};

/// More than a refusal takes, and less than a preface may.
const QUICKLY: Duration = Duration::from_secs(5);
const HEALTH: (&str, &str) = ("GATEKEY_HEALTH_LISTEN", "127.0.0.1:0");
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: gatekey\r\n\r\n";

/// All that is answered until the end of the connection, which must come quickly.
async fn answer(mut stream: impl AsyncRead + Unpin) -> io::Result<String> {
    let mut read = Vec::new();
    let end = time::timeout(QUICKLY, stream.read_to_end(&mut read)).await;
    end.expect("it is closed quickly")?;
    Ok(String::from_utf8_lossy(&read).into_owned())
}

/// Asserts that this is a response of HTTP/1.1 with one line, and returns the line.
fn line(response: &str) -> &str {
    let (head, body) = response.split_once("\r\n\r\n").expect("a response");
    assert!(
        head.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{response}"
    );
    let length = format!("content-length: {}", body.len());
    assert!(head.lines().any(|line| line == length), "{response}");
    let line = body.strip_suffix('\n').expect("a line");
    assert!(!line.contains('\n'), "{response}");
    line
}

fn connector(authority: &Authority, protocols: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(authority.pem.as_bytes()).expect("a certificate");
    roots.add(ca).expect("a CA");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("it has versions")
        .with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    TlsConnector::from(Arc::new(config))
}

async fn handshake(
    to: SocketAddr,
    connector: &TlsConnector,
) -> io::Result<impl AsyncRead + AsyncWrite + Unpin> {
    let stream = TcpStream::connect(to).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    connector.connect(name, stream).await
}

fn setup() -> Setup {
    Gatekey::sqlite().env(HEALTH.0, HEALTH.1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http_1_reads_one_line_that_says_what_the_port_speaks() {
    let server = setup().start().await;
    let long = format!("POST /v1 HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    let requests = [
        GET,
        b"OPTIONS * HTTP/1.0\r\n\r\n",
        b"HEAD ",
        long.as_bytes(),
    ];
    for port in [server.addr(), server.health_addr()] {
        for request in requests {
            let answer = answer(connect_and_send(port, request).await).await;
            let answer = answer.expect("it is not reset");
            let line = line(&answer);
            assert!(line.contains("gRPC over HTTP/2 without TLS"), "{line}");
            assert!(line.contains("grpcurl -plaintext"), "{line}");
        }
        // It may come byte by byte.
        let mut slow = connect_and_send(port, b"").await;
        for byte in &GET[..8] {
            slow.write_all(&[*byte]).await.expect("it waits for more");
            slow.flush().await.expect("it waits for more");
            if *byte == b' ' {
                break;
            }
            time::sleep(Duration::from_millis(5)).await;
        }
        line(&answer(slow).await.expect("it is not reset"));
    }
    server.wait_for_log("the client speaks HTTP/1").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_a_client_of_http_1_reads_the_line_with_and_without_alpn() {
    let authority = Authority::new("ours");
    let server = setup().encrypted(&authority).start().await;
    for protocols in [&[][..], &["http/1.1"]] {
        let connector = connector(&authority, protocols);
        let mut stream = handshake(server.addr(), &connector).await.expect("TLS");
        stream.write_all(GET).await.expect("it takes bytes");
        let answer = answer(stream).await.expect("it is not reset");
        let line = line(&answer);
        assert!(line.contains("gRPC over HTTP/2 with TLS"), "{line}");
        assert!(line.contains("grpcurl HOST:PORT"), "{line}");
    }
    // Who speaks both gets HTTP/2.
    let connector = connector(&authority, &["http/1.1", "h2"]);
    let mut stream = handshake(server.addr(), &connector).await.expect("TLS");
    stream.write_all(PREFACE).await.expect("it takes bytes");
    let mut settings = [0; 9];
    let read = time::timeout(QUICKLY, stream.read_exact(&mut settings)).await;
    read.expect("it answers").expect("it answers");
    assert_eq!(settings[3], 4, "a SETTINGS frame");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_to_a_port_of_tls_and_tls_to_a_plaintext_port_are_closed_quickly() {
    let authority = Authority::new("ours");
    let secure = setup().encrypted(&authority).start().await;
    let text = answer(connect_and_send(secure.addr(), GET).await).await;
    let text = text.expect("it is not reset");
    assert!(line(&text).contains("with TLS"), "{text}");
    let nothing = answer(connect_and_send(secure.addr(), PREFACE).await).await;
    assert!(nothing.map_or(true, |text| text.is_empty()));
    secure.wait_for_log("the client does not speak TLS").await;

    let plain = setup().start().await;
    let connector = connector(&authority, &["h2"]);
    for port in [plain.addr(), plain.health_addr()] {
        let tried = time::timeout(QUICKLY, handshake(port, &connector)).await;
        assert!(tried.expect("it is closed quickly").is_err());
    }
    plain
        .wait_for_log("the client speaks TLS to a port without TLS")
        .await;
    let noise = answer(connect_and_send(plain.addr(), &[0xff; 64]).await).await;
    assert!(noise.map_or(true, |text| text.is_empty()));
    plain.stop().await;
    secure.stop().await;
}

/// Calls health 50 times with metadata that differs, over a channel to a list of addresses.
const PYTHON: &str = r#"
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
check = channel.unary_unary("/grpc.health.v1.Health/Check")
for number in range(50):
    answer = check(b"", timeout=10, metadata=[("x-number", str(number) * 100)])
    assert answer == b"\x08\x01", answer
print("served")
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_python_is_served_with_a_list_of_addresses() {
    let server = setup().start().await;
    let (main, health) = (server.addr(), server.health_addr());
    for target in [
        format!("ipv4:{main},{health}"),
        format!("ipv4:{main},{health},{main}"),
        format!("ipv4:{main}"),
    ] {
        let mut python = Command::from(block_in_place(tool::python_with_grpc));
        let ended = python.args(["-c", PYTHON, &target]).output().await;
        let output = ended.expect("python runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{target}: {said}");
    }
    server.stop().await;
}
