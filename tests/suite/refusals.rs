//! Refused calls and failed handshakes in the log: who, what, from where and why, at a bounded rate.

use gatekey::api::proto::{GetKeyRequest, ListTenantsRequest, Owner, ValidateRequest};
use serde_json::Value as Json;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tonic::Code;

use crate::support::{
    Authority, Gatekey, Setup,
    client::{ask, new_key, texts},
    on_both_engines,
};

const REFUSED: &str = "call refused";
const HANDSHAKE: &str = "TLS handshake failed";

on_both_engines! {
    async fn a_refused_call_is_logged_with_its_caller_its_method_and_the_reason(setup: Setup) {
        refused_calls(setup).await;
    }
}

async fn refused_calls(setup: Setup) {
    let server = setup.env("GATEKEY_LOG", "info").start().await;
    let admin = server.admin().await;
    let (orders, credential) = admin.issue("system", &["acme:keys:list"]).await;
    let orders = &*orders.key_id;
    let narrow = server.client(Some(&credential)).await;

    let stranger = server.client(None).await;
    let list = ListTenantsRequest::default();
    let refused = stranger.tenants.clone().list_tenants(list.clone()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let refused = stranger.try_validate(ValidateRequest::default()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let refused = narrow.tenants.clone().list_tenants(list.clone()).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let refused = narrow.try_validate(ask(&credential)).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);

    let issuer = admin.issue("system", &["system:keys:create"]).await;
    let (issuer, issuer_key) = (&*issuer.0.key_id, issuer.1);
    let more = server.client(Some(&issuer_key)).await;
    let refused = more.try_create(new_key("system", &["*"])).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let (gone, gone_key) = admin.issue("system", &["*"]).await;
    admin.revoke(&gone, "over").await;
    let gone_client = server.client(Some(&gone_key)).await;
    let refused = gone_client.tenants.clone().list_tenants(list).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    // Neither a decision nor what does not exist is a refusal.
    admin.reason(&gone_key).await;
    let unknown = GetKeyRequest {
        key_id: "key_0000000000000000".to_owned(),
        ..GetKeyRequest::default()
    };
    let none = admin.keys.clone().get_key(unknown).await;
    assert_eq!(none.unwrap_err().code(), Code::NotFound);

    let stopped = server.stop().await;
    let logged = lines(stopped.logs(), REFUSED);
    let logged: Vec<_> = logged.iter().map(shown).collect();
    let (tenants, keys) = (
        "gatekey.v1.TenantService/ListTenants",
        "gatekey.v1.KeyService",
    );
    let (validate, create) = (format!("{keys}/Validate"), format!("{keys}/CreateKey"));
    let (unknown, denied) = ("UNAUTHENTICATED", "PERMISSION_DENIED");
    assert_eq!(
        logged,
        [
            ["", tenants, unknown, "CREDENTIAL_MISSING"],
            ["", &validate, unknown, "CREDENTIAL_MISSING"],
            [orders, tenants, denied, "ACTION_NOT_GRANTED"],
            [orders, &validate, denied, "ACTION_NOT_GRANTED"],
            [issuer, &create, denied, "SCOPE_NOT_HELD"],
            [&*gone.key_id, tenants, unknown, "CREDENTIAL_INVALID"],
        ]
    );
    for secret in [credential, issuer_key, gone_key] {
        assert!(!stopped.logs().contains(&secret), "a key is in the log");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_refused_calls_is_ten_lines_and_a_number() {
    let server = Gatekey::sqlite().env("GATEKEY_LOG", "info").start().await;
    let stranger = server.client(None).await;
    for _ in 0..500 {
        let refused = stranger.try_validate(ValidateRequest::default()).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    }
    // Without a further call.
    server.wait_for_log("more calls were refused").await;
    let logs = server.logs();
    let more = lines(&logs, "more calls were refused within 10 s");
    let suppressed: u64 = more
        .iter()
        .filter_map(|line| line["suppressed"].as_u64())
        .sum();
    let logged = lines(&logs, REFUSED).len() as u64;
    // The calls may take longer than one window, on a busy machine.
    assert!(logged <= 10 * (more.len() as u64 + 1), "{logs}");
    assert!(logged + suppressed <= 500 && logged >= 10, "{logs}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_handshake_is_logged_with_its_peer_and_a_certificates_owner_is_a_caller() {
    const ORDERS: &str = "spiffe://example.org/orders";
    let authority = Authority::new("ours");
    let setup = Gatekey::sqlite().env("GATEKEY_LOG", "info");
    let server = setup.encrypted(&authority).start().await;
    let mut plain = TcpStream::connect(server.addr()).await.expect("it listens");
    let local = plain.local_addr().expect("it is connected").to_string();
    plain
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .expect("it takes bytes");
    server.wait_for_log(HANDSHAKE).await;
    let failed = lines(&server.logs(), HANDSHAKE);
    assert_eq!(failed[0]["peer"], *local);
    assert!(
        failed[0]["error"]
            .as_str()
            .is_some_and(|error| !error.is_empty())
    );

    let token = server.admin_token();
    let admin = server.encrypted(authority.trusted(), Some(&token)).await;
    let owner = Owner {
        tenant_id: "system".to_owned(),
        owner_id: ORDERS.to_owned(),
        scopes: texts(&["*:keys:list"]),
        ..Owner::default()
    };
    admin.expect("it is trusted").set_owner(owner).await;
    let shown_by = authority.issue(&[ORDERS]).shown(authority.trusted());
    let orders = server
        .encrypted(shown_by, None)
        .await
        .expect("it is trusted");
    let refused = orders.try_create(new_key("default", &["a"])).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    server.wait_for_log(REFUSED).await;
    let logged = lines(&server.logs(), REFUSED);
    assert_eq!(shown(&logged[0])[0], ORDERS);
    assert_eq!(logged[0]["peer"], "127.0.0.1");
    server.stop().await;
}

/// The fields of the lines with this message.
fn lines(logs: &str, message: &str) -> Vec<Json> {
    let lines = logs
        .lines()
        .filter_map(|line| serde_json::from_str::<Json>(line).ok());
    let fields = lines.map(|mut line| line["fields"].take());
    fields
        .filter(|fields| fields["message"] == message)
        .collect()
}

/// Caller, method, code and reason of a line.
fn shown(line: &Json) -> [&str; 4] {
    assert_eq!(line["peer"], "127.0.0.1", "{line}");
    ["caller", "method", "code", "reason"].map(|field| line[field].as_str().unwrap_or_default())
}
