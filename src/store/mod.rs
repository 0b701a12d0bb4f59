//! Access to the database.
//!
//! The rest of the program uses it through [`Store`]. There are two engines, SQLite and PostgreSQL.
//! Both run the same statements (`statements.rs`) with the same code (`sql.rs`), compiled once for each.
//! Only this module uses sqlx, and driver messages leave it only as the source of a [`StoreError`],
//! for the log.

mod column;
mod idle_connections;
mod instrumented;
pub mod listing;
mod open_error;
mod postgres;
mod retry;
mod sqlite;
pub mod statements;
mod trust;
mod warm;
mod writable;

use std::{collections::HashMap, error::Error, sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::error::DatabaseError;
use thiserror::Error;

use crate::domain::{
    caller::TenantSet,
    clock::Timestamp,
    event::{Change, Event, EventKind},
    key::{Grant, Key, KeyState, Mac, Revocation, Verifier},
    owner::Owner,
    page::Page,
    scope::Scopes,
    tenant::Tenant,
    token::{KeyId, KeyPrefix},
    usage::Uses,
};
use crate::metrics::Collect;

pub use open_error::OpenError;
pub use warm::{WarmKey, WarmPage, WarmQuery, WarmSet};

/// The reason that a database call failed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The database did not respond, or not in time. A read may be retried; a mutation may or may
    /// not have been carried out.
    #[error("the store does not answer")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// The connection was interrupted during a call, as happens when the database restarts or fails
    /// over. The call has already been retried where that is safe.
    #[error("the store broke off")]
    Interrupted(#[source] Box<dyn Error + Send + Sync>),
    /// The server takes no changes: it is a standby, or a primary that was made read-only. Its data
    /// may be long out of date and must not be used.
    #[error(
        "the database takes no changes: it is a standby, or default_transaction_read_only is on"
    )]
    ReadOnly,
    /// The database did not report whether it carried out a change.
    #[error("the store did not say whether the change was made")]
    Unknown(#[source] Box<dyn Error + Send + Sync>),
    /// The database holds a value that this program would not have written.
    #[error("the store holds a value that cannot be read: {0}")]
    Corrupt(&'static str),
}

/// The data that one Validate reads, all from one moment.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The remaining fields are at least as new as this revision.
    pub head: i64,
    /// `None` if there is no such key.
    pub found: Option<(Grant, Verifier)>,
}

/// The data that one batch of Validates reads, all from one moment.
#[derive(Clone, Debug)]
pub struct LoadedMany {
    /// The remaining fields are at least as new as this revision.
    pub head: i64,
    /// The keys that exist.
    pub found: HashMap<KeyId, (Grant, Verifier)>,
}

/// The data about a caller that is authenticated by an owner's name, all from one moment.
#[derive(Clone, Debug)]
pub struct LoadedOwner {
    /// The remaining fields are at least as new as this revision.
    pub head: i64,
    /// The owner's record, if it has one.
    pub owner: Option<Owner>,
    pub tenant: Tenant,
}

/// The identity of a log, and the revision of its last change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogPosition {
    /// 32 random hexadecimal digits. A restored backup has a different value.
    pub store_id: String,
    /// The revision of the last change.
    pub head: i64,
}

/// A replica's membership, as the replica recorded it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    pub id: String,
    /// The revision up to which the replica has removed outdated entries from its cache.
    pub applied: i64,
    /// The number of lease renewals so far.
    pub renewals: i64,
    /// The duration of each lease.
    pub lease: Duration,
}

/// Membership of replicas: each replica has a row, which it renews itself.
#[async_trait]
pub trait Replicas: Send + Sync + 'static {
    /// Makes a replica a member, or a member again, and returns the revision of the log. The
    /// replica must apply every later event.
    async fn join(&self, id: &str, lease: Duration) -> Result<i64, StoreError>;

    /// Writes the revision up to which a member has applied the log, and reads the revision of the
    /// log in the same statement. Returns `None` and writes nothing if the replica is no longer a
    /// member, or the log is shorter than `applied`.
    async fn renew(&self, id: &str, applied: i64) -> Result<Option<i64>, StoreError>;

    /// Ends a membership. The replica's cache must have stopped serving entries by then.
    async fn leave(&self, id: &str) -> Result<(), StoreError>;

    /// Returns all members.
    async fn members(&self) -> Result<Vec<Member>, StoreError>;

    /// Ends the membership of a replica that has not renewed it since `seen` was read.
    async fn remove(&self, seen: &Member) -> Result<(), StoreError>;

    /// Returns at most `limit` events from `revision` on, oldest first.
    async fn events_from(&self, revision: i64, limit: u32) -> Result<Vec<Event>, StoreError>;

    /// Notifies all members that the log has grown. A notification can get lost, so a follower of
    /// the log must also poll.
    async fn hint(&self);

    /// Waits for a notification; forever where there are none.
    async fn hinted(&self);
}

/// The filters of a list of keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyQuery {
    pub tenants: TenantSet,
    pub owner_id: Option<String>,
    /// Empty: all states.
    pub states: Vec<KeyState>,
    pub label_contains: Option<String>,
    pub expires_before: Option<Timestamp>,
    /// Keys that were never used count as used before any time.
    pub last_used_before: Option<Timestamp>,
    pub key_prefix: Option<KeyPrefix>,
}

/// The keys found for a page.
#[derive(Clone, Debug)]
pub struct Listed {
    pub keys: Vec<Key>,
    /// The cursor at which the list continues after `keys`, because the search went no further.
    /// `None`: there is nothing further.
    pub looked_to: Option<i64>,
}

/// The living keys in a slice of keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LivingCount {
    pub living: usize,
    /// The `created_revision` after which the next slice begins. `None`: there is no further key.
    pub next: Option<i64>,
}

/// The filters of a list of events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventQuery {
    pub tenants: TenantSet,
    pub key_id: Option<KeyId>,
    pub owner_id: Option<String>,
    pub actor: Option<String>,
    /// Empty: all kinds.
    pub kinds: Vec<EventKind>,
    /// At or after this time.
    pub after: Option<Timestamp>,
    /// Before this time.
    pub before: Option<Timestamp>,
}

/// The record of a pepper in the database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PepperCheck {
    pub pepper_id: String,
    /// Increases with each recorded pepper.
    pub ordinal: i64,
    /// Keys created up to this revision may have no MAC under a known pepper.
    pub argon2_until: i64,
    /// The MAC of a known text and of `argon2_until` under the pepper.
    pub check_value: Vec<u8>,
}

/// Chooses the peppers to record, from the revision of the log and the recorded peppers.
pub type Choose<'a> = dyn Fn(i64, &[PepperCheck]) -> Vec<PepperCheck> + Sync + 'a;

/// A database that holds keys, owners, tenants and the log.
///
/// A missing record is `None`, not an error. Methods fail only with [`StoreError`].
#[async_trait]
pub trait Store: Replicas + Collect {
    /// Returns the maximum number of concurrent loads. More would not finish sooner, and the limit
    /// bounds the share of the database and of the CPU cores that a flood of unknown keys can use.
    fn loads_at_once(&self) -> usize;

    /// Reads, in one statement, a key with its owner, its tenant and the revision of the log.
    async fn load(&self, id: KeyId) -> Result<Loaded, StoreError>;

    /// Reads, in one statement, these keys with their owners, their tenants and the revision of the
    /// log.
    async fn load_many(&self, ids: &[KeyId]) -> Result<LoadedMany, StoreError>;

    /// Reads, in one statement, an owner with its tenant, which must exist, and the revision of the
    /// log.
    async fn load_owner(&self, tenant: &str, owner: &str) -> Result<LoadedOwner, StoreError>;

    /// Counts the keys, up to `most`.
    async fn count_keys(&self, most: usize) -> Result<usize, StoreError>;

    /// Reads, in one statement, a page of the keys that are most likely to be requested, with their
    /// owners, their tenants and the revision of the log.
    async fn warm(&self, asked: &WarmQuery) -> Result<WarmPage, StoreError>;

    /// Finds a key by its id, with its last use.
    async fn find_key(&self, id: KeyId) -> Result<Option<Key>, StoreError>;

    /// Lists keys with their last uses, newest first. A page's cursor is a `created_revision`.
    /// States are those at `now`.
    async fn list_keys(
        &self,
        query: &KeyQuery,
        now: Timestamp,
        page: &Page,
    ) -> Result<Listed, StoreError>;

    /// Counts the keys that can be used now or once resumed, in a bounded slice of the keys of a
    /// tenant or of one owner: those created after revision `after`, oldest first.
    async fn count_living(
        &self,
        tenant: &str,
        owner: Option<&str>,
        now: Timestamp,
        after: i64,
    ) -> Result<LivingCount, StoreError>;

    /// Finds an owner by its name.
    async fn find_owner(&self, tenant: &str, owner: &str) -> Result<Option<Owner>, StoreError>;

    /// Lists a tenant's owners by `owner_id`, which is the cursor.
    async fn list_owners(&self, tenant: &str, page: &Page) -> Result<Vec<Owner>, StoreError>;

    /// Finds a tenant by its name.
    async fn find_tenant(&self, tenant: &str) -> Result<Option<Tenant>, StoreError>;

    /// Lists tenants by `tenant_id`, which is the cursor.
    async fn list_tenants(&self, of: &TenantSet, page: &Page) -> Result<Vec<Tenant>, StoreError>;

    /// Lists events, newest first; the cursor is the revision.
    async fn list_events(&self, query: &EventQuery, page: &Page) -> Result<Vec<Event>, StoreError>;

    /// Returns at most `limit` events from `revision` on, oldest first.
    async fn follow_events(
        &self,
        of: &TenantSet,
        revision: i64,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError>;

    /// Returns the revision of the last change.
    async fn head(&self) -> Result<i64, StoreError>;

    /// Returns the identity of the log and the revision of the last change.
    async fn position(&self) -> Result<LogPosition, StoreError>;

    /// Gives a restored backup a new identity, so that its revisions are not mistaken for the lost
    /// ones. Earlier memberships end; a change waits for their leases once.
    async fn mark_restored(&self) -> Result<LogPosition, StoreError>;

    /// Begins a mutation. Mutations are exclusive: the next one begins when this one has ended.
    async fn begin(&self) -> Result<Box<dyn Mutation>, StoreError>;

    /// Returns the records of all peppers, in the order of their creation.
    async fn pepper_checks(&self) -> Result<Vec<PepperCheck>, StoreError>;

    /// Reads the records of the peppers and adds those that `choose` returns, in an exclusive
    /// transaction. When replicas start together, each sees the records of the ones before it.
    async fn record_pepper_checks(&self, choose: &Choose<'_>) -> Result<(), StoreError>;

    /// Deletes the check values of all peppers, so that a new pepper can be used when all are lost.
    async fn forget_pepper_checks(&self) -> Result<(), StoreError>;

    /// Performs a write that changes nothing, to test whether changes can be written.
    async fn probe_changes(&self) -> Result<(), StoreError>;

    /// Counts, for each pepper, the keys with a MAC under it that are neither revoked nor expired.
    /// `None`: the keys without a MAC.
    async fn count_by_pepper(
        &self,
        now: Timestamp,
    ) -> Result<Vec<(Option<String>, u64)>, StoreError>;

    /// Replaces a key's MAC by one of the same key under another pepper. The change is not visible
    /// to anyone, so it is not an event.
    async fn replace_mac(&self, id: KeyId, mac: &Mac) -> Result<(), StoreError>;

    /// Adds uses of keys to the recorded ones: the later last use wins, and counts add up. Runs in
    /// its own transaction and is not in the log. After an error, the uses may or may not have been
    /// added.
    async fn add_uses(&self, uses: &[(KeyId, Uses)]) -> Result<(), StoreError>;

    /// Closes all connections after everything that runs on them has ended.
    async fn close(&self);
}

/// A mutation: ends with [`Mutation::commit`], or is rolled back when dropped.
#[async_trait]
pub trait Mutation: Send {
    /// Returns the revision of this mutation.
    fn revision(&self) -> i64;

    /// See [`Store::find_key`].
    async fn find_key(&mut self, id: KeyId) -> Result<Option<Key>, StoreError>;

    /// See [`Store::find_owner`].
    async fn find_owner(&mut self, tenant: &str, owner: &str) -> Result<Option<Owner>, StoreError>;

    /// See [`Store::find_tenant`].
    async fn find_tenant(&mut self, tenant: &str) -> Result<Option<Tenant>, StoreError>;

    /// Finds the key that an earlier CreateKey with this `request_id` created.
    async fn find_request(
        &mut self,
        tenant: &str,
        request_id: &str,
    ) -> Result<Option<KeyId>, StoreError>;

    /// Lists the keys of a tenant, or of one of its owners, that can be used now or once resumed,
    /// oldest first.
    async fn list_living(
        &mut self,
        tenant: &str,
        owner: Option<&str>,
        now: Timestamp,
    ) -> Result<Vec<KeyId>, StoreError>;

    /// Returns the distinct scope sets of an owner's keys that can be used now or once resumed.
    async fn living_scopes(
        &mut self,
        tenant: &str,
        owner: &str,
        now: Timestamp,
    ) -> Result<Vec<Scopes>, StoreError>;

    /// Inserts a key.
    async fn insert_key(
        &mut self,
        key: &Key,
        verifier: &Verifier,
        request_id: Option<&str>,
    ) -> Result<(), StoreError>;

    /// Writes every field of a key that can change.
    async fn update_key(&mut self, key: &Key) -> Result<(), StoreError>;

    /// Revokes a key, even if other parts of its row are unreadable.
    async fn revoke_key(&mut self, id: KeyId, revoked: &Revocation) -> Result<(), StoreError>;

    /// Revokes, in one statement, all keys that [`Mutation::list_living`] lists.
    async fn revoke_living(
        &mut self,
        tenant: &str,
        owner: Option<&str>,
        now: Timestamp,
        by: &str,
        reason: &str,
    ) -> Result<(), StoreError>;

    /// Returns whether an owner has keys that can be used now or once resumed.
    async fn has_living(
        &mut self,
        tenant: &str,
        owner: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Returns whether a tenant has keys, in whatever state.
    async fn has_keys(&mut self, tenant: &str) -> Result<bool, StoreError>;

    /// Counts a tenant's owners, up to `most`.
    async fn count_owners(&mut self, tenant: &str, most: usize) -> Result<usize, StoreError>;

    /// Creates or replaces an owner's record.
    async fn put_owner(&mut self, owner: &Owner) -> Result<(), StoreError>;

    /// Deletes an owner's record.
    async fn delete_owner(&mut self, tenant: &str, owner: &str) -> Result<(), StoreError>;

    /// Creates or replaces a tenant.
    async fn put_tenant(&mut self, tenant: &Tenant) -> Result<(), StoreError>;

    /// Deletes a tenant without keys, and its owners.
    async fn delete_tenant(&mut self, tenant: &str) -> Result<(), StoreError>;

    /// Writes the event and ends the mutation. After a successful return, the changes are durable.
    async fn commit(self: Box<Self>, change: Change) -> Result<(), StoreError>;
}

/// The database engine that a URL names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    /// Returns the engine that `url` names.
    ///
    /// # Errors
    /// [`OpenError::Url`] if it names none.
    pub fn of(url: &str) -> Result<Self, OpenError> {
        match url.split_once(':') {
            Some(("sqlite", _)) => Ok(Self::Sqlite),
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres),
            _ => Err(OpenError::Url),
        }
    }
}

/// Opens the database that `url` names and brings its schema up to date.
///
/// # Errors
/// See [`OpenError`].
pub async fn open(url: &str) -> Result<Arc<dyn Store>, OpenError> {
    match Engine::of(url)? {
        Engine::Sqlite => sqlite::open(url).await,
        Engine::Postgres => postgres::open(url).await,
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::RowNotFound => Self::Corrupt("a row"),
            sqlx::Error::Io(_) => Self::Interrupted(error.into()),
            sqlx::Error::Database(ref answer) if answer.code().as_deref() == Some(READ_ONLY) => {
                Self::ReadOnly
            }
            sqlx::Error::Database(ref answer) if passes(&**answer) => {
                Self::Interrupted(error.into())
            }
            other => Self::Unavailable(other.into()),
        }
    }
}

/// PostgreSQL's error code for a change in a read-only transaction.
const READ_ONLY: &str = "25006";

/// Returns whether a retry on a new connection may succeed.
fn passes(answer: &dyn DatabaseError) -> bool {
    // PostgreSQL's classes: 08 connection, 40 serialization failures and deadlocks, 57P shutdown or
    // startup; 53300 too many connections.
    answer.code().is_some_and(|code| {
        ["08", "40", "57P", "53300"]
            .iter()
            .any(|class| code.starts_with(class))
    })
}
