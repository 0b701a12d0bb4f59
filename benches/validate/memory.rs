//! A million keys in memory: what the server has resident for each, with all that comes with them.

use gatekey::grpc::proto::Reason;

use crate::{
    generator::{self, Load},
    keys::ask_number,
    load::Shape,
    report::{Report, digits, name},
    settings::{CACHE_KEYS, Settings, WARM_KEYS},
    stored::{self, KEYS, Stored, Stores},
    support::Engine,
    usage,
    warm::ready,
};

/// Less than this is not even the MAC of a key.
const LEAST: f64 = 32.0;

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
    let a_key = (with as f64 - without as f64) / KEYS as f64;
    if a_key < LEAST {
        return Err(format!("{a_key:.0} B: they are not in memory"));
    }
    Ok(a_key)
}
