//! A gate: so many may be inside at once, so many more may wait, and the next is told to go.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// As many are waiting as may.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("too many are waiting already")]
pub struct Full;

/// What being inside is: let go when dropped. It can be sent to where the work is done.
pub struct Inside(#[expect(dead_code, reason = "it is held, not used")] OwnedSemaphorePermit);

/// Bounds how many do a thing at once, and how many wait to.
pub struct Gate {
    inside: Arc<Semaphore>,
    waiting: AtomicUsize,
    waiting_max: usize,
    inside_max: usize,
    refused: AtomicU64,
}

/// How busy a gate is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Crowd {
    pub inside: usize,
    pub waiting: usize,
    /// How many were told to go since the start.
    pub refused: u64,
}

impl Gate {
    /// A gate for `inside` at once, with `waiting` before it.
    #[must_use]
    pub fn new(inside: usize, waiting: usize) -> Self {
        Self {
            inside: Arc::new(Semaphore::new(inside)),
            waiting: AtomicUsize::new(0),
            waiting_max: waiting,
            inside_max: inside,
            refused: AtomicU64::new(0),
        }
    }

    /// Waits until there is room inside, in turn.
    ///
    /// # Errors
    /// [`Full`], at once, when as many are waiting as may.
    pub async fn enter(&self) -> Result<Inside, Full> {
        let semaphore = Arc::clone(&self.inside);
        if let Ok(permit) = Arc::clone(&semaphore).try_acquire_owned() {
            return Ok(Inside(permit));
        }
        let waiting = Waiting::begin(&self.waiting, self.waiting_max);
        let _waiting = waiting.inspect_err(|Full| {
            self.refused.fetch_add(1, Ordering::Relaxed);
        })?;
        // It is never closed.
        semaphore
            .acquire_owned()
            .await
            .map(Inside)
            .map_err(|_| Full)
    }

    /// How busy it is now.
    #[must_use]
    pub fn crowd(&self) -> Crowd {
        Crowd {
            inside: self
                .inside_max
                .saturating_sub(self.inside.available_permits()),
            waiting: self.waiting.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a AtomicUsize, max: usize) -> Result<Self, Full> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let this = Self(waiting);
        if before < max { Ok(this) } else { Err(Full) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_is_inside_one_waits_and_the_next_is_told_to_go() {
        let gate = Arc::new(Gate::new(1, 1));
        let first = gate.enter().await.unwrap();
        let second = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.enter().await.is_ok() }
        });
        while gate.waiting.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(gate.enter().await.err(), Some(Full));
        let crowd = Crowd {
            inside: 1,
            waiting: 1,
            refused: 1,
        };
        assert_eq!(gate.crowd(), crowd);
        drop(first);
        assert!(second.await.unwrap());
        assert!(gate.enter().await.is_ok());
    }
}
