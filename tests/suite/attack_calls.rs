//! Attacks by calls, through the real port: whatever a stranger or the holder of a narrow key sends
//! or leaves unread, the server's memory is bounded and the others are served.
//!
//! Each attack lasts 5 s, or `GATEKEY_ATTACK_SECONDS`.

mod beside;
mod bounds;
mod raw;

use std::{sync::Arc, time::Duration};

use gatekey::api::proto::{ListKeysRequest, Owner};
use tonic::codegen::Bytes;
use tonic_health::pb::HealthCheckRequest;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_request::MessageRequest,
};

use self::{
    beside::Beside,
    raw::{Attack, Then, framed, request, unfinished},
};
use crate::support::client::{ask, whole_owner};

const REFLECTION: &str = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const VALIDATE: &str = "gatekey.v1.KeyService/Validate";
const LIST_KEYS: &str = "gatekey.v1.KeyService/ListKeys";
const UPDATE_OWNER: &str = "gatekey.v1.OwnerService/UpdateOwner";
/// The default window of HTTP/2.
const WINDOW: u32 = 65_535;

/// Returns an attack with a call's head and the first bytes of its body, which does not end.
fn attack(
    beside: &Beside,
    method: &'static str,
    credential: Option<String>,
    pieces: Vec<Bytes>,
) -> Attack {
    let addr = beside.addr();
    Attack {
        addr,
        connections: 10,
        streams: 1000,
        window: WINDOW,
        head: Arc::new(move || request(addr, method, credential.as_deref())),
        pieces,
        then: Then::Hold,
    }
}

/// Returns the credential of a caller with these scopes in tenant `system`.
async fn narrow(beside: &Beside, scopes: &[&str]) -> String {
    beside.admin.issue("system", scopes).await.1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_with_unfinished_bodies_take_no_memory() {
    let mut beside = Beside::start().await;
    for method in [VALIDATE, UPDATE_OWNER] {
        let attack = attack(&beside, method, None, vec![unfinished()]);
        let name = format!("unfinished bodies of 64 KiB to {method}");
        beside.withstand(&name, attack).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_with_bodies_to_unknown_paths_take_no_memory() {
    let mut beside = Beside::start().await;
    let attack = attack(&beside, "no.such.Service/Method", None, vec![unfinished()]);
    beside
        .withstand("unfinished bodies to an unknown path", attack)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_with_large_headers_take_no_memory() {
    let mut beside = Beside::start().await;
    let addr = beside.addr();
    for method in [UPDATE_OWNER, REFLECTION] {
        let head = move || {
            let mut request = request(addr, method, None);
            let value = "x".repeat(14 * 1024).parse().expect("a value");
            request.headers_mut().insert("x-large", value);
            request
        };
        let attack = Attack {
            head: Arc::new(head),
            ..attack(&beside, method, None, vec![])
        };
        let name = format!("headers of 15 KB to {method}");
        beside.withstand(&name, attack).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_leave_reflections_unread_take_no_memory() {
    let mut beside = Beside::start().await;
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol(
            "gatekey.v1.KeyService".to_owned(),
        )),
    };
    let pieces = vec![Bytes::from(framed(&question).repeat(50)); 4];
    for window in [0, 1] {
        let attack = Attack {
            window,
            ..attack(&beside, REFLECTION, None, pieces.clone())
        };
        let name = format!("reflection with a window of {window}");
        beside.withstand(&name, attack).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_watch_health_take_no_memory() {
    let mut beside = Beside::start().await;
    let message = framed(&HealthCheckRequest::default());
    for window in [0, WINDOW] {
        let attack = Attack {
            window,
            then: Then::End,
            ..attack(
                &beside,
                "grpc.health.v1.Health/Watch",
                None,
                vec![message.clone()],
            )
        };
        let name = format!("health Watch with a window of {window}");
        beside.withstand(&name, attack).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrow_caller_with_unfinished_bodies_takes_bounded_memory() {
    let mut beside = Beside::start().await;
    let validator = narrow(&beside, &["default:keys:validate"]).await;
    let writer = narrow(&beside, &["acme:owners:write"]).await;
    for (method, credential) in [(VALIDATE, validator), (UPDATE_OWNER, writer)] {
        let attack = attack(&beside, method, Some(credential), vec![unfinished()]);
        let name = format!("a narrow caller's unfinished bodies to {method}");
        beside.withstand(&name, attack).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrow_caller_with_tiny_frames_takes_bounded_memory() {
    let mut beside = Beside::start().await;
    let validator = narrow(&beside, &["default:keys:validate"]).await;
    let body = unfinished();
    let pieces: Vec<_> = (0..2000).map(|at| body.slice(at..=at)).collect();
    for (method, credential) in [(VALIDATE, Some(validator)), (REFLECTION, None)] {
        let attack = Attack {
            streams: 100,
            ..attack(&beside, method, credential, pieces.clone())
        };
        let name = format!("frames of one byte to {method}");
        beside.withstand(&name, attack).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrow_caller_who_resets_its_changes_takes_bounded_memory() {
    let mut beside = Beside::start().await;
    let writer = narrow(&beside, &["acme:owners:write"]).await;
    let owner = Owner {
        tenant_id: "acme".to_owned(),
        owner_id: "x".to_owned(),
        scopes: (0..250)
            .map(|n| format!("{n}:{}", "y".repeat(60)))
            .collect(),
        ..Owner::default()
    };
    let message = framed(&whole_owner(owner));
    let attack = Attack {
        streams: 100,
        then: Then::Reset(Duration::from_millis(20)),
        ..attack(&beside, UPDATE_OWNER, Some(writer), vec![message])
    };
    beside
        .withstand("UpdateOwner, reset after 20 ms", attack)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrow_caller_who_leaves_answers_unread_takes_bounded_memory() {
    let mut beside = Beside::start().await;
    crate::inside::Inside::of(beside.server.setup())
        .await
        .run(STORE)
        .await;
    let lister = narrow(&beside, &["default:keys:list"]).await;
    let validator = narrow(&beside, &["default:keys:validate"]).await;
    let list = framed(&ListKeysRequest {
        tenant_id: "default".to_owned(),
        page_size: 1000,
        ..ListKeysRequest::default()
    });
    let ask = framed(&ask("gk_no_key"));
    for window in [0, 1] {
        for (method, credential, message) in
            [(LIST_KEYS, &lister, &list), (VALIDATE, &validator, &ask)]
        {
            let attack = Attack {
                window,
                then: Then::End,
                ..attack(
                    &beside,
                    method,
                    Some(credential.clone()),
                    vec![message.clone()],
                )
            };
            let name = format!("answers of {method} unread, with a window of {window}");
            beside.withstand(&name, attack).await;
        }
    }
}

/// Keys with descriptions of 1 000 characters and metadata of 2 000, written past gatekey.
const STORE: &str = "INSERT INTO keys (key_id, tenant_id, owner_id, label, description, prefix, scopes, \
     audiences, allowed_cidrs, metadata, suspended, created_at, created_by, hash_version, secret_phc, \
     created_revision, revision) \
     WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1000) \
     SELECT CAST(1000000000000000 + n AS TEXT), 'default', 'alice', 'stored', hex(zeroblob(500)), 'gk', '[\"a\"]', '[]', '[]', \
     '{\"k\":\"' || hex(zeroblob(1000)) || '\"}', FALSE, 1700000000000000, 'admin', 'v1', '', \
     1000 + n, 1000 + n FROM n";
