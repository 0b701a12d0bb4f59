//! The warm start: the keys that are the likeliest to be asked about are in memory before readiness.
//!
//! Nothing else waits for it: calls are answered meanwhile, and what is not in memory yet is loaded
//! as ever. What a change overtakes is not taken in, by the cache's own guard. A store that fails or is
//! slow ends it: the other keys are loaded when they are used, and whether the store answers is
//! readiness' own question.

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
    domain::{clock::Clock, standing::Standing},
    store::{Store, StoreError, WarmPage, WarmQuery, WarmSet},
};

/// How long readiness waits for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it looks whether the lease is held.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How many keys are read by one statement: few enough that a change seldom overtakes one.
const PAGE: u32 = 1000;
/// One part in this many more keys than asked for are taken in, if these are all there are: to
/// choose the last used ones takes longer than to read all.
const FEW_MORE: usize = 8;
/// How often the log is told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Takes keys into memory before they are asked about.
pub struct Warmer {
    pub store: Arc<dyn Store>,
    pub secrets: Arc<Secrets>,
    pub cache: Arc<Cache>,
    pub clock: Arc<dyn Clock>,
}

impl Warmer {
    /// Takes the `limit` most recently used keys into memory, as far as they can be had. It stops
    /// when dropped.
    pub async fn warm(&self, limit: usize) {
        let Some(pepper) = self.secrets.peppers().current().filter(|_| limit > 0) else {
            // Without a pepper only argon2 can tell whether a secret is right.
            return;
        };
        // Before it has joined the replicas nothing is kept.
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
            // While a page of one half is put together, one of the other is on its way.
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

    /// Takes in `most` keys at these places, the last ones first. Returns how many there were; how
    /// many of them are `kept` is counted as it goes.
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
            // While one core takes a page in, another reads the next.
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

/// Takes a page in, and tells how many keys of it are kept.
fn take(cache: &Cache, page: &WarmPage, ticket: Ticket) -> usize {
    // A row that cannot be read is told of when its key is used.
    let keys = page.read().flatten();
    let kept = keys.filter(|key| {
        let standing = Standing::new(&key.terms());
        let (entry, keep) = cache.entry(key.key_id, standing, key.mac, page.head, ticket);
        if keep {
            cache.insert(key.key_id, entry);
        }
        keep
    });
    kept.count()
}
