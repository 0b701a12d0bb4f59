//! Converts domain values to messages, and does nothing else.

use std::{fmt::Debug, time::Duration};

use prost::Message;
use prost_types::{ListValue, Struct, Value, value::Kind};
use serde_json::Value as Json;

use crate::api::{LIST_BYTES_MAX, proto};
use crate::domain::{
    clock::Timestamp,
    enforcement::Enforcement,
    event::{Event, EventKind},
    key::{Key, KeyState},
    owner::Owner,
    page::{self, Page},
    scope::{Scope, Scopes},
    tenant::{OnLimit, Tenant},
};

pub(in crate::api) fn key(key: Key, now: Timestamp) -> proto::Key {
    let state = state(key.state(now));
    let key_prefix = key.shown_prefix();
    let (revoked_at, revoked_by, revoke_reason) = match key.revoked {
        Some(revoked) => (Some(time(revoked.at)), revoked.by, revoked.reason),
        None => Default::default(),
    };
    proto::Key {
        key_id: key.key_id.to_string(),
        tenant_id: key.tenant_id,
        owner_id: key.owner_id,
        label: key.label,
        description: key.description,
        key_prefix,
        scopes: scopes(&key.scopes),
        audiences: key.audiences,
        allowed_cidrs: key.allowed_cidrs.iter().map(ToString::to_string).collect(),
        metadata: key.metadata.into_iter().collect(),
        suspended: Some(key.suspended),
        state: state.into(),
        created_at: Some(time(key.created_at)),
        created_by: key.created_by,
        expires_at: key.expires_at.map(time),
        last_used_at: key.last_used.map(|last| time(last.at)),
        last_used_ip: key
            .last_used
            .and_then(|last| last.from)
            .map(|ip| ip.to_string())
            .unwrap_or_default(),
        revoked_at,
        revoked_by,
        revoke_reason,
        rotated_from: key
            .rotated_from
            .map(|id| id.to_string())
            .unwrap_or_default(),
        rotated_to: key.rotated_to.map(|id| id.to_string()).unwrap_or_default(),
        hash_version: key.hash_version,
        revision: key.revision,
        unreadable: key.unreadable,
    }
}

pub(in crate::api) fn owner(owner: Owner) -> proto::Owner {
    proto::Owner {
        tenant_id: owner.tenant_id,
        owner_id: owner.owner_id,
        scopes: scopes(&owner.scopes),
        audiences: owner.audiences,
        suspended: Some(owner.suspended),
        display_name: owner.display_name,
        revision: owner.revision,
        unreadable: owner.unreadable,
    }
}

pub(in crate::api) fn tenant(tenant: Tenant) -> proto::Tenant {
    let on_limit = match tenant.on_limit {
        OnLimit::Reject => proto::OnLimit::Reject,
        OnLimit::ReplaceOldest => proto::OnLimit::ReplaceOldest,
    };
    proto::Tenant {
        tenant_id: tenant.tenant_id,
        display_name: tenant.display_name,
        suspended: Some(tenant.suspended),
        key_prefix: tenant.key_prefix,
        scope_catalog: scopes(&tenant.scope_catalog),
        default_ttl: tenant.default_ttl.map(span),
        max_ttl: tenant.max_ttl.map(span),
        require_expiry: tenant.require_expiry,
        max_active_keys_per_owner: i32::try_from(tenant.max_active_keys_per_owner)
            .unwrap_or(i32::MAX),
        on_limit: on_limit.into(),
        require_owner: tenant.require_owner,
        required_owner_scope: tenant
            .required_owner_scope
            .map(|scope| scope.to_string())
            .unwrap_or_default(),
        basic_usernames: tenant.basic_usernames,
        revision: tenant.revision,
        unreadable: tenant.unreadable,
    }
}

pub(in crate::api) fn event(event: Event) -> proto::Event {
    let change = event.change;
    let kind = match change.kind {
        EventKind::KeyCreated => proto::EventType::KeyCreated,
        EventKind::KeyUpdated => proto::EventType::KeyUpdated,
        EventKind::KeyRotated => proto::EventType::KeyRotated,
        EventKind::KeyRevoked => proto::EventType::KeyRevoked,
        EventKind::KeysRevoked => proto::EventType::KeysRevoked,
        EventKind::OwnerCreated => proto::EventType::OwnerCreated,
        EventKind::OwnerUpdated => proto::EventType::OwnerUpdated,
        EventKind::OwnerDeleted => proto::EventType::OwnerDeleted,
        EventKind::TenantCreated => proto::EventType::TenantCreated,
        EventKind::TenantUpdated => proto::EventType::TenantUpdated,
        EventKind::TenantDeleted => proto::EventType::TenantDeleted,
        EventKind::Unknown => proto::EventType::Unspecified,
    };
    proto::Event {
        revision: event.revision,
        at: Some(time(change.at)),
        actor: change.actor,
        r#type: kind.into(),
        tenant_id: change.tenant_id,
        key_id: change.key_id.map(|id| id.to_string()).unwrap_or_default(),
        owner_id: change.owner_id.unwrap_or_default(),
        details: Some(as_struct(change.details)),
        trace_id: change.trace_id.unwrap_or_default(),
        unreadable: event.unreadable,
    }
}

pub(in crate::api) fn enforcement(enforcement: Enforcement) -> proto::Enforcement {
    match enforcement {
        Enforcement::Enforced => proto::Enforcement {
            state: proto::EnforcementState::Enforced.into(),
            enforced_before: None,
            pending_replica_count: 0,
        },
        Enforcement::Pending {
            by,
            pending_replicas,
        } => proto::Enforcement {
            state: proto::EnforcementState::Pending.into(),
            enforced_before: Some(time(by)),
            pending_replica_count: i32::try_from(pending_replicas).unwrap_or(i32::MAX),
        },
    }
}

/// Returns the name of a reason, without the prefix that enums have in proto files.
pub(in crate::api) fn reason_name(reason: proto::Reason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("REASON_").unwrap_or(name)
}

pub(in crate::api) fn scopes(scopes: &Scopes) -> Vec<String> {
    scopes.iter().map(Scope::to_string).collect()
}

pub(in crate::api) fn time(time: Timestamp) -> prost_types::Timestamp {
    let micros = time.as_micros();
    prost_types::Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: i32::try_from(micros.rem_euclid(1_000_000) * 1000)
            .expect("less than a million microseconds are less than 2^31 nanoseconds"),
    }
}

/// Returns a page's entries as messages, and the token of the next page. The database returns one
/// entry more than the page size if there is a next page.
pub(in crate::api) fn list<T, M: Message>(
    query: &impl Debug,
    page: &Page,
    found: Vec<T>,
    cursor: impl Fn(&T) -> String,
    message: impl Fn(T) -> M,
) -> (Vec<M>, String) {
    let total = found.len();
    let (mut messages, mut bytes, mut last) = (Vec::with_capacity(total), 0, String::new());
    for entry in found.into_iter().take(page.size as usize) {
        let at = cursor(&entry);
        let entry = message(entry);
        bytes += entry.encoded_len();
        if bytes > LIST_BYTES_MAX && !messages.is_empty() {
            break;
        }
        messages.push(entry);
        last = at;
    }
    let more = messages.len() < total;
    (
        messages,
        if more {
            page::token(query, &last)
        } else {
            String::new()
        },
    )
}

fn state(state: KeyState) -> proto::KeyState {
    match state {
        KeyState::Active => proto::KeyState::Active,
        KeyState::Suspended => proto::KeyState::Suspended,
        KeyState::Expired => proto::KeyState::Expired,
        KeyState::Revoked => proto::KeyState::Revoked,
    }
}

fn span(span: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).expect("less than a billion is less than 2^31"),
    }
}

fn as_struct(map: serde_json::Map<String, Json>) -> Struct {
    Struct {
        fields: map
            .into_iter()
            .map(|(name, value)| (name, as_value(value)))
            .collect(),
    }
}

fn as_value(json: Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(values) => Kind::ListValue(ListValue {
            values: values.into_iter().map(as_value).collect(),
        }),
        Json::Object(map) => Kind::StructValue(as_struct(map)),
    };
    Value { kind: Some(kind) }
}
