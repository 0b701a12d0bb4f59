//! The layers of the source: imports go down the list only. The compiler does not check this inside
//! one crate, so these tests read the source files, whole.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The layers from top to bottom. Each may import only the layers below it.
const LAYERS: [&str; 6] = ["server", "api", "service", "store", "domain", "metrics"];

/// The crates that only some paths may use.
const CRATES: [(&str, &[&str]); 11] = [
    ("sqlx", &["store/"]),
    ("tonic", &["api/", "server/"]),
    ("tonic_types", &["api/", "server/"]),
    ("prost", &["api/"]),
    ("prost_types", &["api/"]),
    ("argon2", &["service/secret/"]),
    ("clap", &["server/"]),
    ("serde_yaml_ng", &["api/ext_authz/"]),
    ("prometheus_client", &["metrics/"]),
    ("rustls", &["server/tls"]),
    ("webpki", &["server/tls"]),
];

/// Modules of the service layer that do not import each other.
const INDEPENDENT: [&str; 4] = ["validator", "keyring", "event_log", "usage"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Returns the path below `src` of every source file, and its code without comments.
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
            let code: Vec<_> = text
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

/// Returns true if `code` uses a path that begins with `name`.
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

/// Returns the first segments of all paths in `crate::{…}` and `crate::…`.
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
fn imports_go_down_the_layers_only() {
    for (file, code) in files() {
        let Some(layer) = LAYERS
            .iter()
            .position(|layer| file.starts_with(&format!("{layer}/")))
        else {
            continue; // main.rs and lib.rs are above all layers.
        };
        for module in crate_modules(&code) {
            let below = LAYERS.iter().position(|layer| *layer == module);
            let below =
                below.unwrap_or_else(|| panic!("{file} names crate::{module}, which is no layer"));
            assert!(below >= layer, "{file} imports upwards, from {module}");
        }
    }
}

#[test]
fn each_library_is_used_in_its_own_layer_only() {
    for (file, code) in files() {
        for (library, places) in CRATES {
            let allowed = places.iter().any(|place| file.starts_with(place));
            assert!(allowed || !names(&code, library), "{file} names {library}");
        }
    }
}

#[test]
fn independent_services_do_not_import_each_other() {
    for (file, code) in files() {
        for module in INDEPENDENT {
            let own = format!("service/{module}");
            let other = INDEPENDENT
                .iter()
                .any(|other| file.starts_with(&format!("service/{other}")));
            if other && !file.starts_with(&own) {
                assert!(!names(&code, module), "{file} names {module}");
                assert!(
                    !code.contains(&format!("service::{module}")),
                    "{file} names {module}"
                );
            }
        }
    }
}

#[test]
fn imports_are_recognized() {
    let modules =
        crate_modules("use crate::{\n    domain::{a, b},\n    store::Store,\n};\ncrate::api::x()");
    assert_eq!(modules, ["domain", "store", "api"]);
    assert!(names("use sqlx::query;", "sqlx"));
    assert!(names("use a::{b};\nlet x = sqlx::query();", "sqlx"));
    assert!(!names("use my_sqlx::query;", "sqlx"));
}
