//! Verified keys in memory, and the guard that keeps what changed from coming back.
//!
//! Nothing is ever removed because of a change. Each key, owner and tenant has an epoch, which a
//! change to it advances; an entry carries the sum of its three epochs and of one for
//! everything, and counts only while that is still the sum. Epochs only grow, so that an equal sum
//! means equal epochs.
//!
//! The guard against a load that began before a change and ends after it: a change is announced
//! (`announced`) before it advances epochs, and a loaded row is taken in only if it is as new as
//! everything announced, looked at after its epochs were read. A load that began before this
//! process joined the replicas (anew) is not taken in at all: a [`Ticket`] tells.
//!
//! Memory answers only while the [`Lease`] is held.

mod epochs;
#[cfg(test)]
mod model;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use quick_cache::{
    DefaultHashBuilder, Lifecycle, Weighter,
    sync::{Cache as QuickCache, DefaultLifecycle, EntryAction, EntryResult, PlaceholderGuard},
};

use self::epochs::{Epochs, NEVER_JOINED, Stamp};
use super::{
    fault::{Fault, Faults},
    lease::{Deadline, Lease},
};
use crate::{
    domain::{clock::Clock, event::Touched, standing::Standing, token::KeyId},
    meter::{Page, Tally, Tell},
};

/// What `epochs.rs` counts with; `model.rs` has others.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
}

pub use self::epochs::Ticket;

/// What an entry takes beside what its standing says: itself, and about 100 bytes for its place, its
/// counts and what the allocator rounds up. Measured at a million keys: 261 bytes in all, of which
/// 55 are text (`cargo bench --bench validate -- memory`).
const ENTRY_BYTES: usize = size_of::<Entry>() + 100;
/// What a usual entry takes in all: the capacity in bytes is this for each entry asked for.
const USUAL_BYTES: usize = 320;

/// How many owners of tenant `system` there are in memory at most: few call by certificates.
const VOUCHERS: usize = 4096;

/// A key in memory, whose secret can be checked by one MAC.
#[derive(Debug)]
pub struct Entry {
    /// What the key may do.
    pub standing: Standing,
    /// The MAC that the right secret has.
    pub mac: [u8; 32],
    stamp: Stamp,
}

/// An owner of tenant `system` in memory, for those who come with a certificate.
#[derive(Debug)]
pub struct Voucher {
    /// What the owner may do.
    pub standing: Standing,
    stamp: Stamp,
}

/// Verified keys in memory.
pub struct Cache {
    entries: QuickCache<KeyId, Arc<Entry>, Bytes, DefaultHashBuilder, Evictions>,
    vouchers: QuickCache<Arc<str>, Arc<Voucher>>,
    epochs: Epochs,
    lease: Lease,
    faults: Faults,
    looks: Tally<2>,
    evictions: Evictions,
}

/// What a look is counted as.
const HIT: usize = 0;
const MISS: usize = 1;

/// What a look into the cache found.
pub enum Look<'a> {
    /// An entry that counts.
    Hit(Arc<Entry>),
    /// None. Whoever holds the place loads the key, and everybody else waits. Without a lease
    /// everybody loads.
    Miss(Option<Place<'a>>),
}

/// The right to load a key, until it is filled or dropped.
pub struct Place<'a> {
    guard: PlaceholderGuard<'a, KeyId, Arc<Entry>, Bytes, DefaultHashBuilder, Evictions>,
    /// The entry that counts no more: what it proved is proven for ever.
    pub stale: Option<Arc<Entry>>,
}

impl Cache {
    /// A cache of about this many usual keys. It keeps nothing before it was [cleared] for the
    /// first time.
    ///
    /// [cleared]: Cache::clear
    #[must_use]
    pub fn new(keys: usize, faults: Faults) -> Self {
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
            looks: Tally::default(),
            evictions,
        }
    }

    /// How many entries there are, those that count no more among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What a test has put in.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.faults
    }

    /// Until when what is in memory may be answered by.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The entry of a key, if there is one that counts and the lease is held.
    #[must_use]
    pub fn get(&self, id: KeyId, clock: &dyn Clock) -> Option<Arc<Entry>> {
        let hit = self.under_lease(clock, || {
            let entry = self.entries.get(&id)?;
            self.epochs.counts(id, entry.stamp).then_some(entry)
        })?;
        // A miss is counted by the look that follows.
        self.looks.add(HIT, 1);
        Some(hit)
    }

    /// The entry of a key, or the right to load it. Waits while somebody else does.
    pub async fn look(&self, id: KeyId, clock: &dyn Clock) -> Look<'_> {
        let look = self.look_up(id, clock).await;
        let hit = matches!(look, Look::Hit(_));
        self.looks.add(if hit { HIT } else { MISS }, 1);
        look
    }

    async fn look_up(&self, id: KeyId, clock: &dyn Clock) -> Look<'_> {
        let deadline = self.lease.deadline();
        let held = || self.is_held(deadline, clock);
        if !held() {
            return Look::Miss(None);
        }
        let counts = |_: &KeyId, entry: &mut Arc<Entry>| {
            if self.epochs.counts(id, entry.stamp) {
                EntryAction::Retain(Arc::clone(entry))
            } else {
                EntryAction::ReplaceWithGuard
            }
        };
        match self.entries.entry_async(&id, counts).await {
            EntryResult::Retained(entry) if held() => Look::Hit(entry),
            EntryResult::Retained(_) => Look::Miss(None),
            EntryResult::Vacant(guard) => Look::Miss(Some(Place { guard, stale: None })),
            EntryResult::Replaced(guard, stale) => Look::Miss(Some(Place {
                guard,
                stale: Some(stale),
            })),
            EntryResult::Removed(..) | EntryResult::Timeout => {
                unreachable!("nothing is removed here, and there is no time-out")
            }
        }
    }

    /// The MAC of a key that is in memory, whether or not the rest of it counts: what was proven
    /// is proven for ever.
    #[must_use]
    pub fn proven(&self, id: KeyId) -> Option<[u8; 32]> {
        self.entries.get(&id).map(|entry| entry.mac)
    }

    /// To be asked for before a load begins.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        self.epochs.ticket()
    }

    /// Makes an entry of a key that was loaded when the log's head was `head`, and says whether it
    /// may be kept: it may not when it could be older than a change announced since.
    #[must_use]
    pub fn entry(
        &self,
        id: KeyId,
        standing: Standing,
        mac: [u8; 32],
        head: i64,
        ticket: Ticket,
    ) -> (Arc<Entry>, bool) {
        let (stamp, current) = self.epochs.stamp(id, &standing, head, ticket);
        let entry = Entry {
            standing,
            mac,
            stamp,
        };
        let kept = current || self.faults.has(Fault::NoFillGuard);
        (Arc::new(entry), kept)
    }

    /// The owner of this name in tenant `system`, if it is in memory, counts, and the lease is held.
    #[must_use]
    pub fn voucher(&self, owner: &str, clock: &dyn Clock) -> Option<Arc<Voucher>> {
        self.under_lease(clock, || {
            let voucher = self.vouchers.get(owner)?;
            let counts = self.epochs.counts(KeyId::NONE, voucher.stamp);
            counts.then_some(voucher)
        })
    }

    /// Takes in an owner that was loaded when the log's head was `head`. It is kept unless it could
    /// be older than a change announced since.
    pub fn take_voucher(&self, standing: Standing, head: i64, ticket: Ticket) -> Arc<Voucher> {
        // An owner has no key: that epoch, too, tells of a change, though of none of its own.
        let (stamp, current) = self.epochs.stamp(KeyId::NONE, &standing, head, ticket);
        let voucher = Arc::new(Voucher { standing, stamp });
        if current || self.faults.has(Fault::NoFillGuard) {
            let name = Arc::from(voucher.standing.owner_id());
            self.vouchers.insert(name, Arc::clone(&voucher));
        }
        voucher
    }

    /// Keeps an entry that nobody holds the place of.
    pub fn insert(&self, id: KeyId, entry: Arc<Entry>) {
        self.entries.insert(id, entry);
    }

    /// Makes everything that a change touched count no more. To be called after its commit and
    /// before anybody is told of it.
    pub fn apply(&self, revision: i64, touched: &Touched) {
        self.epochs.apply(revision, touched);
    }

    /// Makes everything count no more: what is loaded from now on is as new as `head`. To be
    /// called after the replicas have been joined.
    pub fn clear(&self, head: i64) {
        let joined_before = self.ticket() != NEVER_JOINED;
        if !(joined_before && self.faults.has(Fault::JoinKeeps)) {
            self.epochs.clear(head);
        }
    }

    /// What `find` finds, if the lease is held until it has been found.
    fn under_lease<T>(&self, clock: &dyn Clock, find: impl FnOnce() -> Option<T>) -> Option<T> {
        let deadline = self.lease.deadline();
        let found = find()?;
        self.is_held(deadline, clock).then_some(found)
    }

    fn is_held(&self, deadline: Deadline, clock: &dyn Clock) -> bool {
        deadline.is_ahead(clock) || self.faults.has(Fault::NoLeaseCheck)
    }
}

impl Place<'_> {
    /// Fills the place, for those who wait, too.
    pub fn fill(self, entry: Arc<Entry>) {
        // It fails if another was put there meanwhile, which is then as good.
        let _ = self.guard.insert(entry);
    }
}

impl Tell for Cache {
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result {
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

/// Counts what leaves for want of room.
#[derive(Clone, Default)]
struct Evictions(Arc<AtomicU64>);

type Dropped = DefaultLifecycle<KeyId, Arc<Entry>>;

impl Lifecycle<KeyId, Arc<Entry>> for Evictions {
    /// What is dropped only once no lock is held.
    type RequestState = <Dropped as Lifecycle<KeyId, Arc<Entry>>>::RequestState;

    fn on_evict(&self, state: &mut Self::RequestState, id: KeyId, entry: Arc<Entry>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        Dropped::default().on_evict(state, id, entry);
    }
}

/// How much of the capacity an entry takes.
#[derive(Clone)]
struct Bytes;

impl Weighter<KeyId, Arc<Entry>> for Bytes {
    fn weight(&self, _: &KeyId, entry: &Arc<Entry>) -> u64 {
        (ENTRY_BYTES + entry.standing.heap_bytes()) as u64
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

    fn standing() -> Standing {
        Standing::of(&Grant {
            key: Key {
                scopes: Scope::parse("jobs:read").into_iter().collect(),
                ..Key::usual()
            },
            owner: None,
            tenant: Tenant::default(),
        })
    }

    /// A clock that stands still.
    struct Still;

    impl Clock for Still {
        fn now(&self) -> Timestamp {
            Timestamp::from_micros(0)
        }

        fn uptime(&self) -> Duration {
            Duration::from_secs(1)
        }
    }

    /// A cache that was joined at revision 0 and holds the lease.
    fn leased() -> Cache {
        let cache = Cache::new(100, Faults::NONE);
        cache.clear(0);
        cache.lease().grant(Duration::from_secs(2));
        cache
    }

    fn entry(cache: &Cache) -> (Arc<Entry>, bool) {
        cache.entry(id(), standing(), [1; 32], 5, cache.ticket())
    }

    fn changes() -> [Touched; 3] {
        let (tenant, owner) = ("acme".to_owned(), "alice".to_owned());
        [
            Touched::Keys(vec![id()]),
            Touched::Owner {
                tenant: tenant.clone(),
                owner,
            },
            Touched::Tenant(tenant),
        ]
    }

    async fn place(cache: &Cache) -> Place<'_> {
        match cache.look(id(), &Still).await {
            Look::Miss(Some(place)) => place,
            Look::Miss(None) | Look::Hit(_) => panic!("the key is not in memory"),
        }
    }

    #[test]
    fn an_owner_counts_until_it_or_its_tenant_changes_and_not_without_a_lease() {
        let [_, owner, tenant] = changes();
        for change in [owner, tenant] {
            let cache = leased();
            assert!(cache.voucher("alice", &Still).is_none());
            cache.take_voucher(standing(), 5, cache.ticket());
            assert!(cache.voucher("alice", &Still).is_some());
            cache.apply(6, &change);
            assert!(cache.voucher("alice", &Still).is_none());
            // What was loaded before the change is used, and not kept.
            cache.take_voucher(standing(), 5, cache.ticket());
            assert!(cache.voucher("alice", &Still).is_none());
            cache.take_voucher(standing(), 6, cache.ticket());
            assert!(cache.voucher("alice", &Still).is_some());
            cache.lease().end();
            assert!(cache.voucher("alice", &Still).is_none());
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
            // What it proved is proven for ever.
            assert_eq!(
                place(&cache).await.stale.map(|stale| stale.mac),
                Some([1; 32])
            );
        }
    }

    #[tokio::test]
    async fn a_load_that_began_before_a_change_cannot_put_the_old_row_back() {
        for change in changes() {
            // The change comes between the load and the entry …
            let cache = leased();
            cache.apply(6, &change);
            let (_, keep) = entry(&cache);
            assert!(!keep);
            // … or between the entry and its place.
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
            async move { matches!(cache.look(id(), &Still).await, Look::Hit(_)) }
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
        // It lasts until its deadline, which is past when it is reached.
        cache.lease().grant(Still.uptime());
        assert!(cache.get(id(), &Still).is_none());
        assert!(matches!(cache.look(id(), &Still).await, Look::Miss(None)));
        // What was proven is proven for ever.
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
        let cache = Cache::new(100, Faults::NONE);
        assert!(!entry(&cache).1);
        let (cache, ticket) = (leased(), leased().ticket());
        place(&cache).await.fill(entry(&cache).0);
        // A failover lost what came after revision 3.
        cache.clear(3);
        assert!(cache.get(id(), &Still).is_none());
        assert!(!cache.entry(id(), standing(), [1; 32], 5, ticket).1);
        assert!(cache.entry(id(), standing(), [1; 32], 3, cache.ticket()).1);
    }
}
