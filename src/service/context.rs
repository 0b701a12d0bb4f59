//! The context of an administrative call.

use super::presence::{Gone, Presence};
use crate::domain::caller::Caller;

/// The caller of an administrative call, and whether it still waits for the answer.
#[derive(Clone, Debug)]
pub struct CallContext {
    pub caller: Caller,
    pub presence: Presence,
}

impl CallContext {
    /// Returns the context of a caller who waits for ever.
    #[must_use]
    pub fn patient(caller: Caller) -> Self {
        Self {
            caller,
            presence: Presence::default(),
        }
    }

    /// Runs `work` while the caller waits. Once it is gone, `work` is dropped.
    ///
    /// # Errors
    /// The reason why the caller does not wait any more.
    pub async fn while_present<T>(&self, work: impl Future<Output = T>) -> Result<T, Gone> {
        self.presence.check()?;
        tokio::select! {
            // First, so that nothing goes on for a caller who is gone already.
            biased;
            gone = self.presence.gone() => Err(gone),
            done = work => Ok(done),
        }
    }
}
