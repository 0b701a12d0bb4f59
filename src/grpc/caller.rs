//! Who calls, and whether they may do this anywhere at all.
//!
//! A credential is the admin token or a key of tenant `system`, checked on the same path as any
//! other key. What the caller may do in which tenant is the rooms' to check.

use std::net::IpAddr;

use tonic::{Request, Status, metadata::MetadataMap};

use super::{Doors, status::Unknown, trace::trace_id};
use crate::{
    domain::{
        caller::{ADMIN, Action, Caller, Right},
        credential::Credential,
        standing::Ask,
        tenant::SYSTEM,
        usage::Use,
    },
    service::{
        refused::Refused,
        validator::{Decision, Known, Question},
    },
};

/// The audience that a key of tenant `system` is used for here.
const AUDIENCE: &str = "gatekey";
/// The right to validate the keys of a tenant whose name nobody knows: of every tenant.
const VALIDATE_ANYWHERE: &str = "?:keys:validate";

/// Who asks about a key, known just well enough to answer.
pub(super) enum Asker {
    /// One who may validate the keys of every tenant.
    OfAll,
    /// One who may validate those of some.
    OfSome(Caller),
}

impl Asker {
    /// What the asker may do in this tenant.
    pub(super) fn right(&self, tenant: &str) -> Right {
        match self {
            Self::OfAll => Right::Granted,
            Self::OfSome(caller) => caller.right(tenant, Action::KeysValidate),
        }
    }
}

enum Credentials {
    Admin,
    Key(Known),
}

impl Doors {
    /// Who calls: one who holds the right to `action` in some tenant.
    ///
    /// # Errors
    /// UNAUTHENTICATED without a good credential, PERMISSION_DENIED without the right.
    pub(super) async fn identify<T: Sync>(
        &self,
        request: &Request<T>,
        action: Action,
    ) -> Result<Caller, Status> {
        let peer = request.remote_addr().map(|peer| peer.ip());
        let caller = match self.authenticate(request.metadata(), peer).await? {
            Credentials::Admin => Caller::admin(ADMIN),
            Credentials::Key(key) => Caller::holder(key.key_id, key.standing()),
        };
        if !caller.may_somewhere(action) {
            return Err(Refused::Forbidden(action).into());
        }
        Ok(Caller {
            trace_id: trace_id(request.metadata().as_ref()),
            ..caller
        })
    }

    /// Who asks about a key.
    ///
    /// # Errors
    /// As [`Doors::identify`].
    pub(super) async fn identify_asker(
        &self,
        metadata: &MetadataMap,
        peer: IpAddr,
    ) -> Result<Asker, Status> {
        if !self.validate_auth {
            return Ok(Asker::OfAll);
        }
        let caller = match self.authenticate(metadata, Some(peer)).await? {
            Credentials::Admin => return Ok(Asker::OfAll),
            Credentials::Key(key) if key.standing().grants(VALIDATE_ANYWHERE) => {
                return Ok(Asker::OfAll);
            }
            Credentials::Key(key) => Caller::holder(key.key_id, key.standing()),
        };
        if !caller.may_somewhere(Action::KeysValidate) {
            return Err(Refused::Forbidden(Action::KeysValidate).into());
        }
        Ok(Asker::OfSome(caller))
    }

    async fn authenticate(
        &self,
        metadata: &MetadataMap,
        peer: Option<IpAddr>,
    ) -> Result<Credentials, Status> {
        let bearer = bearer(metadata).ok_or(Unknown::NoCredential)?;
        if self.admin.is(bearer) {
            return Ok(Credentials::Admin);
        }
        let credential = Credential::key(bearer.to_owned());
        let question = Question {
            credential: &credential,
            in_view: &|tenant| tenant == SYSTEM,
            ask: Ask {
                audience: Some(AUDIENCE),
                client_ip: peer.map(|peer| peer.to_canonical()),
                ..Ask::default()
            },
        };
        let decision = self.validator.validate(&question).await?;
        self.note_use(&decision, question.ask.client_ip);
        match decision {
            Decision::Allowed(key) => Ok(Credentials::Key(key)),
            Decision::Malformed | Decision::NotFound | Decision::Refused(..) => {
                Err(Unknown::BadCredential.into())
            }
        }
    }

    /// Notes the use of a key that was allowed.
    pub(super) fn note_use(&self, decision: &Decision, from: Option<IpAddr>) {
        if let Decision::Allowed(Known { key_id, at, .. }) = decision {
            self.usage.note(*key_id, Use { at: *at, from });
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
