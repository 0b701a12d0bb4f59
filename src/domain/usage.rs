//! Uses of a key: the time and address of the last use, and the number of uses.

use std::net::IpAddr;

use super::clock::Timestamp;

/// A use of a key: a request in which the key was allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Use {
    pub at: Timestamp,
    /// The address from which the key was presented, if the caller provided it.
    pub from: Option<IpAddr>,
}

/// The uses of a key over a period.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uses {
    pub last: Use,
    pub count: u64,
}

impl Uses {
    /// Creates a single use.
    #[must_use]
    pub fn once(last: Use) -> Self {
        Self { last, count: 1 }
    }

    /// Adds other uses of the same key: keeps the latest use and sums the counts.
    pub fn add(&mut self, others: Self) {
        if others.last.at >= self.last.at {
            self.last = others.last;
        }
        self.count = self.count.saturating_add(others.count);
    }
}
