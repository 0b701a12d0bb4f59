//! Counts that many threads make at once.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

/// More than there are threads that count much, as a rule: two on one row wait for each other.
const ROWS: usize = 32;

/// The number of the current thread, from 0 in the order of asking.
#[must_use]
pub fn thread_number() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = THREADS.fetch_add(1, Ordering::Relaxed);
    }
    OWN.with(|own| *own)
}

/// A thread's counts, on cache lines of their own.
#[repr(align(128))]
struct Row<const N: usize>([AtomicU64; N]);

/// `N` counts.
pub struct Tally<const N: usize> {
    rows: Box<[Row<N>]>,
}

impl<const N: usize> Default for Tally<N> {
    fn default() -> Self {
        Self::with_rows(ROWS)
    }
}

impl<const N: usize> Tally<N> {
    fn with_rows(rows: usize) -> Self {
        let row = || Row([const { AtomicU64::new(0) }; N]);
        Self {
            rows: (0..rows).map(|_| row()).collect(),
        }
    }

    /// Adds to one of the counts.
    ///
    /// # Panics
    /// When there is no such one.
    pub fn add(&self, which: usize, count: u64) {
        self.own()[which].fetch_add(count, Ordering::Relaxed);
    }

    /// All the counts.
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

/// The buckets' upper bounds, in microseconds: from a Validate that is answered from memory to a
/// revocation that waits for a lost replica.
const BOUNDS: [u32; 20] = [
    5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 2_500_000, 10_000_000, 30_000_000,
];
/// What is longer than all of them, and the sum of all, in nanoseconds.
const LONGER: usize = BOUNDS.len();
const SUM: usize = LONGER + 1;

/// How long something took, as a histogram.
pub struct Durations(Tally<{ SUM + 1 }>);

impl Durations {
    /// Of what every serving thread does all the time.
    #[must_use]
    pub fn hot() -> Self {
        Self(Tally::default())
    }

    /// Of what is done less often: it takes less memory.
    #[must_use]
    pub fn cold() -> Self {
        Self(Tally::with_rows(1))
    }

    /// Notes that it took this long, once more.
    pub fn note(&self, took: Duration) {
        let micros = took.as_nanos().div_ceil(1000);
        let bucket = BOUNDS.partition_point(|bound| u128::from(*bound) < micros);
        let row = self.0.own();
        row[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        row[SUM].fetch_add(nanos, Ordering::Relaxed);
    }

    /// The sum in seconds, and each bucket's upper bound in seconds and its count.
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
        let tally = Tally::<2>::default();
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
