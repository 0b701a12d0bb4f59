//! This process as one of many: it follows the log, so that its memory is true, and says how far
//! it has come, so that who narrows what a key may do knows when nobody answers by what was
//! before.
//!
//! A renewal notes the time, writes what was applied and reads the log's head, in this order.
//! The lease it grants is counted from that time, and granted once the log is applied up to that
//! head: what the renewal's statement saw is obeyed, and what it did not see came later than the
//! time from which the lease is counted. Who narrows waits ([`Replica::enforced`]) until all have
//! said that they have applied the change, or their leases have run out.

mod others;
mod wait;

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

use self::{others::Others, wait::Waits};
use super::{
    cache::Cache,
    fault::{Fault, Faults},
};
use crate::{
    domain::clock::Clock,
    meter::{Page, Tell},
    store::{Store, StoreError},
};

/// How often it looks whether the log has grown, whatever it is told.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How many events it reads at once.
const BATCH: u32 = 500;
/// A lease is renewed this many times while it lasts.
const RENEWALS: u32 = 5;
/// By how much the wall clock may leap before the lease is taken as lost: a machine that was
/// stopped with all its clocks is told the time when it goes on.
const LEAP: Duration = Duration::from_secs(1);

/// One of the processes that serve the keys of one store.
pub struct Replica {
    store: Arc<dyn Store>,
    cache: Arc<Cache>,
    clock: Arc<dyn Clock>,
    /// What the row of this membership is called; see [`Replica::join`].
    id: Mutex<String>,
    lease: Duration,
    faults: Faults,
    /// Up to which revision memory is true.
    applied: watch::Sender<i64>,
    /// The log's head as it was last seen.
    head: AtomicI64,
    /// Wakes it for a change made here.
    nudge: Notify,
    others: Others,
    waits: Waits,
}

/// How a membership ends but by leaving.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
enum Lost {
    #[error("it did not renew its membership in time, and others have ended it")]
    Removed,
    #[error(
        "the log is shorter than what was applied of it: the store has lost changes that it had \
         answered for"
    )]
    Shorter,
    #[error("the log has an event missing, or one that this gatekey cannot read")]
    Unreadable,
}

/// Why a turn could not be carried out.
enum Stop {
    Lost(Lost),
    Store(StoreError),
}

/// How far a member has come.
struct Progress {
    applied: i64,
    acknowledged: i64,
    /// When the lease was renewed last, by the uptime.
    renewed: Option<Duration>,
}

impl Replica {
    /// A replica whose leases last `lease`.
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

    /// How long it is until the lease ends; zero when it has.
    #[must_use]
    pub fn lease_left(&self) -> Duration {
        self.cache.lease().deadline().left(&*self.clock)
    }

    /// Up to which revision this replica has followed the log.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<i64> {
        self.applied.subscribe()
    }

    /// Joins the replicas and follows the log, until dropped.
    pub async fn run(&self) {
        // Whatever becomes of the others must not hold up a renewal.
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

    /// Ends the membership, so that nobody waits for this replica. It must answer no calls any
    /// more.
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

    /// What this replica's membership is called; empty before the first.
    fn id(&self) -> String {
        self.id
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Begins a membership, under a name that was never used: a statement of an earlier one that
    /// is late, on a network that is slow, must not speak for this one. The row of an attempt that
    /// nobody heard of is waited for once, and then removed, as a dead replica's is.
    async fn join(&self) -> Progress {
        // Nothing is answered from memory while the row says that all was applied.
        self.cache.lease().end();
        loop {
            let asked = self.clock.uptime();
            let id = format!("{:016x}", rand::random::<u64>());
            // Before it is sent: whoever leaves may have joined without having heard of it.
            self.id
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone_from(&id);
            let joined = time::timeout(self.lease, self.store.join(&id, self.lease)).await;
            match joined {
                Ok(Ok(head)) => {
                    self.cache.clear(head);
                    // Not the highest: the log may have become shorter.
                    self.head.store(head, Ordering::Relaxed);
                    self.applied.send_replace(head);
                    if self.faults.has(Fault::JoinGrants) {
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

    /// Follows the log while it is a member.
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
                // Whatever may wake it: that is no reason to ask again and again.
                time::sleep(wait).await;
            } else {
                let _ = time::timeout(wait, woken).await;
            }
        }
    }

    /// Applies what is new, and says so; renews the lease when it is time to.
    async fn turn(&self, progress: &mut Progress) -> Result<(), Stop> {
        let followed = self.apply_batch(progress).await;
        if !self.faults.has(Fault::NoFence) {
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
            // Before it is sent: whatever its statement does not see is later than this.
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
            while progress.applied < head && !self.faults.has(Fault::NoFence) {
                let before = progress.applied;
                self.apply_batch(progress).await?;
                if progress.applied == before {
                    return Err(Stop::Lost(Lost::Unreadable));
                }
            }
            let from = if self.faults.has(Fault::LeaseFromAnswer) {
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

    /// Reads the next events, and forgets what they say is true no more.
    async fn apply_batch(&self, progress: &mut Progress) -> Result<(), Stop> {
        let next = self.store.events_from(progress.applied + 1, BATCH);
        let events = self.in_time(next).await?;
        if self.faults.has(Fault::AcknowledgeFirst)
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
            self.cache.apply(event.revision, &event.change.touched());
            progress.applied = event.revision;
        }
        self.applied.send_if_modified(|applied| {
            std::mem::replace(applied, progress.applied) != progress.applied
        });
        Ok(())
    }

    /// What the store answers, if it does in time.
    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let patience = (self.lease / RENEWALS).max(PATIENCE_MIN);
        let answered = time::timeout(patience, answer).await;
        answered.unwrap_or_else(|late| Err(StoreError::Unavailable(late.into())))
    }

    /// By how many seconds the wall clock is ahead of the uptime.
    fn wall_ahead(&self) -> f64 {
        let wall = Duration::from_micros(self.clock.now().as_micros().try_into().unwrap_or(0));
        wall.as_secs_f64() - self.clock.uptime().as_secs_f64()
    }
}

impl Tell for Replica {
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result {
        // In this order, so that what is applied is not ahead.
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
        self.waits.tell(page)
    }
}

/// The least that the store is given to answer.
const PATIENCE_MIN: Duration = Duration::from_millis(500);

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        match error {
            // It may have been written by a gatekey that is newer than this one.
            StoreError::Corrupt(_) => Self::Lost(Lost::Unreadable),
            StoreError::Unavailable(_)
            | StoreError::Interrupted(_)
            | StoreError::ReadOnly
            | StoreError::Unknown(_) => Self::Store(error),
        }
    }
}
