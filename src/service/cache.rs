//! The cache of verified keys, and the guard that keeps outdated rows out of it.
//!
//! A change removes no entry. Each key, owner and tenant has an epoch, which each change to it
//! advances. An entry carries the sum of its three epochs and one global epoch, and is valid only
//! while the sum is unchanged. Epochs only grow, so that an equal sum means equal epochs.
//!
//! The guard covers a load that begins before a change and ends after it. A change is announced
//! (`announced`) before it advances epochs. A loaded row is cached only if it is as new as every
//! announced change; this is checked after the row's epochs were read. A load that began before
//! this process last joined the membership is never cached; its [`Ticket`] identifies it.
//!
//! The cache serves entries only while the [`Lease`] is held.

mod epochs;
#[cfg(test)]
mod model;

use std::{
    fmt,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
};

use quick_cache::{
    DefaultHashBuilder, Lifecycle, Weighter,
    sync::{Cache as QuickCache, DefaultLifecycle, EntryAction, EntryResult, PlaceholderGuard},
};

use self::epochs::{Epochs, NEVER_JOINED, Stamp};
use super::{
    failpoint::{Failpoint, Failpoints},
    lease::{Deadline, Lease},
};
use crate::{
    domain::{clock::Clock, event::Touched, key_policy::KeyPolicy, token::KeyId},
    metrics::{Collect, Encoder, ShardedCounter},
};

/// The atomics of `epochs.rs`; `model.rs` substitutes its own.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
}

pub use self::epochs::Ticket;

/// Size of an entry without the heap bytes of its key policy: the entry itself and about 100 bytes
/// for its slot, its reference counts and allocator rounding. Measured with a million keys: 261
/// bytes in total, of which 55 are text (`cargo bench --bench validate -- memory`).
const ENTRY_BYTES: usize = size_of::<Entry>() + 100;
/// Total size of a typical entry. The capacity in bytes is this size times the configured number of
/// keys.
const USUAL_BYTES: usize = 320;

/// Maximum number of cached owners of tenant `system`. It is small because few callers use
/// certificates.
const VOUCHERS: usize = 4096;

/// A cached key, whose secret one MAC can check.
#[derive(Debug)]
pub struct Entry {
    /// The policy of the key.
    pub policy: KeyPolicy,
    /// The MAC of the correct secret.
    pub mac: [u8; 32],
    stamp: Stamp,
}

/// A cached owner of tenant `system`, for callers that authenticate by certificate.
#[derive(Debug)]
pub struct OwnerEntry {
    /// The policy of the owner.
    pub policy: KeyPolicy,
    stamp: Stamp,
}

/// A cache of verified keys.
pub struct Cache {
    entries: QuickCache<KeyId, Arc<Entry>, Bytes, DefaultHashBuilder, Evictions>,
    vouchers: QuickCache<Arc<str>, Arc<OwnerEntry>>,
    epochs: Epochs,
    lease: Lease,
    faults: Failpoints,
    looks: ShardedCounter<2>,
    evictions: Evictions,
}

/// Indexes of the lookup counters.
const HIT: usize = 0;
const MISS: usize = 1;

/// The result of a cache lookup.
pub enum Lookup<'a> {
    /// A valid entry.
    Hit(Arc<Entry>),
    /// No valid entry. The holder of the load slot loads the key, and all other callers wait.
    /// Without a lease there is no slot, and every caller loads.
    Miss(Option<LoadSlot<'a>>),
}

/// The right to load a key, until the slot is filled or dropped.
pub struct LoadSlot<'a> {
    guard: PlaceholderGuard<'a, KeyId, Arc<Entry>, Bytes, DefaultHashBuilder, Evictions>,
    /// The invalidated entry. Its MAC stays proven.
    pub stale: Option<Arc<Entry>>,
}

impl Cache {
    /// Returns a cache for about this many typical keys. It keeps nothing until it has been
    /// [cleared] for the first time.
    ///
    /// [cleared]: Cache::clear
    #[must_use]
    pub fn new(keys: usize, faults: Failpoints) -> Self {
        let capacity = keys.max(1).saturating_mul(USUAL_BYTES);
        let evictions = Evictions::default();
        Self {
            entries: QuickCache::with(
                keys.max(1),
                capacity as u64,
                Bytes,
                DefaultHashBuilder::default(),
                evictions.clone(),
            ),
            vouchers: QuickCache::new(VOUCHERS),
            epochs: Epochs::new(keys.max(1)),
            lease: Lease::default(),
            faults,
            looks: ShardedCounter::default(),
            evictions,
        }
    }

    /// Returns the number of entries, including invalidated ones.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns true if there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the failpoint that a test enabled.
    #[must_use]
    pub fn faults(&self) -> Failpoints {
        self.faults
    }

    /// Returns the lease, which limits how long cached entries may be served.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Returns the entry of a key if it is valid and the lease is held.
    #[must_use]
    pub fn get(&self, id: KeyId, clock: &dyn Clock) -> Option<Arc<Entry>> {
        let hit = self.under_lease(clock, || {
            let entry = self.entries.get(&id)?;
            self.epochs.counts(id, entry.stamp).then_some(entry)
        })?;
        // The lookup that follows counts the miss.
        self.looks.add(HIT, 1);
        Some(hit)
    }

    /// Returns the entry of a key, or the right to load it. Waits while another caller loads it.
    pub async fn look(&self, id: KeyId, clock: &dyn Clock) -> Lookup<'_> {
        let look = self.look_up(id, clock).await;
        let hit = matches!(look, Lookup::Hit(_));
        self.looks.add(if hit { HIT } else { MISS }, 1);
        look
    }

    /// Does the same without waiting. Returns `None` while another caller loads the key.
    pub async fn try_look(&self, id: KeyId, clock: &dyn Clock) -> Option<Lookup<'_>> {
        let mut look = pin!(self.look(id, clock));
        poll_fn(|cx| {
            Poll::Ready(match look.as_mut().poll(cx) {
                Poll::Ready(look) => Some(look),
                Poll::Pending => None,
            })
        })
        .await
    }

    async fn look_up(&self, id: KeyId, clock: &dyn Clock) -> Lookup<'_> {
        let deadline = self.lease.deadline();
        let held = || self.is_held(deadline, clock);
        if !held() {
            return Lookup::Miss(None);
        }
        let counts = |_: &KeyId, entry: &mut Arc<Entry>| {
            if self.epochs.counts(id, entry.stamp) {
                EntryAction::Retain(Arc::clone(entry))
            } else {
                EntryAction::ReplaceWithGuard
            }
        };
        match self.entries.entry_async(&id, counts).await {
            EntryResult::Retained(entry) if held() => Lookup::Hit(entry),
            EntryResult::Retained(_) => Lookup::Miss(None),
            EntryResult::Vacant(guard) => Lookup::Miss(Some(LoadSlot { guard, stale: None })),
            EntryResult::Replaced(guard, stale) => Lookup::Miss(Some(LoadSlot {
                guard,
                stale: Some(stale),
            })),
            EntryResult::Removed(..) | EntryResult::Timeout => {
                unreachable!("nothing is removed here, and there is no time-out")
            }
        }
    }

    /// Returns the MAC of a cached key, even if its entry is invalid: a proven MAC stays proven.
    #[must_use]
    pub fn proven(&self, id: KeyId) -> Option<[u8; 32]> {
        self.entries.get(&id).map(|entry| entry.mac)
    }

    /// Returns a ticket, which the caller must take before it begins a load.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        self.epochs.ticket()
    }

    /// Returns an entry for a key that was loaded when the log's head was `head`, and whether it
    /// may be cached. It may not if it could be older than a change announced since.
    #[must_use]
    pub fn entry(
        &self,
        id: KeyId,
        policy: KeyPolicy,
        mac: [u8; 32],
        head: i64,
        ticket: Ticket,
    ) -> (Arc<Entry>, bool) {
        let (stamp, current) = self.epochs.stamp(id, &policy, head, ticket);
        let entry = Entry { policy, mac, stamp };
        let kept = current || self.faults.has(Failpoint::NoFillGuard);
        (Arc::new(entry), kept)
    }

    /// Returns the owner of this name in tenant `system` if it is cached and valid and the lease is
    /// held.
    #[must_use]
    pub fn owner_entry(&self, owner: &str, clock: &dyn Clock) -> Option<Arc<OwnerEntry>> {
        self.under_lease(clock, || {
            let owner_entry = self.vouchers.get(owner)?;
            let counts = self.epochs.counts(KeyId::NONE, owner_entry.stamp);
            counts.then_some(owner_entry)
        })
    }

    /// Returns an entry for an owner that was loaded when the log's head was `head`. Caches it
    /// unless it could be older than a change announced since.
    pub fn take_voucher(&self, policy: KeyPolicy, head: i64, ticket: Ticket) -> Arc<OwnerEntry> {
        // An owner has no key. Changes to the epoch of `KeyId::NONE` invalidate it, too, although
        // none of them is its own.
        let (stamp, current) = self.epochs.stamp(KeyId::NONE, &policy, head, ticket);
        let owner_entry = Arc::new(OwnerEntry { policy, stamp });
        if current || self.faults.has(Failpoint::NoFillGuard) {
            let name = Arc::from(owner_entry.policy.owner_id());
            self.vouchers.insert(name, Arc::clone(&owner_entry));
        }
        owner_entry
    }

    /// Caches an entry for which no caller holds a load slot.
    pub fn insert(&self, id: KeyId, entry: Arc<Entry>) {
        self.entries.insert(id, entry);
    }

    /// Invalidates everything that a change touched. Must be called after the change is committed
    /// and before anybody is notified of it.
    pub fn apply(&self, revision: i64, touched: &Touched) {
        self.epochs.apply(revision, touched);
    }

    /// Invalidates everything. Entries loaded from now on are as new as `head`. Must be called
    /// after this process has joined the membership.
    pub fn clear(&self, head: i64) {
        let joined_before = self.ticket() != NEVER_JOINED;
        if !(joined_before && self.faults.has(Failpoint::JoinKeeps)) {
            self.epochs.clear(head);
        }
    }

    /// Returns the result of `find` if the lease is still held after `find` has returned.
    fn under_lease<T>(&self, clock: &dyn Clock, find: impl FnOnce() -> Option<T>) -> Option<T> {
        let deadline = self.lease.deadline();
        let found = find()?;
        self.is_held(deadline, clock).then_some(found)
    }

    fn is_held(&self, deadline: Deadline, clock: &dyn Clock) -> bool {
        deadline.is_ahead(clock) || self.faults.has(Failpoint::NoLeaseCheck)
    }
}

impl LoadSlot<'_> {
    /// Caches the entry and hands it to the callers that wait for it.
    pub fn fill(self, entry: Arc<Entry>) {
        // This fails if another entry was inserted meanwhile, which is equally good.
        let _ = self.guard.insert(entry);
    }
}

impl Collect for Cache {
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
        let looks = self.looks.read();
        page.counter(
            "gatekey_cache_hits_total",
            "Looks for a key that memory answered, callers' own keys included",
            looks[HIT],
        )?;
        page.counter(
            "gatekey_cache_misses_total",
            "Looks for a key that memory could not answer",
            looks[MISS],
        )?;
        page.counter(
            "gatekey_cache_evictions_total",
            "Keys that had to leave memory for others",
            self.evictions.0.load(Ordering::Relaxed),
        )?;
        page.gauge(
            "gatekey_cache_entries",
            "Keys in memory, those that are to be read anew among them",
            self.len(),
        )?;
        page.gauge(
            "gatekey_cache_bytes",
            "What the keys in memory take, about",
            self.entries.weight(),
        )?;
        page.gauge(
            "gatekey_cache_max_bytes",
            "What the keys in memory may take",
            self.entries.capacity(),
        )
    }
}

/// Counts evictions.
#[derive(Clone, Default)]
struct Evictions(Arc<AtomicU64>);

type Dropped = DefaultLifecycle<KeyId, Arc<Entry>>;

impl Lifecycle<KeyId, Arc<Entry>> for Evictions {
    /// The evicted entries, which are dropped only when no lock is held.
    type RequestState = <Dropped as Lifecycle<KeyId, Arc<Entry>>>::RequestState;

    fn on_evict(&self, state: &mut Self::RequestState, id: KeyId, entry: Arc<Entry>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        Dropped::default().on_evict(state, id, entry);
    }
}

/// Weighs an entry by its size in bytes.
#[derive(Clone)]
struct Bytes;

impl Weighter<KeyId, Arc<Entry>> for Bytes {
    fn weight(&self, _: &KeyId, entry: &Arc<Entry>) -> u64 {
        (ENTRY_BYTES + entry.policy.heap_bytes()) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::{
        clock::Timestamp,
        key::{Grant, Key},
        scope::Scope,
        tenant::Tenant,
    };

    const ID: &str = "0123456789abcdef";

    fn id() -> KeyId {
        KeyId::from_bare(ID).unwrap()
    }

    fn policy() -> KeyPolicy {
        KeyPolicy::of(&Grant {
            key: Key {
                scopes: Scope::parse("jobs:read").into_iter().collect(),
                ..Key::usual()
            },
            owner: None,
            tenant: Tenant::default(),
        })
    }

    /// A clock that does not advance.
    struct Still;

    impl Clock for Still {
        fn now(&self) -> Timestamp {
            Timestamp::from_micros(0)
        }

        fn uptime(&self) -> Duration {
            Duration::from_secs(1)
        }
    }

    /// Returns a cache that joined at revision 0 and holds the lease.
    fn leased() -> Cache {
        let cache = Cache::new(100, Failpoints::NONE);
        cache.clear(0);
        cache.lease().grant(Duration::from_secs(2));
        cache
    }

    fn entry(cache: &Cache) -> (Arc<Entry>, bool) {
        cache.entry(id(), policy(), [1; 32], 5, cache.ticket())
    }

    fn changes() -> [Touched; 4] {
        let (tenant, owner) = ("acme".to_owned(), "alice".to_owned());
        [
            Touched::All,
            Touched::Keys(vec![id()]),
            Touched::Owner {
                tenant: tenant.clone(),
                owner,
            },
            Touched::Tenant(tenant),
        ]
    }

    async fn place(cache: &Cache) -> LoadSlot<'_> {
        match cache.look(id(), &Still).await {
            Lookup::Miss(Some(place)) => place,
            Lookup::Miss(None) | Lookup::Hit(_) => panic!("the key is not in memory"),
        }
    }

    #[test]
    fn an_owner_counts_until_it_or_its_tenant_changes_and_not_without_a_lease() {
        let [all, _, owner, tenant] = changes();
        for change in [all, owner, tenant] {
            let cache = leased();
            assert!(cache.owner_entry("alice", &Still).is_none());
            cache.take_voucher(policy(), 5, cache.ticket());
            assert!(cache.owner_entry("alice", &Still).is_some());
            cache.apply(6, &change);
            assert!(cache.owner_entry("alice", &Still).is_none());
            // An owner that was loaded before the change is returned but not cached.
            cache.take_voucher(policy(), 5, cache.ticket());
            assert!(cache.owner_entry("alice", &Still).is_none());
            cache.take_voucher(policy(), 6, cache.ticket());
            assert!(cache.owner_entry("alice", &Still).is_some());
            cache.lease().end();
            assert!(cache.owner_entry("alice", &Still).is_none());
        }
    }

    #[tokio::test]
    async fn an_entry_counts_until_its_key_its_owner_or_its_tenant_changes() {
        for change in changes() {
            let cache = leased();
            let (entry, keep) = entry(&cache);
            assert!(keep);
            place(&cache).await.fill(entry);
            assert!(cache.get(id(), &Still).is_some());
            cache.apply(6, &Touched::Tenant("other".to_owned()));
            assert!(cache.get(id(), &Still).is_some());
            cache.apply(7, &change);
            assert!(cache.get(id(), &Still).is_none());
            // The MAC stays proven.
            assert_eq!(
                place(&cache).await.stale.map(|stale| stale.mac),
                Some([1; 32])
            );
        }
    }

    #[tokio::test]
    async fn a_load_that_began_before_a_change_cannot_put_the_old_row_back() {
        for change in changes() {
            // The change occurs between the load and the creation of the entry.
            let cache = leased();
            cache.apply(6, &change);
            let (_, keep) = entry(&cache);
            assert!(!keep);
            // The change occurs between the creation of the entry and its insertion.
            let cache = leased();
            let (entry, keep) = entry(&cache);
            assert!(keep);
            cache.apply(6, &change);
            place(&cache).await.fill(entry);
            assert!(cache.get(id(), &Still).is_none());
        }
    }

    #[tokio::test]
    async fn one_loads_and_the_others_wait_for_it() {
        let cache = Arc::new(leased());
        let place = place(&cache).await;
        let waiting = tokio::spawn({
            let cache = Arc::clone(&cache);
            async move { matches!(cache.look(id(), &Still).await, Lookup::Hit(_)) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let (entry, _) = entry(&cache);
        place.fill(entry);
        assert!(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn memory_answers_only_while_the_lease_is_held() {
        let cache = leased();
        place(&cache).await.fill(entry(&cache).0);
        assert!(cache.get(id(), &Still).is_some());
        // The lease has ended when the clock reaches its deadline.
        cache.lease().grant(Still.uptime());
        assert!(cache.get(id(), &Still).is_none());
        assert!(matches!(cache.look(id(), &Still).await, Lookup::Miss(None)));
        // The MAC stays proven.
        assert_eq!(cache.proven(id()), Some([1; 32]));
        cache
            .lease()
            .grant(Still.uptime() + Duration::from_micros(1));
        assert!(cache.get(id(), &Still).is_some());
        cache.lease().end();
        assert!(cache.get(id(), &Still).is_none());
    }

    #[tokio::test]
    async fn nothing_counts_that_was_loaded_before_joining() {
        let cache = Cache::new(100, Failpoints::NONE);
        assert!(!entry(&cache).1);
        let (cache, ticket) = (leased(), leased().ticket());
        place(&cache).await.fill(entry(&cache).0);
        // A failover lost the changes after revision 3.
        cache.clear(3);
        assert!(cache.get(id(), &Still).is_none());
        assert!(!cache.entry(id(), policy(), [1; 32], 5, ticket).1);
        assert!(cache.entry(id(), policy(), [1; 32], 3, cache.ticket()).1);
    }
}
