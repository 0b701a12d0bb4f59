//! Verified keys in memory, and the guard that keeps what changed from coming back.
//!
//! Nothing is ever removed because of a change. Each key, owner and tenant has an epoch, which a
//! change to it advances; an entry carries the sum of its three epochs, and counts only while
//! that is still the sum. Epochs only grow, so that an equal sum means three equal epochs.
//!
//! The guard against a load that began before a change and ends after it: a change is announced
//! (`announced`) before it advances epochs, and a loaded row is taken in only if it is as new as
//! everything announced, looked at after its epochs were read.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU32, Ordering},
};

use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache as QuickCache, DefaultLifecycle, EntryAction, EntryResult, PlaceholderGuard},
};

use crate::domain::{event::Touched, standing::Standing, token::KeyId};

/// How many epochs there are. Two things that share one cost each other a reload, no more; one
/// epoch is four bytes.
const EPOCHS: usize = 1 << 20;

/// What an entry takes beside what its standing says: itself, its counts and its place.
const ENTRY_BYTES: usize = size_of::<Entry>() + 80;
/// What a usual entry takes in all: the capacity in bytes is this for each entry asked for.
const USUAL_BYTES: usize = 320;

/// A key in memory, whose secret can be checked by one MAC.
#[derive(Debug)]
pub struct Entry {
    /// What the key may do.
    pub standing: Standing,
    /// The MAC that the right secret has.
    pub mac: [u8; 32],
    stamp: Stamp,
}

/// What an entry was true at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    owner: u32,
    tenant: u32,
    sum: u32,
}

/// Verified keys in memory.
pub struct Cache {
    entries: QuickCache<KeyId, Arc<Entry>, Bytes>,
    epochs: Epochs,
    keeps: bool,
}

/// What a look into the cache found.
pub enum Look<'a> {
    /// An entry that counts.
    Hit(Arc<Entry>),
    /// None. Whoever holds the place loads the key, and everybody else waits; nobody waits for
    /// what will not be kept.
    Miss(Option<Place<'a>>),
}

/// The right to load a key, until it is filled or dropped.
pub struct Place<'a> {
    guard: PlaceholderGuard<
        'a,
        KeyId,
        Arc<Entry>,
        Bytes,
        DefaultHashBuilder,
        DefaultLifecycle<KeyId, Arc<Entry>>,
    >,
    /// The entry that counts no more: what it proved is proven for ever.
    pub stale: Option<Arc<Entry>>,
}

impl Cache {
    /// A cache of about this many usual keys.
    #[must_use]
    pub fn new(keys: usize) -> Self {
        Self::with(keys, true)
    }

    /// A cache that keeps nothing, where others may change what it would keep.
    #[must_use]
    pub fn off() -> Self {
        Self::with(0, false)
    }

    fn with(keys: usize, keeps: bool) -> Self {
        let capacity = keys.max(1).saturating_mul(USUAL_BYTES);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(keys.max(1))
            .weight_capacity(capacity as u64)
            .build();
        let options = options.expect("both capacities are given");
        Self {
            entries: QuickCache::with_options(
                options,
                Bytes,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
            epochs: Epochs::new(),
            keeps,
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

    /// The entry of a key, if there is one that counts.
    #[must_use]
    pub fn get(&self, id: KeyId) -> Option<Arc<Entry>> {
        self.entries
            .get(&id)
            .filter(|entry| self.epochs.counts(id, entry.stamp))
    }

    /// The entry of a key, or the right to load it. Waits while somebody else does.
    pub async fn look(&self, id: KeyId) -> Look<'_> {
        if !self.keeps {
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
            EntryResult::Retained(entry) => Look::Hit(entry),
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

    /// Makes an entry of a key that was loaded when the log's head was `head`, and says whether it
    /// may be kept: it may not when it could be older than a change announced since.
    #[must_use]
    pub fn entry(
        &self,
        id: KeyId,
        standing: Standing,
        mac: [u8; 32],
        head: i64,
    ) -> (Arc<Entry>, bool) {
        let (stamp, current) = self.epochs.stamp(id, &standing, head);
        let entry = Entry {
            standing,
            mac,
            stamp,
        };
        (Arc::new(entry), current && self.keeps)
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
}

impl Place<'_> {
    /// Fills the place, for those who wait, too.
    pub fn fill(self, entry: Arc<Entry>) {
        // It fails if another was put there meanwhile, which is then as good.
        let _ = self.guard.insert(entry);
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

/// The epochs of everything, hashed into one table.
struct Epochs {
    table: Box<[AtomicU32]>,
    /// The newest revision whose change has advanced epochs, or is about to.
    announced: AtomicI64,
}

impl Epochs {
    fn new() -> Self {
        Self {
            table: (0..EPOCHS).map(|_| AtomicU32::new(0)).collect(),
            announced: AtomicI64::new(0),
        }
    }

    fn apply(&self, revision: i64, touched: &Touched) {
        self.announced.fetch_max(revision, Ordering::SeqCst);
        match touched {
            Touched::Keys(keys) => keys.iter().for_each(|key| self.advance(key_place(*key))),
            Touched::Owner { tenant, owner } => self.advance(owner_place(tenant, owner)),
            Touched::Tenant(tenant) => self.advance(tenant_place(tenant)),
        }
    }

    /// What an entry loaded at `head` is true at, and whether nothing newer is announced.
    fn stamp(&self, id: KeyId, standing: &Standing, head: i64) -> (Stamp, bool) {
        let owner = owner_place(standing.tenant_id(), standing.owner_id());
        let tenant = tenant_place(standing.tenant_id());
        let sum = self.sum(key_place(id), owner, tenant);
        // After the epochs: a change that they show has been announced by now.
        let current = self.announced.load(Ordering::SeqCst) <= head;
        (Stamp { owner, tenant, sum }, current)
    }

    fn counts(&self, id: KeyId, stamp: Stamp) -> bool {
        self.sum(key_place(id), stamp.owner, stamp.tenant) == stamp.sum
    }

    fn sum(&self, key: u32, owner: u32, tenant: u32) -> u32 {
        [key, owner, tenant]
            .into_iter()
            .map(|place| self.table[place as usize].load(Ordering::SeqCst))
            .fold(0, u32::wrapping_add)
    }

    fn advance(&self, place: u32) {
        self.table[place as usize].fetch_add(1, Ordering::SeqCst);
    }
}

/// An id is random already: half of it, multiplied to fill the upper bits.
fn key_place(id: KeyId) -> u32 {
    fold(id.low_bits().wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn owner_place(tenant: &str, owner: &str) -> u32 {
    hashed(&[tenant, "\0", owner])
}

fn tenant_place(tenant: &str) -> u32 {
    hashed(&[tenant])
}

/// FNV-1a: what chooses a place need not be secret, only the same every time.
fn hashed(parts: &[&str]) -> u32 {
    let bytes = parts.iter().flat_map(|part| part.bytes());
    fold(bytes.fold(0xCBF2_9CE4_8422_2325, |mixed, byte| {
        (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    }))
}

fn fold(mixed: u64) -> u32 {
    // The upper bits are the best mixed ones.
    u32::try_from(mixed >> (64 - EPOCHS.ilog2())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        clock::Timestamp,
        key::{Grant, HASH_VERSION, Key},
        scope::Scope,
        tenant::Tenant,
    };

    const ID: &str = "0123456789abcdef";

    fn id() -> KeyId {
        KeyId::from_bare(ID).unwrap()
    }

    fn standing() -> Standing {
        let key = Key {
            key_id: id(),
            tenant_id: "acme".to_owned(),
            owner_id: "alice".to_owned(),
            label: String::new(),
            description: String::new(),
            prefix: "gk".to_owned(),
            scopes: Scope::parse("jobs:read").into_iter().collect(),
            audiences: Vec::new(),
            allowed_cidrs: Vec::new(),
            metadata: std::collections::BTreeMap::new(),
            suspended: false,
            created_at: Timestamp::from_micros(0),
            created_by: String::new(),
            expires_at: None,
            revoked: None,
            rotated_from: None,
            rotated_to: None,
            last_used: None,
            hash_version: HASH_VERSION.to_owned(),
            created_revision: 1,
            revision: 1,
        };
        Standing::of(&Grant {
            key,
            owner: None,
            tenant: Tenant::default(),
        })
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
        match cache.look(id()).await {
            Look::Miss(Some(place)) => place,
            Look::Miss(None) | Look::Hit(_) => panic!("the key is not in memory"),
        }
    }

    #[tokio::test]
    async fn an_entry_counts_until_its_key_its_owner_or_its_tenant_changes() {
        for change in changes() {
            let cache = Cache::new(100);
            let (entry, keep) = cache.entry(id(), standing(), [1; 32], 5);
            assert!(keep);
            place(&cache).await.fill(entry);
            assert!(cache.get(id()).is_some());
            cache.apply(6, &Touched::Tenant("other".to_owned()));
            assert!(cache.get(id()).is_some());
            cache.apply(7, &change);
            assert!(cache.get(id()).is_none());
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
            let cache = Cache::new(100);
            cache.apply(6, &change);
            let (_, keep) = cache.entry(id(), standing(), [1; 32], 5);
            assert!(!keep);
            // … or between the entry and its place.
            let cache = Cache::new(100);
            let (entry, keep) = cache.entry(id(), standing(), [1; 32], 5);
            assert!(keep);
            cache.apply(6, &change);
            place(&cache).await.fill(entry);
            assert!(cache.get(id()).is_none());
        }
    }

    #[tokio::test]
    async fn one_loads_and_the_others_wait_for_it() {
        let cache = Arc::new(Cache::new(100));
        let place = place(&cache).await;
        let waiting = tokio::spawn({
            let cache = Arc::clone(&cache);
            async move { matches!(cache.look(id()).await, Look::Hit(_)) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let (entry, _) = cache.entry(id(), standing(), [1; 32], 5);
        place.fill(entry);
        assert!(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn a_cache_that_is_off_keeps_nothing_and_nobody_waits() {
        let cache = Cache::off();
        let (entry, keep) = cache.entry(id(), standing(), [1; 32], 5);
        assert!(!keep);
        drop(entry);
        assert!(matches!(cache.look(id()).await, Look::Miss(None)));
        assert!(matches!(cache.look(id()).await, Look::Miss(None)));
    }
}
