//! A key, where it is in its life, and what its secret is checked against.
//!
//! The decision about a key is in `standing.rs`.

use std::{collections::BTreeMap, fmt};

use ipnet::IpNet;

use super::{
    clock::Timestamp, owner::Owner, scope::Scopes, tenant::Tenant, token::KeyId, usage::Use,
};

/// The scheme that secrets are kept by: an argon2id PHC string and a peppered MAC.
pub const HASH_VERSION: &str = "v1";

/// A key as administrators see it: everything but its verifiers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    pub key_id: KeyId,
    pub tenant_id: String,
    pub owner_id: String,
    pub label: String,
    pub description: String,
    /// What it starts with: the tenant's prefix when it was made.
    pub prefix: String,
    pub scopes: Scopes,
    /// Where it may be used. Empty: anywhere.
    pub audiences: Vec<String>,
    /// The networks it may be used from. Empty: any.
    pub allowed_cidrs: Vec<IpNet>,
    pub metadata: BTreeMap<String, String>,
    pub suspended: bool,
    pub created_at: Timestamp,
    pub created_by: String,
    /// At this instant it is expired.
    pub expires_at: Option<Timestamp>,
    pub revoked: Option<Revocation>,
    pub rotated_from: Option<KeyId>,
    pub rotated_to: Option<KeyId>,
    /// Its last use that was written; what one decision needs is read without it.
    pub last_used: Option<Use>,
    pub hash_version: String,
    /// The revision that created it, which orders lists.
    pub created_revision: i64,
    /// The revision of its last change.
    pub revision: i64,
    /// Whether a part of its row could not be read. It is then suspended, and has a default where
    /// its value is not known: it can be shown and revoked, and nothing else.
    pub unreadable: bool,
}

/// When, by whom and why a key was revoked. It cannot be undone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revocation {
    pub at: Timestamp,
    pub by: String,
    pub reason: String,
}

/// Where a key is in its life; the first that holds, in the order of the checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyState {
    Revoked,
    Expired,
    Suspended,
    Active,
}

impl Key {
    /// Where the key is in its life at `now`. At `expires_at` it is expired.
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

    /// What one may show to recognise it by: prefix, `_` and four characters of the id.
    #[must_use]
    pub fn shown_prefix(&self) -> String {
        format!("{}_{}", self.prefix, &self.key_id.as_bare()[..4])
    }
}

/// What a key's secret is checked against. Neither part tells the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    /// Argon2id of the whole key, as a PHC string.
    pub phc: String,
    /// The peppered MAC of the whole key, unless it was made without a pepper.
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
    /// Which pepper.
    pub pepper_id: String,
    /// Keyed BLAKE3.
    pub value: [u8; 32],
}

/// A key with all that bounds it: what one decision needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    pub key: Key,
    /// The owner's record, if it has one.
    pub owner: Option<Owner>,
    pub tenant: Tenant,
}

#[cfg(test)]
impl Key {
    /// A key to make others of, of owner `alice` of tenant `acme`.
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
