//! The epochs, and the guard that keeps what changed from coming back: see the parent.
//!
//! `model.rs` compiles this file again, to run it in every order that its steps can take.

use super::atomic::{AtomicI64, AtomicU32, Ordering};
use crate::domain::{event::Touched, standing::Standing, token::KeyId};

/// What an entry was true at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    owner: u32,
    tenant: u32,
    sum: u32,
}

/// What a load is to begin with: it tells whether the replicas were joined anew since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket(u32);

/// The epochs of everything, hashed into one table.
pub(super) struct Epochs {
    table: Box<[AtomicU32]>,
    /// The newest revision whose change has advanced epochs, or is about to.
    announced: AtomicI64,
    /// How often the replicas were joined: an epoch of everything.
    joined: AtomicU32,
}

/// The ticket before the replicas were joined for the first time.
pub(super) const NEVER_JOINED: Ticket = Ticket(0);

impl Epochs {
    /// So many of them, a power of two.
    pub(super) fn new(count: usize) -> Self {
        Self {
            table: (0..count).map(|_| AtomicU32::new(0)).collect(),
            announced: AtomicI64::new(0),
            joined: AtomicU32::new(0),
        }
    }

    pub(super) fn apply(&self, revision: i64, touched: &Touched) {
        self.announced.fetch_max(revision, Ordering::SeqCst);
        match touched {
            Touched::Keys(keys) => keys.iter().for_each(|key| self.advance(key_place(*key))),
            Touched::Owner { tenant, owner } => self.advance(owner_place(tenant, owner)),
            Touched::Tenant(tenant) => self.advance(tenant_place(tenant)),
        }
    }

    pub(super) fn ticket(&self) -> Ticket {
        Ticket(self.joined.load(Ordering::SeqCst))
    }

    pub(super) fn clear(&self, head: i64) {
        // First: who gets the new ticket loads what is as new as all that was announced before.
        self.announced.store(head, Ordering::SeqCst);
        self.joined.fetch_add(1, Ordering::SeqCst);
    }

    /// What an entry loaded at `head` is true at, and whether it is as new as all that is known.
    pub(super) fn stamp(
        &self,
        id: KeyId,
        standing: &Standing,
        head: i64,
        ticket: Ticket,
    ) -> (Stamp, bool) {
        let owner = owner_place(standing.tenant_id(), standing.owner_id());
        let tenant = tenant_place(standing.tenant_id());
        let sum = self.sum(key_place(id), owner, tenant);
        // After the epochs: a change that they show has been announced by now.
        let current = self.announced.load(Ordering::SeqCst) <= head;
        let joined = ticket != NEVER_JOINED && ticket == self.ticket();
        (Stamp { owner, tenant, sum }, current && joined)
    }

    pub(super) fn counts(&self, id: KeyId, stamp: Stamp) -> bool {
        self.sum(key_place(id), stamp.owner, stamp.tenant) == stamp.sum
    }

    fn sum(&self, key: u32, owner: u32, tenant: u32) -> u32 {
        [key, owner, tenant]
            .into_iter()
            .map(|place| self.at(place).load(Ordering::SeqCst))
            .fold(self.joined.load(Ordering::SeqCst), u32::wrapping_add)
    }

    fn advance(&self, place: u32) {
        self.at(place).fetch_add(1, Ordering::SeqCst);
    }

    fn at(&self, place: u32) -> &AtomicU32 {
        &self.table[place as usize & (self.table.len() - 1)]
    }
}

/// An id is random already: half of it, multiplied to fill the upper bits.
fn key_place(id: KeyId) -> u32 {
    fold(id.low_bits().wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn owner_place(tenant: &str, owner: &str) -> u32 {
    hashed(&[tenant, "\0", owner])
}

fn tenant_place(tenant: &str) -> u32 {
    hashed(&[tenant])
}

/// FNV-1a: what chooses a place need not be secret, only the same every time.
fn hashed(parts: &[&str]) -> u32 {
    let bytes = parts.iter().flat_map(|part| part.bytes());
    fold(bytes.fold(0xCBF2_9CE4_8422_2325, |mixed, byte| {
        (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    }))
}

/// The upper half, which is the best mixed; the table takes as much of it as it has places.
fn fold(mixed: u64) -> u32 {
    u32::try_from(mixed >> 32).unwrap_or_default()
}
