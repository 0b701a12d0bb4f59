//! Records when, from where and how often keys are used. Uses are collected in memory and written
//! in batches.
//!
//! A use costs its call one uncontended lock and one lookup in a table of its own thread, never a
//! database write. It allocates memory only at a key's first use since the last batch. Memory is
//! bounded: beyond [`HELD_MAX`] keys, uses of further keys are lost, and the loss is logged. A
//! failed batch is kept and written with the next one. Across replicas, the latest use wins and
//! counts are added.

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
    metrics::{Collect, Encoder, thread_number},
    store::{Store, StoreError},
};

/// Interval between batches. A use can be read 5 s later, including the write; at most that much is
/// lost if the process is killed.
const INTERVAL: Duration = Duration::from_secs(4);
/// Maximum number of keys whose uses are held at once, about 100 bytes each.
const HELD_MAX: usize = 1 << 18;
/// Number of held keys that triggers an early batch.
const ENOUGH: usize = HELD_MAX / 4;
/// Delay before a batch that failed during shutdown is retried.
const RETRY: Duration = Duration::from_millis(250);
/// Timeout of the last batch.
const LAST: Duration = Duration::from_secs(5);
/// Maximum number of keys per transaction, because changes alternate with these transactions.
const CHUNK: usize = 500;
/// Number of tables, usually more than there are threads, because threads that share a table wait
/// for each other.
const TABLES: usize = 64;

type Gathered = HashMap<KeyId, Uses, DefaultHashBuilder>;

/// A thread's table, on its own cache lines.
#[derive(Default)]
#[repr(align(128))]
struct Table(Mutex<Gathered>);

/// Collects uses of keys.
pub struct Usage {
    tables: Box<[Table]>,
    /// Number of entries in the tables and waiting to be written.
    held: AtomicUsize,
    /// Number of uses that were lost because too many keys were held.
    lost: AtomicU64,
    /// Number of lost uses that have already been logged.
    told_lost: AtomicU64,
    enough: Notify,
}

/// The background task that writes uses.
pub struct Writing {
    task: JoinHandle<()>,
    over: CancellationToken,
}

impl Writing {
    /// Writes the last uses. Must be called when no call can record a use any more, before the
    /// database is closed.
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
    /// Records a use of a key.
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

    /// Collects uses and writes them to `store` on the current runtime, until the returned
    /// [`Writing`] is finished.
    #[must_use]
    pub fn start(store: Arc<dyn Store>) -> (Arc<Self>, Writing) {
        let (usage, over) = (Arc::new(Self::default()), CancellationToken::new());
        let task = tokio::spawn({
            let (usage, over) = (Arc::clone(&usage), over.clone());
            async move { usage.write(&*store, over).await }
        });
        (usage, Writing { task, over })
    }

    /// Writes recorded uses in batches until `over` is cancelled, then retries the rest until it is
    /// written.
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

    /// Writes recorded uses. Returns true if all of them were written.
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
                // Logged once per outage, not once per batch.
                if healthy {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, "uses of keys could not be written: they are kept");
                }
                false
            }
        }
    }

    /// Moves recorded uses to the batch that waits to be written.
    fn take(&self, waiting: &mut Gathered) {
        for table in &self.tables {
            // Allocates the new table, as large as the last one, before the lock is taken.
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

    /// Writes the waiting batch. Keys that were written leave the batch even if the rest fails.
    async fn write_all(&self, waiting: &mut Gathered, store: &dyn Store) -> Result<(), StoreError> {
        let mut batch: Vec<_> = waiting.iter().map(|(key, uses)| (*key, *uses)).collect();
        // The same order on all replicas prevents deadlocks between writes of the same keys.
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

impl Collect for Usage {
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
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
        // Keys that wait to be written count towards the limit.
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
