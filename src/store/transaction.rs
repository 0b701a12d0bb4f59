//! A transaction on a pooled connection. Compiled once for each engine, like `sql.rs`.
//!
//! sqlx counts nested transactions for each connection. After a failed COMMIT or ROLLBACK, the
//! count stays wrong as long as the connection exists, and every later BEGIN fails. This type
//! therefore sends these statements itself, and closes a connection on which one of them fails
//! instead of pooling it.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor as _, Pool, pool::PoolConnection};
use tokio::time;

use super::super::Db;

/// The timeout of a ROLLBACK, after which the connection is closed instead.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(3);

/// An open transaction; rolled back when dropped.
pub(in crate::store) struct Transaction {
    /// `None` once the connection has been released.
    connection: Option<PoolConnection<Db>>,
    /// True while the state of the transaction is undefined, so that the connection must not be
    /// pooled.
    undefined: bool,
}

impl Transaction {
    /// Takes a connection and begins a transaction with `statement`.
    pub(in crate::store) async fn begin(
        pool: &Pool<Db>,
        statement: &str,
    ) -> Result<Self, sqlx::Error> {
        let mut this = Self {
            connection: Some(pool.acquire().await?),
            undefined: true,
        };
        // The statement consists of the engine's own text and the quoted name of a schema.
        let statement = AssertSqlSafe(statement.to_owned());
        this.connection().execute(statement).await?;
        this.undefined = false;
        Ok(this)
    }

    /// Returns the connection, to run statements on.
    pub(in crate::store) fn connection(&mut self) -> &mut <Db as sqlx::Database>::Connection {
        let connection = self.connection.as_mut();
        connection.expect("the connection is taken only when the transaction ends")
    }

    /// Ends the transaction by closing the connection.
    pub(in crate::store) fn abort(mut self) {
        self.undefined = true;
    }

    /// Commits the transaction. After an error, it may or may not have been committed.
    pub(in crate::store) async fn commit(mut self) -> Result<(), sqlx::Error> {
        self.undefined = true;
        self.connection().execute("COMMIT").await?;
        // Returns the connection to its pool.
        drop(self.connection.take());
        Ok(())
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        if self.undefined {
            connection.close_on_drop();
            return;
        }
        tokio::spawn(async move {
            let rolled_back = time::timeout(ROLLBACK_TIMEOUT, connection.execute("ROLLBACK")).await;
            if !matches!(rolled_back, Ok(Ok(_))) {
                connection.close_on_drop();
            }
        });
    }
}
