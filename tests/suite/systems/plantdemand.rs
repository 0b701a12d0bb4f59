//! PlantDemand: users' keys, which can never do more than their users today.

use std::time::Instant;

use gatekey::api::proto::{
    CreateKeyRequest, KeyState, Owner, Reason, RevokeKeysRequest, RotateKeyRequest,
};
use tonic::Code;

use super::{asking, assert_refused, assert_shown_once, defined, ids, key_of, may, of_tenant};
use crate::support::client::owner_target;
use crate::{
    contract_admin::list,
    contract_keys::{get, later, refused, sealed, span, with_other_end},
    contract_rotation::{rotate, rotation},
    contract_validate::until_expired,
    listing::{self, MANY, Others, create_many},
    support::{
        Client,
        client::{ask, bad_fields, texts},
        on_both_engines,
    },
};

const PRODUCT: &str = "PlantDemand";
const TENANT: &str = "plantdemand";

fn key(scopes: &[&str]) -> CreateKeyRequest {
    key_of(TENANT, "dana", scopes)
}

/// Gives the user these permissions, as PlantDemand's backend does when they change.
async fn permit(admin: &Client, scopes: &[&str]) {
    let owner = Owner {
        tenant_id: TENANT.to_owned(),
        owner_id: "dana".to_owned(),
        scopes: texts(scopes),
        ..Owner::default()
    };
    admin.set_owner(owner).await;
}

on_both_engines! {
    async fn p1_a_key_has_a_description_an_end_or_none_and_permissions(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let request = CreateKeyRequest {
            description: "nightly import of orders\nasked for by Dana".to_owned(),
            ..key(&["view_orders", "edit_orders"])
        };
        let (lasting, _) = admin.create(request.clone()).await;
        assert_eq!(lasting.description, request.description);
        assert_eq!(lasting.scopes, request.scopes);
        assert_eq!(lasting.expires_at, None);
        let ending = CreateKeyRequest { expires_at: later(lasting.created_at, 86_400), ..request };
        let (ending, _) = admin.create(ending).await;
        assert_eq!(ending.expires_at, later(lasting.created_at, 86_400));
        for key in [lasting, ending] {
            assert_eq!(get(&admin, &key.key_id).await, key);
        }
        refused(admin.try_create(key(&["view_secrets"])).await, Code::FailedPrecondition, "SCOPE_CATALOG");
    }

    async fn p2_the_value_is_shown_once(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        assert_shown_once(&admin, key(&["view_orders"])).await;
    }

    async fn p3_a_key_can_never_do_what_its_user_cannot(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (_, plaintext) = admin.create(key(&["view_orders", "view_reports"])).await;
        let answer = admin.validate(asking(&plaintext, &["view_orders", "view_reports"])).await;
        assert_refused(&answer, Reason::InsufficientScope, 403);
        assert_eq!(answer.missing_scopes, ["view_reports"]);
        assert_eq!(answer.scopes, ["view_orders"]);
        // Nor what the user can and the key was not made for.
        assert_eq!(may(&admin, &plaintext, "edit_orders").await, Reason::InsufficientScope);
        assert_eq!(may(&admin, &plaintext, "view_orders").await, Reason::Allowed);
        // A user whom nobody has put holds no keys at all.
        let unknown = admin.try_create(key_of(TENANT, "nobody", &["view_orders"])).await;
        refused(unknown, Code::FailedPrecondition, "REQUIRE_OWNER");
    }

    async fn p4_permission_changes_are_live_in_both_directions(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let mut keys = Vec::new();
        for _ in 0..3 {
            keys.push(admin.create(key(&["view_orders", "edit_orders"])).await.1);
        }
        for _ in 0..5 {
            permit(&admin, &["view_orders"]).await;
            for key in &keys {
                assert_eq!(may(&admin, key, "edit_orders").await, Reason::InsufficientScope);
                assert_eq!(may(&admin, key, "view_orders").await, Reason::Allowed);
            }
            permit(&admin, &["view_orders", "edit_orders"]).await;
            for key in &keys {
                assert_eq!(may(&admin, key, "edit_orders").await, Reason::Allowed);
            }
        }
        permit(&admin, &[]).await;
        for key in &keys {
            assert_eq!(may(&admin, key, "view_orders").await, Reason::InsufficientScope);
        }
    }

    async fn p5_no_date_never_expires_and_any_future_time_is_accepted(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (lasting, plaintext) = admin.create(key(&["view_orders"])).await;
        assert_eq!(admin.validate(ask(&plaintext)).await.expires_at, None);
        // The last second of the year 9999, and the next but one second of now.
        let last = Some(prost_types::Timestamp { seconds: 253_402_300_799, nanos: 0 });
        let soon = later(lasting.created_at, 2);
        let (mut far, mut near) = (key(&["view_orders"]), key(&["view_orders"]));
        (far.expires_at, near.expires_at) = (last, soon);
        let (far, far_text) = admin.create(far).await;
        let (near, near_text) = admin.create(near).await;
        assert_eq!((far.expires_at, near.expires_at), (last, soon));
        until_expired(&admin, &near_text).await;
        for plaintext in [&far_text, &plaintext] {
            assert_eq!(admin.reason(plaintext).await, Reason::Allowed);
        }
        let past = CreateKeyRequest { expires_at: lasting.created_at, ..key(&["view_orders"]) };
        let error = admin.try_create(past).await.expect_err("that is over");
        assert_eq!(bad_fields(&error), ["expires_at"]);
    }

    async fn p6_three_kinds_of_refusal_are_told_apart(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (_, plaintext) = admin.create(key(&["view_orders"])).await;
        let (deleted, deleted_text) = admin.create(key(&["view_orders"])).await;
        let ending = CreateKeyRequest { ttl: span(1), ..key(&["view_orders"]) };
        let (_, expired) = admin.create(ending).await;
        admin.revoke(&deleted, "deleted").await;
        until_expired(&admin, &expired).await;

        let wrong = sealed(&with_other_end(&plaintext[..plaintext.len() - 6]));
        let typo = with_other_end(&plaintext);
        for (presented, reason) in [
            (&expired, Reason::Expired),
            (&wrong, Reason::NotFound),
            (&typo, Reason::Malformed),
            (&deleted_text, Reason::Revoked),
        ] {
            assert_refused(&admin.validate(ask(presented)).await, reason, 401);
        }
        let answer = admin.validate(asking(&plaintext, &["edit_orders"])).await;
        assert_refused(&answer, Reason::InsufficientScope, 403);
        for pasted in [format!("{plaintext} "), format!(" {plaintext}"), format!("{plaintext}\n")] {
            assert_eq!(admin.reason(&pasted).await, Reason::Allowed);
        }
    }

    async fn p7_ten_thousand_keys_of_one_owner_are_created_listed_and_revoked(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let request = key(&["view_orders"]);
        let started = Instant::now();
        let created = create_many(&admin, &request).await;
        println!("{MANY} keys were created in {:.1?}", started.elapsed());
        assert_eq!(created.len(), MANY, "each key has a revision of its own");

        let mut others = Others::start(admin.clone(), request.clone());
        let started = Instant::now();
        let (mut listed, mut page_token) = (Vec::new(), String::new());
        loop {
            others.one_more().await;
            let (page, next) = listing::list(&admin, TENANT, 1000, page_token).await;
            listed.extend(page);
            if next.is_empty() {
                break;
            }
            page_token = next;
        }
        let meanwhile = others.stop().await;
        println!("{} keys were listed in {:.1?}, {} having been created meanwhile",
            listed.len(), started.elapsed(), meanwhile.len());
        let newest_first = listed.is_sorted_by(|newer, older| newer.revision > older.revision);
        assert!(newest_first, "each key is older than the one before it, and so none is there twice");
        let listed: Vec<_> = ids(&listed).into_iter().filter(|id| !meanwhile.contains(*id)).collect();
        let newest_first: Vec<_> = created.values().rev().map(|made| &*made.key_id).collect();
        assert!(listed == newest_first, "{} keys were listed of {MANY}", listed.len());

        let all = RevokeKeysRequest {
            tenant_id: TENANT.to_owned(),
            target: owner_target("dana".to_owned()),
            ..RevokeKeysRequest::default()
        };
        let answer = admin.keys.clone().revoke_keys(all).await.expect("they are revoked").into_inner();
        assert_eq!(usize::try_from(answer.revoked_count).expect("a count"), MANY + meanwhile.len());
        for made in created.values().step_by(MANY / 100) {
            assert_eq!(admin.reason(&made.plaintext).await, Reason::Revoked);
        }
        let active = gatekey::api::proto::ListKeysRequest {
            states: vec![KeyState::Active.into()],
            ..of_tenant(TENANT)
        };
        assert_eq!(list(&admin, active).await.expect("a page").keys, []);
        let (_, another) = admin.create(key(&["edit_orders"])).await;
        assert_eq!(may(&admin, &another, "edit_orders").await, Reason::Allowed);
    }

    async fn p8_a_key_is_replaced_before_it_expires_and_the_old_one_deleted(setup: Setup) {
        let (_server, admin) = defined(&setup, PRODUCT).await;
        let (old, old_text) = admin.create(CreateKeyRequest { ttl: span(86_400), ..key(&["view_orders"]) }).await;
        let overlapping = RotateKeyRequest { overlap: span(3600), ..rotation(&old) };
        let answer = rotate(&admin, overlapping).await.expect("it is replaced");
        let (new, new_text) = (answer.key.expect("a key"), answer.plaintext_key);
        assert_eq!((&new.scopes, &new.owner_id, &new.rotated_from), (&old.scopes, &old.owner_id, &old.key_id));
        for plaintext in [&old_text, &new_text] {
            assert_eq!(may(&admin, plaintext, "view_orders").await, Reason::Allowed);
        }
        admin.revoke(&old, "moved over").await;
        assert_eq!(admin.reason(&old_text).await, Reason::Revoked);
        assert_eq!(may(&admin, &new_text, "view_orders").await, Reason::Allowed);
    }
}
