//! Whether a change that narrows what keys may do is in force everywhere.

use super::clock::Timestamp;

/// The change itself is durable in either case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enforcement {
    /// No replica answers by what was true before any more.
    Enforced,
    /// The call's deadline came first.
    Pending {
        /// The latest time at which it will be enforced.
        by: Timestamp,
        /// How many replicas have not acknowledged yet.
        pending_replicas: u32,
    },
}
