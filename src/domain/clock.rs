//! Wall-clock times, in microseconds, and the clock.
//!
//! Domain functions take the time as an argument; only [`SystemClock`] reads the clocks of the
//! machine. Elapsed time is measured by [`Clock::uptime`].

use std::{
    fmt,
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};

/// A point in time: microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Timestamp(i64);

impl Timestamp {
    /// 0001-01-01T00:00:00Z, the earliest time that `google.protobuf.Timestamp` can represent.
    pub const MIN: Self = Self(-62_135_596_800_000_000);
    /// 9999-12-31T23:59:59.999999Z, the latest time that `google.protobuf.Timestamp` can represent.
    pub const MAX: Self = Self(253_402_300_799_999_999);

    /// Returns the time `micros` microseconds after 1970-01-01T00:00:00Z, clamped to
    /// [`Timestamp::MIN`] and [`Timestamp::MAX`].
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        if micros < Self::MIN.0 {
            Self::MIN
        } else if micros > Self::MAX.0 {
            Self::MAX
        } else {
            Self(micros)
        }
    }

    /// Returns the microseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Returns the time `span` later, at most [`Timestamp::MAX`].
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros).min(Self::MAX.0))
    }

    /// Returns the duration since `earlier`, or zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// Formats the time as in RFC 3339, in UTC. A time before 1970 is shown as the start of 1970.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = u64::try_from(self.0).unwrap_or(0);
        let time = UNIX_EPOCH + Duration::from_micros(micros);
        humantime::format_rfc3339_micros(time).fmt(f)
    }
}

/// A source of time: the machine, or a test.
pub trait Clock: Send + Sync + 'static {
    /// Returns the wall-clock time, which never goes back.
    fn now(&self) -> Timestamp;

    /// Returns the time since a fixed point in the past. Changes of the wall clock do not affect
    /// it, and it advances while the machine sleeps. The difference of two values is an elapsed
    /// time.
    fn uptime(&self) -> Duration;
}

/// The clock of the machine. If the wall clock is set back, the time continues from its latest
/// value at the rate of the uptime, because an expired key must not become valid again.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// The largest observed lead of the wall clock over the uptime, in microseconds.
static AHEAD: AtomicI64 = AtomicI64::new(i64::MIN);

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the machine for the time"
    )]
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        // The wall clock is read first: time between the two reads makes the lead too small, never
        // too large.
        let wall = Timestamp(0).after(since.unwrap_or_default());
        let uptime = i64::try_from(self.uptime().as_micros()).unwrap_or(i64::MAX);
        let ahead = wall.0.saturating_sub(uptime);
        let most = AHEAD.load(Ordering::Relaxed);
        // Written only if the lead grows, so that threads do not contend for the cache line.
        let most = if ahead > most {
            AHEAD.fetch_max(ahead, Ordering::Relaxed).max(ahead)
        } else {
            most
        };
        Timestamp::from_micros(uptime.saturating_add(most))
    }

    fn uptime(&self) -> Duration {
        // `Instant` does not advance while the machine sleeps.
        let time = clock_gettime(ClockId::Boottime);
        Duration::try_from(time).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_outside_of_what_a_message_can_hold_are_clamped() {
        assert_eq!(Timestamp::from_micros(i64::MIN), Timestamp::MIN);
        assert_eq!(Timestamp::from_micros(i64::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::from_micros(-1).as_micros(), -1);
        assert_eq!(Timestamp::MAX.to_string(), "9999-12-31T23:59:59.999999Z");
    }

    #[test]
    fn the_clock_is_that_of_the_machine_and_does_not_go_back() {
        let wall = || humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH);
        assert!(SystemClock.now().to_string() > wall().to_string());
        let mut last = SystemClock.now();
        for _ in 0..10_000 {
            let now = SystemClock.now();
            assert!(now >= last);
            last = now;
        }
    }
}
