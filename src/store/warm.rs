//! Many keys at once, for a cache that is to be full before it is asked.
//!
//! A page of them comes in one row, as text: a row for each key costs a driver several times what
//! the rest does, and a million of them are wanted in seconds. Reading the text is left to the caller,
//! who can do it while the next page is on its way.

use std::{collections::BTreeMap, ops::Range};

use ipnet::IpNet;

use super::{
    StoreError,
    column::{cidrs, json, key_id, scope, scopes},
};
use crate::domain::{
    clock::Timestamp, owner::Owner, scope::Scopes, standing::Terms, tenant::Tenant, token::KeyId,
};

/// Which keys to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WarmQuery {
    /// Those that may be allowed at this time.
    pub now: Timestamp,
    /// Those with a MAC under this pepper.
    pub pepper_id: String,
    pub of: WarmSet,
    /// Those at these places in their order, the last ones first. A page's last key is at the end of
    /// the places of the next.
    pub places: Range<i64>,
    /// So many at most.
    pub size: u32,
}

/// Which keys, and in which order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WarmSet {
    /// All, the newest first: as they lie, and so in half the time.
    All,
    /// Those that were ever used, the last used first.
    Used,
    /// Those that were not, the newest first.
    Unused,
}

/// A page of keys, the likeliest to be asked about first.
#[derive(Clone, Debug)]
pub struct WarmPage {
    /// The revision that the rest is at least as new as.
    pub head: i64,
    /// The place of its last key. Nothing when the page is empty.
    pub last: Option<i64>,
    /// How many keys are on it.
    pub keys: usize,
    pub(super) lines: String,
}

/// A key, with what a decision needs of it, of its owner and of its tenant, and nothing else.
#[derive(Clone, Debug)]
pub struct WarmKey {
    pub key_id: KeyId,
    /// Under the pepper that was asked for.
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
    /// What ends a field and a key: no value has control characters (JSON escapes them).
    pub(super) const FIELD_END: &str = "\u{1f}";
    pub(super) const KEY_END: &str = "\u{1e}";

    /// The keys of the page.
    pub fn read(&self) -> impl Iterator<Item = Result<WarmKey, StoreError>> {
        let lines = self.lines.split(Self::KEY_END);
        lines.filter(|line| !line.is_empty()).map(WarmKey::read)
    }
}

impl WarmKey {
    /// What a standing is made of.
    #[must_use]
    pub fn terms(&self) -> Terms<'_> {
        Terms {
            tenant_id: &self.tenant.tenant_id,
            owner_id: &self.owner_id,
            scopes: &self.scopes,
            audiences: &self.audiences,
            allowed_cidrs: &self.allowed_cidrs,
            metadata: &self.metadata,
            expires_at: self.expires_at,
            // Such keys are not asked for.
            revoked: false,
            suspended: false,
            owner: self.owner.as_ref(),
            tenant: &self.tenant,
        }
    }

    /// Reads the fields in the order of the statement.
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

/// 32 bytes in hexadecimal digits.
fn mac(digits: &str) -> Result<[u8; 32], StoreError> {
    let mac = blake3::Hash::from_hex(digits);
    Ok(*mac
        .map_err(|_| StoreError::Corrupt("secret_mac"))?
        .as_bytes())
}
