//! Who validates and who changes, all the time, and writes down what was answered.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use gatekey::api::proto::{
    DeleteOwnerRequest, Enforcement, EnforcementState, Key, Owner, Reason, RevokeKeyRequest,
    RevokeKeysRequest, UpdateKeyRequest, ValidateRequest, ValidateResponse,
};
use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{Code, Request, Status};

use super::{
    fleet::{Fleet, LEASE},
    history::{Answer, Cause, Change, History, Outcome, Validation},
};
use crate::support::client::{key_target, owner_target};
use crate::support::{
    Client,
    client::{ask, texts, until, whole_owner},
};

/// How many keys one owner has; what is done to them is done by one worker.
pub const KEYS_AN_OWNER: usize = 4;
/// Keys of these first owners are never narrowed by anybody.
pub const STEADY_OWNERS: usize = 4;
/// How long a key is asked about after the last change to it.
const LINGER: Duration = LEASE.saturating_mul(3);
/// How long a process must have been cut off before nothing of the store can be on its way to it.
const CUT_FOR_CERTAIN: Duration = Duration::from_millis(100);
const REQUIRED: &str = "jobs:read";

/// What all of them share.
pub struct Traffic {
    pub fleet: Fleet,
    /// What is asked about now.
    hot: RwLock<Vec<u32>>,
    next_owner: AtomicUsize,
    history: Mutex<History>,
    done: AtomicBool,
}

/// Asks about these keys in one call, and gives what was answered about the last one.
async fn decide_last(
    client: &Client,
    mut questions: Vec<ValidateRequest>,
    deadline: Duration,
) -> Result<ValidateResponse, Status> {
    if questions.len() == 1 {
        let mut request = Request::new(questions.remove(0));
        request.set_timeout(deadline);
        let answer = client.keys.clone().validate(request).await?;
        return Ok(answer.into_inner());
    }
    let results = client.batch(questions).await?;
    results.into_iter().next_back().expect("one result an item")
}

impl Traffic {
    pub fn new(fleet: Fleet) -> Arc<Traffic> {
        let steady = (STEADY_OWNERS * KEYS_AN_OWNER).try_into().expect("few");
        Arc::new(Traffic {
            fleet,
            hot: RwLock::new((0..steady).collect()),
            next_owner: AtomicUsize::new(STEADY_OWNERS),
            history: Mutex::default(),
            done: AtomicBool::new(false),
        })
    }

    /// All that happened so far.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().expect("no panic")
    }

    /// Everybody is to come to an end.
    pub fn finish(&self) {
        self.done.store(true, Ordering::SeqCst);
    }

    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

    /// Asks one place about keys that are talked about, until all is done.
    pub async fn validate(self: Arc<Self>, place: usize, pause: Duration, mut rng: StdRng) {
        while !self.is_done() {
            let key = *self.hot().choose(&mut rng).expect("there are steady keys");
            // Some wait for a replica that is paused, and are there when it goes on.
            let deadline = *[LEASE / 10, LEASE, LEASE * 6]
                .choose(&mut rng)
                .expect("there are three");
            let asked = self.ask(place, key, deadline).await;
            let decided = asked.as_ref().is_some_and(|validation| {
                matches!(validation.answer, Answer::Allowed | Answer::Refused(_))
            });
            self.history().validations.extend(asked);
            sleep(if decided { pause } else { pause * 4 }).await;
        }
    }

    /// Asks the process in this place about a key, if there is one.
    pub async fn ask(&self, place: usize, key: u32, deadline: Duration) -> Option<Validation> {
        let slot = &self.fleet.slots[place];
        let served = slot.served()?;
        let question = |key: u32| ValidateRequest {
            required_scopes: texts(&[REQUIRED]),
            ..ask(&self.fleet.keys[key as usize].plaintext)
        };
        // Every other key is asked about in a batch, after one that is asked about alone.
        let questions = match key % 2 {
            0 => vec![question(key)],
            _ => vec![question(key - 1), question(key)],
        };

        let cut = slot.cut_since();
        let begin = self.fleet.now();
        let answer = timeout(deadline, decide_last(&served.client, questions, deadline)).await;
        let end = self.fleet.now();
        let cut_off = cut.is_some_and(|since| since + CUT_FOR_CERTAIN < begin);
        Some(Validation {
            key,
            process: served.process,
            begin,
            end,
            answer: match answer {
                Err(_) => Answer::None,
                Ok(Ok(told)) => match told.reason() {
                    Reason::Allowed => Answer::Allowed,
                    reason => Answer::Refused(reason),
                },
                Ok(Err(status)) if is_local(&status) => Answer::None,
                Ok(Err(status)) => Answer::ValidateError(status.code()),
            },
            cut_off: cut_off && slot.cut_since() == cut,
        })
    }

    /// Takes one owner after the other, and does to its keys what can be done, until all is done.
    pub async fn change(self: Arc<Self>, mut rng: StdRng) {
        let mut worker = Worker {
            traffic: Arc::clone(&self),
            probes: JoinSet::new(),
        };
        while !self.is_done() {
            let owner = self.next_owner.fetch_add(1, Ordering::Relaxed);
            let first = owner * KEYS_AN_OWNER;
            if first + KEYS_AN_OWNER > self.fleet.keys.len() {
                break;
            }
            let keys: Vec<_> = (first..first + KEYS_AN_OWNER)
                .map(|key| u32::try_from(key).expect("few"))
                .collect();
            self.hot.write().expect("no panic").extend(&keys);
            worker.probe(&keys, LEASE / 2);
            sleep(Duration::from_millis(rng.random_range(20..200))).await;
            worker.live(&keys, &mut rng).await;
            tokio::spawn(Arc::clone(&self).forget(keys));
        }
        worker.probes.join_all().await;
    }

    async fn forget(self: Arc<Self>, keys: Vec<u32>) {
        sleep(LINGER).await;
        let mut hot = self.hot.write().expect("no panic");
        hot.retain(|key| !keys.contains(key));
    }

    /// The keys that are asked about now.
    pub fn hot(&self) -> Vec<u32> {
        self.hot.read().expect("no panic").clone()
    }
}

/// One who changes what keys may do.
struct Worker {
    traffic: Arc<Traffic>,
    probes: JoinSet<()>,
}

/// A change as it is called.
#[derive(Clone)]
enum Call {
    Revoke(u32),
    RevokeAll(u32),
    Suspend(u32, bool),
    /// The owner of this key, and what it may do now.
    Owner(u32, Owner),
    /// Deletes the owner of this key, and revokes its keys.
    DeleteOwner(u32),
}

impl Worker {
    /// All that happens to the keys of one owner.
    async fn live(&mut self, keys: &[u32], rng: &mut StdRng) {
        let all = || keys.to_vec();
        match rng.random_range(0..10) {
            0..5 => {
                for &key in keys {
                    self.narrow(Cause::Revoked, vec![key], Call::Revoke(key), rng)
                        .await;
                }
            }
            5 => {
                self.narrow(Cause::Revoked, all(), Call::RevokeAll(keys[0]), rng)
                    .await;
            }
            6..8 => {
                let key = keys[0];
                for _ in 0..3 {
                    let suspend = Call::Suspend(key, true);
                    let resume = Call::Suspend(key, false);
                    if !self.narrow(Cause::Suspended, vec![key], suspend, rng).await
                        || !self.widen(Cause::Suspended, vec![key], resume, rng).await
                    {
                        return;
                    }
                    self.probe(&[key], LEASE);
                }
                self.narrow(Cause::Revoked, vec![key], Call::Revoke(key), rng)
                    .await;
            }
            _ => {
                for _ in 0..2 {
                    let suspended = rng.random();
                    let scopes: &[&str] = if suspended { &["*"] } else { &["jobs:write"] };
                    let narrow = Call::Owner(keys[0], owner(suspended, scopes));
                    let wide = owner(false, &["jobs:*", "reports:read"]);
                    if !self.narrow(Cause::Owner, all(), narrow, rng).await
                        || !self
                            .widen(Cause::Owner, all(), Call::Owner(keys[0], wide), rng)
                            .await
                    {
                        return;
                    }
                    self.probe(keys, LEASE);
                }
                let end = if rng.random() {
                    Call::RevokeAll(keys[0])
                } else {
                    Call::DeleteOwner(keys[0])
                };
                self.narrow(Cause::Revoked, all(), end, rng).await;
            }
        }
    }

    /// Narrows what these keys may do, and repeats it until it is known to be done, or all is.
    async fn narrow(&mut self, cause: Cause, keys: Vec<u32>, call: Call, rng: &mut StdRng) -> bool {
        loop {
            let outcome = self
                .carry_out(cause, keys.clone(), call.clone(), false, rng)
                .await;
            let again = match outcome {
                Outcome::Enforced => {
                    self.probe(&keys, LEASE * 6);
                    // What is done already waits just the same.
                    rng.random_ratio(1, 8)
                }
                Outcome::Pending(_) => rng.random(),
                Outcome::Unknown => true,
            };
            if !again || self.traffic.is_done() {
                return outcome != Outcome::Unknown;
            }
        }
    }

    /// Widens what these keys may do, and says whether that is known to be done.
    async fn widen(&mut self, cause: Cause, keys: Vec<u32>, call: Call, rng: &mut StdRng) -> bool {
        let outcome = self.carry_out(cause, keys, call, true, rng).await;
        sleep(Duration::from_millis(rng.random_range(0..100))).await;
        outcome != Outcome::Unknown
    }

    async fn carry_out(
        &mut self,
        cause: Cause,
        keys: Vec<u32>,
        call: Call,
        widens: bool,
        rng: &mut StdRng,
    ) -> Outcome {
        let fleet = &self.traffic.fleet;
        let slot = fleet.slots.choose(rng).expect("there are places");
        let deadline = match rng.random_range(0..10) {
            0..2 => LEASE.mul_f64(rng.random_range(0.1..0.9)),
            2 => LEASE,
            _ => LEASE * 4,
        };
        let Some(served) = slot.served() else {
            sleep(Duration::from_millis(20)).await;
            return Outcome::Unknown; // it was not called: that is no change
        };
        let begin = fleet.now();
        let call = self.call(&served.client, &call, deadline);
        let answer = timeout(deadline, call).await;
        let end = fleet.now();
        let outcome = match answer {
            Ok(Ok(enforcement)) => match enforcement.state() {
                EnforcementState::Enforced => Outcome::Enforced,
                EnforcementState::Pending => {
                    // The clock of the test last: too late does no harm.
                    let left = until(enforcement.enforced_before.expect("a time"));
                    Outcome::Pending(fleet.now() + left)
                }
                EnforcementState::Unspecified => panic!("no state: {enforcement:?}"),
            },
            Ok(Err(status)) => {
                let excused = is_local(&status)
                    || matches!(
                        status.code(),
                        Code::Unavailable
                            | Code::ResourceExhausted
                            | Code::DeadlineExceeded
                            | Code::Cancelled
                    );
                assert!(excused, "a change is refused without a cause: {status:?}");
                sleep(Duration::from_millis(20)).await;
                Outcome::Unknown
            }
            Err(_) => Outcome::Unknown,
        };
        self.traffic.history().changes.push(Change {
            keys,
            cause,
            widens,
            begin,
            end,
            outcome,
        });
        outcome
    }

    async fn call(
        &self,
        client: &Client,
        call: &Call,
        deadline: Duration,
    ) -> Result<Enforcement, Status> {
        fn request<T>(message: T, deadline: Duration) -> Request<T> {
            let mut request = Request::new(message);
            request.set_timeout(deadline);
            request
        }
        let key = |key: u32| &self.traffic.fleet.keys[key as usize];
        let (mut keys, mut owners) = (client.keys.clone(), client.owners.clone());
        let tenant_id = || "default".to_owned();
        let enforcement = match call {
            Call::Revoke(number) => {
                let revoke = RevokeKeyRequest {
                    tenant_id: tenant_id(),
                    target: key_target(key(*number).key_id.clone()),
                    reason: String::new(),
                };
                let answer = keys.revoke_key(request(revoke, deadline)).await?;
                answer.into_inner().enforcement
            }
            Call::RevokeAll(number) => {
                let revoke = RevokeKeysRequest {
                    tenant_id: tenant_id(),
                    target: owner_target(key(*number).owner_id.clone()),
                    ..RevokeKeysRequest::default()
                };
                let answer = keys.revoke_keys(request(revoke, deadline)).await?;
                answer.into_inner().enforcement
            }
            Call::Suspend(number, suspended) => {
                let update = UpdateKeyRequest {
                    key: Some(Key {
                        key_id: key(*number).key_id.clone(),
                        suspended: Some(*suspended),
                        ..Key::default()
                    }),
                    update_mask: Some(prost_types::FieldMask {
                        paths: texts(&["suspended"]),
                    }),
                };
                let answer = keys.update_key(request(update, deadline)).await?;
                answer.into_inner().enforcement
            }
            Call::Owner(number, owner) => {
                let set = whole_owner(Owner {
                    tenant_id: tenant_id(),
                    owner_id: key(*number).owner_id.clone(),
                    ..owner.clone()
                });
                let answer = owners.update_owner(request(set, deadline)).await?;
                answer.into_inner().enforcement
            }
            Call::DeleteOwner(number) => {
                let delete = DeleteOwnerRequest {
                    tenant_id: tenant_id(),
                    owner_id: key(*number).owner_id.clone(),
                    revoke_keys: true,
                };
                match owners.delete_owner(request(delete, deadline)).await {
                    // An earlier try was carried out, and its answer lost. RevokeKeys waits for it.
                    Err(status) if status.code() == Code::NotFound => {
                        let revoke = Call::RevokeAll(*number);
                        return Box::pin(self.call(client, &revoke, deadline)).await;
                    }
                    answer => answer?.into_inner().enforcement,
                }
            }
        };
        Ok(enforcement.expect("every change says whether it is enforced"))
    }

    /// Asks every place about these keys, and goes on meanwhile.
    fn probe(&mut self, keys: &[u32], deadline: Duration) {
        while let Some(probed) = self.probes.try_join_next() {
            probed.expect("a probe ends");
        }
        for place in 0..self.traffic.fleet.slots.len() {
            for &key in keys {
                let traffic = Arc::clone(&self.traffic);
                self.probes.spawn(async move {
                    let asked = traffic.ask(place, key, deadline).await;
                    traffic.history().validations.extend(asked);
                });
            }
        }
    }
}

fn owner(suspended: bool, scopes: &[&str]) -> Owner {
    Owner {
        suspended: Some(suspended),
        scopes: texts(scopes),
        ..Owner::default()
    }
}

/// Whether a status is of the client's own making: no server has sent it.
fn is_local(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}
