//! A load: what is asked of whom, how many calls at a time, and what came of it.
//!
//! h2load drives it where it is installed, our own generator elsewhere; a run uses one of the two for all it compares.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use gatekey::api::proto::{
    Reason, ValidateRequest, ValidateResponse, key_service_client::KeyServiceClient,
};
use prost::Message;

use crate::{
    generator::{self, Load},
    h2load,
};

/// The call that is measured.
pub const PATH: &str = "/gatekey.v1.KeyService/Validate";

/// The call that asks about many keys.
pub const BATCH_PATH: &str = "/gatekey.v1.KeyService/BatchValidate";

/// How much is under way at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    pub connections: u32,
    /// Calls at a time on each connection.
    pub streams: u32,
}

impl Shape {
    /// One call at a time: nothing but latency.
    pub const ALONE: Self = Self::of(1, 1);
    /// Four clients that wait for each answer.
    pub const FEW: Self = Self::of(4, 1);
    /// Both cores busy: where server CPU a call is compared.
    pub const BUSY: Self = Self::of(8, 8);
    /// More at once than can be worked on.
    pub const CROWDED: Self = Self::of(16, 32);
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 4] = [Self::ALONE, Self::FEW, Self::BUSY, Self::CROWDED];

    pub const fn of(connections: u32, streams: u32) -> Self {
        Self {
            connections,
            streams,
        }
    }

    /// Calls at a time.
    pub fn in_flight(self) -> u32 {
        self.connections * self.streams
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{}", self.connections, self.streams)
    }
}

/// One question, asked of one server again and again.
#[derive(Clone)]
pub struct ValidationRequest {
    pub addr: SocketAddr,
    /// The caller's credential.
    pub bearer: String,
    pub request: ValidateRequest,
    /// What it must be answered.
    pub expected: Reason,
}

/// What came of a load.
pub struct Instrumented {
    pub calls: u64,
    pub calls_per_second: f64,
    pub latencies: Latencies,
}

/// How long each call took, in order of size.
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn new(mut each: Vec<Duration>) -> Self {
        each.sort_unstable();
        Self(each)
    }

    /// The time that this share of the calls took at most, in microseconds; not a number when there were none.
    pub fn percentile(&self, share: f64) -> f64 {
        let place = (self.0.len() as f64 * share) as usize;
        let at = self.0.get(place.min(self.0.len().saturating_sub(1)));
        at.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
    }
}

impl ValidationRequest {
    /// Asks once, as a real client does, and gives the answer; one that is not expected ends the run.
    pub async fn verify(&self) -> ValidateResponse {
        let mut client = KeyServiceClient::connect(format!("http://{}", self.addr))
            .await
            .expect("the server listens");
        let mut request = tonic::Request::new(self.request.clone());
        let bearer = format!("Bearer {}", self.bearer)
            .parse()
            .expect("a credential is ASCII");
        request.metadata_mut().insert("authorization", bearer);
        let answer = client
            .validate(request)
            .await
            .expect("a decision")
            .into_inner();
        assert_eq!(answer.reason(), self.expected, "{answer:?}");
        answer
    }

    /// Asks `calls` times; unless `timed`, there need be no latencies.
    pub fn ask(&self, shape: Shape, calls: u64, timed: bool) -> Instrumented {
        if h2load::is_here() {
            return h2load::run(self, shape, calls, timed);
        }
        let bodies = std::iter::repeat_n(frame(&self.request), calls as usize);
        generator::run(Load::of(self.addr, &self.bearer, shape).ask(bodies, self.expected))
    }

    /// How many calls this takes about as long as `time`; asks until it knows, which also warms the server up.
    pub fn calls_in(&self, shape: Shape, time: Duration) -> u64 {
        const ENOUGH: Duration = Duration::from_millis(200);
        let least = u64::from(shape.in_flight());
        let mut calls = least;
        loop {
            let start = Instant::now();
            let measured = self.ask(shape, calls, false);
            if start.elapsed() > ENOUGH {
                let wanted = measured.calls_per_second * time.as_secs_f64();
                return (wanted as u64).max(least).next_multiple_of(least);
            }
            calls *= 4;
        }
    }
}

/// A request as it stands on the wire: gRPC's five bytes (not compressed, length), then the message.
pub fn frame(request: &impl Message) -> Bytes {
    let length = u32::try_from(request.encoded_len()).expect("a request is short");
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(length);
    request.encode(&mut frame).expect("memory takes all");
    frame.freeze()
}
