//! Waits until every replica enforces a restricting change.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time;

use super::Replica;
use crate::{
    domain::enforcement::Enforcement,
    metrics::{Collect, Durations, Encoder},
    service::failpoint::Failpoint,
    store::Member,
};

/// Maximum ratio of the clock rates of two machines, each within 1 % of the true rate.
const RATES: f64 = 1.01 / 0.99;
/// Safety margin added to each wait.
const MARGIN: Duration = Duration::from_millis(50);
/// Delay before the second read of the members.
const FIRST_LOOK: Duration = Duration::from_millis(1);
/// Maximum delay between two reads of the members.
const LAST_LOOK: Duration = Duration::from_millis(50);
/// Timeout of one read of the members.
const PATIENCE: Duration = Duration::from_secs(1);

/// Returns the time, on any machine's clock, until a lease has expired on its holder's clock.
pub(super) fn outlasting(lease: Duration) -> Duration {
    lease.mul_f64(RATES) + MARGIN
}

/// Statistics of the waits.
pub(super) struct Waits {
    /// Durations of the waits that ended with ENFORCED.
    enforced: Durations,
    /// Number of waits that ended with PENDING.
    pending: AtomicU64,
    /// Number of waits in progress.
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

impl Collect for Waits {
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
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

/// A wait in progress, which is counted until dropped.
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

/// The replicas that have not acknowledged a change.
struct Behind {
    /// Number of these replicas.
    count: u32,
    /// The longest lease of these replicas.
    lease: Duration,
}

impl Replica {
    /// Waits until every replica enforces the change of `revision`, which is committed, or until
    /// `deadline` has elapsed.
    ///
    /// The database is needed only to shorten the wait: without it, the wait lasts as long as a
    /// lease can last.
    pub async fn enforced(&self, revision: i64, deadline: Option<Duration>) -> Enforcement {
        let committed = self.clock.uptime();
        let _under_way = UnderWay::begin(&self.waits.under_way);
        // Assumed until the members have been read.
        let mut behind = Behind {
            count: 1,
            lease: self.lease.max(self.others.longest_lease()),
        };
        let mut pause = FIRST_LOOK;
        self.nudge.notify_one();
        loop {
            let left = self.left(committed, deadline);
            if let Some(seen) = self.look(revision, left).await {
                behind = seen;
            }
            let waited = self.clock.uptime().saturating_sub(committed);
            let mut enough = outlasting(behind.lease);
            if self.faults.has(Failpoint::ShortWait) {
                enough /= 2;
            }
            if behind.count == 0 || waited >= enough {
                self.waits.enforced.note(waited);
                return Enforcement::Enforced;
            }
            let rest = enough.saturating_sub(waited);
            let left = self.left(committed, deadline);
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

    /// Returns the remaining part of `deadline`.
    fn left(&self, since: Duration, deadline: Option<Duration>) -> Option<Duration> {
        let waited = self.clock.uptime().saturating_sub(since);
        deadline.map(|deadline| deadline.saturating_sub(waited))
    }

    /// Returns the replicas that have not acknowledged, if the database responds in time. The
    /// members are read after the commit, so a replica that is not among them joins later and knows
    /// the change.
    async fn look(&self, revision: i64, left: Option<Duration>) -> Option<Behind> {
        let deadline = left.map_or(PATIENCE, |left| left.min(PATIENCE));
        let members = time::timeout(deadline, self.store.members()).await.ok()?;
        let members = members.ok()?;
        self.others.note_leases(&members);
        // This replica knows its applied revision before it has written it.
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
