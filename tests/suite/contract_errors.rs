//! Errors, as the contract has them: each says in `ErrorInfo` why, also those that never reach a handler.
#![allow(
    clippy::unwrap_used,
    reason = "in a test: clippy takes only functions with `#[test]` for one"
)]

use gatekey::api::proto::{
    CreateKeyRequest, GetKeyRequest, GetOwnerRequest, GetTenantRequest, GetTenantResponse, Key,
    ListEventsRequest, ListKeysRequest, ListOwnersRequest, LookupKeyRequest, Owner, Tenant,
    ValidateRequest, WatchEventsRequest,
};
use prost::{
    Message as _,
    bytes::{Buf, BufMut},
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};
use tonic_types::StatusExt as _;

use crate::{
    contract_keys::{refused, start, update},
    support::{
        Client, Gatekey,
        client::{ask, bad_fields, error_reason, new_key},
        on_both_engines,
    },
};

const MESSAGE_MAX: usize = 64 * 1024;

/// Sends bytes as they are, and gives those that come back.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        *self
    }

    fn decoder(&mut self) -> Raw {
        *self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

/// Calls a method with bytes that need not be a message.
async fn call(
    server: &Gatekey,
    client: &Client,
    path: &str,
    bytes: Vec<u8>,
) -> Result<Vec<u8>, Status> {
    let mut grpc = Grpc::new(client.channel.clone());
    grpc.ready().await.expect("a connection");
    let mut request = Request::new(bytes);
    let bearer = format!("Bearer {}", server.admin_token());
    request
        .metadata_mut()
        .insert("authorization", bearer.parse().expect("it is ASCII"));
    let path = path.parse().expect("a path");
    Ok(grpc.unary(request, path, Raw).await?.into_inner())
}

/// GetTenantRequest for `default`, and a field that nobody knows, of so many bytes in all.
fn padded(length: usize) -> Vec<u8> {
    let mut bytes = GetTenantRequest {
        tenant_id: "default".to_owned(),
    }
    .encode_to_vec();
    bytes.push(15 << 3 | 2);
    let rest = length - bytes.len() - 3; // its length takes three bytes
    prost::encoding::encode_varint(rest as u64, &mut bytes);
    bytes.resize(length, 0);
    bytes
}

const GET_TENANT: &str = "/gatekey.v1.TenantService/GetTenant";

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    for path in [
        "/gatekey.v1.KeyService/NoSuchMethod",
        "/gatekey.v1.NoSuchService/Validate",
        "/nothing",
    ] {
        let answer = call(&server, &admin, path, Vec::new()).await;
        refused(answer, Code::Unimplemented, "UNKNOWN_METHOD");
    }
}

#[tokio::test]
async fn bytes_that_are_no_message_are_an_invalid_argument() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    for bytes in [
        &b"\xff\xff\xff\xff"[..],
        b"\x0a\x05ab",       // a text that ends too soon
        b"\x0a\x02\xff\xfe", // a text that is not UTF-8
        b"\x08\x01",         // a number where a text should be
    ] {
        for path in [
            GET_TENANT,
            "/gatekey.v1.KeyService/CreateKey",
            "/gatekey.v1.KeyService/LookupKey",
            "/gatekey.v1.OwnerService/GetOwner",
            "/gatekey.v1.EventService/ListEvents",
        ] {
            let answer = call(&server, &admin, path, bytes.to_vec()).await;
            refused(answer, Code::InvalidArgument, "UNREADABLE_MESSAGE");
        }
    }
}

#[tokio::test]
async fn a_message_of_64_kib_is_read_and_a_larger_one_is_refused() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    let answer = call(&server, &admin, GET_TENANT, padded(MESSAGE_MAX))
        .await
        .unwrap();
    let answer = GetTenantResponse::decode(&answer[..]).unwrap();
    assert_eq!(answer.tenant.unwrap().tenant_id, "default");
    for length in [MESSAGE_MAX + 1, 10 * MESSAGE_MAX] {
        let answer = call(&server, &admin, GET_TENANT, padded(length)).await;
        refused(answer, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    }
}

#[tokio::test]
async fn an_error_about_very_much_still_arrives_as_what_it_is() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    let wrong = vec!["not fine".to_owned(); 256];
    let states = ListKeysRequest {
        tenant_id: "default".to_owned(),
        states: vec![99; 30_000],
        ..ListKeysRequest::default()
    };
    let types = ListEventsRequest {
        types: vec![99; 30_000],
        ..ListEventsRequest::default()
    };
    let asked = CreateKeyRequest {
        scopes: wrong.clone(),
        audiences: vec![String::new(); 64],
        allowed_cidrs: vec![String::new(); 64],
        ..new_key("default", &[])
    };
    let question = ValidateRequest {
        required_scopes: wrong,
        ..ask("x")
    };
    for error in [
        admin.try_create(asked).await.map(drop),
        admin.try_validate(question).await.map(drop),
        admin.keys.clone().list_keys(states).await.map(drop),
        admin.events.clone().list_events(types).await.map(drop),
        update(&admin, Key::default(), &vec!["x"; 20_000])
            .await
            .map(drop),
    ] {
        let error = refused(error, Code::InvalidArgument, "INVALID_FIELDS");
        assert!(!bad_fields(&error).is_empty());
        // Many clients take 8 KiB of headers, in which the details stand as base64.
        assert!(error.message().len() + error.details().len() * 4 / 3 < 7 * 1024);
    }
}

#[tokio::test]
async fn resource_exhausted_says_when_to_try_again() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    let answer = call(&server, &admin, GET_TENANT, padded(MESSAGE_MAX + 1)).await;
    let retry = answer.unwrap_err().get_details_retry_info();
    assert!(retry.is_some_and(|retry| retry.retry_delay.is_some()));
}

on_both_engines! {
    async fn every_refusal_has_its_code_and_says_why(setup: Setup) {
        let (server, admin) = start(&setup).await;
        let nobody = server.client(None).await;
        for (client, reason) in [(&nobody, "CREDENTIAL_MISSING"), (&admin.with("x"), "CREDENTIAL_INVALID")] {
            refused(client.try_create(new_key("default", &["a"])).await, Code::Unauthenticated, reason);
            refused(client.try_validate(ask("x")).await, Code::Unauthenticated, reason);
        }
        let (_, credential) = admin.issue("system", &["default:keys:get"]).await;
        let reader = admin.with(&credential);
        refused(reader.try_create(new_key("default", &["a"])).await, Code::PermissionDenied, "ACTION_NOT_GRANTED");

        let invalid = admin.try_create(new_key("default", &[])).await;
        refused(invalid, Code::InvalidArgument, "INVALID_FIELDS");
        let key = GetKeyRequest { key_id: "key_0000000000000000".to_owned(), ..GetKeyRequest::default() };
        refused(admin.keys.clone().get_key(key).await, Code::NotFound, "KEY_NOT_FOUND");
        let owner = GetOwnerRequest { tenant_id: "default".to_owned(), owner_id: "nobody".to_owned() };
        refused(admin.owners.clone().get_owner(owner).await, Code::NotFound, "OWNER_NOT_FOUND");
        let tenant = GetTenantRequest { tenant_id: "nowhere".to_owned() };
        refused(admin.tenants.clone().get_tenant(tenant).await, Code::NotFound, "TENANT_NOT_FOUND");

        let (key, _) = admin.issue("default", &["a"]).await;
        admin.revoke(&key, "").await;
        refused(update(&admin, key, &["label"]).await, Code::FailedPrecondition, "KEY_REVOKED");
        admin.set_tenant(Tenant { tenant_id: "acme".to_owned(), require_owner: true, ..Tenant::default() }).await;
        let rule = refused(admin.try_create(new_key("acme", &["a"])).await, Code::FailedPrecondition, "REQUIRE_OWNER");
        assert!(rule.get_details_precondition_failure().is_some());
        admin.set_owner(Owner { tenant_id: "acme".to_owned(), owner_id: "alice".to_owned(), ..Owner::default() }).await;
        admin.issue("acme", &["a"]).await;

        // A stream that cannot begin says why like any other call.
        let watch = WatchEventsRequest { start_revision: -1, ..Default::default() };
        let error = admin.events.clone().watch_events(watch).await.map(|_| ()).unwrap_err();
        assert_eq!(error_reason(&error), "INVALID_FIELDS");
    }
}

/// The description of the only violation.
fn described<T>(answer: Result<T, Status>) -> String {
    let error = answer.map(|_| ()).unwrap_err();
    let bad = error.get_details_bad_request().expect("violations");
    let [violation] = &bad.field_violations[..] else {
        panic!("not one violation: {bad:?}")
    };
    violation.description.clone()
}

on_both_engines! {
    async fn a_key_in_another_form_is_answered_with_the_call_that_takes_it(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (key, plaintext) = admin.issue("default", &["a"]).await;
        let lookup = async |text: &str| {
            let request = LookupKeyRequest {
                plaintext_key: text.to_owned(),
                ..LookupKeyRequest::default()
            };
            described(admin.keys.clone().lookup_key(request).await)
        };
        let get = async |text: &str| {
            let request = GetKeyRequest {
                key_id: text.to_owned(),
                ..GetKeyRequest::default()
            };
            described(admin.keys.clone().get_key(request).await)
        };
        for (told, helps) in [
            (lookup("").await, "is required"),
            (lookup(&key.key_id).await, "use GetKey"),
            (lookup(&key.key_prefix).await, "key_prefix"),
            (lookup("abc").await, "its form or its checksum is wrong"),
            (get("").await, "is required"),
            (get(&plaintext).await, "LookupKey"),
            (get(&key.key_prefix).await, "ListKeys"),
            (get("abc").await, "must be key_ and 16 letters or digits"),
        ] {
            assert!(told.contains(helps), "{told}");
            assert!(!told.contains(&plaintext), "{told}");
        }
    }

    async fn an_unknown_value_of_an_enum_is_answered_with_the_known_ones(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let keys = ListKeysRequest {
            tenant_id: "default".to_owned(),
            states: vec![7],
            ..ListKeysRequest::default()
        };
        let told = described(admin.keys.clone().list_keys(keys).await);
        assert_eq!(
            told,
            "must be one of KEY_STATE_ACTIVE, KEY_STATE_SUSPENDED, KEY_STATE_EXPIRED, \
             KEY_STATE_REVOKED, but is 7"
        );
        let events = ListEventsRequest {
            types: vec![0],
            ..ListEventsRequest::default()
        };
        let told = described(admin.events.clone().list_events(events).await);
        assert!(told.contains("EVENT_TYPE_KEY_CREATED") && told.ends_with("but is 0"), "{told}");
        let told = described(admin.owners.clone().list_owners(ListOwnersRequest::default()).await);
        assert_eq!(told, "is required");
    }
}
