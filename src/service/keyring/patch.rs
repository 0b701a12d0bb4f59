//! Changes of some fields of keys, owners and tenants.

use std::{collections::BTreeMap, time::Duration};

use ipnet::IpNet;

use crate::domain::{
    clock::Timestamp,
    key::Key,
    owner::Owner,
    scope::{Scope, Scopes},
    tenant::{OnLimit, Tenant},
};

/// New values for the fields of a key to change; `None` leaves a field unchanged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyPatch {
    /// The revision that the key must have. `None`: any.
    pub revision: Option<i64>,
    pub label: Option<String>,
    pub description: Option<String>,
    pub scopes: Option<Scopes>,
    pub audiences: Option<Vec<String>>,
    pub allowed_cidrs: Option<Vec<IpNet>>,
    pub metadata: Option<BTreeMap<String, String>>,
    /// `Some(None)`: the key never expires.
    pub expires_at: Option<Option<Timestamp>>,
    pub suspended: Option<bool>,
}

impl KeyPatch {
    /// Changes the key.
    pub(super) fn apply(self, key: &mut Key) {
        set(&mut key.label, self.label);
        set(&mut key.description, self.description);
        set(&mut key.scopes, self.scopes);
        set(&mut key.audiences, self.audiences);
        set(&mut key.allowed_cidrs, self.allowed_cidrs);
        set(&mut key.metadata, self.metadata);
        set(&mut key.expires_at, self.expires_at);
        set(&mut key.suspended, self.suspended);
    }
}

/// New values for the fields of an owner to change; `None` leaves a field unchanged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OwnerPatch {
    /// The revision that the record must have. `None`: any.
    pub revision: Option<i64>,
    pub scopes: Option<Scopes>,
    pub audiences: Option<Vec<String>>,
    pub suspended: Option<bool>,
    pub display_name: Option<String>,
}

impl OwnerPatch {
    /// Returns whether every field changes.
    pub(super) fn is_whole(&self) -> bool {
        matches!(
            self,
            Self {
                revision: _,
                scopes: Some(_),
                audiences: Some(_),
                suspended: Some(_),
                display_name: Some(_),
            }
        )
    }

    /// Changes the owner.
    pub fn apply(self, owner: &mut Owner) {
        set(&mut owner.scopes, self.scopes);
        set(&mut owner.audiences, self.audiences);
        set(&mut owner.suspended, self.suspended);
        set(&mut owner.display_name, self.display_name);
    }
}

/// New values for the fields of a tenant to change; `None` leaves a field unchanged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TenantPatch {
    /// The revision that the tenant must have. `None`: any.
    pub revision: Option<i64>,
    pub display_name: Option<String>,
    pub suspended: Option<bool>,
    pub key_prefix: Option<String>,
    pub scope_catalog: Option<Scopes>,
    pub default_ttl: Option<Option<Duration>>,
    pub max_ttl: Option<Option<Duration>>,
    pub require_expiry: Option<bool>,
    pub max_active_keys_per_owner: Option<u32>,
    pub on_limit: Option<OnLimit>,
    pub require_owner: Option<bool>,
    pub required_owner_scope: Option<Option<Scope>>,
    pub basic_usernames: Option<Vec<String>>,
}

impl TenantPatch {
    /// Returns whether every field changes.
    pub(super) fn is_whole(&self) -> bool {
        matches!(
            self,
            Self {
                revision: _,
                display_name: Some(_),
                suspended: Some(_),
                key_prefix: Some(_),
                scope_catalog: Some(_),
                default_ttl: Some(_),
                max_ttl: Some(_),
                require_expiry: Some(_),
                max_active_keys_per_owner: Some(_),
                on_limit: Some(_),
                require_owner: Some(_),
                required_owner_scope: Some(_),
                basic_usernames: Some(_),
            }
        )
    }

    /// Changes the tenant.
    pub fn apply(self, tenant: &mut Tenant) {
        set(&mut tenant.display_name, self.display_name);
        set(&mut tenant.suspended, self.suspended);
        set(&mut tenant.key_prefix, self.key_prefix);
        set(&mut tenant.scope_catalog, self.scope_catalog);
        set(&mut tenant.default_ttl, self.default_ttl);
        set(&mut tenant.max_ttl, self.max_ttl);
        set(&mut tenant.require_expiry, self.require_expiry);
        let limit = self.max_active_keys_per_owner;
        set(&mut tenant.max_active_keys_per_owner, limit);
        set(&mut tenant.on_limit, self.on_limit);
        set(&mut tenant.require_owner, self.require_owner);
        set(&mut tenant.required_owner_scope, self.required_owner_scope);
        set(&mut tenant.basic_usernames, self.basic_usernames);
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}
