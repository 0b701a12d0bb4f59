//! Keys being made all the time, which keeps every core busy with Argon2id: what it does to those who ask about good
//! keys.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    flood::hits,
    generator,
    load::Instrumented,
    report::{Report, digits},
    stored::Stored,
    support::Client,
};

/// How many keys are asked for at once.
const AT_ONCE: usize = 8;
/// How long good callers ask, without keys being made and with.
const SPAN: Duration = Duration::from_secs(10);

pub async fn measure(report: &mut Report, stored: &Stored) {
    let server = stored.setup.start().await;
    let asking = || {
        let end = Instant::now() + SPAN;
        generator::start(hits(&server, stored, move || Instant::now() < end))
    };
    let join = |asking: std::thread::JoinHandle<Instrumented>| asking.join().expect("hits go on");
    eprintln!("issuing: hits alone");
    // Once for nothing, so that they are in memory.
    join(asking());
    let alone = join(asking());

    eprintln!("issuing: hits, and keys being made");
    let over = Arc::new(AtomicBool::new(false));
    let admin = server.admin().await;
    let making: Vec<_> = (0..AT_ONCE)
        .map(|_| tokio::spawn(make(admin.clone(), Arc::clone(&over))))
        .collect();
    let beside = join(asking());
    over.store(true, Ordering::Relaxed);
    let mut made = 0;
    for maker in making {
        made += maker.await.expect("keys are made");
    }
    let p99 = |measured: &Instrumented| measured.latencies.percentile(0.99);
    report.remark(format!(
        "Issuing: {:.0} keys a second, {AT_ONCE} at once, beside {} hits a second whose p99 went from {} to {} µs.",
        f64::from(made) / SPAN.as_secs_f64(),
        digits(beside.calls_per_second),
        digits(p99(&alone)),
        digits(p99(&beside)),
    ));
}

async fn make(admin: Client, over: Arc<AtomicBool>) -> u32 {
    let mut made = 0;
    while !over.load(Ordering::Relaxed) {
        admin.issue("default", &["jobs:read"]).await;
        made += 1;
    }
    made
}
