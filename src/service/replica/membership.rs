//! Detects dead replicas, and records the longest lease of any member.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time;
use tracing::warn;

use super::{RENEWALS, Replica, enforcement::outlasting};
use crate::store::{Member, StoreError};

/// The last observations of the members.
#[derive(Default)]
pub(super) struct Others {
    /// For each member: its number of lease renewals, and the uptime at which that number was first
    /// seen.
    seen: Mutex<HashMap<String, (i64, Duration)>>,
    /// The longest lease of any member at the last read, in microseconds.
    longest: AtomicU64,
}

impl Others {
    /// Returns the longest lease of any member at the last read.
    pub(super) fn longest_lease(&self) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::Relaxed))
    }

    pub(super) fn note_leases(&self, members: &[Member]) {
        let longest = members.iter().map(|member| member.lease).max();
        let longest = longest.unwrap_or_default().as_micros();
        let longest = u64::try_from(longest).unwrap_or(u64::MAX);
        self.longest.store(longest, Ordering::Relaxed);
    }

    /// Returns the members that have not renewed for longer than their leases last. `asked` is the
    /// uptime before the members were read, and `answered` is the uptime after.
    fn dead(&self, members: Vec<Member>, asked: Duration, answered: Duration) -> Vec<Member> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut still = HashMap::with_capacity(members.len());
        let mut dead = Vec::new();
        for member in members {
            let since = match seen.get(&member.id) {
                Some((renewals, since)) if *renewals == member.renewals => *since,
                _ => answered,
            };
            still.insert(member.id.clone(), (member.renewals, since));
            if asked.saturating_sub(since) > outlasting(member.lease) {
                dead.push(member);
            }
        }
        *seen = still;
        dead
    }
}

impl Replica {
    /// Watches the other members forever.
    pub(super) async fn watch_others(&self) {
        loop {
            time::sleep(self.lease / RENEWALS).await;
            // Ignored, because the renewals report a database failure.
            let _ = self.end_dead_memberships().await;
        }
    }

    /// Ends the memberships of dead replicas, so that nobody waits for them.
    async fn end_dead_memberships(&self) -> Result<(), StoreError> {
        let asked = self.clock.uptime();
        let members = self.in_time(self.store.members()).await?;
        let answered = self.clock.uptime();
        self.others.note_leases(&members);
        for member in self.others.dead(members, asked, answered) {
            if member.id != self.id() {
                warn!(
                    replica = member.id,
                    "a replica is silent: its membership ends"
                );
                self.in_time(self.store.remove(&member)).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(renewals: i64) -> Vec<Member> {
        vec![Member {
            id: "a".to_owned(),
            applied: 1,
            renewals,
            lease: Duration::from_secs(10),
        }]
    }

    #[test]
    fn a_member_is_dead_once_it_has_not_renewed_for_longer_than_a_lease() {
        let (others, second) = (Others::default(), Duration::from_secs);
        let looks = [
            (1, 0, 1, false),
            (1, 11, 12, false),
            (2, 12, 13, false),
            (2, 23, 24, false),
            (2, 24, 25, true),
        ];
        for (renewals, asked, answered, dead) in looks {
            let found = others.dead(member(renewals), second(asked), second(answered));
            assert_eq!(!found.is_empty(), dead, "{renewals} {asked}");
        }
    }
}
