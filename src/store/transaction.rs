//! A transaction on a pooled connection. Compiled once for each engine, like `sql.rs`.
//!
//! sqlx counts nested transactions for each connection, and after a failed COMMIT or ROLLBACK the
//! count stays wrong as long as the connection lives: every later BEGIN fails. So this type sends
//! these statements itself, and a connection on which one of them fails is closed, never pooled.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor as _, Pool, pool::PoolConnection};
use tokio::time;

use super::super::Db;

/// How long a ROLLBACK may take before the connection is closed instead.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(3);

/// An open transaction; rolled back when dropped.
pub(in crate::store) struct Transaction {
    /// `None` once the connection has been given up.
    connection: Option<PoolConnection<Db>>,
    /// Whether the connection is between two transactions' states, and so must not be pooled.
    undefined: bool,
}

impl Transaction {
    /// Takes a connection and begins a transaction by this statement.
    pub(in crate::store) async fn begin(
        pool: &Pool<Db>,
        statement: &str,
    ) -> Result<Self, sqlx::Error> {
        let mut this = Self {
            connection: Some(pool.acquire().await?),
            undefined: true,
        };
        // The words are the engine's own and the name of a schema, in quotes.
        let statement = AssertSqlSafe(statement.to_owned());
        this.connection().execute(statement).await?;
        this.undefined = false;
        Ok(this)
    }

    /// The connection, to run statements on.
    pub(in crate::store) fn connection(&mut self) -> &mut <Db as sqlx::Database>::Connection {
        let connection = self.connection.as_mut();
        connection.expect("the connection is taken only when the transaction ends")
    }

    /// Closes the connection, and with it ends the transaction.
    pub(in crate::store) fn abort(mut self) {
        self.undefined = true;
    }

    /// Commits. After an error it may or may not have been committed.
    pub(in crate::store) async fn commit(mut self) -> Result<(), sqlx::Error> {
        self.undefined = true;
        self.connection().execute("COMMIT").await?;
        // Back to its pool.
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
