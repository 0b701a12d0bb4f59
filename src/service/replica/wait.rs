//! The wait of who has narrowed what a key may do, until no replica answers by what was before.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time;

use super::Replica;
use crate::{
    domain::enforcement::Enforcement,
    meter::{Durations, Page, Tell},
    service::fault::Fault,
    store::Member,
};

/// By how much the rates of two machines' clocks may differ: by 1 % each from the true one.
const RATES: f64 = 1.01 / 0.99;
/// What a wait is longer than it would have to be.
const MARGIN: Duration = Duration::from_millis(50);
/// After how long the members are looked at for the second time.
const FIRST_LOOK: Duration = Duration::from_millis(1);
/// After how long at the latest they are looked at again.
const LAST_LOOK: Duration = Duration::from_millis(50);
/// How long a look at them may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long it takes, by any machine's clock, until a lease has run out by its holder's.
pub(super) fn outlasting(lease: Duration) -> Duration {
    lease.mul_f64(RATES) + MARGIN
}

/// What is known of the waits.
pub(super) struct Waits {
    /// How long they took that ended with ENFORCED.
    enforced: Durations,
    /// How many ended before.
    pending: AtomicU64,
    /// How many there are.
    under_way: AtomicU64,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            enforced: Durations::cold(),
            pending: AtomicU64::new(0),
            under_way: AtomicU64::new(0),
        }
    }
}

impl Tell for Waits {
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result {
        page.duration(
            "gatekey_enforcement_duration_seconds",
            "How long it took from a change's commit until no replica answered by what was before",
            &self.enforced,
        )?;
        page.gauge(
            "gatekey_enforcement_waiting",
            "Changes that are committed and wait for replicas",
            self.under_way.load(Ordering::Relaxed),
        )?;
        page.counter(
            "gatekey_enforcement_pending_total",
            "Changes that were answered PENDING, for the caller's deadline came first",
            self.pending.load(Ordering::Relaxed),
        )
    }
}

/// A wait under way.
struct UnderWay<'a>(&'a AtomicU64);

impl<'a> UnderWay<'a> {
    fn begin(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a wait knows of the replicas.
struct Behind {
    /// How many have not acknowledged.
    count: u32,
    /// The longest lease of these.
    lease: Duration,
}

impl Replica {
    /// Waits until no replica answers by what was before `revision`, which is committed, or until
    /// this call's `patience` is at its end.
    ///
    /// It needs the store only to be quick: without it, it waits for as long as a lease can last.
    pub async fn enforced(&self, revision: i64, patience: Option<Duration>) -> Enforcement {
        let committed = self.clock.uptime();
        let _under_way = UnderWay::begin(&self.waits.under_way);
        // Until the members have been seen.
        let mut behind = Behind {
            count: 1,
            lease: self.lease.max(self.others.longest_lease()),
        };
        let mut pause = FIRST_LOOK;
        self.nudge.notify_one();
        loop {
            let left = self.left(committed, patience);
            if let Some(seen) = self.look(revision, left).await {
                behind = seen;
            }
            let waited = self.clock.uptime().saturating_sub(committed);
            let mut enough = outlasting(behind.lease);
            if self.faults.has(Fault::ShortWait) {
                enough /= 2;
            }
            if behind.count == 0 || waited >= enough {
                self.waits.enforced.note(waited);
                return Enforcement::Enforced;
            }
            let rest = enough.saturating_sub(waited);
            let left = self.left(committed, patience);
            if left.is_some_and(|left| left.is_zero()) {
                self.waits.pending.fetch_add(1, Ordering::Relaxed);
                return Enforcement::Pending {
                    by: self.clock.now().after(rest),
                    pending_replicas: behind.count,
                };
            }
            time::sleep(pause.min(rest).min(left.unwrap_or(rest))).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    }

    /// What is left of a call's patience.
    fn left(&self, since: Duration, patience: Option<Duration>) -> Option<Duration> {
        let waited = self.clock.uptime().saturating_sub(since);
        patience.map(|patience| patience.saturating_sub(waited))
    }

    /// Which replicas have not acknowledged, if the store says so in time. What it says was read
    /// after the commit: one that is not there has joined later, and knows.
    async fn look(&self, revision: i64, left: Option<Duration>) -> Option<Behind> {
        let patience = left.map_or(PATIENCE, |left| left.min(PATIENCE));
        let members = time::timeout(patience, self.store.members()).await.ok()?;
        let members = members.ok()?;
        self.others.note_leases(&members);
        // What this one has applied it knows without having written it.
        let (id, own) = (self.id(), *self.applied.borrow());
        let behind = |member: &&Member| {
            let own = if member.id == id { own } else { 0 };
            member.applied.max(own) < revision
        };
        let behind: Vec<_> = members.iter().filter(behind).collect();
        Some(Behind {
            count: u32::try_from(behind.len()).unwrap_or(u32::MAX),
            lease: behind
                .iter()
                .map(|member| member.lease)
                .max()
                .unwrap_or_default(),
        })
    }
}
