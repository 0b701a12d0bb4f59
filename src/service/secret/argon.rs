//! Argon2id on a bounded pool: its memory use is fixed, and a flood of hashes cannot starve other
//! work.
//!
//! The pool runs one hash fewer than there are cores, so that one core is left to validation. Each
//! hash reuses the memory of earlier ones. A bounded number of hashes wait, in one lane for each
//! purpose, so that neither unknown callers nor issuers starve the others.

use std::{
    fmt,
    ops::RangeInclusive,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use opentelemetry::trace::SpanKind;
use password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use rand::RngExt as _;
use rustix::{
    process::nice,
    time::{ClockId, clock_gettime},
};
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::{
    Busy,
    requester::{PURPOSES, Requester},
};
use crate::{
    domain::caller::Principal,
    metrics,
    service::fair_queue::{Bounds, FairQueue, Load},
};

/// Minimum memory cost of a hash. An attacker who can write to the database would choose a stored
/// hash with a lower cost.
const MEMORY_KIB_MIN: u32 = 1024;

const SALT_LENGTH: usize = Salt::RECOMMENDED_LENGTH;

/// Maximum cost of a hash, because imported rows have their own parameters.
const MEMORY_KIB_MAX: u32 = 64 * 1024;
const PASSES_MAX: u32 = 8;
const LANES_MAX: u32 = 4;
/// Minimum length of a stored hash in bytes, because a shorter one could be matched by chance.
const HASH_LENGTH_MIN: usize = 16;

/// Niceness that is added to hashing threads, so that the scheduler prefers all other work.
const BEHIND: i32 = 10;
/// Scheduling policy of a hashing thread while there is spare CPU time: the thread yields a core at
/// once. With niceness only, it would keep the core for a time slice, which is longer than most
/// Validate calls. Without spare CPU time, this policy would starve the thread.
const IDLE: ThreadSchedulePolicy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
/// There is spare CPU time while a hash takes at most this many times its own CPU time.
const ROOM: u32 = 3;

/// Maximum number of waiting hashes in each lane, for each core.
const WAITING_PER_CORE: usize = 128;
/// Maximum number of waiting hashes of one requester.
const WAITING_EACH: usize = 128;

/// The cost of an Argon2id hash. Text form: `m=<KiB>,t=<passes>,p=<lanes>`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashCost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// OWASP's first choice for Argon2id: 19 MiB, two passes, one lane.
impl Default for HashCost {
    fn default() -> Self {
        Self {
            memory_kib: 19 * 1024,
            passes: 2,
            lanes: 1,
        }
    }
}

/// A text that is not a [`HashCost`], or one outside the bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "must be m=<KiB>,t=<passes>,p=<lanes>, such as m=19456,t=2,p=1, \
     with m from 1024 to 65536, t from 1 to 8 and p from 1 to 4"
)]
pub struct InvalidHashCost;

impl FromStr for HashCost {
    type Err = InvalidHashCost;

    fn from_str(text: &str) -> Result<Self, InvalidHashCost> {
        let mut values = text.split(',');
        let mut value = |name: &str, bounds: RangeInclusive<u32>| {
            let digits = values.next()?.strip_prefix(name)?.strip_prefix('=')?;
            let value = digits.parse().ok()?;
            bounds.contains(&value).then_some(value)
        };
        let cost = (|| {
            Some(Self {
                memory_kib: value("m", MEMORY_KIB_MIN..=MEMORY_KIB_MAX)?,
                passes: value("t", 1..=PASSES_MAX)?,
                lanes: value("p", 1..=LANES_MAX)?,
            })
        })();
        cost.filter(|_| values.next().is_none())
            .ok_or(InvalidHashCost)
    }
}

impl fmt::Display for HashCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            memory_kib,
            passes,
            lanes,
        } = self;
        write!(f, "m={memory_kib},t={passes},p={lanes}")
    }
}

impl HashCost {
    fn params(self) -> Params {
        Params::new(self.memory_kib, self.passes, self.lanes, None)
            .expect("the bounds of a cost are within Argon2's")
    }
}

pub(super) struct Argon {
    cost: HashCost,
    queue: FairQueue<Requester, PURPOSES>,
    done: Arc<AtomicU64>,
    /// `true` if the last hash had a core when it needed one.
    room: Arc<AtomicBool>,
    /// Unused memory of earlier hashes; at most as many buffers as hashes may run at once.
    memory: Arc<Mutex<Vec<Vec<Block>>>>,
}

impl Argon {
    pub(super) fn new(cost: HashCost) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            cost,
            queue: FairQueue::new(
                Bounds {
                    running: (cores - 1).max(1),
                    waiting: cores * WAITING_PER_CORE,
                    waiting_each: WAITING_EACH,
                },
                Requester::SCHEDULE,
            ),
            done: Arc::default(),
            room: Arc::default(),
            memory: Arc::default(),
        }
    }

    /// Returns the number of hashes made since the start.
    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Returns the load of the pool, in the order of [`Requester::PURPOSES`].
    pub(super) fn load(&self) -> [Load; PURPOSES] {
        self.queue.load()
    }

    /// Returns the PHC string of a text, with a new salt. A call that is dropped while it waits for
    /// its turn computes no hash.
    pub(super) async fn hash(&self, text: &str, issuer: Principal) -> Result<String, Busy> {
        let text = Zeroizing::new(text.to_owned());
        let params = self.cost.params();
        self.run(Requester::Issuer(issuer), move |memory| {
            let salt = Salt::new(&rand::rng().random::<[u8; SALT_LENGTH]>())
                .expect("a salt of the recommended length is valid");
            let output = digest(&argon(params.clone()), &text, &salt, memory)
                .expect("checked parameters and a generated salt are valid");
            PasswordHash {
                algorithm: Algorithm::Argon2id.ident(),
                version: Some(Version::V0x13.into()),
                params: ParamsString::try_from(&params)
                    .expect("checked parameters fit a PHC string"),
                salt: Some(salt),
                hash: Some(output),
            }
            .to_string()
        })
        .await
    }

    /// Returns whether a stored hash is the hash of this text.
    pub(super) async fn verify(
        &self,
        text: &str,
        stored: StoredHash,
        requester: Requester,
    ) -> Result<bool, Busy> {
        let text = Zeroizing::new(text.to_owned());
        self.run(requester, move |memory| stored.matches(&text, memory))
            .await
    }

    /// Does the work of [`Argon::verify`] for a text that belongs to no key.
    pub(super) async fn verify_nothing(
        &self,
        text: &str,
        requester: Requester,
    ) -> Result<(), Busy> {
        let stored = StoredHash::unmatched(self.cost);
        self.verify(text, stored, requester).await.map(drop)
    }

    async fn run<T: Send + 'static>(
        &self,
        requester: Requester,
        work: impl FnOnce(&mut Vec<Block>) -> T + Send + 'static,
    ) -> Result<T, Busy> {
        // The span includes the wait for a turn.
        metrics::child(
            "argon2",
            SpanKind::Internal,
            self.run_inside(requester, work),
        )
        .await
    }

    async fn run_inside<T: Send + 'static>(
        &self,
        requester: Requester,
        work: impl FnOnce(&mut Vec<Block>) -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let permit = self.queue.enter(requester.lane(), requester).await;
        let permit = permit.map_err(|_| Busy)?;
        let (idle, done) = (Arc::clone(&self.memory), Arc::clone(&self.done));
        let room = Arc::clone(&self.room);
        let (collect, told) = oneshot::channel();
        // A new thread costs a thousandth of a hash, and can have its own priority.
        let working = thread::Builder::new()
            .name("argon2".to_owned())
            .spawn(move || {
                // Held as long as the work runs, which cannot be interrupted.
                let _permit = permit;
                // Validation takes precedence where the system supports it.
                step_back(room.load(Ordering::Relaxed));
                let mut memory = lock(&idle).pop().unwrap_or_default();
                let began = Instant::now();
                let result = work(&mut memory);
                room.store(began.elapsed() <= computed() * ROOM, Ordering::Relaxed);
                done.fetch_add(1, Ordering::Relaxed);
                lock(&idle).push(memory);
                // The receiver may be gone.
                let _ = collect.send(result);
            });
        working.map_err(|_| Busy)?;
        told.await.map_err(|_| Busy)
    }
}

/// Gives this thread a lower priority than all others.
fn step_back(room: bool) {
    let this = thread_native_id();
    let idle = room && set_thread_priority_and_policy(this, ThreadPriority::Min, IDLE).is_ok();
    if !idle {
        let _ = nice(BEHIND);
    }
}

/// Returns the CPU time of this thread.
fn computed() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.try_into().unwrap_or_default()
}

/// An Argon2id hash with its salt and parameters, which are within the accepted bounds.
pub(super) struct StoredHash {
    params: Params,
    salt: Salt,
    hash: Output,
}

impl StoredHash {
    /// Parses a PHC string. Returns `None` if it is not Argon2id of version 19, or if its
    /// parameters are out of bounds.
    pub(super) fn parse(phc: &str) -> Option<Self> {
        let stored = PasswordHash::new(phc).ok()?;
        let params = Params::try_from(&stored).ok()?;
        let (salt, hash) = (stored.salt?, stored.hash?);
        let accepted = stored.algorithm == Algorithm::Argon2id.ident()
            && stored.version == Some(Version::V0x13.into())
            && (MEMORY_KIB_MIN..=MEMORY_KIB_MAX).contains(&params.m_cost())
            && (1..=PASSES_MAX).contains(&params.t_cost())
            && (1..=LANES_MAX).contains(&params.p_cost())
            && hash.as_bytes().len() >= HASH_LENGTH_MIN;
        accepted.then_some(Self { params, salt, hash })
    }

    /// Returns a hash that matches a text only with a probability of 2^-256.
    fn unmatched(cost: HashCost) -> Self {
        Self {
            params: cost.params(),
            salt: Salt::new(&[0; SALT_LENGTH]).expect("a salt of the recommended length is valid"),
            hash: Output::new(&[0; Params::DEFAULT_OUTPUT_LEN])
                .expect("an output of the default length is valid"),
        }
    }

    fn matches(&self, text: &str, memory: &mut Vec<Block>) -> bool {
        let output = digest(&argon(self.params.clone()), text, &self.salt, memory);
        output.is_some_and(|output| output.as_bytes().ct_eq(self.hash.as_bytes()).into())
    }
}

fn digest(argon: &Argon2<'_>, text: &str, salt: &Salt, memory: &mut Vec<Block>) -> Option<Output> {
    let length = argon
        .params()
        .output_len()
        .unwrap_or(Params::DEFAULT_OUTPUT_LEN);
    let mut output = Zeroizing::new(vec![0; length]);
    memory.resize(argon.params().block_count(), Block::default());
    argon
        .hash_password_into_with_memory(text.as_bytes(), salt, &mut output, memory.as_mut_slice())
        .ok()?;
    Output::new(&output).ok()
}

fn argon(params: Params) -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// Ignores poisoning, because the guarded value stays consistent even if a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_read_within_its_bounds_only() {
        for text in ["m=19456,t=2,p=1", "m=1024,t=1,p=1", "m=65536,t=8,p=4"] {
            assert_eq!(text.parse::<HashCost>().unwrap().to_string(), text);
        }
        assert_eq!(HashCost::default().to_string(), "m=19456,t=2,p=1");
        for text in [
            "",
            "m=1023,t=1,p=1",
            "m=65537,t=1,p=1",
            "m=1024,t=0,p=1",
            "m=1024,t=9,p=1",
            "m=1024,t=1,p=0",
            "m=1024,t=1,p=5",
            "m=1024,t=1",
            "t=1,m=1024,p=1",
            "m=1024,t=1,p=1,x=1",
            "m=1024, t=1, p=1",
        ] {
            assert_eq!(text.parse::<HashCost>(), Err(InvalidHashCost), "{text}");
        }
    }

    /// Returns a PHC string with this algorithm, these parameters, which include the version, and a
    /// hash of `length` bytes.
    fn phc(algorithm: &str, params: &str, length: usize) -> String {
        let hash = "A".repeat((length * 4).div_ceil(3));
        format!("${algorithm}${params}$bm9ib2R5IGFza3MgaXQ${hash}")
    }

    #[test]
    fn only_parameters_within_the_bounds_are_accepted() {
        for (params, length, accepted) in [
            ("v=19$m=19456,t=2,p=1", 32, true),
            ("v=19$m=1024,t=1,p=1", 16, true),
            ("v=19$m=65536,t=8,p=4", 64, true),
            ("v=19$m=1023,t=1,p=1", 32, false),
            ("v=19$m=8,t=1,p=1", 32, false),
            ("v=19$m=19456,t=0,p=1", 32, false),
            ("v=19$m=65537,t=2,p=1", 32, false),
            ("v=19$m=19456,t=9,p=1", 32, false),
            ("v=19$m=19456,t=2,p=5", 32, false),
            ("v=19$m=19456,t=2,p=1", 15, false),
            ("v=16$m=19456,t=2,p=1", 32, false),
            ("m=19456,t=2,p=1", 32, false),
        ] {
            let read = StoredHash::parse(&phc("argon2id", params, length));
            assert_eq!(read.is_some(), accepted, "{params}, {length} bytes");
        }
        for algorithm in ["argon2i", "argon2d", "scrypt"] {
            let read = StoredHash::parse(&phc(algorithm, "v=19$m=19456,t=2,p=1", 32));
            assert!(read.is_none(), "{algorithm}");
        }
        assert!(StoredHash::parse("").is_none());
    }
}
