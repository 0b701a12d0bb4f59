//! Requesters of Argon2 hashes, which wait in one lane for each purpose.
//!
//! The lanes take turns, and so do the requesters in each lane.

use crate::domain::{caller::Principal, token::KeyId};

/// The requester of a hash, which also determines its purpose.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Requester {
    /// A presented key whose id is unknown. All of them are one requester.
    UnknownId,
    /// A presented key with this known id.
    KnownId(KeyId),
    /// The principal for whom a key is made.
    Issuer(Principal),
}

/// The number of lanes.
pub(super) const PURPOSES: usize = 3;

impl Requester {
    /// The names of the lanes in metrics.
    pub(super) const PURPOSES: [&str; PURPOSES] = ["unknown_id", "known_id", "issue"];
    /// One hash in turn for each lane that has waiting hashes.
    pub(super) const SCHEDULE: &[usize] = &[1, 2, 0];

    /// Returns the lane in which the hash waits.
    pub(super) fn lane(&self) -> usize {
        match self {
            Self::UnknownId => 0,
            Self::KnownId(_) => 1,
            Self::Issuer(_) => 2,
        }
    }
}
