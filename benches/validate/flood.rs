//! A flood of keys that nobody made, well-formed and all different: what it does to those who ask about good keys, and to
//! the memory of the server.
//!
//! Both sides keep a steady pace below what two cores can do, so that the figures tell what the server lets the flood do,
//! not how the machine shares its cores. What a flood does that comes as fast as it is answered is told beside.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use gatekey::api::proto::Reason;

use crate::{
    generator::{self, Load},
    keys::{ask, ask_number, key},
    load::{Instrumented, Shape, ValidationRequest},
    report::{Report, digits},
    settings::{CACHE_KEYS, WARM_KEYS},
    stored::Stored,
    support::Gatekey,
    usage,
};

/// Keys that good callers ask about, in turn.
const KNOWN: u64 = 1000;
/// Few enough that the flood could drive the known ones out.
const ROOM: &str = "100000";
const HITS: Shape = Shape::FEW;
const HITS_A_SECOND: u32 = 2000;
/// How long good callers ask without a flood, before it and after it.
const CALM: Duration = Duration::from_secs(10);

/// The first number of a key that nobody made.
const UNKNOWN: u64 = 1 << 40;
const FLOODERS: Shape = Shape::of(8, 8);

/// So many keys that nobody made.
struct Flood {
    numbers: Range<u64>,
    a_second: u32,
    /// One that a slow server holds up ends after this.
    longest: Duration,
}

const FLOOD: Flood = Flood {
    numbers: UNKNOWN..UNKNOWN + 1_000_000,
    a_second: 10_000,
    longest: Duration::from_mins(2),
};
/// More a second than it is answered.
const TORRENT: Flood = Flood {
    numbers: FLOOD.numbers.end..FLOOD.numbers.end + 1_000_000,
    a_second: 50_000,
    longest: CALM,
};

const MIB: f64 = 1024.0 * 1024.0;

pub async fn measure(report: &mut Report, stored: &Stored) {
    let setup = stored
        .setup
        .clone()
        .env(WARM_KEYS, "0")
        .env(CACHE_KEYS, ROOM);
    let server = setup.start().await;
    let question = |number, expected| ValidationRequest {
        addr: server.addr(),
        bearer: stored.caller.clone(),
        request: ask(key(number).1.expose()),
        expected,
    };
    question(0, Reason::Allowed).verify().await;
    question(UNKNOWN, Reason::NotFound).verify().await;

    let p99 = |measured: &Instrumented| measured.latencies.percentile(0.99);
    let alone = || {
        eprintln!("flood: hits alone");
        let end = Instant::now() + CALM;
        p99(&generator::run(hits(&server, stored, move || {
            Instant::now() < end
        })))
    };
    let calm_before = alone();
    let before = usage::resident(server.pid());

    eprintln!("flood: hits and the flood");
    let (flood, stormy) = beside(&server, stored, FLOOD);
    let after = usage::resident(server.pid());
    eprintln!("flood: hits and more than the server answers");
    let (torrent, drowned) = beside(&server, stored, TORRENT);

    // The quieter of the two: a noisy machine must not make the flood look harmless.
    let (calm_p99, stormy_p99) = (calm_before.min(alone()), p99(&stormy));
    report.remark(format!(
        "Flood: {} distinct unknown keys at {} a second, beside {} hits a second whose p99 went from {} to {} µs; \
         resident memory from {:.0} to {:.0} MiB. As many as are answered, {} a second: {} µs.",
        digits(flood.calls as f64),
        digits(flood.calls_per_second),
        digits(stormy.calls_per_second),
        digits(calm_p99),
        digits(stormy_p99),
        before as f64 / MIB,
        after as f64 / MIB,
        digits(torrent.calls_per_second),
        digits(p99(&drowned)),
    ));
    report.goal(
        format!(
            "hits' p99 in a flood of {} unknown keys, {} a second / without it",
            digits(flood.calls as f64),
            digits(flood.calls_per_second)
        ),
        2.0,
        "×",
        Ok(stormy_p99 / calm_p99),
    );
    report.goal(
        "resident memory that the flood leaves behind",
        16.0,
        " MiB",
        Ok((after as f64 - before as f64) / MIB),
    );
}

/// Those who ask about good keys, while `go_on`.
pub fn hits(server: &Gatekey, stored: &Stored, go_on: impl Fn() -> bool + Send + 'static) -> Load {
    let bodies: Vec<_> = (0..KNOWN).map(ask_number).collect();
    let bodies = bodies.into_iter().cycle().take_while(move |_| go_on());
    Load::of(server.addr(), &stored.caller, HITS)
        .ask(bodies, Reason::Allowed)
        .pace(HITS_A_SECOND)
}

/// A flood, and the hits beside it.
fn beside(server: &Gatekey, stored: &Stored, flood: Flood) -> (Instrumented, Instrumented) {
    let over = Arc::new(AtomicBool::new(false));
    let during = generator::start(hits(server, stored, {
        let over = Arc::clone(&over);
        move || !over.load(Ordering::Relaxed)
    }));
    let end = Instant::now() + flood.longest;
    let numbers = flood.numbers.take_while(move |_| Instant::now() < end);
    let load = Load::of(server.addr(), &stored.caller, FLOODERS)
        .ask(numbers.map(ask_number), Reason::NotFound)
        .pace(flood.a_second);
    let flooded = generator::run(load);
    over.store(true, Ordering::Relaxed);
    let hits = during.join().expect("the hits go on through the flood");
    (flooded, hits)
}
