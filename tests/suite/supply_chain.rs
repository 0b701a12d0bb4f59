//! The rules of `deny.toml` for licenses, bans and sources, enforced without a network.
//!
//! Bans and sources hold for everything that `Cargo.lock` names, on any platform. Licenses are those of the packages
//! that are built for this machine, because only their manifests are here.

use std::{collections::BTreeMap, fmt, fs, path::Path, process::Command};

use serde_json::Value as Json;
use toml_edit::{DocumentMut, Item, Value};

use crate::support::tool::run;

/// A package of `Cargo.lock`.
#[derive(Debug)]
struct Locked {
    name: String,
    version: String,
    /// `None` for a package of this repository.
    source: Option<String>,
}

impl fmt::Display for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = self.source.as_deref().unwrap_or("this repository");
        write!(f, "{} {} of {source}", self.name, self.version)
    }
}

/// The rules.
struct Rules(DocumentMut);

impl Rules {
    fn read() -> Self {
        Self(parse(&file("deny.toml")))
    }

    fn list(&self, section: &str, name: &str) -> Vec<&Value> {
        let list = self.0[section][name].as_array();
        let list = list.unwrap_or_else(|| panic!("deny.toml has no list {section}.{name}"));
        list.iter().collect()
    }

    fn texts(&self, section: &str, name: &str) -> Vec<&str> {
        let list = self.list(section, name).into_iter();
        list.map(|it| it.as_str().expect("a text")).collect()
    }

    /// The licenses that this package may have.
    fn licenses(&self, package: &str) -> Vec<&str> {
        let mut allowed = self.texts("licenses", "allow");
        for exception in self.list("licenses", "exceptions") {
            if text(exception, "crate") == package {
                let more = field(exception, "allow").as_array().expect("a list");
                allowed.extend(more.iter().filter_map(Value::as_str));
            }
        }
        allowed
    }

    /// Lists what is wrong with these packages.
    fn violations(&self, locked: &[Locked]) -> Vec<String> {
        let mut wrong = Vec::new();
        for rule in self.list("bans", "deny") {
            let name = text(rule, "crate");
            let versions: Vec<_> = locked.iter().filter(|it| it.name == name).collect();
            let table = rule.as_inline_table().expect("a table");
            let one_is_fine = table.get("deny-multiple-versions").and_then(Value::as_bool);
            if versions.len() > usize::from(one_is_fine == Some(true)) {
                let versions: Vec<_> = versions.iter().map(ToString::to_string).collect();
                wrong.push(format!("banned: {}", versions.join(", ")));
            }
        }
        for kind in ["unknown-registry", "unknown-git"] {
            assert_eq!(self.0["sources"][kind].as_str(), Some("deny"));
        }
        let registries = self.texts("sources", "allow-registry");
        for package in locked {
            let known = package.source.as_ref().is_none_or(|source| {
                let registry = source.strip_prefix("registry+");
                registry.is_some_and(|registry| registries.contains(&registry))
            });
            if !known {
                wrong.push(format!("unknown source: {package}"));
            }
        }
        wrong
    }
}

#[test]
fn no_dependency_is_banned_or_of_an_unknown_source() {
    let rules = Rules::read();
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let locked = packages(&file(lock));
        assert!(locked.len() > 40, "{lock} was read");
        assert_eq!(rules.violations(&locked), [""; 0], "{lock}");
    }
}

#[test]
fn every_dependency_has_a_license_that_is_allowed() {
    let rules = Rules::read();
    let host = run(Command::new("rustc").args(["--print", "host-tuple"]));
    let metadata = run(Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--locked"])
        .args(["--filter-platform", host.trim()])
        .current_dir(env!("CARGO_MANIFEST_DIR")));
    let metadata: Json = serde_json::from_str(&metadata).expect("cargo prints JSON");
    let built = metadata["resolve"]["nodes"].as_array().expect("a list");
    let built: Vec<_> = built.iter().map(|node| &node["id"]).collect();
    let packages = metadata["packages"].as_array().expect("a list");
    let packages = packages.iter().filter(|it| built.contains(&&it["id"]));
    let mut refused = BTreeMap::new();
    let mut seen = 0;
    for package in packages {
        seen += 1;
        let name = package["name"].as_str().expect("a name");
        let license = package["license"].as_str().unwrap_or_default();
        let allowed = rules.licenses(name);
        if !is_allowed(license, &allowed) {
            refused.insert(name, license);
        }
    }
    assert!(seen > 200, "the graph was read: {seen}");
    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn a_violation_is_seen() {
    let rules = Rules::read();
    let crates_io = "registry+https://github.com/rust-lang/crates.io-index";
    let package = |name: &str, version: &str, source: &str| Locked {
        name: name.to_owned(),
        version: version.to_owned(),
        source: Some(source.to_owned()),
    };
    for locked in [
        vec![package("openssl-sys", "0.9.1", crates_io)],
        vec![
            package("rustls", "0.22.0", crates_io),
            package("rustls", "0.23.0", crates_io),
        ],
        vec![package(
            "blake3",
            "1.8.0",
            "git+https://example.org/blake3#1",
        )],
        vec![package(
            "blake3",
            "1.8.0",
            "registry+https://example.org/index",
        )],
    ] {
        assert_eq!(rules.violations(&locked).len(), 1, "{locked:?}");
    }
    assert_eq!(
        rules.violations(&[package("rustls", "0.23.0", crates_io)]),
        [""; 0]
    );

    let allowed = ["MIT", "Apache-2.0", "ISC"];
    for (license, good) in [
        ("MIT", true),
        ("MIT OR GPL-3.0", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 / Apache-2.0", true),
        ("ISC AND (MIT OR GPL-3.0)", true),
        ("(MIT OR GPL-3.0) AND ISC", true),
        ("Apache-2.0 WITH LLVM-exception OR MIT", true),
        ("", false),
        ("GPL-3.0", false),
        ("MIT AND GPL-3.0", false),
        ("ISC AND (GPL-2.0 OR GPL-3.0)", false),
        ("Apache-2.0 WITH LLVM-exception", false),
    ] {
        assert_eq!(is_allowed(license, &allowed), good, "{license}");
    }
}

/// Whether a license expression (SPDX, or the older form with `/`) can be met by these licenses.
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let met = any_of(&mut words, allowed);
    met && words.next().is_none()
}

type Words<'w> = std::iter::Peekable<std::str::SplitWhitespace<'w>>;

fn any_of(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut met = all_of(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= all_of(words, allowed);
    }
    met
}

fn all_of(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    match words.next() {
        Some("(") => {
            let met = any_of(words, allowed);
            words.next_if_eq(&")").is_some() && met
        }
        Some(license) => match words.next_if_eq(&"WITH").and_then(|_| words.next()) {
            Some(exception) => allowed.contains(&&*format!("{license} WITH {exception}")),
            None => allowed.contains(&license),
        },
        None => false,
    }
}

/// The packages that a lock file names.
fn packages(lock: &str) -> Vec<Locked> {
    let lock = parse(lock);
    let packages = lock["package"].as_array_of_tables().expect("packages");
    let text = |item: Option<&Item>| item.and_then(Item::as_str).map(str::to_owned);
    let package = |table: &toml_edit::Table| Locked {
        name: text(table.get("name")).expect("a name"),
        version: text(table.get("version")).expect("a version"),
        source: text(table.get("source")),
    };
    packages.iter().map(package).collect()
}

fn field<'a>(table: &'a Value, name: &str) -> &'a Value {
    let table = table.as_inline_table().expect("a table");
    table
        .get(name)
        .unwrap_or_else(|| panic!("{table:?} has no {name}"))
}

fn text<'a>(table: &'a Value, name: &str) -> &'a str {
    field(table, name).as_str().expect("a text")
}

fn parse(toml: &str) -> DocumentMut {
    toml.parse().expect("TOML")
}

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
