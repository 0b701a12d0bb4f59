//! Writes, deletes and reads owners' records.

use serde_json::json;

use super::{Keyring, Lane, admit_change, admit_grant, change, detail::of_scopes, tenant_in};
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
    /// Creates or replaces an owner's record and sets its `revision`.
    ///
    /// # Errors
    /// The errors common to all calls.
    pub async fn put_owner(
        &self,
        context: &CallContext,
        mut owner: Owner,
    ) -> Result<Owner, ServiceError> {
        let (mut mutation, caller) = self.begin(context, Lane::Change).await?;
        let caller = &caller;
        authorize(caller, &owner.tenant_id, Action::OwnersWrite)?;
        admit_grant(caller, &owner.tenant_id, &owner.scopes)?;
        tenant_in(&mut *mutation, &owner.tenant_id).await?;
        let now = self.clock.now();
        admit_replacement(&mut *mutation, caller, &owner, now).await?;
        owner.revision = mutation.revision();
        mutation.put_owner(&owner).await?;

        let mut event = change(caller, now, EventKind::OwnerPut, &owner.tenant_id);
        event.owner_id = Some(owner.owner_id.clone());
        event.details.extend([
            ("scopes".to_owned(), of_scopes(&owner.scopes)),
            ("audiences".to_owned(), json!(owner.audiences)),
            ("suspended".to_owned(), json!(owner.suspended)),
            ("display_name".to_owned(), json!(owner.display_name)),
        ]);
        self.commit(context, mutation, event).await?;
        Ok(owner)
    }

    /// Deletes an owner's record, and returns it with the revision of the deletion.
    ///
    /// # Errors
    /// [`ServiceError::NoOwner`], and the errors common to all calls. In tenant `system`, the deletion
    /// removes every limit on the owner's keys, so only a caller that holds all scopes may do it.
    pub async fn delete_owner(
        &self,
        context: &CallContext,
        tenant: &str,
        owner: &str,
    ) -> Result<Owner, ServiceError> {
        let (mut mutation, caller) = self.begin(context, Lane::Change).await?;
        let caller = &caller;
        authorize(caller, tenant, Action::OwnersWrite)?;
        if tenant == SYSTEM {
            admit_grant(caller, tenant, &Caller::admin(ADMIN).scopes)?;
        }
        let mut owner = mutation
            .find_owner(tenant, owner)
            .await?
            .ok_or(ServiceError::NoOwner)?;
        owner.revision = mutation.revision();
        mutation.delete_owner(tenant, &owner.owner_id).await?;

        let mut event = change(caller, self.clock.now(), EventKind::OwnerDeleted, tenant);
        event.owner_id = Some(owner.owner_id.clone());
        self.commit(context, mutation, event).await?;
        Ok(owner)
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
/// scopes of the previous record or, without one, the scopes of each of the owner's living keys.
async fn admit_replacement(
    mutation: &mut dyn Mutation,
    caller: &Caller,
    new: &Owner,
    now: Timestamp,
) -> Result<(), ServiceError> {
    let (tenant, owner) = (&*new.tenant_id, &*new.owner_id);
    if tenant != SYSTEM {
        return Ok(());
    }
    if let Some(before) = mutation.find_owner(tenant, owner).await? {
        return admit_change(caller, tenant, &before.scopes);
    }
    for scopes in mutation.living_scopes(tenant, owner, now).await? {
        admit_change(caller, tenant, &scopes)?;
    }
    Ok(())
}
