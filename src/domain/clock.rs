//! Time as the domain sees it: a point on the wall clock, in microseconds.
//!
//! Nothing in the domain reads a clock; the time is handed in. `SystemClock` is the one place
//! that asks the machine. Where only a span counts, it is measured by `uptime`.

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
    /// 0001-01-01T00:00:00Z, the first that `google.protobuf.Timestamp` can hold.
    pub const MIN: Self = Self(-62_135_596_800_000_000);
    /// 9999-12-31T23:59:59.999999Z, the last that `google.protobuf.Timestamp` can hold.
    pub const MAX: Self = Self(253_402_300_799_999_999);

    /// The time `micros` microseconds after 1970, clamped to [`Timestamp::MIN`] and
    /// [`Timestamp::MAX`].
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

    /// Microseconds since 1970.
    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// The time `span` later, at most [`Timestamp::MAX`].
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros).min(Self::MAX.0))
    }

    /// How long after `earlier` this is; zero when it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// As RFC 3339 has it, in UTC. Before 1970 it is 1970.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = u64::try_from(self.0).unwrap_or(0);
        let time = UNIX_EPOCH + Duration::from_micros(micros);
        humantime::format_rfc3339_micros(time).fmt(f)
    }
}

/// Where the time comes from: the machine, or a test.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock's time. It never goes back.
    fn now(&self) -> Timestamp;

    /// How long it is since some point before, which no setting of the wall clock changes, and
    /// which goes on while the machine sleeps: two of these say how long something took.
    fn uptime(&self) -> Duration;
}

/// The machine's own clock. Where the wall clock is set back, it goes on from where it was, at the
/// rate of the uptime: a key that has expired must not come back to life.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// By how many microseconds the wall clock is ahead of the uptime, the most that was seen.
static AHEAD: AtomicI64 = AtomicI64::new(i64::MIN);

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the machine for the time"
    )]
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        // In this order: what passes between the two makes it too little ahead, never too much.
        let wall = Timestamp(0).after(since.unwrap_or_default());
        let uptime = i64::try_from(self.uptime().as_micros()).unwrap_or(i64::MAX);
        let ahead = wall.0.saturating_sub(uptime);
        let most = AHEAD.load(Ordering::Relaxed);
        // Seldom, so that threads do not contend for the place in memory.
        let most = if ahead > most {
            AHEAD.fetch_max(ahead, Ordering::Relaxed).max(ahead)
        } else {
            most
        };
        Timestamp::from_micros(uptime.saturating_add(most))
    }

    fn uptime(&self) -> Duration {
        // Not `Instant`, which stands still while the machine sleeps.
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
