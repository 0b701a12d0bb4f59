//! What a Validate costs, and how that compares. Everything is started here and measured in the same run, in rounds that
//! take turns; figures are medians over the rounds, ratios are of two things measured in the same round.
//!
//! `cargo bench --bench validate` measures everything and rewrites what `docs/performance.md` and its plot show.
//! `cargo bench --bench validate -- hot flood` measures the named sections alone, and only prints.
//! Nothing is measured before a real gRPC client has got the expected answer to it.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "figures for people: three digits are enough"
)]

mod baseline;
mod batch;
mod cold;
mod dealt;
mod docs;
mod flood;
mod generator;
mod h2load;
mod hot;
mod issuing;
mod keys;
mod listing;
mod load;
mod memory;
mod page;
mod plot;
mod report;
mod select;
mod settings;
mod stored;
#[path = "../../tests/suite/support/mod.rs"]
#[allow(
    unused_imports,
    unused_macros,
    reason = "the tests use more of it than a benchmark does"
)]
mod support;
mod usage;
mod warm;

use std::time::Instant;

use report::Report;
use stored::Stores;
use support::Engine;

/// As the server has it: the baselines are this program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What can be measured by itself, in the order of a whole run.
const SECTIONS: [&str; 8] = [
    "hot", "cold", "batch", "memory", "warm", "flood", "issuing", "listing",
];

fn main() {
    let words: Vec<_> = std::env::args().skip(1).collect();
    if let Some((baseline::WORD, words)) = words.split_first().map(|(word, rest)| (&**word, rest)) {
        return baseline::serve(words);
    }
    if cfg!(debug_assertions) {
        return eprintln!(
            "Only an optimised build is worth measuring: cargo bench --bench validate"
        );
    }
    // cargo passes --bench.
    let asked: Vec<_> = words
        .into_iter()
        .filter(|word| !word.starts_with("--"))
        .collect();
    for word in &asked {
        assert!(
            SECTIONS.contains(&&**word),
            "{word} is none of {}",
            SECTIONS.join(", ")
        );
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let report = runtime.block_on(measure(&asked));
    println!("\n{}", report.markdown());
    if asked.is_empty() {
        docs::write(&report);
    }
}

/// The named sections, or all.
async fn measure(asked: &[String]) -> Report {
    let start = Instant::now();
    let wanted = |section: &str| asked.is_empty() || asked.iter().any(|word| word == section);
    let (mut report, stores) = (Report::default(), Stores::default());
    report.remark(docs::machine());
    if wanted("hot") {
        hot::measure(&mut report).await;
    }
    for engine in [Engine::Sqlite, Engine::Postgres] {
        if wanted("cold") {
            cold::measure(&mut report, stores.on(engine).await, engine).await;
        }
    }
    for engine in [Engine::Sqlite, Engine::Postgres] {
        if wanted("batch") {
            batch::measure(&mut report, stores.on(engine).await, engine).await;
        }
    }
    if wanted("memory") {
        memory::measure(&mut report, &stores).await;
    }
    for engine in [Engine::Sqlite, Engine::Postgres] {
        if wanted("warm") {
            warm::measure(&mut report, &stores, engine).await;
        }
    }
    if wanted("flood") {
        flood::measure(&mut report, stores.on(Engine::Sqlite).await).await;
    }
    if wanted("issuing") {
        issuing::measure(&mut report, stores.on(Engine::Sqlite).await).await;
    }
    for engine in [Engine::Sqlite, Engine::Postgres] {
        if wanted("listing") {
            listing::measure(&mut report, stores.on(engine).await, engine).await;
        }
    }
    eprintln!("measured in {:.0?}", start.elapsed());
    report
}
