//! The statement that lists keys, newest first, in bounded time for every query.
//!
//! Filters that an index can answer narrow a slice of at most [`SLICE`] keys. Other filters (a part
//! of a label, most states, an expiry that many keys precede) search only that slice, in columns
//! that the index has. A page can therefore have fewer keys than its size, and reports how far the
//! search went. Slice, page and position come from one statement, and so from one moment.

use std::fmt::Write as _;

use super::{KeyQuery, statements};
use crate::domain::{caller::TenantSet, clock::Timestamp, key::KeyState};

/// The number of keys searched for one page, which takes a few milliseconds.
pub const SLICE: usize = 10_000;
/// The maximum number of keys that are found by their expiry and then sorted. At most [`SLICE`].
pub const FEW: i64 = 1_000;

/// The number of characters of an id from which keys are found by it: among 5 million keys, about
/// 1 300 share two characters. At most a few times [`FEW`].
const ID_INDEXED: usize = 2;

/// The meaning of a placeholder in the statement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Param {
    /// The tenant at this place of the query.
    Tenant(usize),
    Owner,
    Label,
    /// The time before which keys must expire.
    ExpiresBefore,
    LastUsedBefore,
    /// The tenant's part of the visible beginning.
    Prefix,
    /// The first characters of the id.
    IdStart,
    /// The first text after all ids that start so.
    IdEnd,
    Now,
    /// The revision before which keys must have been created.
    Before,
    /// The page size.
    Size,
}

/// The value of a placeholder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    Text(String),
    Number(i64),
}

/// The values that a list has beside its query.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub now: Timestamp,
    /// The revision before which keys must have been created.
    pub before: i64,
    /// The page size.
    pub size: u32,
}

impl Param {
    /// Returns the value of this placeholder.
    #[must_use]
    pub fn value(self, asked: &KeyQuery, place: Place) -> Value {
        let text = |text: Option<&String>| Value::Text(text.cloned().unwrap_or_default());
        let time = |at: Option<Timestamp>| Value::Number(at.map_or(i64::MAX, Timestamp::as_micros));
        let prefix = asked.key_prefix.as_ref();
        match self {
            Self::Tenant(at) => match &asked.tenants {
                TenantSet::All => Value::Text(String::new()),
                TenantSet::These(tenants) => text(tenants.get(at)),
            },
            Self::Owner => text(asked.owner_id.as_ref()),
            Self::Label => text(asked.label_contains.as_ref()),
            Self::ExpiresBefore => time(expires_before(asked, place.now)),
            Self::LastUsedBefore => time(asked.last_used_before),
            Self::Prefix => text(prefix.map(|prefix| &prefix.tenant)),
            Self::IdStart => text(prefix.map(|prefix| &prefix.id)),
            // `{` follows `z`, the last character of base62.
            Self::IdEnd => {
                Value::Text(prefix.map_or(String::new(), |prefix| prefix.id.clone() + "{"))
            }
            Self::Now => Value::Number(place.now.as_micros()),
            Self::Before => Value::Number(place.before),
            Self::Size => Value::Number(i64::from(place.size)),
        }
    }
}

/// A statement, and the placeholders `$1`, `$2` … in it.
#[derive(Clone, Debug, Default)]
pub struct Statement {
    pub sql: String,
    pub params: Vec<Param>,
}

/// Returns the time before which a key must expire to be in this list, if there is one.
#[must_use]
pub fn expires_before(asked: &KeyQuery, now: Timestamp) -> Option<Timestamp> {
    // A key is expired at `expires_at` itself, so the bound is the next microsecond.
    let expired = || Timestamp::from_micros(now.as_micros().saturating_add(1));
    let only_expired = asked.states == [KeyState::Expired];
    let times = [asked.expires_before, only_expired.then(expired)];
    times.into_iter().flatten().min()
}

/// Counts a tenant's keys that expire before some time, up to [`FEW`] + 1.
#[must_use]
pub fn count_expiring() -> String {
    format!(
        "SELECT COUNT(*) FROM (SELECT 1 FROM keys WHERE tenant_id = $1 AND expires_at < $2 LIMIT {}) k",
        FEW + 1
    )
}

/// Builds the statement for a list. `few`: so few keys expire before the requested time that the
/// statement finds them by their expiry. `position` is the engine's function that returns the
/// position of one text in another.
#[must_use]
pub fn list(asked: &KeyQuery, now: Timestamp, few: bool, position: &str) -> Statement {
    let mut statement = Statement::default();
    let size = statement.place(Param::Size);
    let (slice, indexed) = statement.slice(asked, few && expires_before(asked, now).is_some());
    let filters = statement.filters(asked, indexed, position);
    let (searched, looked_to) = if filters.is_empty() {
        (size.clone(), "CAST(NULL AS BIGINT)".to_owned())
    } else {
        let end = format!("SELECT k.created_revision {slice} 1 OFFSET {}", SLICE - 1);
        let short = format!("(SELECT COUNT(*) FROM found) < {size}");
        (
            SLICE.to_string(),
            format!("CASE WHEN {short} THEN ({end}) END"),
        )
    };
    let mut condition = "TRUE".to_owned();
    for filter in filters {
        // Writing to a string does not fail.
        let _ = write!(condition, " AND {filter}");
    }
    // `found` keeps the order of the slice. A second ORDER BY in it would make SQLite sort the
    // whole slice.
    statement.sql = format!(
        "WITH found AS MATERIALIZED (SELECT s.key_id, s.created_revision FROM \
         (SELECT k.key_id, k.created_revision, {} \
         {slice} {searched}) s WHERE {condition} LIMIT {size}) \
         SELECT {}, {looked_to} AS looked_to FROM (SELECT 1 AS one) one \
         LEFT JOIN found f ON TRUE LEFT JOIN keys k ON k.key_id = f.key_id \
         LEFT JOIN key_usage u ON u.key_id = k.key_id ORDER BY f.created_revision DESC",
        searched_columns(asked),
        statements::USED_KEY_COLUMNS
    );
    statement
}

/// Returns the columns of a slice that filters may use. An index on one tenant's keys has the first
/// four, so the others are only read if the query needs them.
fn searched_columns(asked: &KeyQuery) -> &'static str {
    if one_tenant(asked) && asked.key_prefix.is_none() {
        "k.label, k.expires_at, k.revoked_at, k.suspended"
    } else {
        "k.label, k.expires_at, k.revoked_at, k.suspended, k.tenant_id, k.owner_id, k.prefix"
    }
}

fn one_tenant(asked: &KeyQuery) -> bool {
    matches!(&asked.tenants, TenantSet::These(tenants) if tenants.len() == 1)
}

/// Builds the condition for `states`, with the same order of checks as `Key::state`.
fn states(states: &[KeyState], now: &str) -> String {
    let states: Vec<_> = states
        .iter()
        .map(|state| match state {
            KeyState::Revoked => "s.revoked_at IS NOT NULL".to_owned(),
            KeyState::Expired => format!("s.revoked_at IS NULL AND s.expires_at <= {now}"),
            KeyState::Suspended | KeyState::Active => {
                let not = if *state == KeyState::Active {
                    "NOT "
                } else {
                    ""
                };
                format!(
                    "s.revoked_at IS NULL AND (s.expires_at IS NULL OR s.expires_at > {now}) \
                     AND {not}s.suspended"
                )
            }
        })
        .collect();
    format!("({})", states.join(" OR "))
}

impl Statement {
    /// Returns the end of a statement that reads a slice of the keys, up to its limit, and whether
    /// an index finds the few keys of the query, which are then sorted.
    fn slice(&mut self, asked: &KeyQuery, by_expiry: bool) -> (String, bool) {
        let one_tenant = one_tenant(asked);
        let id = asked.key_prefix.as_ref().map_or("", |prefix| &prefix.id);
        let by_id = id.len() >= ID_INDEXED;
        let by_expiry = by_expiry && one_tenant && !by_id;
        // `+` keeps SQLite from reading all keys in order when it can sort a few rows.
        let revision = if by_expiry || by_id {
            "+k.created_revision"
        } else {
            "k.created_revision"
        };
        let mut slice = vec![format!("{revision} < {}", self.place(Param::Before))];
        // Found by their ids, keys of all tenants are read: an index on the tenant must not be used.
        if one_tenant && !by_id {
            slice.push(format!("k.tenant_id = {}", self.place(Param::Tenant(0))));
            if asked.owner_id.is_some() {
                slice.push(format!("k.owner_id = {}", self.place(Param::Owner)));
            }
            match asked.states[..] {
                [KeyState::Revoked] => slice.push("k.revoked_at IS NOT NULL".to_owned()),
                [KeyState::Suspended] => {
                    slice.push("k.suspended AND k.revoked_at IS NULL".to_owned());
                }
                _ => {}
            }
        }
        if by_expiry {
            slice.push(format!(
                "k.expires_at < {}",
                self.place(Param::ExpiresBefore)
            ));
        }
        if by_id {
            let (from, to) = (self.place(Param::IdStart), self.place(Param::IdEnd));
            slice.push(format!("k.key_id >= {from} AND k.key_id < {to}"));
        }
        let slice = slice.join(" AND ");
        (
            format!("FROM keys k WHERE {slice} ORDER BY {revision} DESC LIMIT"),
            by_id,
        )
    }

    /// Returns the conditions on the keys of the slice.
    fn filters(&mut self, asked: &KeyQuery, by_id: bool, position: &str) -> Vec<String> {
        let mut filters = Vec::new();
        if let TenantSet::These(tenants) = &asked.tenants
            && (by_id || tenants.len() != 1)
        {
            let places = (0..tenants.len()).map(|at| self.place(Param::Tenant(at)));
            let places = places.collect::<Vec<_>>().join(", ");
            filters.push(match tenants.len() {
                0 => "FALSE".to_owned(),
                _ => format!("s.tenant_id IN ({places})"),
            });
        }
        if asked.owner_id.is_some() && (by_id || !one_tenant(asked)) {
            filters.push(format!("s.owner_id = {}", self.place(Param::Owner)));
        }
        if let Some(prefix) = &asked.key_prefix {
            filters.push(format!("s.prefix = {}", self.place(Param::Prefix)));
            if !by_id && !prefix.id.is_empty() {
                let start = self.place(Param::IdStart);
                filters.push(format!(
                    "substr(s.key_id, 1, {}) = {start}",
                    prefix.id.len()
                ));
            }
        }
        if asked.label_contains.is_some() {
            filters.push(format!(
                "{position}(s.label, {}) > 0",
                self.place(Param::Label)
            ));
        }
        if asked.expires_before.is_some() {
            filters.push(format!(
                "s.expires_at < {}",
                self.place(Param::ExpiresBefore)
            ));
        }
        if asked.last_used_before.is_some() {
            let time = self.place(Param::LastUsedBefore);
            filters.push(format!(
                "NOT EXISTS (SELECT 1 FROM key_usage v WHERE v.key_id = s.key_id \
                 AND v.last_used_at >= {time})"
            ));
        }
        if !asked.states.is_empty() {
            let now = self.place(Param::Now);
            filters.push(states(&asked.states, &now));
        }
        filters
    }

    /// Returns the placeholder for a parameter.
    fn place(&mut self, param: Param) -> String {
        let known = self.params.iter().position(|known| *known == param);
        let at = known.unwrap_or_else(|| {
            self.params.push(param);
            self.params.len() - 1
        });
        format!("${}", at + 1)
    }
}
