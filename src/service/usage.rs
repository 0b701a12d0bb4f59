//! When, from where and how often keys are used: gathered in memory, written in batches.
//!
//! A use costs the call that notes it one uncontended lock and one look into a table of its own
//! thread, never a write and, but for a key's first use since the last batch, no memory. What is
//! gathered is bounded: beyond [`HELD_MAX`] keys the uses of further keys are lost, and that is
//! told. A batch that fails is kept and goes with the next one. Of several replicas the latest use
//! wins, and counts add.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt, mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use quick_cache::DefaultHashBuilder;
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{self, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    domain::{
        token::KeyId,
        usage::{Use, Uses},
    },
    meter::{Page, Tell, thread_number},
    store::{Store, StoreError},
};

/// How often a batch is written. A use can be read 5 s later, the writing included; that much is
/// lost when the process is killed.
const INTERVAL: Duration = Duration::from_secs(4);
/// Of how many keys uses are held at once, about 100 bytes each.
const HELD_MAX: usize = 1 << 18;
/// How many are enough for a batch out of turn.
const ENOUGH: usize = HELD_MAX / 4;
/// How long until a batch that failed at the stop is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// How long the last batch may take.
const LAST: Duration = Duration::from_secs(5);
/// How many keys one transaction writes: changes take turns with them.
const CHUNK: usize = 500;
/// More than there are threads, as a rule: two that share a table wait for each other.
const TABLES: usize = 64;

type Gathered = HashMap<KeyId, Uses, DefaultHashBuilder>;

/// A thread's table, on cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Table(Mutex<Gathered>);

/// Gathers uses of keys.
pub struct Usage {
    tables: Box<[Table]>,
    /// How many entries there are, in the tables and waiting to be written.
    held: AtomicUsize,
    /// How many uses were not noted for want of room.
    lost: AtomicU64,
    /// How many of these were told of already.
    told_lost: AtomicU64,
    enough: Notify,
}

/// The writing of uses, under way.
pub struct Writing {
    task: JoinHandle<()>,
    over: CancellationToken,
}

impl Writing {
    /// Writes the last uses. To be called when no call can note one any more, before the store is
    /// closed.
    pub async fn finish(mut self) {
        self.over.cancel();
        if time::timeout(LAST, &mut self.task).await.is_err() {
            self.task.abort();
            warn!("the last uses of keys are lost: the store did not take them in time");
        }
    }
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            tables: (0..TABLES).map(|_| Table::default()).collect(),
            held: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            told_lost: AtomicU64::new(0),
            enough: Notify::new(),
        }
    }
}

impl Usage {
    /// Notes that a key was used.
    pub fn note(&self, key: KeyId, noted: Use) {
        let uses = Uses::once(noted);
        match self.tables[thread_number() % TABLES].gathered().entry(key) {
            Entry::Occupied(mut known) => known.get_mut().add(uses),
            Entry::Vacant(place) => {
                let held = self.held.fetch_add(1, Ordering::Relaxed);
                if held >= HELD_MAX {
                    self.held.fetch_sub(1, Ordering::Relaxed);
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                if held == ENOUGH {
                    self.enough.notify_one();
                }
                place.insert(uses);
            }
        }
    }

    /// Gathers uses and writes them to `store`, on the current runtime, until the writing is
    /// finished.
    #[must_use]
    pub fn start(store: Arc<dyn Store>) -> (Arc<Self>, Writing) {
        let (usage, over) = (Arc::new(Self::default()), CancellationToken::new());
        let task = tokio::spawn({
            let (usage, over) = (Arc::clone(&usage), over.clone());
            async move { usage.write(&*store, over).await }
        });
        (usage, Writing { task, over })
    }

    /// Writes what is noted, batch by batch, until it is over; then the rest, which is tried until
    /// it is written.
    async fn write(&self, store: &dyn Store, over: CancellationToken) {
        let mut waiting = Gathered::default();
        let mut healthy = true;
        let mut turns = time::interval(INTERVAL);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = turns.tick() => {}
                () = self.enough.notified() => {}
                () = over.cancelled() => break,
            }
            healthy = self.flush(&mut waiting, store, healthy).await;
        }
        loop {
            healthy = self.flush(&mut waiting, store, healthy).await;
            if healthy {
                return;
            }
            time::sleep(RETRY).await;
        }
    }

    /// Writes what is noted, and says whether all of it was written.
    async fn flush(&self, waiting: &mut Gathered, store: &dyn Store, healthy: bool) -> bool {
        self.take(waiting);
        let all_lost = self.lost.load(Ordering::Relaxed);
        let lost = all_lost - self.told_lost.swap(all_lost, Ordering::Relaxed);
        if lost > 0 {
            warn!(
                uses = lost,
                "uses of keys were not noted: there were too many"
            );
        }
        match self.write_all(waiting, store).await {
            Ok(()) if healthy => true,
            Ok(()) => {
                info!("uses of keys are written again");
                true
            }
            Err(error) => {
                // Once an outage, not once a batch.
                if healthy {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, "uses of keys could not be written: they are kept");
                }
                false
            }
        }
    }

    /// Moves what is noted to what is waiting to be written.
    fn take(&self, waiting: &mut Gathered) {
        for table in &self.tables {
            // A table as large as the last one, made while nobody waits for it.
            let size = table.gathered().len();
            let fresh = Gathered::with_capacity_and_hasher(size, DefaultHashBuilder::default());
            let taken = mem::replace(&mut *table.gathered(), fresh);
            for (key, uses) in taken {
                match waiting.entry(key) {
                    Entry::Occupied(mut known) => {
                        known.get_mut().add(uses);
                        self.held.fetch_sub(1, Ordering::Relaxed);
                    }
                    Entry::Vacant(place) => {
                        place.insert(uses);
                    }
                }
            }
        }
    }

    /// Writes what is waiting; what is written waits no more, also when the rest fails.
    async fn write_all(&self, waiting: &mut Gathered, store: &dyn Store) -> Result<(), StoreError> {
        let mut batch: Vec<_> = waiting.iter().map(|(key, uses)| (*key, *uses)).collect();
        // In one order everywhere: replicas that write the same keys do not lock each other out.
        batch.sort_unstable_by_key(|(key, _)| *key);
        for chunk in batch.chunks(CHUNK) {
            store.add_uses(chunk).await?;
            for (key, _) in chunk {
                waiting.remove(key);
            }
            self.held.fetch_sub(chunk.len(), Ordering::Relaxed);
        }
        waiting.shrink_to_fit();
        Ok(())
    }
}

impl Tell for Usage {
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result {
        page.gauge(
            "gatekey_usage_pending",
            "Keys whose last uses are to be written",
            self.held.load(Ordering::Relaxed),
        )?;
        page.counter(
            "gatekey_usage_lost_total",
            "Uses of keys that were not noted for want of room",
            self.lost.load(Ordering::Relaxed),
        )
    }
}

impl Table {
    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{fmt, net::IpAddr, thread};

    use proptest::prelude::*;

    use super::*;
    use crate::domain::clock::Timestamp;

    fn key(number: impl fmt::Display) -> KeyId {
        KeyId::from_bare(&format!("{number:016}")).unwrap()
    }

    fn at(micros: i64) -> Use {
        Use {
            at: Timestamp::from_micros(micros),
            from: Some(IpAddr::from([10, 0, 0, 1])),
        }
    }

    #[test]
    fn what_many_threads_note_while_batches_are_taken_is_all_there_once() {
        const THREADS: u32 = 4;
        const EACH: u32 = 20_000;
        let (usage, mut waiting) = (Usage::default(), Gathered::default());
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let usage = &usage;
                scope.spawn(move || {
                    for n in 0..EACH {
                        usage.note(key(n % 10), at((n * THREADS + thread).into()));
                    }
                });
            }
            for _ in 0..100 {
                usage.take(&mut waiting);
            }
        });
        usage.take(&mut waiting);
        assert_eq!(waiting.len(), 10);
        assert_eq!(usage.held.load(Ordering::Relaxed), 10);
        let count: u64 = waiting.values().map(|uses| uses.count).sum();
        assert_eq!(count, u64::from(THREADS * EACH));
        let last = waiting.values().map(|uses| uses.last.at).max();
        assert_eq!(last, Some(at((EACH * THREADS - 1).into()).at));
    }

    #[test]
    fn no_more_is_held_than_may_be_and_keys_that_are_held_go_on_counting() {
        let (usage, mut waiting) = (Usage::default(), Gathered::default());
        for number in 0..HELD_MAX + 10 {
            usage.note(key(number), at(1));
        }
        usage.note(key(0), at(2));
        assert_eq!(usage.lost.load(Ordering::Relaxed), 10);
        usage.take(&mut waiting);
        assert_eq!(waiting.len(), HELD_MAX);
        assert_eq!(
            waiting[&key(0)],
            Uses {
                last: at(2),
                count: 2
            }
        );
        // What waits takes room, too.
        usage.note(key(HELD_MAX + 1), at(3));
        assert_eq!(usage.lost.load(Ordering::Relaxed), 11);
    }

    proptest! {
        #[test]
        fn in_whatever_parts_uses_come_the_latest_is_the_last_and_counts_add(
            times in prop::collection::vec(0..1000_i64, 1..20),
            cut in any::<prop::sample::Index>(),
        ) {
            let sum = |times: &[i64]| {
                let mut uses = times.iter().map(|micros| Uses::once(at(*micros)));
                let first = uses.next()?;
                Some(uses.fold(first, |mut sum, uses| { sum.add(uses); sum }))
            };
            let (early, late) = times.split_at(cut.index(times.len()));
            let mut parts = sum(late).expect("a use");
            if let Some(early) = sum(early) {
                parts.add(early);
            }
            let latest = *times.iter().max().expect("a use");
            prop_assert_eq!(parts, Uses { last: at(latest), count: times.len() as u64 });
        }
    }
}
