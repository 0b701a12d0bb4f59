//! `Debug` of the messages on the wire.

use std::collections::BTreeSet;

use gatekey::api::{
    DESCRIPTORS,
    proto::{
        BatchValidateRequest, CreateKeyResponse, Key, LookupKeyRequest, RevokeKeyRequest,
        RotateKeyResponse, ValidateRequest, revoke_key_request::Target,
        validate_request::Credential,
    },
};
use prost::Message as _;
use prost_types::{FileDescriptorSet, field_descriptor_proto::Type};
use tonic::{Request, Response};

/// Every field that may hold a secret; a new one belongs here, and in `api/redact.rs`.
const SECRET_FIELDS: [&str; 6] = [
    "CreateKeyResponse.plaintext_key",
    "LookupKeyRequest.plaintext_key",
    "RevokeKeyRequest.plaintext_key",
    "RotateKeyResponse.plaintext_key",
    "ValidateRequest.authorization",
    "ValidateRequest.key",
];

#[test]
fn every_field_that_may_hold_a_secret_is_known_here() {
    let set = FileDescriptorSet::decode(DESCRIPTORS).expect("a descriptor set");
    let ours = set
        .file
        .iter()
        .filter(|file| file.package() == "gatekey.v1");
    let mut found = BTreeSet::new();
    for message in ours.flat_map(|file| &file.message_type) {
        for field in &message.field {
            let text = matches!(field.r#type(), Type::String | Type::Bytes);
            let words = [
                "plaintext",
                "secret",
                "credential",
                "authorization",
                "password",
                "token",
            ];
            let named = words.iter().any(|word| field.name().contains(word));
            let page = field.name().ends_with("page_token");
            if text && !page && (named || field.name() == "key") {
                found.insert(format!("{}.{}", message.name(), field.name()));
            }
        }
    }
    assert_eq!(found, SECRET_FIELDS.map(str::to_owned).into());
}

#[test]
fn debug_of_a_message_tells_all_but_its_secret() {
    const SECRET: &str = "gk_0000000000000000";
    let key = || {
        Some(Key {
            key_id: "key_shown".to_owned(),
            ..Key::default()
        })
    };
    let secret = || SECRET.to_owned();
    let (created, rotated) = (
        CreateKeyResponse {
            key: key(),
            plaintext_key: secret(),
        },
        RotateKeyResponse {
            key: key(),
            plaintext_key: secret(),
            enforcement: None,
        },
    );
    let asked = |credential| ValidateRequest {
        credential: Some(credential),
        tenant_id: "key_shown".to_owned(),
        ..ValidateRequest::default()
    };
    let (bare, header) = (
        asked(Credential::Key(secret())),
        asked(Credential::Authorization(format!("Bearer {SECRET}"))),
    );
    let lookup = LookupKeyRequest {
        plaintext_key: secret(),
        tenant_id: "key_shown".to_owned(),
    };
    let batch = BatchValidateRequest {
        requests: vec![bare.clone(), header.clone()],
    };
    let revoke = RevokeKeyRequest {
        tenant_id: "key_shown".to_owned(),
        target: Some(Target::PlaintextKey(secret())),
        ..RevokeKeyRequest::default()
    };
    let messages: [&dyn std::fmt::Debug; SECRET_FIELDS.len() + 1] =
        [&created, &lookup, &revoke, &rotated, &bare, &header, &batch];
    for message in messages {
        for shown in [format!("{message:?}"), format!("{message:#?}")] {
            assert!(!shown.contains(SECRET), "{shown}");
            assert!(shown.contains("key_shown"), "{shown}");
        }
    }
    // As they travel.
    let shown = format!("{:?}{:?}", Request::new(bare), Response::new(created));
    assert!(!shown.contains(SECRET), "{shown}");
}
