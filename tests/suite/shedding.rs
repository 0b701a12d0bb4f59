//! More than can be done: what is too much is told to come again, health goes on answering, and once there is room
//! everything is as it was. And connections that get old, of which no call is cut.

use std::{sync::Arc, time::Duration};

use gatekey::api::proto::{
    Owner, Reason, UpdateOwnerRequest, UpdateOwnerResponse, WatchEventsRequest,
};
use prost::Message as _;
use tokio::{net::TcpStream, sync::Semaphore, task::JoinSet, time};
use tonic::{Code, codegen::Bytes};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::{
    inside::Inside,
    support::{
        Gatekey,
        client::{error_reason, texts, whole_owner},
        on_both_engines,
    },
};

/// More than are carried out at once, over connections that take 128 each.
const CALLS: usize = 1600;
const CONNECTIONS: usize = 16;
/// The calls of one caller that are carried out at once: the smaller of the limits of calls and of
/// waiting changes.
const ROOM: usize = 256;
/// The most followers of the log by one caller.
const FOLLOWERS: usize = 16;
const DEADLINE: Duration = Duration::from_mins(1);

fn set_owner(name: &str) -> UpdateOwnerRequest {
    whole_owner(Owner {
        tenant_id: "default".to_owned(),
        owner_id: name.to_owned(),
        scopes: texts(&["a"]),
        ..Owner::default()
    })
}

async fn is_ready(mut health: HealthClient<tonic::transport::Channel>) -> bool {
    let request = HealthCheckRequest {
        service: "gatekey.v1.KeyService".to_owned(),
    };
    let answer = time::timeout(DEADLINE, health.check(request)).await;
    let answer = answer.expect("it answers").expect("it answers");
    answer.into_inner().status() == ServingStatus::Serving
}

on_both_engines! {
    async fn a_flood_of_changes_is_shed_while_health_and_validate_answer_and_then_all_is_well(setup: Setup) {
        let server = setup.clone().env("GATEKEY_HEALTH_LISTEN", "127.0.0.1:0").start().await;
        server.wait_for_log(r#""message":"ready""#).await;
        let admin = server.admin().await;
        let (_, plaintext) = admin.issue("default", &["jobs:read"]).await;
        assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(server.admin().await);
        }

        let mut inside = Inside::of(&setup).await;
        inside.hold().await;
        let (answered, mut calls) = (Arc::new(Semaphore::new(0)), JoinSet::new());
        for number in 0..CALLS {
            let owners = connections[number % CONNECTIONS].owners.clone();
            let answered = Arc::clone(&answered);
            calls.spawn(async move {
                let answer = owners.clone().update_owner(set_owner(&format!("owner {number}"))).await;
                answered.add_permits(1);
                answer.map(drop)
            });
        }
        let shed = u32::try_from(CALLS - ROOM).expect("they are few");
        let shed = time::timeout(DEADLINE, answered.acquire_many(shed)).await;
        shed.expect("what is too much is answered at once").expect("it is open").forget();

        let probe = tonic::transport::Endpoint::from_shared(format!("http://{}", server.health_addr()));
        let probe = probe.expect("a URL").connect().await.expect("it listens");
        assert!(is_ready(HealthClient::new(probe)).await);
        assert!(is_ready(HealthClient::new(admin.channel.clone())).await);
        assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);

        inside.let_go().await;
        let mut refused = 0;
        while let Some(answer) = calls.join_next().await {
            let Err(status) = answer.expect("it does not panic") else { continue };
            assert!(status.get_details_retry_info().is_some(), "{status:?}");
            if status.code() == Code::ResourceExhausted {
                let reason = error_reason(&status);
                assert!(["CALLS_BUSY", "CHANGES_BUSY"].contains(&&*reason), "{status:?}");
                refused += 1;
            } else {
                // It waited for its turn longer than one may.
                assert_eq!(error_reason(&status), "STORE_UNAVAILABLE", "{status:?}");
            }
        }
        assert_eq!(refused, CALLS - ROOM);
        admin.owners.clone().update_owner(set_owner("the next")).await.expect("there is room again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_half_a_message_takes_nobodys_place() {
    let server = Gatekey::sqlite().start().await;
    let mut halves = Vec::new();
    for _ in 0..CONNECTIONS {
        let (mut send, driving) = connect(&server).await;
        tokio::spawn(driving);
        for _ in 0..CALLS / CONNECTIONS {
            let request = request(&server, "gatekey.v1.OwnerService/UpdateOwner");
            send = send.ready().await.expect("it takes more");
            let (answer, mut body) = send.send_request(request, false).expect("it is sent");
            body.send_data(Bytes::from_static(&[0, 0, 0]), false)
                .expect("it is sent");
            halves.push((answer, body));
        }
        // Once this is answered, all before it have come.
        send = send.ready().await.expect("it takes more");
        let health = request(&server, "grpc.health.v1.Health/Check");
        let (answer, mut body) = send.send_request(health, false).expect("it is sent");
        body.send_data(Bytes::from_static(&[0; 5]), true)
            .expect("it is sent");
        answer.await.expect("an answer");
    }
    let admin = server.admin().await;
    admin.issue("default", &["jobs:read"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_may_follow_the_log_and_the_next_is_told_to_come_again() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    let mut streams = Vec::new();
    let mut connections = Vec::new();
    for number in 0..FOLLOWERS {
        // One connection takes 128 calls.
        if number % 100 == 0 {
            connections.push(server.admin().await);
        }
        let watch = connections[number / 100]
            .events
            .clone()
            .watch_events(WatchEventsRequest::default())
            .await;
        streams.push(watch.expect("a stream"));
    }
    let watch = admin
        .events
        .clone()
        .watch_events(WatchEventsRequest::default())
        .await;
    let status = watch.expect_err("there is no room");
    assert_eq!(
        (status.code(), &*error_reason(&status)),
        (Code::ResourceExhausted, "STREAMS_BUSY")
    );
    drop(streams);
    let deadline = time::Instant::now() + DEADLINE;
    while admin
        .events
        .clone()
        .watch_events(WatchEventsRequest::default())
        .await
        .is_err()
    {
        assert!(time::Instant::now() < deadline, "there is room again");
        time::sleep(Duration::from_millis(50)).await;
    }
}

on_both_engines! {
    async fn an_old_connection_is_ended_and_its_calls_in_flight_finish(setup: Setup) {
        let server = setup.clone().env("GATEKEY_MAX_CONNECTION_AGE", "1s").start().await;
        // One that nobody uses.
        let (_idle, driving) = connect(&server).await;
        let idle = tokio::spawn(driving);
        let (send, driving) = connect(&server).await;
        let used = tokio::spawn(driving);

        let mut inside = Inside::of(&setup).await;
        inside.hold().await;
        let mut send = send.ready().await.expect("it takes a call");
        let request = request(&server, "gatekey.v1.OwnerService/UpdateOwner");
        let (answer, mut body) = send.send_request(request, false).expect("it is sent");
        let message = set_owner("an owner").encode_to_vec();
        let mut framed = vec![0];
        framed.extend(u32::try_from(message.len()).expect("it is short").to_be_bytes());
        framed.extend(message);
        body.send_data(framed.into(), true).expect("it is sent");

        let idle = time::timeout(DEADLINE, idle).await.expect("it is ended");
        idle.expect("it does not panic").expect("it is ended in order");
        assert!(!used.is_finished(), "a call is in flight");

        inside.let_go().await;
        let answer = answer.await.expect("it is answered");
        let mut body = answer.into_body();
        let mut read = Vec::new();
        while let Some(data) = body.data().await {
            read.extend(data.expect("nothing is cut"));
        }
        let trailers = body.trailers().await.expect("nothing is cut").expect("a status");
        assert_eq!(trailers["grpc-status"], "0");
        let answer = UpdateOwnerResponse::decode(&read[5..]).expect("an answer");
        assert_eq!(answer.owner.expect("an owner").owner_id, "an owner");
        drop(send);
        let used = time::timeout(DEADLINE, used).await.expect("it is ended");
        used.expect("it does not panic").expect("it is ended in order");
    }
}

type Sender = h2::client::SendRequest<Bytes>;

/// A connection without any of tonic's help.
async fn connect(
    server: &Gatekey,
) -> (
    Sender,
    impl Future<Output = Result<(), h2::Error>> + Send + 'static,
) {
    let stream = TcpStream::connect(server.addr()).await.expect("it listens");
    h2::client::handshake(stream)
        .await
        .expect("it speaks HTTP/2")
}

/// The head of an admin's call.
fn request(server: &Gatekey, method: &str) -> http::Request<()> {
    let bearer = format!("Bearer {}", server.admin_token());
    http::Request::post(format!("http://{}/{method}", server.addr()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", bearer)
        .body(())
        .expect("a request")
}
