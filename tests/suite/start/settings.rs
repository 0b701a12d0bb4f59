//! A setting that cannot work: one line that names the variable, the value and what would be right.

use std::{collections::BTreeMap, ffi::OsStr, fs, net::TcpListener, os::unix::ffi::OsStrExt as _};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::{
    program::{Ended, Program},
    support::{Gatekey, on_both_engines, write_secret},
};

/// Each flag, its variable and its default, as `--help` shows them.
pub const SETTINGS: &[(&str, &str, &str)] = &[
    ("--listen", "GATEKEY_LISTEN", "127.0.0.1:50051"),
    (
        "--metrics-listen",
        "GATEKEY_METRICS_LISTEN",
        "127.0.0.1:9464",
    ),
    (
        "--database-url",
        "GATEKEY_DATABASE_URL",
        "sqlite://gatekey.db",
    ),
    (
        "--admin-token-file",
        "GATEKEY_ADMIN_TOKEN_FILE",
        "gatekey-admin.token",
    ),
    ("--pepper-file", "GATEKEY_PEPPER_FILE", "gatekey.pepper"),
    ("--argon2", "GATEKEY_ARGON2", "m=19456,t=2,p=1"),
    (
        "--allow-readable-secrets",
        "GATEKEY_ALLOW_READABLE_SECRETS",
        "false",
    ),
    ("--cache-keys", "GATEKEY_CACHE_KEYS", "1000000"),
    ("--warm-keys", "GATEKEY_WARM_KEYS", "100000"),
    ("--lease", "GATEKEY_LEASE", "10s"),
    ("--validate-auth", "GATEKEY_VALIDATE_AUTH", "required"),
    ("--max-connection-age", "GATEKEY_MAX_CONNECTION_AGE", "15m"),
    ("--drain", "GATEKEY_DRAIN", "20s"),
    ("--log", "GATEKEY_LOG", "info"),
    ("--log-format", "GATEKEY_LOG_FORMAT", "text"),
];

#[tokio::test]
async fn help_shows_each_setting_with_its_flag_its_variable_and_its_default() {
    let folder = TempDir::new().expect("a temporary folder");
    for arguments in [
        &["--help"][..],
        &["serve", "--help"],
        &["migrate", "--help"],
        &["health", "--help"],
    ] {
        let help = Program::bare(folder.path(), arguments).end().await;
        assert!(help.status.success(), "{help:?}");
        assert_eq!(help.stderr, "");
        let shown: Vec<_> = shown_settings(&help.stdout);
        let expected: Vec<_> = SETTINGS
            .iter()
            .map(|(flag, variable, default)| [flag, variable, default].map(ToString::to_string))
            .collect();
        assert_eq!(shown, expected, "{arguments:?}");
    }
    let left = fs::read_dir(folder.path())
        .expect("the folder is there")
        .count();
    assert_eq!(left, 0, "help makes nothing");
}

#[tokio::test]
async fn help_does_not_show_a_database_url_that_is_set() {
    let folder = TempDir::new().expect("a temporary folder");
    for argument in ["-h", "--help"] {
        let help = Program::bare(folder.path(), &[argument])
            .env("GATEKEY_DATABASE_URL", "postgres://ada:hunter2@db/keys")
            .end()
            .await;
        assert!(help.status.success(), "{help:?}");
        assert!(!help.stdout.contains("hunter2"), "{}", help.stdout);
    }
}

#[tokio::test]
async fn a_value_that_cannot_work_is_told_in_one_line_with_its_variable_and_what_would_be_right() {
    const ADDRESS: &str = "must be an address and a port, such as 127.0.0.1:50051";
    const METRICS: &str = "must be an address and a port, such as 127.0.0.1:9464, or off";
    const DURATION: &str = "must be a duration with its unit, such as 500ms, 10s or 15m";
    const AGE: &str = "must be between 1s and 365days";
    const ARGON2: &str = "must be m=<KiB>,t=<passes>,p=<lanes>, such as m=19456,t=2,p=1, \
                          with m from 1024 to 65536, t from 1 to 8 and p from 1 to 4";
    const LEVEL: &str = "must be off, error, warn, info, debug or trace";
    const URL: &str = "it is neither sqlite://<file> nor postgres://<user>@<host>/<database>";
    for (variable, value, right) in [
        ("GATEKEY_LISTEN", "nowhere", ADDRESS),
        ("GATEKEY_LISTEN", "127.0.0.1", ADDRESS),
        ("GATEKEY_LISTEN", "127.0.0.1:99999", ADDRESS),
        ("GATEKEY_METRICS_LISTEN", "nowhere", METRICS),
        ("GATEKEY_HEALTH_LISTEN", "nowhere", ADDRESS),
        ("GATEKEY_MAX_CONNECTION_AGE", "15", DURATION),
        ("GATEKEY_MAX_CONNECTION_AGE", "0s", AGE),
        ("GATEKEY_MAX_CONNECTION_AGE", "999ms", AGE),
        ("GATEKEY_MAX_CONNECTION_AGE", "366days", AGE),
        (
            "GATEKEY_CONNECTIONS_PER_ADDRESS",
            "0",
            "must be a number of 1 or more",
        ),
        ("GATEKEY_DRAIN", "20", DURATION),
        ("GATEKEY_DRAIN", "-1s", DURATION),
        ("GATEKEY_ARGON2", "m=1023,t=1,p=1", ARGON2),
        ("GATEKEY_WARM_KEYS", "-1", "must be a number of 0 or more"),
        ("GATEKEY_LOG", "loud", LEVEL),
        ("GATEKEY_LOG", "gatekey=debug", LEVEL),
        ("GATEKEY_LOG_FORMAT", "xml", "must be text or json"),
        ("GATEKEY_VALIDATE_AUTH", "maybe", "must be required or none"),
        (
            "GATEKEY_ALLOW_READABLE_SECRETS",
            "yes",
            "must be true or false",
        ),
        ("GATEKEY_DATABASE_URL", "mysql://db/keys", URL),
        (
            "GATEKEY_DATABASE_URL",
            "sqlite://:memory:",
            "an SQLite store is a file: a store in memory would lose every key",
        ),
        (
            "GATEKEY_DATABASE_URL",
            "sqlite::memory:",
            "an SQLite store is a file: a store in memory would lose every key",
        ),
        (
            "GATEKEY_DATABASE_URL",
            "sqlite://nowhere/me@home.db",
            "the directory nowhere does not exist: create it, or correct the path",
        ),
    ] {
        let ended = with(variable, value).await;
        let line = format!("gatekey: {variable} is invalid: {value}: {right}");
        assert_eq!(ended.deny_reason(), line);
    }
}

#[tokio::test]
async fn a_value_that_is_no_text_is_told_in_one_line_with_its_variable() {
    for (_, variable, _) in SETTINGS {
        if variable.ends_with("_FILE") {
            continue; // a path need not be text
        }
        let ended = with(variable, OsStr::from_bytes(b"\xff\xfe")).await;
        assert!(ended.deny_reason().contains(variable), "{ended:?}");
    }
}

#[tokio::test]
async fn a_database_url_is_told_without_what_may_be_a_password() {
    let mut starts = JoinSet::new();
    for url in [
        "mysql://ada:hunter2@db/keys",
        "postgres://ada:hunter2@db:port/keys",
        "postgres://ada:hunter2@127.0.0.1:1/keys?sslmode=never",
        "postgres://db:port/keys?user=ada&password=hunter2",
        // Characters that had to be escaped, and were not.
        "postgres://ada:hunter2?x@db:port/keys",
        "postgres://ada:hunter2#x@db:port/keys",
        "postgres://ada:hunter2/x@db:port/keys",
        "postgres://ada:x@hunter2@db:port/keys",
        "postgres://ada:x@hunter2?y@db:port/keys",
        "postgres://ada:x@y?hunter2@db:port/keys",
        "postgres://db:port/keys?user=ada&password=x@hunter2",
        // Slips of the pen.
        "postgres://ada:hunter2",
        "postgres://ada@127.0.0.1:1/keys?pasword=hunter2",
        "postgres:/ada:hunter2@db/keys",
        "postgres//ada:hunter2@db/keys",
        "postgres:ada:hunter2@db/keys",
        "postgress://ada:hunter2@db/keys",
        "ada:hunter2@db/keys",
        "host=db user=ada password=hunter2",
    ] {
        starts.spawn(async move { (url, with("GATEKEY_DATABASE_URL", url).await) });
    }
    let mut told = Vec::new();
    for (url, ended) in starts.join_all().await {
        let line = ended.last_line();
        let named = line.starts_with("gatekey: GATEKEY_DATABASE_URL is invalid: ");
        assert!(named, "{line}");
        let secret = ended.stderr.lines().find(|line| line.contains("hunter2"));
        told.extend(secret.map(|line| (url, line.to_owned())));
    }
    assert!(told.is_empty(), "a password is told: {told:#?}");
}

#[tokio::test]
async fn a_port_in_use_is_told_in_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    for variable in ["GATEKEY_LISTEN", "GATEKEY_METRICS_LISTEN"] {
        let ended = with(variable, &address).await;
        let line = ended.deny_reason();
        let start = format!("gatekey: {variable} is invalid: {address}: ");
        assert!(line.starts_with(&start), "{line}");
        assert!(line.to_lowercase().contains("in use"), "{line}");
    }
}

on_both_engines! {
    async fn an_admin_token_that_is_too_short_is_told_in_one_line_and_not_shown(setup: Setup) {
        let file = setup.folder().join("short.token");
        for (token, length) in [("hunter2-hunter2-hunter2-hunter2\n", 31), (" \n", 0)] {
            write_secret(&file, token);
            let ended = Program::of(&setup, &[]).env("GATEKEY_ADMIN_TOKEN_FILE", &file).end().await;
            assert_eq!(
                ended.deny_reason(),
                format!(
                    "gatekey: GATEKEY_ADMIN_TOKEN_FILE is invalid: {}: the admin token must have 32 bytes or more, \
                     not {length}",
                    file.display()
                )
            );
        }
    }

    async fn a_broken_pepper_file_is_told_by_its_line_and_not_shown(setup: Setup) {
        let file = setup.folder().join("broken.pepper");
        let good = format!("hunter2a:{}", BASE64_STANDARD.encode([b'x'; 32]));
        let short = BASE64_STANDARD.encode([b'x'; 31]);
        for (content, right) in [
            ("hunter2\n".to_owned(), "line 1 "),
            (format!("{good}\n\nhunter2b:aHVudGVyMg==\n"), "line 3 "),
            (format!("{good}\nhunter2b:{short}\n"), "line 2 "),
            (format!("{good}\nhunter2b:hunter2!\n"), "line 2 "),
            (format!("{good}\n:{short}\n"), "line 2 "),
            (format!("{good}\n{good}\n"), "line 2 "),
            ("\n \n".to_owned(), "no line"),
        ] {
            write_secret(&file, &content);
            let ended = Program::of(&setup, &[]).env("GATEKEY_PEPPER_FILE", &file).end().await;
            let line = ended.deny_reason();
            let start = format!("gatekey: GATEKEY_PEPPER_FILE is invalid: {}: ", file.display());
            assert!(line.starts_with(&start), "{line}");
            assert!(line.contains(right), "of {content:?} it tells\n{line}");
            for secret in ["hunter2", &short, &good[9..]] {
                assert!(!line.contains(secret), "{line}");
            }
        }
    }

    async fn a_secret_that_cannot_be_read_is_told_in_one_line(setup: Setup) {
        for variable in ["GATEKEY_ADMIN_TOKEN_FILE", "GATEKEY_PEPPER_FILE"] {
            let folder = setup.folder().display().to_string();
            let ended = Program::of(&setup, &[]).env(variable, &folder).end().await;
            let line = ended.deny_reason();
            let start = format!("gatekey: {variable} is invalid: {folder}: ");
            assert!(line.starts_with(&start), "{line}");
        }
    }
}

#[tokio::test]
async fn on_sqlite_a_secret_that_cannot_be_made_is_told_in_one_line() {
    let setup = Gatekey::sqlite();
    for variable in ["GATEKEY_ADMIN_TOKEN_FILE", "GATEKEY_PEPPER_FILE"] {
        let ended = Program::of(&setup, &[])
            .env(variable, "/nowhere/file")
            .end()
            .await;
        let line = ended.deny_reason();
        let start = format!("gatekey: {variable} is invalid: /nowhere/file: ");
        assert!(line.starts_with(&start), "{line}");
    }
}

#[tokio::test]
async fn an_sqlite_file_in_a_folder_that_is_not_there_is_told_in_one_line() {
    let ended = with("GATEKEY_DATABASE_URL", "sqlite:///nowhere/gatekey.db").await;
    let line = ended.deny_reason();
    let start = "gatekey: GATEKEY_DATABASE_URL is invalid: sqlite:///nowhere/gatekey.db: ";
    assert!(line.starts_with(start), "{line}");
}

#[tokio::test]
async fn an_sqlite_file_that_is_something_else_is_told_at_once_in_one_line() {
    let folder = TempDir::new().expect("a temporary folder");
    fs::write(folder.path().join("notes.txt"), [b'x'; 4096]).expect("the folder takes files");
    let ended = Program::bare(folder.path(), &[])
        .env("GATEKEY_LISTEN", "127.0.0.1:0")
        .env("GATEKEY_METRICS_LISTEN", "off")
        .env("GATEKEY_DATABASE_URL", "sqlite://notes.txt")
        .end()
        .await;
    let line = ended.deny_reason();
    let start = "gatekey: GATEKEY_DATABASE_URL is invalid: sqlite://notes.txt: ";
    assert!(line.starts_with(start), "{line}");
    let kept = fs::read(folder.path().join("notes.txt")).expect("it is there");
    assert_eq!(kept, [b'x'; 4096]);
}

/// The end of a start in an empty folder with one bad setting.
async fn with(variable: &str, value: impl AsRef<OsStr>) -> Ended {
    let folder = TempDir::new().expect("a temporary folder");
    Program::bare(folder.path(), &[])
        .env("GATEKEY_LISTEN", "127.0.0.1:0")
        .env("GATEKEY_METRICS_LISTEN", "off")
        .env(variable, value)
        .end()
        .await
}

/// Flag, variable and default of each setting in a help text, in its order.
fn shown_settings(help: &str) -> Vec<[String; 3]> {
    let mut shown = Vec::new();
    let mut flag = "";
    let mut told: BTreeMap<&str, &str> = BTreeMap::new();
    for line in help.lines().map(str::trim) {
        if line.starts_with("--") {
            flag = line.split([' ', '[']).next().unwrap_or_default();
        }
        let told_of = |name: &str| line.strip_prefix(name)?.strip_suffix(']');
        if let Some(variable) = told_of("[env: ") {
            told.insert("env", variable.trim_end_matches('='));
        }
        if let Some(default) = told_of("[default: ") {
            let variable = told.remove("env").unwrap_or("none");
            shown.push([flag, variable, default].map(str::to_owned));
        }
    }
    shown
}
