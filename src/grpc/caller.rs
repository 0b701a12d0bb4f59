//! Who calls, and whether they may do this anywhere at all.
//!
//! A credential is the admin token or a key of tenant `system`, checked on the same path as any
//! other key. Without one in the call, the client's certificate tells: who has it is the owner of
//! that name in tenant `system`. What the caller may do in which tenant is the rooms' to check.

use std::{net::IpAddr, sync::Arc};

use tonic::{
    Request, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
};

use super::{Doors, status::Unknown, trace::trace_id};
use crate::{
    domain::{
        caller::{ADMIN, Action, Caller, Right, is_owner_name},
        credential::Credential,
        standing::{Ask, Standing},
        tenant::SYSTEM,
        usage::Use,
    },
    service::{
        cache::Voucher,
        context::CallContext,
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
    Owner(Arc<Voucher>),
}

impl Credentials {
    /// What they stand for; the admin's stand for everything.
    fn standing(&self) -> Option<&Standing> {
        match self {
            Self::Admin => None,
            Self::Key(key) => Some(key.standing()),
            Self::Owner(owner) => Some(&owner.standing),
        }
    }

    fn caller(&self) -> Caller {
        match self {
            Self::Admin => Caller::admin(ADMIN),
            Self::Key(key) => Caller::holder(key.key_id, key.standing()),
            Self::Owner(owner) => Caller::owner(&owner.standing),
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Default, Debug)]
pub struct Peer {
    ip: Option<IpAddr>,
    name: Option<Arc<str>>,
}

impl Peer {
    /// A peer at this address, with the name that its certificate gives it, if it has one.
    #[must_use]
    pub fn new(ip: IpAddr, name: Option<String>) -> Self {
        Self {
            ip: Some(ip.to_canonical()),
            name: name.map(Arc::from),
        }
    }

    /// Who sent a request.
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }
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
        let peer = Peer::of(request);
        let caller = self.authenticate(request.metadata(), &peer).await?.caller();
        if !caller.may_somewhere(action) {
            return Err(Refused::Forbidden(action).into());
        }
        Ok(Caller {
            trace_id: trace_id(request.metadata().as_ref()),
            ..caller
        })
    }

    /// Returns the caller with its presence, for a call that is dropped once the caller is gone.
    ///
    /// # Errors
    /// As [`Doors::identify`].
    pub(super) async fn context<T: Sync>(
        &self,
        request: &Request<T>,
        action: Action,
    ) -> Result<CallContext, Status> {
        Ok(CallContext {
            caller: self.identify(request, action).await?,
            presence: request.extensions().get().cloned().unwrap_or_default(),
        })
    }

    /// Who asks about a key.
    ///
    /// # Errors
    /// As [`Doors::identify`].
    pub(super) async fn identify_asker(
        &self,
        metadata: &MetadataMap,
        peer: &Peer,
    ) -> Result<Asker, Status> {
        if !self.validate_auth {
            return Ok(Asker::OfAll);
        }
        let credentials = self.authenticate(metadata, peer).await?;
        let standing = credentials.standing();
        if standing.is_none_or(|standing| standing.grants(VALIDATE_ANYWHERE)) {
            return Ok(Asker::OfAll);
        }
        let caller = credentials.caller();
        if !caller.may_somewhere(Action::KeysValidate) {
            return Err(Refused::Forbidden(Action::KeysValidate).into());
        }
        Ok(Asker::OfSome(caller))
    }

    async fn authenticate(
        &self,
        metadata: &MetadataMap,
        peer: &Peer,
    ) -> Result<Credentials, Status> {
        let Some(authorization) = metadata.get("authorization") else {
            // Apart, so that the usual way has little to carry.
            return Box::pin(self.authenticate_certificate(peer)).await;
        };
        let bearer = bearer(authorization).ok_or(Unknown::NoCredential)?;
        if self.admin.is(bearer) {
            return Ok(Credentials::Admin);
        }
        let credential = Credential::key(bearer.to_owned());
        let question = Question {
            credential: &credential,
            in_view: &|tenant| tenant == SYSTEM,
            ask: Ask {
                audience: Some(AUDIENCE),
                client_ip: peer.ip,
                ..Ask::default()
            },
        };
        let decision = self.validator.validate(&question).await?;
        self.note_use(&decision, question.ask.client_ip);
        match decision {
            Decision::Allowed(key) => Ok(Credentials::Key(key)),
            Decision::Missing
            | Decision::Malformed
            | Decision::NotFound
            | Decision::Refused(..) => Err(Unknown::BadCredential.into()),
        }
    }

    async fn authenticate_certificate(&self, peer: &Peer) -> Result<Credentials, Status> {
        let name = peer.name.as_deref().ok_or(Unknown::NoCredential)?;
        if !is_owner_name(name) {
            return Err(Unknown::BadCertificate.into());
        }
        let owner = self.validator.vouch(name).await?;
        let ask = Ask {
            audience: Some(AUDIENCE),
            client_ip: peer.ip,
            ..Ask::default()
        };
        match owner.standing.decide(self.clock.now(), &ask) {
            Ok(()) => Ok(Credentials::Owner(owner)),
            Err(_) => Err(Unknown::BadCertificate.into()),
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
fn bearer(authorization: &AsciiMetadataValue) -> Option<&str> {
    let value = authorization.to_str().ok()?;
    let (scheme, credential) = value.trim_start().split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| credential.trim())
}
