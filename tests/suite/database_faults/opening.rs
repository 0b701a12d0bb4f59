//! The last line of a start that failed names the cause, and one that cannot pass is not waited for.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use crate::{
    program::{Ended, Program},
    support::{Database, Gatekey, Setup, postgres::Cluster},
};

pub const AT_ONCE: Duration = Duration::from_secs(10);

fn told(ended: &Ended, why: &str) {
    let line = ended.deny_reason();
    assert!(line.contains(why), "{line}");
    assert!(ended.took < AT_ONCE, "{ended:?}");
}

async fn started_on(setup: &Setup, url: impl AsRef<std::ffi::OsStr>) -> Ended {
    let program = Program::of(setup, &[]).env("GATEKEY_DATABASE_URL", url);
    program.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_tls_is_named_at_once_where_tls_is_required() {
    let database = Database::create().await;
    let setup = Gatekey::postgres(&database);
    let ended = started_on(&setup, format!("{}?sslmode=require", database.url())).await;
    told(&ended, "TLS failed: server does not support TLS");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_speak_postgresql_is_named_at_once() {
    let web = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = web.local_addr().expect("it is bound");
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        while let Ok((mut stream, _)) = web.accept().await {
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .ok();
        }
    });
    let ended = started_on(&Gatekey::sqlite(), format!("postgres://ada@{addr}/keys")).await;
    told(&ended, "does not speak PostgreSQL's protocol");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_closed_before_an_answer_is_tried_again() {
    let cluster = Cluster::start();
    let database = Database::create_in(&cluster).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        for attempt in 0.. {
            let (mut client, _) = listener.accept().await.expect("a connection");
            if attempt < 2 {
                // The whole of what a client of PostgreSQL says first.
                let _ = client.read_exact(&mut [0; 8]).await;
                continue;
            }
            let server = TcpStream::connect(cluster.addr()).await;
            let mut server = server.expect("PostgreSQL answers");
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    let setup = Gatekey::postgres(&database).env("GATEKEY_DATABASE_URL", database.url_at(addr));
    setup.start().await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_directory_and_a_file_that_is_no_database_are_named_at_once() {
    let setup = Gatekey::sqlite();
    let ended = started_on(&setup, "sqlite://no/such/gatekey.db").await;
    told(&ended, "the directory no/such does not exist");
    fs::write(setup.folder().join("text.db"), "no database".repeat(1000)).expect("a file");
    let ended = started_on(&setup, "sqlite://text.db").await;
    told(&ended, "file is not a database");
    fs::create_dir(setup.folder().join("folder.db")).expect("a folder");
    let ended = started_on(&setup, "sqlite://folder.db").await;
    told(&ended, "it is a directory");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_written_is_named_at_once() {
    let setup = Gatekey::sqlite();
    setup.start().await.stop().await;
    let file = setup.folder().join("gatekey.db");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).expect("it is ours");
    // Root may write everything.
    let root = rustix::process::geteuid().is_root();
    if root {
        fs::set_permissions(setup.folder(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        for name in ["gatekey.db.lock", "gatekey-admin.token", "gatekey.pepper"] {
            let mode = fs::Permissions::from_mode(0o666);
            fs::set_permissions(setup.folder().join(name), mode).expect("it is ours");
        }
    }
    let server = env!("CARGO_BIN_EXE_gatekey");
    let program = if root {
        let binary = setup.folder().join("gatekey");
        fs::copy(server, &binary).expect("the server");
        let words = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let words = [&words[..], &["./gatekey"]].concat();
        Program::through("/usr/bin/setpriv", setup.folder(), &words)
    } else {
        Program::bare(setup.folder(), &[])
    };
    let program = program
        .env("GATEKEY_LISTEN", "127.0.0.1:0")
        .env("GATEKEY_METRICS_LISTEN", "off")
        .env("GATEKEY_DATABASE_URL", setup.database_url());
    told(
        &program.end().await,
        "gatekey.db cannot be used: Permission denied",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_may_come_from_a_file_and_have_white_space_around_it() {
    let setup = Gatekey::sqlite();
    let url = format!(" {}\n", setup.database_url());
    Program::of(&setup, &["migrate"])
        .env("GATEKEY_DATABASE_URL", &url)
        .end()
        .await
        .was_silent();
    assert!(setup.folder().join("gatekey.db").exists());

    let file = setup.folder().join("url");
    fs::write(
        &file,
        format!("sqlite://{}\n", setup.folder().join("other.db").display()),
    )
    .expect("a file");
    let bare =
        || Program::bare(setup.folder(), &["migrate"]).env("GATEKEY_DATABASE_URL_FILE", &file);
    bare().end().await.was_silent();
    assert!(setup.folder().join("other.db").exists());
    let flag = file.display().to_string();
    Program::bare(setup.folder(), &["migrate", "--database-url-file", &flag])
        .end()
        .await
        .was_silent();

    let both = bare()
        .env("GATEKEY_DATABASE_URL", setup.database_url())
        .end()
        .await;
    told(
        &both,
        "GATEKEY_DATABASE_URL is set as well: set one of the two",
    );
    fs::write(&file, "\n").expect("a file");
    told(&bare().end().await, "the file must have one line, the URL");
    fs::remove_file(&file).expect("it is there");
    told(&bare().end().await, ": No such file or directory");
}
