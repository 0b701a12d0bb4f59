//! Reasons that a database cannot be opened, worded for the last line of a failed start.
//!
//! They contain no secrets: only driver errors that cannot contain a part of the URL are repeated.

use std::{error::Error, io, path::PathBuf};

use sqlx::{error::DatabaseError, migrate::MigrateError};
use thiserror::Error;

/// The reason that a database cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("it is neither sqlite://<file> nor postgres://<user>@<host>/<database>")]
    Url,
    #[error("an SQLite store is a file: a store in memory would lose every key")]
    InMemory,
    #[error("another gatekey serves {}: stop it, or give this one a file of its own", .0.display())]
    InUse(PathBuf),
    #[error("the file {} cannot be used: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the directory {} does not exist: create it, or correct the path", .0.display())]
    NoDirectory(PathBuf),
    #[error(
        "its schema has version {0}, which this gatekey does not know: run the gatekey that made it, or a newer one"
    )]
    NewerSchema(i64),
    #[error(
        "its schema is missing or behind this version, and this role may not change it: run `gatekey migrate` with a role that owns the schema"
    )]
    MayNotMigrate,
    #[error("its schema cannot be brought up to date")]
    Migration(#[source] Box<dyn Error + Send + Sync>),
    #[error(
        "gatekey's tables are in several schemas ({}): name one in the URL, as in ?options[search_path]={}", .0.join(", "), .0[0]
    )]
    Schemas(Vec<String>),
    #[error(
        "there is a transaction pooler before it that does not keep prepared statements: PgBouncer does from 1.21 on, with max_prepared_statements above 0"
    )]
    Pooler,
    /// The database may take changes later, after a failover.
    #[error(
        "it takes no changes: it is a standby, or default_transaction_read_only is on for this role, database or server"
    )]
    ReadOnly,
    /// The database may respond later.
    #[error("it does not answer: {0}")]
    Unreachable(String),
    #[error("TLS failed: {0}")]
    Tls(String),
    /// The database responded with a rejection.
    #[error("it refuses: {0}")]
    Refused(String),
}

impl OpenError {
    /// Returns whether the cause may pass by itself, so that a retry is worthwhile.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::ReadOnly)
    }
}

impl From<sqlx::Error> for OpenError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Configuration(_) => Self::Url,
            sqlx::Error::Database(answer) => of_answer(&*answer),
            // rustls reports what it rejects as invalid data.
            sqlx::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                Self::Tls(error.to_string())
            }
            sqlx::Error::Io(error) => Self::Unreachable(of_io(&error)),
            sqlx::Error::Tls(error) => Self::Tls(error.to_string()),
            sqlx::Error::PoolTimedOut => Self::Unreachable("no answer in time".to_owned()),
            sqlx::Error::Protocol(text) if is_foreign(&text) => {
                Self::Refused("what answers there does not speak PostgreSQL's protocol".to_owned())
            }
            _ => Self::Unreachable("the connection was lost".to_owned()),
        }
    }
}

/// Returns true if the first byte of the response shows that this is no PostgreSQL. sqlx reports a
/// connection that was closed before its first byte as 0x00, and that may pass.
fn is_foreign(text: &str) -> bool {
    text.contains("SSLRequest") && !text.contains("SSLRequest: 0x00")
}

fn of_answer(answer: &dyn DatabaseError) -> OpenError {
    match answer.code().as_deref().unwrap_or_default() {
        // A prepared statement is unknown, or its name is taken by another: sessions were swapped.
        "42P05" | "26000" => OpenError::Pooler,
        super::READ_ONLY => OpenError::ReadOnly,
        // 57P: shutdown or startup; 53300: too many connections.
        code if code.starts_with("57P") || code == "53300" => {
            OpenError::Unreachable(answer.message().to_owned())
        }
        _ => OpenError::Refused(answer.message().to_owned()),
    }
}

fn of_io(error: &io::Error) -> String {
    let text = error.to_string();
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        // The standard library has no error kind for a failed name lookup.
        _ if text.contains("lookup") => "its host name cannot be resolved".to_owned(),
        _ => text,
    }
}

impl From<MigrateError> for OpenError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::VersionMissing(version) => Self::NewerSchema(version),
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
                // 42501: the privilege is missing; 3F000: there is no schema to create tables in.
                match error.as_database_error().and_then(DatabaseError::code) {
                    Some(code) if matches!(&*code, "42501" | "3F000") => Self::MayNotMigrate,
                    _ => error.into(),
                }
            }
            other => Self::Migration(other.into()),
        }
    }
}
