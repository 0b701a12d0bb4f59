//! Administration: each mutation one transaction with its event, alone while it runs.
//!
//! Every method checks the caller's rights itself, in the state of the store that it changes. A
//! mutation is logged once, after its commit.

mod admission;
mod detail;
mod keys;
mod owners;
mod tenants;

use std::sync::Arc;

use tracing::info;

use super::{
    cache::Cache,
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
    store::{Mutation, Store},
};

pub use keys::{Issued, KeyPatch, Lifetime, NewKey, Revoked, Rotation};

/// Changes keys, owners and tenants, and reads them for administrators.
pub struct Keyring {
    store: Arc<dyn Store>,
    secrets: Arc<Secrets>,
    clock: Arc<dyn Clock>,
    cache: Arc<Cache>,
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
            store,
            secrets,
            clock,
            cache,
        }
    }

    /// Begins a mutation by a caller, who may have lost rights since the call came: returns the
    /// caller as of now.
    async fn begin(&self, caller: &Caller) -> Result<(Box<dyn Mutation>, Caller), Refused> {
        let mut mutation = self.store.begin().await?;
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

    /// Ends a mutation: writes its event, makes what it touched in memory count no more, tells the
    /// log's followers, and logs it.
    async fn commit(&self, mutation: Box<dyn Mutation>, change: Change) -> Result<(), Refused> {
        let revision = mutation.revision();
        let told = (
            change.actor.clone(),
            change.kind,
            change.key_id,
            change.tenant_id.clone(),
        );
        let (owner, touched) = (change.owner_id.clone(), change.touched());
        let committed = mutation.commit(change).await;
        // Also after an error: what was to be done may have been done.
        self.cache.apply(revision, &touched);
        let store = Arc::clone(&self.store);
        tokio::spawn(async move { store.hint().await });
        committed?;
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
