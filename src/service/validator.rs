//! Decides about presented keys.
//!
//! A cache hit uses no database, no Argon2 and no other thread. A cache miss causes one load of the
//! key for all requests that wait for it. A denial is a value; an error means that no decision was
//! possible. This path writes nothing, and logs nothing per call.

mod batch;

use std::{fmt, sync::Arc, time::Duration};

use opentelemetry::trace::FutureExt as _;
use thiserror::Error;
use tokio::time;

pub use self::batch::Batch;
use super::{
    cache::{Cache, Entry, LoadSlot, Lookup, OwnerEntry, Ticket},
    fair_queue::{Bounds, FairQueue},
    secret::{Busy, Proof, Secrets, pepper_migration::PepperMigration},
};
use crate::{
    domain::{
        clock::{Clock, Timestamp},
        credential::Credential,
        key::{Grant, Verifier},
        key_policy::{AccessRequest, DenyReason, KeyPolicy},
        tenant::SYSTEM,
        token::{KeyId, Presented},
    },
    metrics::{Collect, Encoder},
    store::{Loaded, LoadedOwner, Store, StoreError},
};

/// Maximum number of requests that wait to load their key.
const LOADS_WAITING: usize = 4096;
/// Timeout of a load.
const LOAD_PATIENCE: Duration = Duration::from_secs(2);

/// The reason why no decision was possible.
#[derive(Debug, Error)]
pub enum ValidateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error("too many keys are being loaded at once")]
    Overloaded,
    #[error("the key was made under a pepper that this replica does not have")]
    UnknownPepper,
}

/// A question about a presented credential.
pub struct ValidationRequest<'a> {
    pub credential: &'a Credential,
    /// Returns true if a key of this tenant may be disclosed at all. Depends on the call's tenant
    /// and the caller's permissions.
    pub in_view: &'a (dyn Fn(&str) -> bool + Sync),
    pub ask: AccessRequest<'a>,
}

/// The decision about a presented credential.
#[derive(Clone, Debug)]
pub enum Decision {
    /// No credential was presented.
    Missing,
    /// The credential does not have the format of a key, or its checksum is wrong.
    Malformed,
    /// The id is unknown, the secret is wrong, or the key is not visible to the caller. The
    /// response is the same, after the same hash operations.
    NotFound,
    /// The secret is correct, but the key is denied.
    Denied(Known, DenyReason),
    /// The key may be used as requested.
    Allowed(Known),
}

/// A key whose secret was verified.
#[derive(Clone, Debug)]
pub struct Known {
    pub key_id: KeyId,
    /// The time of the decision.
    pub at: Timestamp,
    entry: Arc<Entry>,
}

impl Known {
    /// Returns the key policy.
    #[must_use]
    pub fn policy(&self) -> &KeyPolicy {
        &self.entry.policy
    }
}

/// A loaded key, whose secret is not verified yet.
enum Row {
    /// The key does not exist.
    Absent,
    /// The MAC of the correct secret is known.
    Entry(Arc<Entry>),
    /// The stored verifier must be checked, with Argon2 or under an older pepper.
    Verifier(Box<StoredKey>),
}

/// A loaded key and the moment of its load.
struct StoredKey {
    policy: KeyPolicy,
    verifier: Verifier,
    created: i64,
    head: i64,
    ticket: Ticket,
}

/// Decides about presented keys.
pub struct Validator {
    store: Arc<dyn Store>,
    secrets: Arc<Secrets>,
    cache: Arc<Cache>,
    clock: Arc<dyn Clock>,
    pepper_migration: PepperMigration,
    loads: FairQueue<(), 1>,
}

impl Validator {
    /// Returns a validator of the keys in `store`.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        secrets: Arc<Secrets>,
        cache: Arc<Cache>,
        clock: Arc<dyn Clock>,
        pepper_migration: PepperMigration,
    ) -> Self {
        let bounds = Bounds {
            running: store.loads_at_once(),
            waiting: LOADS_WAITING,
            waiting_each: LOADS_WAITING,
        };
        let loads = FairQueue::new(bounds, &[0]);
        Self {
            store,
            secrets,
            cache,
            clock,
            pepper_migration,
            loads,
        }
    }

    /// Decides whether a credential may be used as requested.
    ///
    /// # Errors
    /// Returns an error if no decision is possible: the database does not respond, or gatekey is
    /// overloaded.
    pub async fn validate(
        &self,
        question: &ValidationRequest<'_>,
    ) -> Result<Decision, ValidateError> {
        let Some(presented) = question.credential.presented() else {
            return Ok(unpresented(question));
        };
        let entry = self.prove(presented).await?;
        Ok(self.decide(question, presented, entry))
    }

    /// Decides about a key whose entry was returned by a check of its secret.
    fn decide(
        &self,
        question: &ValidationRequest<'_>,
        presented: Presented<'_>,
        entry: Option<Arc<Entry>>,
    ) -> Decision {
        let Some(entry) = entry else {
            return Decision::NotFound;
        };
        let policy = &entry.policy;
        let named = question
            .credential
            .username()
            .is_none_or(|name| policy.knows_username(name));
        if !named || !(question.in_view)(policy.tenant_id()) {
            return Decision::NotFound;
        }
        let at = self.clock.now();
        let decided = policy.decide(at, &question.ask);
        let known = Known {
            key_id: presented.id(),
            at,
            entry,
        };
        match decided {
            Ok(()) => Decision::Allowed(known),
            Err(deny_reason) => Decision::Denied(known, deny_reason),
        }
    }

    /// Returns true if the key exists and its secret is correct, whatever it may be used for.
    ///
    /// # Errors
    /// Returns an error if the database does not respond, or gatekey is overloaded.
    pub async fn recognizes(&self, presented: Presented<'_>) -> Result<bool, ValidateError> {
        Ok(self.prove(presented).await?.is_some())
    }

    /// Returns the policy of the owner of this name in tenant `system`, for a caller that is
    /// authenticated as that owner. An owner without a record may do nothing.
    ///
    /// # Errors
    /// Returns an error if the database does not respond, or gatekey is overloaded.
    pub async fn load_owner(&self, owner: &str) -> Result<Arc<OwnerEntry>, ValidateError> {
        if let Some(owner_entry) = self.cache.owner_entry(owner, &*self.clock) {
            return Ok(owner_entry);
        }
        let ticket = self.cache.ticket();
        let (store, name) = (Arc::clone(&self.store), owner.to_owned());
        let load = async move { store.load_owner(SYSTEM, &name).await };
        let loaded: LoadedOwner = self.load(load).await?;
        let policy = KeyPolicy::of_owner(owner, loaded.owner.as_ref(), &loaded.tenant);
        Ok(self.cache.take_voucher(policy, loaded.head, ticket))
    }

    /// Returns the entry of a presented key once its secret is verified. Returns `None` if there is
    /// no such key or the secret is wrong; both take the same hash operations.
    async fn prove(&self, presented: Presented<'_>) -> Result<Option<Arc<Entry>>, ValidateError> {
        let mac = self.secrets.memory_mac(presented);
        match self.cache.get(presented.id(), &*self.clock) {
            Some(entry) => self.recognize(presented, &mac, Some(entry)).await,
            // Boxed separately, so that the future of a hit, which awaits nothing, stays small.
            None => Box::pin(self.find(presented, mac)).await,
        }
    }

    /// Verifies a presented key that is not cached, or not yet.
    async fn find(
        &self,
        presented: Presented<'_>,
        mac: [u8; 32],
    ) -> Result<Option<Arc<Entry>>, ValidateError> {
        let look = self.cache.look(presented.id(), &*self.clock);
        let row = match in_time(look).await? {
            Lookup::Hit(entry) => Row::Entry(entry),
            Lookup::Miss(slot) => self.load_key(presented.id(), slot).await?,
        };
        self.prove_row(presented, &mac, &row).await
    }

    async fn recognize(
        &self,
        presented: Presented<'_>,
        mac: &[u8; 32],
        entry: Option<Arc<Entry>>,
    ) -> Result<Option<Arc<Entry>>, ValidateError> {
        let expected = entry.as_ref().map(|entry| &entry.mac);
        let right = self.secrets.recognize(presented, mac, expected).await?;
        Ok(entry.filter(|_| right))
    }

    async fn load_key(&self, id: KeyId, slot: Option<LoadSlot<'_>>) -> Result<Row, ValidateError> {
        let ticket = self.cache.ticket();
        let store = Arc::clone(&self.store);
        let load = async move { store.load(id).await };
        let Loaded { head, found } = self.load(load).await?;
        Ok(self.accept(id, found, (head, ticket), slot))
    }

    /// Accepts a key that was loaded at `head` with a ticket. Caches it if its MAC is known and no
    /// change has been announced since.
    fn accept(
        &self,
        id: KeyId,
        found: Option<(Grant, Verifier)>,
        (head, ticket): (i64, Ticket),
        slot: Option<LoadSlot<'_>>,
    ) -> Row {
        let Some((grant, verifier)) = found else {
            return Row::Absent;
        };
        let policy = KeyPolicy::of(&grant);
        // A proven MAC stays proven, because secrets never change.
        let stale = slot.as_ref().and_then(|slot| slot.stale.as_ref());
        let proven = || stale.map_or_else(|| self.cache.proven(id), |stale| Some(stale.mac));
        if let Some(expected) = self.secrets.stored_memory_mac(&verifier).or_else(proven) {
            let (entry, keep) = self.cache.entry(id, policy, expected, head, ticket);
            if let Some(slot) = slot.filter(|_| keep) {
                slot.fill(Arc::clone(&entry));
            }
            return Row::Entry(entry);
        }
        // Releases the load slot: no caller should wait for the Argon2 hash of a secret that may be
        // wrong.
        drop(slot);
        Row::Verifier(Box::new(StoredKey {
            policy,
            verifier,
            created: grant.key.created_revision,
            head,
            ticket,
        }))
    }

    /// Returns the entry of a loaded key if the presented secret is correct.
    async fn prove_row(
        &self,
        presented: Presented<'_>,
        mac: &[u8; 32],
        row: &Row,
    ) -> Result<Option<Arc<Entry>>, ValidateError> {
        match row {
            Row::Absent => self.recognize(presented, mac, None).await,
            Row::Entry(entry) => {
                self.recognize(presented, mac, Some(Arc::clone(entry)))
                    .await
            }
            Row::Verifier(stored) => self.prove_stored(presented, *mac, stored).await,
        }
    }

    async fn prove_stored(
        &self,
        presented: Presented<'_>,
        mac: [u8; 32],
        stored: &StoredKey,
    ) -> Result<Option<Arc<Entry>>, ValidateError> {
        let id = presented.id();
        let prove = self
            .secrets
            .prove(presented, &stored.verifier, stored.created);
        match prove.await? {
            Proof::Wrong => Ok(None),
            // A pepper may be removed when no working key uses it any more.
            Proof::UnknownPepper if stored.policy.barred(self.clock.now()).is_some() => Ok(None),
            Proof::UnknownPepper => Err(ValidateError::UnknownPepper),
            Proof::Proven { fresh_mac } => {
                // A key that could not be queued is not cached, so that its next use tries again.
                let moved = fresh_mac.is_none_or(|mac| self.pepper_migration.move_key(id, mac));
                let (policy, head) = (stored.policy.clone(), stored.head);
                let (entry, keep) = self.cache.entry(id, policy, mac, head, stored.ticket);
                if keep && moved {
                    self.cache.insert(id, Arc::clone(&entry));
                }
                Ok(Some(entry))
            }
        }
    }

    /// Reads from the database, even if the caller cancels. Runs on the caller's own runtime,
    /// because a hop to another runtime costs a quarter of a read.
    async fn load<T: Send + 'static>(
        &self,
        load: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, ValidateError> {
        let entering = in_time(self.loads.enter(0, ())).await?;
        let inside = entering.map_err(|_| ValidateError::Overloaded)?;
        let load = async move {
            let _inside = inside;
            time::timeout(LOAD_PATIENCE, load).await
        };
        let load = tokio::spawn(load.with_current_context());
        match load.await {
            Ok(Ok(loaded)) => Ok(loaded?),
            Ok(Err(late)) => Err(StoreError::Unavailable(late.into()).into()),
            Err(stopped) => Err(StoreError::Unavailable(stopped.into()).into()),
        }
    }
}

/// Returns the decision about a credential that does not have the format of a key.
fn unpresented(question: &ValidationRequest<'_>) -> Decision {
    if question.credential.is_empty() {
        Decision::Missing
    } else {
        Decision::Malformed
    }
}

impl Collect for Validator {
    /// Includes the metrics of the cache, the secrets, the pepper migration and the database.
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
        self.cache.collect(page)?;
        self.secrets.collect(page)?;
        self.pepper_migration.collect(page)?;
        self.store.collect(page)?;
        let [load] = self.loads.load();
        page.gauge(
            "gatekey_loads_running",
            "Keys that are being loaded for a Validate",
            load.running,
        )?;
        page.gauge(
            "gatekey_loads_queued",
            "Loads that wait for their turn",
            load.waiting,
        )?;
        page.counter(
            "gatekey_loads_refused_total",
            "Loads that were refused, for too many waited",
            load.refused,
        )
    }
}

/// Bounds a wait by the load timeout. Otherwise, if the database does not respond, a request would
/// wait for the timeouts of all requests before it.
async fn in_time<T>(what: impl Future<Output = T>) -> Result<T, ValidateError> {
    let come = time::timeout(LOAD_PATIENCE, what).await;
    come.map_err(|late| StoreError::Unavailable(late.into()).into())
}
