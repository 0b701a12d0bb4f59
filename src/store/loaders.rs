//! Connections kept from one load to the next.
//!
//! A pool asks a connection that is given back whether it still answers: a trip to the database, or
//! two, for each read of one row. What was answered a moment ago need not be asked.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{Database, Pool, pool::PoolConnection};
use tokio::runtime::Handle;

/// How long a connection is kept before its pool looks at it again.
const FRESH: Duration = Duration::from_secs(1);

/// Keeps connections of a pool.
pub(super) struct Loaders<DB: Database> {
    pool: Pool<DB>,
    kept: Mutex<Vec<Lent<DB>>>,
    /// So many at most: a pool has others to serve.
    most: usize,
    /// Where connections are opened: they end with their runtime, and those that serve end one by one.
    runtime: Handle,
}

/// A connection of a pool, which goes back to it when dropped.
pub(super) struct Lent<DB: Database> {
    pub(super) connection: PoolConnection<DB>,
    since: Instant,
}

impl<DB: Database> Loaders<DB> {
    /// Keeps `most` of a pool, which opens them on the current runtime.
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

    /// A connection that answered a moment ago, or one from the pool.
    pub(super) async fn take(&self) -> Result<Lent<DB>, sqlx::Error> {
        if let Some(lent) = self.fresh() {
            return Ok(lent);
        }
        let acquired = self.runtime.spawn(self.pool.acquire()).await;
        Ok(Lent {
            connection: acquired.map_err(|_| sqlx::Error::PoolClosed)??,
            since: Instant::now(),
        })
    }

    /// Keeps a connection that has just answered. After an error all go back to the pool: what broke
    /// one may have broken the others.
    pub(super) fn settle<T, E>(&self, lent: Lent<DB>, answer: Result<T, E>) -> Result<T, E> {
        let mut kept = self.kept();
        if answer.is_err() {
            kept.clear();
        } else if kept.len() < self.most && !self.pool.is_closed() {
            kept.push(lent);
        }
        answer
    }

    /// Closes the pool, once everything on it has ended.
    pub(super) async fn close(&self) {
        // From here on it is closed, and nothing more is kept.
        let closing = self.pool.close();
        self.kept().clear();
        closing.await;
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

#[cfg(test)]
mod tests {
    use sqlx::sqlite::SqlitePoolOptions;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_is_kept_does_not_hold_up_the_closing() {
        let pool = SqlitePoolOptions::new().max_connections(2);
        let pool = pool.connect("sqlite::memory:").await.unwrap();
        let loaders = Loaders::new(pool.clone(), 1);
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
        let loaders = Loaders::new(pool, 2);
        let (first, second) = (loaders.take().await.unwrap(), loaders.take().await.unwrap());
        loaders.settle(first, Ok::<_, sqlx::Error>(())).unwrap();
        let broken = loaders.settle(second, Err::<(), _>(sqlx::Error::WorkerCrashed));
        assert!(broken.is_err() && loaders.kept().is_empty());
    }
}
