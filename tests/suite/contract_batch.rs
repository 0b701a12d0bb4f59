//! BatchValidate, as the contract has it: each item as Validate would answer it, in order, and alone with its errors.
#![allow(
    clippy::unwrap_used,
    reason = "in a test: clippy takes only functions with `#[test]` for one"
)]

use std::time::Duration;

use gatekey::api::proto::{CreateKeyRequest, Reason, Tenant, ValidateRequest, ValidateResponse};
use tokio::time::sleep;
use tonic::{Code, Status};

use crate::{
    contract_keys::start,
    indistinguishable::{unknown, with_another_secret},
    metrics::{count, page, sample},
    support::{
        Client, Gatekey, Setup,
        client::{ask, ask_header, bad_fields, error_reason, new_key, texts},
        on_both_engines,
    },
};

const ITEMS_MAX: usize = 256;

async fn batch(
    client: &Client,
    requests: Vec<ValidateRequest>,
) -> Vec<Result<ValidateResponse, Status>> {
    client.batch(requests).await.expect("results")
}

/// The reasons of a batch of which each item is decided.
async fn reasons(client: &Client, requests: Vec<ValidateRequest>) -> Vec<Reason> {
    let results = batch(client, requests).await.into_iter();
    results
        .map(|item| item.expect("a decision").reason())
        .collect()
}

/// So many keys, issued at the same time.
async fn issue(admin: &Client, count: usize) -> Vec<String> {
    let issue = (0..count).map(|_| admin.issue("default", &["jobs:*"]));
    let issued = futures_util::future::join_all(issue).await;
    issued.into_iter().map(|(_, plaintext)| plaintext).collect()
}

/// A server that has cached none of the keys in its database, and holds the lease to do so.
async fn cold(setup: &Setup) -> (Gatekey, Client) {
    let server = setup
        .clone()
        .env("GATEKEY_WARM_KEYS", "0")
        .env("GATEKEY_METRICS_LISTEN", "127.0.0.1:0")
        .start()
        .await;
    let lease = || sample(&page(&server), "gatekey_lease_remaining_seconds");
    while lease() <= 0.0 {
        sleep(Duration::from_millis(10)).await;
    }
    let admin = server.admin().await;
    (server, admin)
}

/// Statements that load keys, and loads that found a key in the cache.
fn loads(server: &Gatekey) -> [u64; 2] {
    let page = page(server);
    [
        "gatekey_store_call_duration_seconds_count{call=\"load\"}",
        "gatekey_cache_hits_total",
    ]
    .map(|name| count(&page, name))
}

on_both_engines! {
    async fn each_item_is_answered_as_validate_answers_it_in_the_same_order(setup: Setup) {
        let (server, admin) = start(&setup).await;
        let (key, plaintext) = admin.create(CreateKeyRequest {
            metadata: [("plan".to_owned(), "gold".to_owned())].into(),
            audiences: texts(&["web"]),
            ..new_key("default", &["jobs:*"])
        }).await;
        let (revoked, revoked_plaintext) = admin.issue("default", &["a"]).await;
        admin.revoke(&revoked, "").await;
        let web = || ValidateRequest { audience: "web".to_owned(), ..ask(&plaintext) };
        let items = vec![
            web(),
            ask("no key"),
            ask(&unknown()),
            ask(&revoked_plaintext),
            ask(&with_another_secret(&plaintext)),
            ValidateRequest::default(),
            ask(&plaintext),
            ValidateRequest { required_scopes: texts(&["users:read"]), ..web() },
            ask_header(&format!("Bearer {revoked_plaintext}")),
            ask_header("Digest x"),
            ValidateRequest { tenant_id: "system".to_owned(), ..web() },
            web(),
        ];
        let mut expected = Vec::new();
        for item in &items {
            expected.push(admin.validate(item.clone()).await);
        }
        // From the cache, and on a server that has none of the keys in its cache.
        let hot = batch(&admin, items.clone()).await;
        let hot: Vec<_> = hot.into_iter().map(Result::unwrap).collect();
        assert_eq!(hot, expected);
        let reasons: Vec<_> = hot.iter().map(ValidateResponse::reason).collect();
        assert_eq!(reasons, [
            Reason::Allowed, Reason::Malformed, Reason::NotFound, Reason::Revoked, Reason::NotFound,
            Reason::CredentialMissing, Reason::AudienceNotAllowed, Reason::InsufficientScope,
            Reason::Revoked, Reason::Malformed, Reason::NotFound, Reason::Allowed,
        ]);
        assert_eq!((&hot[0].key_id, &*hot[0].metadata["plan"]), (&key.key_id, "gold"));
        assert_eq!(hot[7].missing_scopes, ["users:read"]);
        server.stop().await;
        let (_server, admin) = cold(&setup).await;
        let cold = batch(&admin, items).await;
        assert_eq!(cold.into_iter().map(Result::unwrap).collect::<Vec<_>>(), expected);
    }

    async fn what_is_not_cached_is_read_by_one_statement_and_cached(setup: Setup) {
        let (server, admin) = start(&setup).await;
        let keys = issue(&admin, 40).await;
        server.stop().await;
        let (server, admin) = cold(&setup).await;
        let unknown: Vec<_> = (0..10).map(|_| unknown()).collect();
        // Each key twice: a key is loaded once.
        let known = keys.iter().chain(&keys).map(|key| ask(key));
        let items: Vec<_> = known.chain(unknown.iter().map(|key| ask(key))).collect();
        let expected: Vec<_> = (0..90)
            .map(|place| if place < 80 { Reason::Allowed } else { Reason::NotFound })
            .collect();
        let [before, _] = loads(&server);
        assert_eq!(reasons(&admin, items).await, expected);
        let [after, hits] = loads(&server);
        assert_eq!(after - before, 1);
        let again = keys.iter().map(|key| ask(key)).collect();
        assert_eq!(reasons(&admin, again).await, vec![Reason::Allowed; 40]);
        assert_eq!(loads(&server), [after, hits + 40]);
    }

    async fn batches_of_the_same_keys_and_single_calls_share_loads_and_end(setup: Setup) {
        let (server, admin) = start(&setup).await;
        let keys = issue(&admin, 64).await;
        server.stop().await;
        let (server, admin) = cold(&setup).await;
        let [before, _] = loads(&server);
        let batches = (0..8).map(|turn| {
            let (mut items, admin) = (keys.iter().map(|key| ask(key)).collect::<Vec<_>>(), admin.clone());
            // Some batches ask in the reverse order of others.
            if turn % 2 == 1 {
                items.reverse();
            }
            async move { reasons(&admin, items).await }
        });
        let singles = keys.iter().map(|key| admin.reason(key));
        let (batches, singles) = tokio::join!(
            futures_util::future::join_all(batches),
            futures_util::future::join_all(singles),
        );
        assert!(batches.iter().flatten().chain(&singles).all(|reason| *reason == Reason::Allowed));
        let [after, _] = loads(&server);
        assert!(after - before <= 64 + 16, "{}", after - before);
    }

    async fn a_bad_item_fails_alone_with_the_error_of_validate(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        admin.set_tenant(Tenant { tenant_id: "acme".to_owned(), ..Tenant::default() }).await;
        let (_, plaintext) = admin.issue("default", &["a"]).await;
        let (_, credential) = admin.issue("system", &["default:keys:validate", "acme:keys:get"]).await;
        let caller = admin.with(&credential);
        let invalid = ValidateRequest {
            tenant_id: "NO".to_owned(),
            required_scopes: texts(&["a", "*"]),
            client_ip: "nowhere".to_owned(),
            ..ask(&plaintext)
        };
        let forbidden = ValidateRequest { tenant_id: "acme".to_owned(), ..ask(&plaintext) };
        let items = vec![ask(&plaintext), invalid.clone(), forbidden.clone(), ask(&plaintext)];
        let results = batch(&caller, items).await;
        assert!(results[0].as_ref().unwrap().allowed && results[3].as_ref().unwrap().allowed);
        for (result, request) in [(&results[1], invalid), (&results[2], forbidden)] {
            let (error, alone) = (result.as_ref().unwrap_err(), caller.try_validate(request).await);
            let alone = alone.unwrap_err();
            assert_eq!((error.code(), error.message()), (alone.code(), alone.message()));
            assert_eq!(error.details(), alone.details());
        }
        let fields = bad_fields(results[1].as_ref().unwrap_err());
        assert_eq!(fields, ["tenant_id", "required_scopes[1]", "client_ip"]);
        assert_eq!(results[2].as_ref().unwrap_err().code(), Code::PermissionDenied);
    }

    async fn no_item_and_too_many_are_invalid_and_the_most_are_answered(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let (_, plaintext) = admin.issue("default", &["a"]).await;
        // Empty items decode to a hundred times their size; so many must not be decoded.
        for (count, item) in [(0, ask(&plaintext)), (ITEMS_MAX + 1, ask(&plaintext)), (100_000, ValidateRequest::default())] {
            let error = admin.batch(vec![item; count]).await.unwrap_err();
            assert_eq!(bad_fields(&error), ["requests"], "{count}");
            assert_eq!(error_reason(&error), "INVALID_FIELDS");
        }
        // Each with 700 bytes of scopes: more in all than a message to another method may have.
        let scopes: Vec<_> = (0..7).map(|n| format!("a:{n}:{}", "x".repeat(60))).collect();
        let item = ValidateRequest { any_scopes: scopes, client_ip: "10.0.0.1".to_owned(), ..ask(&plaintext) };
        let reasons = reasons(&admin, vec![item; ITEMS_MAX]).await;
        assert_eq!(reasons, vec![Reason::InsufficientScope; ITEMS_MAX]);
    }

    async fn a_request_that_is_too_large_is_refused(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let item = ask(&"x".repeat(2000));
        let error = admin.batch(vec![item; ITEMS_MAX]).await.unwrap_err();
        assert_eq!((error.code(), &*error_reason(&error)), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    }

    async fn results_that_are_too_large_in_all_are_errors_that_can_be_sent_again(setup: Setup) {
        let (_server, admin) = start(&setup).await;
        let scopes: Vec<_> = (0..250).map(|n| format!("a:{n}:{}", "x".repeat(60))).collect();
        let large = CreateKeyRequest { scopes, ..new_key("default", &[]) };
        let (_, plaintext) = admin.create(large).await;
        // Of 17 KB each, 3 MiB take about 180.
        let results = batch(&admin, vec![ask(&plaintext); ITEMS_MAX]).await;
        assert_eq!(results.len(), ITEMS_MAX);
        let fit = results.iter().take_while(|result| result.is_ok()).count();
        assert!((150..200).contains(&fit), "{fit}");
        for result in &results[fit..] {
            let error = result.as_ref().unwrap_err();
            assert_eq!((error.code(), &*error_reason(error)), (Code::ResourceExhausted, "RESPONSE_TOO_LARGE"));
        }
        let rest = vec![ask(&plaintext); ITEMS_MAX - fit];
        assert_eq!(reasons(&admin, rest).await, vec![Reason::Allowed; ITEMS_MAX - fit]);
    }

    async fn a_revoked_key_is_refused_in_a_batch_after_it_was_allowed_in_one(setup: Setup) {
        let first = setup.start().await;
        let admin = first.admin().await;
        let (key, plaintext) = admin.issue("default", &["a"]).await;
        let (_, other) = admin.issue("default", &["a"]).await;
        let items = vec![ask(&plaintext), ask(&other)];
        assert_eq!(reasons(&admin, items.clone()).await, [Reason::Allowed, Reason::Allowed]);
        admin.revoke(&key, "").await;
        assert_eq!(reasons(&admin, items).await, [Reason::Revoked, Reason::Allowed]);
    }

    async fn without_a_pepper_argon2_proves_the_keys_of_a_batch(setup: Setup) {
        let setup = setup.env("GATEKEY_PEPPER_FILE", "none");
        let (server, admin) = start(&setup).await;
        let keys = issue(&admin, 8).await;
        server.stop().await;
        let (_server, admin) = cold(&setup).await;
        let wrong = with_another_secret(&keys[0]);
        let mut items: Vec<_> = keys.iter().map(|key| ask(key)).collect();
        items.push(ask(&wrong));
        items.push(ask(&unknown()));
        let mut expected = vec![Reason::Allowed; 8];
        expected.extend([Reason::NotFound; 2]);
        assert_eq!(reasons(&admin, items.clone()).await, expected);
        assert_eq!(reasons(&admin, items).await, expected);
    }

    async fn uses_and_decisions_of_a_batch_are_counted_for_each_item(setup: Setup) {
        let setup = setup.env("GATEKEY_METRICS_LISTEN", "127.0.0.1:0");
        let (server, admin) = start(&setup).await;
        let (key, plaintext) = admin.issue("default", &["a"]).await;
        let invalid = ValidateRequest { client_ip: "nowhere".to_owned(), ..ask(&plaintext) };
        let used = ValidateRequest { client_ip: "192.0.2.7".to_owned(), ..ask(&plaintext) };
        batch(&admin, vec![used.clone(), used, ask("no key"), invalid]).await;
        let page = page(&server);
        for (sample, expected) in [
            ("gatekey_decisions_total{reason=\"ALLOWED\"}", 2),
            ("gatekey_decisions_total{reason=\"MALFORMED\"}", 1),
            ("gatekey_batch_item_errors_total{code=\"INVALID_ARGUMENT\"}", 1),
            ("gatekey_calls_total{method=\"gatekey.v1.KeyService/BatchValidate\",code=\"OK\"}", 1),
            ("gatekey_calls_total{method=\"gatekey.v1.KeyService/Validate\",code=\"OK\"}", 0),
        ] {
            assert_eq!(count(&page, sample), expected, "{sample}");
        }
        server.stop().await;
        let server = setup.start().await;
        let admin = server.admin().await;
        let get = gatekey::api::proto::GetKeyRequest { key_id: key.key_id, ..Default::default() };
        let key = admin.keys.clone().get_key(get).await.unwrap().into_inner().key.unwrap();
        assert_eq!(key.last_used_ip, "192.0.2.7");
    }
}
