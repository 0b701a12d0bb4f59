//! Many tasks that ask about the same keys and change them: every answer is explained by a state that there was while
//! it was asked for, and once a change is enforced no older state explains anything.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use gatekey::api::proto::{
    Enforcement, EnforcementState, Key, Owner, Reason, RevokeKeyRequest, UpdateKeyRequest,
    ValidateRequest,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::client::key_target;
use crate::support::{
    Client, Gatekey,
    client::{ask, new_key, texts, whole_owner},
    on_both_engines,
};

const TASKS: u64 = 16;
/// What each task does, one thing after the other.
const STEPS: usize = 150;
/// One step in so many is a change.
const CHANGES: u32 = 5;
const OWNERS: [&str; 2] = ["alice", "bob"];
const KEYS_AN_OWNER: usize = 2;
const SCOPES: [&str; 3] = ["read", "write", "list"];

/// What the contract says of a key, as far as this test changes it.
#[derive(Clone, Debug, Default)]
struct KeyState {
    owner: usize,
    scopes: Vec<String>,
    suspended: bool,
    revoked: bool,
}

/// The same of an owner's record; there is none at first.
#[derive(Clone, Debug)]
struct OwnerState {
    scopes: Vec<String>,
    suspended: bool,
}

/// All there is at one revision.
#[derive(Clone, Debug, Default)]
struct World {
    keys: Vec<KeyState>,
    owners: [Option<OwnerState>; 2],
}

/// What a change makes of the world.
#[derive(Clone, Debug)]
enum Effect {
    Key(usize, Vec<String>, bool),
    Revoked(usize),
    Owner(usize, OwnerState),
}

/// What was seen, and when, by the tick of one clock.
#[derive(Debug)]
struct Seen<T> {
    ticks: RangeInclusive<u64>,
    what: T,
}

#[derive(Debug)]
struct Change {
    revision: i64,
    effect: Effect,
}

/// A question about a key, and its answer.
#[derive(Debug)]
struct Answer {
    key: usize,
    required: Option<&'static str>,
    reason: Reason,
    scopes: Vec<String>,
}

#[derive(Default)]
struct History {
    changes: Mutex<Vec<Seen<Change>>>,
    answers: Mutex<Vec<Seen<Answer>>>,
    ticks: AtomicU64,
}

impl History {
    fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::SeqCst)
    }
}

impl World {
    fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Key(key, scopes, suspended) => {
                self.keys[*key].scopes.clone_from(scopes);
                self.keys[*key].suspended = *suspended;
            }
            Effect::Revoked(key) => self.keys[*key].revoked = true,
            Effect::Owner(owner, state) => self.owners[*owner] = Some(state.clone()),
        }
    }

    /// The contract's decision, from the wire's point of view.
    fn explains(&self, answer: &Answer) -> bool {
        let key = &self.keys[answer.key];
        let owner = self.owners[key.owner].as_ref();
        let held = |scope: &&String| owner.is_none_or(|owner| owner.scopes.contains(scope));
        let mut scopes: Vec<_> = key.scopes.iter().filter(held).cloned().collect();
        let missing = answer
            .required
            .is_some_and(|required| !scopes.iter().any(|scope| scope == required));
        let reason = if key.revoked {
            Reason::Revoked
        } else if key.suspended {
            Reason::Suspended
        } else if owner.is_some_and(|owner| owner.suspended) {
            Reason::OwnerSuspended
        } else if missing {
            Reason::InsufficientScope
        } else {
            Reason::Allowed
        };
        scopes.sort();
        (reason, &scopes) == (answer.reason, &answer.scopes)
    }
}

on_both_engines! {
    async fn every_answer_is_explained_by_a_state_that_was_while_it_was_asked_for(setup: Setup) {
        // Two replicas where there may be two.
        let (engine, _) = setup.database_url().split_once(':').expect("a URL");
        let mut servers = vec![setup.start().await];
        if engine != "sqlite" {
            servers.push(setup.start().await);
        }
        let admins = connect(&servers).await;
        let (world, keys) = begin(&admins[0]).await;
        let (history, keys) = (Arc::new(History::default()), Arc::new(keys));
        let mut tasks = JoinSet::new();
        for number in 0..TASKS {
            let task = Task {
                admins: admins.clone(),
                keys: Arc::clone(&keys),
                history: Arc::clone(&history),
                random: StdRng::seed_from_u64(number),
            };
            tasks.spawn(task.run());
        }
        tasks.join_all().await;
        let history = Arc::into_inner(history).expect("all tasks have ended");
        check(world, history);
    }
}

/// A caller of each, once it is ready.
async fn connect(servers: &[Gatekey]) -> Vec<Client> {
    let mut admins = Vec::new();
    for server in servers {
        server.wait_for_log(r#""message":"ready""#).await;
        admins.push(server.admin().await);
    }
    admins
}

/// Makes the keys; owners have no record yet.
async fn begin(admin: &Client) -> (World, Vec<(Key, String)>) {
    let (mut world, mut keys) = (World::default(), Vec::new());
    for (owner, name) in OWNERS.into_iter().enumerate() {
        for _ in 0..KEYS_AN_OWNER {
            let mut request = new_key("default", &SCOPES);
            request.owner_id = name.to_owned();
            keys.push(admin.create(request).await);
            world.keys.push(KeyState {
                owner,
                scopes: texts(&SCOPES),
                ..KeyState::default()
            });
        }
    }
    (world, keys)
}

struct Task {
    admins: Vec<Client>,
    keys: Arc<Vec<(Key, String)>>,
    history: Arc<History>,
    random: StdRng,
}

impl Task {
    async fn run(mut self) {
        for step in 0..STEPS {
            let admin = self.admins.choose(&mut self.random).expect("one").clone();
            if self.random.next_u32().is_multiple_of(CHANGES) {
                self.change(&admin, step).await;
            } else {
                self.ask(&admin).await;
            }
        }
    }

    async fn ask(&mut self, admin: &Client) {
        let key = self.random.next_u32() as usize % self.keys.len();
        let required = SCOPES.choose(&mut self.random).copied();
        let required = required.filter(|_| !self.random.next_u32().is_multiple_of(3));
        let request = ValidateRequest {
            required_scopes: required.into_iter().map(str::to_owned).collect(),
            ..ask(&self.keys[key].1)
        };
        let began = self.history.tick();
        let answer = admin.validate(request).await;
        let ticks = began..=self.history.tick();
        let mut answer = Answer {
            key,
            required,
            reason: answer.reason(),
            scopes: answer.scopes,
        };
        answer.scopes.sort();
        let what = answer;
        self.history
            .answers
            .lock()
            .unwrap()
            .push(Seen { ticks, what });
    }

    async fn change(&mut self, admin: &Client, step: usize) {
        let effect = self.effect(step);
        let began = self.history.tick();
        // A revoked key cannot be changed any more.
        let Some((revision, enforcement)) = self.carry_out(admin, &effect).await else {
            return;
        };
        assert_eq!(enforcement.state(), EnforcementState::Enforced);
        let ticks = began..=self.history.tick();
        let what = Change { revision, effect };
        self.history
            .changes
            .lock()
            .unwrap()
            .push(Seen { ticks, what });
    }

    fn effect(&mut self, step: usize) -> Effect {
        let some = |random: &mut StdRng| {
            let some = SCOPES
                .into_iter()
                .filter(|_| random.next_u32().is_multiple_of(2));
            some.map(str::to_owned).collect::<Vec<_>>()
        };
        let suspended = self.random.next_u32().is_multiple_of(4);
        let which = self.random.next_u32() as usize;
        // Late, and only some: what is revoked stays so.
        if step > STEPS * 3 / 4 && which.is_multiple_of(8) {
            return Effect::Revoked(which / 8 % (self.keys.len() - 1));
        }
        let mut scopes = some(&mut self.random);
        if which.is_multiple_of(2) {
            let suspended = suspended && step.is_multiple_of(2);
            return Effect::Owner(which / 2 % OWNERS.len(), OwnerState { scopes, suspended });
        }
        if scopes.is_empty() {
            scopes = texts(&SCOPES);
        }
        Effect::Key(which / 2 % self.keys.len(), scopes, suspended)
    }

    async fn carry_out(&self, admin: &Client, effect: &Effect) -> Option<(i64, Enforcement)> {
        match effect {
            Effect::Key(key, scopes, suspended) => {
                let request = UpdateKeyRequest {
                    key: Some(Key {
                        scopes: scopes.clone(),
                        suspended: Some(*suspended),
                        revision: 0,
                        ..self.keys[*key].0.clone()
                    }),
                    update_mask: Some(prost_types::FieldMask {
                        paths: texts(&["scopes", "suspended"]),
                    }),
                };
                match admin.keys.clone().update_key(request).await {
                    Ok(answer) => {
                        let answer = answer.into_inner();
                        Some((answer.key?.revision, answer.enforcement?))
                    }
                    Err(error) => {
                        assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
                        None
                    }
                }
            }
            Effect::Revoked(key) => {
                let key = &self.keys[*key].0;
                let request = RevokeKeyRequest {
                    tenant_id: key.tenant_id.clone(),
                    target: key_target(key.key_id.clone()),
                    reason: "lost".to_owned(),
                };
                let answer = admin.keys.clone().revoke_key(request).await;
                let answer = answer.expect("a key can be revoked again").into_inner();
                Some((answer.key?.revision, answer.enforcement?))
            }
            Effect::Owner(owner, state) => {
                let request = whole_owner(Owner {
                    tenant_id: "default".to_owned(),
                    owner_id: OWNERS[*owner].to_owned(),
                    scopes: state.scopes.clone(),
                    suspended: Some(state.suspended),
                    ..Owner::default()
                });
                let answer = admin.owners.clone().update_owner(request).await;
                let answer = answer.expect("an owner can be set").into_inner();
                Some((answer.owner?.revision, answer.enforcement?))
            }
        }
    }
}

/// Explains each answer by one of the states there were from the last one that was enforced when it was asked for to the
/// last one that was begun when it came.
fn check(first: World, history: History) {
    let changes = history.changes.into_inner().unwrap();
    let answers = history.answers.into_inner().unwrap();
    let mut states = BTreeMap::from([(0, first.clone())]);
    let mut ordered: Vec<_> = changes.iter().map(|change| &change.what).collect();
    ordered.sort_by_key(|change| change.revision);
    let mut world = first;
    for change in ordered {
        world.apply(&change.effect);
        states.insert(change.revision, world.clone());
    }
    let mut reasons = BTreeMap::<_, u32>::new();
    for Seen {
        ticks,
        what: answer,
    } in &answers
    {
        let last = |changes: &mut dyn Iterator<Item = &Seen<Change>>| {
            changes
                .map(|change| change.what.revision)
                .max()
                .unwrap_or(0)
        };
        let enforced = last(&mut changes.iter().filter(|it| it.ticks.end() < ticks.start()));
        let begun = last(&mut changes.iter().filter(|it| it.ticks.start() < ticks.end()));
        let mut possible = states.range(enforced..=begun.max(enforced));
        assert!(
            possible.any(|(_, state)| state.explains(answer)),
            "at {ticks:?}, revisions {enforced} to {begun}: {answer:?} is explained by none of {:#?}",
            states.range(enforced..=begun).collect::<Vec<_>>(),
        );
        *reasons.entry(answer.reason.as_str_name()).or_default() += 1;
    }
    // Nothing is shown by answers that are all the same.
    assert_eq!(reasons.len(), 5, "{reasons:?}");
}
