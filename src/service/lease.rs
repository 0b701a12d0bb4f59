//! The lease: until when this process may answer from memory.
//!
//! To be read in this order: the deadline, then what is in memory, then the clock. What was in
//! memory while the clock was before the deadline was true then.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::domain::clock::Clock;

/// A lease, granted again and again by what keeps memory true.
#[derive(Debug, Default)]
pub struct Lease {
    /// In microseconds of [`Clock::uptime`]; 0: there is none.
    until: AtomicU64,
}

/// Until when the lease was held when it was looked at.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    until: u64,
}

impl Lease {
    /// Grants the lease until this uptime.
    pub fn grant(&self, until: Duration) {
        self.until.store(micros(until), Ordering::SeqCst);
    }

    /// Ends it.
    pub fn end(&self) {
        self.until.store(0, Ordering::SeqCst);
    }

    /// Until when it is held.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        Deadline {
            until: self.until.load(Ordering::SeqCst),
        }
    }
}

impl Deadline {
    /// Whether it has not been reached by this clock.
    #[must_use]
    pub fn is_ahead(self, clock: &dyn Clock) -> bool {
        micros(clock.uptime()) < self.until
    }

    /// How long it is until then; zero when it is past.
    #[must_use]
    pub fn left(self, clock: &dyn Clock) -> Duration {
        Duration::from_micros(self.until.saturating_sub(micros(clock.uptime())))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
