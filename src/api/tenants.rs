//! Handlers of `TenantService`.

use tonic::{Request, Response, Status};

use super::{
    Api,
    convert::mask::{Field, Mask},
    convert::request::Fields,
    convert::response,
    middleware::deadline::CallDeadline,
    proto::{
        self, CreateTenantRequest, CreateTenantResponse, DeleteTenantRequest, DeleteTenantResponse,
        GetTenantRequest, GetTenantResponse, ListTenantsRequest, ListTenantsResponse,
        UpdateTenantRequest, UpdateTenantResponse, tenant_service_server::TenantService,
    },
};
use crate::{
    domain::{
        caller::Action,
        tenant::{OnLimit, Tenant},
        token::is_prefix,
    },
    service::keyring::TenantPatch,
};

/// Maximum number of user names per tenant.
const USERNAMES_MAX: usize = 64;

#[tonic::async_trait]
impl TenantService for Api {
    async fn create_tenant(
        &self,
        request: Request<CreateTenantRequest>,
    ) -> Result<Response<CreateTenantResponse>, Status> {
        let context = self.context(&request, Action::TenantsWrite).await?;
        let tenant = request.into_inner().tenant.unwrap_or_default();
        let mut fields = Fields::default();
        let tenant = parse_tenant(&mut fields, &tenant);
        fields.check()?;
        let tenant = self.keyring.create_tenant(&context, tenant).await?;
        Ok(Response::new(CreateTenantResponse {
            tenant: Some(response::tenant(tenant)),
        }))
    }

    async fn update_tenant(
        &self,
        request: Request<UpdateTenantRequest>,
    ) -> Result<Response<UpdateTenantResponse>, Status> {
        let deadline = CallDeadline::of(request.metadata());
        let context = self.context(&request, Action::TenantsWrite).await?;
        let request = request.into_inner();
        let tenant = request.tenant.unwrap_or_default();
        let mut fields = Fields::default();
        let missing = if request.allow_missing {
            Some(parse_tenant(&mut fields, &tenant))
        } else {
            None
        };
        let id = fields.tenant_id("tenant.tenant_id", tenant.tenant_id.clone());
        let known = known_fields(&tenant);
        let mask = Mask::parse(&mut fields, request.update_mask, &known);
        if missing.is_none() {
            mask.require(&mut fields, &known);
        }
        let patch = parse_patch(&mut fields, &tenant, &mask);
        fields.check()?;
        let tenant = self
            .keyring
            .update_tenant(&context, &id, patch, missing)
            .await?;
        let enforcement = self.enforced(tenant.revision, deadline).await;
        Ok(Response::new(UpdateTenantResponse {
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

    async fn delete_tenant(
        &self,
        request: Request<DeleteTenantRequest>,
    ) -> Result<Response<DeleteTenantResponse>, Status> {
        let context = self.context(&request, Action::TenantsWrite).await?;
        let mut fields = Fields::default();
        let tenant = fields.tenant_id("tenant_id", request.into_inner().tenant_id);
        fields.check()?;
        let tenant = self.keyring.delete_tenant(&context, &tenant).await?;
        Ok(Response::new(DeleteTenantResponse {
            tenant: Some(response::tenant(tenant)),
        }))
    }
}

/// Returns the fields of a tenant that an update can change.
fn known_fields(tenant: &proto::Tenant) -> [Field; 12] {
    let field = |path, populated| Field { path, populated };
    let required_scope = !tenant.required_owner_scope.is_empty();
    [
        field("display_name", !tenant.display_name.is_empty()),
        field("suspended", tenant.suspended.is_some()),
        field("key_prefix", !tenant.key_prefix.is_empty()),
        field("scope_catalog", !tenant.scope_catalog.is_empty()),
        field("default_ttl", tenant.default_ttl.is_some()),
        field("max_ttl", tenant.max_ttl.is_some()),
        field("require_expiry", tenant.require_expiry),
        field(
            "max_active_keys_per_owner",
            tenant.max_active_keys_per_owner != 0,
        ),
        field("on_limit", tenant.on_limit != 0),
        field("require_owner", tenant.require_owner),
        field("required_owner_scope", required_scope),
        field("basic_usernames", !tenant.basic_usernames.is_empty()),
    ]
}

/// Parses a whole tenant, which is to be created.
fn parse_tenant(fields: &mut Fields, tenant: &proto::Tenant) -> Tenant {
    let mut parsed = Tenant {
        tenant_id: fields.tenant_id("tenant.tenant_id", tenant.tenant_id.clone()),
        ..Tenant::default()
    };
    let patch = parse_patch(fields, tenant, &Mask::all(&known_fields(tenant)));
    patch.apply(&mut parsed);
    parsed
}

fn parse_patch(fields: &mut Fields, tenant: &proto::Tenant, mask: &Mask) -> TenantPatch {
    let mut patch = TenantPatch {
        revision: (tenant.revision != 0).then_some(tenant.revision),
        suspended: mask.select("suspended", || tenant.suspended.unwrap_or_default()),
        require_expiry: mask.select("require_expiry", || tenant.require_expiry),
        require_owner: mask.select("require_owner", || tenant.require_owner),
        ..TenantPatch::default()
    };
    patch.display_name = mask.select("display_name", || {
        fields.line("tenant.display_name", tenant.display_name.clone(), 0..=255)
    });
    patch.key_prefix = mask.select("key_prefix", || parse_prefix(fields, tenant));
    patch.scope_catalog = mask.select("scope_catalog", || {
        fields.scopes("tenant.scope_catalog", &tenant.scope_catalog)
    });
    patch.default_ttl = mask.select("default_ttl", || {
        fields.positive_span("tenant.default_ttl", tenant.default_ttl)
    });
    patch.max_ttl = mask.select("max_ttl", || {
        fields.positive_span("tenant.max_ttl", tenant.max_ttl)
    });
    patch.max_active_keys_per_owner = mask.select("max_active_keys_per_owner", || {
        parse_limit(fields, tenant.max_active_keys_per_owner)
    });
    patch.on_limit = mask.select("on_limit", || parse_on_limit(fields, tenant.on_limit));
    patch.required_owner_scope = mask.select("required_owner_scope", || {
        fields.optional_scope("tenant.required_owner_scope", &tenant.required_owner_scope)
    });
    patch.basic_usernames = mask.select("basic_usernames", || {
        parse_usernames(fields, tenant.basic_usernames.clone())
    });
    let (max, default) = (patch.max_ttl.flatten(), patch.default_ttl.flatten());
    if max.is_some_and(|max| default.is_some_and(|default| default > max)) {
        fields.note("tenant.default_ttl", "must not be more than max_ttl");
    }
    patch
}

fn parse_prefix(fields: &mut Fields, tenant: &proto::Tenant) -> String {
    if !tenant.key_prefix.is_empty() && !is_prefix(&tenant.key_prefix) {
        fields.note(
            "tenant.key_prefix",
            "must be 1-24 of [a-z0-9_], starting with a letter, not ending with _",
        );
    }
    tenant.key_prefix.clone()
}

fn parse_limit(fields: &mut Fields, limit: i32) -> u32 {
    u32::try_from(limit).unwrap_or_else(|_| {
        fields.note(
            "tenant.max_active_keys_per_owner",
            "must be 0 (no limit) or more",
        );
        0
    })
}

fn parse_on_limit(fields: &mut Fields, on_limit: i32) -> OnLimit {
    match proto::OnLimit::try_from(on_limit) {
        Ok(proto::OnLimit::Unspecified | proto::OnLimit::Reject) => OnLimit::Reject,
        Ok(proto::OnLimit::ReplaceOldest) => OnLimit::ReplaceOldest,
        Err(_) => {
            fields.note(
                "tenant.on_limit",
                format!("must be ON_LIMIT_REJECT or ON_LIMIT_REPLACE_OLDEST, but is {on_limit}"),
            );
            OnLimit::Reject
        }
    }
}

fn parse_usernames(fields: &mut Fields, names: Vec<String>) -> Vec<String> {
    for (place, name) in names.iter().enumerate() {
        if name.contains(':') {
            fields.note(
                format!("tenant.basic_usernames[{place}]"),
                "must not have `:`, which ends a user name",
            );
        }
    }
    fields.names("tenant.basic_usernames", names, USERNAMES_MAX)
}
