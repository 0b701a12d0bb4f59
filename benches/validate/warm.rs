//! A start that reads a million keys into memory before it is ready: how long it takes.

use std::time::{Duration, Instant};

use gatekey::api::READINESS;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    memory::all_there,
    report::{Report, digits, median, name},
    settings::{CACHE_KEYS, Settings, WARM_KEYS},
    stored::{KEYS, Stored, Stores},
    support::{Engine, Gatekey, Setup},
};

const ROUNDS: u32 = 3;

/// From the start of the process to its readiness.
pub async fn measure(report: &mut Report, stores: &Stores, engine: Engine) {
    let measured = match Settings::get().require(WARM_KEYS) {
        Ok(()) => seconds(stores.on(engine).await, engine).await,
        Err(why) => Err(why),
    };
    let (keys, name) = (digits(KEYS as f64), name(engine));
    let what = format!("start to ready with {keys} keys to warm, {name}");
    report.goal(what, 4.0, " s", measured);
}

async fn seconds(stored: &Stored, engine: Engine) -> Result<f64, String> {
    let mut times = Vec::new();
    for round in 1..=ROUNDS {
        eprintln!("warm, {}: round {round} of {ROUNDS}", name(engine));
        let (server, time) = ready(&stored.setup).await;
        if round == ROUNDS {
            all_there(&server, stored)?;
        }
        server.stop().await;
        times.push(time.as_secs_f64());
    }
    median(times.into_iter()).ok_or_else(|| "there was no round".to_owned())
}

/// A server with room for all keys, once it has warmed up and is ready; and how long that took.
pub async fn ready(setup: &Setup) -> (Gatekey, Duration) {
    let room = (KEYS + KEYS / 5).to_string();
    let setup = setup
        .clone()
        .env(CACHE_KEYS, room)
        .env(WARM_KEYS, KEYS.to_string());
    let start = Instant::now();
    let server = setup.start().await;
    let channel = server.admin().await.channel;
    let asked = HealthCheckRequest {
        service: READINESS.to_owned(),
    };
    let watched = HealthClient::new(channel).watch(asked).await;
    let mut told = watched.expect("the server tells its health").into_inner();
    loop {
        let status = told
            .message()
            .await
            .expect("the server goes on")
            .expect("and on");
        if status.status() == ServingStatus::Serving {
            return (server, start.elapsed());
        }
    }
}
