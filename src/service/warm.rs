//! The warm start: caches the keys that are most likely to be used before readiness.
//!
//! Only readiness waits for it. Requests are answered meanwhile, and a key that is not cached yet
//! is loaded as usual. The cache's own guard discards rows that a change overtakes. A database
//! error or a slow database ends the warm start; the other keys are loaded when they are used.
//! Readiness checks separately whether the database responds.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    task,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    cache::{Cache, Ticket},
    secret::Secrets,
};
use crate::{
    domain::{clock::Clock, key_policy::KeyPolicy},
    store::{Store, StoreError, WarmPage, WarmQuery, WarmSet},
};

/// Maximum time that readiness waits for the warm start.
const PATIENCE: Duration = Duration::from_secs(30);
/// Interval between checks of the lease.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Number of keys that one statement reads, small enough that a change seldom overtakes a page.
const PAGE: u32 = 1000;
/// Divisor of the accepted excess: if the keys exceed the limit by at most `limit / FEW_MORE`, all
/// are cached, because selecting the last used ones takes longer than reading all.
const FEW_MORE: usize = 8;
/// Interval between progress messages in the log.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Caches keys before they are used.
pub struct Warmer {
    pub store: Arc<dyn Store>,
    pub secrets: Arc<Secrets>,
    pub cache: Arc<Cache>,
    pub clock: Arc<dyn Clock>,
}

impl Warmer {
    /// Caches the `limit` most recently used keys, as far as possible. Stops when dropped.
    pub async fn warm(&self, limit: usize) {
        let Some(pepper) = self.secrets.peppers().current().filter(|_| limit > 0) else {
            // Without a pepper only Argon2 can verify a secret.
            return;
        };
        // The cache keeps nothing before this process has joined the membership.
        while !self.cache.lease().deadline().is_ahead(&*self.clock) {
            sleep(LOOK_EVERY).await;
        }
        let (start, kept) = (Instant::now(), AtomicUsize::new(0));
        let ended = timeout(PATIENCE, self.fill(pepper, limit, &kept)).await;
        let kept = kept.into_inner();
        let error = match ended {
            Ok(Ok(())) => return info!(keys = kept, took = ?start.elapsed(), "keys are in memory"),
            Ok(Err(error)) => error,
            Err(late) => StoreError::Unavailable(late.into()),
        };
        let error = &error as &dyn std::error::Error;
        warn!(
            error,
            keys = kept,
            "not all keys that should be in memory are"
        );
    }

    async fn fill(&self, pepper: &str, limit: usize, kept: &AtomicUsize) -> Result<(), StoreError> {
        let read = |of, places, most| self.read(pepper, of, places, most, kept);
        let enough = limit + limit / FEW_MORE;
        if self.store.count_keys(enough + 1).await? <= enough {
            // The database prepares a page of one half while a page of the other half is in
            // transit.
            let middle = self.store.head().await? / 2;
            let newer = read(WarmSet::All, middle..i64::MAX, enough);
            let older = read(WarmSet::All, i64::MIN..middle, enough);
            tokio::try_join!(newer, older)?;
        } else {
            let used = read(WarmSet::Used, i64::MIN..i64::MAX, limit).await?;
            read(WarmSet::Unused, i64::MIN..i64::MAX, limit - used).await?;
        }
        Ok(())
    }

    /// Caches up to `most` keys at these places, the last ones first. Returns the number of keys
    /// read, and adds the number of cached keys to `kept` during the work.
    async fn read(
        &self,
        pepper: &str,
        of: WarmSet,
        mut places: Range<i64>,
        most: usize,
        kept: &AtomicUsize,
    ) -> Result<usize, StoreError> {
        let (mut told, mut left) = (Instant::now(), most);
        let page = |places, left| WarmQuery {
            now: self.clock.now(),
            pepper_id: pepper.to_owned(),
            of,
            places,
            size: u32::try_from(left).unwrap_or(PAGE).min(PAGE),
        };
        let mut ticket = self.cache.ticket();
        let mut read = self.store.warm(&page(places.clone(), left)).await?;
        while let Some(last) = read.last {
            left = left.saturating_sub(read.keys);
            places.end = last;
            // One core caches a page while another reads the next one.
            let cache = Arc::clone(&self.cache);
            let taking = task::spawn_blocking(move || take(&cache, &read, ticket));
            ticket = self.cache.ticket();
            read = self.store.warm(&page(places.clone(), left)).await?;
            kept.fetch_add(taking.await.unwrap_or_default(), Ordering::Relaxed);
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                let keys = kept.load(Ordering::Relaxed);
                info!(keys, "reading keys into memory");
            }
        }
        Ok(most - left)
    }
}

/// Caches a page, and returns the number of keys that were kept.
fn take(cache: &Cache, page: &WarmPage, ticket: Ticket) -> usize {
    // An unreadable row is reported when its key is used.
    let keys = page.read().flatten();
    let kept = keys.filter(|key| {
        let policy = KeyPolicy::new(&key.terms());
        let (entry, keep) = cache.entry(key.key_id, policy, key.mac, page.head, ticket);
        if keep {
            cache.insert(key.key_id, entry);
        }
        keep
    });
    kept.count()
}
