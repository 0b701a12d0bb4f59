//! The database, and nothing but the database.
//!
//! [`Store`] is what the rest of the house knows of it. Two engines stand behind it, SQLite and
//! PostgreSQL; both run the same statements (`text.rs`) by the same code (`sql.rs`), compiled
//! once for each. sqlx appears nowhere else, and no text of a driver leaves this floor but in
//! [`StoreError`]'s source, for the log.

mod column;
pub mod listing;
mod loaders;
mod measured;
mod open_error;
mod postgres;
mod retry;
mod sqlite;
pub mod text;
mod trust;
mod warm;
mod writable;

use std::{error::Error, sync::Arc, time::Duration};

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
    token::KeyId,
    usage::Uses,
};
use crate::meter::Tell;

pub use open_error::OpenError;
pub use warm::{WarmKey, WarmPage, WarmQuery, WarmSet};

/// Why the store gave no answer.
#[derive(Debug, Error)]
pub enum StoreError {
    /// It did not answer, or not in time. A read may be tried again; what a mutation was to do
    /// may or may not have been done.
    #[error("the store does not answer")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// It broke off while it answered, as it does when it restarts or hands over to another. It has
    /// been tried again already, where that is safe.
    #[error("the store broke off")]
    Interrupted(#[source] Box<dyn Error + Send + Sync>),
    /// It takes no changes: it is a standby, or a primary that was made read-only. What it says may
    /// be long out of date, and so does not count.
    #[error(
        "the database takes no changes: it is a standby, or default_transaction_read_only is on"
    )]
    ReadOnly,
    /// It did not say whether it carried out a change.
    #[error("the store did not say whether the change was made")]
    Unknown(#[source] Box<dyn Error + Send + Sync>),
    /// It holds what this program would not have written.
    #[error("the store holds a value that cannot be read: {0}")]
    Corrupt(&'static str),
}

/// What one Validate reads, of one moment.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The revision that the rest is at least as new as.
    pub head: i64,
    /// Nothing when there is no such key.
    pub found: Option<(Grant, Verifier)>,
}

/// What is to be known of one who calls by an owner's name, of one moment.
#[derive(Clone, Debug)]
pub struct LoadedOwner {
    /// The revision that the rest is at least as new as.
    pub head: i64,
    /// Its record, if it has one.
    pub owner: Option<Owner>,
    pub tenant: Tenant,
}

/// Which log it is, and how far it goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogPosition {
    /// 32 random hexadecimal digits. A restored backup has another one.
    pub store_id: String,
    /// The revision of the last change.
    pub head: i64,
}

/// What a replica says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    pub id: String,
    /// Up to which revision it has forgotten what is true no more.
    pub applied: i64,
    /// How often it has renewed its lease.
    pub renewals: i64,
    /// How long each of its leases lasts.
    pub lease: Duration,
}

/// What replicas know of each other: each a row, which it renews itself.
#[async_trait]
pub trait Replicas: Send + Sync + 'static {
    /// Makes a replica a member, or a member anew, and returns the revision of the log: it has
    /// to know of everything that is later.
    async fn join(&self, id: &str, lease: Duration) -> Result<i64, StoreError>;

    /// Writes up to where a member has applied the log, and reads in the same statement the
    /// revision of the log. `None`, and nothing is written: it is a member no more, or the log is
    /// shorter than that.
    async fn renew(&self, id: &str, applied: i64) -> Result<Option<i64>, StoreError>;

    /// Ends a membership. Its memory must answer no more by then.
    async fn leave(&self, id: &str) -> Result<(), StoreError>;

    /// All members.
    async fn members(&self) -> Result<Vec<Member>, StoreError>;

    /// Ends the membership of one that has not renewed it since it was seen.
    async fn remove(&self, seen: &Member) -> Result<(), StoreError>;

    /// At most `limit` events from `revision` on, oldest first.
    async fn events_from(&self, revision: i64, limit: u32) -> Result<Vec<Event>, StoreError>;

    /// Tells all members that the log has grown. It may get lost: what follows the log must also
    /// look by itself.
    async fn hint(&self);

    /// Waits for a hint. Where there are none, for ever.
    async fn hinted(&self);
}

/// Which keys to list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyQuery {
    pub tenant_id: String,
    pub owner_id: Option<String>,
    /// Empty: all.
    pub states: Vec<KeyState>,
    pub label_contains: Option<String>,
    pub expires_before: Option<Timestamp>,
}

/// Keys found for a page.
#[derive(Clone, Debug)]
pub struct Listed {
    pub keys: Vec<Key>,
    /// Where the list goes on if nothing follows in `keys`: further than this was not looked.
    /// `None`: there is nothing further.
    pub looked_to: Option<i64>,
}

/// Living keys in a slice of keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LivingCount {
    pub living: usize,
    /// The `created_revision` that the next slice begins after. `None`: there is no further key.
    pub next: Option<i64>,
}

/// Which events to list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventQuery {
    pub tenants: TenantSet,
    pub key_id: Option<KeyId>,
    pub owner_id: Option<String>,
    pub actor: Option<String>,
    /// Empty: all.
    pub kinds: Vec<EventKind>,
    /// At or after this time.
    pub after: Option<Timestamp>,
    /// Before this time.
    pub before: Option<Timestamp>,
}

/// What the database knows of a pepper.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PepperCheck {
    pub pepper_id: String,
    /// Grows with each pepper that is recorded.
    pub ordinal: i64,
    /// Keys that were created up to this revision may have no MAC under a known pepper.
    pub argon2_until: i64,
    /// What the pepper makes of a known text and of `argon2_until`.
    pub check_value: Vec<u8>,
}

/// Chooses which peppers to record, from the revision of the log and those that are recorded.
pub type Choose<'a> = dyn Fn(i64, &[PepperCheck]) -> Vec<PepperCheck> + Sync + 'a;

/// A database that holds keys, owners, tenants and the log.
///
/// Absent is `None`, not an error. Every method fails with [`StoreError`] alone.
#[async_trait]
pub trait Store: Replicas + Tell {
    /// How many loads it is to be asked for at once: one that has no more does them no sooner, and a
    /// flood of unknown keys takes no more of it and of the cores than that.
    fn loads_at_once(&self) -> usize;

    /// Reads, in one statement, a key with all that bounds it and the revision of the log.
    async fn load(&self, id: KeyId) -> Result<Loaded, StoreError>;

    /// Reads, in one statement, an owner with its tenant, which exists, and the revision of the log.
    async fn load_owner(&self, tenant: &str, owner: &str) -> Result<LoadedOwner, StoreError>;

    /// How many keys there are; if there are more than `most`, that many.
    async fn count_keys(&self, most: usize) -> Result<usize, StoreError>;

    /// Reads, in one statement, a page of the keys that are the likeliest to be asked about, with
    /// all that bounds them and the revision of the log.
    async fn warm(&self, asked: &WarmQuery) -> Result<WarmPage, StoreError>;

    /// The key of that id, with its last use.
    async fn find_key(&self, id: KeyId) -> Result<Option<Key>, StoreError>;

    /// Keys with their last uses, newest first; a page's cursor is a `created_revision`. States are
    /// those at `now`.
    async fn list_keys(
        &self,
        query: &KeyQuery,
        now: Timestamp,
        page: &Page,
    ) -> Result<Listed, StoreError>;

    /// Counts the keys that could be used now or once resumed, in a bounded slice of a tenant's keys
    /// or of one owner's: those created after revision `after`, oldest first.
    async fn count_living(
        &self,
        tenant: &str,
        owner: Option<&str>,
        now: Timestamp,
        after: i64,
    ) -> Result<LivingCount, StoreError>;

    /// The owner of that name.
    async fn find_owner(&self, tenant: &str, owner: &str) -> Result<Option<Owner>, StoreError>;

    /// A tenant's owners by `owner_id`, which is the cursor.
    async fn list_owners(&self, tenant: &str, page: &Page) -> Result<Vec<Owner>, StoreError>;

    /// The tenant of that name.
    async fn find_tenant(&self, tenant: &str) -> Result<Option<Tenant>, StoreError>;

    /// Tenants by `tenant_id`, which is the cursor.
    async fn list_tenants(&self, of: &TenantSet, page: &Page) -> Result<Vec<Tenant>, StoreError>;

    /// Events, newest first; the cursor is the revision.
    async fn list_events(&self, query: &EventQuery, page: &Page) -> Result<Vec<Event>, StoreError>;

    /// At most `limit` events from `revision` on, oldest first.
    async fn follow_events(
        &self,
        of: &TenantSet,
        revision: i64,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError>;

    /// The revision of the last change.
    async fn head(&self) -> Result<i64, StoreError>;

    /// Which log it is, and the revision of the last change.
    async fn position(&self) -> Result<LogPosition, StoreError>;

    /// Gives a restored backup an identity of its own, so that nobody takes its revisions for those
    /// that were lost. Memberships of before end; a change waits for their leases once.
    async fn mark_restored(&self) -> Result<LogPosition, StoreError>;

    /// Begins a mutation. It is alone: the next one begins when this has ended.
    async fn begin(&self) -> Result<Box<dyn Mutation>, StoreError>;

    /// The records of all peppers, in the order in which they were made.
    async fn pepper_checks(&self) -> Result<Vec<PepperCheck>, StoreError>;

    /// Reads the peppers' records and adds those that `choose` returns, alone while it does: of
    /// replicas that start together, each sees what the one before it has recorded.
    async fn record_pepper_checks(&self, choose: &Choose<'_>) -> Result<(), StoreError>;

    /// Forgets all peppers' check values, so that a new pepper can be used when all are lost.
    async fn forget_pepper_checks(&self) -> Result<(), StoreError>;

    /// Writes what changes nothing, to find out whether changes can be written.
    async fn probe_changes(&self) -> Result<(), StoreError>;

    /// How many keys that are neither revoked nor expired have a MAC under which pepper; `None`:
    /// they have none.
    async fn count_by_pepper(
        &self,
        now: Timestamp,
    ) -> Result<Vec<(Option<String>, u64)>, StoreError>;

    /// Replaces a key's MAC by one of the same key under another pepper. Not a change that
    /// anybody could see, and so not an event.
    async fn replace_mac(&self, id: KeyId, mac: &Mac) -> Result<(), StoreError>;

    /// Adds uses of keys to those that are known: the latest is the last, and counts add. In a
    /// transaction of its own; not a change that is in the log. After an error they may have been
    /// added.
    async fn add_uses(&self, uses: &[(KeyId, Uses)]) -> Result<(), StoreError>;

    /// Closes all connections, after what is running on them has ended.
    async fn close(&self);
}

/// A mutation: it ends by [`Mutation::commit`], or is undone when dropped.
#[async_trait]
pub trait Mutation: Send {
    /// The revision that this mutation will have.
    fn revision(&self) -> i64;

    /// See [`Store::find_key`].
    async fn find_key(&mut self, id: KeyId) -> Result<Option<Key>, StoreError>;

    /// See [`Store::find_owner`].
    async fn find_owner(&mut self, tenant: &str, owner: &str) -> Result<Option<Owner>, StoreError>;

    /// See [`Store::find_tenant`].
    async fn find_tenant(&mut self, tenant: &str) -> Result<Option<Tenant>, StoreError>;

    /// The key that an earlier CreateKey with this `request_id` made.
    async fn find_request(
        &mut self,
        tenant: &str,
        request_id: &str,
    ) -> Result<Option<KeyId>, StoreError>;

    /// The keys of a tenant, or of one owner in it, that can be used now or once resumed, oldest
    /// first.
    async fn list_living(
        &mut self,
        tenant: &str,
        owner: Option<&str>,
        now: Timestamp,
    ) -> Result<Vec<KeyId>, StoreError>;

    /// The scopes of an owner's keys that can be used now or once resumed, each set once.
    async fn living_scopes(
        &mut self,
        tenant: &str,
        owner: &str,
        now: Timestamp,
    ) -> Result<Vec<Scopes>, StoreError>;

    /// Writes a new key.
    async fn insert_key(
        &mut self,
        key: &Key,
        verifier: &Verifier,
        request_id: Option<&str>,
    ) -> Result<(), StoreError>;

    /// Writes all that may change of a key.
    async fn update_key(&mut self, key: &Key) -> Result<(), StoreError>;

    /// Revokes a key, whatever else can be read of it.
    async fn revoke_key(&mut self, id: KeyId, revoked: &Revocation) -> Result<(), StoreError>;

    /// Revokes at once all that [`Mutation::list_living`] lists.
    async fn revoke_living(
        &mut self,
        tenant: &str,
        owner: Option<&str>,
        now: Timestamp,
        by: &str,
        reason: &str,
    ) -> Result<(), StoreError>;

    /// Makes or replaces an owner's record.
    async fn put_owner(&mut self, owner: &Owner) -> Result<(), StoreError>;

    /// Forgets an owner's record.
    async fn delete_owner(&mut self, tenant: &str, owner: &str) -> Result<(), StoreError>;

    /// Makes or replaces a tenant.
    async fn put_tenant(&mut self, tenant: &Tenant) -> Result<(), StoreError>;

    /// Writes the event and ends the mutation. When it returns, what was written is durable.
    async fn commit(self: Box<Self>, change: Change) -> Result<(), StoreError>;
}

/// Which kind of store a URL names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    /// The engine that `url` names.
    ///
    /// # Errors
    /// [`OpenError::Url`] when it names none.
    pub fn of(url: &str) -> Result<Self, OpenError> {
        match url.split_once(':') {
            Some(("sqlite", _)) => Ok(Self::Sqlite),
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres),
            _ => Err(OpenError::Url),
        }
    }
}

/// Opens the store that `url` names and brings its schema up to date.
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

/// PostgreSQL's code of a statement that would change something where nothing can be changed.
const READ_ONLY: &str = "25006";

/// Whether what the database says may be otherwise the next time, on a new connection.
fn passes(answer: &dyn DatabaseError) -> bool {
    // PostgreSQL's classes: 08 connection, 40 serialization and deadlocks, 57P it is stopping or
    // starting; 53300 too many connections.
    answer.code().is_some_and(|code| {
        ["08", "40", "57P", "53300"]
            .iter()
            .any(|class| code.starts_with(class))
    })
}
