//! What attacks are made with, and what is measured beside them.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use gatekey::api::proto::Reason;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
    task::{self, JoinHandle},
    time,
};
use tonic::{codegen::Bytes, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::support::{Client, Gatekey, client::ask};

/// What a client of HTTP/2 begins with, empty settings included.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The chart's default memory limit, in KiB.
const MEMORY_MAX: u64 = 472 * 1024;
/// How soon health and an admin's RevokeKey are answered during an attack.
const SOON: Duration = Duration::from_secs(1);
/// How soon after an attack all is as it was before.
const SETTLED: Duration = Duration::from_secs(10);
/// How long Validates are timed before an attack.
const BEFORE: Duration = Duration::from_secs(2);
/// The pause between two measured calls.
const PACE: Duration = Duration::from_millis(2);
const RARE: Duration = Duration::from_millis(250);

/// How long an attack lasts.
pub fn duration() -> Duration {
    let seconds = std::env::var("GATEKEY_ATTACK_SECONDS").ok();
    Duration::from_secs(seconds.map_or(5, |seconds| seconds.parse().expect("a number")))
}

/// Connects from this address of this machine.
pub async fn connect_from(from: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(IpAddr::from(from), 0))?;
    socket.connect(to).await
}

/// Connects and sends these bytes.
pub async fn connect_and_send(to: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.expect("it listens");
    stream.write_all(bytes).await.expect("it takes bytes");
    stream
}

pub type Sender = h2::client::SendRequest<Bytes>;

/// A connection of HTTP/2, whose end can be awaited.
pub struct Raw {
    pub send: Sender,
    pub ended: JoinHandle<Result<(), h2::Error>>,
}

impl Raw {
    pub async fn over(stream: TcpStream) -> Self {
        let handshake = h2::client::Builder::new().handshake(stream).await;
        let (send, driving) = handshake.expect("it speaks HTTP/2");
        Self {
            send,
            ended: tokio::spawn(driving),
        }
    }

    pub async fn connect(to: SocketAddr) -> Self {
        Self::over(TcpStream::connect(to).await.expect("it listens")).await
    }

    /// Begins a call with these headers beside the usual ones, and sends no body yet.
    pub async fn begin(
        &mut self,
        method: &str,
        headers: &[(&str, &str)],
    ) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
        let mut request = http::Request::post(format!("http://gatekey/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        let ready = self.send.clone().ready().await;
        self.send = ready.expect("it takes a call");
        self.send.send_request(request, false).expect("it is sent")
    }

    /// Asks for health. Once it is answered, the server has seen what was sent before.
    pub async fn check(&mut self) {
        let (answer, mut body) = self.begin("grpc.health.v1.Health/Check", &[]).await;
        body.send_data(Bytes::from_static(&[0; 5]), true)
            .expect("it is sent");
        let mut body = answer.await.expect("an answer").into_body();
        while let Some(data) = body.data().await {
            data.expect("a message");
        }
        body.trailers().await.expect("trailers");
    }

    /// Opens a stream that stays open: health's Watch.
    pub async fn watch(&mut self) -> h2::RecvStream {
        let (answer, mut body) = self.begin("grpc.health.v1.Health/Watch", &[]).await;
        body.send_data(Bytes::from_static(&[0; 5]), true)
            .expect("it is sent");
        let mut body = answer.await.expect("an answer").into_body();
        body.data().await.expect("a message").expect("a message");
        body
    }
}

/// KiB of memory that the server's process has in use.
pub fn resident(server: &Gatekey) -> u64 {
    let path = format!("/proc/{}/status", server.pid());
    let status = fs::read_to_string(path).expect("it runs");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|size| size.trim().strip_suffix(" kB"));
    resident.and_then(|size| size.parse().ok()).expect("a size")
}

/// Whether the server answers for its liveness there, over a new connection, in time.
pub async fn is_alive(addr: SocketAddr) -> bool {
    let asked = async {
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).expect("a URL");
        let channel = endpoint.connect().await.ok()?;
        let request = HealthCheckRequest::default();
        HealthClient::new(channel).check(request).await.ok()
    };
    time::timeout(SOON, asked)
        .await
        .is_ok_and(|it| it.is_some())
}

/// The p99 of these times, and how many there are.
fn p99(mut times: Vec<Duration>) -> (Duration, usize) {
    times.sort_unstable();
    let count = times.len();
    (times[count - 1 - count / 100], count)
}

/// Times Validates, one after the other, until `over`.
async fn validate(client: Client, key: String, over: Arc<AtomicBool>) -> Vec<Duration> {
    let mut times = Vec::new();
    while !over.load(Relaxed) {
        let began = Instant::now();
        let answer = client.try_validate(ask(&key)).await;
        let reason = answer.expect("it is answered during an attack").reason();
        assert_eq!(reason, Reason::Allowed);
        times.push(began.elapsed());
        time::sleep(PACE).await;
    }
    times
}

/// Issues keys beforehand and revokes them during an attack, one after the other, each in time.
async fn revoke(client: Client, over: Arc<AtomicBool>) -> Vec<Duration> {
    let mut times = Vec::new();
    while !over.load(Relaxed) {
        let (key, _) = client.issue("default", &["jobs:read"]).await;
        let began = Instant::now();
        client.revoke(&key, "an attack").await;
        let took = began.elapsed();
        assert!(took < SOON, "a RevokeKey took {took:?}");
        times.push(took);
        time::sleep(RARE).await;
    }
    times
}

/// Asks for health over new connections, which are answered in time.
async fn watch_health(addr: SocketAddr, over: Arc<AtomicBool>) -> Vec<Duration> {
    let mut times = Vec::new();
    while !over.load(Relaxed) {
        let began = Instant::now();
        assert!(is_alive(addr).await, "health is answered during an attack");
        times.push(began.elapsed());
        time::sleep(RARE).await;
    }
    times
}

/// Notes the most memory that is in use.
async fn watch_memory(path: String, most: Arc<AtomicU64>, over: Arc<AtomicBool>) {
    while !over.load(Relaxed) {
        let status = fs::read_to_string(&path).expect("it runs");
        let size = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let size = size.and_then(|size| size.trim().strip_suffix(" kB"));
        most.fetch_max(
            size.and_then(|size| size.parse().ok()).expect("a size"),
            Relaxed,
        );
        time::sleep(Duration::from_millis(50)).await;
    }
}

/// Runs an attack beside honest callers, who are served all the time; prints what was measured, and
/// asserts that memory stayed below the chart's limit, and that all is as before once it is over.
pub async fn beside<T>(name: &str, server: &Gatekey, attack: impl Future<Output = T>) -> T {
    let admin = server.admin().await;
    let (_, key) = admin.issue("default", &["jobs:read"]).await;
    let stopped = Arc::new(AtomicBool::new(false));
    let timed = tokio::spawn(validate(
        server.admin().await,
        key.clone(),
        Arc::clone(&stopped),
    ));
    time::sleep(BEFORE).await;
    stopped.store(true, Relaxed);
    let (before, _) = p99(timed.await.expect("Validate is answered"));
    let resident_before = resident(server);

    let (over, most) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let over = || Arc::clone(&over);
    let path = format!("/proc/{}/status", server.pid());
    let beside = (
        tokio::spawn(validate(server.admin().await, key.clone(), over())),
        tokio::spawn(revoke(server.admin().await, over())),
        tokio::spawn(watch_health(server.addr(), over())),
        tokio::spawn(watch_memory(path, Arc::clone(&most), over())),
    );
    let result = attack.await;
    over().store(true, Relaxed);
    let (validates, revokes) = (
        beside.0.await.expect("Validate is answered"),
        beside.1.await.expect("RevokeKey is answered"),
    );
    let healths = beside.2.await.expect("health is answered");
    beside.3.await.expect("it runs");
    let (during, count) = p99(validates);
    let most = most.load(Relaxed);

    let settled = time::timeout(SETTLED, async {
        while !is_alive(server.addr()).await {}
        let client = server.admin().await;
        assert_eq!(client.reason(&key).await, Reason::Allowed);
    });
    settled.await.expect("all is as before");
    println!(
        "ATTACK {name}: {} s; RSS {} MiB before, {} MiB at most, {} MiB after; Validate p99 {before:?} before, \
         {during:?} beside ({count} calls); slowest RevokeKey {:?}; slowest health {:?}",
        duration().as_secs(),
        resident_before / 1024,
        most / 1024,
        resident(server) / 1024,
        revokes.iter().max().expect("there was one"),
        healths.iter().max().expect("there was one"),
    );
    assert!(most < MEMORY_MAX, "{name}: {most} KiB");
    task::yield_now().await;
    result
}
