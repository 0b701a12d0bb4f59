//! Handlers of `TenantService`.

use tonic::{Request, Response, Status};

use super::{
    Api,
    convert::request::Fields,
    convert::response,
    convert::status::Invalid,
    middleware::deadline::CallDeadline,
    proto::{
        self, GetTenantRequest, GetTenantResponse, ListTenantsRequest, ListTenantsResponse,
        PutTenantRequest, PutTenantResponse, tenant_service_server::TenantService,
    },
};
use crate::domain::{
    caller::Action,
    tenant::{OnLimit, Tenant},
    token::is_prefix,
};

/// Maximum number of user names per tenant.
const USERNAMES_MAX: usize = 64;

#[tonic::async_trait]
impl TenantService for Api {
    async fn put_tenant(
        &self,
        request: Request<PutTenantRequest>,
    ) -> Result<Response<PutTenantResponse>, Status> {
        let deadline = CallDeadline::of(request.metadata());
        let context = self.context(&request, Action::TenantsWrite).await?;
        let tenant = parse_tenant(request.into_inner().tenant.unwrap_or_default())?;
        let tenant = self.keyring.put_tenant(&context, tenant).await?;
        let enforcement = self.enforced(tenant.revision, deadline).await;
        Ok(Response::new(PutTenantResponse {
            tenant: Some(response::tenant(tenant)),
            enforcement: Some(enforcement),
        }))
    }

    async fn get_tenant(
        &self,
        request: Request<GetTenantRequest>,
    ) -> Result<Response<GetTenantResponse>, Status> {
        let caller = self.identify(&request, Action::TenantsRead).await?;
        let mut fields = Fields::default();
        let tenant = fields.tenant_id("tenant_id", request.into_inner().tenant_id);
        fields.check()?;
        let tenant = self.keyring.find_tenant(&caller, &tenant).await?;
        Ok(Response::new(GetTenantResponse {
            tenant: Some(response::tenant(tenant)),
        }))
    }

    async fn list_tenants(
        &self,
        request: Request<ListTenantsRequest>,
    ) -> Result<Response<ListTenantsResponse>, Status> {
        let caller = self.identify(&request, Action::TenantsRead).await?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let query = "tenants";
        let page = fields.page(&query, request.page_size, &request.page_token);
        fields.check()?;
        let found = self.keyring.list_tenants(&caller, &page.and_one()).await?;
        let (tenants, next_page_token) = response::list(
            &query,
            &page,
            found,
            |tenant| tenant.tenant_id.clone(),
            response::tenant,
        );
        Ok(Response::new(ListTenantsResponse {
            tenants,
            next_page_token,
        }))
    }
}

fn parse_tenant(tenant: proto::Tenant) -> Result<Tenant, Invalid> {
    let mut fields = Fields::default();
    if !tenant.key_prefix.is_empty() && !is_prefix(&tenant.key_prefix) {
        fields.note(
            "tenant.key_prefix",
            "must be 1-24 of [a-z0-9_], starting with a letter, not ending with _",
        );
    }
    let limit = u32::try_from(tenant.max_active_keys_per_owner);
    if limit.is_err() {
        fields.note(
            "tenant.max_active_keys_per_owner",
            "must be 0 (no limit) or more",
        );
    }
    let on_limit = match proto::OnLimit::try_from(tenant.on_limit) {
        Ok(proto::OnLimit::Unspecified | proto::OnLimit::Reject) => OnLimit::Reject,
        Ok(proto::OnLimit::ReplaceOldest) => OnLimit::ReplaceOldest,
        Err(_) => {
            fields.note(
                "tenant.on_limit",
                format!(
                    "must be ON_LIMIT_REJECT or ON_LIMIT_REPLACE_OLDEST, but is {}",
                    tenant.on_limit
                ),
            );
            OnLimit::Reject
        }
    };
    for (place, name) in tenant.basic_usernames.iter().enumerate() {
        if name.contains(':') {
            fields.note(
                format!("tenant.basic_usernames[{place}]"),
                "must not have `:`, which ends a user name",
            );
        }
    }
    let parsed = Tenant {
        tenant_id: fields.tenant_id("tenant.tenant_id", tenant.tenant_id),
        display_name: fields.line("tenant.display_name", tenant.display_name, 0..=255),
        suspended: tenant.suspended,
        key_prefix: tenant.key_prefix,
        scope_catalog: fields.scopes("tenant.scope_catalog", &tenant.scope_catalog),
        default_ttl: fields.positive_span("tenant.default_ttl", tenant.default_ttl),
        max_ttl: fields.positive_span("tenant.max_ttl", tenant.max_ttl),
        require_expiry: tenant.require_expiry,
        max_active_keys_per_owner: limit.unwrap_or_default(),
        on_limit,
        require_owner: tenant.require_owner,
        required_owner_scope: fields
            .optional_scope("tenant.required_owner_scope", &tenant.required_owner_scope),
        basic_usernames: fields.names(
            "tenant.basic_usernames",
            tenant.basic_usernames,
            USERNAMES_MAX,
        ),
        revision: 0,
        unreadable: false,
    };
    if parsed
        .max_ttl
        .is_some_and(|max| parsed.default_ttl.is_some_and(|default| default > max))
    {
        fields.note("tenant.default_ttl", "must not be more than max_ttl");
    }
    fields.check()?;
    Ok(parsed)
}
