//! A flood of garbage, of every kind that a port open to strangers gets: the service goes on answering, and keeps
//! nothing of it.
//!
//! Each piece is made from its number, so that one which is answered wrongly can be made again.

use std::{
    convert::Infallible,
    fs,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use gatekey::{
    api::proto::{Reason, ValidateRequest, ValidateResponse},
    domain::token::Plaintext,
};
use http_body::{Body as _, Frame};
use prost::Message as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time,
};
use tonic::{
    Code, Status,
    client::GrpcService as _,
    codegen::{
        Bytes,
        http::{self, HeaderValue, StatusCode},
    },
    transport::Channel,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_request::MessageRequest,
};

use crate::support::{
    Gatekey,
    client::{Client, ask, ask_header, error_reason},
};

/// Calls of the flood, and of the warm-up before it.
const CALLS: u64 = 100_000;
const WARM_UP: u64 = 10_000;
/// Connections that calls come over, and calls at once on each.
const CHANNELS: usize = 4;
const AT_ONCE: usize = 16;
/// A connection that sends rubbish comes with every so many calls; so many stay all the time and do nothing.
const CALLS_A_RUBBISH: u64 = 100;
const IDLE: usize = 200;

/// A message that is larger is not read.
const MESSAGE_MAX: usize = 64 * 1024;
/// The largest text that a message has room for, next to its tag and length.
const TEXT_MAX: usize = MESSAGE_MAX - 4;
/// The most that the metadata of a call may have.
const METADATA_MAX: usize = 16 * 1024;
/// What resident memory may grow by: an allocator gives memory back late.
const GROWTH_MAX: u64 = 16 * 1024;
/// What the log may grow by: nobody may fill the disk by calling.
const LOG_MAX: usize = 16 * 1024;
/// How long one call may take, and a connection that sends rubbish may stand.
const DEADLINE: Duration = Duration::from_secs(20);

/// What a client of HTTP/2 begins with, empty settings included.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Kinds and flags of its frames: RFC 9113, section 6.
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_garbage_leaves_the_service_healthy_and_its_memory_flat() {
    let server = Gatekey::sqlite().env("GATEKEY_LOG", "info").start().await;
    let admin = server.admin().await;
    let (_, good) = admin.issue("default", &["jobs:read"]).await;
    let garbage = Arc::new(Garbage::new(&server, &good));

    pour(&server, &garbage, WARM_UP).await;
    let (before, log) = (resident(&server), server.logs().len());

    let began = Instant::now();
    let over = Arc::new(AtomicBool::new(false));
    let good_calls = tokio::spawn(probe(server.admin().await, good.clone(), Arc::clone(&over)));
    pour(&server, &garbage, CALLS).await;
    over.store(true, Ordering::Relaxed);
    let (probes, slowest) = good_calls.await.expect("the good key is good throughout");
    let (after, took) = (resident(&server), began.elapsed());
    let logged = server.logs().len() - log;
    println!(
        "{CALLS} bad calls in {took:?}, {probes} good ones among them, the slowest in {slowest:?}; \
         {before} KiB before, {after} KiB after; {logged} bytes logged"
    );

    assert_eq!(admin.reason(&good).await, Reason::Allowed);
    assert!(
        probes > 100,
        "only {probes} good calls had a turn in {took:?}"
    );
    assert!(
        after < before + GROWTH_MAX,
        "{before} KiB before the flood, {after} KiB after"
    );
    assert!(!server.logs().contains("panic"), "{}", server.logs());
    assert!(logged < LOG_MAX, "{}", server.logs());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_service_reads_a_message_of_more_than_64_kib() {
    let server = Gatekey::sqlite().start().await;
    let channel = server.client(None).await.channel;
    let admin = bearer(&server.admin_token());
    for method in [
        "gatekey.v1.KeyService/Validate",
        "gatekey.v1.OwnerService/UpdateOwner",
        "gatekey.v1.TenantService/UpdateTenant",
        "gatekey.v1.EventService/ListEvents",
        "grpc.health.v1.Health/Check",
    ] {
        // Field 1, a string: one byte more than may be, with its tag and length.
        let message = [&b"\x0a\xfd\xff\x03"[..], &vec![b'x'; TEXT_MAX + 1]].concat();
        let answer = send(&channel, method, admin.clone(), frame(&message)).await;
        let status = answer.expect_err("it is too large");
        assert_eq!(
            status.code(),
            Code::ResourceExhausted,
            "{method}: {status:?}"
        );
    }
    for version in ["v1", "v1alpha"] {
        let method = format!("grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        let question = ServerReflectionRequest {
            host: "x".repeat(TEXT_MAX + 1),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let body = frame(&question.encode_to_vec());
        let answer = send(&channel, &method, admin.clone(), body).await;
        assert!(
            answer.is_ok_and(|answer| answer.is_empty()),
            "{version} answers"
        );
    }
}

/// Pours so many calls, with connections in proportion, and waits until each is answered as it should be.
async fn pour(server: &Gatekey, garbage: &Arc<Garbage>, calls: u64) {
    let idle = idle(server).await;
    let numbers = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..CHANNELS {
        let channel = server.client(None).await.channel;
        for _ in 0..AT_ONCE {
            let (garbage, numbers) = (Arc::clone(garbage), Arc::clone(&numbers));
            let channel = channel.clone();
            callers.spawn(async move {
                loop {
                    let number = numbers.fetch_add(1, Ordering::Relaxed);
                    if number >= calls {
                        return;
                    }
                    garbage.call(&channel, number).await;
                    if number % CALLS_A_RUBBISH == 0 {
                        garbage.rubbish(number / CALLS_A_RUBBISH).await;
                    }
                }
            });
        }
    }
    while let Some(ended) = callers.join_next().await {
        ended.expect("it is answered as it should be");
    }
    drop(idle);
}

/// Asks about the good key, call after call, until the flood is over: how often, and how long the slowest took.
async fn probe(client: Client, good: String, over: Arc<AtomicBool>) -> (u64, Duration) {
    let (mut probes, mut slowest) = (0, Duration::ZERO);
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        let reason = time::timeout(DEADLINE, client.reason(&good)).await;
        assert_eq!(reason, Ok(Reason::Allowed));
        slowest = slowest.max(began.elapsed());
        probes += 1;
    }
    (probes, slowest)
}

/// Connections on which nothing comes: not even a greeting, not after half of it, or not after the whole.
async fn idle(server: &Gatekey) -> Vec<TcpStream> {
    let mut idle = Vec::new();
    let greetings = [&[], &GREETING[..12], GREETING];
    for greeting in greetings.into_iter().cycle().take(IDLE) {
        let connected = TcpStream::connect(server.addr()).await;
        let mut stream = connected.expect("a server that serves takes connections");
        stream.write_all(greeting).await.expect("it takes bytes");
        idle.push(stream);
    }
    idle
}

/// KiB of memory that the server's process has in use.
pub fn resident(server: &Gatekey) -> u64 {
    let path = format!("/proc/{}/status", server.pid());
    let status = fs::read_to_string(path).expect("it runs");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|size| size.trim().strip_suffix(" kB"));
    resident.and_then(|size| size.parse().ok()).expect("a size")
}

/// What garbage is made of.
struct Garbage {
    addr: std::net::SocketAddr,
    /// The admin's `authorization`.
    admin: HeaderValue,
    /// A good key, to be broken.
    good: String,
    /// Random bytes, and the same as text.
    bytes: Vec<u8>,
    text: String,
}

/// A bad call, and what it is to be answered.
struct Call {
    authorization: HeaderValue,
    body: Vec<u8>,
    want: Result<Reason, Code>,
}

impl Garbage {
    fn new(server: &Gatekey, good: &str) -> Self {
        let mut rng = StdRng::seed_from_u64(0);
        let bytes: Vec<u8> = (0..4 * TEXT_MAX).map(|_| rng.random()).collect();
        Self {
            addr: server.addr(),
            admin: bearer(&server.admin_token()),
            good: good.to_owned(),
            text: bytes.iter().copied().map(char::from).collect(),
            bytes,
        }
    }

    /// Makes a bad call, and asserts that it is answered as it should be.
    async fn call(&self, channel: &Channel, number: u64) {
        let Call {
            authorization,
            body,
            want,
        } = self.make(number);
        let answer = send(
            channel,
            "gatekey.v1.KeyService/Validate",
            authorization,
            body,
        );
        let answer = time::timeout(DEADLINE, answer).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer to number {number}"));
        let known = match &answer {
            Ok(message) => Ok(ValidateResponse::decode(&message[..])
                .expect("an answer")
                .reason()),
            Err(status) => Err(status.code()),
        };
        assert_eq!(known, want, "number {number}: {answer:?}");
    }

    fn make(&self, number: u64) -> Call {
        let rng = &mut StdRng::seed_from_u64(number);
        let call = |body, want| Call {
            authorization: self.admin.clone(),
            body,
            want,
        };
        let asked =
            |question: ValidateRequest, reason| call(frame(&question.encode_to_vec()), Ok(reason));
        match number % 1000 {
            // A few only: undoing HTTP/2's Huffman code takes a debug build 100 ms for each of them.
            _ if number % 5000 == 4999 => Call {
                authorization: self.metadata(rng, METADATA_MAX..METADATA_MAX + 4096),
                body: frame(&[]),
                want: Err(Code::ResourceExhausted),
            },
            0..220 => asked(ask(&self.text(rng)), Reason::Malformed),
            220..440 => asked(ask_header(&self.header(rng)), Reason::Malformed),
            440..660 => asked(ask(&self.broken_key(rng)), Reason::Malformed),
            660..860 => {
                let (_, unknown) = Plaintext::mint("gk", rng);
                asked(ask(unknown.expose()), Reason::NotFound)
            }
            860..960 => Call {
                authorization: self.stranger(rng),
                body: frame(&ask(&self.good).encode_to_vec()),
                want: Err(Code::Unauthenticated),
            },
            960..990 => {
                let (body, code) = self.broken_message(rng);
                call(body, Err(code))
            }
            _ => {
                let length = rng.random_range(MESSAGE_MAX + 1..3 * MESSAGE_MAX);
                call(frame(&self.bytes[..length]), Err(Code::ResourceExhausted))
            }
        }
    }

    /// Any text, of any length that a message has room for; short ones are as frequent as long ones.
    fn text(&self, rng: &mut StdRng) -> String {
        let most = 1 << rng.random_range(0..=16);
        let length = rng.random_range(0..TEXT_MAX.min(most));
        let start = rng.random_range(0..self.text.len() - length);
        let start = self.text.ceil_char_boundary(start);
        let text = &self.text[start..self.text.floor_char_boundary(start + length)];
        // Its last character is no white space, which alone would be a missing credential.
        format!("{text}x")
    }

    /// What could stand in an HTTP Authorization header, but is no key.
    fn header(&self, rng: &mut StdRng) -> String {
        let text = self.text(rng);
        let short = &text[text.ceil_char_boundary(text.len().saturating_sub(TEXT_MAX / 3))..];
        let encoded = BASE64_STANDARD.encode(short);
        match rng.random_range(0..6) {
            0 => text,
            1 => format!("Bearer {short}"),
            2 => format!("Basic {short}"),
            3 => format!("Basic {encoded}"),
            4 => format!("Basic {}!", &encoded[..encoded.len() / 2]),
            _ => {
                let username = short.replace(':', "");
                let pair = format!("{username}:{short}");
                format!("Basic {}", BASE64_STANDARD.encode(pair))
            }
        }
    }

    /// The good key with one character changed, cut short, or told twice.
    fn broken_key(&self, rng: &mut StdRng) -> String {
        let place = rng.random_range(1..self.good.len());
        let (before, after) = self.good.split_at(place);
        match rng.random_range(0..4) {
            0 => before.to_owned(),
            1 => format!("{before}{}", &after[1..]),
            2 => format!("{}{}", self.good, self.good),
            _ => {
                let other = if after.starts_with('7') { '8' } else { '7' };
                format!("{before}{other}{}", &after[1..])
            }
        }
    }

    /// The `authorization` of somebody who is not known.
    fn stranger(&self, rng: &mut StdRng) -> HeaderValue {
        let known = self.admin.to_str().expect("a token is ASCII");
        let text = match rng.random_range(0..6) {
            0 => return self.metadata(rng, 0..256),
            1 => "Bearer".to_owned(),
            2 => "Bearer ".to_owned(),
            3 => format!("Bearer {}", Plaintext::mint("gk", rng).1.expose()),
            4 => known[..known.len() - 1].to_owned(),
            _ => known.replace("Bearer", "Basic"),
        };
        text.try_into().expect("ASCII without control characters")
    }

    /// Bytes that may stand in a header.
    fn metadata(&self, rng: &mut StdRng, length: std::ops::Range<usize>) -> HeaderValue {
        let length = rng.random_range(length);
        let good = |byte: &&u8| matches!(byte, b' '..=b'~' | 0x80..);
        let bytes: Vec<_> = self
            .bytes
            .iter()
            .filter(good)
            .take(length)
            .copied()
            .collect();
        HeaderValue::from_bytes(&bytes).expect("these may stand in a header")
    }

    /// A body that is no message, and the code that it is refused with.
    fn broken_message(&self, rng: &mut StdRng) -> (Vec<u8>, Code) {
        let length = rng.random_range(0..1024);
        let noise = &self.bytes[..length];
        let whole = frame(noise);
        match rng.random_range(0..6) {
            // A string that is longer than the message.
            0 => (
                frame(&[b"\x0a\xff\xff\x03", noise].concat()),
                Code::InvalidArgument,
            ),
            // A string that is not UTF-8.
            1 => (frame(b"\x0a\x02\xc3\x28"), Code::InvalidArgument),
            // Nothing at all, or less than was announced.
            2 => (
                whole[..rng.random_range(0..whole.len())].to_vec(),
                Code::Internal,
            ),
            // Compressed, which was not agreed; and a flag that there is not.
            3 => ([b"\x01", &whole[1..]].concat(), Code::Internal),
            4 => ([b"\x07", &whole[1..]].concat(), Code::Internal),
            // 4 GiB are announced.
            _ => (
                [b"\0\xff\xff\xff\xff", noise].concat(),
                Code::ResourceExhausted,
            ),
        }
    }

    /// Sends what is not HTTP/2, or breaks it, over a connection of its own, and waits for its end.
    async fn rubbish(&self, number: u64) {
        let rng = &mut StdRng::seed_from_u64(number);
        let (start, length) = (
            rng.random_range(0..self.bytes.len() / 2),
            rng.random_range(64..TEXT_MAX),
        );
        let noise = &self.bytes[start..start + length];
        let sent = match number % 6 {
            0 => noise.to_vec(),
            1 => b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            // TLS says hello.
            2 => [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", noise].concat(),
            // A frame of 16 MiB is announced.
            3 => [GREETING, b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", noise].concat(),
            // Headers that cannot be decompressed, and headers that do not end.
            4 => [GREETING, &http2(HEADERS, END_HEADERS, &[0xff; 8])].concat(),
            _ => {
                let header = [&b"\x00\x01a\x7f\xc1\x83\x3d"[..], &[b'x'; 16_000]].concat();
                let more = http2(CONTINUATION, 0, &[b'x'; 16_000]);
                [GREETING, &http2(HEADERS, 0, &header), &more.repeat(50)].concat()
            }
        };
        let connected = TcpStream::connect(self.addr).await;
        let mut stream = connected.expect("a server that serves takes connections");
        // It may have hung up before all is sent.
        stream.write_all(&sent).await.ok();
        let end = time::timeout(DEADLINE, stream.read_to_end(&mut Vec::new())).await;
        assert!(end.is_ok(), "rubbish {number}: the connection stands");
    }
}

/// A message as gRPC puts it on the wire.
fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("no message is that long");
    [&[0], &length.to_be_bytes()[..], message].concat()
}

/// A frame of HTTP/2, of its first stream.
fn http2(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("it is short");
    let [high, low] = length.to_be_bytes();
    [&[0, high, low, kind, flags, 0, 0, 0, 1], payload].concat()
}

/// The value of a caller's `authorization`.
fn bearer(credential: &str) -> HeaderValue {
    let value = HeaderValue::try_from(format!("Bearer {credential}"));
    value.expect("a credential is ASCII")
}

/// Calls a method with any body at all, and gives the bytes of the one message that is answered, or none of a stream.
async fn send(
    channel: &Channel,
    method: &str,
    authorization: HeaderValue,
    body: Vec<u8>,
) -> Result<Vec<u8>, Status> {
    let request = http::Request::post(format!("/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", authorization)
        .body(tonic::body::Body::new(Whole(Some(body.into()))))
        .expect("these are headers");
    let mut channel = channel.clone();
    let broken = |error| Status::aborted(format!("the connection is broken: {error}"));
    let ready = poll_fn(|context| channel.poll_ready(context)).await;
    ready.map_err(broken)?;
    let response = channel.call(request).await.map_err(broken)?;
    assert_eq!(response.status(), StatusCode::OK);
    if let Some(status) = Status::from_header_map(response.headers()) {
        error_reason(&status); // every error has its details
        return Err(status);
    }
    let (mut body, mut data) = (response.into_body(), Vec::new());
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        match frame?.into_data() {
            Ok(more) => data.extend_from_slice(&more),
            Err(trailers) => {
                let trailers = trailers
                    .into_trailers()
                    .expect("trailers are all that is left");
                match Status::from_header_map(&trailers) {
                    Some(status) if status.code() != Code::Ok => return Err(status),
                    _ => {}
                }
            }
        }
    }
    Ok(data.split_off(5.min(data.len())))
}

/// A body in one piece.
struct Whole(Option<Bytes>);

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}
