//! Rows as values of the domain. Compiled once for each engine, like `sql.rs`.
//!
//! What cannot be read is [`StoreError::Corrupt`], naming the column and never its content.

use std::time::Duration;

use serde::Serialize;
use sqlx::{Database, Row as _};

use super::super::Db;
use crate::{
    domain::{
        clock::Timestamp,
        event::{Change, Event, EventKind},
        key::{Key, Mac, Revocation, Verifier},
        owner::Owner,
        scope::{Scope, Scopes},
        tenant::{OnLimit, Tenant},
        usage::Use,
    },
    store::{
        Member, StoreError,
        column::{cidrs, json, key_id, scope, scopes},
    },
};

type Row = <Db as Database>::Row;

pub(super) fn key(row: &Row) -> Result<Key, StoreError> {
    let revoked_at: Option<i64> = row.try_get("k_revoked_at")?;
    let revoked = match revoked_at {
        None => None,
        Some(at) => Some(Revocation {
            at: Timestamp::from_micros(at),
            by: row
                .try_get::<Option<_>, _>("k_revoked_by")?
                .unwrap_or_default(),
            reason: row
                .try_get::<Option<_>, _>("k_revoke_reason")?
                .unwrap_or_default(),
        }),
    };
    Ok(Key {
        key_id: key_id(row.try_get("k_key_id")?)?,
        tenant_id: row.try_get("k_tenant_id")?,
        owner_id: row.try_get("k_owner_id")?,
        label: row.try_get("k_label")?,
        description: row.try_get("k_description")?,
        prefix: row.try_get("k_prefix")?,
        scopes: scopes(row.try_get("k_scopes")?)?,
        audiences: json(row.try_get("k_audiences")?, "audiences")?,
        allowed_cidrs: cidrs(row.try_get("k_allowed_cidrs")?)?,
        metadata: json(row.try_get("k_metadata")?, "metadata")?,
        suspended: row.try_get("k_suspended")?,
        created_at: Timestamp::from_micros(row.try_get("k_created_at")?),
        created_by: row.try_get("k_created_by")?,
        expires_at: row
            .try_get::<Option<_>, _>("k_expires_at")?
            .map(Timestamp::from_micros),
        revoked,
        rotated_from: row
            .try_get::<Option<_>, _>("k_rotated_from")?
            .map(key_id)
            .transpose()?,
        rotated_to: row
            .try_get::<Option<_>, _>("k_rotated_to")?
            .map(key_id)
            .transpose()?,
        hash_version: row.try_get("k_hash_version")?,
        created_revision: row.try_get("k_created_revision")?,
        revision: row.try_get("k_revision")?,
        last_used: None,
    })
}

/// A key with its last use.
pub(super) fn used_key(row: &Row) -> Result<Key, StoreError> {
    let at: Option<i64> = row.try_get("u_last_used_at")?;
    let from: Option<&str> = row.try_get("u_last_used_ip")?;
    let from = from.map(str::parse).transpose();
    let from = from.map_err(|_| StoreError::Corrupt("last_used_ip"))?;
    Ok(Key {
        last_used: at.map(Timestamp::from_micros).map(|at| Use { at, from }),
        ..key(row)?
    })
}

pub(super) fn verifier(row: &Row) -> Result<Verifier, StoreError> {
    let value: Option<Vec<u8>> = row.try_get("secret_mac")?;
    let pepper: Option<String> = row.try_get("mac_pepper")?;
    let mac = match value.zip(pepper) {
        None => None,
        Some((value, pepper_id)) => Some(Mac {
            pepper_id,
            value: value
                .try_into()
                .map_err(|_| StoreError::Corrupt("secret_mac"))?,
        }),
    };
    Ok(Verifier {
        phc: row.try_get("secret_phc")?,
        mac,
    })
}

/// The owner, where one was joined.
pub(super) fn owner_if_any(row: &Row) -> Result<Option<Owner>, StoreError> {
    let recorded = row.try_get::<Option<&str>, _>("o_owner_id")?.is_some();
    recorded.then(|| owner(row)).transpose()
}

pub(super) fn owner(row: &Row) -> Result<Owner, StoreError> {
    Ok(Owner {
        tenant_id: row.try_get("o_tenant_id")?,
        owner_id: row.try_get("o_owner_id")?,
        scopes: scopes(row.try_get("o_scopes")?)?,
        audiences: json(row.try_get("o_audiences")?, "audiences")?,
        suspended: row.try_get("o_suspended")?,
        display_name: row.try_get("o_display_name")?,
        revision: row.try_get("o_revision")?,
    })
}

pub(super) fn tenant(row: &Row) -> Result<Tenant, StoreError> {
    let required: Option<&str> = row.try_get("t_required_owner_scope")?;
    let limit: i64 = row.try_get("t_max_active_keys_per_owner")?;
    let replace_oldest: bool = row.try_get("t_replace_oldest")?;
    Ok(Tenant {
        tenant_id: row.try_get("t_tenant_id")?,
        display_name: row.try_get("t_display_name")?,
        suspended: row.try_get("t_suspended")?,
        key_prefix: row.try_get("t_key_prefix")?,
        scope_catalog: scopes(row.try_get("t_scope_catalog")?)?,
        default_ttl: row
            .try_get::<Option<_>, _>("t_default_ttl")?
            .map(span)
            .transpose()?,
        max_ttl: row
            .try_get::<Option<_>, _>("t_max_ttl")?
            .map(span)
            .transpose()?,
        require_expiry: row.try_get("t_require_expiry")?,
        max_active_keys_per_owner: u32::try_from(limit)
            .map_err(|_| StoreError::Corrupt("max_active_keys_per_owner"))?,
        on_limit: if replace_oldest {
            OnLimit::ReplaceOldest
        } else {
            OnLimit::Reject
        },
        require_owner: row.try_get("t_require_owner")?,
        required_owner_scope: required.map(scope).transpose()?,
        basic_usernames: json(row.try_get("t_basic_usernames")?, "basic_usernames")?,
        revision: row.try_get("t_revision")?,
    })
}

pub(super) fn event(row: &Row) -> Result<Event, StoreError> {
    Ok(Event {
        revision: row.try_get("revision")?,
        change: Change {
            at: Timestamp::from_micros(row.try_get("at")?),
            actor: row.try_get("actor")?,
            kind: EventKind::parse(row.try_get("kind")?).ok_or(StoreError::Corrupt("kind"))?,
            tenant_id: row.try_get("tenant_id")?,
            key_id: row
                .try_get::<Option<_>, _>("key_id")?
                .map(key_id)
                .transpose()?,
            owner_id: row.try_get("owner_id")?,
            details: json(row.try_get("details")?, "details")?,
            trace_id: row.try_get("trace_id")?,
        },
    })
}

pub(super) fn member(row: &Row) -> Result<Member, StoreError> {
    Ok(Member {
        id: row.try_get("id")?,
        applied: row.try_get("applied_revision")?,
        renewals: row.try_get("renewals")?,
        lease: span(row.try_get("lease")?)?,
    })
}

/// A list or a map as a column holds it.
pub(super) fn as_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("lists and maps of strings can be written as JSON")
}

/// A set of scopes as a column holds it.
pub(super) fn scopes_as_json(scopes: &Scopes) -> String {
    as_json(&scopes.iter().map(Scope::as_str).collect::<Vec<_>>())
}

/// A duration as a column holds it: microseconds.
pub(super) fn as_micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

fn span(micros: i64) -> Result<Duration, StoreError> {
    let micros = u64::try_from(micros).map_err(|_| StoreError::Corrupt("ttl"))?;
    Ok(Duration::from_micros(micros))
}
