//! Connections before a call: too many of them, silent ones, and headers that are too long.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use gatekey::api::proto::Reason;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::{JoinSet, block_in_place},
    time,
};
use tonic::{Code, Status, codegen::Bytes};

use super::raw::{PREFACE, Raw, beside, connect_and_send, connect_from, duration, is_alive};
use crate::support::{Gatekey, client::error_reason, prometheus::get};

const DEADLINE: Duration = Duration::from_secs(20);
const METRICS: (&str, &str) = ("GATEKEY_METRICS_LISTEN", "127.0.0.1:0");
const HEALTH: (&str, &str) = ("GATEKEY_HEALTH_LISTEN", "127.0.0.1:0");
/// Addresses that attackers come from.
const ATTACKERS: [[u8; 4]; 4] = [
    [127, 0, 0, 2],
    [127, 0, 0, 3],
    [127, 0, 0, 4],
    [127, 0, 0, 5],
];
/// File descriptors of the server in a test of a few seconds, and connections of an attack on it.
const DESCRIPTORS: u32 = 2048;
const CONNECTIONS: usize = 3000;
/// More than the server ever holds, for an attack that lasts.
const CONNECTIONS_LONG: usize = 17_000;

/// A sample of the metrics page.
fn sample(server: &Gatekey, name: &str) -> u64 {
    let (good, page) = block_in_place(|| get(server.metrics(), "/metrics")).expect("it answers");
    assert!(good, "{page}");
    let mut lines = page.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("no {name} in\n{page}"));
    value.parse().expect("a whole number")
}

/// Waits until a sample has this value.
async fn wait_for(server: &Gatekey, name: &str, wanted: impl Fn(u64) -> bool) {
    let reached = time::timeout(DEADLINE, async {
        while !wanted(sample(server, name)) {
            time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(reached.await.is_ok(), "{name} is {}", sample(server, name));
}

/// Opens connections from all attackers as fast as it can, and keeps the newest `most`, on which
/// nothing, half a preface or a whole one was sent.
async fn hold_idle(to: SocketAddr, most: usize) -> u64 {
    let until = Instant::now() + duration();
    let mut attackers = JoinSet::new();
    for from in ATTACKERS {
        attackers.spawn(async move {
            let (mut held, mut count) = (VecDeque::new(), 0);
            while Instant::now() < until {
                let Ok(mut stream) = connect_from(from, to).await else {
                    time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let bytes = [&[], &PREFACE[..12], PREFACE][count % 3];
                // It may have been closed already.
                let _ = stream.write_all(bytes).await;
                held.push_back(stream);
                count += 1;
                if held.len() > most / ATTACKERS.len() {
                    held.pop_front();
                }
            }
            count as u64
        });
    }
    attackers.join_all().await.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_beyond_the_limit_make_room_for_others() {
    let long = duration() > Duration::from_secs(30);
    let setup = Gatekey::sqlite()
        .env(METRICS.0, METRICS.1)
        .env("GATEKEY_LOG", "info");
    let (setup, connections) = if long {
        (setup, CONNECTIONS_LONG)
    } else {
        (setup.descriptors(DESCRIPTORS), CONNECTIONS)
    };
    let server = setup.start().await;
    let attack = hold_idle(server.addr(), connections);
    let opened = beside("row 5, idle connections", &server, attack).await;
    println!("{opened} connections were opened");
    let max = sample(&server, "gatekey_connections_max{port=\"main\"}");
    assert!(
        opened > max,
        "{opened} connections do not fill {max} places"
    );
    let closed = |why| sample(&server, &closed("main", why));
    assert!(closed("evicted") > 0);
    assert!(server.logs().matches("connections were refused").count() < 3);
    server.stop().await;
}

fn closed(port: &str, why: &str) -> String {
    format!("gatekey_connections_closed_total{{port=\"{port}\",reason=\"{why}\"}}")
}

fn refused(port: &str, why: &str) -> String {
    format!("gatekey_connections_refused_total{{port=\"{port}\",reason=\"{why}\"}}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_256_descriptors_health_and_metrics_survive_a_flood_of_the_main_port() {
    let server = Gatekey::sqlite()
        .env(METRICS.0, METRICS.1)
        .env(HEALTH.0, HEALTH.1)
        .env("GATEKEY_LOG", "info")
        .descriptors(256)
        .start()
        .await;
    let attack = async {
        let flood = hold_idle(server.addr(), 600);
        let probes = async {
            let until = Instant::now() + duration();
            while Instant::now() < until {
                assert!(is_alive(server.health_addr()).await, "probes are answered");
                sample(&server, "gatekey_connections{port=\"main\"}");
                time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::join!(flood, probes).0
    };
    beside("row 5, at 256 descriptors", &server, attack).await;
    // The limit was not only not exceeded: no descriptor was missing.
    assert_eq!(sample(&server, &refused("main", "not_accepted")), 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_streams_of_one_address_take_its_share_only() {
    let server = Gatekey::sqlite()
        .env(METRICS.0, METRICS.1)
        .env("GATEKEY_CONNECTIONS_PER_ADDRESS", "3")
        .env("GATEKEY_LOG", "info")
        .start()
        .await;
    let from = async |number| {
        let stream = connect_from(ATTACKERS[number], server.addr()).await;
        stream.expect("it listens")
    };
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut raw = Raw::over(from(0).await).await;
        held.push((raw.watch().await, raw));
    }
    for _ in 0..5 {
        let mut one_more = from(0).await;
        let end = time::timeout(DEADLINE, one_more.read_to_end(&mut Vec::new())).await;
        assert!(end.is_ok(), "it is closed at once");
    }
    assert_eq!(sample(&server, &refused("main", "address")), 5);
    let warned = || server.logs().matches("connections were refused").count();
    assert_eq!(warned(), 1, "{}", server.logs());
    let mut other = Raw::over(from(1).await).await;
    drop(other.watch().await);

    // One without a stream makes room.
    let (body, raw) = held.pop().expect("there are three");
    drop(body);
    let admitted = time::timeout(DEADLINE, async {
        let mut another = from(0).await;
        let closed = async |stream: &mut TcpStream| {
            let mut byte = [0];
            let read = stream.read(&mut byte);
            time::timeout(Duration::from_millis(200), read)
                .await
                .is_ok()
        };
        while closed(&mut another).await {
            another = from(0).await;
        }
    });
    admitted.await.expect("there is room for it");
    let ended = time::timeout(DEADLINE, raw.ended)
        .await
        .expect("it is ended");
    ended.expect("no panic").expect("it is ended gracefully");
    assert_eq!(sample(&server, &closed("main", "evicted")), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_hold_up_neither_probes_nor_scrapes_and_are_closed_after_10_s() {
    let server = Gatekey::sqlite()
        .env(METRICS.0, METRICS.1)
        .env(HEALTH.0, HEALTH.1)
        .env("GATEKEY_LOG", "info")
        .start()
        .await;
    let mut silent = Vec::new();
    for number in 0..400 {
        let bytes = [&[], PREFACE][number % 2];
        silent.push(connect_and_send(server.health_addr(), bytes).await);
    }
    for _ in 0..64 {
        silent.push(connect_and_send(server.metrics(), b"").await);
    }
    let mut idle = Raw::connect(server.health_addr()).await;
    let began = Instant::now();
    assert!(is_alive(server.health_addr()).await);
    let open = sample(&server, "gatekey_connections{port=\"health\"}");
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    assert!(open > 100, "{open} are open");

    // One that has been used, and is idle then, ends in order.
    drop(idle.watch().await);
    let ended = time::timeout(DEADLINE, idle.ended)
        .await
        .expect("it is ended");
    ended.expect("no panic").expect("it is ended gracefully");
    assert!(
        began.elapsed() > Duration::from_secs(9),
        "{:?}",
        began.elapsed()
    );
    wait_for(&server, "gatekey_connections{port=\"health\"}", |open| {
        open == 0
    })
    .await;
    // The one that reads this.
    wait_for(&server, "gatekey_connections{port=\"metrics\"}", |open| {
        open == 1
    })
    .await;
    assert!(sample(&server, &closed("health", "idle")) > 0);
    drop(silent);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_of_the_main_port_is_closed_after_a_minute_and_its_client_reconnects() {
    let server = Gatekey::sqlite().env(METRICS.0, METRICS.1).start().await;
    let admin = server.admin().await;
    let (_, key) = admin.issue("default", &["jobs:read"]).await;
    let idle = Raw::connect(server.addr()).await;
    let mut busy = Raw::connect(server.addr()).await;
    let _open = busy.watch().await;
    let began = Instant::now();
    let ended = time::timeout(Duration::from_secs(75), idle.ended).await;
    let ended = ended.expect("it is ended").expect("no panic");
    ended.expect("it is ended gracefully");
    assert!(
        began.elapsed() > Duration::from_secs(55),
        "{:?}",
        began.elapsed()
    );
    assert!(!busy.ended.is_finished(), "one with a stream stays");
    wait_for(&server, &closed("main", "idle"), |closed| closed == 2).await;
    assert_eq!(admin.reason(&key).await, Reason::Allowed);
    server.stop().await;
}

/// Calls with this much metadata, whatever the method: the status, or the code of HTTP.
async fn call_with_metadata(raw: &mut Raw, length: usize) -> Result<Status, u16> {
    let value = "x".repeat(length);
    let (answer, mut body) = raw
        .begin("gatekey.v1.KeyService/Validate", &[("x-long", &value)])
        .await;
    // It may be refused already.
    let _ = body.send_data(Bytes::from_static(&[0; 5]), true);
    let answer = answer.await.expect("it is answered");
    if answer.status() != 200 {
        return Err(answer.status().as_u16());
    }
    Ok(Status::from_header_map(answer.headers()).expect("a status"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_that_is_too_long_is_refused_for_that_call_only() {
    let server = Gatekey::sqlite().env(METRICS.0, METRICS.1).start().await;
    let mut raw = Raw::connect(server.addr()).await;
    let neighbour = raw.watch().await;
    for length in [16 * 1024, 65_000, 66_000, 120_000] {
        let status = call_with_metadata(&mut raw, length)
            .await
            .expect("a status");
        assert_eq!(
            status.code(),
            Code::ResourceExhausted,
            "{length}: {status:?}"
        );
        assert_eq!(error_reason(&status), "METADATA_TOO_LARGE");
    }
    // Beyond what is read at all, HTTP/2 answers.
    assert_eq!(
        call_with_metadata(&mut raw, 150_000).await.unwrap_err(),
        431
    );
    assert!(
        !raw.ended.is_finished(),
        "the neighbour's connection stands"
    );
    drop(neighbour);
    let mut still = raw.watch().await;
    assert!(
        time::timeout(Duration::from_millis(200), still.data())
            .await
            .is_err()
    );
    assert_eq!(
        sample(
            &server,
            "gatekey_streams_refused_total{reason=\"metadata\"}"
        ),
        4
    );
    // What is just short of it is served.
    let status = call_with_metadata(&mut raw, 15_000)
        .await
        .expect("a status");
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
}

/// Sends calls with too much metadata over and over, 20 at once on each connection.
async fn flood_metadata(server: &Gatekey, connections: usize) -> usize {
    let until = Instant::now() + duration();
    let mut floods = JoinSet::new();
    let addr = server.addr();
    for number in 0..connections {
        floods.spawn(async move {
            let stream = connect_from(ATTACKERS[number % ATTACKERS.len()], addr).await;
            let mut raw = Raw::over(stream.expect("it listens")).await;
            let (value, mut calls) = ("x".repeat(110_000), 0);
            while Instant::now() < until {
                let mut open = Vec::new();
                for _ in 0..20 {
                    let method = "gatekey.v1.KeyService/Validate";
                    open.push(raw.begin(method, &[("x-long", &value)]).await);
                    calls += 1;
                }
                for (answer, _) in open {
                    assert_eq!(answer.await.expect("an answer").status(), 200);
                }
                // It is about memory: this is 2 MB a second on each connection.
                time::sleep(Duration::from_secs(1)).await;
            }
            calls
        });
    }
    floods.join_all().await.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_long_metadata_takes_little_memory() {
    let server = Gatekey::sqlite().env("GATEKEY_LOG", "info").start().await;
    let attack = flood_metadata(&server, 10);
    let calls = beside("row 1, metadata of 110 KB", &server, attack).await;
    println!("{calls} calls");
    server.stop().await;
}

/// Header blocks that never end (CONTINUATION), on connections that are made anew when they are cut.
async fn flood_continuations(addr: SocketAddr) -> usize {
    let until = Instant::now() + duration();
    let mut floods = JoinSet::new();
    for from in ATTACKERS {
        floods.spawn(async move {
            let mut cut = 0;
            while Instant::now() < until {
                let Ok(mut stream) = connect_from(from, addr).await else {
                    continue;
                };
                let block = [&b"\x00\x01a\x7f\xff\xff\x7f"[..], &[b'x'; 16_000]].concat();
                let headers = frame(1, 0, &block);
                let more = frame(9, 0, &[b'x'; 16_000]);
                let all = [PREFACE, &headers, &more.repeat(50)].concat();
                let _ = stream.write_all(&all).await;
                let mut read = Vec::new();
                let end = stream.read_to_end(&mut read);
                assert!(time::timeout(DEADLINE, end).await.is_ok(), "it is cut");
                cut += 1;
            }
            cut
        });
    }
    floods.join_all().await.into_iter().sum()
}

/// A frame of HTTP/2, of its first stream.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("it is short");
    let [high, low] = length.to_be_bytes();
    [&[0, high, low, kind, flags, 0, 0, 0, 1], payload].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_blocks_without_an_end_are_cut_and_take_little_memory() {
    let server = Gatekey::sqlite().env("GATEKEY_LOG", "info").start().await;
    let attack = flood_continuations(server.addr());
    let cut = beside("row 1, endless header blocks", &server, attack).await;
    println!("{cut} connections were cut");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_announces_128_calls_and_64_kib_of_each() {
    let server = Gatekey::sqlite().start().await;
    let mut raw = Raw::connect(server.addr()).await;
    raw.check().await;
    assert_eq!(raw.send.current_max_send_streams(), 128);
    let (_answer, mut body) = raw.begin("grpc.health.v1.Health/Watch", &[]).await;
    body.reserve_capacity(1 << 20);
    let capacity = std::future::poll_fn(|cx| body.poll_capacity(cx)).await;
    let capacity = capacity.expect("it is open").expect("capacity");
    assert!((60_000..=66_000).contains(&capacity), "{capacity}");
    body.send_data(Bytes::from_static(&[0; 5]), true)
        .expect("it is sent");
}
