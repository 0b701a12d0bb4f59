//! The context of an administrative call.

use super::presence::{Gone, Presence};
use crate::domain::caller::Caller;

/// The caller of an administrative call, and whether it still waits for the response.
#[derive(Clone, Debug)]
pub struct CallContext {
    pub caller: Caller,
    pub presence: Presence,
}

impl CallContext {
    /// Returns the context of a caller that waits forever.
    #[must_use]
    pub fn patient(caller: Caller) -> Self {
        Self {
            caller,
            presence: Presence::default(),
        }
    }

    /// Runs `work` while the caller waits. Drops `work` when the caller is gone.
    ///
    /// # Errors
    /// Returns the reason why the caller no longer waits.
    pub async fn while_present<T>(&self, work: impl Future<Output = T>) -> Result<T, Gone> {
        self.presence.check()?;
        tokio::select! {
            // Polled first, so that nothing runs for a caller that is already gone.
            biased;
            gone = self.presence.gone() => Err(gone),
            done = work => Ok(done),
        }
    }
}
