//! The files that the server keeps, and the secrets that it is given: who else can access them.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    program::Program,
    support::{Authority, Gatekey, Setup, client::new_key, on_both_engines, write_secret},
};

/// The files of the database while the server runs.
const DATABASE: [&str; 4] = [
    "gatekey.db",
    "gatekey.db-wal",
    "gatekey.db-shm",
    "gatekey.db.lock",
];

#[tokio::test]
async fn whatever_the_umask_only_the_owner_can_access_what_the_server_makes() {
    let folder = TempDir::new().expect("a temporary folder");
    let umask = [
        "-c",
        "umask 000 && exec \"$0\"",
        env!("CARGO_BIN_EXE_gatekey"),
    ];
    let program = || {
        Program::through("sh", folder.path(), &umask)
            .env("GATEKEY_LISTEN", "127.0.0.1:0")
            .env("GATEKEY_METRICS_LISTEN", "off")
            .env("PATH", "/usr/bin:/bin")
    };
    for signal in [Signal::TERM, Signal::KILL, Signal::TERM] {
        let mut server = program().start();
        server.serving().await;
        for file in DATABASE
            .iter()
            .chain(&["gatekey-admin.token", "gatekey.pepper"])
        {
            assert_eq!(mode(&folder.path().join(file)), 0o600, "{file}");
        }
        server.end_by(signal).await;
        let left = fs::read_dir(folder.path()).expect("the folder is there");
        for file in left {
            let path = file.expect("readable").path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
}

#[tokio::test]
async fn a_database_that_others_could_read_is_closed_to_them() {
    let setup = Gatekey::sqlite();
    let stopped = setup.start().await.kill9();
    for file in DATABASE {
        let open = fs::Permissions::from_mode(0o664);
        fs::set_permissions(setup.folder().join(file), open).expect("it is ours");
    }
    let server = stopped.start().await;
    let (_, plaintext) = server.admin().await.issue("default", &["jobs:read"]).await;
    for file in DATABASE {
        assert_eq!(mode(&setup.folder().join(file)), 0o600, "{file}");
    }
    let again = server.kill9().start().await;
    let reason = again.admin().await.reason(&plaintext).await;
    assert_eq!(reason, gatekey::api::proto::Reason::Allowed);
}

#[tokio::test]
async fn a_lock_file_is_neither_followed_nor_emptied() {
    let setup = Gatekey::sqlite();
    let (lock, notes) = (
        setup.folder().join("gatekey.db.lock"),
        setup.folder().join("notes.txt"),
    );
    fs::write(&notes, "precious").expect("the folder takes files");
    symlink(&notes, &lock).expect("the folder takes files");
    let ended = Program::of(&setup, &[]).end().await;
    let line = ended.deny_reason();
    assert!(
        line.contains("GATEKEY_DATABASE_URL") && line.contains("gatekey.db.lock"),
        "{line}"
    );
    assert_eq!(fs::read_to_string(&notes).expect("it is there"), "precious");

    fs::remove_file(&lock).expect("it is ours");
    fs::write(&lock, "not ours").expect("the folder takes files");
    setup.start().await.stop().await;
    assert_eq!(fs::read_to_string(&lock).expect("it is there"), "not ours");
}

#[tokio::test]
async fn one_database_by_two_names_has_one_lock() {
    let setup = Gatekey::sqlite();
    let (real, name) = (
        setup.folder().join("real.db"),
        setup.folder().join("gatekey.db"),
    );
    // The file itself is made by the first start.
    symlink(&real, &name).expect("the folder takes files");
    let server = setup.start().await;
    assert_eq!(mode(&real), 0o600);
    let second = Program::of(&setup, &[])
        .env(
            "GATEKEY_DATABASE_URL",
            format!("sqlite://{}", real.display()),
        )
        .end()
        .await;
    assert!(
        second.deny_reason().contains("another gatekey"),
        "{second:?}"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_database_with_two_hard_links_is_refused() {
    let setup = Gatekey::sqlite();
    let (file, other) = (
        setup.folder().join("gatekey.db"),
        setup.folder().join("other.db"),
    );
    setup.clone().start().await.stop().await;
    fs::hard_link(&file, &other).expect("the folder takes links");
    let refused = Program::of(&setup, &[]).end().await;
    assert!(refused.deny_reason().contains("hard links"), "{refused:?}");
    fs::remove_file(&other).expect("it is ours");
    setup.start().await.stop().await;
}

on_both_engines! {
    async fn a_secret_that_group_or_others_can_access_is_refused_unless_that_is_allowed(setup: Setup) {
        readable_secrets(setup).await;
    }

    async fn a_token_that_cannot_be_sent_is_refused_and_a_byte_order_mark_is_not_a_part_of_it(setup: Setup) {
        tokens(setup).await;
    }

    async fn secrets_are_read_through_the_links_of_a_kubernetes_mount(setup: Setup) {
        mounted(setup).await;
    }
}

async fn readable_secrets(setup: Setup) {
    let authority = Authority::new("ours");
    let setup = setup.encrypted(&authority);
    setup.start().await.stop().await;
    let secrets = [
        ("GATEKEY_ADMIN_TOKEN_FILE", "gatekey-admin.token"),
        ("GATEKEY_PEPPER_FILE", "gatekey.pepper"),
        ("GATEKEY_TLS_KEY_FILE", "server.key"),
    ];
    for (variable, name) in secrets {
        let file = setup.folder().join(name);
        for wrong in [0o640, 0o604, 0o620] {
            let open = fs::Permissions::from_mode(wrong);
            fs::set_permissions(&file, open).expect("it is ours");
            let (_, log) = setup.start_expecting_failure().await;
            let file = file.display();
            let line = format!(
                "gatekey: {variable} is invalid: {file}: its mode is {wrong:04o}, so that group or others can access \
                 it: run `chmod 600 {file}`, or set GATEKEY_ALLOW_READABLE_SECRETS=true"
            );
            assert_eq!(log.lines().last(), Some(&*line));
        }
        let closed = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&file, closed).expect("it is ours");
    }
    for (_, name) in secrets {
        let open = fs::Permissions::from_mode(0o440);
        fs::set_permissions(setup.folder().join(name), open).expect("it is ours");
    }
    let allowed = setup.clone().env("GATEKEY_ALLOW_READABLE_SECRETS", "true");
    allowed.start().await.stop().await;
}

async fn tokens(setup: Setup) {
    let file = setup.folder().join("odd.token");
    let start = |content: String| {
        write_secret(&file, &content);
        Program::of(&setup, &[]).env("GATEKEY_ADMIN_TOKEN_FILE", &file)
    };
    let token = "x".repeat(32);
    for (content, why) in [
        (format!("{token}\n{token}\n"), "one line, not 2"),
        (format!("{token}\t{token}"), "printable ASCII"),
        (format!("{token}ü"), "printable ASCII"),
    ] {
        let ended = start(content).end().await;
        assert!(ended.deny_reason().contains(why), "{ended:?}");
        assert!(!ended.deny_reason().contains(&token), "{ended:?}");
    }
    let pepper = setup.folder().join("gatekey.pepper");
    let content =
        fs::read_to_string(&pepper).unwrap_or_else(|_| format!("p1:{}=\n", "A".repeat(43)));
    write_secret(&pepper, &format!("\u{feff}{content}"));
    let mut server = start(format!("\u{feff}{token}\r\n")).start();
    let address = server.serving().await;
    let client = crate::support::Client::lazy(address, &token);
    let created = client.try_create(new_key("default", &["jobs:read"])).await;
    created.expect("it is the token");
    server.end_by(Signal::TERM).await;
}

/// As the kubelet mounts a Secret: each file a link, through a link to a folder that is replaced as a whole.
async fn mounted(setup: Setup) {
    let token = "y".repeat(32);
    let folder = setup.folder().join("mounted");
    let data = folder.join("..2026_11_27");
    fs::create_dir_all(&data).expect("the folder takes folders");
    symlink("..2026_11_27", folder.join("..data")).expect("the folder takes files");
    for (name, content) in [
        ("token", &token),
        ("pepper", &format!("p1:{}=", "A".repeat(43))),
    ] {
        write_secret(&data.join(name), content);
        symlink(Path::new("..data").join(name), folder.join(name)).expect("the folder takes files");
    }
    let program = || {
        Program::of(&setup, &[])
            .env("GATEKEY_ADMIN_TOKEN_FILE", folder.join("token"))
            .env("GATEKEY_PEPPER_FILE", folder.join("pepper"))
    };
    let mut server = program().start();
    server.serving().await;
    server.end_by(Signal::TERM).await;

    // It is the file's own mode that counts, not the link's.
    let open = fs::Permissions::from_mode(0o440);
    fs::set_permissions(data.join("token"), open).expect("it is ours");
    let ended = program().end().await;
    assert!(ended.deny_reason().contains("chmod 600"), "{ended:?}");
    let mut server = program()
        .env("GATEKEY_ALLOW_READABLE_SECRETS", "true")
        .start();
    server.serving().await;
}

fn mode(file: &Path) -> u32 {
    let metadata = fs::metadata(file);
    let metadata = metadata.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    metadata.mode() & 0o7777
}
