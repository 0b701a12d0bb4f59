//! Queues of administrative calls, which take turns to change or read the database.
//!
//! The database serializes changes, so they wait here instead, where callers take turns and where a
//! call whose caller is gone leaves the queue. Revocations have their own lane.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::{self, Instant};

use crate::{
    domain::caller::Principal,
    metrics::{Collect, Encoder, ShardedCounter},
    service::{
        context::CallContext,
        error::ServiceError,
        fair_queue::{Bounds, FairQueue, Load, Permit},
        presence::{Gone, Presence},
    },
    store::StoreError,
};

/// The lanes of changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lane {
    /// `RevokeKey` and `RevokeKeys`.
    Revocation,
    /// All other changes.
    Change,
}

/// Up to four revocations, then one other waiting change, so that a flood of revocations cannot
/// block other changes.
const SCHEDULE: &[usize] = &[0, 0, 0, 0, 1];
const LANES: usize = 2;

/// One change runs and one waits in the database, so that no time passes between them.
const CHANGES: Bounds = Bounds {
    running: 2,
    waiting: 1024,
    waiting_each: 256,
};
/// Maximum number of concurrent long reads; the other connections stay available to short reads.
const READS_MAX: usize = 4;
/// Maximum wait for a turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// Minimum and maximum time reserved before a deadline for the COMMIT and the response's way back.
const RESERVE_MIN: Duration = Duration::from_millis(5);
const RESERVE_MAX: Duration = Duration::from_millis(100);

pub(super) type Turn = Permit<Principal, LANES>;

/// The stages at which a call is dropped because its caller is gone.
#[derive(Clone, Copy)]
pub(super) enum Stage {
    /// Before or while it waits for Argon2.
    Hash,
    /// While it waits for its turn.
    Queue,
    /// After it waited for the database, or just before COMMIT: the transaction is rolled back.
    Transaction,
}

const STAGES: [&str; 3] = ["hash", "queue", "transaction"];

/// The queues of administrative calls.
pub(super) struct Turns {
    changes: FairQueue<Principal, LANES>,
    reads: FairQueue<Principal, 1>,
    abandoned: ShardedCounter<3>,
}

impl Turns {
    /// Returns empty queues for a database that runs at most this many loads at once.
    pub(super) fn new(loads_at_once: usize) -> Self {
        let reads = Bounds {
            running: loads_at_once.clamp(1, READS_MAX),
            ..CHANGES
        };
        Self {
            changes: FairQueue::new(CHANGES, SCHEDULE),
            reads: FairQueue::new(reads, &[0]),
            abandoned: ShardedCounter::default(),
        }
    }

    /// Waits for the turn of a change. The turn lasts until the permit is dropped.
    pub(super) async fn change(
        &self,
        context: &CallContext,
        lane: Lane,
    ) -> Result<Turn, ServiceError> {
        let principal = context.caller.principal.clone();
        let entering = time::timeout(PATIENCE, self.changes.enter(lane as usize, principal));
        let entered = self.note(Stage::Queue, context.while_present(entering).await)?;
        // Changes are short, so a wait this long means that the database does not respond.
        let entered = entered.map_err(|late| StoreError::Unavailable(late.into()))?;
        entered.map_err(|_| ServiceError::ChangesBusy)
    }

    /// Runs a long read in turn.
    pub(super) async fn read<T>(
        &self,
        context: &CallContext,
        read: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, ServiceError> {
        let principal = context.caller.principal.clone();
        let entering = time::timeout(PATIENCE, self.reads.enter(0, principal));
        let entered = self.note(Stage::Queue, context.while_present(entering).await)?;
        let Ok(Ok(_permit)) = entered else {
            return Err(ServiceError::ReadsBusy);
        };
        Ok(read.await?)
    }

    /// Counts the call if its caller is gone at this stage.
    pub(super) fn note<T>(&self, stage: Stage, work: Result<T, Gone>) -> Result<T, Gone> {
        if work.is_err() {
            self.abandoned.add(stage as usize, 1);
        }
        work
    }
}

impl Collect for Turns {
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
        let ([revocations, changes], [reads]) = (self.changes.load(), self.reads.load());
        let lanes = [
            ("revocations", revocations),
            ("changes", changes),
            ("reads", reads),
        ];
        let each =
            |of: fn(Load) -> usize| lanes.map(|(queue, load)| ([("queue", queue)], of(load)));
        page.gauges(
            "gatekey_admin_running",
            "Administrative calls that have their turn at the database, by queue",
            each(|load| load.running),
        )?;
        page.gauges(
            "gatekey_admin_queued",
            "Administrative calls that wait for their turn, by queue",
            each(|load| load.waiting),
        )?;
        page.counters(
            "gatekey_admin_refused_total",
            "Administrative calls that were refused because too many were waiting, by queue",
            lanes.map(|(queue, load)| ([("queue", queue)], load.refused)),
        )?;
        let abandoned = STAGES.into_iter().zip(self.abandoned.read());
        page.counters(
            "gatekey_admin_abandoned_total",
            "Administrative calls that were dropped because their caller was gone, by stage",
            abandoned.map(|(stage, count)| ([("stage", stage)], count)),
        )
    }
}

/// The longest duration of recent COMMITs, in microseconds.
///
/// A change is not committed if its caller's deadline passes before the response is likely to
/// arrive, because nobody would receive it.
#[derive(Default)]
pub(super) struct CommitTime(AtomicU64);

impl CommitTime {
    /// Records a COMMIT that began at `began` and ended now.
    pub(super) fn note(&self, began: Instant) {
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        // Decays by one eighth with each faster COMMIT.
        let faded = self.0.load(Ordering::Relaxed) / 8 * 7;
        self.0.store(faded.max(took), Ordering::Relaxed);
    }

    /// Checks that the caller is present and is likely to be present when the COMMIT ends.
    pub(super) fn check(&self, presence: &Presence) -> Result<(), Gone> {
        presence.check()?;
        let recent = self.0.load(Ordering::Relaxed);
        let reserve = Duration::from_micros(recent.saturating_mul(2));
        let end = Instant::now() + reserve.clamp(RESERVE_MIN, RESERVE_MAX);
        if presence.deadline().is_some_and(|deadline| deadline < end) {
            // Halved, because a slow COMMIT must not block later changes forever.
            self.0.store(recent / 2, Ordering::Relaxed);
            return Err(Gone::DeadlinePassed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_a_commit_would_miss_is_past_until_commits_are_quick_again() {
        let commits = CommitTime::default();
        let began = Instant::now();
        time::advance(Duration::from_millis(20)).await;
        commits.note(began);
        let (soon, _guard) = Presence::new(Some(Instant::now() + Duration::from_millis(30)));
        let (later, _guard) = Presence::new(Some(Instant::now() + Duration::from_millis(150)));
        assert_eq!(commits.check(&Presence::default()), Ok(()));
        assert_eq!(commits.check(&later), Ok(()));
        assert_eq!(commits.check(&soon), Err(Gone::DeadlinePassed));
        assert_eq!(commits.check(&soon), Ok(()));
    }
}
