//! Creates, changes, deletes and reads owners' records.

use super::{
    Begun, Keyring, Lane, admit_change, admit_grant, admit_revision, change,
    detail::{changed, of_owner},
    keys::revoke_living,
    patch::OwnerPatch,
    tenant_in,
};
use crate::{
    domain::{
        caller::{ADMIN, Action, Caller},
        clock::Timestamp,
        event::EventKind,
        owner::Owner,
        page::Page,
        tenant::SYSTEM,
    },
    service::{
        context::CallContext,
        error::{ServiceError, authorize},
    },
    store::Mutation,
};

impl Keyring {
    /// Creates an owner's record and sets its `revision`.
    ///
    /// # Errors
    /// [`ServiceError::OwnerExists`], and the errors common to all calls.
    pub async fn create_owner(
        &self,
        context: &CallContext,
        owner: Owner,
    ) -> Result<Owner, ServiceError> {
        let (mut mutation, caller) = self.begin(context, Lane::Change).await?;
        authorize(&caller, &owner.tenant_id, Action::OwnersWrite)?;
        tenant_in(&mut *mutation, &owner.tenant_id).await?;
        let found = mutation.find_owner(&owner.tenant_id, &owner.owner_id);
        if found.await?.is_some() {
            return Err(ServiceError::OwnerExists);
        }
        self.insert_owner(context, mutation, &caller, owner).await
    }

    /// Changes an owner's record, or creates `missing` if there is none.
    ///
    /// # Errors
    /// [`ServiceError::NoOwner`] if there is no record and `missing` is `None`,
    /// [`ServiceError::RevisionMismatch`], [`ServiceError::OwnerUnreadable`], and the errors common
    /// to all calls.
    pub async fn update_owner(
        &self,
        context: &CallContext,
        (tenant, owner): (&str, &str),
        patch: OwnerPatch,
        missing: Option<Owner>,
    ) -> Result<Owner, ServiceError> {
        let (mut mutation, caller) = self.begin(context, Lane::Change).await?;
        authorize(&caller, tenant, Action::OwnersWrite)?;
        tenant_in(&mut *mutation, tenant).await?;
        let Some(mut owner) = mutation.find_owner(tenant, owner).await? else {
            let new = missing.ok_or(ServiceError::NoOwner)?;
            admit_revision(patch.revision, 0)?;
            return self.insert_owner(context, mutation, &caller, new).await;
        };
        admit_change(&caller, tenant, &owner.scopes)?;
        admit_revision(patch.revision, owner.revision)?;
        if owner.unreadable && !patch.is_whole() {
            return Err(ServiceError::OwnerUnreadable);
        }
        let before = of_owner(&owner);
        patch.apply(&mut owner);
        admit_grant(&caller, tenant, &owner.scopes)?;
        owner.unreadable = false;
        owner.revision = mutation.revision();
        mutation.put_owner(&owner).await?;

        let mut event = change(&caller, self.clock.now(), EventKind::OwnerUpdated, tenant);
        event.owner_id = Some(owner.owner_id.clone());
        event.details = changed(&before, of_owner(&owner));
        self.commit(context, mutation, event).await?;
        Ok(owner)
    }

    /// Creates an owner's record that does not exist yet, and ends the mutation.
    async fn insert_owner(
        &self,
        context: &CallContext,
        mut mutation: Begun,
        caller: &Caller,
        mut owner: Owner,
    ) -> Result<Owner, ServiceError> {
        let now = self.clock.now();
        admit_grant(caller, &owner.tenant_id, &owner.scopes)?;
        admit_limit(&mut *mutation, caller, &owner, now).await?;
        owner.revision = mutation.revision();
        mutation.put_owner(&owner).await?;

        let mut event = change(caller, now, EventKind::OwnerCreated, &owner.tenant_id);
        event.owner_id = Some(owner.owner_id.clone());
        event.details = of_owner(&owner);
        self.commit(context, mutation, event).await?;
        Ok(owner)
    }

    /// Deletes an owner's record, and revokes the owner's keys if `revoke_keys` is true. Returns the
    /// record with the revision of the deletion, and the number of revoked keys.
    ///
    /// # Errors
    /// [`ServiceError::NoOwner`], [`ServiceError::OwnerHasKeys`], and the errors common to all calls.
    /// In tenant `system`, the record limits callers of gatekey, so only a caller that holds all
    /// scopes may delete it.
    pub async fn delete_owner(
        &self,
        context: &CallContext,
        (tenant, owner): (&str, &str),
        revoke_keys: bool,
    ) -> Result<(Owner, usize), ServiceError> {
        let lane = if revoke_keys {
            Lane::Revocation
        } else {
            Lane::Change
        };
        let (mut mutation, caller) = self.begin(context, lane).await?;
        authorize(&caller, tenant, Action::OwnersWrite)?;
        if revoke_keys {
            authorize(&caller, tenant, Action::KeysRevoke)?;
        }
        if tenant == SYSTEM {
            admit_grant(&caller, tenant, &Caller::admin(ADMIN).scopes)?;
        }
        let found = mutation.find_owner(tenant, owner).await?;
        let mut owner = found.ok_or(ServiceError::NoOwner)?;
        let now = self.clock.now();
        let mut event = change(&caller, now, EventKind::OwnerDeleted, tenant);
        event.owner_id = Some(owner.owner_id.clone());
        let mut revoked = 0;
        if revoke_keys {
            let reason = "the owner was deleted".to_owned();
            revoked = revoke_living(&mut *mutation, &mut event, reason).await?;
        } else if mutation.has_living(tenant, &owner.owner_id, now).await? {
            return Err(ServiceError::OwnerHasKeys);
        }
        owner.revision = mutation.revision();
        mutation.delete_owner(tenant, &owner.owner_id).await?;
        self.commit(context, mutation, event).await?;
        Ok((owner, revoked))
    }

    /// Returns the owner with this id.
    ///
    /// # Errors
    /// [`ServiceError::NoOwner`], and the errors common to all calls.
    pub async fn find_owner(
        &self,
        caller: &Caller,
        tenant: &str,
        owner: &str,
    ) -> Result<Owner, ServiceError> {
        authorize(caller, tenant, Action::OwnersRead)?;
        self.store
            .find_owner(tenant, owner)
            .await?
            .ok_or(ServiceError::NoOwner)
    }

    /// Returns a tenant's owners, ordered by `owner_id`.
    ///
    /// # Errors
    /// The errors common to all calls.
    pub async fn list_owners(
        &self,
        caller: &Caller,
        tenant: &str,
        page: &Page,
    ) -> Result<Vec<Owner>, ServiceError> {
        authorize(caller, tenant, Action::OwnersRead)?;
        let owners = self.store.list_owners(tenant, page).await?;
        if owners.is_empty() {
            self.store
                .find_tenant(tenant)
                .await?
                .ok_or(ServiceError::NoTenant)?;
        }
        Ok(owners)
    }
}

/// Checks that the caller holds everything that a new record can take away in tenant `system`: the
/// scopes of each of the owner's living keys.
async fn admit_limit(
    mutation: &mut dyn Mutation,
    caller: &Caller,
    new: &Owner,
    now: Timestamp,
) -> Result<(), ServiceError> {
    let (tenant, owner) = (&*new.tenant_id, &*new.owner_id);
    if tenant != SYSTEM {
        return Ok(());
    }
    for scopes in mutation.living_scopes(tenant, owner, now).await? {
        admit_change(caller, tenant, &scopes)?;
    }
    Ok(())
}
