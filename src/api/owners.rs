//! Handlers of `OwnerService`.

use tonic::{Request, Response, Status};

use super::{
    Api,
    convert::request::Fields,
    convert::response,
    convert::status::Invalid,
    middleware::deadline::CallDeadline,
    proto::{
        self, DeleteOwnerRequest, DeleteOwnerResponse, GetOwnerRequest, GetOwnerResponse,
        ListOwnersRequest, ListOwnersResponse, PutOwnerRequest, PutOwnerResponse,
        owner_service_server::OwnerService,
    },
};
use crate::domain::{caller::Action, owner::Owner};

#[tonic::async_trait]
impl OwnerService for Api {
    async fn put_owner(
        &self,
        request: Request<PutOwnerRequest>,
    ) -> Result<Response<PutOwnerResponse>, Status> {
        let deadline = CallDeadline::of(request.metadata());
        let context = self.context(&request, Action::OwnersWrite).await?;
        let owner = parse_owner(request.into_inner().owner.unwrap_or_default())?;
        let owner = self.keyring.put_owner(&context, owner).await?;
        let enforcement = self.enforced(owner.revision, deadline).await;
        Ok(Response::new(PutOwnerResponse {
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
        let owner = self.keyring.delete_owner(&context, &tenant, &owner).await?;
        let enforcement = self.enforced(owner.revision, deadline).await;
        Ok(Response::new(DeleteOwnerResponse {
            owner: Some(response::owner(owner)),
            enforcement: Some(enforcement),
        }))
    }
}

fn parse_owner(owner: proto::Owner) -> Result<Owner, Invalid> {
    let mut fields = Fields::default();
    let parsed = Owner {
        tenant_id: fields.tenant_id("owner.tenant_id", owner.tenant_id),
        owner_id: fields.owner_id("owner.owner_id", owner.owner_id),
        scopes: fields.scopes("owner.scopes", &owner.scopes),
        audiences: fields.audiences("owner.audiences", owner.audiences),
        suspended: owner.suspended,
        display_name: fields.line("owner.display_name", owner.display_name, 0..=255),
        revision: 0,
        unreadable: false,
    };
    fields.check()?;
    Ok(parsed)
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
