//! The enforcement of a restricting change on all replicas.

use super::clock::Timestamp;

/// The enforcement state of a change, which is durable in either state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enforcement {
    /// Every replica enforces the change.
    Enforced,
    /// The deadline of the request expired first.
    Pending {
        /// The latest time at which every replica enforces the change.
        by: Timestamp,
        /// The number of replicas that have not acknowledged the change yet.
        pending_replicas: u32,
    },
}
