//! What looks like something else is refused, by an error that names the field and says what would be right.

use gatekey::api::proto::{
    CreateKeyRequest, CreateOwnerRequest, CreateTenantRequest, GetOwnerRequest, ListEventsRequest,
    ListKeysRequest, Owner, Reason, RevokeKeyRequest, Tenant, ValidateRequest,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::client::key_target;
use crate::support::{
    Gatekey,
    client::{ask, new_key, texts},
};

/// Zero width, bidirectional controls, separators, a soft hyphen, a byte order mark, a control character.
const INVISIBLE: &str = "\u{200b}\u{200c}\u{200d}\u{2060}\u{feff}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\
                         \u{a0}\u{2003}\u{3000}\u{2800}\u{2066}\u{2067}\u{2068}\u{2069}\u{200e}\u{200f}\u{61c}\u{2028}\u{2029}\u{ad}\u{7}";

#[tokio::test]
async fn a_name_with_an_invisible_character_is_refused_wherever_one_is_given() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    for c in INVISIBLE.chars() {
        let bad = format!("ali{c}ce");
        let code = format!("U+{:04X}", u32::from(c));
        let key = CreateKeyRequest {
            owner_id: bad.clone(),
            label: bad.clone(),
            audiences: vec!["web".to_owned(), bad.clone()],
            metadata: [(bad.clone(), String::new())].into(),
            request_id: bad.clone(),
            ..new_key("default", &["a"])
        };
        let told = violations(admin.try_create(key).await, &code);
        assert_eq!(
            told,
            [
                "audiences[1]",
                "label",
                "metadata",
                "owner_id",
                "request_id"
            ]
        );
        let owner = Some(Owner {
            tenant_id: "system".to_owned(),
            owner_id: bad.clone(),
            display_name: bad.clone(),
            audiences: vec![bad.clone()],
            ..Owner::default()
        });
        let put = admin
            .owners
            .clone()
            .create_owner(CreateOwnerRequest { owner })
            .await;
        let wrong = ["owner.audiences[0]", "owner.display_name", "owner.owner_id"];
        assert_eq!(violations(put, &code), wrong);
        let tenant = Some(Tenant {
            tenant_id: "acme".to_owned(),
            display_name: bad.clone(),
            basic_usernames: vec![bad.clone()],
            ..Tenant::default()
        });
        let put = admin
            .tenants
            .clone()
            .create_tenant(CreateTenantRequest { tenant })
            .await;
        assert_eq!(
            violations(put, &code),
            ["tenant.basic_usernames[0]", "tenant.display_name"]
        );

        let (mut keys, mut events) = (admin.keys.clone(), admin.events.clone());
        let get = GetOwnerRequest {
            tenant_id: "default".to_owned(),
            owner_id: bad.clone(),
        };
        assert_eq!(
            violations(admin.owners.clone().get_owner(get).await, &code),
            ["owner_id"]
        );
        let list = ListKeysRequest {
            tenant_id: "default".to_owned(),
            owner_id: bad.clone(),
            label_contains: bad.clone(),
            ..ListKeysRequest::default()
        };
        assert_eq!(
            violations(keys.list_keys(list).await, &code),
            ["label_contains", "owner_id"]
        );
        let list = ListEventsRequest {
            actor: bad.clone(),
            owner_id: bad.clone(),
            ..Default::default()
        };
        assert_eq!(
            violations(events.list_events(list).await, &code),
            ["actor", "owner_id"]
        );
    }
}

#[tokio::test]
async fn a_text_for_people_may_have_joiners_and_nothing_that_reorders_it() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    let text = "ligne 1\nmi\u{200c}khaham 👩\u{200d}💻 Donau\u{ad}dampf";
    let described = CreateKeyRequest {
        description: text.to_owned(),
        metadata: [("note".to_owned(), text.to_owned())].into(),
        ..new_key("default", &["a"])
    };
    let (key, _) = admin.create(described.clone()).await;
    assert_eq!(key.description, text);
    for c in ['\u{202e}', '\u{2066}', '\u{2028}', '\u{1b}'] {
        let code = format!("U+{:04X}", u32::from(c));
        let bad = format!("a{c}b");
        let request = CreateKeyRequest {
            description: bad.clone(),
            metadata: [("note".to_owned(), bad.clone())].into(),
            ..described.clone()
        };
        let told = violations(admin.try_create(request).await, &code);
        assert_eq!(told, ["description", "metadata"]);
        let revoke = RevokeKeyRequest {
            tenant_id: key.tenant_id.clone(),
            target: key_target(key.key_id.clone()),
            reason: bad,
        };
        let told = violations(admin.keys.clone().revoke_key(revoke).await, &code);
        assert_eq!(told, ["reason"]);
    }
}

#[tokio::test]
async fn an_address_or_a_network_that_can_be_read_in_two_ways_is_refused() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    let nets = ["10.0.0.0/8", "::ffff:192.0.2.0/120", "2001:DB8::/32"];
    let (key, plaintext) = admin
        .create(CreateKeyRequest {
            allowed_cidrs: texts(&nets),
            ..new_key("default", &["a"])
        })
        .await;
    assert_eq!(
        key.allowed_cidrs,
        ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"]
    );
    for (wrong, right) in [
        ("010.0.0.0/8", "10.0.0.0"),
        ("10.0.0.0/08", "/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("1.2.3", "192.0.2.1"),
        ("0x7f.0.0.1", "192.0.2.1"),
        ("::ffff:10.0.0.0/80", "96"),
    ] {
        let request = CreateKeyRequest {
            allowed_cidrs: texts(&["10.0.0.0/8", wrong]),
            ..new_key("default", &["a"])
        };
        assert_eq!(
            violations(admin.try_create(request).await, right),
            ["allowed_cidrs[1]"]
        );
    }
    for (wrong, right) in [
        ("010.0.0.1", "10.0.0.1"),
        ("1.2.3", "192.0.2.1"),
        ("0x7f.0.0.1", "192.0.2.1"),
        ("10.0.0.0/8", "192.0.2.1"),
        ("fe80::1%eth0", "zone"),
    ] {
        let request = from(&plaintext, wrong);
        assert_eq!(
            violations(admin.try_validate(request).await, right),
            ["client_ip"]
        );
    }
    for ip in ["10.0.0.1", "::FFFF:192.0.2.1", "2001:DB8::1"] {
        let answer = admin.validate(from(&plaintext, ip)).await;
        assert_eq!(answer.reason(), Reason::Allowed, "{ip}");
    }
}

fn from(plaintext: &str, client_ip: &str) -> ValidateRequest {
    ValidateRequest {
        client_ip: client_ip.to_owned(),
        ..ask(plaintext)
    }
}

/// The fields that are named, sorted; each violation says `right`.
#[track_caller]
fn violations<T>(answer: Result<T, Status>, right: &str) -> Vec<String> {
    let Err(status) = answer else {
        panic!("nothing was wrong, where {right} would be");
    };
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_details_bad_request().expect("BadRequest");
    let told = details.field_violations.into_iter();
    let mut fields: Vec<_> = told
        .map(|wrong| {
            assert!(
                wrong.description.contains(right),
                "{right}: {}",
                wrong.description
            );
            wrong.field
        })
        .collect();
    fields.sort();
    fields
}

/// One such call kept a core busy for 20 s, and four of them everything else.
#[tokio::test]
async fn long_lists_of_names_are_refused_without_delaying_a_revocation() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    let (key, _) = admin.issue("default", &["a"]).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let admin = admin.clone();
        let request = CreateKeyRequest {
            audiences: (0..10_000).map(|n| n.to_string()).collect(),
            ..new_key("default", &["a"])
        };
        calls.spawn(async move {
            admin
                .try_create(request)
                .await
                .map(|_| ())
                .unwrap_err()
                .code()
        });
    }
    let mut revoke = tonic::Request::new(RevokeKeyRequest {
        target: Some(gatekey::api::proto::revoke_key_request::Target::KeyId(
            key.key_id,
        )),
        ..RevokeKeyRequest::default()
    });
    revoke.set_timeout(std::time::Duration::from_secs(10));
    admin
        .keys
        .clone()
        .revoke_key(revoke)
        .await
        .expect("it is revoked in time");
    for code in calls.join_all().await {
        assert_eq!(code, Code::InvalidArgument);
    }
}
