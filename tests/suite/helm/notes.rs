//! The notes of the chart: their commands run as they are, for each kind of TLS.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::{Release, release};
use crate::support::{Authority, Gatekey, tool};

/// The notes with this `tls`.
fn notes(tls: &Json) -> String {
    release(json!({"database": {"existingSecret": "db"}, "tls": tls})).notes
}

/// The commands of the notes: they are indented.
fn commands(notes: &str) -> Vec<&str> {
    let lines = notes.lines().filter_map(|line| line.strip_prefix("  "));
    lines
        .filter(|line| {
            line.starts_with("kubectl") || line.starts_with("export") || line.starts_with("grpcurl")
        })
        .collect()
}

/// Writes a program into this folder.
fn program(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("the folder takes files");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

/// Runs the commands of the notes against a server, with a `kubectl` that knows the server's secrets and a `grpcurl`
/// that refuses to be called with the token in its arguments; returns what they printed.
fn run(notes: &str, server: &Gatekey, ca: &str) -> String {
    let folder = TempDir::new().expect("a temporary folder");
    let (bin, token) = (folder.path(), server.admin_token());
    fs::write(bin.join("ca"), ca).expect("the folder takes files");
    fs::write(bin.join("token"), &token).expect("the folder takes files");
    let kubectl = r#"case "$*" in
        *"get secret"*ca.crt*) cat "$BIN/ca" ;;
        *"get secret"*admin-token*) cat "$BIN/token" ;;
    esac"#;
    program(bin, "kubectl", kubectl);
    let grpcurl = format!(
        r#"case "$*" in *"$(cat "$BIN/token")"*) echo 'the token is an argument' >&2; exit 9 ;; esac
        exec '{}' "$@""#,
        tool::grpcurl().display()
    );
    program(bin, "grpcurl", &grpcurl);
    let script = commands(notes)
        .join("\n")
        .replace("127.0.0.1:50051", &server.addr().to_string());
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("sh")
        .args(["-euc", &script])
        .current_dir(folder.path())
        .env("BIN", bin)
        .env("PATH", format!("{}:{path}", bin.display()))
        .output()
        .expect("there is a shell");
    assert!(output.status.success(), "{script}\n{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_notes_create_keys_in_plaintext_and_over_tls() {
    let authority = Authority::new("of this release");
    let plain = notes(&json!({}));
    assert!(
        plain.contains("gatekey serves gRPC in plaintext"),
        "{plain}"
    );
    let generated = notes(&json!({"enabled": true}));
    assert!(
        generated.contains("the chart generated the certificate"),
        "{generated}"
    );
    for (notes, setup) in [
        (plain, Gatekey::sqlite()),
        (generated, Gatekey::sqlite().encrypted(&authority)),
    ] {
        let server = setup.start().await;
        let printed = run(&notes, &server, &authority.pem);
        assert_eq!(printed.matches("plaintextKey").count(), 2, "{printed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_notes_name_the_host_of_a_foreign_certificate() {
    let authority = Authority::new("of this release");
    // The certificate of the server is for localhost.
    let names = json!(["localhost"]);
    let issuer = json!({"enabled": true, "issuerRef": {"name": "ca"}, "dnsNames": names});
    let notes = notes(&json!({"enabled": true, "certManager": issuer}));
    assert!(notes.contains("-authority localhost "), "{notes}");
    let server = Gatekey::sqlite().encrypted(&authority).start().await;
    let printed = run(&notes, &server, &authority.pem);
    assert_eq!(printed.matches("plaintextKey").count(), 2, "{printed}");
}

#[test]
fn the_notes_say_where_the_certificate_comes_from() {
    let name = "release-gatekey.space.svc";
    let own = notes(&json!({"enabled": true, "existingSecret": "mine"}));
    assert!(
        own.contains("TLS: the certificate is in the Secret mine."),
        "{own}"
    );
    assert!(
        own.contains(&format!("-cacert gatekey-ca.crt -authority {name} ")),
        "{own}"
    );

    let issuer = json!({"enabled": true, "issuerRef": {"name": "ca", "kind": "ClusterIssuer"}});
    let cert_manager = notes(&json!({"enabled": true, "certManager": issuer}));
    assert!(
        cert_manager.contains("TLS: ClusterIssuer ca of cert-manager issues the certificate."),
        "{cert_manager}"
    );
    assert!(
        cert_manager.contains(&format!("-authority {name} ")),
        "{cert_manager}"
    );
    assert!(
        cert_manager.contains("get secret release-gatekey-cert-manager "),
        "{cert_manager}"
    );

    let clients = notes(&json!({"enabled": true, "clientCa": {"existingSecret": "client-ca"}}));
    assert!(
        clients.contains("a certificate from the CA in the Secret client-ca"),
        "{clients}"
    );
    assert!(!own.contains("client-ca") && !notes(&json!({})).contains("TLS"));
}

#[test]
fn the_notes_follow_the_port_of_the_service_and_own_secrets() {
    let values = json!({
        "database": {"existingSecret": "db"},
        "service": {"port": 443},
        "adminToken": {"existingSecret": "mine", "key": "token"},
        "pepper": {"enabled": false},
    });
    let Release { notes, .. } = release(values);
    for part in [
        "svc:443\n",
        "-headless.space.svc:50051 ",
        "port-forward service/release-gatekey 443 &",
        "get secret mine ",
    ] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
    assert!(!notes.contains("Back it up"), "{notes}");
}
