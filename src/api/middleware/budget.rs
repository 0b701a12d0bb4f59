//! A process-wide memory budget, in bytes, for the bodies of unfinished requests and unread
//! responses. Streams and their headers are bounded by the code that serves connections.
//!
//! The container's memory limit in the chart leaves 128 MiB for the process and its connections.
//! The budget is part of that.

use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::Status;

use crate::api::convert::status;

/// The budget for identified callers.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// The part of the budget for bodies larger than [`SMALL`], so that large bodies cannot exhaust the
/// budget for small ones.
const LARGE_MAX: usize = BYTES_MAX / 4 * 3;
/// An upper bound on the size of nearly every health check request.
const PROBE: usize = 512;
/// An upper bound on the size of nearly every body.
const SMALL: usize = 4 * 1024;

static HELD: AtomicUsize = AtomicUsize::new(0);

/// The class of a caller. A later class may still take bytes when an earlier one may not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::api) enum Class {
    /// An unidentified caller that requests a health check. The first [`PROBE`] bytes are free, so
    /// that no other caller can block a probe.
    Probe,
    /// An unidentified caller in a call that needs no credential.
    Stranger,
    /// An identified caller.
    Caller,
    /// An identified caller of Validate: other services depend on its responses.
    Validator,
}

impl Class {
    fn max(self) -> usize {
        match self {
            Self::Probe | Self::Stranger => BYTES_MAX / 2,
            Self::Caller => BYTES_MAX,
            Self::Validator => BYTES_MAX / 2 * 3,
        }
    }
}

/// Bytes taken from the budget. They are returned on drop.
#[derive(Debug)]
pub(in crate::api) struct Charge {
    class: Class,
    bytes: usize,
    /// The number of bytes that can still be taken without a charge.
    free: usize,
}

impl Charge {
    /// Returns a charge that has taken nothing yet.
    pub(in crate::api) fn none(class: Class) -> Self {
        let free = if class == Class::Probe { PROBE } else { 0 };
        Self {
            class,
            bytes: 0,
            free,
        }
    }

    /// Takes bytes from the budget.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when the budget has too few bytes left for this class.
    pub(in crate::api) fn take(class: Class, bytes: usize) -> Result<Self, Status> {
        let mut charge = Self::none(class);
        charge.grow_by(bytes)?;
        Ok(charge)
    }

    /// Takes more bytes from the budget.
    ///
    /// # Errors
    /// Same as [`Charge::take`].
    pub(in crate::api) fn grow_by(&mut self, bytes: usize) -> Result<(), Status> {
        let free = self.free.min(bytes);
        self.free -= free;
        let bytes = bytes - free;
        if bytes == 0 {
            return Ok(());
        }
        let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.bytes += bytes;
        let max = if self.bytes > SMALL {
            self.class.max().min(LARGE_MAX)
        } else {
            self.class.max()
        };
        if held > max {
            return Err(status::memory_busy());
        }
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        HELD.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_leave_room_for_small_ones_and_callers_for_validators() {
        let strangers = Charge::take(Class::Stranger, BYTES_MAX / 2).unwrap();
        assert!(Charge::take(Class::Stranger, 1).is_err());
        assert!(Charge::take(Class::Probe, PROBE).is_ok());
        assert!(Charge::take(Class::Probe, PROBE + 1).is_err());
        let large = Charge::take(Class::Caller, LARGE_MAX - BYTES_MAX / 2).unwrap();
        for class in [Class::Caller, Class::Validator] {
            assert!(Charge::take(class, SMALL + 1).is_err());
            let mut small = Charge::take(class, SMALL).unwrap();
            assert!(small.grow_by(1).is_err());
        }
        let small = || Charge::take(Class::Caller, SMALL);
        let callers: Vec<_> = std::iter::from_fn(|| small().ok()).collect();
        assert_eq!(callers.len(), (BYTES_MAX - LARGE_MAX) / SMALL);
        let validator = Charge::take(Class::Validator, SMALL).unwrap();
        drop((strangers, large, callers, validator));
        assert_eq!(HELD.load(Ordering::Relaxed), 0);
    }
}
