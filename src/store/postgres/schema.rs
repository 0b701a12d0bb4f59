//! The schema that holds gatekey's tables: found, and brought up to date where it is not.
//!
//! A schema that is up to date is only read, so that a server needs no right to change it.

use std::collections::HashMap;

use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, error::DatabaseError, migrate::Migrator, query,
    query_as,
};
use tracing::info;

use super::{OpenError, quoted, settings};

/// Any number, as long as every release has the same.
const MIGRATION_LOCK: i64 = 0x6761_7465_6b65_7900;

fn migrations() -> Migrator {
    let mut migrations = sqlx::migrate!("migrations/postgres");
    migrations.set_locking(false);
    migrations
}

/// The schemas with gatekey's tables that this role may read, the one in `search_path` first, and
/// whether it is that one. A name alone proves little: other programs have a `keys`.
const FIND: &str = "SELECT n.nspname::text, bool_or(pg_table_is_visible(c.oid)) AS visible \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'p') \
     AND c.relname IN ('_sqlx_migrations', 'log_head', 'tenants', 'owners', 'keys', 'peppers') \
     AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') \
     GROUP BY 1 HAVING COUNT(*) = 6 ORDER BY 2 DESC, 1";

/// Returns the name of the schema, which is up to date.
pub(super) async fn prepare(connection: &mut PgConnection) -> Result<String, OpenError> {
    let name = find(connection).await?;
    if !is_current(connection, &name).await? {
        migrate(connection, &name).await?;
    }
    Ok(name)
}

/// The schema that has the tables, whatever `search_path` says now: with another one a server
/// would begin with an empty database. Where there is none, the one to create them in.
async fn find(connection: &mut PgConnection) -> Result<String, OpenError> {
    let found: Vec<(String, bool)> = query_as(FIND).fetch_all(&mut *connection).await?;
    match &found[..] {
        [(name, true), ..] => Ok(name.clone()),
        [(name, false)] => {
            info!(
                schema = name,
                "using the schema that has gatekey's tables; search_path names another"
            );
            Ok(name.clone())
        }
        [] => {
            let current: (Option<String>,) = query_as("SELECT current_schema()::text")
                .fetch_one(connection)
                .await?;
            Ok(current.0.unwrap_or_else(|| "public".to_owned()))
        }
        _ => Err(OpenError::Schemas(
            found.into_iter().map(|(name, _)| name).collect(),
        )),
    }
}

/// Whether every migration was applied as this version knows it.
async fn is_current(connection: &mut PgConnection, schema: &str) -> Result<bool, OpenError> {
    let table = format!("{}._sqlx_migrations", quoted(schema));
    let exists: (bool,) = query_as("SELECT to_regclass($1) IS NOT NULL")
        .bind(&table)
        .fetch_one(&mut *connection)
        .await?;
    if !exists.0 {
        return Ok(false);
    }
    let applied = AssertSqlSafe(format!(
        "SELECT version, checksum FROM {table} WHERE success ORDER BY version"
    ));
    let applied = query_as(applied).fetch_all(connection).await;
    let applied: Vec<(i64, Vec<u8>)> = applied.map_err(may_not_read)?;
    let migrations = migrations();
    let newer = applied
        .iter()
        .find(|(version, _)| !migrations.version_exists(*version));
    if let Some((version, _)) = newer {
        return Err(OpenError::NewerSchema(*version));
    }
    let applied: HashMap<_, _> = applied.into_iter().collect();
    Ok(migrations.iter().all(|migration| {
        let checksum = applied.get(&migration.version);
        checksum.is_some_and(|checksum| checksum[..] == migration.checksum[..])
    }))
}

fn may_not_read(error: sqlx::Error) -> OpenError {
    match error.as_database_error().and_then(DatabaseError::code) {
        Some(code) if code == "42501" => OpenError::MayNotMigrate,
        _ => error.into(),
    }
}

/// Brings the schema up to date. Replicas that start together take turns: the lock is the
/// transaction's, and not the session's as sqlx's own would be, for behind a transaction pooler
/// the unlocking could reach another session.
async fn migrate(connection: &mut PgConnection, schema: &str) -> Result<(), OpenError> {
    let mut transaction = connection.begin().await?;
    // A migration may take long.
    let local = AssertSqlSafe(format!(
        "{}; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0",
        settings("SET LOCAL", schema)
    ));
    sqlx::raw_sql(local).execute(&mut *transaction).await?;
    query("SELECT pg_advisory_xact_lock($1)")
        .bind(MIGRATION_LOCK)
        .execute(&mut *transaction)
        .await?;
    migrations().run(&mut *transaction).await?;
    Ok(transaction.commit().await?)
}
