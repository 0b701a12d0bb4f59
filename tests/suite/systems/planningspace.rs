//! PlanningSpace: one key an account, by the account's role, used as the password of HTTP Basic.

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use gatekey::api::proto::{
    CreateKeyRequest, KeyState, ListKeysRequest, Owner, Reason, RevokeKeysRequest, Tenant,
    ValidateRequest,
};
use tokio::{sync::Barrier, task::JoinSet};
use tonic::Code;

use super::{assert_refused, defined, key_of, may, of_tenant};
use crate::support::client::owner_target;
use crate::{
    contract_admin::list,
    contract_keys::refused,
    inside::Inside,
    support::{
        Client,
        client::{ask, ask_header, texts},
        on_both_engines,
    },
};

const PRODUCT: &str = "PlanningSpace";
const TENANT: &str = "planningspace";
const ROLE: &str = "Security/API_Key";

fn key() -> CreateKeyRequest {
    key_of(TENANT, "anna", &["*"])
}

async fn put(admin: &Client, account: &str, scopes: &[&str]) {
    let owner = Owner {
        tenant_id: TENANT.to_owned(),
        owner_id: account.to_owned(),
        scopes: texts(scopes),
        ..Owner::default()
    };
    admin.set_owner(owner).await;
}

fn basic(username: &str, plaintext: &str) -> ValidateRequest {
    let pair = BASE64_STANDARD.encode(format!("{username}:{plaintext}"));
    ask_header(&format!("Basic {pair}"))
}

fn used_for(audience: &str, plaintext: &str) -> ValidateRequest {
    ValidateRequest {
        audience: audience.to_owned(),
        ..ask(plaintext)
    }
}

/// The ids of the account's active keys.
async fn active(admin: &Client) -> Vec<String> {
    let request = ListKeysRequest {
        owner_id: "anna".to_owned(),
        states: vec![KeyState::Active.into()],
        ..of_tenant(TENANT)
    };
    let listed = list(admin, request).await.expect("a page");
    listed.keys.into_iter().map(|key| key.key_id).collect()
}

on_both_engines! {
    async fn s1_only_an_account_with_the_role_can_generate_or_use_a_key(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        put(&admin, "carl", &["feeds:*"]).await;
        for account in ["carl", "nobody"] {
            let answer = admin.try_create(key_of(TENANT, account, &["*"])).await;
            refused(answer, Code::FailedPrecondition, "REQUIRED_OWNER_SCOPE");
        }
        put(&admin, "carl", &["feeds:*", ROLE]).await;
        let (_, plaintext) = admin.create(key_of(TENANT, "carl", &["*"])).await;
        for _ in 0..3 {
            assert_eq!(may(&admin, &plaintext, "feeds:read").await, Reason::Allowed);
            put(&admin, "carl", &["feeds:*"]).await;
            assert_refused(&admin.validate(ask(&plaintext)).await, Reason::OwnerNotPermitted, 403);
            put(&admin, "carl", &["feeds:*", ROLE]).await;
        }
    }

    async fn s2_a_new_key_replaces_the_old_one_never_two_never_none(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (first, mut current) = admin.create(key()).await;
        let start = Arc::new(Barrier::new(2));
        let mut looking = JoinSet::new();
        looking.spawn({
            let (admin, start) = (admin.clone(), Arc::clone(&start));
            async move {
                start.wait().await;
                let mut seen = vec![first.key_id];
                // To the fifth that follows the first.
                while seen.len() < 6 {
                    let active = active(&admin).await;
                    assert_eq!(active.len(), 1, "one key at every moment: {active:?}");
                    if seen.last() != active.first() {
                        seen.extend(active);
                    }
                }
            }
        });
        start.wait().await;
        while looking.try_join_next().transpose().expect("one key at every moment").is_none() {
            let (_, next) = admin.create(key()).await;
            assert_eq!(admin.reason(&current).await, Reason::Revoked);
            assert_eq!(admin.reason(&next).await, Reason::Allowed);
            current = next;
        }
    }

    async fn s3_the_value_is_not_stored(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (key, plaintext) = admin.create(key()).await;
        let mut inside = Inside::of(&setup).await;
        let row = inside.texts("SELECT key_id || ' ' || secret_phc || ' ' || metadata || ' ' || description FROM keys").await;
        let [row] = &row[..] else { panic!("one row: {row:?}") };
        assert!(row.contains(&key.key_id["key_".len()..]), "{row}");
        assert!(row.contains("$argon2id$"), "{row}");
        assert!(!row.contains(&plaintext[plaintext.len() - 49..plaintext.len() - 6]), "{row}");
        // Every byte of the database is searched for G3.
    }

    async fn s4_an_administrator_deletes_any_accounts_key(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (_, annas) = admin.create(key()).await;
        let (_, bens) = admin.create(key_of(TENANT, "ben@saml", &["*"])).await;
        let (_, credential) = admin.issue("system", &["planningspace:keys:revoke"]).await;
        let request = RevokeKeysRequest {
            tenant_id: TENANT.to_owned(),
            target: owner_target("anna".to_owned()),
            reason: "left the company".to_owned(),
            dry_run: false,
        };
        let answer = admin.with(&credential).keys.revoke_keys(request).await;
        assert_eq!(answer.expect("they are revoked").into_inner().revoked_count, 1);
        assert_eq!(admin.reason(&annas).await, Reason::Revoked);
        assert_eq!(admin.validate(used_for("odata", &bens)).await.reason(), Reason::Allowed);
    }

    async fn s5_an_external_accounts_key_works_for_odata_only(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (_, external) = admin.create(key_of(TENANT, "ben@saml", &["*"])).await;
        let (_, internal) = admin.create(key()).await;
        for (audience, allowed) in [("odata", true), ("webapi", false), ("", false)] {
            let answer = admin.validate(used_for(audience, &external)).await;
            if allowed {
                assert!(answer.allowed, "{answer:?}");
            } else {
                assert_refused(&answer, Reason::AudienceNotAllowed, 403);
            }
            assert!(admin.validate(used_for(audience, &internal)).await.allowed);
        }
    }

    async fn s6_it_is_the_password_of_basic_with_a_listed_user_name(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (key, plaintext) = admin.create(key()).await;
        for username in ["FeedKey", "Account Key"] {
            let answer = admin.validate(basic(username, &plaintext)).await;
            assert!(answer.allowed, "{answer:?}");
            assert_eq!(answer.key_id, key.key_id);
        }
        for username in ["anna", "feedkey", "", "FeedKey "] {
            assert_refused(&admin.validate(basic(username, &plaintext)).await, Reason::NotFound, 401);
        }
        let wrong = basic("FeedKey", &plaintext[1..]);
        assert_refused(&admin.validate(wrong).await, Reason::Malformed, 401);
    }

    async fn s7_tenants_are_separate(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        admin.set_tenant(Tenant { tenant_id: "other".to_owned(), ..Tenant::default() }).await;
        let (key, plaintext) = admin.create(key()).await;
        let (elsewhere, other) = admin.create(key_of("other", "anna", &["*"])).await;
        for (tenant, plaintext, allowed) in [
            (TENANT, &plaintext, true),
            ("other", &plaintext, false),
            ("other", &other, true),
            (TENANT, &other, false),
        ] {
            let question = ValidateRequest { tenant_id: tenant.to_owned(), ..ask(plaintext) };
            let answer = admin.validate(question).await;
            if allowed {
                assert!(answer.allowed, "{answer:?}");
            } else {
                assert_refused(&answer, Reason::NotFound, 401);
                assert_eq!(answer.key_id, "", "nothing is told of it");
            }
        }
        // Nor does the limit of one tenant's owner count another's keys.
        assert_eq!(active(&admin).await, [key.key_id]);
        let listed = list(&admin, of_tenant("other")).await.expect("a page");
        assert_eq!(listed.keys, [elsewhere]);
    }
}
