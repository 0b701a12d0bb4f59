//! The presence of a caller: whether the caller still waits for the response to a call.
//!
//! The connection holds the guard while it waits for the response. The work holds the presence and
//! checks it before each step that must not run for an absent caller, such as a hash or a COMMIT.

use std::future::pending;

use thiserror::Error;
use tokio::time::{self, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The reason why the caller no longer waits for a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Gone {
    #[error("the caller has cancelled the call, or its connection is lost")]
    Left,
    #[error("the deadline of the call has passed")]
    DeadlinePassed,
}

/// The presence of one call's caller, shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct Presence {
    left: CancellationToken,
    deadline: Option<Instant>,
}

/// Marks the caller as gone when dropped, unless the call was answered before.
#[derive(Debug)]
pub struct PresenceGuard(DropGuard);

impl Presence {
    /// Returns the presence of a caller that waits until `deadline`, and the guard for the code
    /// that waits for the response. [`Presence::default`] is a caller that waits forever.
    #[must_use]
    pub fn new(deadline: Option<Instant>) -> (Self, PresenceGuard) {
        let left = CancellationToken::new();
        let guard = PresenceGuard(left.clone().drop_guard());
        (Self { left, deadline }, guard)
    }

    /// Returns the call's deadline, if it has one.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Checks that the caller still waits.
    ///
    /// # Errors
    /// Returns the reason why it does not.
    pub fn check(&self) -> Result<(), Gone> {
        if self.left.is_cancelled() {
            return Err(Gone::Left);
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Gone::DeadlinePassed),
            _ => Ok(()),
        }
    }

    /// Waits until the caller is gone.
    pub async fn gone(&self) -> Gone {
        let passed = async {
            match self.deadline {
                Some(deadline) => time::sleep_until(deadline).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.left.cancelled() => Gone::Left,
            () = passed => Gone::DeadlinePassed,
        }
    }
}

impl PresenceGuard {
    /// Disarms the guard, because the response was handed over.
    pub fn answered(self) {
        self.0.disarm();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_caller_is_gone_once_its_guard_is_dropped() {
        let (presence, guard) = Presence::new(None);
        assert_eq!(presence.clone().check(), Ok(()));
        drop(guard);
        assert_eq!(presence.check(), Err(Gone::Left));
        assert_eq!(presence.gone().await, Gone::Left);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_is_gone_once_its_deadline_has_passed() {
        let deadline = Instant::now() + Duration::from_secs(1);
        let (presence, _guard) = Presence::new(Some(deadline));
        assert_eq!(presence.check(), Ok(()));
        assert_eq!(presence.gone().await, Gone::DeadlinePassed);
        assert_eq!(Instant::now(), deadline);
        assert_eq!(presence.check(), Err(Gone::DeadlinePassed));
    }

    #[test]
    fn a_caller_who_was_answered_has_not_gone() {
        let (presence, guard) = Presence::new(None);
        guard.answered();
        assert_eq!(presence.check(), Ok(()));
        assert_eq!(Presence::default().check(), Ok(()));
    }
}
