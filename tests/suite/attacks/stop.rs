//! The stop beside connections whose clients do nothing, and the second signal.

use std::{
    fs,
    net::TcpListener,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time;

use super::raw::{PREFACE, Raw, connect_and_send};
use crate::{inside::Inside, program::Program, support::Gatekey};

/// How long a stop may take when no call is being carried out.
const STOP_MAX: Duration = Duration::from_secs(2);
const HEALTH: (&str, &str) = ("GATEKEY_HEALTH_LISTEN", "127.0.0.1:0");

/// Opens a stream whose client gives no window for the answer.
async fn without_window(server: &Gatekey) -> Raw {
    let stream = tokio::net::TcpStream::connect(server.addr()).await;
    let handshake = h2::client::Builder::new()
        .initial_window_size(0)
        .handshake(stream.expect("it listens"));
    let (send, driving) = handshake.await.expect("it speaks HTTP/2");
    let mut raw = Raw {
        send,
        ended: tokio::spawn(driving),
    };
    for method in ["Watch", "Check"] {
        let (answer, mut body) = raw
            .begin(&format!("grpc.health.v1.Health/{method}"), &[])
            .await;
        body.send_data(vec![0; 5].into(), true).expect("it is sent");
        let answer = answer.await.expect("a head");
        // The body is never read, and not given back either.
        std::mem::forget(answer);
    }
    raw
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_takes_2_s_at_most_whatever_clients_that_do_nothing_hold_open() {
    let server = Gatekey::sqlite().env(HEALTH.0, HEALTH.1).start().await;
    let mut silent = Vec::new();
    for port in [server.addr(), server.health_addr()] {
        // Nothing, half a preface, a whole one, and one whose pings nobody answers.
        for bytes in [b"", &PREFACE[..12], PREFACE] {
            silent.push(connect_and_send(port, bytes).await);
        }
    }
    let _idle = Raw::connect(server.addr()).await;
    let mut watching = Raw::connect(server.addr()).await;
    let _watch = watching.watch().await;
    let mut probing = Raw::connect(server.health_addr()).await;
    let _probe = probing.watch().await;
    let mut reflecting = Raw::connect(server.addr()).await;
    let method = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let (reflection, _open) = reflecting.begin(method, &[]).await;
    let _reflection = reflection.await.expect("a head");
    let _stalled = without_window(&server).await;

    let began = Instant::now();
    let stopped = server.stop().await;
    let took = began.elapsed();
    let log = stopped.logs().lines();
    for line in log.filter(|line| line.contains(r#""level":"INFO""#)) {
        println!("{line}");
    }
    println!("the stop took {took:?}");
    assert!(took < STOP_MAX, "it took {took:?}");
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_process_at_once_while_a_call_is_carried_out() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let setup = Gatekey::sqlite();
        let mut running = Program::of(&setup, &[]).env("GATEKEY_DRAIN", "1m").start();
        let addr = running.serving().await;
        let mut inside = Inside::of(&setup).await;
        inside.hold().await;
        let token = fs::read_to_string(setup.folder().join("gatekey-admin.token"));
        let token = format!("Bearer {}", token.expect("a token").trim());
        let mut raw = Raw::connect(addr).await;
        let headers = [("authorization", &*token)];
        let (_answer, mut body) = raw
            .begin("gatekey.v1.TenantService/CreateTenant", &headers)
            .await;
        let message = b"\0\0\0\0\x08\x0a\x06\x0a\x04acme";
        body.send_data(message.to_vec().into(), true)
            .expect("it is sent");
        raw.check().await;
        running.signal(signal);
        running.wait_for("stopping").await;
        // The call goes on.
        time::sleep(Duration::from_millis(1500)).await;
        let began = Instant::now();
        let (status, _) = running.end_by(signal).await;
        assert_eq!(status.code(), Some(code));
        assert!(began.elapsed() < STOP_MAX, "{:?}", began.elapsed());
        inside.let_go().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_ends_a_start_that_waits_for_its_database() {
    let folder = TempDir::new().expect("a temporary folder");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!(
        "postgres://gatekey@{}/keys",
        silent.local_addr().expect("it is bound")
    );
    let program = |url: &str| {
        Program::bare(folder.path(), &[])
            .env("GATEKEY_LISTEN", "127.0.0.1:0")
            .env("GATEKEY_METRICS_LISTEN", "off")
            .env("GATEKEY_LOG", "debug")
            .env("GATEKEY_DATABASE_URL", url)
    };
    // One that never answers, and one that refuses.
    for url in [&*url, "postgres://gatekey@127.0.0.1:1/keys"] {
        let mut running = program(url).start();
        let mut held = None;
        if url.ends_with(":1/keys") {
            running.wait_for("trying for 30 s").await;
        } else {
            held = Some(silent.accept().expect("it connects"));
        }
        let began = Instant::now();
        let (status, _) = running.end_by(Signal::TERM).await;
        assert!(status.success(), "{status}");
        assert!(began.elapsed() < STOP_MAX, "{:?}", began.elapsed());
        drop(held);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_in_use_leaves_no_files_behind() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("it is bound").to_string();
    for variable in [
        "GATEKEY_LISTEN",
        "GATEKEY_HEALTH_LISTEN",
        "GATEKEY_METRICS_LISTEN",
    ] {
        let folder = TempDir::new().expect("a temporary folder");
        let ended = Program::bare(folder.path(), &[])
            .env("GATEKEY_LISTEN", "127.0.0.1:0")
            .env("GATEKEY_METRICS_LISTEN", "off")
            .env(variable, &address)
            .end()
            .await;
        assert!(ended.deny_reason().contains(variable), "{ended:?}");
        let left = fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(left, 0, "{variable}");
    }
}
