//! Revoked means revoked: three real replicas on one PostgreSQL, and all that can go wrong between them.
//!
//! Clients validate and change keys all the time and write down what they were answered; a checker reads it. The test
//! goes on for `GATEKEY_PROMISE_SECONDS` (60), and until enough was asked. `GATEKEY_PROMISE_SEED` repeats the faults
//! of an earlier run in kind and order; what the processes make of them is never quite the same.

mod bulk;
mod control;
mod fault;
mod fleet;
mod history;
mod outage;
mod pooler;
mod traffic;

use std::{collections::HashSet, env, sync::Arc, time::Duration};

use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::Mutex,
    task::{JoinSet, block_in_place},
    time::sleep,
};
use tonic::Code;

use self::{
    fault::{Fault, go_wrong},
    fleet::{Fleet, LEASE, owners},
    history::{Answer, Change, History, Outcome},
    traffic::{KEYS_AN_OWNER, Traffic},
};

const REPLICAS: usize = 3;
/// One more, for those that join and leave.
const PLACES: usize = REPLICAS + 1;
/// How many ask each replica at once, and how long each rests after an answer.
const ASKERS: usize = 8;
const REST: Duration = Duration::from_millis(5);
const WORKERS: usize = 20;
/// How many things go wrong at the same time.
const FAULTS: usize = 2;

const VALIDATIONS: usize = 100_000;
const REVOCATIONS: usize = 500;
/// Not even the slowest machine needs this many times the time that was asked for.
const PATIENCE: u32 = 10;
/// How many owners' keys are used up in a second, at most.
const OWNERS_A_SECOND: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_answered_by_what_was_true_before_a_change_was_enforced() {
    let seconds = number("GATEKEY_PROMISE_SECONDS").unwrap_or(60);
    let seed = number("GATEKEY_PROMISE_SEED").unwrap_or_else(rand::random);
    println!("GATEKEY_PROMISE_SECONDS={seconds} GATEKEY_PROMISE_SEED={seed}");

    let count = usize::try_from(seconds).expect("not that many") * OWNERS_A_SECOND;
    let owners = owners(count, KEYS_AN_OWNER);
    let fleet = Fleet::make(PLACES, LEASE, &owners).await;
    for slot in &fleet.slots[..REPLICAS] {
        slot.start().await;
    }
    let traffic = Traffic::new(fleet);
    run(&traffic, Duration::from_secs(seconds), seed).await;

    {
        let history = traffic.history();
        let violations = history.violations();
        for violation in violations.iter().take(20) {
            println!("{violation}");
        }
        assert!(violations.is_empty(), "{} violations", violations.len());
        for (branch, count, _) in branches(&history) {
            println!("{count:>8} {branch}");
        }
        assert_eq!(missing(&history), [""; 0], "too few of these");
    }
    assert_agreement(&traffic).await;
}

/// All that happens in this time; and longer, until nothing is missing from it.
async fn run(traffic: &Arc<Traffic>, time: Duration, seed: u64) {
    let mut seeds = StdRng::seed_from_u64(seed);
    let mut rng = || StdRng::from_rng(&mut seeds);
    let mut tasks = JoinSet::new();
    let store = Arc::new(Mutex::new(()));
    for _ in 0..FAULTS {
        tasks.spawn(go_wrong(Arc::clone(traffic), Arc::clone(&store), rng()));
    }
    for _ in 0..WORKERS {
        tasks.spawn(Arc::clone(traffic).change(rng()));
    }
    for asker in 0..ASKERS * PLACES {
        tasks.spawn(Arc::clone(traffic).validate(asker % PLACES, REST, rng()));
    }
    loop {
        sleep(LEASE * 2).await;
        let now = traffic.fleet.now();
        let broken = tasks.try_join_next();
        assert!(broken.is_none(), "a task ended early: {broken:?}");
        let whole = || block_in_place(|| missing(&traffic.history()).is_empty());
        if now > time && (now > time * PATIENCE || whole()) {
            break;
        }
    }
    traffic.finish();
    tasks.join_all().await;
}

/// What happened too seldom to have been tested.
fn missing(history: &History) -> Vec<&'static str> {
    let branches = branches(history).into_iter();
    let few = branches.filter(|(_, count, least)| count < least);
    few.map(|(branch, ..)| branch).collect()
}

/// What is to happen, how often it did, and how often it must.
fn branches(history: &History) -> [(&'static str, usize, usize); 13] {
    let validations = &history.validations;
    let count = |answers: fn(&Answer) -> bool| {
        let asked = validations.iter();
        asked.filter(|asked| answers(&asked.answer)).count()
    };
    let mut asked = HashSet::new();
    let mut in_order: Vec<_> = validations.iter().collect();
    in_order.sort_unstable_by_key(|validation| validation.begin);
    // A process that had not been asked about a key before had it from the store.
    let from_store = in_order.iter().filter(|validation| {
        asked.insert((validation.process, validation.key)) && validation.answer == Answer::Allowed
    });
    let from_store = from_store.count();
    let from_memory = validations
        .iter()
        .filter(|asked| asked.cut_off && asked.answer == Answer::Allowed);
    let narrowed: Vec<_> = history
        .changes
        .iter()
        .filter(|change| !change.widens)
        .collect();
    let took = |change: &Change| change.end.saturating_sub(change.begin);
    let enforced = |wanted: &dyn Fn(Duration) -> bool| {
        let enforced = narrowed
            .iter()
            .filter(|change| change.outcome == Outcome::Enforced);
        enforced.filter(|change| wanted(took(change))).count()
    };
    let pending = narrowed
        .iter()
        .filter(|change| matches!(change.outcome, Outcome::Pending(_)));
    let faults = Fault::ALL.iter();
    let kinds = faults.filter(|fault| history.faults.contains(fault));
    [
        ("validations", validations.len(), VALIDATIONS),
        ("allowed", count(|answer| *answer == Answer::Allowed), 1),
        (
            "refused",
            count(|answer| matches!(answer, Answer::Refused(_))),
            1,
        ),
        (
            "unavailable",
            count(|answer| *answer == Answer::ValidateError(Code::Unavailable)),
            1,
        ),
        (
            "without an answer",
            count(|answer| *answer == Answer::None),
            1,
        ),
        ("allowed from memory while cut off", from_memory.count(), 1),
        ("allowed from the store", from_store, 1),
        ("enforced", enforced(&|_| true), REVOCATIONS),
        ("enforced at once", enforced(&|took| took < LEASE / 4), 1),
        (
            "enforced after a lease",
            enforced(&|took| took >= LEASE / 2),
            1,
        ),
        ("pending", pending.count(), 1),
        ("faults", history.faults.len(), Fault::ALL.len()),
        ("kinds of faults", kinds.count(), Fault::ALL.len()),
    ]
}

/// Asserts that, once nothing goes wrong any more, all replicas come to say what one says that has nothing in memory.
async fn assert_agreement(traffic: &Traffic) {
    const ATTEMPTS: usize = 20;
    for slot in &traffic.fleet.slots[..REPLICAS] {
        slot.ready().await;
    }
    traffic.fleet.slots[REPLICAS].start().await;
    traffic.fleet.slots[REPLICAS].ready().await;
    let mut differ = Vec::new();
    for _ in 0..ATTEMPTS {
        differ.clear();
        for key in traffic.hot() {
            let mut answers = Vec::new();
            for place in 0..PLACES {
                let asked = traffic.ask(place, key, LEASE * 6).await;
                answers.push(asked.expect("all are there").answer);
            }
            if answers.iter().any(|answer| *answer != answers[REPLICAS]) {
                differ.push((key, answers));
            }
        }
        if differ.is_empty() {
            return;
        }
        sleep(LEASE).await;
    }
    panic!("replicas go on to differ: {differ:?}");
}

/// What a variable of the environment says.
fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable}={value} is no number")))
}
