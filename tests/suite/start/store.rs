//! The start meets the store: empty, half made, newer, away or unwilling.

use std::{net::TcpListener, time::Duration};

use gatekey::api::proto::Reason;
use sqlx::{Connection as _, PgConnection};
use tokio::task::block_in_place;

use crate::{
    inside::Inside,
    program::Program,
    support::{Database, Gatekey, Setup, on_both_engines, postgres::Cluster},
};

const AT_ONCE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_together_on_an_empty_database_all_serve() {
    for _ in 0..5 {
        let setup = Gatekey::postgres(&Database::create().await);
        let (one, two, three) = tokio::join!(setup.start(), setup.start(), setup.start());
        let (_, plaintext) = one.admin().await.issue("default", &["jobs:read"]).await;
        for replica in [&one, &two, &three] {
            let reason = replica.admin().await.reason(&plaintext).await;
            assert_eq!(reason, Reason::Allowed);
        }
    }
}

on_both_engines! {
    async fn an_older_gatekey_refuses_a_newer_schema(setup: Setup) {
        setup.start().await.stop().await;
        Inside::of(&setup).await.run(
            "INSERT INTO _sqlx_migrations (version, description, installed_on, success, checksum, execution_time) \
             SELECT 20991231, 'from the future', installed_on, success, checksum, execution_time FROM _sqlx_migrations \
             WHERE version = 1",
        ).await;
        for arguments in [&["serve"][..], &["migrate"]] {
            let ended = Program::of(&setup, arguments).end().await;
            let line = ended.deny_reason();
            assert!(line.starts_with("gatekey: GATEKEY_DATABASE_URL is invalid: "), "{line}");
            let end = ": its schema has version 20991231, which this gatekey does not know: run the \
                       gatekey that made it, or a newer one";
            assert!(line.ends_with(end), "{line}");
            assert!(ended.took < AT_ONCE, "{ended:?}");
        }
    }

    async fn migrate_brings_the_schema_up_to_date_and_exits_also_when_it_is(setup: Setup) {
        let files = |of: &Setup| {
            let files = std::fs::read_dir(of.folder()).expect("the folder is there");
            let names = files.map(|file| file.expect("readable").file_name());
            let mut names: Vec<_> = names
                .filter(|name| !name.to_string_lossy().starts_with("gatekey.db"))
                .collect();
            names.sort();
            names
        };
        let before = files(&setup);
        for _ in 0..2 {
            Program::of(&setup, &["migrate"]).end().await.was_silent();
        }
        assert_eq!(files(&setup), before, "it makes no secrets");
        let mut inside = Inside::of(&setup).await;
        let tenants = inside.texts("SELECT tenant_id FROM tenants ORDER BY tenant_id").await;
        assert_eq!(tenants, ["default", "system"]);
        drop(inside);
        let server = setup.start().await;
        server.admin().await.issue("default", &["jobs:read"]).await;
    }

    async fn without_a_pepper_it_serves_and_keeps_no_mac(setup: Setup) {
        let setup = setup.env("GATEKEY_PEPPER_FILE", "none");
        let server = setup.start().await;
        let admin = server.admin().await;
        let (_, plaintext) = admin.issue("default", &["jobs:read"]).await;
        assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
        let mut inside = Inside::of(&setup).await;
        let macs = inside.texts("SELECT key_id FROM keys WHERE secret_mac IS NOT NULL OR mac_pepper IS NOT NULL").await;
        assert_eq!(macs, [""; 0]);
        assert!(inside.texts("SELECT pepper_id FROM peppers").await.is_empty());
        assert!(!setup.folder().join("none").exists());
        let again = server.stop().await.start().await;
        assert_eq!(again.admin().await.reason(&plaintext).await, Reason::Allowed);
    }
}

#[tokio::test]
async fn on_postgresql_a_missing_secret_is_told_in_one_line_and_not_made() {
    let setup = Gatekey::postgres(&Database::create().await);
    for variable in ["GATEKEY_ADMIN_TOKEN_FILE", "GATEKEY_PEPPER_FILE"] {
        let file = setup.folder().join("missing");
        let ended = Program::of(&setup, &[]).env(variable, &file).end().await;
        assert_eq!(
            ended.deny_reason(),
            format!(
                "gatekey: {variable} is invalid: {}: there is no such file, and replicas must share one",
                file.display()
            )
        );
        assert!(!file.exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_answer_yet_is_waited_for() {
    let cluster = block_in_place(Cluster::start);
    let setup = Gatekey::postgres(&Database::create_in(&cluster).await);
    block_in_place(|| cluster.stop());
    let mut server = Program::of(&setup, &[]).start();
    server.wait_for("the store does not answer yet").await;
    block_in_place(|| cluster.start_again());
    server.serving().await;
}

#[tokio::test]
async fn a_store_that_never_answers_is_given_up_after_half_a_minute() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let place = |listener: &TcpListener| listener.local_addr().expect("it is bound").to_string();
    let (silent_at, nobody_at) = (place(&silent), place(&nobody));
    drop(nobody);
    let ask = async |at: String, why: &str| {
        let setup = Gatekey::sqlite();
        let url = format!("postgres://ada:hunter2@{at}/keys");
        let program = Program::of(&setup, &[]).env("GATEKEY_DATABASE_URL", url);
        let ended = program.end().await;
        assert_eq!(
            ended.last_line(),
            format!(
                "gatekey: GATEKEY_DATABASE_URL is invalid: postgres://{at}/keys: it does not answer: {why}"
            )
        );
        assert_eq!(
            ended.stderr.lines().count(),
            2,
            "one warning, one end: {ended:?}"
        );
        assert!(!ended.stderr.contains("hunter2"), "{ended:?}");
        assert!(ended.took >= Duration::from_secs(30), "{ended:?}");
        assert!(ended.took < Duration::from_secs(40), "{ended:?}");
    };
    tokio::join!(
        ask(silent_at, "no answer within 3s"),
        ask(nobody_at, "connection refused"),
        ask(
            "no-such-host.invalid:5432".to_owned(),
            "its host name cannot be resolved"
        ),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_is_told_at_once_and_the_password_is_not() {
    let cluster = block_in_place(Cluster::start);
    let setup = Gatekey::postgres(&Database::create_in(&cluster).await);
    let mut inside = Inside::of(&setup).await;
    inside
        .run("CREATE ROLE locked LOGIN PASSWORD 'hunter1'")
        .await;
    // The cluster trusts everybody; from now on it asks this one.
    inside
        .run(
            "CREATE TEMPORARY TABLE hba (place serial, line text); \
             INSERT INTO hba (line) VALUES ('host all locked 127.0.0.1/32 scram-sha-256'), ('local all all trust'), \
             ('host all all 127.0.0.1/32 trust'); \
             DO $$ BEGIN EXECUTE format('COPY (SELECT line FROM hba ORDER BY place) TO %L', \
             current_setting('hba_file')); END $$; \
             SELECT pg_reload_conf()",
        )
        .await;
    let place = setup.database_url().split_once('@').expect("a URL").1;
    let url = format!("postgres://locked:hunter2@{place}");
    // It is told by a signal, and does not say when it has read the file.
    while PgConnection::connect(&url).await.is_ok() {}

    let (host, database) = place.split_once('/').expect("a URL");
    for (url, shown, why) in [
        (
            url,
            place.to_owned(),
            r#"password authentication failed for user "locked""#,
        ),
        (
            format!("postgres://postgres:hunter2@{host}/nothing"),
            format!("{host}/nothing"),
            r#"database "nothing" does not exist"#,
        ),
        (
            format!("postgres://nobody:hunter2@{host}/{database}"),
            place.to_owned(),
            r#"role "nobody" does not exist"#,
        ),
    ] {
        let ended = Program::of(&setup, &[])
            .env("GATEKEY_DATABASE_URL", url)
            .end()
            .await;
        let line = format!(
            "gatekey: GATEKEY_DATABASE_URL is invalid: postgres://{shown}: it refuses: {why}"
        );
        assert_eq!(ended.deny_reason(), line);
        assert!(ended.took < AT_ONCE, "{ended:?}");
    }
}
