//! Administration: each mutation one transaction with its event, alone while it runs.
//!
//! Every method checks the caller's rights itself, in the state of the store that it changes. A
//! mutation is logged once, after its commit. Nothing is committed for a caller that is gone; what
//! has been sent to be committed is finished, whatever becomes of the caller.

mod admission;
mod detail;
mod keys;
mod owners;
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
    refused::{Refused, authorize},
    secret::Secrets,
};
use crate::{
    domain::{
        caller::{Action, Caller, Principal},
        clock::{Clock, Timestamp},
        event::{Change, Details, EventKind},
        key::{Grant, Key},
        scope::Scopes,
        standing::Standing,
        tenant::{SYSTEM, Tenant},
        token::KeyId,
    },
    meter::{Page, Tell},
    store::{Mutation, Store, StoreError},
};

pub use keys::{Issued, KeyPatch, Lifetime, NewKey, Revoked, Rotation};

/// Changes keys, owners and tenants, and reads them for administrators.
pub struct Keyring {
    store: Arc<dyn Store>,
    secrets: Arc<Secrets>,
    clock: Arc<dyn Clock>,
    cache: Arc<Cache>,
    turns: Turns,
    commits: Arc<CommitTime>,
}

/// A mutation that has begun, and its turn.
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
    /// The keyring of the keys in `store`.
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

    /// Begins a mutation in the caller's turn. The caller may have lost rights since the call came:
    /// returns the caller as of now.
    ///
    /// A call leaves the queue once its caller is gone. What waits in the database itself (two at
    /// once at most) is waited for, because a statement that is given up would keep its connection.
    async fn begin(&self, context: &CallContext, lane: Lane) -> Result<(Begun, Caller), Refused> {
        let turn = self.turns.change(context, lane).await?;
        let mutation = self.store.begin().await?;
        self.turns
            .note(Stage::Transaction, context.presence.check())?;
        let mut mutation = Begun { mutation, turn };
        let caller = &context.caller;
        let standing = match &caller.principal {
            Principal::Admin => return Ok((mutation, caller.clone())),
            Principal::Key(id) => {
                let key = mutation.find_key(*id).await?.ok_or(Refused::CallerGone)?;
                let owner = mutation.find_owner(&key.tenant_id, &key.owner_id).await?;
                let tenant = tenant_in(&mut *mutation, &key.tenant_id).await?;
                Standing::of(&Grant { key, owner, tenant })
            }
            Principal::Owner(name) => {
                let owner = mutation.find_owner(SYSTEM, name).await?;
                let tenant = tenant_in(&mut *mutation, SYSTEM).await?;
                Standing::of_owner(name, owner.as_ref(), &tenant)
            }
        };
        let caller = caller
            .renewed(&standing, self.clock.now())
            .ok_or(Refused::CallerGone)?;
        Ok((mutation, caller))
    }

    /// Ends a mutation: writes its event, invalidates what it touched in the cache, notifies the
    /// log's followers, and logs it. For a caller that is gone it is rolled back instead.
    async fn commit(
        &self,
        context: &CallContext,
        mutation: Begun,
        change: Change,
    ) -> Result<(), Refused> {
        let told = (
            change.actor.clone(),
            change.kind,
            change.key_id,
            change.tenant_id.clone(),
        );
        let (owner, revision) = (change.owner_id.clone(), mutation.revision());
        let present = self.commits.check(&context.presence);
        self.turns.note(Stage::Transaction, present)?;
        // A task of its own: the cache is told even if this call is dropped from here on.
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

    /// Commits, and makes the change known in this process.
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
            // Also after an error: what was to be done may have been done.
            cache.apply(revision, &touched);
            tokio::spawn(async move { store.hint().await });
            committed
        }
    }
}

impl Tell for Keyring {
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result {
        self.turns.tell(page)
    }
}

/// The beginning of an event: who, when and what kind.
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

/// The key of that id, if the caller may do this to it and it is of `tenant`, if that is given.
async fn key_in_view(
    mutation: &mut dyn Mutation,
    caller: &Caller,
    tenant: Option<&str>,
    id: KeyId,
    action: Action,
) -> Result<Key, Refused> {
    admit_key(mutation.find_key(id).await?, caller, tenant, action)
}

/// The found key, if the caller may do this to it and it is of `tenant`, if that is given.
fn admit_key(
    found: Option<Key>,
    caller: &Caller,
    tenant: Option<&str>,
    action: Action,
) -> Result<Key, Refused> {
    let key = found
        .filter(|key| tenant.is_none_or(|tenant| tenant == key.tenant_id))
        .ok_or(Refused::NoKey)?;
    // A key in a tenant that does not exist for the caller does not exist either.
    authorize(caller, &key.tenant_id, action).map_err(|refused| match refused {
        Refused::NoTenant => Refused::NoKey,
        other => other,
    })?;
    Ok(key)
}

/// The tenant, in the state that the mutation changes.
async fn tenant_in(mutation: &mut dyn Mutation, tenant: &str) -> Result<Tenant, Refused> {
    mutation.find_tenant(tenant).await?.ok_or(Refused::NoTenant)
}

/// In tenant `system` a key or an owner is a caller of gatekey: only one who holds all that it holds
/// can take anything from it. Revoking is not checked: a stolen key must be stopped by whoever can.
fn admit_change(caller: &Caller, tenant: &str, scopes: &Scopes) -> Result<(), Refused> {
    if tenant == SYSTEM && !caller.holds(scopes) {
        return Err(Refused::Stronger);
    }
    Ok(())
}

/// In tenant `system` scopes are rights over gatekey, which only a holder can grant.
fn admit_grant(caller: &Caller, tenant: &str, scopes: &Scopes) -> Result<(), Refused> {
    if tenant == SYSTEM && !caller.holds(scopes) {
        return Err(Refused::NotHeld);
    }
    Ok(())
}
