//! Who calls, and whether they may do this anywhere at all.
//!
//! A credential is the admin token or a key of tenant `system`, checked on the same path as any
//! other key. What the caller may do in which tenant is the rooms' to check.

use tonic::{Request, metadata::MetadataMap};

use super::{Doors, status::Unknown, trace::trace_id};
use crate::{
    domain::{
        caller::{ADMIN, Action, Caller},
        credential::Credential,
        key::Ask,
        tenant::SYSTEM,
    },
    service::{
        refused::Refused,
        validator::{Decision, Question},
    },
};

/// The audience that a key of tenant `system` is used for here.
const AUDIENCE: &str = "gatekey";

impl Doors {
    /// Who calls: one who holds the right to `action` in some tenant.
    ///
    /// # Errors
    /// UNAUTHENTICATED without a good credential, PERMISSION_DENIED without the right.
    pub(super) async fn identify<T: Sync>(
        &self,
        request: &Request<T>,
        action: Action,
    ) -> Result<Caller, tonic::Status> {
        let bearer = bearer(request.metadata()).ok_or(Unknown::NoCredential)?;
        let trace_id = trace_id(request.metadata().as_ref());
        let caller = if self.admin.is(bearer) {
            Caller::admin(ADMIN)
        } else {
            self.holder(bearer, request).await?
        };
        if !caller.may_somewhere(action) {
            return Err(Refused::Forbidden(action).into());
        }
        Ok(Caller { trace_id, ..caller })
    }

    /// The holder of a key of tenant `system`.
    async fn holder<T: Sync>(
        &self,
        bearer: &str,
        request: &Request<T>,
    ) -> Result<Caller, tonic::Status> {
        let credential = Credential::key(bearer.to_owned());
        let question = Question {
            credential: &credential,
            in_view: &|tenant| tenant == SYSTEM,
            ask: Ask {
                audience: Some(AUDIENCE),
                client_ip: request.remote_addr().map(|peer| peer.ip().to_canonical()),
                ..Ask::default()
            },
        };
        match self.validator.validate(&question).await? {
            Decision::Allowed(grant) => Ok(Caller {
                actor: grant.key.key_id.to_string(),
                scopes: grant.scopes(),
                trace_id: None,
            }),
            Decision::Malformed | Decision::NotFound | Decision::Refused(..) => {
                Err(Unknown::BadCredential.into())
            }
        }
    }
}

/// The credential of `authorization: Bearer <credential>`.
fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, credential) = value.trim_start().split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| credential.trim())
}
