//! One of the replicas: it follows the log to keep its cache current, and acknowledges the
//! revisions that it has applied. The acknowledgements show when every replica enforces a
//! restricting change.
//!
//! A renewal notes the time, writes the applied revision and reads the log's head, in this order.
//! The lease is granted once the log is applied up to that head, and is counted from the noted
//! time. The cache therefore reflects every change that the renewal's statement saw, and every
//! other change is later than the start of the lease. [`Replica::enforced`] waits until every
//! replica has acknowledged a restricting change or has lost its lease.

mod enforcement;
mod membership;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use thiserror::Error;
use tokio::{
    sync::{Notify, watch},
    time,
};
use tracing::{error, info, warn};

use self::{enforcement::Waits, membership::Others};
use super::{
    cache::Cache,
    failpoint::{Failpoint, Failpoints},
};
use crate::{
    domain::clock::Clock,
    metrics::{Collect, Encoder},
    store::{Store, StoreError},
};

/// Maximum interval between checks for new log events, even without a notification.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Maximum number of events in one read.
const BATCH: u32 = 500;
/// Number of renewals during a lease.
const RENEWALS: u32 = 5;
/// Maximum forward jump of the wall clock before the lease is dropped. A machine that was suspended
/// with all its clocks gets the current wall-clock time when it resumes.
const LEAP: Duration = Duration::from_secs(1);

/// One of the processes that serve the keys of one database.
pub struct Replica {
    store: Arc<dyn Store>,
    cache: Arc<Cache>,
    clock: Arc<dyn Clock>,
    /// The name of this membership's row; see [`Replica::join`].
    id: Mutex<String>,
    lease: Duration,
    faults: Failpoints,
    /// The revision up to which the cache is current.
    applied: watch::Sender<i64>,
    /// The last known head of the log.
    head: AtomicI64,
    /// Wakes the replica for a change made in this process.
    nudge: Notify,
    others: Others,
    waits: Waits,
}

/// Reasons for which a membership ends without leaving.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
enum Lost {
    #[error("it did not renew its membership in time, and others have ended it")]
    Removed,
    #[error(
        "the log is shorter than what was applied of it: the store has lost changes that it had \
         answered for"
    )]
    Shorter,
    #[error("the log has an event missing")]
    Unreadable,
}

/// The reason why a turn failed.
enum Stop {
    Lost(Lost),
    Store(StoreError),
}

/// The progress of a member.
struct Progress {
    applied: i64,
    acknowledged: i64,
    /// Uptime of the last lease renewal.
    renewed: Option<Duration>,
}

impl Replica {
    /// Creates a replica whose leases last for `lease`.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        cache: Arc<Cache>,
        clock: Arc<dyn Clock>,
        lease: Duration,
    ) -> Self {
        Self {
            store,
            clock,
            id: Mutex::default(),
            lease,
            faults: cache.faults(),
            cache,
            applied: watch::Sender::new(0),
            head: AtomicI64::new(0),
            nudge: Notify::new(),
            others: Others::default(),
            waits: Waits::default(),
        }
    }

    /// Returns the time until the lease ends, or zero if it has ended.
    #[must_use]
    pub fn lease_left(&self) -> Duration {
        self.cache.lease().deadline().left(&*self.clock)
    }

    /// Returns the revision up to which this replica has applied the log.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<i64> {
        self.applied.subscribe()
    }

    /// Joins the replicas and follows the log, until dropped.
    pub async fn run(&self) {
        // Concurrent, because watching the other replicas must not delay a renewal.
        tokio::join!(self.follow(), self.watch_others());
    }

    async fn follow(&self) {
        loop {
            let mut progress = self.join().await;
            let lost = self.stay(&mut progress).await;
            self.cache.lease().end();
            match lost {
                Lost::Removed => warn!(replica = self.id(), "joining anew: {lost}"),
                Lost::Shorter | Lost::Unreadable => {
                    error!(replica = self.id(), "joining anew: {lost}");
                }
            }
        }
    }

    /// Ends the membership, so that nobody waits for this replica. The replica must have stopped
    /// answering calls.
    pub async fn leave(&self) {
        self.cache.lease().end();
        if let Err(error) = self.in_time(self.store.leave(&self.id())).await {
            let error = &error as &dyn std::error::Error;
            warn!(
                error,
                "this replica could not leave: a revocation may wait for its lease"
            );
        }
    }

    /// Returns the name of this replica's membership; empty before the first one.
    fn id(&self) -> String {
        self.id
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Begins a membership under a name that was never used, because a delayed statement of an
    /// earlier membership must not act for this one. If the response to an attempt is lost, other
    /// replicas wait for its row once and then remove it, as they do for a dead replica.
    async fn join(&self) -> Progress {
        // The cache must not serve entries while the row says that the whole log is applied.
        self.cache.lease().end();
        loop {
            let asked = self.clock.uptime();
            let id = format!("{:016x}", rand::random::<u64>());
            // Set before the statement is sent: a replica that leaves may have joined without
            // receiving the response.
            self.id
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone_from(&id);
            let joined = time::timeout(self.lease, self.store.join(&id, self.lease)).await;
            match joined {
                Ok(Ok(head)) => {
                    self.cache.clear(head);
                    // Not the maximum, because the log may have become shorter.
                    self.head.store(head, Ordering::Relaxed);
                    self.applied.send_replace(head);
                    if self.faults.has(Failpoint::JoinGrants) {
                        self.cache.lease().grant(asked + self.lease);
                    }
                    info!(replica = id, revision = head, "joined");
                    return Progress {
                        applied: head,
                        acknowledged: head,
                        renewed: None,
                    };
                }
                Ok(Err(_)) | Err(_) => time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Follows the log until the membership is lost.
    async fn stay(&self, progress: &mut Progress) -> Lost {
        let mut ahead = self.wall_ahead();
        let mut silent = false;
        loop {
            let now_ahead = self.wall_ahead();
            if now_ahead > ahead + LEAP.as_secs_f64() {
                warn!("the wall clock leapt: the lease counts no more");
                self.cache.lease().end();
                progress.renewed = None;
            }
            ahead = now_ahead;
            match self.turn(progress).await {
                Ok(()) if silent => {
                    silent = false;
                    info!("the store answers again");
                }
                Ok(()) => {}
                Err(Stop::Lost(lost)) => return lost,
                Err(Stop::Store(error)) => {
                    if !silent {
                        let error = &error as &dyn std::error::Error;
                        warn!(
                            error,
                            "the store does not answer: memory is good until the lease ends"
                        );
                    }
                    silent = true;
                }
            }
            let wait = LOOK_EVERY.min(self.lease / RENEWALS);
            let woken = async {
                tokio::select! {
                    biased;
                    () = self.nudge.notified() => {}
                    () = self.store.hinted() => {}
                }
            };
            if silent {
                // Ignores notifications, which must not cause immediate retries.
                time::sleep(wait).await;
            } else {
                let _ = time::timeout(wait, woken).await;
            }
        }
    }

    /// Applies new events and acknowledges them. Renews the lease when it is due.
    async fn turn(&self, progress: &mut Progress) -> Result<(), Stop> {
        let followed = self.apply_batch(progress).await;
        if !self.faults.has(Failpoint::NoFence) {
            followed?;
        }
        let since = progress
            .renewed
            .map(|at| self.clock.uptime().saturating_sub(at));
        let due = since.is_none_or(|since| since >= self.lease / RENEWALS);
        if !due && progress.applied == progress.acknowledged {
            return Ok(());
        }
        loop {
            // Taken before the statement is sent: every change that the statement does not see is
            // later.
            let asked = self.clock.uptime();
            let applied = progress.applied;
            let renewed = self.in_time(self.store.renew(&self.id(), applied)).await?;
            let Some(head) = renewed else {
                let shorter = self.in_time(self.store.head()).await? < applied;
                return Err(Stop::Lost(if shorter {
                    Lost::Shorter
                } else {
                    Lost::Removed
                }));
            };
            progress.acknowledged = applied;
            self.head.fetch_max(head, Ordering::Relaxed);
            while progress.applied < head && !self.faults.has(Failpoint::NoFence) {
                let before = progress.applied;
                self.apply_batch(progress).await?;
                if progress.applied == before {
                    return Err(Stop::Lost(Lost::Unreadable));
                }
            }
            let from = if self.faults.has(Failpoint::LeaseFromAnswer) {
                self.clock.uptime()
            } else {
                asked
            };
            self.cache.lease().grant(from + self.lease);
            progress.renewed = Some(asked);
            if progress.applied == progress.acknowledged {
                break;
            }
        }
        Ok(())
    }

    /// Reads the next events and invalidates the cache entries that they affect.
    async fn apply_batch(&self, progress: &mut Progress) -> Result<(), Stop> {
        let next = self.store.events_from(progress.applied + 1, BATCH);
        let events = self.in_time(next).await?;
        if self.faults.has(Failpoint::AcknowledgeFirst)
            && let Some(last) = events.last()
        {
            self.in_time(self.store.renew(&self.id(), last.revision))
                .await?;
        }
        if let Some(last) = events.last() {
            self.head.fetch_max(last.revision, Ordering::Relaxed);
        }
        for event in events {
            if event.revision != progress.applied + 1 {
                return Err(Stop::Lost(Lost::Unreadable));
            }
            if event.unreadable {
                let revision = event.revision;
                error!(
                    revision,
                    "an event cannot be read; the whole cache is invalidated"
                );
            }
            self.cache.apply(event.revision, &event.touched());
            progress.applied = event.revision;
        }
        self.applied.send_if_modified(|applied| {
            std::mem::replace(applied, progress.applied) != progress.applied
        });
        Ok(())
    }

    /// Returns the database's response, or an error after a timeout.
    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let deadline = (self.lease / RENEWALS).max(PATIENCE_MIN);
        let answered = time::timeout(deadline, answer).await;
        answered.unwrap_or_else(|late| Err(StoreError::Unavailable(late.into())))
    }

    /// Returns the number of seconds by which the wall clock is ahead of the uptime.
    fn wall_ahead(&self) -> f64 {
        let wall = Duration::from_micros(self.clock.now().as_micros().try_into().unwrap_or(0));
        wall.as_secs_f64() - self.clock.uptime().as_secs_f64()
    }
}

impl Collect for Replica {
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
        // Read in this order, so that the applied revision is not ahead of the head.
        let applied = *self.applied.borrow();
        let head = self.head.load(Ordering::Relaxed).max(applied);
        page.gauge(
            "gatekey_lease_remaining_seconds",
            "How long this replica may still answer from memory",
            self.lease_left().as_secs_f64(),
        )?;
        page.gauge(
            "gatekey_lease_seconds",
            "How long a lease lasts",
            self.lease.as_secs_f64(),
        )?;
        page.gauge(
            "gatekey_revision_applied",
            "Up to which revision of the log memory is true",
            applied,
        )?;
        page.gauge(
            "gatekey_revision_lag",
            "How many revisions of the log that were seen are not applied",
            head - applied,
        )?;
        self.waits.collect(page)
    }
}

/// Minimum timeout of a database response.
const PATIENCE_MIN: Duration = Duration::from_millis(500);

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        match error {
            // A newer version of gatekey may have written it.
            StoreError::Corrupt(_) => Self::Lost(Lost::Unreadable),
            StoreError::Unavailable(_)
            | StoreError::Interrupted(_)
            | StoreError::ReadOnly
            | StoreError::Unknown(_) => Self::Store(error),
        }
    }
}
