//! TLS on the main port, and who calls by a client certificate.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use gatekey::api::proto::{
    DeleteOwnerRequest, ListEventsRequest, Owner, PutOwnerRequest, Reason, WatchEventsRequest,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::{JoinSet, block_in_place},
    time,
};
use tonic::{Code, transport::ClientTlsConfig};

use crate::{
    metrics,
    program::Program,
    support::{
        Authority, Client, Database, Gatekey,
        authority::Identity,
        client::{ask, error_reason, new_key, next_event, texts},
        on_both_engines,
        postgres::Cluster,
        tool, write_secret,
    },
};

const ORDERS: &str = "spiffe://example.org/orders";
/// How long a server may take to close a connection on which nothing comes.
const DEADLINE: Duration = Duration::from_mins(1);

/// An owner's record in tenant `system`.
fn owner(name: &str, scopes: &[&str]) -> Owner {
    Owner {
        tenant_id: "system".to_owned(),
        owner_id: name.to_owned(),
        scopes: texts(scopes),
        ..Owner::default()
    }
}

/// The admin over TLS, by the token.
async fn admin(server: &Gatekey, authority: &Authority) -> Client {
    let token = server.admin_token();
    let admin = server.encrypted(authority.trusted(), Some(&token)).await;
    admin.expect("no certificate is needed")
}

/// One who has this certificate and nothing else.
async fn holder(server: &Gatekey, authority: &Authority, identity: &Identity) -> Client {
    let tls = identity.shown(authority.trusted());
    let holder = server.encrypted(tls, None).await;
    holder.expect("the certificate is good")
}

/// Calls with grpcurl, as someone who trusts the server's CA.
fn grpcurl(server: &Gatekey, more: &[&str], call: &str, body: &str) -> Output {
    let mut command = Command::new(block_in_place(tool::grpcurl));
    command.current_dir(server.folder());
    command.args(["-cacert", "ca.crt"]).args(more);
    command.args(["-d", body, &server.addr().to_string()]);
    command.arg(format!("gatekey.v1.{call}"));
    block_in_place(|| command.output()).expect("it was seen to run")
}

/// What it printed; asserts that the call succeeded.
fn answered(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Why the call failed; asserts that it did, and that nothing was answered.
fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const CREATE: &str =
    r#"{"tenant_id":"default","owner_id":"me","label":"a key","scopes":["jobs:read"]}"#;

on_both_engines! {
    async fn with_grpcurl_a_certificate_may_do_what_its_owner_may_and_no_more(setup: Setup) {
        let authority = Authority::new("ours");
        let server = setup.encrypted(&authority).start().await;
        let admin = admin(&server, &authority).await;
        let (_, plaintext) = admin.issue("default", &["jobs:read"]).await;
        let validate = format!(r#"{{"key":"{plaintext}"}}"#);
        let shown = ["-cert", "orders.crt", "-key", "orders.key"];
        // The URI is the name, whatever else there is.
        authority.issue(&["orders.example.org", ORDERS]).write(server.folder(), "orders");

        let call = |call, body| grpcurl(&server, &shown, call, body);
        let why = refused(&call("KeyService/Validate", &validate));
        assert!(why.contains("PermissionDenied"), "it has no record yet: {why}");

        admin.put_owner(owner(ORDERS, &["*:keys:validate"])).await;
        assert!(answered(&call("KeyService/Validate", &validate)).contains("\"allowed\": true"));
        assert!(refused(&call("KeyService/CreateKey", CREATE)).contains("PermissionDenied"));

        admin.put_owner(owner(ORDERS, &["default:keys:create"])).await;
        let created = answered(&call("KeyService/CreateKey", CREATE));
        assert!(created.contains(&format!("\"createdBy\": \"{ORDERS}\"")), "{created}");
        assert!(refused(&call("KeyService/Validate", &validate)).contains("PermissionDenied"));

        let suspended = Owner { suspended: true, ..owner(ORDERS, &["*"]) };
        admin.put_owner(suspended).await;
        assert!(refused(&call("KeyService/Validate", &validate)).contains("Unauthenticated"));

        let deleted = DeleteOwnerRequest { tenant_id: "system".to_owned(), owner_id: ORDERS.to_owned() };
        admin.owners.clone().delete_owner(deleted).await.expect("it is deleted");
        assert!(refused(&call("KeyService/Validate", &validate)).contains("PermissionDenied"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_grpcurl_a_wrong_an_expired_or_no_certificate_may_do_nothing() {
    let authority = Authority::new("ours");
    let server = Gatekey::sqlite().encrypted(&authority).start().await;
    let admin = admin(&server, &authority).await;
    admin.put_owner(owner(ORDERS, &["*"])).await;
    let identities = [
        ("good", authority.issue(&[ORDERS])),
        // By the name it is the same CA.
        ("wrong", Authority::new("ours").issue(&[ORDERS])),
        ("expired", authority.issue_expired(&[ORDERS])),
    ];
    let mut whys = Vec::new();
    for (name, identity) in identities {
        identity.write(server.folder(), name);
        let (cert, key) = (format!("{name}.crt"), format!("{name}.key"));
        let output = grpcurl(
            &server,
            &["-cert", &cert, "-key", &key],
            "KeyService/CreateKey",
            CREATE,
        );
        if name == "good" {
            answered(&output);
        } else {
            whys.push(refused(&output));
        }
    }
    assert!(
        whys.iter().all(|why| !why.contains("Code:")),
        "the handshake ends: {whys:?}"
    );
    let none = grpcurl(&server, &[], "KeyService/CreateKey", CREATE);
    // It must ask the server what it serves, which needs no credential.
    assert!(refused(&none).contains("Unauthenticated"));
    let events = ListEventsRequest {
        actor: ORDERS.to_owned(),
        ..ListEventsRequest::default()
    };
    let events = admin.events.clone().list_events(events).await;
    let events = events.expect("the log").into_inner().events;
    assert_eq!(events.len(), 1, "{events:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_in_the_call_counts_instead_of_the_certificate() {
    let authority = Authority::new("ours");
    let server = Gatekey::sqlite().encrypted(&authority).start().await;
    let admin = admin(&server, &authority).await;
    admin.put_owner(owner(ORDERS, &["*"])).await;
    let (_, narrow) = admin.issue("system", &["*:keys:validate"]).await;
    let tls = authority.issue(&[ORDERS]).shown(authority.trusted());
    for (credential, code) in [
        (&*narrow, Code::PermissionDenied),
        ("no credential at all", Code::Unauthenticated),
    ] {
        let caller = server.encrypted(tls.clone(), Some(credential)).await;
        let caller = caller.expect("the certificate is good");
        let refused = caller.try_create(new_key("default", &["jobs:read"])).await;
        assert_eq!(refused.expect_err("it may not").code(), code);
    }
    let caller = server.encrypted(tls, Some(&server.admin_token())).await;
    let (key, _) = caller.expect("it is good").issue("default", &["a"]).await;
    assert_eq!(key.created_by, "admin");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_certificate_makes_an_admin_or_a_key_of_its_holder() {
    let authority = Authority::new("ours");
    let server = Gatekey::sqlite().encrypted(&authority).start().await;
    let admin = admin(&server, &authority).await;
    let (key, _) = admin.issue("system", &["*"]).await;
    for name in ["admin", &key.key_id] {
        admin.put_owner(owner(name, &["*"])).await;
        // A URI may have any form; the key's id is no DNS name.
        let identity = authority.issue(&[name]);
        let holder = holder(&server, &authority, &identity).await;
        let refused = holder.try_create(new_key("default", &["a"])).await;
        let refused = refused.expect_err("it is nobody");
        assert_eq!(refused.code(), Code::Unauthenticated, "{name}");
        assert_eq!(error_reason(&refused), "CREDENTIAL_INVALID");
    }
}

on_both_engines! {
    async fn nothing_is_changed_by_a_certificate_after_its_owner_was_suspended(setup: Setup) {
        let authority = Authority::new("ours");
        let server = setup.encrypted(&authority).start().await;
        let admin = admin(&server, &authority).await;
        admin.put_owner(owner(ORDERS, &["default:*"])).await;
        let holder = holder(&server, &authority, &authority.issue(&[ORDERS])).await;
        let made = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        for number in 0..8 {
            let (holder, made) = (holder.clone(), Arc::clone(&made));
            callers.spawn(async move {
                loop {
                    let request = PutOwnerRequest {
                        owner: Some(Owner {
                            tenant_id: "default".to_owned(),
                            ..owner(&format!("owner {number}"), &["a"])
                        }),
                    };
                    match holder.owners.clone().put_owner(request).await {
                        Ok(_) => made.fetch_add(1, Ordering::Relaxed),
                        Err(refused) => return refused.code(),
                    };
                }
            });
        }
        while made.load(Ordering::Relaxed) < 40 {
            time::sleep(Duration::from_millis(5)).await;
        }
        let suspended = Owner { suspended: true, ..owner(ORDERS, &["default:*"]) };
        let suspended = admin.put_owner(suspended).await;
        let ended = time::timeout(DEADLINE, callers.join_all()).await;
        for code in ended.expect("none goes on") {
            assert_eq!(code, Code::Unauthenticated);
        }
        let events = ListEventsRequest { actor: ORDERS.to_owned(), page_size: 1, ..Default::default() };
        let newest = admin.events.clone().list_events(events).await.expect("the log");
        let newest = &newest.into_inner().events[0];
        assert!(newest.revision < suspended.revision, "{newest:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_the_log_by_a_certificate_does_so_as_long_as_its_owner_may() {
    let authority = Authority::new("ours");
    let server = Gatekey::sqlite().encrypted(&authority).start().await;
    let admin = admin(&server, &authority).await;
    let put = admin
        .put_owner(owner(ORDERS, &["default:events:read"]))
        .await;
    let holder = holder(&server, &authority, &authority.issue(&[ORDERS])).await;
    let request = WatchEventsRequest {
        start_revision: put.revision,
        ..WatchEventsRequest::default()
    };
    let watch = holder.events.clone().watch_events(request).await;
    let mut events = watch.expect("it may").into_inner();
    let (key, _) = admin.issue("default", &["jobs:read"]).await;
    assert_eq!(next_event(&mut events).await.key_id, key.key_id);
    let suspended = Owner {
        suspended: true,
        ..owner(ORDERS, &["default:events:read"])
    };
    admin.put_owner(suspended).await;
    let end = time::timeout(DEADLINE, events.message()).await;
    let end = end.expect("it ends").expect_err("it may no more");
    assert_eq!(end.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_known_from_memory_while_the_store_is_silent() {
    let cluster = block_in_place(Cluster::start);
    let authority = Authority::new("ours");
    let setup = Gatekey::postgres(&Database::create_in(&cluster).await);
    let setup = setup.encrypted(&authority).env("GATEKEY_LEASE", "5m");
    let server = setup.start().await;
    server.wait_for_log(r#""message":"ready""#).await;
    let admin = admin(&server, &authority).await;
    admin.put_owner(owner(ORDERS, &["*:keys:validate"])).await;
    let (_, plaintext) = admin.issue("default", &["jobs:read"]).await;
    let holder = holder(&server, &authority, &authority.issue(&[ORDERS])).await;
    assert_eq!(holder.reason(&plaintext).await, Reason::Allowed);
    block_in_place(|| cluster.stop());
    assert_eq!(holder.reason(&plaintext).await, Reason::Allowed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_files_are_for_new_connections_and_no_call_fails_meanwhile() {
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let server = Gatekey::sqlite().encrypted(&before).start().await;
    let old = admin(&server, &before).await;
    old.put_owner(owner(ORDERS, &["*:keys:validate"])).await;
    let (_, plaintext) = old.issue("default", &["jobs:read"]).await;
    let token = server.admin_token();
    let trusts = |authority: &Authority| {
        let (server, token, tls) = (&server, &token, authority.trusted());
        async move { server.encrypted(tls, Some(token)).await.is_ok() }
    };
    assert!(!trusts(&after).await);

    // Each call over a connection of its own, by clients that trust both.
    let over = AtomicBool::new(false);
    let both = [&before, &after].map(|authority| &*authority.pem).concat();
    let both = ClientTlsConfig::new().ca_certificate(tonic::transport::Certificate::from_pem(both));
    let load = async {
        let mut calls = 0;
        while !over.load(Ordering::Relaxed) {
            let client = server.encrypted(both.clone(), Some(&token)).await;
            let client = client.expect("a connection");
            assert_eq!(client.reason(&plaintext).await, Reason::Allowed);
            calls += 1;
        }
        calls
    };
    let replaced = async {
        let folder = server.folder();
        after.issue_server().write(folder, "server");
        fs::write(folder.join("ca.crt"), &after.pem).expect("the folder takes files");
        server.wait_for_log("use the new certificate").await;
        while !trusts(&after).await {
            time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!trusts(&before).await, "the one before is gone");
        // Those of clients, too.
        let holder = holder(&server, &after, &after.issue(&[ORDERS])).await;
        assert_eq!(holder.reason(&plaintext).await, Reason::Allowed);
        let stranger = before.issue(&[ORDERS]).shown(after.trusted());
        if let Ok(stranger) = server.encrypted(stranger, None).await {
            let refused = stranger.try_validate(ask(&plaintext)).await;
            refused.expect_err("its CA is known no more");
        }

        fs::write(folder.join("server.crt"), "no certificate").expect("the folder takes files");
        server.wait_for_log("TLS reload failed").await;
        assert!(trusts(&after).await, "what works is kept");
        over.store(true, Ordering::Relaxed);
    };
    let (calls, ()) = tokio::join!(load, replaced);
    assert!(calls > 10, "only {calls} calls were made meanwhile");
    assert_eq!(old.reason(&plaintext).await, Reason::Allowed, "it goes on");
    assert!(!server.logs().contains("PRIVATE"), "a key is told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_greet_in_time_is_let_go_and_holds_nobody_up() {
    let authority = Authority::new("ours");
    let setup = Gatekey::sqlite().encrypted(&authority);
    let setup = setup.env("GATEKEY_METRICS_LISTEN", "127.0.0.1:0");
    let server = setup.start().await;
    // The beginning of a TLS record of 512 bytes; a greeting in plaintext ends at once.
    let half: &[u8] = b"\x16\x03\x01\x02\x00\x01";
    let mut silent = JoinSet::new();
    for said in [&b""[..], half, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
        .iter()
        .cycle()
        .take(150)
    {
        let mut stream = TcpStream::connect(server.addr()).await.expect("it listens");
        stream.write_all(said).await.expect("it takes bytes");
        silent.spawn(async move {
            let mut told = Vec::new();
            // Closed, or broken off: both are an end.
            let ended = time::timeout(DEADLINE, stream.read_to_end(&mut told)).await;
            ended.map(drop)
        });
    }
    let admin = admin(&server, &authority).await;
    let (_, plaintext) = admin.issue("default", &["jobs:read"]).await;
    assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
    for ended in silent.join_all().await {
        ended.expect("the server closes it");
    }
    let counts = || {
        let page = metrics::page(&server);
        ["ok", "failed", "timeout"].map(|result| {
            let name = format!("gatekey_tls_handshakes_total{{result=\"{result}\"}}");
            metrics::count(&page, &name)
        })
    };
    let mut ended = counts();
    while ended.iter().sum::<u64>() < 151 {
        // The last one is counted just after it was closed.
        time::sleep(Duration::from_millis(10)).await;
        ended = counts();
    }
    assert_eq!(
        ended,
        [1, 50, 100],
        "the admin's, plaintext, and the silent"
    );
    assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_asked_over_tls_or_on_its_own_plaintext_port() {
    let authority = Authority::new("ours");
    let setup = Gatekey::sqlite().encrypted(&authority);
    let server = setup
        .env("GATEKEY_HEALTH_LISTEN", "127.0.0.1:0")
        .start()
        .await;
    server.wait_for_log(r#""message":"ready""#).await;
    let program = |variable, address: std::net::SocketAddr| {
        let cert = server.folder().join("server.crt");
        Program::of(server.setup(), &["health"])
            .env("GATEKEY_TLS_CERT_FILE", cert)
            .env(variable, address.to_string())
    };
    let (main, own) = (server.addr(), server.health_addr());
    program("GATEKEY_LISTEN", main).end().await.was_silent();
    program("GATEKEY_HEALTH_LISTEN", own)
        .end()
        .await
        .was_silent();

    // It trusts the server's own certificate, not any of the same CA.
    let other = server.folder().join("other.crt");
    fs::write(&other, authority.issue_server().cert).expect("the folder takes files");
    let ended = program("GATEKEY_LISTEN", main)
        .env("GATEKEY_TLS_CERT_FILE", other)
        .end()
        .await;
    assert!(ended.deny_reason().contains("is not ready"), "{ended:?}");
}

#[tokio::test]
async fn files_of_tls_that_cannot_work_are_told_in_one_line_and_not_shown() {
    const CERT: &str = "GATEKEY_TLS_CERT_FILE";
    const KEY: &str = "GATEKEY_TLS_KEY_FILE";
    const CA: &str = "GATEKEY_TLS_CLIENT_CA_FILE";

    let authority = Authority::new("ours");
    let setup = Gatekey::sqlite();
    let folder = setup.folder();
    let (one, other) = (authority.issue_server(), authority.issue_server());
    one.write(folder, "one");
    other.write(folder, "other");
    fs::write(folder.join("empty"), "").expect("the folder takes files");
    write_secret(&folder.join("text"), "hunter2");
    fs::write(folder.join("broken"), one.cert.replace("MII", "hunter2")).expect("it takes files");
    write_secret(
        &folder.join("broken.key"),
        &one.key.replace('M', "hunter2!"),
    );
    let cases: [(&[(&str, &str)], &str); 13] = [
        (&[(CERT, "one.crt")], "set GATEKEY_TLS_KEY_FILE, too"),
        (&[(KEY, "one.key")], "set GATEKEY_TLS_CERT_FILE, too"),
        (
            &[(CA, "one.crt")],
            "set GATEKEY_TLS_CERT_FILE and GATEKEY_TLS_KEY_FILE, too",
        ),
        (&[(CERT, "nowhere"), (KEY, "one.key")], "No such file"),
        (&[(KEY, "nowhere"), (CERT, "one.crt")], "No such file"),
        (&[(CERT, "."), (KEY, "one.key")], "directory"),
        (&[(CERT, "empty"), (KEY, "one.key")], "no certificate in it"),
        (&[(CERT, "text"), (KEY, "one.key")], "no certificate in it"),
        (&[(CERT, "broken"), (KEY, "one.key")], ""),
        (&[(KEY, "text"), (CERT, "one.crt")], "no private key in it"),
        (
            &[(KEY, "broken.key"), (CERT, "one.crt")],
            "no private key in it",
        ),
        (
            &[(KEY, "other.key"), (CERT, "one.crt")],
            "it is not the key of the certificate",
        ),
        (
            &[(CA, "empty"), (CERT, "one.crt"), (KEY, "one.key")],
            "no certificate in it",
        ),
    ];
    for (settings, right) in cases {
        let program = settings
            .iter()
            .fold(Program::of(&setup, &[]), |program, (name, file)| {
                program.env(name, Path::new(file))
            });
        let ended = program.end().await;
        let line = ended.deny_reason();
        let (variable, file) = settings[0];
        let start = format!("gatekey: {variable} is invalid: {file}: ");
        assert!(line.starts_with(&start), "{line}");
        assert!(line.contains(right), "{line}");
        assert!(!line.contains("hunter2"), "{line}");
    }
}

#[tokio::test]
async fn the_certificate_of_a_client_is_not_asked_for_without_a_ca() {
    let authority = Authority::new("ours");
    let setup = Gatekey::sqlite().encrypted(&authority);
    let setup = setup.unset("GATEKEY_TLS_CLIENT_CA_FILE");
    let server = setup.start().await;
    let admin = admin(&server, &authority).await;
    admin.put_owner(owner(ORDERS, &["*"])).await;
    let holder = holder(&server, &authority, &authority.issue(&[ORDERS])).await;
    let refused = holder.try_create(new_key("default", &["a"])).await;
    let refused = refused.expect_err("its certificate was not asked for");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(error_reason(&refused), "CREDENTIAL_MISSING");
}
