//! Authenticates callers and checks that they hold a permission in at least one tenant.
//!
//! A credential is the admin token or a key of tenant `system`, which is validated by the same code
//! as any other key. A call without a credential is identified by the client certificate: its
//! holder is the owner of that name in tenant `system`. The services check the caller's permissions
//! in a particular tenant.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock, atomic::AtomicUsize},
};

use tonic::{
    Request, Status,
    codegen::http::{HeaderMap, HeaderValue, header::AUTHORIZATION},
};

use super::{Api, convert::status::AuthnError, middleware::trace::trace_id};
use crate::{
    domain::{
        caller::{ADMIN, Action, Caller, Right, is_owner_name},
        credential::Credential,
        key_policy::{AccessRequest, KeyPolicy},
        tenant::SYSTEM,
        usage::Use,
    },
    service::{
        cache::OwnerEntry,
        context::CallContext,
        error::ServiceError,
        validator::{Decision, Known, ValidationRequest},
    },
};

/// The audience for which the keys of callers are validated.
const AUDIENCE: &str = "gatekey";
/// The permission to validate keys of the placeholder tenant `?`. Only a permission for every
/// tenant includes it.
const VALIDATE_ANYWHERE: &str = "?:keys:validate";

/// The caller of Validate, with only the information that a response needs.
#[derive(Clone)]
pub(super) enum Asker {
    /// May validate the keys of every tenant.
    OfAll,
    /// May validate the keys of some tenants.
    OfSome(Caller),
}

impl Asker {
    /// Returns the caller's permission to validate keys of this tenant.
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
    Owner(Arc<OwnerEntry>),
}

impl Credentials {
    /// Returns the key policy, or `None` for the admin token, which permits everything.
    fn policy(&self) -> Option<&KeyPolicy> {
        match self {
            Self::Admin => None,
            Self::Key(key) => Some(key.policy()),
            Self::Owner(owner) => Some(&owner.policy),
        }
    }

    fn caller(&self) -> Caller {
        match self {
            Self::Admin => Caller::admin(ADMIN),
            Self::Key(key) => Caller::holder(key.key_id, key.policy()),
            Self::Owner(owner) => Caller::owner(&owner.policy),
        }
    }
}

/// The peer of a connection, and the caller of one of its calls.
#[derive(Clone, Default, Debug)]
pub struct Peer {
    ip: Option<IpAddr>,
    name: Option<Arc<str>>,
    /// The caller of one call, for the log; set once it is known. Unset in the connection's own
    /// peer.
    caller: OnceLock<String>,
}

impl Peer {
    /// Creates a peer with this address and the name from its certificate, if it has one.
    #[must_use]
    pub fn new(ip: IpAddr, name: Option<String>) -> Self {
        Self {
            ip: Some(ip.to_canonical()),
            name: name.map(Arc::from),
            caller: OnceLock::new(),
        }
    }

    /// Returns the peer that sent a request.
    pub(super) fn of<T>(request: &Request<T>) -> Arc<Self> {
        request.extensions().get().cloned().unwrap_or_default()
    }

    pub(super) fn ip(&self) -> Option<IpAddr> {
        self.ip
    }

    /// Returns the calling key or owner, if it is known.
    pub(super) fn caller(&self) -> Option<&str> {
        self.caller.get().map(String::as_str)
    }

    /// Records the caller.
    pub(super) fn identified(&self, caller: impl Into<String>) {
        // The caller that was recorded first is kept.
        let _ = self.caller.set(caller.into());
    }
}

/// The state of one connection, shared by its calls.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: Peer,
    /// The number of responses to Validate that are not sent yet.
    pub(super) unread: AtomicUsize,
}

impl Api {
    /// Returns the caller if it holds the permission for `action` in some tenant. The connection
    /// has already identified the caller of a request that it received; the caller of any other
    /// request is identified here.
    ///
    /// # Errors
    /// UNAUTHENTICATED without a valid credential, PERMISSION_DENIED without the permission.
    pub(super) async fn identify<T: Sync>(
        &self,
        request: &Request<T>,
        action: Action,
    ) -> Result<Caller, Status> {
        if let Some(caller) = request.extensions().get::<Caller>() {
            return permitted(caller.clone(), action);
        }
        let headers = request.metadata().as_ref();
        self.identify_by(headers, &Peer::of(request), action).await
    }

    /// Returns the caller of a request with these headers, as [`Api::identify`] does.
    ///
    /// # Errors
    /// Same as [`Api::identify`].
    pub(super) async fn identify_by(
        &self,
        headers: &HeaderMap,
        peer: &Peer,
        action: Action,
    ) -> Result<Caller, Status> {
        let caller = self.authenticate(headers, peer).await?.caller();
        peer.identified(&*caller.actor);
        let trace_id = trace_id(headers);
        permitted(Caller { trace_id, ..caller }, action)
    }

    /// Returns the caller and its presence, for a call that is dropped once the caller is gone.
    ///
    /// # Errors
    /// Same as [`Api::identify`].
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

    /// Returns the caller of a Validate.
    ///
    /// # Errors
    /// Same as [`Api::identify`].
    pub(super) async fn identify_asker(
        &self,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> Result<Asker, Status> {
        if !self.validate_auth {
            return Ok(Asker::OfAll);
        }
        let credentials = self.authenticate(headers, peer).await?;
        let policy = credentials.policy();
        if policy.is_none_or(|policy| policy.grants(VALIDATE_ANYWHERE)) {
            return Ok(Asker::OfAll);
        }
        let caller = credentials.caller();
        if !caller.may_somewhere(Action::KeysValidate) {
            peer.identified(caller.actor);
            return Err(ServiceError::Forbidden(Action::KeysValidate).into());
        }
        Ok(Asker::OfSome(caller))
    }

    async fn authenticate(&self, headers: &HeaderMap, peer: &Peer) -> Result<Credentials, Status> {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let Some(authorization) = given.next() else {
            // Boxed separately, to keep the future of the common path small.
            return Box::pin(self.authenticate_certificate(peer)).await;
        };
        if given.next().is_some() {
            return Err(AuthnError::TwoCredentials.into());
        }
        let bearer = bearer(authorization).ok_or(AuthnError::NoCredential)?;
        if self.admin.is(bearer) {
            return Ok(Credentials::Admin);
        }
        let credential = Credential::key(bearer.to_owned());
        let question = ValidationRequest {
            credential: &credential,
            in_view: &|tenant| tenant == SYSTEM,
            ask: AccessRequest {
                audience: Some(AUDIENCE),
                client_ip: peer.ip,
                ..AccessRequest::default()
            },
        };
        let decision = self.validator.validate(&question).await?;
        self.note_use(&decision, question.ask.client_ip);
        match decision {
            Decision::Allowed(key) => Ok(Credentials::Key(key)),
            Decision::Denied(key, _) => {
                peer.identified(key.key_id.to_string());
                Err(AuthnError::BadCredential.into())
            }
            Decision::Missing | Decision::Malformed | Decision::NotFound => {
                Err(AuthnError::BadCredential.into())
            }
        }
    }

    async fn authenticate_certificate(&self, peer: &Peer) -> Result<Credentials, Status> {
        let name = peer.name.as_deref().ok_or(AuthnError::NoCredential)?;
        let bad = || {
            peer.identified(name);
            AuthnError::BadCertificate
        };
        if !is_owner_name(name) {
            return Err(bad().into());
        }
        let owner = self.validator.load_owner(name).await?;
        let ask = AccessRequest {
            audience: Some(AUDIENCE),
            client_ip: peer.ip,
            ..AccessRequest::default()
        };
        match owner.policy.decide(self.clock.now(), &ask) {
            Ok(()) => Ok(Credentials::Owner(owner)),
            Err(_) => Err(bad().into()),
        }
    }

    /// Records the use of a key if it was allowed.
    pub(super) fn note_use(&self, decision: &Decision, from: Option<IpAddr>) {
        if let Decision::Allowed(Known { key_id, at, .. }) = decision {
            self.usage.note(*key_id, Use { at: *at, from });
        }
    }
}

/// Returns the caller if it holds the permission for `action` in some tenant.
fn permitted(caller: Caller, action: Action) -> Result<Caller, Status> {
    if !caller.may_somewhere(action) {
        return Err(ServiceError::Forbidden(action).into());
    }
    Ok(caller)
}

/// Returns the credential from `authorization: Bearer <credential>`.
fn bearer(authorization: &HeaderValue) -> Option<&str> {
    let value = authorization.to_str().ok()?;
    let (scheme, credential) = value.trim_start().split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| credential.trim())
}
