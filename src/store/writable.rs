//! Tracks whether changes can be written, by the result of the last attempt.

use std::{
    error::Error,
    sync::atomic::{AtomicBool, Ordering},
};

use tracing::{error, info};

use super::StoreError;

/// Codes of errors that do not show whether changes can be written: the statement waited too long
/// for others, or must be repeated.
const BUSY: [&str; 4] = ["55P03", "57014", "40", "5"];

/// Tracks whether changes can be written, and logs each outage once.
pub(super) struct Writable(AtomicBool);

impl Default for Writable {
    fn default() -> Self {
        Self(AtomicBool::new(true))
    }
}

impl Writable {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Records that a change was committed.
    pub(super) fn succeed(&self) {
        if !self.0.swap(true, Ordering::Relaxed) {
            info!("the database takes changes again");
        }
    }

    /// Records the error of a change that could not be written.
    pub(super) fn fail(&self, error: &StoreError) {
        if stops_changes(error) && self.0.swap(false, Ordering::Relaxed) {
            let error = error as &dyn Error;
            error!(
                error,
                "the database takes no changes: nothing can be issued or revoked; trying every second"
            );
        }
    }
}

/// Returns whether the next change is likely to fail as well.
fn stops_changes(error: &StoreError) -> bool {
    let source = match error {
        StoreError::ReadOnly => return true,
        StoreError::Corrupt(_) => return false,
        StoreError::Unavailable(source)
        | StoreError::Interrupted(source)
        | StoreError::Unknown(source) => source,
    };
    match source.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Database(answer)) => {
            let code = answer.code().unwrap_or_default();
            let sqlite = code.len() < 5;
            !BUSY.iter().any(|busy| match busy.len() {
                1 => sqlite && code == *busy,
                _ => !sqlite && code.starts_with(busy),
            })
        }
        // Changes that wait for each other use all connections.
        Some(sqlx::Error::PoolTimedOut) => false,
        _ => true,
    }
}
