//! Handlers of `OwnerService`.

use tonic::{Request, Response, Status};

use super::{
    Api,
    convert::mask::{Field, Mask},
    convert::request::Fields,
    convert::response,
    convert::status::Invalid,
    middleware::deadline::CallDeadline,
    proto::{
        self, CreateOwnerRequest, CreateOwnerResponse, DeleteOwnerRequest, DeleteOwnerResponse,
        GetOwnerRequest, GetOwnerResponse, ListOwnersRequest, ListOwnersResponse,
        UpdateOwnerRequest, UpdateOwnerResponse, owner_service_server::OwnerService,
    },
};
use crate::{
    domain::{caller::Action, owner::Owner},
    service::keyring::OwnerPatch,
};

#[tonic::async_trait]
impl OwnerService for Api {
    async fn create_owner(
        &self,
        request: Request<CreateOwnerRequest>,
    ) -> Result<Response<CreateOwnerResponse>, Status> {
        let deadline = CallDeadline::of(request.metadata());
        let context = self.context(&request, Action::OwnersWrite).await?;
        let owner = request.into_inner().owner.unwrap_or_default();
        let mut fields = Fields::default();
        let owner = parse_owner(&mut fields, &owner);
        fields.check()?;
        let owner = self.keyring.create_owner(&context, owner).await?;
        let enforcement = self.enforced(owner.revision, deadline).await;
        Ok(Response::new(CreateOwnerResponse {
            owner: Some(response::owner(owner)),
            enforcement: Some(enforcement),
        }))
    }

    async fn update_owner(
        &self,
        request: Request<UpdateOwnerRequest>,
    ) -> Result<Response<UpdateOwnerResponse>, Status> {
        let deadline = CallDeadline::of(request.metadata());
        let context = self.context(&request, Action::OwnersWrite).await?;
        let request = request.into_inner();
        let owner = request.owner.unwrap_or_default();
        let mut fields = Fields::default();
        let missing = if request.allow_missing {
            Some(parse_owner(&mut fields, &owner))
        } else {
            None
        };
        let name = parse_id(&mut fields, &owner);
        let known = known_fields(&owner);
        let mask = Mask::parse(&mut fields, request.update_mask, &known);
        if missing.is_none() {
            mask.require(&mut fields, &known);
        }
        let patch = parse_patch(&mut fields, &owner, &mask);
        fields.check()?;
        let name = (&*name.0, &*name.1);
        let owner = self
            .keyring
            .update_owner(&context, name, patch, missing)
            .await?;
        let enforcement = self.enforced(owner.revision, deadline).await;
        Ok(Response::new(UpdateOwnerResponse {
            owner: Some(response::owner(owner)),
            enforcement: Some(enforcement),
        }))
    }

    async fn get_owner(
        &self,
        request: Request<GetOwnerRequest>,
    ) -> Result<Response<GetOwnerResponse>, Status> {
        let caller = self.identify(&request, Action::OwnersRead).await?;
        let request = request.into_inner();
        let (tenant, owner) = parse_name(request.tenant_id, request.owner_id)?;
        let owner = self.keyring.find_owner(&caller, &tenant, &owner).await?;
        Ok(Response::new(GetOwnerResponse {
            owner: Some(response::owner(owner)),
        }))
    }

    async fn list_owners(
        &self,
        request: Request<ListOwnersRequest>,
    ) -> Result<Response<ListOwnersResponse>, Status> {
        let caller = self.identify(&request, Action::OwnersRead).await?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let tenant = fields.tenant_id("tenant_id", request.tenant_id);
        let query = ("owners", &tenant);
        let page = fields.page(&query, request.page_size, &request.page_token);
        fields.check()?;
        let found = self
            .keyring
            .list_owners(&caller, &tenant, &page.and_one())
            .await?;
        let (owners, next_page_token) = response::list(
            &query,
            &page,
            found,
            |owner| owner.owner_id.clone(),
            response::owner,
        );
        Ok(Response::new(ListOwnersResponse {
            owners,
            next_page_token,
        }))
    }

    async fn delete_owner(
        &self,
        request: Request<DeleteOwnerRequest>,
    ) -> Result<Response<DeleteOwnerResponse>, Status> {
        let deadline = CallDeadline::of(request.metadata());
        let context = self.context(&request, Action::OwnersWrite).await?;
        let request = request.into_inner();
        let (tenant, owner) = parse_name(request.tenant_id, request.owner_id)?;
        let (owner, revoked) = self
            .keyring
            .delete_owner(&context, (&tenant, &owner), request.revoke_keys)
            .await?;
        let enforcement = self.enforced(owner.revision, deadline).await;
        Ok(Response::new(DeleteOwnerResponse {
            owner: Some(response::owner(owner)),
            enforcement: Some(enforcement),
            revoked_count: i32::try_from(revoked).unwrap_or(i32::MAX),
        }))
    }
}

/// Returns the fields of an owner that an update can change.
fn known_fields(owner: &proto::Owner) -> [Field; 4] {
    let field = |path, populated| Field { path, populated };
    [
        field("scopes", !owner.scopes.is_empty()),
        field("audiences", !owner.audiences.is_empty()),
        field("suspended", owner.suspended.is_some()),
        field("display_name", !owner.display_name.is_empty()),
    ]
}

fn parse_id(fields: &mut Fields, owner: &proto::Owner) -> (String, String) {
    (
        fields.tenant_id("owner.tenant_id", owner.tenant_id.clone()),
        fields.owner_id("owner.owner_id", owner.owner_id.clone()),
    )
}

/// Parses a whole record, which is to be created.
fn parse_owner(fields: &mut Fields, owner: &proto::Owner) -> Owner {
    let (tenant_id, owner_id) = parse_id(fields, owner);
    let mut parsed = Owner {
        tenant_id,
        owner_id,
        ..Owner::default()
    };
    let patch = parse_patch(fields, owner, &Mask::all(&known_fields(owner)));
    patch.apply(&mut parsed);
    parsed
}

fn parse_patch(fields: &mut Fields, owner: &proto::Owner, mask: &Mask) -> OwnerPatch {
    let mut patch = OwnerPatch {
        revision: (owner.revision != 0).then_some(owner.revision),
        suspended: mask.select("suspended", || owner.suspended.unwrap_or_default()),
        ..OwnerPatch::default()
    };
    patch.scopes = mask.select("scopes", || fields.scopes("owner.scopes", &owner.scopes));
    patch.audiences = mask.select("audiences", || {
        fields.audiences("owner.audiences", owner.audiences.clone())
    });
    patch.display_name = mask.select("display_name", || {
        fields.line("owner.display_name", owner.display_name.clone(), 0..=255)
    });
    patch
}

fn parse_name(tenant: String, owner: String) -> Result<(String, String), Invalid> {
    let mut fields = Fields::default();
    let name = (
        fields.tenant_id("tenant_id", tenant),
        fields.owner_id("owner_id", owner),
    );
    fields.check()?;
    Ok(name)
}
