//! Connections kept from one load to the next.
//!
//! A pool asks a connection that is given back whether it still answers: a trip to the database, or
//! two, for each read of one row. What was answered a moment ago need not be asked.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{Database, Pool, pool::PoolConnection};

/// How long a connection is kept before its pool looks at it again.
const FRESH: Duration = Duration::from_secs(1);

/// Keeps connections of a pool.
pub(super) struct Loaders<DB: Database> {
    pool: Pool<DB>,
    kept: Mutex<Vec<Lent<DB>>>,
    /// So many at most: a pool has others to serve.
    most: usize,
}

/// A connection of a pool, which goes back to it when dropped.
pub(super) struct Lent<DB: Database> {
    pub(super) connection: PoolConnection<DB>,
    since: Instant,
}

impl<DB: Database> Loaders<DB> {
    pub(super) fn new(pool: Pool<DB>, most: usize) -> Self {
        Self {
            pool,
            kept: Mutex::default(),
            most,
        }
    }

    /// A connection that answered a moment ago, or one from the pool.
    pub(super) async fn take(&self) -> Result<Lent<DB>, sqlx::Error> {
        if let Some(lent) = self.fresh() {
            return Ok(lent);
        }
        Ok(Lent {
            connection: self.pool.acquire().await?,
            since: Instant::now(),
        })
    }

    /// Keeps a connection that has just answered. Any other is to be dropped.
    pub(super) fn keep(&self, lent: Lent<DB>) {
        let mut kept = self.kept();
        // Looked at with the lock held: what is kept after `give_back` would hold up the closing.
        if kept.len() < self.most && !self.pool.is_closed() {
            kept.push(lent);
        }
    }

    /// Gives all back to the pool, which is closed.
    pub(super) fn give_back(&self) {
        self.kept().clear();
    }

    fn fresh(&self) -> Option<Lent<DB>> {
        let mut kept = self.kept();
        while let Some(lent) = kept.pop() {
            if lent.since.elapsed() < FRESH {
                return Some(lent);
            }
        }
        None
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Lent<DB>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
