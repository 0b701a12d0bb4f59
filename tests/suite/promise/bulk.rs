//! All keys of an owner at once.

use std::time::{Duration, Instant};

use gatekey::api::proto::{
    EnforcementState, EventType, ListEventsRequest, Reason, RevokeKeysRequest,
};
use rand::seq::IndexedRandom as _;

use super::fleet::{Fleet, owners};
use crate::support::client::owner_target;

const KEYS: usize = 10_000;
/// How many of them each replica has in memory, and is asked about afterwards.
const SAMPLE: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_keys_of_an_owner_are_revoked_by_one_event_on_all_replicas() {
    let fleet = Fleet::started(3, Duration::from_mins(10), &owners(1, KEYS)).await;
    let sample: Vec<_> = fleet.keys.sample(&mut rand::rng(), SAMPLE).collect();
    let all_say = async |expected| {
        for slot in &fleet.slots {
            for key in &sample {
                assert_eq!(slot.client().reason(&key.plaintext).await, expected);
            }
        }
    };
    all_say(Reason::Allowed).await;

    let client = fleet.slots[0].client();
    let request = RevokeKeysRequest {
        tenant_id: "default".to_owned(),
        target: owner_target(fleet.keys[0].owner_id.clone()),
        ..RevokeKeysRequest::default()
    };
    let asked = Instant::now();
    let answer = client
        .keys
        .clone()
        .revoke_keys(request)
        .await
        .unwrap()
        .into_inner();
    println!(
        "{KEYS} keys: enforced on three replicas in {:?}",
        asked.elapsed()
    );
    assert_eq!(usize::try_from(answer.revoked_count), Ok(KEYS));
    assert_eq!(
        answer.enforcement.unwrap().state(),
        EnforcementState::Enforced
    );
    all_say(Reason::Revoked).await;

    let request = ListEventsRequest {
        owner_id: fleet.keys[0].owner_id.clone(),
        ..ListEventsRequest::default()
    };
    let events = client
        .events
        .clone()
        .list_events(request)
        .await
        .unwrap()
        .into_inner()
        .events;
    let [event] = &events[..] else {
        panic!("one change, one event: {}", events.len())
    };
    assert_eq!(event.r#type(), EventType::KeysRevoked);
    assert_eq!(event.revision, answer.revision);
}
