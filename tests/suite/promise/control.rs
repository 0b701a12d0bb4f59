//! The positive control: the same checker finds a violation where replicas do not look at their lease.

use std::{sync::Arc, time::Duration};

use gatekey::api::proto::{Enforcement, EnforcementState};
use rustix::process::Signal;
use tokio::{task::JoinSet, time::sleep};

use super::{
    fleet::{Fleet, LEASE, owners},
    history::{Cause, Change, History, Outcome, Violation},
    traffic::Traffic,
};

/// How many keys are revoked, and asked about, while one replica cannot hear of it.
const KEYS: u32 = 8;
const PATIENCE: Duration = LEASE.saturating_mul(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_lease_check_a_replica_that_was_cut_off_breaks_the_promise() {
    let broken = directed(&[("GATEKEY_FAULT", "no-lease-check")]).await;
    let stale = |violation: &Violation| matches!(violation, Violation::Stale { .. });
    assert!(
        broken.violations().iter().any(stale),
        "the checker sees nothing"
    );
    let whole = directed(&[]).await;
    assert!(whole.violations().is_empty(), "{:?}", whole.violations());
}

/// Two replicas; one is cut off, and then one stands still, while the other one revokes what both have in memory.
async fn directed(settings: &[(&str, &str)]) -> History {
    let owners = owners(2, KEYS as usize);
    let traffic = Traffic::new(Fleet::started_with(2, LEASE, &owners, settings).await);
    let slot = &traffic.fleet.slots[0];
    let mut history = History::default();

    warm(&traffic, 0..KEYS, &mut history).await;
    traffic.fleet.cut(slot, true);
    revoke(&traffic, 0..KEYS, &mut history).await;
    for key in 0..KEYS {
        let asked = traffic.ask(0, key, PATIENCE).await;
        history.validations.extend(asked);
    }
    traffic.fleet.cut(slot, false);
    slot.ready().await;

    warm(&traffic, KEYS..2 * KEYS, &mut history).await;
    let process = slot.process.lock().await;
    let process = process.as_ref().expect("it is there");
    process.signal(Signal::STOP);
    revoke(&traffic, KEYS..2 * KEYS, &mut history).await;
    let mut waiting = JoinSet::new();
    for key in KEYS..2 * KEYS {
        let traffic = Arc::clone(&traffic);
        waiting.spawn(async move { traffic.ask(0, key, PATIENCE).await });
    }
    // They are to be at its door when it goes on.
    sleep(LEASE / 10).await;
    process.signal(Signal::CONT);
    for asked in waiting.join_all().await {
        history.validations.extend(asked);
    }
    history
}

/// Both replicas know these keys.
async fn warm(traffic: &Traffic, keys: std::ops::Range<u32>, history: &mut History) {
    for key in keys {
        for place in 0..2 {
            history
                .validations
                .extend(traffic.ask(place, key, PATIENCE).await);
        }
    }
}

/// The second replica revokes these keys, one by one at the same time, and waits until that is enforced.
async fn revoke(traffic: &Arc<Traffic>, keys: std::ops::Range<u32>, history: &mut History) {
    let client = traffic.fleet.slots[1].client();
    let mut revoking = JoinSet::new();
    for key in keys {
        let (traffic, client) = (Arc::clone(traffic), client.clone());
        revoking.spawn(async move {
            let begin = traffic.fleet.now();
            let answer = client
                .revoke_stored(&traffic.fleet.keys[key as usize], None)
                .await;
            let enforcement: Enforcement = answer.expect("it is revoked");
            assert_eq!(enforcement.state(), EnforcementState::Enforced);
            Change {
                keys: vec![key],
                cause: Cause::Revoked,
                widens: false,
                begin,
                end: traffic.fleet.now(),
                outcome: Outcome::Enforced,
            }
        });
    }
    history.changes.extend(revoking.join_all().await);
}
