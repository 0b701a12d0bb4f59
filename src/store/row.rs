//! Converts rows to values of the domain. Compiled once for each engine, like `sql.rs`.
//!
//! A value that cannot be read makes its key, owner or tenant `unreadable`, which denies. It makes
//! an event `unreadable`, which invalidates all cached keys. Elsewhere it is [`StoreError::Corrupt`], which names the column and never its content.

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
        token::KeyId,
        usage::Use,
    },
    store::{
        Member, StoreError,
        column::{cidrs, json, key_id, scope, scopes},
    },
};

type Row = <Db as Database>::Row;

/// Reads the columns of a row one by one. A column that cannot be read has its type's default value
/// and makes the whole row unreadable.
struct Columns<'r> {
    row: &'r Row,
    unreadable: bool,
}

impl<'r> Columns<'r> {
    fn of(row: &'r Row) -> Self {
        Self {
            row,
            unreadable: false,
        }
    }

    fn get<T>(&mut self, column: &str) -> T
    where
        T: Default + sqlx::Type<Db> + sqlx::Decode<'r, Db>,
    {
        let value = self.row.try_get(column).map_err(StoreError::from);
        self.readable(value)
    }

    /// Reads a text column with `parse`.
    fn parsed<T: Default>(
        &mut self,
        column: &str,
        parse: impl FnOnce(&str) -> Result<T, StoreError>,
    ) -> T {
        let text = self.row.try_get(column).map_err(StoreError::from);
        self.readable(text.and_then(parse))
    }

    /// Reads a nullable column with `parse`.
    fn parsed_if_any<C, T>(
        &mut self,
        column: &str,
        parse: impl FnOnce(C) -> Result<T, StoreError>,
    ) -> Option<T>
    where
        Option<C>: sqlx::Type<Db> + sqlx::Decode<'r, Db>,
    {
        let value = self.row.try_get::<Option<C>, _>(column);
        let value = value.map_err(StoreError::from);
        self.readable(value.and_then(|value| value.map(parse).transpose()))
    }

    fn time_if_any(&mut self, column: &str) -> Option<Timestamp> {
        let micros: Option<i64> = self.get(column);
        micros.map(Timestamp::from_micros)
    }

    fn readable<T: Default>(&mut self, value: Result<T, StoreError>) -> T {
        value.unwrap_or_else(|_| {
            self.unreadable = true;
            T::default()
        })
    }
}

pub(super) fn key(row: &Row) -> Key {
    let mut columns = Columns::of(row);
    let id = columns.parsed("k_key_id", |id| key_id(id).map(Some));
    let revoked = columns.time_if_any("k_revoked_at").map(|at| Revocation {
        at,
        by: columns.get::<Option<_>>("k_revoked_by").unwrap_or_default(),
        reason: columns
            .get::<Option<_>>("k_revoke_reason")
            .unwrap_or_default(),
    });
    let mut key = Key {
        key_id: id.unwrap_or(KeyId::NONE),
        tenant_id: columns.get("k_tenant_id"),
        owner_id: columns.get("k_owner_id"),
        label: columns.get("k_label"),
        description: columns.get("k_description"),
        prefix: columns.get("k_prefix"),
        scopes: columns.parsed("k_scopes", scopes),
        audiences: columns.parsed("k_audiences", |text| json(text, "audiences")),
        allowed_cidrs: columns.parsed("k_allowed_cidrs", cidrs),
        metadata: columns.parsed("k_metadata", |text| json(text, "metadata")),
        suspended: columns.get("k_suspended"),
        created_at: Timestamp::from_micros(columns.get("k_created_at")),
        created_by: columns.get("k_created_by"),
        expires_at: columns.time_if_any("k_expires_at"),
        revoked,
        rotated_from: columns.parsed_if_any("k_rotated_from", key_id),
        rotated_to: columns.parsed_if_any("k_rotated_to", key_id),
        hash_version: columns.get("k_hash_version"),
        created_revision: columns.get("k_created_revision"),
        revision: columns.get("k_revision"),
        last_used: None,
        unreadable: false,
    };
    key.unreadable = columns.unreadable;
    // Its permissions are unknown.
    key.suspended |= key.unreadable;
    key
}

/// Reads a key with its last use.
pub(super) fn used_key(row: &Row) -> Key {
    let mut columns = Columns::of(row);
    let at = columns.time_if_any("u_last_used_at");
    let from = columns.parsed_if_any("u_last_used_ip", |ip: &str| {
        ip.parse().map_err(|_| StoreError::Corrupt("last_used_ip"))
    });
    let key = key(row);
    Key {
        // The last use does not affect decisions about the key.
        last_used: at.map(|at| Use { at, from }),
        unreadable: key.unreadable || columns.unreadable,
        ..key
    }
}

/// Reads the verifier of a secret. An unreadable verifier matches no secret.
pub(super) fn verifier(row: &Row) -> Verifier {
    let mut columns = Columns::of(row);
    let value = columns.parsed_if_any("secret_mac", |mac: &[u8]| {
        let mac = mac.try_into();
        mac.map_err(|_| StoreError::Corrupt("secret_mac"))
    });
    let pepper: Option<String> = columns.get("mac_pepper");
    let verifier = Verifier {
        phc: columns.get("secret_phc"),
        mac: value
            .zip(pepper)
            .map(|(value, pepper_id)| Mac { pepper_id, value }),
    };
    if columns.unreadable {
        return Verifier {
            phc: String::new(),
            mac: None,
        };
    }
    verifier
}

/// Reads the owner, if one was joined.
pub(super) fn owner_if_any(row: &Row) -> Option<Owner> {
    // An unreadable id means that there is an owner.
    let recorded = !matches!(row.try_get::<Option<&str>, _>("o_owner_id"), Ok(None));
    recorded.then(|| owner(row))
}

pub(super) fn owner(row: &Row) -> Owner {
    let mut columns = Columns::of(row);
    let mut owner = Owner {
        tenant_id: columns.get("o_tenant_id"),
        owner_id: columns.get("o_owner_id"),
        scopes: columns.parsed("o_scopes", scopes),
        audiences: columns.parsed("o_audiences", |text| json(text, "audiences")),
        suspended: columns.get("o_suspended"),
        display_name: columns.get("o_display_name"),
        revision: columns.get("o_revision"),
        unreadable: false,
    };
    owner.unreadable = columns.unreadable;
    owner.suspended |= owner.unreadable;
    owner
}

pub(super) fn tenant(row: &Row) -> Tenant {
    let mut columns = Columns::of(row);
    let limit: i64 = columns.get("t_max_active_keys_per_owner");
    let limit = u32::try_from(limit);
    let limit = limit.map_err(|_| StoreError::Corrupt("max_active_keys_per_owner"));
    let mut tenant = Tenant {
        tenant_id: columns.get("t_tenant_id"),
        display_name: columns.get("t_display_name"),
        suspended: columns.get("t_suspended"),
        key_prefix: columns.get("t_key_prefix"),
        scope_catalog: columns.parsed("t_scope_catalog", scopes),
        default_ttl: columns.parsed_if_any("t_default_ttl", span),
        max_ttl: columns.parsed_if_any("t_max_ttl", span),
        require_expiry: columns.get("t_require_expiry"),
        max_active_keys_per_owner: columns.readable(limit),
        on_limit: if columns.get("t_replace_oldest") {
            OnLimit::ReplaceOldest
        } else {
            OnLimit::Reject
        },
        require_owner: columns.get("t_require_owner"),
        required_owner_scope: columns.parsed_if_any("t_required_owner_scope", scope),
        basic_usernames: columns.parsed("t_basic_usernames", |text| json(text, "basic_usernames")),
        revision: columns.get("t_revision"),
        unreadable: false,
    };
    tenant.unreadable = columns.unreadable;
    tenant.suspended |= tenant.unreadable;
    tenant
}

pub(super) fn event(row: &Row) -> Result<Event, StoreError> {
    let mut columns = Columns::of(row);
    let kind = columns.parsed("kind", |name| {
        let kind = EventKind::parse(name);
        kind.map(Some).ok_or(StoreError::Corrupt("kind"))
    });
    let at: i64 = columns.get("at");
    let change = Change {
        at: Timestamp::from_micros(at),
        actor: columns.get("actor"),
        kind: kind.unwrap_or(EventKind::Unknown),
        tenant_id: columns.get("tenant_id"),
        key_id: columns.parsed_if_any("key_id", key_id),
        owner_id: columns.get("owner_id"),
        details: columns.parsed("details", |text| json(text, "details")),
        trace_id: columns.get("trace_id"),
    };
    Ok(Event {
        revision: row.try_get("revision")?,
        change,
        unreadable: columns.unreadable,
    })
}

/// Reads a member; `None` for the row of NULLs that an empty list returns.
pub(super) fn member(row: &Row) -> Result<Option<Member>, StoreError> {
    let Some(id) = row.try_get("id")? else {
        return Ok(None);
    };
    Ok(Some(Member {
        id,
        applied: row.try_get("applied_revision")?,
        renewals: row.try_get("renewals")?,
        lease: span(row.try_get("lease")?)?,
    }))
}

/// Encodes a list or a map as JSON for a column.
pub(super) fn as_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("lists and maps of strings can be written as JSON")
}

/// Encodes a set of scopes as JSON for a column.
pub(super) fn scopes_as_json(scopes: &Scopes) -> String {
    as_json(&scopes.iter().map(Scope::as_str).collect::<Vec<_>>())
}

/// Encodes a duration in microseconds for a column.
pub(super) fn as_micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

fn span(micros: i64) -> Result<Duration, StoreError> {
    let micros = u64::try_from(micros).map_err(|_| StoreError::Corrupt("ttl"))?;
    Ok(Duration::from_micros(micros))
}
