//! A load generator of our own, for what h2load cannot do: another key in each call, and a steady pace.
//!
//! It runs in one thread of its own. Every answer is looked at: a call that is answered otherwise than expected ends
//! the run, so that nothing wrong is measured.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use gatekey::api::proto::{BatchValidateResponse, Reason, batch_validate_result};
use h2::client::SendRequest;
use http::{Request, header};
use prost::Message as _;
use tokio::{
    net::TcpStream,
    runtime,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::load::{BATCH_PATH, Instrumented, Latencies, PATH, Shape};

/// A pace that was not kept is caught up with for this long, and then let go.
const PATIENCE: Duration = Duration::from_millis(5);

/// What to ask, of whom.
pub struct Load {
    addr: SocketAddr,
    bearer: String,
    shape: Shape,
    bodies: Box<dyn Iterator<Item = Bytes> + Send>,
    expected: Reason,
    gap: Duration,
    path: &'static str,
}

impl Load {
    /// Nothing, so far, of this server.
    pub fn of(addr: SocketAddr, bearer: &str, shape: Shape) -> Self {
        Self {
            addr,
            bearer: bearer.to_owned(),
            shape,
            bodies: Box::new(std::iter::empty()),
            expected: Reason::Unspecified,
            gap: Duration::ZERO,
            path: PATH,
        }
    }

    /// What is asked are batches, each item of which must be answered so.
    pub fn batches(mut self) -> Self {
        self.path = BATCH_PATH;
        self
    }

    /// Each of these once; all must be answered so.
    pub fn ask(
        mut self,
        bodies: impl Iterator<Item = Bytes> + Send + 'static,
        expected: Reason,
    ) -> Self {
        self.bodies = Box::new(bodies);
        self.expected = expected;
        self
    }

    /// At most so many a second, rather than each as soon as the one before it is answered.
    pub fn pace(mut self, calls_per_second: u32) -> Self {
        self.gap = Duration::from_secs(1) / calls_per_second;
        self
    }
}

/// Asks until there is nothing left to ask.
pub fn run(load: Load) -> Instrumented {
    start(load)
        .join()
        .expect("every call is answered as expected")
}

/// Begins to ask, and lets the caller go on.
pub fn start(load: Load) -> JoinHandle<Instrumented> {
    in_own_thread(ask_all(load))
}

/// Runs what gives a time and the latencies of the calls in it, in a thread and a single-threaded runtime of its own.
pub fn in_own_thread(
    calls: impl Future<Output = (Duration, Vec<Duration>)> + Send + 'static,
) -> JoinHandle<Instrumented> {
    thread::spawn(|| {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let (elapsed, latencies) = runtime.expect("a runtime").block_on(calls);
        Instrumented {
            calls: latencies.len() as u64,
            calls_per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
            latencies: Latencies::new(latencies),
        }
    })
}

async fn ask_all(load: Load) -> (Duration, Vec<Duration>) {
    let mut connections = Vec::new();
    for _ in 0..load.shape.connections {
        connections.push(connect(load.addr).await);
    }
    let request = Request::post(format!("http://{}{}", load.addr, load.path))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::AUTHORIZATION, format!("Bearer {}", load.bearer))
        .body(())
        .expect("the request is well-formed");
    let start = Instant::now();
    let queue = Arc::new(Mutex::new(Queue {
        bodies: load.bodies,
        due: start,
        gap: load.gap,
    }));
    let mut callers = JoinSet::new();
    for connection in connections {
        for _ in 0..load.shape.streams {
            let caller = Caller {
                connection: connection.clone(),
                request: request.clone(),
                expected: load.expected,
                batches: load.path == BATCH_PATH,
            };
            callers.spawn(caller.ask_from(Arc::clone(&queue)));
        }
    }
    let latencies = callers.join_all().await.concat();
    (start.elapsed(), latencies)
}

async fn connect(addr: SocketAddr) -> SendRequest<Bytes> {
    const WINDOW: u32 = 1 << 24;
    let stream = TcpStream::connect(addr).await.expect("the server listens");
    stream.set_nodelay(true).expect("a TCP stream");
    let (connection, driver) = h2::client::Builder::new()
        .initial_connection_window_size(WINDOW)
        .handshake(stream)
        .await
        .expect("the server speaks HTTP/2");
    tokio::spawn(driver);
    connection
}

/// What is still to be asked, and when.
struct Queue {
    bodies: Box<dyn Iterator<Item = Bytes> + Send>,
    due: Instant,
    gap: Duration,
}

impl Queue {
    fn next(&mut self) -> Option<(Instant, Bytes)> {
        let due = self.due;
        let late = Instant::now().checked_sub(PATIENCE).unwrap_or(due);
        self.due = (due + self.gap).max(late);
        Some((due, self.bodies.next()?))
    }
}

/// One who waits for each answer before the next question.
struct Caller {
    connection: SendRequest<Bytes>,
    request: Request<()>,
    expected: Reason,
    batches: bool,
}

impl Caller {
    async fn ask_from(mut self, queue: Arc<Mutex<Queue>>) -> Vec<Duration> {
        let next = || queue.lock().expect("nothing panics under this lock").next();
        let mut latencies = Vec::new();
        while let Some((due, body)) = next() {
            if due > Instant::now() {
                sleep_until(due).await;
            }
            let start = Instant::now();
            let answer = self.ask(body).await;
            latencies.push(start.elapsed());
            let answer = answer.unwrap_or_else(|error| panic!("a call failed: {error}"));
            let told = answer.get(5..).unwrap_or_default();
            let good = if self.batches {
                all_are(told, self.expected)
            } else {
                told.starts_with(beginning(self.expected))
            };
            assert!(good, "not {:?}: {answer:?}", self.expected);
        }
        latencies
    }

    /// The answer as it stands on the wire; nothing when it is an error of gRPC.
    async fn ask(&mut self, body: Bytes) -> Result<Vec<u8>, h2::Error> {
        self.connection = self.connection.clone().ready().await?;
        let (response, mut stream) = self.connection.send_request(self.request.clone(), false)?;
        stream.send_data(body, true)?;
        let mut incoming = response.await?.into_body();
        let mut answer = Vec::new();
        while let Some(data) = incoming.data().await {
            let data = data?;
            incoming.flow_control().release_capacity(data.len())?;
            answer.extend_from_slice(&data);
        }
        let trailers = incoming.trailers().await?;
        let good =
            trailers.is_some_and(|t| t.get("grpc-status").is_some_and(|status| status == "0"));
        Ok(if good { answer } else { Vec::new() })
    }
}

/// Whether each item of a `BatchValidateResponse` has this reason, and there is one.
fn all_are(answer: &[u8], expected: Reason) -> bool {
    let answer = BatchValidateResponse::decode(answer).expect("an answer");
    let mut reasons = answer.results.iter().map(|result| match &result.result {
        Some(batch_validate_result::Result::Response(response)) => response.reason(),
        _ => Reason::Unspecified,
    });
    !answer.results.is_empty() && reasons.all(|reason| reason == expected)
}

/// How a `ValidateResponse` with this reason starts: `allowed` (field 1) if it is, then `reason` (field 2).
fn beginning(expected: Reason) -> &'static [u8] {
    match expected {
        Reason::Allowed => &[0x08, 1, 0x10, 1],
        Reason::Malformed => &[0x10, 3],
        Reason::NotFound => &[0x10, 4],
        other => panic!("nothing here is to be answered {other:?}"),
    }
}
