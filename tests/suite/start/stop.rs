//! The stop: what was begun is finished, what is new goes elsewhere.

use std::time::{Duration, Instant};

use gatekey::api::proto::{GetTenantRequest, Reason, WatchEventsRequest};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use crate::{
    inside::Inside,
    program::Program,
    support::{
        Client, Gatekey,
        client::{error_reason, new_key, next_event},
        on_both_engines,
    },
};

/// Well below the 20 s that a drain may take.
const SOON: Duration = Duration::from_secs(10);

on_both_engines! {
    async fn at_sigterm_health_says_so_streams_end_and_calls_in_flight_finish(setup: Setup) {
        let server = setup.start().await;
        server.wait_for_log(r#""message":"ready""#).await;
        let admin = server.admin().await;
        let mut health = watch_health(&admin).await;
        assert_eq!(told(&mut health).await, ServingStatus::Serving);
        let (_, before) = admin.issue("default", &["jobs:read"]).await;
        let watch = admin.events.clone().watch_events(WatchEventsRequest::default()).await;
        let mut events = watch.expect("a stream").into_inner();
        next_event(&mut events).await;

        let mut inside = Inside::of(&setup).await;
        inside.hold().await;
        let mut call = Box::pin(admin.try_create(new_key("default", &["jobs:read"])));
        // On one connection calls arrive in order: once a later one is answered, the first is in flight.
        tokio::select! {
            biased;
            answer = &mut call => panic!("nothing can be changed now: {answer:?}"),
            () = ask_something(&admin) => {}
        }

        server.signal(Signal::TERM);
        let (status, end) = tokio::join!(told(&mut health), events.message());
        assert_eq!(status, ServingStatus::NotServing);
        let end = end.expect_err("a client should go on elsewhere");
        assert_eq!((end.code(), &*error_reason(&end)), (Code::Unavailable, "STOPPING"));
        drop(health);
        inside.let_go().await;
        let answer = call.await.expect("what was begun is finished");
        let stopped = server.stop().await;

        let again = stopped.start().await;
        let admin = again.admin().await;
        for plaintext in [before, answer.plaintext_key] {
            assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
        }
    }

    async fn a_call_that_does_not_finish_in_time_is_cut_off(setup: Setup) {
        let setup = setup.env("GATEKEY_DRAIN", "500ms");
        let server = setup.start().await;
        let admin = server.admin().await;
        let mut inside = Inside::of(&setup).await;
        inside.hold().await;
        let mut call = Box::pin(admin.try_create(new_key("default", &["jobs:read"])));
        tokio::select! {
            biased;
            answer = &mut call => panic!("nothing can be changed now: {answer:?}"),
            () = ask_something(&admin) => {}
        }
        let began = Instant::now();
        let (stopped, answer) = tokio::join!(server.stop(), call);
        let took = began.elapsed();
        assert!(took < SOON, "it took {took:?} to end");
        assert!(stopped.logs().contains("did not finish in time"));
        answer.expect_err("it was cut off");
    }
}

#[tokio::test]
async fn one_who_watches_health_is_told_and_does_not_hold_up_the_stop() {
    let server = Gatekey::sqlite().start().await;
    server.wait_for_log(r#""message":"ready""#).await;
    let mut health = watch_health(&server.admin().await).await;
    assert_eq!(told(&mut health).await, ServingStatus::Serving);
    let began = Instant::now();
    let watching = tokio::spawn(async move {
        let told = told(&mut health).await;
        // Goes on watching, as a load balancer does, for as long as it is let.
        while let Ok(Some(_)) = health.message().await {}
        told
    });
    server.stop().await;
    let took = began.elapsed();
    let told = watching.await.expect("it does not panic");
    assert_eq!(told, ServingStatus::NotServing);
    assert!(took < SOON, "it took {took:?} to end");
}

#[tokio::test]
async fn a_connection_without_calls_does_not_hold_up_the_stop() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    ask_something(&admin).await;
    let began = Instant::now();
    server.stop().await;
    let took = began.elapsed();
    assert!(took < SOON, "it took {took:?} to end");
}

#[tokio::test]
async fn a_client_that_says_nothing_does_not_hold_up_the_stop() {
    let server = Gatekey::sqlite().start().await;
    let _silent = greeted(&server).await;
    let stopped = server.stop().await;
    let logs = stopped.logs();
    assert!(!logs.contains("did not finish in time"), "{logs}");
}

#[tokio::test]
async fn what_a_client_still_says_at_the_end_does_not_reset_its_connection() {
    let server = Gatekey::sqlite().start().await;
    let mut client = greeted(&server).await;
    server.signal(Signal::TERM);
    let mut farewell = false;
    while let Some((kind, flags, payload)) = next_frame(&mut client).await {
        farewell |= kind == GOAWAY;
        if kind == PING && flags & ACK == 0 {
            client
                .write_all(&ping(ACK, &payload))
                .await
                .expect("it listens");
        }
    }
    assert!(farewell, "the client is told to go");
    // Once it is closed, what reaches it next resets it, and what follows is seen to fail.
    for _ in 0..10 {
        let said = client.write_all(&ping(0, &[0; 8])).await;
        said.expect("it is not cut off");
        time::sleep(Duration::from_millis(10)).await;
    }
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn ctrl_c_stops_it_as_sigterm_does() {
    let setup = Gatekey::sqlite();
    let mut server = Program::of(&setup, &[]).start();
    server.serving().await;
    let (status, _) = server.end_by(Signal::INT).await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_still_waits_for_its_store_can_be_stopped() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let at = nobody.local_addr().expect("it is bound");
    drop(nobody);
    let setup = Gatekey::sqlite();
    let program = Program::of(&setup, &[]);
    let mut server = program
        .env("GATEKEY_DATABASE_URL", format!("postgres://ada@{at}/keys"))
        .start();
    server.wait_for("does not answer yet").await;
    let began = Instant::now();
    let (status, _) = server.end_by(Signal::TERM).await;
    let took = began.elapsed();
    assert!(took < SOON, "it took {took:?} to end, with {status}");
}

async fn watch_health(client: &Client) -> tonic::Streaming<HealthCheckResponse> {
    let request = HealthCheckRequest {
        service: "gatekey.v1.KeyService".to_owned(),
    };
    let watch = HealthClient::new(client.channel.clone())
        .watch(request)
        .await;
    watch.expect("it tells of its health").into_inner()
}

/// What a watcher is told next.
async fn told(health: &mut tonic::Streaming<HealthCheckResponse>) -> ServingStatus {
    let told = time::timeout(SOON, health.message()).await;
    let told = told
        .expect("it tells in time")
        .expect("it tells of its health");
    told.expect("it does not end before it tells").status()
}

/// A call that reads, and so waits for nobody.
async fn ask_something(admin: &Client) {
    let request = GetTenantRequest {
        tenant_id: "default".to_owned(),
    };
    admin
        .tenants
        .clone()
        .get_tenant(request)
        .await
        .expect("a tenant");
}

const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;

/// A client of HTTP/2 that says no more than it must: the preface, and settings that change none,
/// which the server has read.
async fn greeted(server: &Gatekey) -> TcpStream {
    let mut client = TcpStream::connect(server.addr()).await.expect("it listens");
    let greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    client.write_all(greeting).await.expect("it takes bytes");
    while let (kind, flags, _) = next_frame(&mut client).await.expect("it is served")
        && (kind != SETTINGS || flags & ACK == 0)
    {}
    client
}

/// The next frame's kind, flags and payload, until the server ends its side.
async fn next_frame(client: &mut TcpStream) -> Option<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    client.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    client.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], payload))
}

fn ping(flags: u8, payload: &[u8]) -> Vec<u8> {
    [&[0, 0, 8, PING, flags, 0, 0, 0, 0], payload].concat()
}
