//! Sharded counters, which many threads increment concurrently.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

/// The number of rows. It usually exceeds the number of threads that count often, because threads
/// that share a row contend for it.
const ROWS: usize = 32;

/// Returns the number of the current thread. Threads are numbered from 0 in the order of their
/// first call.
#[must_use]
pub fn thread_number() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = THREADS.fetch_add(1, Ordering::Relaxed);
    }
    OWN.with(|own| *own)
}

/// The counts of a thread, on separate cache lines.
#[repr(align(128))]
struct Row<const N: usize>([AtomicU64; N]);

/// A set of `N` counters, sharded by thread.
pub struct ShardedCounter<const N: usize> {
    rows: Box<[Row<N>]>,
}

impl<const N: usize> Default for ShardedCounter<N> {
    fn default() -> Self {
        Self::with_rows(ROWS)
    }
}

impl<const N: usize> ShardedCounter<N> {
    fn with_rows(rows: usize) -> Self {
        let row = || Row([const { AtomicU64::new(0) }; N]);
        Self {
            rows: (0..rows).map(|_| row()).collect(),
        }
    }

    /// Adds `count` to one of the counters.
    ///
    /// # Panics
    /// Panics if `which` is not less than `N`.
    pub fn add(&self, which: usize, count: u64) {
        self.own()[which].fetch_add(count, Ordering::Relaxed);
    }

    /// Returns the sum of each counter over all threads.
    #[must_use]
    pub fn read(&self) -> [u64; N] {
        let sum = |which: usize| {
            let rows = self.rows.iter();
            rows.map(|row| row.0[which].load(Ordering::Relaxed)).sum()
        };
        std::array::from_fn(sum)
    }

    fn own(&self) -> &[AtomicU64; N] {
        &self.rows[thread_number() % self.rows.len()].0
    }
}

/// The upper bounds of the buckets, in microseconds. They range from a Validate that the cache
/// serves to a revocation that waits for a lost replica.
const BOUNDS: [u32; 20] = [
    5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 2_500_000, 10_000_000, 30_000_000,
];
/// The index of the bucket above all bounds.
const LONGER: usize = BOUNDS.len();
/// The index of the sum of all durations, in nanoseconds.
const SUM: usize = LONGER + 1;

/// A histogram of durations.
pub struct Durations(ShardedCounter<{ SUM + 1 }>);

impl Durations {
    /// Creates a histogram for an operation that every serving thread performs continuously.
    #[must_use]
    pub fn hot() -> Self {
        Self(ShardedCounter::default())
    }

    /// Creates a histogram for a less frequent operation, which uses less memory.
    #[must_use]
    pub fn cold() -> Self {
        Self(ShardedCounter::with_rows(1))
    }

    /// Records one duration.
    pub fn note(&self, took: Duration) {
        let micros = took.as_nanos().div_ceil(1000);
        let bucket = BOUNDS.partition_point(|bound| u128::from(*bound) < micros);
        let row = self.0.own();
        row[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        row[SUM].fetch_add(nanos, Ordering::Relaxed);
    }

    /// Returns the sum in seconds, and each bucket's upper bound in seconds and its count.
    pub(super) fn read(&self) -> (f64, [(f64, u64); LONGER + 1]) {
        let counts = self.0.read();
        let bound = |bucket: usize| BOUNDS.get(bucket).map(|micros| f64::from(*micros) / 1e6);
        let buckets =
            std::array::from_fn(|bucket| (bound(bucket).unwrap_or(f64::INFINITY), counts[bucket]));
        (Duration::from_nanos(counts[SUM]).as_secs_f64(), buckets)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_many_threads_count_is_all_there() {
        let tally = ShardedCounter::<2>::default();
        thread::scope(|scope| {
            for _ in 0..2 * ROWS {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        tally.add(0, 1);
                        tally.add(1, 2);
                    }
                });
            }
        });
        let each = 2 * 1000 * ROWS as u64;
        assert_eq!(tally.read(), [each, 2 * each]);
    }

    #[test]
    fn a_time_is_in_the_first_bucket_that_is_not_shorter() {
        let durations = Durations::cold();
        for (nanos, bound) in [
            (0, 5e-6),
            (5_000, 5e-6),
            (5_001, 1e-5),
            (1_000_000_000, 1.0),
            (30_000_000_001, f64::INFINITY),
        ] {
            let before = durations.read();
            durations.note(Duration::from_nanos(nanos));
            let after = durations.read();
            let grown = after
                .1
                .iter()
                .zip(before.1)
                .find(|(new, old)| new.1 > old.1);
            assert_eq!(grown.map(|(new, _)| new.0), Some(bound), "{nanos}");
        }
        assert!((durations.read().0 - 31.000_010_002).abs() < 1e-9);
    }
}
