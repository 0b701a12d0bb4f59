//! A million keys in memory: what the server has resident for each, with all that comes with them.

use gatekey::api::proto::Reason;

use crate::{
    generator::{self, Load},
    keys::ask_number,
    load::Shape,
    report::{Report, Sample, digits, name},
    settings::{CACHE_KEYS, Settings, WARM_KEYS},
    stored::{self, KEYS, Stored, Stores},
    support::{Engine, Gatekey},
    usage,
    warm::ready,
};

/// One key in so many is asked about to see whether it is in memory.
const STRIDE: usize = 20;
/// A key that has to be loaded costs more than ten times as much: this is reached when one in twenty is not in memory.
const SUSPICIOUS: f64 = 1.5;

/// Resident memory of a server with all keys in memory, less that of one whose database is empty.
pub async fn measure(report: &mut Report, stores: &Stores) {
    let measured = match Settings::get().require(CACHE_KEYS) {
        Ok(()) => bytes_a_key(stores.on(Engine::Sqlite).await).await,
        Err(why) => Err(why),
    };
    let what = format!("resident memory a key, {} in memory", digits(KEYS as f64));
    report.goal(what + ", 3 scopes each", 320.0, " B", measured);
}

async fn bytes_a_key(stored: &Stored) -> Result<f64, String> {
    eprintln!("memory, {}", name(Engine::Sqlite));
    let (empty, _) = ready(&stored::empty(Engine::Sqlite).await).await;
    let without = usage::resident(empty.pid());
    drop(empty);

    let (server, _) = ready(&stored.setup).await;
    if Settings::get().require(WARM_KEYS).is_err() {
        let load = Load::of(server.addr(), &stored.caller, Shape::BUSY);
        generator::run(load.ask((0..KEYS).map(ask_number), Reason::Allowed));
    }
    let with = usage::resident(server.pid());
    all_there(&server, stored)?;
    Ok((with as f64 - without as f64) / KEYS as f64)
}

/// That keys are in memory: asking about them costs no more CPU than asking again, when they are.
pub fn all_there(server: &Gatekey, stored: &Stored) -> Result<(), String> {
    let ask = || {
        let load = Load::of(server.addr(), &stored.caller, Shape::BUSY);
        let bodies = (0..KEYS).step_by(STRIDE).map(ask_number);
        Sample::of(server.pid(), || {
            generator::run(load.ask(bodies, Reason::Allowed))
        })
        .cpu
    };
    let (first, again) = (ask(), ask());
    if first > again * SUSPICIOUS {
        let (first, again) = (digits(first), digits(again));
        return Err(format!(
            "not all were in memory: {first} µs of CPU a call at first, then {again}"
        ));
    }
    Ok(())
}
