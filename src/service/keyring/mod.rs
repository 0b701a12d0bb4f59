//! Administration of keys, owners and tenants. Each mutation is one transaction with its event, and
//! mutations run one at a time.
//!
//! Every method checks the caller's permissions itself, in the database state that it changes. A
//! mutation is logged once, after its commit. Nothing is committed for a caller that is gone. A
//! COMMIT that was sent is completed, even if the caller is gone.

mod admission;
mod detail;
mod keys;
mod owners;
mod patch;
mod tenants;
mod turns;

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use opentelemetry::trace::FutureExt as _;
use tokio::time::Instant;
use tracing::info;

use self::turns::{CommitTime, Lane, Stage, Turn, Turns};
use super::{
    cache::Cache,
    context::CallContext,
    error::{ServiceError, authorize},
    secret::Secrets,
};
use crate::{
    domain::{
        caller::{Action, Caller, Principal},
        clock::{Clock, Timestamp},
        event::{Change, Details, EventKind},
        key::{Grant, Key},
        key_policy::KeyPolicy,
        scope::Scopes,
        tenant::{SYSTEM, Tenant},
        token::KeyId,
    },
    metrics::{Collect, Encoder},
    store::{Mutation, Store, StoreError},
};

pub use keys::{Issued, Lifetime, NewKey, Revoked, Rotation};
pub use patch::{KeyPatch, OwnerPatch, TenantPatch};

/// Changes keys, owners and tenants, and reads them for administrators.
pub struct Keyring {
    store: Arc<dyn Store>,
    secrets: Arc<Secrets>,
    clock: Arc<dyn Clock>,
    cache: Arc<Cache>,
    turns: Turns,
    commits: Arc<CommitTime>,
}

/// A mutation in progress and its turn.
struct Begun {
    mutation: Box<dyn Mutation>,
    turn: Turn,
}

impl Deref for Begun {
    type Target = dyn Mutation;

    fn deref(&self) -> &Self::Target {
        &*self.mutation
    }
}

impl DerefMut for Begun {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut *self.mutation
    }
}

impl Keyring {
    /// Creates a keyring for the keys in `store`.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        secrets: Arc<Secrets>,
        cache: Arc<Cache>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            turns: Turns::new(store.loads_at_once()),
            commits: Arc::default(),
            store,
            secrets,
            clock,
            cache,
        }
    }

    /// Begins a mutation in the caller's turn. Returns the caller with its current permissions,
    /// because it may have lost some since the call arrived.
    ///
    /// A call leaves the queue once its caller is gone. At most two calls wait in the database
    /// itself; their waits are not cancelled, because an abandoned statement would keep its
    /// connection.
    async fn begin(
        &self,
        context: &CallContext,
        lane: Lane,
    ) -> Result<(Begun, Caller), ServiceError> {
        let turn = self.turns.change(context, lane).await?;
        let mutation = self.store.begin().await?;
        self.turns
            .note(Stage::Transaction, context.presence.check())?;
        let mut mutation = Begun { mutation, turn };
        let caller = &context.caller;
        let policy = match &caller.principal {
            Principal::Admin => return Ok((mutation, caller.clone())),
            Principal::Key(id) => {
                let key = mutation
                    .find_key(*id)
                    .await?
                    .ok_or(ServiceError::CallerGone)?;
                let owner = mutation.find_owner(&key.tenant_id, &key.owner_id).await?;
                let tenant = tenant_in(&mut *mutation, &key.tenant_id).await?;
                KeyPolicy::of(&Grant { key, owner, tenant })
            }
            Principal::Owner(name) => {
                let owner = mutation.find_owner(SYSTEM, name).await?;
                let tenant = tenant_in(&mut *mutation, SYSTEM).await?;
                KeyPolicy::of_owner(name, owner.as_ref(), &tenant)
            }
        };
        let caller = caller
            .renewed(&policy, self.clock.now())
            .ok_or(ServiceError::CallerGone)?;
        Ok((mutation, caller))
    }

    /// Ends a mutation: writes its event, invalidates the cache entries that it affects, notifies
    /// the log's followers, and logs it. If the caller is gone, rolls the mutation back instead.
    async fn commit(
        &self,
        context: &CallContext,
        mutation: Begun,
        change: Change,
    ) -> Result<(), ServiceError> {
        let told = (
            change.actor.clone(),
            change.kind,
            change.key_id,
            change.tenant_id.clone(),
        );
        let (owner, revision) = (change.owner_id.clone(), mutation.revision());
        let present = self.commits.check(&context.presence);
        self.turns.note(Stage::Transaction, present)?;
        // Runs in its own task, so that the cache is invalidated even if this call is dropped from
        // here on.
        let finishing = tokio::spawn(self.finish(mutation, change).with_current_context());
        let finished = finishing.await;
        finished.map_err(|stopped| StoreError::Unknown(stopped.into()))??;
        let (actor, kind, key_id, tenant_id) = told;
        info!(
            actor,
            tenant_id,
            key_id = key_id.map(tracing::field::display),
            owner_id = owner,
            revision,
            "{}",
            kind.name()
        );
        Ok(())
    }

    /// Commits a mutation, invalidates this process's cache entries and notifies the log's
    /// followers.
    fn finish(
        &self,
        mutation: Begun,
        change: Change,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        let (store, cache) = (Arc::clone(&self.store), Arc::clone(&self.cache));
        let commits = Arc::clone(&self.commits);
        async move {
            let Begun { mutation, turn } = mutation;
            let (revision, touched) = (mutation.revision(), change.touched());
            let began = Instant::now();
            let committed = mutation.commit(change).await;
            commits.note(began);
            drop(turn);
            // Invalidated also after an error, because the COMMIT may have succeeded.
            cache.apply(revision, &touched);
            tokio::spawn(async move { store.hint().await });
            committed
        }
    }
}

impl Collect for Keyring {
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
        self.turns.collect(page)
    }
}

/// Returns an event with the common fields set: actor, time, kind and tenant.
fn change(caller: &Caller, at: Timestamp, kind: EventKind, tenant: &str) -> Change {
    Change {
        at,
        actor: caller.actor.clone(),
        kind,
        tenant_id: tenant.to_owned(),
        key_id: None,
        owner_id: None,
        details: Details::new(),
        trace_id: caller.trace_id.clone(),
    }
}

/// Returns the key with this id if the caller may perform `action` on it and the key belongs to
/// `tenant`, if given.
async fn key_in_view(
    mutation: &mut dyn Mutation,
    caller: &Caller,
    tenant: Option<&str>,
    id: KeyId,
    action: Action,
) -> Result<Key, ServiceError> {
    admit_key(mutation.find_key(id).await?, caller, tenant, action)
}

/// Returns the found key if the caller may perform `action` on it and the key belongs to `tenant`,
/// if given.
fn admit_key(
    found: Option<Key>,
    caller: &Caller,
    tenant: Option<&str>,
    action: Action,
) -> Result<Key, ServiceError> {
    let key = found
        .filter(|key| tenant.is_none_or(|tenant| tenant == key.tenant_id))
        .ok_or(ServiceError::NoKey)?;
    // If the tenant does not exist for the caller, its keys do not exist either.
    authorize(caller, &key.tenant_id, action).map_err(|refused| match refused {
        ServiceError::NoTenant => ServiceError::NoKey,
        other => other,
    })?;
    Ok(key)
}

/// Returns the tenant in the state that the mutation changes.
async fn tenant_in(mutation: &mut dyn Mutation, tenant: &str) -> Result<Tenant, ServiceError> {
    mutation
        .find_tenant(tenant)
        .await?
        .ok_or(ServiceError::NoTenant)
}

/// Checks that a resource has the revision that a change expects, if it expects one.
fn admit_revision(expected: Option<i64>, revision: i64) -> Result<(), ServiceError> {
    match expected {
        Some(expected) if expected != revision => Err(ServiceError::RevisionMismatch(revision)),
        _ => Ok(()),
    }
}

/// Checks that the caller may take `scopes` from a key or an owner. In tenant `system`, these are
/// callers of gatekey, so only a caller that holds all their scopes may take anything from them.
/// Revocation is not checked, because anyone who can revoke must be able to stop a stolen key.
fn admit_change(caller: &Caller, tenant: &str, scopes: &Scopes) -> Result<(), ServiceError> {
    if tenant == SYSTEM && !caller.holds(scopes) {
        return Err(ServiceError::Stronger);
    }
    Ok(())
}

/// Checks that the caller may grant `scopes`. In tenant `system`, scopes are permissions on
/// gatekey, which only a holder can grant.
fn admit_grant(caller: &Caller, tenant: &str, scopes: &Scopes) -> Result<(), ServiceError> {
    if tenant == SYSTEM && !caller.holds(scopes) {
        return Err(ServiceError::NotHeld);
    }
    Ok(())
}
