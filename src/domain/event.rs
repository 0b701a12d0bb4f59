//! Events: one for each change, written in the same transaction as the change.

use serde_json::{Map, Value};

use super::{clock::Timestamp, token::KeyId};

/// The changed values, by the names of the API's fields. They never contain a secret.
pub type Details = Map<String, Value>;

/// An entry of the event log.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// Increases with every change, in the order in which changes become visible.
    pub revision: i64,
    pub change: Change,
    /// True if a part of the record cannot be read. That part has a default value.
    pub unreadable: bool,
}

impl Event {
    /// Returns the keys that the change affects: all if the event cannot be read.
    #[must_use]
    pub fn touched(&self) -> Touched {
        if self.unreadable {
            Touched::All
        } else {
            self.change.touched()
        }
    }
}

/// The content of an event, without its revision.
#[derive(Clone, PartialEq, Debug)]
pub struct Change {
    pub at: Timestamp,
    /// `admin`, or the key_id of the credential used.
    pub actor: String,
    pub kind: EventKind,
    pub tenant_id: String,
    pub key_id: Option<KeyId>,
    pub owner_id: Option<String>,
    pub details: Details,
    /// The W3C trace id of the request, if it has one.
    pub trace_id: Option<String>,
}

/// The keys that a change affects. Data about them from before the change is obsolete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Touched {
    /// All keys and owners there are.
    All,
    Keys(Vec<KeyId>),
    /// All keys of an owner.
    Owner {
        tenant: String,
        owner: String,
    },
    /// All keys of a tenant.
    Tenant(String),
}

impl Change {
    /// Returns the keys that the change affects. The creation of a key affects no other keys than
    /// those that the new key replaces.
    #[must_use]
    pub fn touched(&self) -> Touched {
        match self.kind {
            EventKind::KeyCreated
            | EventKind::KeyUpdated
            | EventKind::KeyRotated
            | EventKind::KeyRevoked => self.keys().map_or(Touched::All, Touched::Keys),
            EventKind::Unknown => Touched::All,
            EventKind::KeysRevoked
            | EventKind::OwnerCreated
            | EventKind::OwnerUpdated
            | EventKind::OwnerDeleted
            | EventKind::TenantCreated
            | EventKind::TenantUpdated
            | EventKind::TenantDeleted => match &self.owner_id {
                Some(owner) => Touched::Owner {
                    tenant: self.tenant_id.clone(),
                    owner: owner.clone(),
                },
                None => Touched::Tenant(self.tenant_id.clone()),
            },
        }
    }

    /// Returns the key and the keys that it replaced, or `None` if an id is missing or malformed.
    fn keys(&self) -> Option<Vec<KeyId>> {
        let replaced = match self.details.get("replaced") {
            Some(ids) => ids.as_array()?,
            None => &Vec::new(),
        };
        let replaced = replaced.iter().map(|id| KeyId::parse(id.as_str()?));
        std::iter::once(self.key_id).chain(replaced).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    KeyCreated,
    KeyUpdated,
    KeyRotated,
    KeyRevoked,
    KeysRevoked,
    OwnerCreated,
    OwnerUpdated,
    OwnerDeleted,
    TenantCreated,
    TenantUpdated,
    TenantDeleted,
    /// A kind that this version does not know. It is never written.
    Unknown,
}

impl EventKind {
    /// The kinds that are written.
    pub const ALL: [Self; 11] = [
        Self::KeyCreated,
        Self::KeyUpdated,
        Self::KeyRotated,
        Self::KeyRevoked,
        Self::KeysRevoked,
        Self::OwnerCreated,
        Self::OwnerUpdated,
        Self::OwnerDeleted,
        Self::TenantCreated,
        Self::TenantUpdated,
        Self::TenantDeleted,
    ];

    /// Returns the name that is stored and logged.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KeyCreated => "key_created",
            Self::KeyUpdated => "key_updated",
            Self::KeyRotated => "key_rotated",
            Self::KeyRevoked => "key_revoked",
            Self::KeysRevoked => "keys_revoked",
            Self::OwnerCreated => "owner_created",
            Self::OwnerUpdated => "owner_updated",
            Self::OwnerDeleted => "owner_deleted",
            Self::TenantCreated => "tenant_created",
            Self::TenantUpdated => "tenant_updated",
            Self::TenantDeleted => "tenant_deleted",
            Self::Unknown => "unknown",
        }
    }

    /// Returns the kind with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}
