//! BatchValidate beside as many single calls: 100 keys in memory, and 256 that are asked about for the first time.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use gatekey::api::proto::{BatchValidateRequest, Reason};

use crate::{
    generator::{self, Load},
    keys::{ask, ask_number, key},
    load::{Instrumented, Shape, frame},
    report::{Report, Sample, Subject, name},
    settings::WARM_KEYS,
    stored::{KEYS, Stored},
    support::{Engine, Gatekey},
};

const ROUNDS: u64 = 5;
const TIME: Duration = Duration::from_secs(2);
/// Keys a call, where the server has them in memory.
const HOT: u64 = 100;
/// Keys a call, where it has not.
const COLD: u64 = 256;
/// Keys of single calls in a round, at most.
const SINGLES: u64 = 20_000;
/// Keys of batches in a round, at most.
const BATCHED: u64 = COLD * 200;

/// What asks about these keys in one call.
fn batch(numbers: impl Iterator<Item = u64>) -> Bytes {
    frame(&BatchValidateRequest {
        requests: numbers.map(|number| ask(key(number).1.expose())).collect(),
    })
}

/// Asks for a while, as long as there are questions.
fn load(
    addr: SocketAddr,
    caller: &str,
    shape: Shape,
    bodies: impl Iterator<Item = Bytes> + Send + 'static,
) -> Load {
    let end = Instant::now() + TIME;
    let bodies = bodies.take_while(move |_| Instant::now() < end);
    Load::of(addr, caller, shape).ask(bodies, Reason::Allowed)
}

pub async fn measure(report: &mut Report, stored: &Stored, engine: Engine) {
    let server = stored.setup.clone().env(WARM_KEYS, "0").start().await;
    if engine == Engine::Sqlite {
        hot(report, stored, &server);
    }
    // The first keys are in memory now.
    let mut next = HOT;
    let mut take = |count: u64| {
        let numbers = next..next + count;
        next = numbers.end;
        assert!(next < KEYS, "there are not so many keys");
        numbers
    };
    let (addr, caller) = (server.addr(), &*stored.caller);
    for round in 1..=ROUNDS {
        eprintln!("batch, cold, {}: round {round} of {ROUNDS}", name(engine));
        let single = take(SINGLES).map(ask_number);
        let single = || generator::run(load(addr, caller, Shape::ALONE, single));
        let sample = Sample::of(server.pid(), single);
        report.add(Subject::ColdSingle(engine), Shape::ALONE, sample);
        let numbers = take(BATCHED);
        let batches = numbers.step_by(COLD as usize);
        let batches = batches.map(|from| batch(from..from + COLD));
        let batches = || generator::run(load(addr, caller, Shape::ALONE, batches).batches());
        let sample = Sample::of(server.pid(), batches);
        report.add(Subject::ColdBatch(engine), Shape::ALONE, sample);
    }
    let (this, that) = (Subject::ColdBatch(engine), Subject::ColdSingle(engine));
    let ratio = report.ratio(this, that, Shape::ALONE, |sample| sample.p50);
    let name = name(engine);
    report.goal(
        format!("{COLD} cold keys in a batch / one cold Validate, {name}: p50"),
        3.0,
        "×",
        ratio,
    );
}

fn hot(report: &mut Report, stored: &Stored, server: &Gatekey) {
    let (addr, caller) = (server.addr(), &*stored.caller);
    let one = batch(0..HOT);
    let batches = || std::iter::repeat(one.clone());
    let singles: Vec<_> = (0..HOT).map(ask_number).collect();
    let run = |load: Load| -> Box<dyn FnOnce() -> Instrumented> {
        Box::new(move || generator::run(load))
    };
    // Loads all keys.
    generator::run(
        Load::of(addr, caller, Shape::ALONE)
            .ask(batches().take(1), Reason::Allowed)
            .batches(),
    );
    for round in 1..=ROUNDS {
        eprintln!("batch, hot: round {round} of {ROUNDS}");
        let single = load(
            addr,
            caller,
            Shape::BUSY,
            singles.clone().into_iter().cycle(),
        );
        let sample = Sample::of(server.pid(), run(single));
        report.add(Subject::HotSingle, Shape::BUSY, sample);
        let batch = load(addr, caller, Shape::BUSY, batches()).batches();
        let sample = Sample::of(server.pid(), run(batch));
        report.add(Subject::HotBatch, Shape::BUSY, sample);
    }
    let ratio = report.ratio(
        Subject::HotBatch,
        Subject::HotSingle,
        Shape::BUSY,
        |sample| sample.cpu,
    );
    report.goal(
        format!("a key of {HOT} in a batch / one Validate, hot: server CPU"),
        0.15,
        "×",
        ratio.map(|ratio| ratio / HOT as f64),
    );
}
