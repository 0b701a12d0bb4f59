//! One fault at a time, and what exactly comes of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use gatekey::api::proto::{EnforcementState, KeyState, Reason};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt as _;

use super::fleet::{Fleet, owners};
use crate::{
    contract_keys::get,
    support::{
        Client,
        client::{ask, until},
        postgres::Stop,
        proxy::Network,
        stored::Stored,
    },
};

/// A lease that no test waits out.
const LONG: Duration = Duration::from_mins(10);
/// The patience of a call that has nothing to wait for.
const PATIENCE: Duration = Duration::from_secs(30);
/// In this time a replica must have come back that nothing is in the way of.
const LONG_ENOUGH: Duration = Duration::from_secs(90);
/// One that is over before a lease is.
const HASTE: Duration = Duration::from_secs(1);

/// What a Validate of a bare key says.
async fn reason(client: &Client, key: &Stored) -> Result<Reason, Status> {
    let answer = client.try_validate(ask(&key.plaintext)).await;
    answer.map(|answer| answer.reason())
}

/// Every replica says this of the key.
async fn all_say(fleet: &Fleet, key: &Stored, expected: Reason) {
    for slot in &fleet.slots {
        if slot.served().is_some() {
            assert_eq!(reason(&slot.client(), key).await.unwrap(), expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_store_memory_answers_for_a_lease_and_with_it_all_is_as_it_was() {
    let lease = Duration::from_secs(2);
    let fleet = Fleet::started(2, lease, &owners(3, 1)).await;
    let [known, revoked, unknown] = &fleet.keys[..] else {
        panic!("three keys were stored")
    };
    let (slot, other) = (&fleet.slots[0], &fleet.slots[1]);
    let (client, pid) = (slot.client(), pid(&fleet, 0).await);
    other.client().revoke_stored(revoked, None).await.unwrap();
    all_say(&fleet, known, Reason::Allowed).await;
    all_say(&fleet, revoked, Reason::Revoked).await;

    for how in [Stop::Immediate, Stop::Fast] {
        fleet.stop_store(how).await;
        let stopped = Instant::now();
        assert_eq!(reason(&client, known).await.unwrap(), Reason::Allowed);
        assert_eq!(
            reason(&client, unknown).await.unwrap_err().code(),
            Code::Unavailable
        );
        let mut last = Duration::ZERO;
        let error = loop {
            let begun = stopped.elapsed();
            match reason(&client, known).await {
                Ok(reason) => assert_eq!(reason, Reason::Allowed),
                Err(error) => break error,
            }
            last = begun;
            sleep(Duration::from_millis(10)).await;
        };
        println!(
            "{how:?}: allowed until {last:?} after the store was lost; the lease is {lease:?}"
        );
        assert!(last < lease, "memory answered after the lease: {last:?}");
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.get_details_retry_info().is_some(), "{error:?}");
        slot.becomes(ServingStatus::NotServing).await;
        for key in [known, revoked] {
            assert_eq!(
                reason(&client, key).await.unwrap_err().code(),
                Code::Unavailable
            );
        }

        fleet.start_store().await;
        let started = Instant::now();
        for slot in &fleet.slots {
            slot.ready().await;
        }
        println!("{how:?}: ready {:?} after the store was", started.elapsed());
        all_say(&fleet, known, Reason::Allowed).await;
        all_say(&fleet, revoked, Reason::Revoked).await;
        assert_eq!(self::pid(&fleet, 0).await, pid, "it was not started again");
    }
    client.revoke_stored(known, None).await.unwrap();
    all_say(&fleet, known, Reason::Revoked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_waits_until_the_lease_of_a_killed_replica_has_run_out() {
    let lease = Duration::from_secs(3);
    let fleet = Fleet::started(3, lease, &owners(2, 1)).await;
    all_say(&fleet, &fleet.keys[0], Reason::Allowed).await;
    kill(&fleet, 2).await;
    let killed = Instant::now();
    let client = fleet.slots[0].client();
    let enforcement = client
        .revoke_stored(&fleet.keys[0], Some(PATIENCE))
        .await
        .unwrap();
    let waited = killed.elapsed();
    println!("enforced {waited:?} after a replica was killed; the lease is {lease:?}");
    assert_eq!(enforcement.state(), EnforcementState::Enforced);
    // Its last renewal was a fifth of a lease before its end, or a little more.
    assert!(
        waited > lease / 2,
        "it may have had its lease for longer: {waited:?}"
    );
    all_say(&fleet, &fleet.keys[0], Reason::Revoked).await;

    // Nobody waits for it any more once its membership has ended.
    while fleet.count("SELECT count(*) FROM replicas").await > 2 {
        sleep(lease / 10).await;
    }
    let enforcement = client
        .revoke_stored(&fleet.keys[1], Some(PATIENCE))
        .await
        .unwrap();
    assert_eq!(enforcement.state(), EnforcementState::Enforced);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_replica_that_was_stopped_in_order() {
    let fleet = Fleet::started(3, LONG, &owners(1, 1)).await;
    let slot = &fleet.slots[2];
    slot.leave(&mut *slot.process.lock().await).stop().await;
    assert_eq!(fleet.count("SELECT count(*) FROM replicas").await, 2);
    let client = fleet.slots[0].client();
    let enforcement = client
        .revoke_stored(&fleet.keys[0], Some(PATIENCE))
        .await
        .unwrap();
    assert_eq!(enforcement.state(), EnforcementState::Enforced);
    all_say(&fleet, &fleet.keys[0], Reason::Revoked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_in_haste_is_told_who_is_waited_for_however_often_it_asks() {
    let fleet = Fleet::started(3, LONG, &owners(1, 1)).await;
    let key = &fleet.keys[0];
    all_say(&fleet, key, Reason::Allowed).await;
    kill(&fleet, 2).await;
    for place in [0, 1, 0] {
        let client = fleet.slots[place].client();
        let pending = client.revoke_stored(key, Some(HASTE)).await.unwrap();
        assert_eq!(pending.state(), EnforcementState::Pending);
        assert_eq!(pending.pending_replica_count, 1);
        let left = until(pending.enforced_before.unwrap());
        assert!(left > LONG / 2 && left < LONG * 2, "{left:?}");
        // It is revoked for ever, whoever waits for whom.
        assert_eq!(get(&client, &key.key_id).await.state(), KeyState::Revoked);
    }
    // Those that can still be reached know.
    for slot in &fleet.slots[..2] {
        while reason(&slot.client(), key).await.unwrap() != Reason::Revoked {
            sleep(HASTE / 100).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_silent_for_a_while_comes_back_by_itself() {
    let lease = Duration::from_secs(1);
    let fleet = Fleet::started(2, lease, &owners(1, 1)).await;
    let (slot, other) = (&fleet.slots[0], &fleet.slots[1]);
    all_say(&fleet, &fleet.keys[0], Reason::Allowed).await;
    fleet.cut(slot, true);
    while fleet.count("SELECT count(*) FROM replicas").await > 1 {
        sleep(lease / 10).await;
    }
    let enforcement = other
        .client()
        .revoke_stored(&fleet.keys[0], None)
        .await
        .unwrap();
    assert_eq!(enforcement.state(), EnforcementState::Enforced);
    let answer = reason(&slot.client(), &fleet.keys[0]).await;
    assert_eq!(answer.unwrap_err().code(), Code::Unavailable);
    fleet.cut(slot, false);
    slot.ready().await;
    all_say(&fleet, &fleet.keys[0], Reason::Revoked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_comes_late_acknowledges_nothing() {
    let lease = Duration::from_secs(4);
    let fleet = Fleet::started(2, lease, &owners(1, 1)).await;
    let (slot, other, key) = (&fleet.slots[0], &fleet.slots[1], &fleet.keys[0]);

    // It is no member any more, and joins; what it sends for that is held up, and it joins again.
    fleet.cut(slot, true);
    while fleet.count("SELECT count(*) FROM replicas").await > 1 {
        sleep(lease / 10).await;
    }
    let late = slot.proxy.hold_after("INSERT INTO replicas");
    fleet.cut(slot, false);
    slot.ready().await;
    assert_eq!(fleet.count("SELECT count(*) FROM replicas").await, 2);
    assert_eq!(reason(&slot.client(), key).await.unwrap(), Reason::Allowed);

    // It hears nothing while the key is revoked, and the first statement arrives.
    slot.proxy.set(Network::Stalled {
        to_store: false,
        to_replica: true,
    });
    let client = other.client();
    let revoking = async {
        let enforcement = client.revoke_stored(key, Some(PATIENCE)).await.unwrap();
        assert_eq!(enforcement.state(), EnforcementState::Enforced);
    };
    let arriving = async {
        while fleet
            .count("SELECT count(*) FROM keys WHERE revoked_at IS NOT NULL")
            .await
            == 0
        {
            sleep(lease / 100).await;
        }
        drop(late);
    };
    tokio::join!(revoking, arriving);
    let answer = reason(&slot.client(), key).await;
    assert_eq!(
        answer.unwrap_err().code(),
        Code::Unavailable,
        "nobody has told it"
    );
    fleet.cut(slot, false);
    slot.ready().await;
    all_say(&fleet, key, Reason::Revoked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_silent_for_ever_are_given_up() {
    const ASKERS: usize = 16;
    const ROUNDS: usize = 400;
    const KEYS: usize = 4000;
    let lease = Duration::from_secs(1);
    let fleet = Arc::new(Fleet::started(1, lease, &owners(KEYS, 1)).await);
    let (slot, client) = (&fleet.slots[0], fleet.slots[0].client());
    let next = Arc::new(AtomicUsize::new(0));
    let mut busy = JoinSet::new();
    for asker in 0..ASKERS {
        let (fleet, client, next) = (Arc::clone(&fleet), client.clone(), Arc::clone(&next));
        busy.spawn(async move {
            loop {
                let key = &fleet.keys[next.fetch_add(1, Ordering::Relaxed) % (KEYS - 1)];
                // A caller that does not wait leaves its call behind.
                let call = async {
                    if asker % 4 == 0 {
                        client.revoke_stored(key, Some(HASTE)).await.ok();
                    } else {
                        reason(&client, key).await.ok();
                    }
                };
                timeout(HASTE, call).await.ok();
            }
        });
    }
    for _ in 0..ROUNDS {
        sleep(HASTE / 20).await;
        slot.proxy.forget();
    }
    busy.shutdown().await;

    let key = &fleet.keys[KEYS - 1];
    let works = async {
        while reason(&client, key).await.ok() != Some(Reason::Allowed) {
            sleep(HASTE / 10).await;
        }
        while client.revoke_stored(key, Some(HASTE)).await.is_err() {
            sleep(HASTE / 10).await;
        }
    };
    let began = Instant::now();
    let recovered = timeout(LONG_ENOUGH, works).await;
    println!("works again after {:?}", began.elapsed());
    assert!(recovered.is_ok(), "it goes on waiting for nobody");
}

/// Kills the process in this place, as a crash would.
async fn kill(fleet: &Fleet, place: usize) {
    let slot = &fleet.slots[place];
    slot.leave(&mut *slot.process.lock().await).kill9();
}

async fn pid(fleet: &Fleet, place: usize) -> u32 {
    let process = fleet.slots[place].process.lock().await;
    process.as_ref().expect("it is there").pid()
}
