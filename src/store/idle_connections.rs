//! Keeps connections from one load to the next.
//!
//! A pool pings each connection that is returned to it, which costs one or two round trips for each
//! read of one row. A connection that responded a moment ago needs no ping.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{Database, Pool, pool::PoolConnection};
use tokio::runtime::Handle;

/// The time after which a kept connection returns to the pool for a check.
const FRESH: Duration = Duration::from_secs(1);

/// Idle connections of a pool, kept for the next load.
pub(super) struct IdleConnections<DB: Database> {
    pool: Pool<DB>,
    kept: Mutex<Vec<Borrowed<DB>>>,
    /// The maximum number of kept connections, because the pool also serves other calls.
    most: usize,
    /// The runtime that opens connections. A connection ends with its runtime, and the runtimes
    /// that serve requests end one by one.
    runtime: Handle,
}

/// A connection that returns to its pool when dropped.
pub(super) struct Borrowed<DB: Database> {
    pub(super) connection: PoolConnection<DB>,
    since: Instant,
}

impl<DB: Database> IdleConnections<DB> {
    /// Keeps at most `most` connections of a pool, which opens them on the current runtime.
    ///
    /// # Panics
    /// Outside a runtime.
    pub(super) fn new(pool: Pool<DB>, most: usize) -> Self {
        Self {
            pool,
            kept: Mutex::default(),
            most,
            runtime: Handle::current(),
        }
    }

    /// Returns a connection that responded a moment ago, or one from the pool.
    pub(super) async fn take(&self) -> Result<Borrowed<DB>, sqlx::Error> {
        if let Some(lent) = self.fresh() {
            return Ok(lent);
        }
        let acquired = self.runtime.spawn(self.pool.acquire()).await;
        Ok(Borrowed {
            connection: acquired.map_err(|_| sqlx::Error::PoolClosed)??,
            since: Instant::now(),
        })
    }

    /// Keeps a connection that has just responded. After an error, all connections return to the
    /// pool, because the cause may have broken the others too.
    pub(super) fn settle<T, E>(&self, lent: Borrowed<DB>, answer: Result<T, E>) -> Result<T, E> {
        let mut kept = self.kept();
        if answer.is_err() {
            kept.clear();
        } else if kept.len() < self.most && !self.pool.is_closed() {
            kept.push(lent);
        }
        answer
    }

    /// Closes the pool after everything that runs on it has ended.
    pub(super) async fn close(&self) {
        // This call marks the pool closed, so that no more connections are kept.
        let closing = self.pool.close();
        self.kept().clear();
        closing.await;
    }

    fn fresh(&self) -> Option<Borrowed<DB>> {
        let mut kept = self.kept();
        while let Some(lent) = kept.pop() {
            if lent.since.elapsed() < FRESH {
                return Some(lent);
            }
        }
        None
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Borrowed<DB>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::SqlitePoolOptions;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_is_kept_does_not_hold_up_the_closing() {
        let pool = SqlitePoolOptions::new().max_connections(2);
        let pool = pool.connect("sqlite::memory:").await.unwrap();
        let loaders = IdleConnections::new(pool.clone(), 1);
        let (first, second) = (loaders.take().await.unwrap(), loaders.take().await.unwrap());
        loaders.settle(first, Ok::<_, sqlx::Error>(())).unwrap();
        assert_eq!(loaders.kept().len(), 1);
        let closing = loaders.close();
        let late = async { loaders.settle(second, Ok::<_, sqlx::Error>(())) };
        let closed = timeout(Duration::from_secs(10), async {
            tokio::join!(closing, late)
        });
        assert!(closed.await.is_ok(), "the pool waits for what is kept");
    }

    #[tokio::test]
    async fn after_an_error_none_is_kept() {
        let pool = SqlitePoolOptions::new().max_connections(2);
        let pool = pool.connect("sqlite::memory:").await.unwrap();
        let loaders = IdleConnections::new(pool, 2);
        let (first, second) = (loaders.take().await.unwrap(), loaders.take().await.unwrap());
        loaders.settle(first, Ok::<_, sqlx::Error>(())).unwrap();
        let broken = loaders.settle(second, Err::<(), _>(sqlx::Error::WorkerCrashed));
        assert!(broken.is_err() && loaders.kept().is_empty());
    }
}
