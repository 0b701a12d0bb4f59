//! The bounds of single calls, by a raw client: when a call is refused, and with which status.

use std::time::{Duration, Instant};

use gatekey::api::proto::{GetKeyRequest, GetTenantRequest, WatchEventsRequest};
use prost::Message as _;
use rustix::process::Signal;
use tokio::{task::JoinSet, time};
use tonic::{Code, codegen::Bytes};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use super::{
    LIST_KEYS, REFLECTION, UPDATE_OWNER, VALIDATE, WINDOW,
    raw::{Answer, Raw, framed, request},
};
use crate::{
    inside::Inside,
    support::{
        Client, Database, Gatekey,
        client::{ask, error_reason},
    },
};

const GET_KEY: &str = "gatekey.v1.KeyService/GetKey";
const GET_TENANT: &str = "gatekey.v1.TenantService/GetTenant";
const WATCH_EVENTS: &str = "gatekey.v1.EventService/WatchEvents";
const CHECK: &str = "grpc.health.v1.Health/Check";
const WATCH: &str = "grpc.health.v1.Health/Watch";
/// The time that a request may take.
const REQUEST_MAX: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(2);
/// Longer than a refusal takes.
const WAITS: Duration = Duration::from_millis(500);
/// The most followers of the log by one caller.
const FOLLOWERS: usize = 16;
/// The most calls at once by one caller.
const CALLS: usize = 256;

async fn raw(server: &Gatekey) -> Raw {
    let raw = Raw::connect(server.addr(), WINDOW).await;
    raw.expect("it takes connections")
}

/// Makes a call whose body never comes, and returns how it is answered.
async fn without_body(server: &Gatekey, method: &str, credential: Option<&str>) -> Answer {
    let request = request(server.addr(), method, credential);
    let mut raw = raw(server).await;
    let (answer, _body) = raw.open(request, None).await.expect("a call");
    Answer::read(answer).await.expect("an answer")
}

fn reason(answer: &Answer) -> (Code, String) {
    let status = answer.status();
    (status.code(), error_reason(&status))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_known_or_may_not_is_refused_before_a_body_is_read() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    let narrow = admin.issue("system", &["acme:owners:read"]).await.1;
    for method in [VALIDATE, LIST_KEYS, UPDATE_OWNER, WATCH_EVENTS] {
        for (credential, code, why) in [
            (None, Code::Unauthenticated, "CREDENTIAL_MISSING"),
            (Some("wrong"), Code::Unauthenticated, "CREDENTIAL_INVALID"),
            (Some(&*narrow), Code::PermissionDenied, "ACTION_NOT_GRANTED"),
        ] {
            let answer = without_body(&server, method, credential).await;
            assert_eq!(reason(&answer), (code, why.to_owned()), "{method}");
        }
    }
    for method in ["gatekey.v1.KeyService/Nothing", "grpc.Nothing/Nothing", "x"] {
        let answer = without_body(&server, method, Some(&narrow)).await;
        let unknown = (Code::Unimplemented, "UNKNOWN_METHOD".to_owned());
        assert_eq!(reason(&answer), unknown, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_authorization_headers_are_refused() {
    let server = Gatekey::sqlite().start().await;
    let token = server.admin_token();
    for method in [VALIDATE, GET_TENANT] {
        let mut request = request(server.addr(), method, Some(&token));
        let again = request.headers()["authorization"].clone();
        request.headers_mut().append("authorization", again);
        let answer = raw(&server).await.call(request, &ask("x")).await;
        let refused = reason(&answer.expect("an answer"));
        let expected = (Code::Unauthenticated, "CREDENTIAL_INVALID".to_owned());
        assert_eq!(refused, expected, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_not_complete_in_time_is_ended() {
    let server = Gatekey::sqlite().start().await;
    let token = server.admin_token();
    let mut calls = JoinSet::new();
    for method in [
        VALIDATE,
        UPDATE_OWNER,
        WATCH_EVENTS,
        CHECK,
        WATCH,
        REFLECTION,
    ] {
        let mut raw = raw(&server).await;
        let request = request(server.addr(), method, Some(&token));
        calls.spawn(async move {
            let half = Bytes::from_static(&[0, 0, 0]);
            let began = Instant::now();
            let (answer, _body) = raw.open(request, Some(half)).await.expect("a call");
            let answer = Answer::read(answer).await.expect("an answer");
            assert!(began.elapsed() + SOON >= REQUEST_MAX, "{method}");
            if method == REFLECTION {
                // A stream ends in order where its client says nothing more.
                assert_eq!(answer.code, Code::Ok as i32);
                return;
            }
            let expected = (Code::DeadlineExceeded, "REQUEST_INCOMPLETE".to_owned());
            assert_eq!(reason(&answer), expected, "{method}");
        });
    }
    calls.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_requests_do_not_delay_the_stop() {
    let server = Gatekey::sqlite().start().await;
    let token = server.admin_token();
    let (mut raw, mut calls) = (raw(&server).await, JoinSet::new());
    for number in 0..100 {
        let method = [VALIDATE, UPDATE_OWNER, WATCH_EVENTS, CHECK][number % 4];
        let request = request(server.addr(), method, Some(&token));
        let half = Bytes::from_static(&[0, 0, 0]);
        let (answer, body) = raw.open(request, Some(half)).await.expect("a call");
        calls.spawn(async move {
            let _body = body;
            Answer::read(answer).await.expect("an answer")
        });
    }
    // Once a later call is answered, all before it have come.
    let last = request(server.addr(), GET_TENANT, Some(&token));
    raw.call(last, &GetTenantRequest::default())
        .await
        .expect("an answer");

    let began = Instant::now();
    server.signal(Signal::TERM);
    for answer in calls.join_all().await {
        let stopping = (Code::Unavailable, "STOPPING".to_owned());
        assert_eq!(reason(&answer), stopping);
    }
    drop(raw);
    server.stop().await;
    println!(
        "the stop with 100 unfinished requests took {:?}",
        began.elapsed()
    );
    assert!(began.elapsed() < SOON);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_ends_with_its_caller_and_frees_its_place() {
    let setup = Gatekey::postgres(&Database::create().await);
    let server = setup.start().await;
    let token = server.admin_token();
    let key = server.admin().await.issue("default", &["a"]).await.0;
    let mut inside = Inside::of(&setup).await;
    inside
        .run("BEGIN; LOCK TABLE keys IN ACCESS EXCLUSIVE MODE")
        .await;
    let get = GetKeyRequest {
        key_id: key.key_id,
        ..GetKeyRequest::default()
    };
    // One connection takes 128 calls.
    let (mut connections, mut calls) = (Vec::new(), Vec::new());
    for number in 0..CALLS {
        if number % 100 == 0 {
            connections.push(raw(&server).await);
        }
        let request = request(server.addr(), GET_KEY, Some(&token));
        let opened = connections[number / 100].open(request, None).await;
        let (answer, mut body) = opened.expect("a call");
        body.send_data(framed(&get), true).expect("it is sent");
        calls.push((answer, body));
    }
    // What came over a connection before an answer has been seen.
    for connection in &mut connections {
        let health = request(server.addr(), "grpc.health.v1.Health/Check", None);
        let answer = connection.call(health, &()).await;
        answer.expect("an answer");
    }
    let mut raw = raw(&server).await;
    let next = || request(server.addr(), GET_KEY, Some(&token));
    let busy = raw.call(next(), &get).await.expect("an answer");
    assert_eq!(
        reason(&busy),
        (Code::ResourceExhausted, "CALLS_BUSY".to_owned())
    );

    for (_, body) in &mut calls {
        body.send_reset(h2::Reason::CANCEL);
    }
    drop(calls);
    // One that has a place waits for the lock, and is not answered.
    let deadline = Instant::now() + SOON;
    while let Ok(answer) = time::timeout(WAITS, raw.call(next(), &get)).await {
        let answer = answer.expect("an answer");
        assert!(Instant::now() < deadline, "no place was freed: {answer:?}");
    }
    inside.let_go().await;
    let answer = raw.call(next(), &get).await.expect("an answer");
    assert_eq!(answer.code, Code::Ok as i32, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_caller_cannot_take_all_places_of_followers() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    let narrow = admin.issue("system", &["acme:events:read"]).await.1;
    let narrow = admin.with(&narrow);
    let watch = async |client: &Client| {
        let mut events = client.events.clone();
        events.watch_events(WatchEventsRequest::default()).await
    };
    let mut streams = Vec::new();
    for _ in 0..FOLLOWERS {
        streams.push(watch(&narrow).await.expect("a stream"));
    }
    let status = watch(&narrow).await.expect_err("it has as many as it may");
    assert_eq!(
        (status.code(), &*error_reason(&status)),
        (Code::ResourceExhausted, "STREAMS_BUSY")
    );
    watch(&admin).await.expect("there is room for others");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_of_an_unknown_service_says_so_and_stays_open() {
    let server = Gatekey::sqlite().start().await;
    let channel = server.client(None).await.channel;
    let request = HealthCheckRequest {
        service: "no.such.Service".to_owned(),
    };
    let mut health = HealthClient::new(channel);
    let check = health
        .check(request.clone())
        .await
        .expect_err("it is unknown");
    assert_eq!(check.code(), Code::NotFound);
    let mut watch = health.watch(request).await.expect("a stream").into_inner();
    let first: HealthCheckResponse = watch.message().await.expect("a status").expect("a status");
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    let next = time::timeout(Duration::from_millis(300), watch.message()).await;
    next.expect_err("it stays open, and nothing changes");
    server.signal(Signal::TERM);
    let end = watch.message().await.expect_err("the server stops");
    assert_eq!(end.code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_answers_the_next_question_once_the_answer_before_is_sent() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, ServerReflectionResponse,
        server_reflection_request::MessageRequest,
    };
    let server = Gatekey::sqlite().start().await;
    let question = framed(&ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    });
    let request = request(server.addr(), REFLECTION, None);
    let mut raw = raw(&server).await;
    let (answer, mut body) = raw.open(request, None).await.expect("a call");
    // Five questions at once, the last in parts.
    let questions = question.repeat(5);
    let (first, rest) = questions.split_at(questions.len() - 3);
    body.send_data(Bytes::copy_from_slice(first), false)
        .expect("it is sent");
    body.send_data(Bytes::copy_from_slice(rest), true)
        .expect("it is sent");
    let (_, mut body) = answer.await.expect("an answer").into_parts();
    let (mut read, mut answers) = (Vec::new(), 0);
    while let Some(data) = body.data().await {
        let data = data.expect("it ends in order");
        body.flow_control()
            .release_capacity(data.len())
            .expect("it was read");
        read.extend_from_slice(&data);
    }
    let mut rest = &read[..];
    while let Some((head, after)) = rest.split_at_checked(5) {
        let length = u32::from_be_bytes(head[1..].try_into().expect("four")) as usize;
        ServerReflectionResponse::decode(&after[..length]).expect("an answer");
        (answers, rest) = (answers + 1, &after[length..]);
    }
    assert_eq!(answers, 5);
    let trailers = body.trailers().await.expect("it ends").expect("a status");
    assert_eq!(trailers["grpc-status"], "0");
}
