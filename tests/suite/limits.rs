//! The limit of active keys an owner holds under any number of calls at once.

use std::collections::BTreeSet;

use gatekey::api::proto::{
    CreateKeyRequest, Key, KeyState, ListKeysRequest, OnLimit, Reason, RotateKeyRequest, Tenant,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::{
    contract_admin::list,
    contract_keys::refused,
    contract_rotation::{rotate, rotation},
    support::{Client, client::new_key, on_both_engines},
};

const TENANT: &str = "acme";
const CALLS: usize = 50;
const LIMIT: usize = 3;

on_both_engines! {
    async fn of_fifty_creates_at_once_the_limit_is_let_in_and_the_others_are_told_why(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        limited(&admin, OnLimit::Reject).await;
        let mut made = BTreeSet::new();
        for answer in all_at_once(&admin).await {
            match answer {
                Ok((key, plaintext)) => {
                    assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
                    made.insert(key.key_id);
                }
                deny_reason => drop(refused(deny_reason, Code::FailedPrecondition, "MAX_ACTIVE_KEYS_PER_OWNER")),
            }
        }
        assert_eq!(made.len(), LIMIT);
        assert_eq!(active(&admin).await, made);
    }

    async fn of_fifty_creates_at_once_the_last_ones_replace_all_others(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        limited(&admin, OnLimit::ReplaceOldest).await;
        let mut made = Vec::new();
        for answer in all_at_once(&admin).await {
            made.push(answer.expect("there is room for each"));
        }
        made.sort_by_key(|(key, _)| key.revision);
        let (replaced, kept) = made.split_at(CALLS - LIMIT);
        for (_, plaintext) in replaced {
            assert_eq!(admin.reason(plaintext).await, Reason::Revoked);
        }
        for (_, plaintext) in kept {
            assert_eq!(admin.reason(plaintext).await, Reason::Allowed);
        }
        let kept: BTreeSet<_> = kept.iter().map(|(key, _)| key.key_id.clone()).collect();
        assert_eq!(active(&admin).await, kept);
    }

    async fn successors_count_as_others_do(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        limited(&admin, OnLimit::Reject).await;
        let mut keys = Vec::new();
        for _ in 0..LIMIT {
            keys.push(admin.create(new_key(TENANT, &["a"])).await.0);
        }
        // The old one goes on for a while: that would be one too many …
        let overlapping = RotateKeyRequest {
            overlap: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            ..rotation(&keys[0])
        };
        let answer = rotate(&admin, overlapping).await;
        refused(answer, Code::FailedPrecondition, "MAX_ACTIVE_KEYS_PER_OWNER");
        // … and at once it leaves its place.
        for key in &keys {
            rotate(&admin, rotation(key)).await.expect("it leaves its place");
        }
        assert_eq!(active(&admin).await.len(), LIMIT);
    }
}

async fn limited(admin: &Client, on_limit: OnLimit) {
    let tenant = Tenant {
        tenant_id: TENANT.to_owned(),
        max_active_keys_per_owner: i32::try_from(LIMIT).expect("it is small"),
        on_limit: on_limit.into(),
        ..Tenant::default()
    };
    admin.set_tenant(tenant).await;
}

/// What as many calls are answered that are made at once.
async fn all_at_once(admin: &Client) -> Vec<Result<(Key, String), Status>> {
    let mut calls = JoinSet::new();
    for number in 0..CALLS {
        let admin = admin.clone();
        let request = CreateKeyRequest {
            label: format!("number {number}"),
            ..new_key(TENANT, &["a"])
        };
        calls.spawn(async move {
            let answer = admin.try_create(request).await?;
            Ok((answer.key.expect("a key"), answer.plaintext_key))
        });
    }
    calls.join_all().await
}

/// The ids of the owner's active keys.
async fn active(admin: &Client) -> BTreeSet<String> {
    let request = ListKeysRequest {
        tenant_id: TENANT.to_owned(),
        states: vec![KeyState::Active.into()],
        ..ListKeysRequest::default()
    };
    let page = list(admin, request).await.expect("a page");
    page.keys.into_iter().map(|key| key.key_id).collect()
}
