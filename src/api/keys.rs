//! The handlers of KeyService.

use prost::Message as _;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::{
    Api, Peer,
    convert::mask::{Field, Mask},
    convert::request::Fields,
    convert::response,
    convert::status::{self, Invalid},
    middleware::deadline::CallDeadline,
    proto::{
        self, BatchValidateRequest, BatchValidateResponse, CreateKeyRequest, CreateKeyResponse,
        GetKeyRequest, GetKeyResponse, ListKeysRequest, ListKeysResponse, LookupKeyRequest,
        LookupKeyResponse, RevokeKeyRequest, RevokeKeyResponse, RevokeKeysRequest,
        RevokeKeysResponse, RotateKeyRequest, RotateKeyResponse, UpdateKeyRequest,
        UpdateKeyResponse, ValidateRequest, ValidateResponse, key_service_server::KeyService,
        revoke_key_request::Target as KeyTarget, revoke_keys_request::Target as KeysTarget,
    },
};
use crate::{
    domain::{
        caller::{Action, TenantSet},
        clock::Timestamp,
        credential::Credential,
        key::KeyState,
        page,
        token::{ID_LENGTH, KeyId, KeyPrefix, PREFIX_MAX, is_visible_beginning},
    },
    service::{
        error::{ServiceError, in_view},
        keyring::{Issued, KeyPatch, Lifetime, NewKey, Rotation},
    },
    store::KeyQuery,
};

/// The maximum overlap of a rotation: 30 days.
const OVERLAP_MAX: std::time::Duration = std::time::Duration::from_hours(30 * 24);

#[tonic::async_trait]
impl KeyService for Api {
    async fn create_key(
        &self,
        request: Request<CreateKeyRequest>,
    ) -> Result<Response<CreateKeyResponse>, Status> {
        let deadline = CallDeadline::of(request.metadata());
        let context = self.context(&request, Action::KeysCreate).await?;
        let new = parse_new_key(request.into_inner(), self.clock.now())?;
        let Issued {
            key,
            plaintext,
            replaced,
        } = self.keyring.create(&context, new).await?;
        if replaced {
            // This response has no field for the result; the responses for the old keys contain it.
            self.enforced(key.revision, deadline).await;
        }
        Ok(Response::new(CreateKeyResponse {
            key: Some(response::key(key, self.clock.now())),
            plaintext_key: plaintext.expose().to_owned(),
        }))
    }

    async fn validate(
        &self,
        request: Request<ValidateRequest>,
    ) -> Result<Response<ValidateResponse>, Status> {
        // The connection service handles Validate before it reaches this handler. This is the same
        // response, for a caller that reaches the service directly.
        let headers = request.metadata().as_ref();
        let asker = self.identify_asker(headers, &Peer::of(&request)).await?;
        let mut written = Vec::new();
        self.answer_validate(&asker, request.into_inner())
            .await?
            .write(&mut written);
        let answer = ValidateResponse::decode(&*written).map_err(|_| status::unreadable())?;
        Ok(Response::new(answer))
    }

    async fn batch_validate(
        &self,
        request: Request<BatchValidateRequest>,
    ) -> Result<Response<BatchValidateResponse>, Status> {
        // As for Validate.
        let headers = request.metadata().as_ref();
        let asker = self.identify_asker(headers, &Peer::of(&request)).await?;
        let written = self.answer_batch(&asker, request.into_inner()).await?;
        let answer = BatchValidateResponse::decode(&*written).map_err(|_| status::unreadable())?;
        Ok(Response::new(answer))
    }

    async fn list_keys(
        &self,
        request: Request<ListKeysRequest>,
    ) -> Result<Response<ListKeysResponse>, Status> {
        let context = self.context(&request, Action::KeysList).await?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let tenant = fields.optional_tenant_id("tenant_id", request.tenant_id);
        let of = in_view(&context.caller, tenant, Action::KeysList);
        let query = KeyQuery {
            tenants: of.as_ref().cloned().unwrap_or(TenantSet::These(Vec::new())),
            owner_id: fields.optional_owner_id("owner_id", request.owner_id),
            states: parse_states(&mut fields, &request.states),
            label_contains: Some(fields.line("label_contains", request.label_contains, 0..=120))
                .filter(|part| !part.is_empty()),
            expires_before: fields.time("expires_before", request.expires_before),
            last_used_before: fields.time("last_used_before", request.last_used_before),
            key_prefix: parse_key_prefix(&mut fields, &request.key_prefix),
        };
        let page = fields.page(&query, request.page_size, &request.page_token);
        fields.check()?;
        of?;
        let listed = self
            .keyring
            .list_keys(&context, &query, &page.and_one())
            .await?;
        let now = self.clock.now();
        let (keys, mut next_page_token) = response::list(
            &query,
            &page,
            listed.keys,
            |key| key.created_revision.to_string(),
            |key| response::key(key, now),
        );
        if let (true, Some(to)) = (next_page_token.is_empty(), listed.looked_to) {
            next_page_token = page::token(&query, &to.to_string());
        }
        Ok(Response::new(ListKeysResponse {
            keys,
            next_page_token,
        }))
    }

    async fn revoke_key(
        &self,
        request: Request<RevokeKeyRequest>,
    ) -> Result<Response<RevokeKeyResponse>, Status> {
        let deadline = CallDeadline::of(request.metadata());
        let context = self.context(&request, Action::KeysRevoke).await?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let tenant = fields.optional_tenant_id("tenant_id", request.tenant_id);
        let reason = fields.text("reason", request.reason);
        let id = match request.target {
            Some(KeyTarget::PlaintextKey(text)) => self.prove(fields, text).await?,
            Some(KeyTarget::KeyId(id)) => parse_key_id(fields, &id)?,
            None => {
                fields.note("key_id", "must be given, or plaintext_key instead");
                checked(fields, None)?
            }
        };
        let revoking = self.keyring.revoke(&context, tenant.as_deref(), id, reason);
        let (key, since) = revoking.await?;
        let enforcement = self.enforced(since, deadline).await;
        Ok(Response::new(RevokeKeyResponse {
            key: Some(response::key(key, self.clock.now())),
            enforcement: Some(enforcement),
        }))
    }

    async fn revoke_keys(
        &self,
        request: Request<RevokeKeysRequest>,
    ) -> Result<Response<RevokeKeysResponse>, Status> {
        let deadline = CallDeadline::of(request.metadata());
        let context = self.context(&request, Action::KeysRevoke).await?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let tenant = fields.tenant_id("tenant_id", request.tenant_id);
        let owner = parse_owners(&mut fields, request.target);
        let reason = fields.text("reason", request.reason);
        fields.check()?;
        if request.dry_run {
            let counting = self
                .keyring
                .count_living(&context, &tenant, owner.as_deref());
            let (count, count_capped) = counting.await?;
            return Ok(Response::new(RevokeKeysResponse {
                revoked_count: i32::try_from(count).unwrap_or(i32::MAX),
                count_capped,
                ..RevokeKeysResponse::default()
            }));
        }
        let revoked = self
            .keyring
            .revoke_all(&context, &tenant, owner, reason)
            .await?;
        let enforcement = self.enforced(revoked.since, deadline).await;
        Ok(Response::new(RevokeKeysResponse {
            revoked_count: i32::try_from(revoked.count).unwrap_or(i32::MAX),
            enforcement: Some(enforcement),
            revision: revoked.revision.unwrap_or_default(),
            count_capped: false,
        }))
    }

    async fn rotate_key(
        &self,
        request: Request<RotateKeyRequest>,
    ) -> Result<Response<RotateKeyResponse>, Status> {
        let deadline = CallDeadline::of(request.metadata());
        let context = self.context(&request, Action::KeysRotate).await?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let tenant = fields.optional_tenant_id("tenant_id", request.tenant_id);
        let overlap = fields.span("overlap", request.overlap).unwrap_or_default();
        if overlap > OVERLAP_MAX {
            fields.note("overlap", "must be at most 30 days");
        }
        let rotation = Rotation {
            overlap,
            lifetime: parse_lifetime(
                &mut fields,
                request.expires_at,
                request.ttl,
                self.clock.now(),
            ),
        };
        let id = parse_key_id(fields, &request.key_id)?;
        let Issued { key, plaintext, .. } = self
            .keyring
            .rotate(&context, tenant.as_deref(), id, rotation)
            .await?;
        let enforcement = self.enforced(key.revision, deadline).await;
        Ok(Response::new(RotateKeyResponse {
            key: Some(response::key(key, self.clock.now())),
            plaintext_key: plaintext.expose().to_owned(),
            enforcement: Some(enforcement),
        }))
    }

    async fn get_key(
        &self,
        request: Request<GetKeyRequest>,
    ) -> Result<Response<GetKeyResponse>, Status> {
        let caller = self.identify(&request, Action::KeysGet).await?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let tenant = fields.optional_tenant_id("tenant_id", request.tenant_id);
        let id = parse_key_id(fields, &request.key_id)?;
        let key = self
            .keyring
            .find_key(&caller, tenant.as_deref(), id, Action::KeysGet)
            .await?;
        Ok(Response::new(GetKeyResponse {
            key: Some(response::key(key, self.clock.now())),
        }))
    }

    async fn lookup_key(
        &self,
        request: Request<LookupKeyRequest>,
    ) -> Result<Response<LookupKeyResponse>, Status> {
        let caller = self.identify(&request, Action::KeysLookup).await?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let tenant = fields.optional_tenant_id("tenant_id", request.tenant_id);
        let id = self.prove(fields, request.plaintext_key).await?;
        let action = Action::KeysLookup;
        let key = self
            .keyring
            .find_key(&caller, tenant.as_deref(), id, action)
            .await?;
        Ok(Response::new(LookupKeyResponse {
            key: Some(response::key(key, self.clock.now())),
        }))
    }

    async fn update_key(
        &self,
        request: Request<UpdateKeyRequest>,
    ) -> Result<Response<UpdateKeyResponse>, Status> {
        let deadline = CallDeadline::of(request.metadata());
        let context = self.context(&request, Action::KeysUpdate).await?;
        let request = request.into_inner();
        let key = request.key.unwrap_or_default();
        let mut fields = Fields::default();
        let tenant = fields.optional_tenant_id("key.tenant_id", key.tenant_id.clone());
        let id = fields.key_id("key.key_id", &key.key_id);
        let known = known_fields(&key);
        let mask = Mask::parse(&mut fields, request.update_mask, &known);
        mask.require(&mut fields, &known);
        let patch = parse_patch(&mut fields, &key, &mask, self.clock.now());
        let id = checked(fields, id)?;
        let key = self
            .keyring
            .update(&context, tenant.as_deref(), id, patch)
            .await?;
        let enforcement = self.enforced(key.revision, deadline).await;
        Ok(Response::new(UpdateKeyResponse {
            key: Some(response::key(key, self.clock.now())),
            enforcement: Some(enforcement),
        }))
    }
}

impl Api {
    /// Checks all fields of a request and returns the ID of the key in its `plaintext_key`, if the
    /// secret is correct.
    async fn prove(&self, mut fields: Fields, plaintext_key: String) -> Result<KeyId, Status> {
        let credential = Credential::key(without_scheme(plaintext_key));
        let presented = credential.presented();
        if presented.is_none() {
            fields.note("plaintext_key", not_a_key(&credential));
        }
        let presented = checked(fields, presented)?;
        if !self.validator.recognizes(presented).await? {
            return Err(ServiceError::NoKey.into());
        }
        Ok(presented.id())
    }
}

/// Parses the owner of RevokeKeys; `None` means all owners of the tenant.
fn parse_owners(fields: &mut Fields, target: Option<KeysTarget>) -> Option<String> {
    match target {
        Some(KeysTarget::AllOwners(true)) => None,
        Some(KeysTarget::OwnerId(owner)) if !owner.is_empty() => {
            Some(fields.owner_id("owner_id", owner))
        }
        Some(KeysTarget::OwnerId(_)) => {
            fields.note(
                "owner_id",
                "must not be empty; for the keys of all owners, set all_owners to true instead",
            );
            None
        }
        Some(KeysTarget::AllOwners(false)) => {
            fields.note(
                "all_owners",
                "must be true; for the keys of one owner, set owner_id instead",
            );
            None
        }
        None => {
            fields.note(
                "owner_id",
                "must be given; for the keys of all owners, set all_owners to true instead",
            );
            None
        }
    }
}

fn parse_new_key(request: CreateKeyRequest, now: Timestamp) -> Result<NewKey, Invalid> {
    let mut fields = Fields::default();
    let request_id = fields.line("request_id", request.request_id, 0..=128);
    let new = NewKey {
        tenant_id: fields.tenant_id("tenant_id", request.tenant_id),
        owner_id: fields.owner_id("owner_id", request.owner_id),
        label: fields.line("label", request.label, 1..=120),
        description: fields.text("description", request.description),
        scopes: fields.key_scopes("scopes", &request.scopes),
        audiences: fields.audiences("audiences", request.audiences),
        allowed_cidrs: fields.cidrs("allowed_cidrs", &request.allowed_cidrs),
        metadata: fields.metadata("metadata", request.metadata),
        lifetime: parse_lifetime(&mut fields, request.expires_at, request.ttl, now),
        request_id: (!request_id.is_empty()).then_some(request_id),
    };
    fields.check()?;
    Ok(new)
}

fn parse_lifetime(
    fields: &mut Fields,
    expires_at: Option<prost_types::Timestamp>,
    ttl: Option<prost_types::Duration>,
    now: Timestamp,
) -> Option<Lifetime> {
    if expires_at.is_some() && ttl.is_some() {
        fields.note("ttl", "must not be given together with expires_at");
    }
    let until = fields
        .future("expires_at", expires_at, now)
        .map(Lifetime::Until);
    until.or(fields.positive_span("ttl", ttl).map(Lifetime::For))
}

/// Returns the fields of a key that an update can change.
fn known_fields(key: &proto::Key) -> [Field; 8] {
    let field = |path, populated| Field { path, populated };
    [
        field("label", !key.label.is_empty()),
        field("description", !key.description.is_empty()),
        field("scopes", !key.scopes.is_empty()),
        field("audiences", !key.audiences.is_empty()),
        field("allowed_cidrs", !key.allowed_cidrs.is_empty()),
        field("metadata", !key.metadata.is_empty()),
        field("expires_at", key.expires_at.is_some()),
        field("suspended", key.suspended.is_some()),
    ]
}

fn parse_patch(fields: &mut Fields, key: &proto::Key, mask: &Mask, now: Timestamp) -> KeyPatch {
    let mut patch = KeyPatch {
        revision: (key.revision != 0).then_some(key.revision),
        suspended: mask.select("suspended", || key.suspended.unwrap_or_default()),
        ..KeyPatch::default()
    };
    patch.label = mask.select("label", || {
        fields.line("key.label", key.label.clone(), 1..=120)
    });
    patch.description = mask.select("description", || {
        fields.text("key.description", key.description.clone())
    });
    patch.scopes = mask.select("scopes", || fields.key_scopes("key.scopes", &key.scopes));
    patch.audiences = mask.select("audiences", || {
        fields.audiences("key.audiences", key.audiences.clone())
    });
    patch.allowed_cidrs = mask.select("allowed_cidrs", || {
        fields.cidrs("key.allowed_cidrs", &key.allowed_cidrs)
    });
    patch.metadata = mask.select("metadata", || {
        fields.metadata("key.metadata", key.metadata.clone())
    });
    patch.expires_at = mask.select("expires_at", || {
        fields.future("key.expires_at", key.expires_at, now)
    });
    patch
}

fn parse_states(fields: &mut Fields, states: &[i32]) -> Vec<KeyState> {
    let mut parsed = Vec::new();
    for (place, state) in states.iter().enumerate() {
        let field = format!("states[{place}]");
        let state = match fields.choice(&field, *state, proto::KeyState::as_str_name) {
            Some(proto::KeyState::Active) => KeyState::Active,
            Some(proto::KeyState::Suspended) => KeyState::Suspended,
            Some(proto::KeyState::Expired) => KeyState::Expired,
            Some(proto::KeyState::Revoked) => KeyState::Revoked,
            Some(proto::KeyState::Unspecified) | None => continue,
        };
        if !parsed.contains(&state) {
            parsed.push(state);
        }
    }
    parsed
}

/// Parses the visible beginning of keys. The text itself is not repeated in a violation, because it
/// may be a whole key.
fn parse_key_prefix(fields: &mut Fields, text: &str) -> Option<KeyPrefix> {
    if text.is_empty() {
        return None;
    }
    let prefix = KeyPrefix::parse(text);
    if prefix.is_none() {
        let whole = text.len() > PREFIX_MAX + 1 + ID_LENGTH;
        fields.note(
            "key_prefix",
            if whole {
                "must be the visible beginning of a key, such as gk_1pTg; for a whole key use LookupKey"
            } else {
                "must be a tenant's key_prefix, `_`, and up to 16 characters of the id, such as gk_ or gk_1pTg"
            },
        );
    }
    prefix
}

/// Removes `Bearer ` in front of a key that was copied from a header.
fn without_scheme(text: String) -> String {
    match text.trim_start().split_at_checked("Bearer ".len()) {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("Bearer ") => {
            let key = key.to_owned();
            drop(Zeroizing::new(text));
            key
        }
        _ => text,
    }
}

/// Returns the reason why a credential is not a whole key, without repeating it.
fn not_a_key(credential: &Credential) -> &'static str {
    let text = credential.bare();
    if text.is_empty() {
        "is required: the whole key"
    } else if KeyId::parse(text).is_some() {
        "must be a whole key, but is a key_id: use GetKey"
    } else if is_visible_beginning(text) {
        "must be a whole key, but is only the visible beginning of one, which ListKeys returns as \
         key_prefix: find the key there, and use GetKey with its key_id"
    } else {
        "must be a whole key: its form or its checksum is wrong"
    }
}

/// Parses the key ID of a request, and checks all fields that were parsed.
fn parse_key_id(mut fields: Fields, value: &str) -> Result<KeyId, Invalid> {
    let id = fields.key_id("key_id", value);
    checked(fields, id)
}

/// Returns a parsed field once all fields are valid. It is absent only if it was noted as invalid.
fn checked<T>(fields: Fields, value: Option<T>) -> Result<T, Invalid> {
    fields.check()?;
    value.ok_or_else(|| Invalid(Vec::new()))
}
