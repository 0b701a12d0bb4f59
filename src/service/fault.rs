//! Faults that tests put in, to see that they would notice. A release build has none.

use std::env;

/// One thing done wrong: each of these breaks the promise of revocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A renewal grants the lease though what it saw of the log is not applied.
    NoFence,
    /// The lease is counted from the renewal's answer.
    LeaseFromAnswer,
    /// Joining grants a lease.
    JoinGrants,
    /// Joining anew leaves in memory what was there.
    JoinKeeps,
    /// Events are acknowledged before they are applied.
    AcknowledgeFirst,
    /// A row is kept in memory that is older than what was applied.
    NoFillGuard,
    /// Memory answers without a lease.
    NoLeaseCheck,
    /// A revocation does not wait as long as a lease can last.
    ShortWait,
    /// Revoking a revoked key waits for nobody.
    NoSecondWait,
}

impl Fault {
    /// All of them.
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

/// The fault that was put in, if one was.
#[derive(Clone, Copy, Default, Debug)]
pub struct Faults(Option<Fault>);

impl Faults {
    /// As it should be.
    pub const NONE: Self = Self(None);

    /// With this fault, in a debug build.
    #[must_use]
    pub const fn with(fault: Fault) -> Self {
        Self(Some(fault))
    }

    /// What `GATEKEY_FAULT` asks for, in a debug build: `no-lease-check` is what a test of whole
    /// processes needs.
    #[must_use]
    pub fn from_env() -> Self {
        let asked = cfg!(debug_assertions).then(|| env::var("GATEKEY_FAULT").ok());
        match asked.flatten().as_deref() {
            Some("no-lease-check") => Self::with(Fault::NoLeaseCheck),
            _ => Self::NONE,
        }
    }

    /// Whether this fault was put in.
    #[must_use]
    pub fn has(self, fault: Fault) -> bool {
        cfg!(debug_assertions) && self.0 == Some(fault)
    }
}
