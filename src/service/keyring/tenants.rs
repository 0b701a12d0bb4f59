//! Writes and reads tenants' rules.

use serde_json::json;

use super::{
    Keyring, Lane, admit_grant, change,
    detail::{of_scopes, of_span},
};
use crate::{
    domain::{
        caller::{ADMIN, Action, Caller},
        event::EventKind,
        page::Page,
        scope::Scope,
        tenant::{OnLimit, Tenant},
    },
    service::{
        context::CallContext,
        error::{ServiceError, authorize},
    },
};

impl Keyring {
    /// Creates or replaces a tenant and sets its `revision`.
    ///
    /// # Errors
    /// The errors common to all calls. The rules of tenant `system` limit the permissions on
    /// gatekey itself, so only a caller that holds all scopes may change them.
    pub async fn put_tenant(
        &self,
        context: &CallContext,
        mut tenant: Tenant,
    ) -> Result<Tenant, ServiceError> {
        let (mut mutation, caller) = self.begin(context, Lane::Change).await?;
        let caller = &caller;
        authorize(caller, &tenant.tenant_id, Action::TenantsWrite)?;
        admit_grant(caller, &tenant.tenant_id, &Caller::admin(ADMIN).scopes)?;
        tenant.revision = mutation.revision();
        mutation.put_tenant(&tenant).await?;

        let mut event = change(
            caller,
            self.clock.now(),
            EventKind::TenantPut,
            &tenant.tenant_id,
        );
        let required_scope = tenant.required_owner_scope.as_ref().map(Scope::as_str);
        let on_limit = match tenant.on_limit {
            OnLimit::Reject => "ON_LIMIT_REJECT",
            OnLimit::ReplaceOldest => "ON_LIMIT_REPLACE_OLDEST",
        };
        let limit = tenant.max_active_keys_per_owner;
        event.details.extend([
            ("display_name".to_owned(), json!(tenant.display_name)),
            ("suspended".to_owned(), json!(tenant.suspended)),
            ("key_prefix".to_owned(), json!(tenant.key_prefix)),
            ("scope_catalog".to_owned(), of_scopes(&tenant.scope_catalog)),
            ("default_ttl".to_owned(), of_span(tenant.default_ttl)),
            ("max_ttl".to_owned(), of_span(tenant.max_ttl)),
            ("require_expiry".to_owned(), json!(tenant.require_expiry)),
            ("max_active_keys_per_owner".to_owned(), json!(limit)),
            ("on_limit".to_owned(), json!(on_limit)),
            ("require_owner".to_owned(), json!(tenant.require_owner)),
            ("required_owner_scope".to_owned(), json!(required_scope)),
            ("basic_usernames".to_owned(), json!(tenant.basic_usernames)),
        ]);
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
