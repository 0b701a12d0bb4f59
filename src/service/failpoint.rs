//! Failpoints: faults that tests enable to check that they detect them. A release build has none.

use std::env;

/// A fault that breaks the guarantee of revocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failpoint {
    /// A renewal grants the lease although the log entries that it saw are not applied.
    NoFence,
    /// The lease is counted from the renewal's response instead of its request.
    LeaseFromAnswer,
    /// Joining grants a lease.
    JoinGrants,
    /// Joining again keeps the existing cache entries.
    JoinKeeps,
    /// Events are acknowledged before they are applied.
    AcknowledgeFirst,
    /// A row that is older than the applied events is cached.
    NoFillGuard,
    /// The cache serves entries without a lease.
    NoLeaseCheck,
    /// A revocation does not wait as long as a lease can last.
    ShortWait,
    /// Revoking a revoked key waits for no replica.
    NoSecondWait,
}

impl Failpoint {
    /// All failpoints.
    pub const ALL: [Self; 9] = [
        Self::NoFence,
        Self::LeaseFromAnswer,
        Self::JoinGrants,
        Self::JoinKeeps,
        Self::AcknowledgeFirst,
        Self::NoFillGuard,
        Self::NoLeaseCheck,
        Self::ShortWait,
        Self::NoSecondWait,
    ];
}

/// The enabled failpoint, if any.
#[derive(Clone, Copy, Default, Debug)]
pub struct Failpoints(Option<Failpoint>);

impl Failpoints {
    /// No failpoint.
    pub const NONE: Self = Self(None);

    /// Enables this failpoint in a debug build.
    #[must_use]
    pub const fn with(fault: Failpoint) -> Self {
        Self(Some(fault))
    }

    /// Returns the failpoint that `GATEKEY_FAULT` names, in a debug build. Tests of whole processes
    /// need only `no-lease-check`.
    #[must_use]
    pub fn from_env() -> Self {
        let asked = cfg!(debug_assertions).then(|| env::var("GATEKEY_FAULT").ok());
        match asked.flatten().as_deref() {
            Some("no-lease-check") => Self::with(Failpoint::NoLeaseCheck),
            _ => Self::NONE,
        }
    }

    /// Returns true if this failpoint is enabled.
    #[must_use]
    pub fn has(self, fault: Failpoint) -> bool {
        cfg!(debug_assertions) && self.0 == Some(fault)
    }
}
