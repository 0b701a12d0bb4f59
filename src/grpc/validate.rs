//! Validate: the call that others make on every request they get.

use tonic::{Request, Response, Status};

use super::{
    Doors, convert,
    parse::Fields,
    proto::{Reason, ValidateRequest, ValidateResponse, validate_request},
};
use crate::{
    domain::{
        caller::{Action, Caller, Right},
        credential::Credential,
        key::{Ask, Grant, Refusal},
    },
    service::{
        refused::Refused,
        validator::{Decision, Question},
    },
};

impl Doors {
    pub(super) async fn answer_validate(
        &self,
        request: Request<ValidateRequest>,
    ) -> Result<Response<ValidateResponse>, Status> {
        let caller = if self.validate_auth {
            Some(self.identify(&request, Action::KeysValidate).await?)
        } else {
            None
        };
        let request = request.into_inner();

        let mut fields = Fields::default();
        let tenant = fields.optional_tenant_id("tenant_id", request.tenant_id);
        fields.required_scopes("required_scopes", &request.required_scopes);
        let audience = fields.line("audience", request.audience, 0..=255);
        let client_ip = fields.ip("client_ip", &request.client_ip);
        fields.check()?;
        refuse_forbidden(caller.as_ref(), tenant.as_deref())?;

        let credential = match request.credential {
            Some(validate_request::Credential::Key(text)) => Some(Credential::key(text)),
            Some(validate_request::Credential::Authorization(value)) => {
                Credential::authorization(value)
            }
            None => None,
        };
        let Some(credential) = credential else {
            return Ok(Response::new(reply(Decision::Malformed)));
        };
        let question = Question {
            credential: &credential,
            in_view: &|of| {
                tenant.as_deref().is_none_or(|tenant| tenant == of)
                    && caller
                        .as_ref()
                        .is_none_or(|caller| may_validate(caller, of))
            },
            ask: Ask {
                required_scopes: &request.required_scopes,
                audience: (!audience.is_empty()).then_some(&audience),
                client_ip,
            },
        };
        Ok(Response::new(reply(
            self.validator.validate(&question).await?,
        )))
    }
}

/// A caller with other rights in a tenant is told that it may not validate there. One without
/// any gets NOT_FOUND for every key of it, as if there were no such tenant.
fn refuse_forbidden(caller: Option<&Caller>, tenant: Option<&str>) -> Result<(), Refused> {
    match caller
        .zip(tenant)
        .map(|(caller, of)| caller.right(of, Action::KeysValidate))
    {
        Some(Right::Forbidden) => Err(Refused::Forbidden(Action::KeysValidate)),
        Some(Right::Granted | Right::Blind) | None => Ok(()),
    }
}

fn may_validate(caller: &Caller, tenant: &str) -> bool {
    caller.right(tenant, Action::KeysValidate) == Right::Granted
}

fn reply(decision: Decision) -> ValidateResponse {
    let (reason, http_status, message) = answer(&decision);
    let told = ValidateResponse {
        allowed: matches!(decision, Decision::Allowed(_)),
        reason: reason.into(),
        message: message.to_owned(),
        http_status,
        ..ValidateResponse::default()
    };
    match decision {
        Decision::Malformed | Decision::NotFound => told,
        Decision::Refused(grant, Refusal::InsufficientScope(missing)) => {
            with_grant(told, *grant, missing)
        }
        Decision::Allowed(grant) | Decision::Refused(grant, _) => {
            with_grant(told, *grant, Vec::new())
        }
    }
}

fn with_grant(
    reply: ValidateResponse,
    grant: Grant,
    missing_scopes: Vec<String>,
) -> ValidateResponse {
    ValidateResponse {
        scopes: convert::scopes(&grant.scopes()),
        key_id: grant.key.key_id.to_string(),
        tenant_id: grant.key.tenant_id,
        owner_id: grant.key.owner_id,
        metadata: grant.key.metadata.into_iter().collect(),
        expires_at: grant.key.expires_at.map(convert::time),
        missing_scopes,
        ..reply
    }
}

fn answer(decision: &Decision) -> (Reason, i32, &'static str) {
    match decision {
        Decision::Allowed(_) => (Reason::Allowed, 200, "The key is good."),
        Decision::Malformed => (
            Reason::Malformed,
            401,
            "This is not a key: its form or its checksum is wrong.",
        ),
        Decision::NotFound => (Reason::NotFound, 401, "There is no such key."),
        Decision::Refused(_, refusal) => match refusal {
            Refusal::Revoked => (Reason::Revoked, 401, "The key was revoked."),
            Refusal::Expired => (Reason::Expired, 401, "The key has expired."),
            Refusal::Suspended => (Reason::Suspended, 401, "The key is suspended."),
            Refusal::OwnerSuspended => {
                (Reason::OwnerSuspended, 403, "The key's owner is suspended.")
            }
            Refusal::OwnerNotPermitted => (
                Reason::OwnerNotPermitted,
                403,
                "The key's owner may not use keys.",
            ),
            Refusal::AudienceNotAllowed => (
                Reason::AudienceNotAllowed,
                403,
                "The key may not be used for this audience.",
            ),
            Refusal::IpNotAllowed => (
                Reason::IpNotAllowed,
                403,
                "The key may not be used from this address.",
            ),
            Refusal::InsufficientScope(_) => (
                Reason::InsufficientScope,
                403,
                "The key does not grant all required scopes.",
            ),
        },
    }
}
