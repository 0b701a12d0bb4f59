//! Epochs, and the guard that keeps outdated entries out of the cache; see the parent module.
//!
//! `model.rs` compiles this file again, to run it in every possible order of its steps.

use super::atomic::{AtomicI64, AtomicU32, Ordering};
use crate::domain::{event::Touched, key_policy::KeyPolicy, token::KeyId};

/// Maximum number of epochs, of which there are four for each key of the cache's capacity. Two
/// items that share an epoch only cost each other a reload. An epoch takes four bytes.
const EPOCHS_MAX: usize = 1 << 20;
const EPOCHS_A_KEY: usize = 4;

/// The epochs at which an entry was current.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    owner: u32,
    tenant: u32,
    sum: u32,
}

/// A ticket that each load begins with, to detect whether the replicas were joined anew since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket(u32);

/// The epochs of all keys, owners and tenants, hashed into one table.
pub(super) struct Epochs {
    table: Box<[AtomicU32]>,
    /// Right shift that maps a hash to a table index.
    shift: u32,
    /// The newest revision whose change has advanced epochs, or is about to.
    announced: AtomicI64,
    /// Number of times that the replicas were joined, or that a change affected all entries: an
    /// epoch for all entries.
    joined: AtomicU32,
}

/// The ticket before the replicas are first joined.
pub(super) const NEVER_JOINED: Ticket = Ticket(0);

impl Epochs {
    pub(super) fn new(keys: usize) -> Self {
        let epochs = keys.saturating_mul(EPOCHS_A_KEY).min(EPOCHS_MAX);
        let epochs = epochs.next_power_of_two();
        Self {
            table: (0..epochs).map(|_| AtomicU32::new(0)).collect(),
            shift: u32::BITS - epochs.ilog2(),
            announced: AtomicI64::new(0),
            joined: AtomicU32::new(0),
        }
    }

    pub(super) fn apply(&self, revision: i64, touched: &Touched) {
        self.announced.fetch_max(revision, Ordering::SeqCst);
        match touched {
            // Nothing is cached before the replicas are joined.
            Touched::All if self.ticket() == NEVER_JOINED => {}
            Touched::All => drop(self.joined.fetch_add(1, Ordering::SeqCst)),
            Touched::Keys(keys) => keys.iter().for_each(|key| self.advance(key_hash(*key))),
            Touched::Owner { tenant, owner } => self.advance(owner_hash(tenant, owner)),
            Touched::Tenant(tenant) => self.advance(tenant_hash(tenant)),
        }
    }

    pub(super) fn ticket(&self) -> Ticket {
        Ticket(self.joined.load(Ordering::SeqCst))
    }

    pub(super) fn clear(&self, head: i64) {
        // Stored first: a load with the new ticket reads data as new as everything announced
        // before.
        self.announced.store(head, Ordering::SeqCst);
        self.joined.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns the stamp of an entry loaded at `head`, and whether the entry is as new as every
    /// known change.
    pub(super) fn stamp(
        &self,
        id: KeyId,
        policy: &KeyPolicy,
        head: i64,
        ticket: Ticket,
    ) -> (Stamp, bool) {
        let owner = owner_hash(policy.tenant_id(), policy.owner_id());
        let tenant = tenant_hash(policy.tenant_id());
        let sum = self.sum(key_hash(id), owner, tenant);
        // Read after the epochs: a change that they include has been announced by now.
        let current = self.announced.load(Ordering::SeqCst) <= head;
        let joined = ticket != NEVER_JOINED && ticket == self.ticket();
        (Stamp { owner, tenant, sum }, current && joined)
    }

    pub(super) fn counts(&self, id: KeyId, stamp: Stamp) -> bool {
        self.sum(key_hash(id), stamp.owner, stamp.tenant) == stamp.sum
    }

    fn sum(&self, key: u32, owner: u32, tenant: u32) -> u32 {
        [key, owner, tenant]
            .into_iter()
            .map(|hash| self.epoch(hash).load(Ordering::SeqCst))
            .fold(self.joined.load(Ordering::SeqCst), u32::wrapping_add)
    }

    fn advance(&self, hash: u32) {
        self.epoch(hash).fetch_add(1, Ordering::SeqCst);
    }

    fn epoch(&self, hash: u32) -> &AtomicU32 {
        &self.table[(hash >> self.shift) as usize]
    }
}

/// Multiplies half of the id, which is already random, to fill the upper bits.
fn key_hash(id: KeyId) -> u32 {
    fold(id.low_bits().wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn owner_hash(tenant: &str, owner: &str) -> u32 {
    hashed(&[tenant, "\0", owner])
}

fn tenant_hash(tenant: &str) -> u32 {
    hashed(&[tenant])
}

/// FNV-1a, because a table index need not be secret, only deterministic.
fn hashed(parts: &[&str]) -> u32 {
    let bytes = parts.iter().flat_map(|part| part.bytes());
    fold(bytes.fold(0xCBF2_9CE4_8422_2325, |mixed, byte| {
        (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    }))
}

fn fold(mixed: u64) -> u32 {
    // The upper bits are mixed best.
    u32::try_from(mixed >> 32).unwrap_or_default()
}
