//! A key that is asked about again and again, the two kinds of bad key, and what they are compared with.

use std::time::Duration;

use gatekey::api::proto::{CreateKeyRequest, Reason};

use crate::{
    baseline::{Baseline, Kind},
    keys::{SCOPES, ask, with_typo, with_wrong_secret},
    load::{Shape, ValidationRequest},
    report::{Report, Sample, Subject},
    settings::Settings,
    stored,
    support::{Engine, client::new_key},
};

const ROUNDS: u32 = 5;
/// A day; the answer then has every field that an answer usually has.
const LIFE: prost_types::Duration = prost_types::Duration {
    seconds: 24 * 3600,
    nanos: 0,
};

/// How long each load of a round lasts. Server CPU is counted in ticks of 10 ms: longer where it is compared.
fn time(shape: Shape) -> Duration {
    Duration::from_secs(if shape == Shape::BUSY { 2 } else { 1 })
}

/// What is asked, of which process, and how often in a round.
struct Target {
    subject: Subject,
    pid: u32,
    question: ValidationRequest,
    loads: Vec<(Shape, u64)>,
}

impl Target {
    async fn verified(subject: Subject, pid: u32, question: ValidationRequest) -> Self {
        question.verify().await;
        let loads = Shape::ALL
            .into_iter()
            // 512 calls of argon2 take longer than all the rest.
            .filter(|shape| subject != Subject::Argon2 || *shape != Shape::CROWDED)
            .map(|shape| (shape, question.calls_in(shape, time(shape))))
            .collect();
        Self {
            subject,
            pid,
            question,
            loads,
        }
    }
}

pub async fn measure(report: &mut Report) {
    // As in service: metrics are there to be read, and calls could have traces, but none of these has.
    let setup = stored::empty(Engine::Sqlite)
        .await
        .env("GATEKEY_METRICS_LISTEN", "127.0.0.1:0")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        .env("OTEL_TRACES_SAMPLER", "parentbased_always_off");
    let server = setup.start().await;
    let admin = server.admin().await;
    let (_, bearer) = admin.issue("system", &["*:keys:validate"]).await;
    let asked = CreateKeyRequest {
        ttl: Some(LIFE),
        ..new_key("default", &SCOPES)
    };
    let (_, key) = admin.create(asked).await;

    let about = |key: &str, expected| ValidationRequest {
        addr: server.addr(),
        bearer: bearer.clone(),
        request: ask(key),
        expected,
    };
    let hot = about(&key, Reason::Allowed);
    let answer = hot.verify().await;
    let of = |baseline: &Baseline| ValidationRequest {
        addr: baseline.addr,
        ..hot.clone()
    };
    let [stock, single, argon2] = [Kind::Stock, Kind::SingleThreaded, Kind::Argon2]
        .map(|kind| Baseline::start(kind, &answer));
    let wrong = about(&with_wrong_secret(&key), Reason::NotFound);
    let garbage = about(&with_typo(&key), Reason::Malformed);
    let targets = [
        Target::verified(Subject::Stock, stock.pid(), of(&stock)).await,
        Target::verified(Subject::SingleThreaded, single.pid(), of(&single)).await,
        Target::verified(Subject::Hot, server.pid(), hot.clone()).await,
        Target::verified(Subject::WrongSecret, server.pid(), wrong).await,
        Target::verified(Subject::Garbage, server.pid(), garbage).await,
        Target::verified(Subject::Argon2, argon2.pid(), of(&argon2)).await,
    ];
    for round in 1..=ROUNDS {
        eprintln!("hot: round {round} of {ROUNDS}");
        for shape in Shape::ALL {
            // Under full load the generator's own CPU counts: latencies are told by one round alone.
            let timed = shape.in_flight() < Shape::BUSY.in_flight() || round == ROUNDS;
            for target in &targets {
                let loads = target.loads.iter().filter(|(of, _)| *of == shape);
                for (_, calls) in loads {
                    let sample =
                        Sample::of(target.pid, || target.question.ask(shape, *calls, timed));
                    report.add(target.subject, shape, sample);
                }
            }
        }
    }
    goals(report);
}

fn goals(report: &mut Report) {
    if !Settings::get().has_cache() {
        report.remark("This gatekey has no cache (no GATEKEY_CACHE_KEYS): \"hot\" asks the store in every call.");
    }
    let goals = [
        (
            "hot / constant answer on tonic's usual runtime",
            Subject::Hot,
            Subject::Stock,
            0.70,
        ),
        (
            "hot / constant answer on one runtime a core",
            Subject::Hot,
            Subject::SingleThreaded,
            1.12,
        ),
        ("garbage / hot", Subject::Garbage, Subject::Hot, 1.0),
        (
            "wrong secret / hot, with a pepper",
            Subject::WrongSecret,
            Subject::Hot,
            1.3,
        ),
    ];
    for (what, this, that, limit) in goals {
        let ratio = report.ratio(this, that, Shape::BUSY, |sample| sample.cpu);
        report.goal(
            format!("{what}: server CPU a call at {}", Shape::BUSY),
            limit,
            "×",
            ratio,
        );
    }
}
