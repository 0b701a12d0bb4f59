//! `helm test`: its pod's own script, run here against a real server.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::json;
use tempfile::TempDir;

use super::{Release, env, release, text};
use crate::support::{Authority, Gatekey, on_both_engines, tool};

/// Runs what the test's pod would run, against this address, with the secrets in this folder.
pub fn run(release: &Release, address: SocketAddr, secrets: &Path, grpcurl: &Path) -> Output {
    let container = &release.the("Pod")["spec"]["containers"][0];
    let words = ["command", "args"].map(|it| container[it].as_array().expect("words"));
    let words: Vec<_> = words.into_iter().flatten().map(text).collect();
    let tools = grpcurl.parent().expect("a tool is in a folder").display();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env_clear();
    for (name, value) in env(container) {
        command.env(name, value.expect("it is in the manifest"));
    }
    command
        .env("ADDRESS", address.to_string())
        .env("SECRETS", secrets)
        .env("PATH", format!("{tools}:{path}"))
        .output()
        .expect("there is a shell")
}

/// Asserts that each step was seen.
pub fn passed(output: &Output) {
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let steps = [
        "ok: CreateKey returns a key",
        "ok: Validate allows the key",
        "ok: every replica enforces its revocation",
        "ok: Validate denies the key",
    ];
    assert_eq!(printed.lines().collect::<Vec<_>>(), steps);
}

/// A folder with an admin token, as the pod has it.
fn secrets(token: &str) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    fs::write(folder.path().join("admin-token"), token).expect("the folder takes files");
    folder
}

fn minimal() -> Release {
    release(json!({"database": {"existingSecret": "db"}}))
}

on_both_engines! {
    async fn the_test_of_the_chart_passes_on_a_server_that_keeps_its_promise(setup: Setup) {
        let server = setup.start().await;
        let secrets = secrets(&server.admin_token());
        let output = run(&minimal(), server.addr(), secrets.path(), &tool::grpcurl());
        passed(&output);
        let printed = format!("{output:?}");
        assert!(!printed.contains("gk_"), "a key is told: {printed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_test_of_the_chart_passes_over_tls_and_trusts_no_other_ca() {
    let authority = Authority::new("of this release");
    let server = Gatekey::sqlite().encrypted(&authority).start().await;
    let secrets = secrets(&server.admin_token());
    let ca = secrets.path().join("ca.crt");
    let release = release(json!({"database": {"existingSecret": "db"}, "tls": {"enabled": true}}));
    let grpcurl = tool::grpcurl();

    fs::write(&ca, &authority.pem).expect("the folder takes files");
    passed(&run(&release, server.addr(), secrets.path(), &grpcurl));

    fs::write(&ca, Authority::new("another").pem).expect("the folder takes files");
    let output = run(&release, server.addr(), secrets.path(), &grpcurl);
    assert!(!output.status.success(), "{output:?}");

    // Without a CA of the release, those of the system.
    fs::remove_file(&ca).expect("it is there");
    let output = run(&release, server.addr(), secrets.path(), &grpcurl);
    assert!(!output.status.success(), "{output:?}");
    let system = server.folder().join("ca.crt").display().to_string();
    let real = grpcurl.display();
    let script = format!("#!/bin/sh\nSSL_CERT_FILE='{system}' exec '{real}' \"$@\"\n");
    let grpcurl = executable(secrets.path(), &script);
    passed(&run(&release, server.addr(), secrets.path(), &grpcurl));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_test_of_the_chart_fails_with_a_wrong_token() {
    let server = Gatekey::sqlite().start().await;
    let secrets = secrets(&"x".repeat(40));
    let output = run(&minimal(), server.addr(), secrets.path(), &tool::grpcurl());
    assert!(!output.status.success(), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("Unauthenticated"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_test_of_the_chart_fails_when_a_step_does_not_do_what_it_says() {
    let server = Gatekey::sqlite().start().await;
    let secrets = secrets(&server.admin_token());
    let release = minimal();
    for (call, answer, failed) in [
        (
            "RevokeKey",
            "ENFORCEMENT_STATE_ENFORCED",
            "Validate denies the key",
        ),
        (
            "RevokeKey",
            "ENFORCEMENT_STATE_PENDING",
            "every replica enforces its revocation",
        ),
        ("Validate", "REASON_REVOKED", "Validate allows the key"),
        ("CreateKey", "{}", "CreateKey returns a key"),
    ] {
        let folder = TempDir::new().expect("a temporary folder");
        let grpcurl = lying(folder.path(), call, answer);
        let output = run(&release, server.addr(), secrets.path(), &grpcurl);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(
            told.contains(&format!("FAILED: {failed}: the response lacks ")),
            "{told}"
        );
    }
}

/// A grpcurl that answers one call by itself, and does not make it.
fn lying(folder: &Path, call: &str, answer: &str) -> PathBuf {
    let real = tool::grpcurl().display().to_string();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in */{call}) cat >/dev/null; echo '{answer}' ;; *) exec '{real}' \"$@\" ;; esac\n"
    );
    executable(folder, &script)
}

/// This script as a grpcurl.
fn executable(folder: &Path, script: &str) -> PathBuf {
    let path = folder.join("grpcurl");
    fs::write(&path, script).expect("the folder takes files");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    path
}
