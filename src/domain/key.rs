//! Keys, their state, and the verifiers of their secrets.
//!
//! [`KeyPolicy::decide`](super::standing::Standing::decide) makes the decision about a key.

use std::{collections::BTreeMap, fmt};

use ipnet::IpNet;

use super::{
    clock::Timestamp, owner::Owner, scope::Scopes, tenant::Tenant, token::KeyId, usage::Use,
};

/// The scheme of stored secrets: an argon2id PHC string and a peppered MAC.
pub const HASH_VERSION: &str = "v1";

/// A key as administrators see it, without its verifiers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    pub key_id: KeyId,
    pub tenant_id: String,
    pub owner_id: String,
    pub label: String,
    pub description: String,
    /// The start of the key's text: the tenant's prefix at the creation of the key.
    pub prefix: String,
    pub scopes: Scopes,
    /// The audiences for which the key is valid. Empty: any.
    pub audiences: Vec<String>,
    /// The networks from which the key may be used. Empty: any.
    pub allowed_cidrs: Vec<IpNet>,
    pub metadata: BTreeMap<String, String>,
    pub suspended: bool,
    pub created_at: Timestamp,
    pub created_by: String,
    /// The time from which the key is expired.
    pub expires_at: Option<Timestamp>,
    pub revoked: Option<Revocation>,
    pub rotated_from: Option<KeyId>,
    pub rotated_to: Option<KeyId>,
    /// The last recorded use. Queries for a decision omit it.
    pub last_used: Option<Use>,
    pub hash_version: String,
    /// The revision that created the key. Lists are ordered by it.
    pub created_revision: i64,
    /// The revision of the last change.
    pub revision: i64,
    /// True if a part of the row cannot be read. The key is then suspended, and unknown values have
    /// defaults. It can be shown and revoked, and nothing else.
    pub unreadable: bool,
}

/// The time, author and reason of a revocation, which is irreversible.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revocation {
    pub at: Timestamp,
    pub by: String,
    pub reason: String,
}

/// The state of a key: the first that applies, in the order of the checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyState {
    Revoked,
    Expired,
    Suspended,
    Active,
}

impl Key {
    /// Returns the state of the key at `now`. At `expires_at` the key is expired.
    #[must_use]
    pub fn state(&self, now: Timestamp) -> KeyState {
        if self.revoked.is_some() {
            KeyState::Revoked
        } else if self.expires_at.is_some_and(|at| at <= now) {
            KeyState::Expired
        } else if self.suspended {
            KeyState::Suspended
        } else {
            KeyState::Active
        }
    }

    /// Returns the text that may be shown to recognize the key: prefix, `_` and four characters of
    /// the id.
    #[must_use]
    pub fn shown_prefix(&self) -> String {
        format!("{}_{}", self.prefix, &self.key_id.as_bare()[..4])
    }
}

/// The values that verify a key's secret. Neither reveals the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    /// Argon2id of the whole key, as a PHC string.
    pub phc: String,
    /// The peppered MAC of the whole key; `None` if the key was created without a pepper.
    pub mac: Option<Mac>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A MAC of a whole key under one of the peppers.
#[derive(Clone, PartialEq, Eq)]
pub struct Mac {
    pub pepper_id: String,
    /// Keyed BLAKE3.
    pub value: [u8; 32],
}

/// A key with its owner and its tenant: the data for one decision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    pub key: Key,
    /// The owner's record, if it exists.
    pub owner: Option<Owner>,
    pub tenant: Tenant,
}

#[cfg(test)]
impl Key {
    /// Returns a key of owner `alice` of tenant `acme`, on which tests base other keys.
    pub(crate) fn usual() -> Self {
        Self {
            key_id: KeyId::from_bare("0123456789abcdef").unwrap(),
            tenant_id: "acme".to_owned(),
            owner_id: "alice".to_owned(),
            label: String::new(),
            description: String::new(),
            prefix: "pgk_live".to_owned(),
            scopes: Scopes::default(),
            audiences: Vec::new(),
            allowed_cidrs: Vec::new(),
            metadata: BTreeMap::new(),
            suspended: false,
            created_at: Timestamp::from_micros(0),
            created_by: String::new(),
            expires_at: None,
            revoked: None,
            rotated_from: None,
            rotated_to: None,
            last_used: None,
            hash_version: HASH_VERSION.to_owned(),
            created_revision: 1,
            revision: 1,
            unreadable: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(expires_at: i64) -> Key {
        Key {
            expires_at: Some(Timestamp::from_micros(expires_at)),
            ..Key::usual()
        }
    }

    #[test]
    fn at_expires_at_a_key_is_expired() {
        let at = |now| key(1000).state(Timestamp::from_micros(now));
        assert_eq!(at(999), KeyState::Active);
        assert_eq!(at(1000), KeyState::Expired);
        assert_eq!(at(1001), KeyState::Expired);
    }

    #[test]
    fn the_shown_prefix_tells_four_characters_of_the_id() {
        assert_eq!(key(1).shown_prefix(), "pgk_live_0123");
    }
}
