//! How long it takes until a revoked key is revoked everywhere: three replicas on one PostgreSQL, each of which answers
//! a thousand Validates a second meanwhile.
//!
//! `cargo bench --bench revocation` measures and rewrites what `docs/revocation.md` and its plot show.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "figures for people: three digits are enough"
)]

#[path = "../validate/generator.rs"]
#[allow(dead_code, reason = "the other benchmark uses more of it")]
mod generator;
#[path = "../validate/h2load.rs"]
#[allow(dead_code, reason = "the other benchmark uses it")]
mod h2load;
#[path = "../validate/load.rs"]
#[allow(dead_code, reason = "the other benchmark uses more of it")]
mod load;
#[path = "../validate/page.rs"]
mod page;
mod plot;
mod replicas;
#[path = "../validate/report.rs"]
#[allow(dead_code, reason = "the other benchmark uses more of it")]
mod report;
#[path = "../../tests/suite/support/mod.rs"]
#[allow(
    unused_imports,
    unused_macros,
    reason = "the tests use more of it than a benchmark does"
)]
mod support;
#[path = "../validate/usage.rs"]
#[allow(dead_code, reason = "the other benchmark uses it")]
mod usage;

use std::time::{Duration, Instant};

use plot::Curve;
use replicas::{Encoded, Replicas};
use report::Report;

/// As the server has it: the load comes from this program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const COMMAND: &str = "cargo bench --bench revocation";
/// How many keys are revoked, one after the other.
const REVOCATIONS: usize = 1000;
/// How many keys an owner has that are revoked at once, and how often that is done.
const KEYS_AT_ONCE: usize = 10_000;
const TIMES: usize = 3;

fn main() {
    if cfg!(debug_assertions) {
        return eprintln!("Only an optimised build is worth measuring: {COMMAND}");
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let start = Instant::now();
    let (report, curves) = runtime.block_on(measure());
    eprintln!("measured in {:.0?}", start.elapsed());
    println!("\n{}", report.markdown());
    let (figures, json) = (report.markdown(), report.json());
    let written = format!(
        "{figures}\n<details><summary>As JSON</summary>\n\n```json\n{json}```\n\n</details>\n"
    );
    page::rewrite("revocation.md", COMMAND, &written);
    page::draw("revocation.svg", &plot::svg(&curves));
    println!("Written to docs/revocation.md and docs/revocation.svg.");
}

async fn measure() -> (Report, Vec<Curve>) {
    let (mut report, mut curves) = (Report::default(), Vec::new());
    report.remark(format!(
        "{}; three replicas, PostgreSQL, the callers and 1 000 Validates a second on each replica share them.",
        page::processor()
    ));
    report.remark("Polling: behind PgBouncer in transaction mode, where no notification arrives.");
    for (name, pooled, limits) in [
        ("with notifications", false, [10.0, 50.0]),
        ("polling", true, [f64::INFINITY, 400.0]),
    ] {
        let replicas = Replicas::start(pooled, REVOCATIONS, TIMES, KEYS_AT_ONCE).await;
        let load = replicas.load();
        let told = replicas.revoke_each(REVOCATIONS).await;
        let enforced = sorted(&told, |told| told.enforced);
        let accepted = sorted(&told, |told| told.accepted);
        for (share, limit) in [(0.50, limits[0]), (0.99, limits[1])] {
            let at = percentile(&enforced, share);
            let what = format!("RevokeKey to ENFORCED, {name}, p{:.0}", share * 100.0);
            if limit.is_finite() {
                report.goal(what, limit, " ms", Ok(at));
            } else {
                report.remark(format!("{what}: {} ms.", report::digits(at)));
            }
        }
        report.remark(format!(
            "Last acceptance anywhere after RevokeKey was called, {name}: p50 {} ms, p99 {} ms, at most {} ms.",
            report::digits(percentile(&accepted, 0.50)),
            report::digits(percentile(&accepted, 0.99)),
            report::digits(percentile(&accepted, 1.0)),
        ));
        let mut at_once = Vec::new();
        for time in 0..TIMES {
            at_once.push(replicas.revoke_owner(time, KEYS_AT_ONCE).await);
        }
        let longest = at_once.into_iter().max().unwrap_or(Duration::MAX);
        if !pooled {
            let what =
                format!("RevokeKeys of {KEYS_AT_ONCE} keys to ENFORCED, the longest of {TIMES}");
            report.goal(what, 2.0, " s", Ok(longest.as_secs_f64()));
        }
        let (calls, p99) = load.finish();
        report.remark(format!(
            "{calls} Validates meanwhile, {name}, all allowed: p99 {} µs.",
            report::digits(p99)
        ));
        curves.push(Curve {
            name: format!("ENFORCED, {name}"),
            millis: enforced,
        });
        curves.push(Curve {
            name: format!("last acceptance, {name}"),
            millis: accepted,
        });
    }
    (report, curves)
}

/// In milliseconds, the smallest first.
fn sorted(told: &[Encoded], of: impl Fn(&Encoded) -> Duration) -> Vec<f64> {
    let mut millis: Vec<_> = told
        .iter()
        .map(|told| of(told).as_secs_f64() * 1e3)
        .collect();
    millis.sort_by(f64::total_cmp);
    millis
}

fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share) as usize;
    let at = sorted.get(place.min(sorted.len().saturating_sub(1)));
    at.copied().unwrap_or(f64::NAN)
}
