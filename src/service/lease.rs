//! The lease: the time until which this process may serve cached entries.
//!
//! Callers read the deadline first, then the cache, then the clock. An entry that was cached while
//! the clock was before the deadline was valid at that time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::domain::clock::Clock;

/// A lease, which the code that keeps the cache up to date renews repeatedly.
#[derive(Debug, Default)]
pub struct Lease {
    /// Microseconds of [`Clock::uptime`]; 0 means no lease.
    until: AtomicU64,
}

/// The end of the lease at the time when it was read.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    until: u64,
}

impl Lease {
    /// Grants the lease until this uptime.
    pub fn grant(&self, until: Duration) {
        self.until.store(micros(until), Ordering::SeqCst);
    }

    /// Ends the lease.
    pub fn end(&self) {
        self.until.store(0, Ordering::SeqCst);
    }

    /// Returns the end of the lease.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        Deadline {
            until: self.until.load(Ordering::SeqCst),
        }
    }
}

impl Deadline {
    /// Returns true if the clock has not reached the deadline.
    #[must_use]
    pub fn is_ahead(self, clock: &dyn Clock) -> bool {
        micros(clock.uptime()) < self.until
    }

    /// Returns the time left until the deadline, or zero if it has passed.
    #[must_use]
    pub fn left(self, clock: &dyn Clock) -> Duration {
        Duration::from_micros(self.until.saturating_sub(micros(clock.uptime())))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
