//! The Validate method, which clients call for each request that they receive.

pub mod codec;
pub(super) mod decode;
pub mod encode;

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
                    None => return Ok(Answer::new(Decision::Malformed)),
                }
            }
            None => return Ok(Answer::new(Decision::Missing)),
        };
        let question = ValidationRequest {
            credential: &credential,
            in_view: &|of| {
                tenant.as_deref().is_none_or(|tenant| tenant == of)
                    && asker.right(of) == Right::Granted
            },
            ask: AccessRequest {
                required_scopes: &request.required_scopes,
                any_scopes: &request.any_scopes,
                audience: (!audience.is_empty()).then_some(&audience),
                client_ip,
            },
        };
        let decision = self.validator.validate(&question).await?;
        self.note_use(&decision, client_ip);
        Ok(Answer::new(decision))
    }
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
