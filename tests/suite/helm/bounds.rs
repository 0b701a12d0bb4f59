//! The chart accepts a configuration if and only if the program does.

use std::process::Command;

use proptest::{
    prelude::*,
    sample::select,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value as Json, json};

use super::refused;

/// The units of `helm/gatekey/values.schema.json`, with their milliseconds.
pub const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];
/// The bounds of `config.lease` and of `config.maxConnectionAge`, in milliseconds.
pub const LEASE: [u64; 2] = [500, 3_600_000];
pub const AGE: [u64; 2] = [1_000, 365 * 86_400_000];

/// Draws this many values from a strategy.
pub fn draw<T: std::fmt::Debug>(count: usize, strategy: impl Strategy<Value = T>) -> Vec<T> {
    let mut runner = TestRunner::new(Config::default());
    let mut draw = || strategy.new_tree(&mut runner).expect("it has values");
    (0..count).map(|_| draw().current()).collect()
}

/// Durations around a unit's multiples of the bounds, and anywhere.
fn duration([low, high]: [u64; 2]) -> impl Strategy<Value = String> {
    select(&UNITS[..]).prop_flat_map(move |(unit, factor)| {
        let near = |bound: u64| (bound / factor).saturating_sub(1)..=bound / factor + 1;
        let number = prop_oneof![near(low), near(high), 0..=high / factor + 1];
        number.prop_map(move |number| format!("{number}{unit}"))
    })
}

/// Whether the program takes a setting's value: it fails later if it does, because it finds no server.
fn program_accepts(variable: &str, value: &str) -> bool {
    let output = Command::new(env!("CARGO_BIN_EXE_gatekey"))
        .arg("health")
        .env_clear()
        .env(variable, value)
        .env("GATEKEY_HEALTH_LISTEN", "127.0.0.1:1")
        .output()
        .expect("cargo has built the program");
    let stderr = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(1) => true,
        Some(2) if stderr.contains(variable) => false,
        _ => panic!("{variable}={value}: {output:?}"),
    }
}

/// Values with this one in `config`.
fn config(name: &str, value: impl Into<Json>) -> Json {
    json!({"database": {"engine": "sqlite"}, "config": {name: value.into()}})
}

#[test]
fn the_chart_accepts_the_durations_that_the_program_accepts_and_no_others() {
    let mut cases = Vec::new();
    for (name, variable, bounds) in [
        ("lease", "GATEKEY_LEASE", LEASE),
        ("maxConnectionAge", "GATEKEY_MAX_CONNECTION_AGE", AGE),
    ] {
        let durations = draw(100, duration(bounds)).into_iter();
        cases.extend(durations.map(|duration| (name, variable, duration)));
    }
    let values = cases.iter().map(|(name, _, it)| config(name, &**it));
    let values: Vec<_> = values.collect();
    let mut seen = [0; 2];
    for ((name, variable, duration), refused) in cases.iter().zip(refused(&values)) {
        let accepted = program_accepts(variable, duration);
        assert_eq!(
            refused.is_none(),
            accepted,
            "{name}={duration}: {refused:?}"
        );
        seen[usize::from(accepted)] += 1;
    }
    assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
}

/// A value of `config`, its setting, values within the bounds and values outside of them.
type Bound = (&'static str, &'static str, Json, Json);

fn bounds() -> [Bound; 8] {
    [
        (
            "lease",
            "GATEKEY_LEASE",
            json!(["500ms", "1h"]),
            json!(["499ms", "3601s", "10"]),
        ),
        (
            "maxConnectionAge",
            "GATEKEY_MAX_CONNECTION_AGE",
            json!(["1s", "365d", "1h30m"]),
            json!(["999ms", "366d", "15"]),
        ),
        (
            "cacheKeys",
            "GATEKEY_CACHE_KEYS",
            json!([1, 1_000_000_000]),
            json!([0, -1, 1.5]),
        ),
        (
            "argon2",
            "GATEKEY_ARGON2",
            json!([
                "m=1024,t=1,p=1",
                "m=65536,t=8,p=4",
                "m=9999,t=2,p=1",
                "m=65499,t=2,p=1"
            ]),
            json!([
                "m=1023,t=1,p=1",
                "m=65537,t=1,p=1",
                "m=1024,t=9,p=1",
                "m=1024,t=0,p=1",
                "m=1024,t=1,p=5",
                "19456"
            ]),
        ),
        (
            "warmKeys",
            "GATEKEY_WARM_KEYS",
            json!([0, 1_000_000_000]),
            json!([-1, 1.5]),
        ),
        (
            "validateAuth",
            "GATEKEY_VALIDATE_AUTH",
            json!(["required", "none"]),
            json!(["optional"]),
        ),
        (
            "log",
            "GATEKEY_LOG",
            json!(["off", "trace"]),
            json!(["verbose"]),
        ),
        (
            "logFormat",
            "GATEKEY_LOG_FORMAT",
            json!(["json", "text"]),
            json!(["xml"]),
        ),
    ]
}

#[test]
fn the_chart_and_the_program_refuse_a_value_just_outside_a_bound() {
    for (name, variable, inside, outside) in bounds() {
        for (accepted, values) in [(true, inside), (false, outside)] {
            let values = values.as_array().expect("a list").clone();
            let configs: Vec<_> = values.iter().map(|it| config(name, it.clone())).collect();
            for (value, refused) in values.iter().zip(refused(&configs)) {
                assert_eq!(refused.is_none(), accepted, "{name}={value}: {refused:?}");
                let shown = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                assert_eq!(
                    program_accepts(variable, &shown),
                    accepted,
                    "{variable}={shown}"
                );
            }
        }
    }
}

#[test]
fn the_chart_and_the_program_refuse_a_number_just_below_its_bound() {
    // The chart has these values as numbers.
    for (path, low, variable, text) in [
        ("cores", 1, "GATEKEY_WORKERS", "0"),
        ("drainSeconds", 0, "GATEKEY_DRAIN", "-1s"),
    ] {
        let at = |value: i64| match path {
            "cores" => json!({"database": {"engine": "sqlite"}, "cores": value}),
            _ => config(path, value),
        };
        let refused = refused(&[at(low), at(low - 1)]);
        assert!(
            refused[0].is_none() && refused[1].is_some(),
            "{path}: {refused:?}"
        );
        assert!(!program_accepts(variable, text), "{variable}={text}");
    }
}
