//! Owners: their records put, forgotten and read.

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
        refused::{Refused, authorize},
    },
    store::Mutation,
};

impl Keyring {
    /// Makes or replaces an owner's record; its `revision` is set here.
    ///
    /// # Errors
    /// Those of every call.
    pub async fn put_owner(
        &self,
        context: &CallContext,
        mut owner: Owner,
    ) -> Result<Owner, Refused> {
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

    /// Forgets an owner's record, and returns it with the revision of that.
    ///
    /// # Errors
    /// [`Refused::NoOwner`], and those of every call. In tenant `system` the owner's keys are
    /// then bounded by nothing, so that only one who holds everything may do it.
    pub async fn delete_owner(
        &self,
        context: &CallContext,
        tenant: &str,
        owner: &str,
    ) -> Result<Owner, Refused> {
        let (mut mutation, caller) = self.begin(context, Lane::Change).await?;
        let caller = &caller;
        authorize(caller, tenant, Action::OwnersWrite)?;
        if tenant == SYSTEM {
            admit_grant(caller, tenant, &Caller::admin(ADMIN).scopes)?;
        }
        let mut owner = mutation
            .find_owner(tenant, owner)
            .await?
            .ok_or(Refused::NoOwner)?;
        owner.revision = mutation.revision();
        mutation.delete_owner(tenant, &owner.owner_id).await?;

        let mut event = change(caller, self.clock.now(), EventKind::OwnerDeleted, tenant);
        event.owner_id = Some(owner.owner_id.clone());
        self.commit(context, mutation, event).await?;
        Ok(owner)
    }

    /// The owner of that name.
    ///
    /// # Errors
    /// [`Refused::NoOwner`], and those of every call.
    pub async fn find_owner(
        &self,
        caller: &Caller,
        tenant: &str,
        owner: &str,
    ) -> Result<Owner, Refused> {
        authorize(caller, tenant, Action::OwnersRead)?;
        self.store
            .find_owner(tenant, owner)
            .await?
            .ok_or(Refused::NoOwner)
    }

    /// A tenant's owners, by `owner_id`.
    ///
    /// # Errors
    /// Those of every call.
    pub async fn list_owners(
        &self,
        caller: &Caller,
        tenant: &str,
        page: &Page,
    ) -> Result<Vec<Owner>, Refused> {
        authorize(caller, tenant, Action::OwnersRead)?;
        let owners = self.store.list_owners(tenant, page).await?;
        if owners.is_empty() {
            self.store
                .find_tenant(tenant)
                .await?
                .ok_or(Refused::NoTenant)?;
        }
        Ok(owners)
    }
}

/// Checks that the caller holds all that a new record can take away in tenant `system`: what the
/// record before it has or, where there was none, what each key of the owner has.
async fn admit_replacement(
    mutation: &mut dyn Mutation,
    caller: &Caller,
    new: &Owner,
    now: Timestamp,
) -> Result<(), Refused> {
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
