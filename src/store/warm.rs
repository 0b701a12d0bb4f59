//! Reads many keys at once, to fill a cache before the first requests.
//!
//! A page of keys is one row of text, because a row for each key costs a driver several times as
//! much as the rest, and a cache needs a million keys in seconds. The caller parses the text, and
//! can do so while it waits for the next page.

use std::{collections::BTreeMap, ops::Range};

use ipnet::IpNet;

use super::{
    StoreError,
    column::{cidrs, json, key_id, scope, scopes},
};
use crate::domain::{
    clock::Timestamp, key_policy::PolicyInputs, owner::Owner, scope::Scopes, tenant::Tenant,
    token::KeyId,
};

/// The selection of the keys to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WarmQuery {
    /// The time at which the keys may be allowed.
    pub now: Timestamp,
    /// The pepper under which the keys have a MAC.
    pub pepper_id: String,
    pub of: WarmSet,
    /// The places of the keys in their order, read from the end. The last key of a page is at the
    /// end of the range of the next page.
    pub places: Range<i64>,
    /// The maximum number of keys.
    pub size: u32,
}

/// A set of keys and its order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WarmSet {
    /// All keys, the newest first: in storage order, which takes half the time.
    All,
    /// The keys that were ever used, the last used first.
    Used,
    /// The keys that were never used, the newest first.
    Unused,
}

/// A page of keys, the most likely to be requested first.
#[derive(Clone, Debug)]
pub struct WarmPage {
    /// The remaining fields are at least as new as this revision.
    pub head: i64,
    /// The place of the last key. `None` if the page is empty.
    pub last: Option<i64>,
    /// The number of keys on the page.
    pub keys: usize,
    pub(super) lines: String,
}

/// A key with only those fields of the key, its owner and its tenant that a decision needs.
#[derive(Clone, Debug)]
pub struct WarmKey {
    pub key_id: KeyId,
    /// Under the pepper of the query.
    pub mac: [u8; 32],
    owner_id: String,
    scopes: Scopes,
    audiences: Vec<String>,
    allowed_cidrs: Vec<IpNet>,
    metadata: BTreeMap<String, String>,
    expires_at: Option<Timestamp>,
    owner: Option<Owner>,
    tenant: Tenant,
}

impl WarmPage {
    /// The ends of a field and of a key. No value has control characters, because JSON escapes
    /// them.
    pub(super) const FIELD_END: &str = "\u{1f}";
    pub(super) const KEY_END: &str = "\u{1e}";

    /// Parses the keys of the page.
    pub fn read(&self) -> impl Iterator<Item = Result<WarmKey, StoreError>> {
        let lines = self.lines.split(Self::KEY_END);
        lines.filter(|line| !line.is_empty()).map(WarmKey::read)
    }
}

impl WarmKey {
    /// Returns the inputs of the key policy.
    #[must_use]
    pub fn terms(&self) -> PolicyInputs<'_> {
        PolicyInputs {
            tenant_id: &self.tenant.tenant_id,
            owner_id: &self.owner_id,
            scopes: &self.scopes,
            audiences: &self.audiences,
            allowed_cidrs: &self.allowed_cidrs,
            metadata: &self.metadata,
            expires_at: self.expires_at,
            // The query excludes revoked and suspended keys.
            revoked: false,
            suspended: false,
            owner: self.owner.as_ref(),
            tenant: &self.tenant,
        }
    }

    /// Parses the fields in the order of the statement.
    fn read(line: &str) -> Result<Self, StoreError> {
        let mut fields = line.split(WarmPage::FIELD_END);
        let mut next = || fields.next().ok_or(StoreError::Corrupt("a row"));
        let key_id = key_id(next()?)?;
        let (tenant_id, owner_id) = (next()?.to_owned(), next()?.to_owned());
        Ok(Self {
            key_id,
            scopes: scopes(next()?)?,
            audiences: json(next()?, "audiences")?,
            allowed_cidrs: cidrs(next()?)?,
            metadata: json(next()?, "metadata")?,
            expires_at: time(next()?)?,
            mac: mac(next()?)?,
            owner: match (next()?, next()?, next()?) {
                ("", ..) => None,
                (scopes, audiences, suspended) => Some(Owner {
                    tenant_id: tenant_id.clone(),
                    owner_id: owner_id.clone(),
                    scopes: self::scopes(scopes)?,
                    audiences: json(audiences, "audiences")?,
                    suspended: !suspended.is_empty(),
                    display_name: String::new(),
                    revision: 0,
                    unreadable: false,
                }),
            },
            tenant: Tenant {
                tenant_id,
                basic_usernames: json(next()?, "basic_usernames")?,
                require_owner: !next()?.is_empty(),
                required_owner_scope: match next()? {
                    "" => None,
                    text => Some(scope(text)?),
                },
                ..Tenant::default()
            },
            owner_id,
        })
    }
}

fn time(text: &str) -> Result<Option<Timestamp>, StoreError> {
    if text.is_empty() {
        return Ok(None);
    }
    let micros = text.parse().map_err(|_| StoreError::Corrupt("expires_at"));
    Ok(Some(Timestamp::from_micros(micros?)))
}

/// Parses 32 bytes from hexadecimal digits.
fn mac(digits: &str) -> Result<[u8; 32], StoreError> {
    let mac = blake3::Hash::from_hex(digits);
    Ok(*mac
        .map_err(|_| StoreError::Corrupt("secret_mac"))?
        .as_bytes())
}
