//! Uses of a key: when it was last used, from where, and how often.

use std::net::IpAddr;

use super::clock::Timestamp;

/// One use of a key: a call in which it was allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Use {
    pub at: Timestamp,
    /// Where it was presented from, if whoever asked about it said so.
    pub from: Option<IpAddr>,
}

/// The uses of a key over some time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uses {
    pub last: Use,
    pub count: u64,
}

impl Uses {
    /// A single use.
    #[must_use]
    pub fn once(last: Use) -> Self {
        Self { last, count: 1 }
    }

    /// Adds others of the same key: the latest is the last, and counts add.
    pub fn add(&mut self, others: Self) {
        if others.last.at >= self.last.at {
            self.last = others.last;
        }
        self.count = self.count.saturating_add(others.count);
    }
}
