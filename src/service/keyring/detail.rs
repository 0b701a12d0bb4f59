//! Event details as JSON, with the names and the spelling of the API's fields.

use std::time::Duration;

use serde_json::{Value, json};

use crate::domain::{
    clock::Timestamp,
    event::Details,
    key::Key,
    owner::Owner,
    scope::{Scope, Scopes},
    tenant::{OnLimit, Tenant},
    token::KeyId,
};

/// `null` means never.
pub(super) fn of_time(time: Option<Timestamp>) -> Value {
    json!(time.map(|time| time.to_string()))
}

/// `null` means none.
pub(super) fn of_span(span: Option<Duration>) -> Value {
    json!(span.map(|span| format!("{}s", span.as_secs_f64())))
}

pub(super) fn of_scopes(scopes: &Scopes) -> Value {
    json!(scopes.iter().map(Scope::as_str).collect::<Vec<_>>())
}

pub(super) fn of_ids(ids: &[KeyId]) -> Value {
    json!(ids.iter().map(KeyId::to_string).collect::<Vec<_>>())
}

/// Returns the fields of a key that an update can change.
pub(super) fn of_key(key: &Key) -> Details {
    let cidrs: Vec<_> = key.allowed_cidrs.iter().map(ToString::to_string).collect();
    details([
        ("label", json!(key.label)),
        ("description", json!(key.description)),
        ("scopes", of_scopes(&key.scopes)),
        ("audiences", json!(key.audiences)),
        ("allowed_cidrs", json!(cidrs)),
        ("metadata", json!(key.metadata)),
        ("expires_at", of_time(key.expires_at)),
        ("suspended", json!(key.suspended)),
    ])
}

/// Returns the fields of an owner that an update can change.
pub(super) fn of_owner(owner: &Owner) -> Details {
    details([
        ("scopes", of_scopes(&owner.scopes)),
        ("audiences", json!(owner.audiences)),
        ("suspended", json!(owner.suspended)),
        ("display_name", json!(owner.display_name)),
    ])
}

/// Returns the fields of a tenant that an update can change.
pub(super) fn of_tenant(tenant: &Tenant) -> Details {
    let required_scope = tenant.required_owner_scope.as_ref().map(Scope::as_str);
    let on_limit = match tenant.on_limit {
        OnLimit::Reject => "ON_LIMIT_REJECT",
        OnLimit::ReplaceOldest => "ON_LIMIT_REPLACE_OLDEST",
    };
    let limit = tenant.max_active_keys_per_owner;
    details([
        ("display_name", json!(tenant.display_name)),
        ("suspended", json!(tenant.suspended)),
        ("key_prefix", json!(tenant.key_prefix)),
        ("scope_catalog", of_scopes(&tenant.scope_catalog)),
        ("default_ttl", of_span(tenant.default_ttl)),
        ("max_ttl", of_span(tenant.max_ttl)),
        ("require_expiry", json!(tenant.require_expiry)),
        ("max_active_keys_per_owner", json!(limit)),
        ("on_limit", json!(on_limit)),
        ("require_owner", json!(tenant.require_owner)),
        ("required_owner_scope", json!(required_scope)),
        ("basic_usernames", json!(tenant.basic_usernames)),
    ])
}

/// Returns the fields whose values differ from those before.
pub(super) fn changed(before: &Details, after: Details) -> Details {
    let differs = |name: &str, value: &Value| before.get(name) != Some(value);
    let after = after.into_iter();
    after.filter(|(name, value)| differs(name, value)).collect()
}

fn details<const N: usize>(fields: [(&str, Value); N]) -> Details {
    let fields = fields.into_iter();
    fields
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}
