//! Creates, changes, deletes and reads tenants' rules.

use serde_json::json;

use super::{
    Begun, Keyring, Lane, admit_grant, admit_revision, change,
    detail::{changed, of_tenant},
    patch::TenantPatch,
    tenant_in,
};
use crate::{
    domain::{
        caller::{ADMIN, Action, Caller},
        event::EventKind,
        page::Page,
        tenant::{DEFAULT, Rule, SYSTEM, Tenant, TenantUse},
        violation::Violation,
    },
    service::{
        context::CallContext,
        error::{ServiceError, authorize},
    },
    store::Mutation,
};

/// Maximum number of owners that are deleted with their tenant, because all other changes wait for
/// a change.
const OWNERS_MAX: usize = 10_000;

impl Keyring {
    /// Creates a tenant and sets its `revision`.
    ///
    /// # Errors
    /// [`ServiceError::TenantExists`], and the errors common to all calls.
    pub async fn create_tenant(
        &self,
        context: &CallContext,
        tenant: Tenant,
    ) -> Result<Tenant, ServiceError> {
        let (mut mutation, caller) = self.begin(context, Lane::Change).await?;
        authorize(&caller, &tenant.tenant_id, Action::TenantsWrite)?;
        if mutation.find_tenant(&tenant.tenant_id).await?.is_some() {
            return Err(ServiceError::TenantExists);
        }
        self.insert_tenant(context, mutation, &caller, tenant).await
    }

    /// Changes a tenant, or creates `missing` if there is none.
    ///
    /// # Errors
    /// [`ServiceError::NoTenant`] if there is no tenant and `missing` is `None`,
    /// [`ServiceError::RevisionMismatch`], [`Rule::TenantUnreadable`], [`ServiceError::Invalid`] for
    /// a default lifetime above the maximum, and the errors common to all calls. The rules of tenant
    /// `system` limit the permissions on gatekey itself, so only a caller that holds all scopes may
    /// change them.
    pub async fn update_tenant(
        &self,
        context: &CallContext,
        tenant: &str,
        patch: TenantPatch,
        missing: Option<Tenant>,
    ) -> Result<Tenant, ServiceError> {
        let (mut mutation, caller) = self.begin(context, Lane::Change).await?;
        authorize(&caller, tenant, Action::TenantsWrite)?;
        let Some(mut tenant) = mutation.find_tenant(tenant).await? else {
            let new = missing.ok_or(ServiceError::NoTenant)?;
            admit_revision(patch.revision, 0)?;
            return self.insert_tenant(context, mutation, &caller, new).await;
        };
        admit_grant(&caller, &tenant.tenant_id, &Caller::admin(ADMIN).scopes)?;
        admit_revision(patch.revision, tenant.revision)?;
        if tenant.unreadable && !patch.is_whole() {
            return Err(Rule::TenantUnreadable.into());
        }
        let before = of_tenant(&tenant);
        let sets_default = patch.default_ttl.is_some();
        patch.apply(&mut tenant);
        admit_lifetimes(&tenant, sets_default)?;
        tenant.unreadable = false;
        tenant.revision = mutation.revision();
        mutation.put_tenant(&tenant).await?;

        let (now, id) = (self.clock.now(), &tenant.tenant_id);
        let mut event = change(&caller, now, EventKind::TenantUpdated, id);
        event.details = changed(&before, of_tenant(&tenant));
        self.commit(context, mutation, event).await?;
        Ok(tenant)
    }

    /// Creates a tenant that does not exist yet, and ends the mutation.
    async fn insert_tenant(
        &self,
        context: &CallContext,
        mut mutation: Begun,
        caller: &Caller,
        mut tenant: Tenant,
    ) -> Result<Tenant, ServiceError> {
        tenant.revision = mutation.revision();
        mutation.put_tenant(&tenant).await?;

        let (now, id) = (self.clock.now(), &tenant.tenant_id);
        let mut event = change(caller, now, EventKind::TenantCreated, id);
        event.details = of_tenant(&tenant);
        self.commit(context, mutation, event).await?;
        Ok(tenant)
    }

    /// Deletes a tenant that never had a key, with its owners, and returns it with the revision of
    /// the deletion.
    ///
    /// # Errors
    /// [`ServiceError::NoTenant`], [`ServiceError::TenantInUse`], and the errors common to all calls.
    /// A caller without permission to write owners cannot delete a tenant that has owners.
    pub async fn delete_tenant(
        &self,
        context: &CallContext,
        tenant: &str,
    ) -> Result<Tenant, ServiceError> {
        let (mut mutation, caller) = self.begin(context, Lane::Change).await?;
        authorize(&caller, tenant, Action::TenantsWrite)?;
        let mut tenant = tenant_in(&mut *mutation, tenant).await?;
        let owners = admit_deletion(&mut *mutation, &tenant).await?;
        if owners > 0 {
            authorize(&caller, &tenant.tenant_id, Action::OwnersWrite)?;
        }
        tenant.revision = mutation.revision();
        mutation.delete_tenant(&tenant.tenant_id).await?;

        let (now, id) = (self.clock.now(), &tenant.tenant_id);
        let mut event = change(&caller, now, EventKind::TenantDeleted, id);
        event
            .details
            .insert("deleted_owner_count".to_owned(), json!(owners));
        self.commit(context, mutation, event).await?;
        Ok(tenant)
    }

    /// Returns the tenant with this id.
    ///
    /// # Errors
    /// [`ServiceError::NoTenant`], and the errors common to all calls.
    pub async fn find_tenant(&self, caller: &Caller, tenant: &str) -> Result<Tenant, ServiceError> {
        authorize(caller, tenant, Action::TenantsRead)?;
        self.store
            .find_tenant(tenant)
            .await?
            .ok_or(ServiceError::NoTenant)
    }

    /// Returns the tenants whose rules the caller may read, ordered by `tenant_id`.
    ///
    /// # Errors
    /// The errors common to all calls.
    pub async fn list_tenants(
        &self,
        caller: &Caller,
        page: &Page,
    ) -> Result<Vec<Tenant>, ServiceError> {
        let in_view = caller.tenants(Action::TenantsRead);
        Ok(self.store.list_tenants(&in_view, page).await?)
    }
}

/// Checks that the default lifetime is not above the maximum. The violation names the field that
/// was changed.
fn admit_lifetimes(tenant: &Tenant, sets_default: bool) -> Result<(), ServiceError> {
    if tenant.has_consistent_ttls() {
        return Ok(());
    }
    Err(ServiceError::Invalid(if sets_default {
        Violation::new("tenant.default_ttl", "must not be more than max_ttl")
    } else {
        Violation::new("tenant.max_ttl", "must not be less than default_ttl")
    }))
}

/// Checks that a tenant can be deleted, and returns the number of its owners.
async fn admit_deletion(
    mutation: &mut dyn Mutation,
    tenant: &Tenant,
) -> Result<usize, ServiceError> {
    let id = &*tenant.tenant_id;
    if [DEFAULT, SYSTEM].contains(&id) {
        return Err(ServiceError::TenantInUse(TenantUse::BuiltIn));
    }
    if mutation.has_keys(id).await? {
        return Err(ServiceError::TenantInUse(TenantUse::Keys));
    }
    let owners = mutation.count_owners(id, OWNERS_MAX + 1).await?;
    if owners > OWNERS_MAX {
        return Err(ServiceError::TenantInUse(TenantUse::Owners(OWNERS_MAX)));
    }
    Ok(owners)
}
