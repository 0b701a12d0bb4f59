//! The response to Validate, encoded directly from the cache entry.
//!
//! The wire format is `gatekey.v1.ValidateResponse`; a test decodes it as that message. The encoder
//! is written by hand because this message is the only one sent on every request of every service.

use prost::bytes::BufMut;

use crate::api::{
    convert::response,
    proto::Reason,
    wire::{text_length, write_head, write_number, write_parts, write_text},
};
use crate::{
    domain::key_policy::DenyReason,
    service::validator::{Decision, Known},
};

/// Field numbers of `ValidateResponse`.
mod field {
    pub(in crate::api) const ALLOWED: u8 = 1;
    pub(in crate::api) const REASON: u8 = 2;
    pub(in crate::api) const MESSAGE: u8 = 3;
    pub(in crate::api) const HTTP_STATUS: u8 = 4;
    pub(in crate::api) const KEY_ID: u8 = 5;
    pub(in crate::api) const TENANT_ID: u8 = 6;
    pub(in crate::api) const OWNER_ID: u8 = 7;
    pub(in crate::api) const SCOPES: u8 = 8;
    pub(in crate::api) const METADATA: u8 = 9;
    pub(in crate::api) const EXPIRES_AT: u8 = 10;
    pub(in crate::api) const MISSING_SCOPES: u8 = 11;
}

/// The result of a validation, ready to be encoded.
#[derive(Debug)]
pub struct Answer {
    reason: Reason,
    http_status: u16,
    message: &'static str,
    known: Option<Known>,
    missing_scopes: Vec<String>,
}

impl Answer {
    /// Creates the response for a decision.
    #[must_use]
    pub fn new(decision: Decision) -> Self {
        let (reason, http_status, message) = words(&decision);
        let (known, missing_scopes) = match decision {
            Decision::Missing | Decision::Malformed | Decision::NotFound => (None, Vec::new()),
            Decision::Denied(known, DenyReason::InsufficientScope(missing)) => {
                (Some(known), missing)
            }
            Decision::Allowed(known) | Decision::Denied(known, _) => (Some(known), Vec::new()),
        };
        Self {
            reason,
            http_status,
            message,
            known,
            missing_scopes,
        }
    }

    /// Returns the reason for the decision.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Encodes the response as `gatekey.v1.ValidateResponse`.
    pub fn write(&self, to: &mut impl BufMut) {
        if self.reason == Reason::Allowed {
            write_number(to, field::ALLOWED, 1);
        }
        write_number(to, field::REASON, self.reason as u64);
        write_text(to, field::MESSAGE, self.message);
        write_number(to, field::HTTP_STATUS, u64::from(self.http_status));
        if let Some(known) = &self.known {
            write_known(to, known);
        }
        for scope in &self.missing_scopes {
            write_text(to, field::MISSING_SCOPES, scope);
        }
    }
}

/// Returns the reason, the HTTP status and the message for a decision.
pub(in crate::api) fn words(decision: &Decision) -> (Reason, u16, &'static str) {
    match decision {
        Decision::Allowed(_) => (Reason::Allowed, 200, "The key is good."),
        Decision::Missing => (
            Reason::CredentialMissing,
            401,
            "No credential was presented.",
        ),
        Decision::Malformed => (
            Reason::Malformed,
            401,
            "This is not a key: its form or its checksum is wrong.",
        ),
        Decision::NotFound => (Reason::NotFound, 401, "There is no such key."),
        Decision::Denied(_, deny_reason) => match deny_reason {
            DenyReason::Revoked => (Reason::Revoked, 401, "The key was revoked."),
            DenyReason::Expired => (Reason::Expired, 401, "The key has expired."),
            DenyReason::Suspended => (Reason::Suspended, 401, "The key is suspended."),
            DenyReason::TenantSuspended => (
                Reason::TenantSuspended,
                403,
                "The key's tenant is suspended.",
            ),
            DenyReason::OwnerSuspended => {
                (Reason::OwnerSuspended, 403, "The key's owner is suspended.")
            }
            DenyReason::OwnerNotPermitted => (
                Reason::OwnerNotPermitted,
                403,
                "The key's owner may not use keys.",
            ),
            DenyReason::AudienceNotAllowed => (
                Reason::AudienceNotAllowed,
                403,
                "The key may not be used for this audience.",
            ),
            DenyReason::IpNotAllowed => (
                Reason::IpNotAllowed,
                403,
                "The key may not be used from this address.",
            ),
            DenyReason::InsufficientScope(_) => (
                Reason::InsufficientScope,
                403,
                "The key does not grant the required scopes.",
            ),
        },
    }
}

fn write_known(to: &mut impl BufMut, known: &Known) {
    let policy = known.policy();
    write_parts(to, field::KEY_ID, &["key_", known.key_id.as_bare()]);
    write_text(to, field::TENANT_ID, policy.tenant_id());
    write_text(to, field::OWNER_ID, policy.owner_id());
    for scope in policy.scopes() {
        write_text(to, field::SCOPES, scope);
    }
    for (name, value) in policy.metadata() {
        // A map entry is a message with its key (field 1) and its value (field 2).
        let length = text_length(name) + text_length(value);
        write_head(to, field::METADATA, length as u64);
        write_text(to, 1, name);
        write_text(to, 2, value);
    }
    if let Some(at) = policy.expires_at() {
        let at = prost::Message::encode_to_vec(&response::time(at));
        write_head(to, field::EXPIRES_AT, at.len() as u64);
        to.put_slice(&at);
    }
}
