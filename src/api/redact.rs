//! `Debug` for messages that contain a secret. Shows every field except the secret.

use std::fmt;

use super::proto::{
    CreateKeyResponse, LookupKeyRequest, RevokeKeyRequest, RotateKeyResponse, ValidateRequest,
    revoke_key_request::Target, validate_request::Credential,
};

const REDACTED: &str = "[redacted]";

impl fmt::Debug for CreateKeyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateKeyResponse")
            .field("key", &self.key)
            .field("plaintext_key", &REDACTED)
            .finish()
    }
}

impl fmt::Debug for RotateKeyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RotateKeyResponse")
            .field("key", &self.key)
            .field("plaintext_key", &REDACTED)
            .field("enforcement", &self.enforcement)
            .finish()
    }
}

impl fmt::Debug for LookupKeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LookupKeyRequest")
            .field("plaintext_key", &REDACTED)
            .field("tenant_id", &self.tenant_id)
            .finish()
    }
}

impl fmt::Debug for RevokeKeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevokeKeyRequest")
            .field("tenant_id", &self.tenant_id)
            .field("target", &self.target)
            .field("reason", &self.reason)
            .finish()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variant = match self {
            // A caller may send a whole key here by mistake.
            Self::KeyId(_) => "KeyId",
            Self::PlaintextKey(_) => "PlaintextKey",
        };
        f.debug_tuple(variant).field(&REDACTED).finish()
    }
}

impl fmt::Debug for ValidateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateRequest")
            .field("credential", &self.credential)
            .field("tenant_id", &self.tenant_id)
            .field("required_scopes", &self.required_scopes)
            .field("any_scopes", &self.any_scopes)
            .field("audience", &self.audience)
            .field("client_ip", &self.client_ip)
            .finish()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variant = match self {
            Self::Key(_) => "Key",
            Self::Authorization(_) => "Authorization",
        };
        f.debug_tuple(variant).field(&REDACTED).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "s3cr3t";

    #[test]
    fn no_message_tells_its_secret() {
        let messages: [&dyn fmt::Debug; 6] = [
            &CreateKeyResponse {
                plaintext_key: SECRET.to_owned(),
                ..Default::default()
            },
            &RotateKeyResponse {
                plaintext_key: SECRET.to_owned(),
                ..Default::default()
            },
            &LookupKeyRequest {
                plaintext_key: SECRET.to_owned(),
                ..Default::default()
            },
            &RevokeKeyRequest {
                target: Some(Target::PlaintextKey(SECRET.to_owned())),
                ..Default::default()
            },
            &ValidateRequest {
                credential: Some(Credential::Key(SECRET.to_owned())),
                ..Default::default()
            },
            &ValidateRequest {
                credential: Some(Credential::Authorization(format!("Bearer {SECRET}"))),
                ..Default::default()
            },
        ];
        for message in messages {
            let shown = format!("{message:?}");
            assert!(!shown.contains(SECRET), "{shown}");
            assert!(shown.contains(REDACTED), "{shown}");
        }
    }
}
