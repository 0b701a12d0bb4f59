//! Keys that are asked about for the first time: a look-up in the store each, against the bare look-up.
//!
//! No key is asked twice, in a table of a million; the server starts with none in memory.

use std::{
    cell::Cell,
    ops::Range,
    time::{Duration, Instant},
};

use gatekey::api::proto::Reason;

use crate::{
    baseline::{Baseline, Kind},
    generator::{self, Load},
    keys::{ask, ask_number, key},
    load::{Instrumented, Shape, ValidationRequest},
    report::{Report, Sample, Subject, name},
    select::Select,
    settings::WARM_KEYS,
    stored::{KEYS, Stored},
    support::Engine,
};

const ROUNDS: u32 = 3;
const TIME: Duration = Duration::from_secs(1);

/// Numbers of keys that were not asked yet.
struct Unasked(Cell<Range<u64>>);

impl Unasked {
    /// The next so many, fewer at the end.
    fn take(&self, count: u64) -> Range<u64> {
        let left = self.0.take();
        let end = left.end.min(left.start + count);
        self.0.set(end..left.end);
        left.start..end
    }
}

pub async fn measure(report: &mut Report, stored: &Stored, engine: Engine) {
    let server = stored.setup.clone().env(WARM_KEYS, "0").start().await;
    let unasked = Unasked(Cell::new(0..KEYS));
    let first = |number| ValidationRequest {
        addr: server.addr(),
        bearer: stored.caller.clone(),
        request: ask(key(number).1.expose()),
        expected: Reason::Allowed,
    };
    let [number, other] = [unasked.take(1).start, unasked.take(1).start];
    let answer = first(number).verify().await;
    let url = stored.setup.database_url();
    let select = Baseline::start(Kind::Select { url }, &answer);
    let behind_grpc = ValidationRequest {
        addr: select.addr,
        ..first(other)
    };
    behind_grpc.verify().await;

    let load = |addr, shape: Shape, part: u64| {
        let numbers = unasked.take(part);
        let end = Instant::now() + TIME;
        let bodies = numbers
            .map(ask_number)
            .take_while(move |_| Instant::now() < end);
        generator::run(Load::of(addr, &stored.caller, shape).ask(bodies, Reason::Allowed))
    };
    // Enough for every load; the time ends each before its keys do.
    let part = KEYS / u64::from(ROUNDS) / 8;
    for round in 1..=ROUNDS {
        eprintln!("cold, {}: round {round} of {ROUNDS}", name(engine));
        let numbers = unasked.take(part);
        let sample = Sample::without_server(&look_up(url, numbers));
        report.add(Subject::Select(engine), Shape::ALONE, sample);
        let sample = Sample::of(select.pid(), || load(select.addr, Shape::ALONE, part));
        report.add(Subject::SelectServed(engine), Shape::ALONE, sample);
        for shape in Shape::ALL {
            let sample = Sample::of(server.pid(), || load(server.addr(), shape, part));
            report.add(Subject::Cold(engine), shape, sample);
        }
    }
    let ratio = |to| report.ratio(Subject::Cold(engine), to, Shape::ALONE, |sample| sample.p50);
    let (bare, behind) = (
        ratio(Subject::Select(engine)),
        ratio(Subject::SelectServed(engine)),
    );
    let name = name(engine);
    report.goal(
        format!("cold / bare SELECT, {name}: p50, one at a time"),
        1.5,
        "×",
        bare,
    );
    if let Ok(behind) = behind {
        report.remark(format!(
            "Cold, {name}: {behind:.2} × the p50 of the same SELECT behind gRPC with a constant answer."
        ));
    }
}

/// Reads the rows of these keys one after the other, in a runtime of one thread: nothing is quicker.
fn look_up(url: &str, mut numbers: Range<u64>) -> Instrumented {
    let url = url.to_owned();
    let read = async move {
        let select = Select::open(&url, 1).await;
        let mut latencies = Vec::new();
        let start = Instant::now();
        while start.elapsed() < TIME
            && let Some(number) = numbers.next()
        {
            let (id, _) = key(number);
            let asked = Instant::now();
            select.row(id.as_bare()).await;
            latencies.push(asked.elapsed());
        }
        (start.elapsed(), latencies)
    };
    generator::in_own_thread(read)
        .join()
        .expect("the rows are read")
}
