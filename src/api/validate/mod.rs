//! The Validate method, which clients call for each request that they receive.

pub(super) mod batch;
pub mod codec;
pub(super) mod decode;
pub mod encode;

use std::net::IpAddr;

use tonic::Status;

use crate::api::{
    Api,
    caller::Asker,
    convert::request::Fields,
    proto::{ValidateRequest, validate_request},
    validate::encode::Answer,
};
use crate::{
    domain::{
        caller::{Action, Right},
        credential::Credential,
        key_policy::AccessRequest,
    },
    service::{
        error::ServiceError,
        validator::{Decision, ValidationRequest},
    },
};

/// A valid request.
enum Parsed {
    /// The decision needs no key.
    Decided(Decision),
    Question(Question),
}

/// A valid question about a presented credential.
struct Question {
    credential: Credential,
    tenant: Option<String>,
    required_scopes: Vec<String>,
    any_scopes: Vec<String>,
    audience: String,
    client_ip: Option<IpAddr>,
}

impl Question {
    /// Returns a function that returns true for the tenants whose keys may be disclosed.
    fn view(&self, asker: &Asker) -> impl Fn(&str) -> bool + Sync {
        |of| {
            let tenant = self.tenant.as_deref();
            tenant.is_none_or(|tenant| tenant == of) && asker.right(of) == Right::Granted
        }
    }

    fn request<'a>(&'a self, in_view: &'a (dyn Fn(&str) -> bool + Sync)) -> ValidationRequest<'a> {
        ValidationRequest {
            credential: &self.credential,
            in_view,
            ask: AccessRequest {
                required_scopes: &self.required_scopes,
                any_scopes: &self.any_scopes,
                audience: (!self.audience.is_empty()).then_some(&self.audience),
                client_ip: self.client_ip,
            },
        }
    }
}

impl Api {
    /// Handles a Validate request from `asker`.
    ///
    /// # Errors
    /// If the caller is not permitted to validate, the request is invalid, or no decision was
    /// possible.
    pub(in crate::api) async fn answer_validate(
        &self,
        asker: &Asker,
        request: ValidateRequest,
    ) -> Result<Answer, Status> {
        let question = match parse(asker, request)? {
            Parsed::Decided(decision) => return Ok(Answer::new(decision)),
            Parsed::Question(question) => question,
        };
        let in_view = question.view(asker);
        let decision = self.validator.validate(&question.request(&in_view)).await?;
        self.note_use(&decision, question.client_ip);
        Ok(Answer::new(decision))
    }
}

/// Parses a request from `asker`.
fn parse(asker: &Asker, request: ValidateRequest) -> Result<Parsed, Status> {
    let mut fields = Fields::default();
    let tenant = fields.optional_tenant_id("tenant_id", request.tenant_id);
    fields.required_scopes("required_scopes", &request.required_scopes);
    fields.required_scopes("any_scopes", &request.any_scopes);
    let audience = fields.line("audience", request.audience, 0..=255);
    let client_ip = fields.ip("client_ip", &request.client_ip);
    fields.check()?;
    refuse_forbidden(asker, tenant.as_deref())?;

    let credential = match request.credential {
        Some(validate_request::Credential::Key(text)) => Credential::key(text),
        Some(validate_request::Credential::Authorization(value)) => {
            match Credential::authorization(value) {
                Some(credential) => credential,
                None => return Ok(Parsed::Decided(Decision::Malformed)),
            }
        }
        None => return Ok(Parsed::Decided(Decision::Missing)),
    };
    Ok(Parsed::Question(Question {
        credential,
        tenant,
        required_scopes: request.required_scopes,
        any_scopes: request.any_scopes,
        audience,
        client_ip,
    }))
}

/// Rejects a caller that has other permissions in the tenant but may not validate there. A caller
/// without any gets NOT_FOUND for every key of the tenant, as if the tenant did not exist.
pub(in crate::api) fn refuse_forbidden(
    asker: &Asker,
    tenant: Option<&str>,
) -> Result<(), ServiceError> {
    match tenant.map(|tenant| asker.right(tenant)) {
        Some(Right::Forbidden) => Err(ServiceError::Forbidden(Action::KeysValidate)),
        Some(Right::Granted | Right::Blind) | None => Ok(()),
    }
}
