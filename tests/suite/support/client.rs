//! A caller of gatekey: all four services over one connection, with one credential.

use std::{net::SocketAddr, time::Duration};

use gatekey::api::proto::{
    BatchValidateRequest, CreateKeyRequest, CreateKeyResponse, Enforcement, Event, Key, Owner,
    Reason, RevokeKeyRequest, RevokeKeyResponse, Tenant, UpdateOwnerRequest, UpdateTenantRequest,
    ValidateRequest, ValidateResponse, WatchEventsResponse, batch_validate_result,
    event_service_client::EventServiceClient, key_service_client::KeyServiceClient,
    owner_service_client::OwnerServiceClient, revoke_key_request, revoke_keys_request,
    tenant_service_client::TenantServiceClient, validate_request::Credential,
    watch_events_response::Message,
};
use gatekey::domain::clock::{Clock as _, SystemClock};
use prost::Message as _;
use tokio::time;
use tonic::{
    Request, Status, Streaming,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{self, Channel, ClientTlsConfig, Endpoint},
};
use tonic_types::StatusExt as _;

use super::{Gatekey, stored::Stored};

/// The target of a RevokeKeys of all keys of a tenant.
pub const ALL_OWNERS: Option<revoke_keys_request::Target> =
    Some(revoke_keys_request::Target::AllOwners(true));

/// The target of a RevokeKeys of one owner's keys.
#[allow(
    clippy::unnecessary_wraps,
    reason = "it is the value of an optional field"
)]
pub fn owner_target(owner_id: impl Into<String>) -> Option<revoke_keys_request::Target> {
    Some(revoke_keys_request::Target::OwnerId(owner_id.into()))
}

/// The target of a RevokeKey by the key's id.
#[allow(
    clippy::unnecessary_wraps,
    reason = "it is the value of an optional field"
)]
pub fn key_target(key_id: impl Into<String>) -> Option<revoke_key_request::Target> {
    Some(revoke_key_request::Target::KeyId(key_id.into()))
}

/// How long a connection may take to be made, where it is made again by itself.
const CONNECT_PATIENCE: Duration = Duration::from_millis(500);

/// How long an event may take to come.
const EVENT_DEADLINE: Duration = Duration::from_secs(20);

type Authorized = InterceptedService<Channel, Bearer>;

/// The services as one caller reaches them. Clones share the connection.
#[derive(Clone)]
pub struct Client {
    pub keys: KeyServiceClient<Authorized>,
    pub owners: OwnerServiceClient<Authorized>,
    pub tenants: TenantServiceClient<Authorized>,
    pub events: EventServiceClient<Authorized>,
    pub channel: Channel,
}

/// Adds `authorization: Bearer <credential>` to each call, or nothing.
#[derive(Clone)]
pub struct Bearer(Option<AsciiMetadataValue>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl Gatekey {
    /// A caller with the admin token.
    pub async fn admin(&self) -> Client {
        self.client(Some(&self.admin_token())).await
    }

    /// A caller with this credential, or with none.
    pub async fn client(&self, credential: Option<&str>) -> Client {
        let channel = Endpoint::from_shared(format!("http://{}", self.addr()))
            .expect("an address is a URL")
            .connect()
            .await
            .expect("a server that serves takes connections");
        Client::over(channel, credential)
    }

    /// A caller over TLS, with this credential or with none. TLS 1.3 lets a client whose certificate
    /// is refused connect: it learns of that by its first call.
    pub async fn encrypted(
        &self,
        tls: ClientTlsConfig,
        credential: Option<&str>,
    ) -> Result<Client, transport::Error> {
        let endpoint = Endpoint::from_shared(format!("https://{}", self.addr()))?;
        let channel = endpoint.tls_config(tls)?.connect().await?;
        Ok(Client::over(channel, credential))
    }
}

impl Client {
    /// A caller of whoever listens there, connected when it calls, and again when the connection is lost.
    pub fn lazy(addr: SocketAddr, credential: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{addr}"));
        let endpoint = endpoint.expect("an address is a URL");
        let channel = endpoint.connect_timeout(CONNECT_PATIENCE).connect_lazy();
        Self::over(channel, Some(credential))
    }

    /// A caller over this channel, with this credential or with none.
    pub fn over(channel: Channel, credential: Option<&str>) -> Self {
        let value = credential.map(|credential| {
            let value = format!("Bearer {credential}").parse();
            value.expect("a credential is ASCII")
        });
        let bearer = Bearer(value);
        let service = || InterceptedService::new(channel.clone(), bearer.clone());
        Self {
            keys: KeyServiceClient::new(service()),
            owners: OwnerServiceClient::new(service()),
            tenants: TenantServiceClient::new(service()),
            events: EventServiceClient::new(service()),
            channel,
        }
    }

    /// The same connection with another credential.
    pub fn with(&self, credential: &str) -> Self {
        Self::over(self.channel.clone(), Some(credential))
    }

    /// Issues a key as asked, and must succeed.
    pub async fn create(&self, request: CreateKeyRequest) -> (Key, String) {
        let answer = self.try_create(request).await.expect("the key is issued");
        (answer.key.expect("a key"), answer.plaintext_key)
    }

    /// Issues a key as asked, or tells why not.
    pub async fn try_create(&self, request: CreateKeyRequest) -> Result<CreateKeyResponse, Status> {
        Ok(self.keys.clone().create_key(request).await?.into_inner())
    }

    /// Issues a key of `tenant` with these scopes, and must succeed.
    pub async fn issue(&self, tenant: &str, scopes: &[&str]) -> (Key, String) {
        self.create(new_key(tenant, scopes)).await
    }

    /// Asks about a credential, and must get a decision.
    pub async fn validate(&self, request: ValidateRequest) -> ValidateResponse {
        self.try_validate(request).await.expect("a decision")
    }

    /// Asks about a credential.
    pub async fn try_validate(&self, request: ValidateRequest) -> Result<ValidateResponse, Status> {
        Ok(self.keys.clone().validate(request).await?.into_inner())
    }

    /// Asks about many credentials in one call: an answer or an error for each.
    pub async fn batch(
        &self,
        requests: Vec<ValidateRequest>,
    ) -> Result<Vec<Result<ValidateResponse, Status>>, Status> {
        let batch = BatchValidateRequest { requests };
        let answer = self.keys.clone().batch_validate(batch).await?.into_inner();
        let results = answer.results.into_iter().map(|item| item.result);
        let results = results.map(|result| match result.expect("a result") {
            batch_validate_result::Result::Response(response) => Ok(response),
            batch_validate_result::Result::Error(error) => Err(Status::with_details(
                error.code.into(),
                error.message.clone(),
                error.encode_to_vec().into(),
            )),
        });
        Ok(results.collect())
    }

    /// Asks about a bare key, nothing else, and must get a decision: its reason.
    pub async fn reason(&self, plaintext: &str) -> Reason {
        self.validate(ask(plaintext)).await.reason()
    }

    /// Revokes a key, and must succeed.
    pub async fn revoke(&self, key: &Key, reason: &str) -> RevokeKeyResponse {
        let request = RevokeKeyRequest {
            tenant_id: key.tenant_id.clone(),
            target: key_target(key.key_id.clone()),
            reason: reason.to_owned(),
        };
        let answer = self.keys.clone().revoke_key(request).await;
        answer.expect("the key is revoked").into_inner()
    }

    /// Revokes a key that was stored past gatekey, within this time if one is given.
    pub async fn revoke_stored(
        &self,
        key: &Stored,
        deadline: Option<Duration>,
    ) -> Result<Enforcement, Status> {
        let mut request = Request::new(RevokeKeyRequest {
            tenant_id: "default".to_owned(),
            target: key_target(key.key_id.clone()),
            reason: String::new(),
        });
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        let answer = self.keys.clone().revoke_key(request).await?.into_inner();
        Ok(answer
            .enforcement
            .expect("every change says whether it is enforced"))
    }

    /// Creates a tenant or replaces all its rules, and must succeed.
    pub async fn set_tenant(&self, tenant: Tenant) -> Tenant {
        let mut tenants = self.tenants.clone();
        let answer = tenants.update_tenant(whole_tenant(tenant)).await;
        let answer = answer.expect("the tenant is set").into_inner();
        answer.tenant.expect("a tenant")
    }

    /// Creates an owner's record or replaces it, and must succeed.
    pub async fn set_owner(&self, owner: Owner) -> Owner {
        let answer = self.owners.clone().update_owner(whole_owner(owner)).await;
        let answer = answer.expect("the owner is set").into_inner();
        answer.owner.expect("an owner")
    }
}

/// A request that creates an owner's record, or replaces all of it.
pub fn whole_owner(owner: Owner) -> UpdateOwnerRequest {
    UpdateOwnerRequest {
        owner: Some(Owner {
            revision: 0,
            ..owner
        }),
        update_mask: Some(mask(&["*"])),
        allow_missing: true,
    }
}

/// A request that creates a tenant, or replaces all its rules.
pub fn whole_tenant(tenant: Tenant) -> UpdateTenantRequest {
    UpdateTenantRequest {
        tenant: Some(Tenant {
            revision: 0,
            ..tenant
        }),
        update_mask: Some(mask(&["*"])),
        allow_missing: true,
    }
}

/// An `update_mask`.
pub fn mask(paths: &[&str]) -> prost_types::FieldMask {
    prost_types::FieldMask {
        paths: texts(paths),
    }
}

/// The next event of a stream, which must come.
pub async fn next_event(stream: &mut Streaming<WatchEventsResponse>) -> Event {
    loop {
        let message = time::timeout(EVENT_DEADLINE, stream.message()).await;
        let message = message.expect("an event comes").expect("no error comes");
        match message.expect("the stream goes on").message {
            Some(Message::Event(event)) => return event,
            Some(Message::Started(_)) => {}
            None => panic!("a message without content"),
        }
    }
}

/// The key without its last use, which comes by itself within seconds.
pub fn unused(key: Key) -> Key {
    Key {
        last_used_at: None,
        last_used_ip: String::new(),
        ..key
    }
}

/// How long it is until then by the wall clock; zero when it is past.
pub fn until(time: prost_types::Timestamp) -> Duration {
    let micros = time.seconds * 1_000_000 + i64::from(time.nanos) / 1000;
    let left = micros - SystemClock.now().as_micros();
    Duration::from_micros(left.try_into().unwrap_or(0))
}

/// A request for a key that breaks no rule.
pub fn new_key(tenant: &str, scopes: &[&str]) -> CreateKeyRequest {
    CreateKeyRequest {
        tenant_id: tenant.to_owned(),
        owner_id: "alice".to_owned(),
        label: "a key".to_owned(),
        scopes: texts(scopes),
        ..CreateKeyRequest::default()
    }
}

/// A question about a bare key.
pub fn ask(plaintext: &str) -> ValidateRequest {
    ValidateRequest {
        credential: Some(Credential::Key(plaintext.to_owned())),
        ..ValidateRequest::default()
    }
}

/// A question about the value of an HTTP Authorization header.
pub fn ask_header(value: &str) -> ValidateRequest {
    ValidateRequest {
        credential: Some(Credential::Authorization(value.to_owned())),
        ..ValidateRequest::default()
    }
}

/// Strings, owned.
pub fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// `ErrorInfo.reason` of an error, which every error has, in domain `gatekey`.
pub fn error_reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    let info = info.unwrap_or_else(|| panic!("an error without ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "gatekey");
    info.reason
}

/// The fields that an INVALID_ARGUMENT names, in order.
pub fn bad_fields(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
    let details = status.get_details_bad_request().expect("BadRequest");
    let violations = details.field_violations.into_iter();
    violations.map(|violation| violation.field).collect()
}
