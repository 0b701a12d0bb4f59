//! The floors of the house: imports run down the list only. One crate has no walls of its own, so
//! this reads the source.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// From the roof down: each may import what stands below it.
const FLOORS: [&str; 6] = ["server", "grpc", "service", "store", "domain", "meter"];

/// Which crate may be named under which paths alone.
const CRATES: [(&str, &[&str]); 10] = [
    ("sqlx", &["store/"]),
    ("tonic", &["grpc/", "server/"]),
    ("tonic_types", &["grpc/", "server/"]),
    ("prost", &["grpc/"]),
    ("prost_types", &["grpc/"]),
    ("argon2", &["service/secret/"]),
    ("clap", &["server/"]),
    ("prometheus_client", &["meter/"]),
    ("rustls", &["server/tls"]),
    ("webpki", &["server/tls"]),
];

/// Rooms that do not know each other.
const APART: [&str; 4] = ["validator", "keyring", "log", "usage"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every file of the source: its path below `src`, and its code without comments and tests.
fn files() -> Vec<(String, String)> {
    let (mut files, mut folders) = (Vec::new(), vec![source()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the source is readable") {
            let path = entry.expect("the source is readable").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).expect("the source is text");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let code: Vec<_> = code
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect();
            let name = path.strip_prefix(source()).expect("it is below the source");
            files.push((name.display().to_string(), code.join("\n")));
        }
    }
    assert!(files.len() > 30, "the source was found");
    files
}

/// Whether `code` names the path that begins with `name`, as a word of its own.
fn names(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + name.len()..].chars().next();
        let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
        !word(before) && code[at + name.len()..].starts_with("::") || {
            // `use tonic;` or `tonic,` in a list.
            !word(before) && matches!(after, Some(';' | ','))
        }
    })
}

/// The modules that `use crate::{…}` and `crate::…` name at their first step.
fn crate_modules(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let (mut depth, mut word) = (0, String::new());
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => modules.push(std::mem::take(&mut word)),
                    _ if depth == 0 => word.push(c),
                    _ => {}
                }
            }
            modules.push(word);
        } else {
            modules.push(rest.to_owned());
        }
    }
    let first = |path: &String| {
        let path = path.trim();
        let end = path.find(|c: char| !c.is_alphanumeric() && c != '_');
        path[..end.unwrap_or(path.len())].to_owned()
    };
    modules
        .iter()
        .map(first)
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn imports_run_down_the_floors_only() {
    for (file, code) in files() {
        let Some(floor) = FLOORS
            .iter()
            .position(|floor| file.starts_with(&format!("{floor}/")))
        else {
            continue; // main.rs and lib.rs stand above all floors.
        };
        for module in crate_modules(&code) {
            let below = FLOORS.iter().position(|floor| *floor == module);
            let below = below.unwrap_or_else(|| panic!("{file} names crate::{module}, no floor"));
            assert!(below >= floor, "{file} imports upwards, from {module}");
        }
    }
}

#[test]
fn each_library_is_named_on_its_own_floor_only() {
    for (file, code) in files() {
        for (library, places) in CRATES {
            let allowed = places.iter().any(|place| file.starts_with(place));
            assert!(allowed || !names(&code, library), "{file} names {library}");
        }
    }
}

#[test]
fn the_rooms_do_not_know_each_other() {
    for (file, code) in files() {
        for room in APART {
            let own = format!("service/{room}");
            let other = APART
                .iter()
                .any(|other| file.starts_with(&format!("service/{other}")));
            if other && !file.starts_with(&own) {
                assert!(!names(&code, room), "{file} names {room}");
                assert!(
                    !code.contains(&format!("service::{room}")),
                    "{file} names {room}"
                );
            }
        }
    }
}

#[test]
fn this_test_sees_an_import() {
    let modules =
        crate_modules("use crate::{\n    domain::{a, b},\n    store::Store,\n};\ncrate::grpc::x()");
    assert_eq!(modules, ["domain", "store", "grpc"]);
    assert!(names("use sqlx::query;", "sqlx"));
    assert!(names("use a::{b};\nlet x = sqlx::query();", "sqlx"));
    assert!(!names("use my_sqlx::query;", "sqlx"));
}
