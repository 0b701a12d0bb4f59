//! Detects connections that may lead to a server that is not the primary.
//!
//! After a failover, or while a session's default is read-only, all connections of a pool may be
//! unusable, and stay so. Once one connection proves to be read-only, all connections that are as
//! old are replaced before they are used again.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// The minimum time between two replacements of all connections.
const REPLACE_EVERY: Duration = Duration::from_secs(1);

/// The time before which no usable connection was opened.
#[derive(Debug)]
pub(super) struct Trust {
    start: Instant,
    /// In microseconds after `start`; 0: all connections are trusted.
    since: AtomicU64,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            since: AtomicU64::new(0),
        }
    }
}

impl Trust {
    /// Distrusts the connections that are open now, unless that happened a moment ago.
    pub(super) fn lose(&self) {
        let now = self.start.elapsed();
        let since = Duration::from_micros(self.since.load(Ordering::Relaxed));
        if since.is_zero() || now.saturating_sub(since) >= REPLACE_EVERY {
            let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
            self.since.fetch_max(now, Ordering::Relaxed);
        }
    }

    /// Returns whether a connection of this age may be used.
    pub(super) fn covers(&self, age: Duration) -> bool {
        let since = Duration::from_micros(self.since.load(Ordering::Relaxed));
        since.is_zero() || age <= self.start.elapsed().saturating_sub(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_connections_lose_trust_at_most_once_in_a_while() {
        let hour = Duration::from_hours(1);
        let trust = Trust {
            start: Instant::now().checked_sub(hour).unwrap(),
            since: AtomicU64::new(0),
        };
        assert!(trust.covers(hour));
        trust.lose();
        assert!(!trust.covers(Duration::from_mins(1)));
        assert!(trust.covers(Duration::ZERO));
        let since = trust.since.load(Ordering::Relaxed);
        trust.lose();
        assert_eq!(trust.since.load(Ordering::Relaxed), since);
    }
}
