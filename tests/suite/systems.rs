//! The key stores of four products as tenants of gatekey: a test for each row of `docs/systems.md`, which begins with
//! the definition that stands there.

mod planeconnection;
mod plangrep;
mod planningspace;
mod plantdemand;

use gatekey::api::proto::{
    CreateKeyRequest, Key, ListEventsRequest, Reason, ValidateRequest, ValidateResponse,
};
use prost::Message as _;

use crate::{
    contract_admin::list,
    contract_keys::get,
    readme::{prove_page, shell},
    support::{
        Client, Gatekey, Setup,
        client::{ask, new_key, texts},
        on_both_engines,
    },
};

const PAGE: &str = include_str!("../../docs/systems.md");

/// A server on which a product's definition was put, by the commands of the page, and its administrator.
async fn defined(setup: &Setup, product: &str) -> (Gatekey, Client) {
    let server = setup.start().await;
    shell(&definition(product), &server);
    let admin = server.admin().await;
    (server, admin)
}

/// The words of the page's first block, and of the product's.
fn definition(product: &str) -> String {
    let block = |text: &'static str| {
        let (_, block) = text.split_once("```sh\n").expect("a block");
        block.split_once("```\n").expect("a block has an end").0
    };
    let (_, section) = PAGE
        .split_once(&format!("## {product}\n"))
        .expect("a section");
    format!("{}{}", block(PAGE), block(section))
}

/// A request for a key of this owner.
fn key_of(tenant: &str, owner: &str, scopes: &[&str]) -> CreateKeyRequest {
    CreateKeyRequest {
        owner_id: owner.to_owned(),
        ..new_key(tenant, scopes)
    }
}

/// A question about a key and what it is to be used for.
fn asking(plaintext: &str, scopes: &[&str]) -> ValidateRequest {
    ValidateRequest {
        required_scopes: texts(scopes),
        ..ask(plaintext)
    }
}

/// Whether the key may be used for this, and why not.
async fn may(client: &Client, plaintext: &str, scope: &str) -> Reason {
    client.validate(asking(plaintext, &[scope])).await.reason()
}

/// Asserts that a key is refused for this reason, as a gateway would tell it.
#[track_caller]
fn assert_refused(answer: &ValidateResponse, reason: Reason, http_status: i32) {
    let told = (answer.allowed, answer.reason(), answer.http_status);
    assert_eq!(told, (false, reason, http_status), "{answer:?}");
}

/// Asserts that nothing tells the key but the answer that made it.
async fn assert_shown_once(admin: &Client, request: CreateKeyRequest) {
    let repeatable = CreateKeyRequest {
        request_id: "once".to_owned(),
        ..request
    };
    let (key, plaintext) = admin.create(repeatable.clone()).await;
    let secret = &plaintext[plaintext.len() - 49..plaintext.len() - 6];
    let again = admin.try_create(repeatable).await;
    let again = again.expect_err("the key was made before");
    let listed = list(admin, of_tenant(&key.tenant_id)).await.expect("keys");
    assert_eq!(listed.keys[0].key_id, key.key_id);
    let events = ListEventsRequest {
        key_id: key.key_id.clone(),
        ..ListEventsRequest::default()
    };
    let events = admin.events.clone().list_events(events).await;
    let events = events.expect("events").into_inner();
    assert_eq!(events.events.len(), 1);
    let told = [
        get(admin, &key.key_id).await.encode_to_vec(),
        listed.encode_to_vec(),
        events.encode_to_vec(),
        admin.validate(ask(&plaintext)).await.encode_to_vec(),
        [again.message().as_bytes(), again.details()].concat(),
    ];
    for told in told {
        let told = String::from_utf8_lossy(&told).into_owned();
        assert!(!told.contains(secret), "{told}");
        assert!(
            told.contains(key.key_id.trim_start_matches("key_")),
            "{told}"
        );
    }
}

fn of_tenant(tenant: &str) -> gatekey::api::proto::ListKeysRequest {
    gatekey::api::proto::ListKeysRequest {
        tenant_id: tenant.to_owned(),
        ..Default::default()
    }
}

/// The ids of keys.
fn ids(keys: &[Key]) -> Vec<&str> {
    keys.iter().map(|key| &*key.key_id).collect()
}

on_both_engines! {
    async fn every_command_of_the_page_prints_what_it_shows(setup: Setup) {
        prove_page(PAGE, &setup.start().await);
    }
}

#[test]
fn every_row_of_the_page_has_its_test_and_every_test_its_row() {
    let sources = [
        include_str!("systems/plantdemand.rs"),
        include_str!("systems/planningspace.rs"),
        include_str!("systems/plangrep.rs"),
        include_str!("systems/planeconnection.rs"),
    ];
    let tests: Vec<_> = sources
        .iter()
        .flat_map(|source| source.split("    async fn ").skip(1))
        .filter_map(|test| test.split_once("(setup: Setup)"))
        .map(|(name, _)| name)
        .collect();
    let rows: Vec<_> = PAGE
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix("` |"))
        .map(|row| {
            let number = row.split_once(' ').expect("a number").0;
            let (_, test) = row.rsplit_once('`').expect("a test");
            assert!(
                test.starts_with(&format!("{}_", number.to_lowercase())),
                "{row}"
            );
            test
        })
        .collect();
    assert_eq!(rows.len(), 8 + 7 + 9 + 8);
    assert_eq!(rows, tests);
}
