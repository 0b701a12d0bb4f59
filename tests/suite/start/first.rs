//! The start with nothing, and what the next one makes of it.

use std::{env, fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    program::Program,
    support::{Authority, Gatekey, tool},
};

const SECRETS: [&str; 2] = ["gatekey-admin.token", "gatekey.pepper"];

#[tokio::test]
async fn the_first_start_in_an_empty_folder_makes_all_it_needs_and_says_what_to_type() {
    let folder = TempDir::with_prefix("first start ").expect("a temporary folder");
    let mut first = bare(folder.path()).start();
    let address = first.serving().await;
    let (made, serving, command) = (first.line().await, first.line().await, first.line().await);

    for file in SECRETS {
        assert_eq!(mode(&folder.path().join(file)), 0o600, "{file}");
        let path = folder
            .path()
            .canonicalize()
            .expect("it is there")
            .join(file);
        assert!(made.contains(path.to_str().expect("ASCII")), "{made}");
    }
    assert!(folder.path().join("gatekey.db").is_file());
    assert!(serving.contains(&address.to_string()), "{serving}");
    assert!(serving.contains("gatekey.db"), "{serving}");
    let answer = paste(&command, folder.path());
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("grpcurl prints JSON");
    let plaintext = answer["plaintextKey"].as_str().expect("a key");
    assert!(plaintext.starts_with("gk_"));

    let told = format!("{made}{serving}{command}");
    for file in SECRETS {
        let secret = fs::read_to_string(folder.path().join(file)).expect("it was made");
        assert!(!told.contains(secret.trim()), "{told}");
    }
    let readme = include_str!("../../../README.md");
    let real = folder.path().canonicalize().expect("it is there");
    for line in [&made, &serving, &command] {
        let line = line
            .replace(real.to_str().expect("ASCII"), "/srv/gatekey")
            .replace(&address.to_string(), "127.0.0.1:50051");
        assert!(readme.contains(&format!("\n{line}\n")), "{line}");
    }
    // Anyone can see the arguments of a process.
    assert!(!command.contains("-H \""), "{command}");
    let (status, rest) = first.end_by(Signal::TERM).await;
    assert!(status.success(), "{status}");
    assert_eq!(rest, [""; 0], "three lines are enough");
}

#[tokio::test]
async fn what_it_says_to_type_works_in_any_folder() {
    let folder = TempDir::with_prefix("first start ").expect("a temporary folder");
    let mut first = bare(folder.path()).start();
    first.serving().await;
    let (_, _, command) = (first.line().await, first.line().await, first.line().await);
    // The server has the first terminal; the second one is elsewhere.
    assert!(paste(&command, Path::new("/")).contains("plaintextKey"));
}

#[tokio::test]
async fn a_second_start_uses_what_the_first_one_made_and_prints_nothing() {
    let folder = TempDir::new().expect("a temporary folder");
    let read = || SECRETS.map(|file| fs::read(folder.path().join(file)).expect("it was made"));
    let mut first = bare(folder.path()).start();
    first.serving().await;
    let (_, _, command) = (first.line().await, first.line().await, first.line().await);
    paste(&command, folder.path());
    let made = read();
    first.end_by(Signal::TERM).await;

    let mut second = bare(folder.path()).start();
    let address = second.serving().await;
    assert_eq!(read(), made);
    let answer = tool::run(
        Command::new(tool::grpcurl())
            .arg("-plaintext")
            .args([
                "-H",
                &format!("authorization: Bearer {}", token(folder.path())),
            ])
            .args(["-d", r#"{"tenant_id":"default"}"#])
            .args([&address.to_string(), "gatekey.v1.KeyService/ListKeys"]),
    );
    assert!(answer.contains(r#""label": "first""#), "{answer}");
    let (status, printed) = second.end_by(Signal::TERM).await;
    assert!(status.success(), "{status}");
    assert_eq!(printed, [""; 0]);
}

#[tokio::test]
async fn a_start_with_secrets_and_without_a_key_says_what_to_type_again() {
    let folder = TempDir::with_prefix("first start ").expect("a temporary folder");
    let mut first = bare(folder.path()).start();
    first.serving().await;
    first.end_by(Signal::TERM).await;
    let mut second = bare(folder.path()).start();
    second.serving().await;
    let (token, serving, command) = (
        second.line().await,
        second.line().await,
        second.line().await,
    );
    assert!(token.contains("gatekey-admin.token"), "{token}");
    assert!(serving.contains("gatekey.db"), "{serving}");
    assert!(paste(&command, Path::new("/")).contains("plaintextKey"));
    let (_, rest) = second.end_by(Signal::TERM).await;
    assert_eq!(rest, [""; 0], "three lines are enough");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_says_to_type_works_over_tls_at_every_address() {
    let authority = Authority::new("ours");
    // By its address, and by a name that it has instead.
    let identities = [
        authority.issue_server(),
        authority.issue(&["keys.example.org"]),
    ];
    for (identity, listen) in identities.iter().zip(["127.0.0.1:0", "0.0.0.0:0"]) {
        let folder = TempDir::with_prefix("first start ").expect("a temporary folder");
        identity.write(folder.path(), "server");
        let mut first = bare(folder.path())
            .env("GATEKEY_LISTEN", listen)
            .env("GATEKEY_TLS_CERT_FILE", "server.crt")
            .env("GATEKEY_TLS_KEY_FILE", "server.key")
            .start();
        first.serving().await;
        let (_, _, command) = (first.line().await, first.line().await, first.line().await);
        let answer = tokio::task::block_in_place(|| paste(&command, Path::new("/")));
        assert!(answer.contains("plaintextKey"), "{command}\n{answer}");
    }
}

#[tokio::test]
async fn a_file_left_by_a_broken_start_does_not_make_a_secret_readable_by_others() {
    let folder = TempDir::new().expect("a temporary folder");
    for file in SECRETS {
        let part = folder.path().join(format!("{file}.part"));
        fs::write(&part, "half").expect("the folder takes files");
        fs::set_permissions(&part, fs::Permissions::from_mode(0o644)).expect("it is ours");
    }
    let mut server = bare(folder.path()).start();
    server.serving().await;
    for file in SECRETS {
        assert_eq!(mode(&folder.path().join(file)), 0o600, "{file}");
    }
}

#[tokio::test]
async fn a_second_server_on_one_sqlite_file_is_told_so_in_one_line() {
    let server = Gatekey::sqlite().start().await;
    let second = Program::of(server.setup(), &[]).end().await;
    let file = server.folder().join("gatekey.db");
    assert_eq!(
        second.deny_reason(),
        format!(
            "gatekey: GATEKEY_DATABASE_URL is invalid: {}: another gatekey serves {}: stop it, or give this one a file \
             of its own",
            server.setup().database_url(),
            file.display()
        )
    );
}

/// The program with no setting but ports of its own.
fn bare(folder: &Path) -> Program {
    Program::bare(folder, &[])
        .env("GATEKEY_LISTEN", "127.0.0.1:0")
        .env("GATEKEY_METRICS_LISTEN", "127.0.0.1:0")
}

/// What a line prints that is pasted into a shell in this folder.
fn paste(line: &str, folder: &Path) -> String {
    let grpcurl = tool::grpcurl();
    let tools = grpcurl.parent().expect("a file is in a folder");
    let path = env::var("PATH").expect("there is a PATH");
    tool::run(
        Command::new("sh")
            .args(["-c", line])
            .env("PATH", format!("{}:{path}", tools.display()))
            .current_dir(folder),
    )
}

fn token(folder: &Path) -> String {
    let token = fs::read_to_string(folder.join(SECRETS[0])).expect("it was made");
    token.trim().to_owned()
}

fn mode(file: &Path) -> u32 {
    let file = fs::metadata(file).expect("it was made");
    file.permissions().mode() & 0o7777
}
