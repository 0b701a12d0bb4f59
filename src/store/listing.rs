//! The statement that lists keys, newest first, in bounded time for every query.
//!
//! Filters that an index can answer narrow a slice of at most [`SLICE`] keys. Other filters (a part
//! of a label, most states, an expiry that many keys precede) search only that slice, in columns
//! that the index has. A page can therefore have fewer keys than its size, and reports how far the
//! search went. Slice, page and position come from one statement, and so from one moment.

use super::{KeyQuery, statements};
use crate::domain::{clock::Timestamp, key::KeyState};

/// The number of keys searched for one page, which takes a few milliseconds.
pub const SLICE: usize = 10_000;
/// The maximum number of keys that are found by their expiry and then sorted. At most [`SLICE`].
pub const FEW: i64 = 1_000;

/// The value of a placeholder in the statement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Param {
    Tenant,
    Owner,
    Label,
    /// The time before which keys must expire.
    ExpiresBefore,
    Now,
    /// The revision before which keys must have been created.
    Before,
    /// The page size.
    Size,
}

/// A statement, and the values of its placeholders `$1`, `$2` ….
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
    let expires = expires_before(asked, now).is_some();
    let filtered = asked.label_contains.is_some() || !asked.states.is_empty() || expires;
    let [tenant, before, size] =
        [Param::Tenant, Param::Before, Param::Size].map(|param| statement.place(param));

    let by_expiry = few && expires;
    // `+` keeps SQLite from reading the whole tenant in order when it can sort a few rows.
    let revision = if by_expiry {
        "+k.created_revision"
    } else {
        "k.created_revision"
    };
    let mut slice = vec![
        format!("k.tenant_id = {tenant}"),
        format!("{revision} < {before}"),
    ];
    if asked.owner_id.is_some() {
        slice.push(format!("k.owner_id = {}", statement.place(Param::Owner)));
    }
    if by_expiry {
        let time = statement.place(Param::ExpiresBefore);
        slice.push(format!("k.expires_at < {time}"));
    }
    match asked.states[..] {
        [KeyState::Revoked] => slice.push("k.revoked_at IS NOT NULL".to_owned()),
        [KeyState::Suspended] => slice.push("k.suspended AND k.revoked_at IS NULL".to_owned()),
        _ => {}
    }
    let slice = format!(
        "FROM keys k WHERE {} ORDER BY {revision} DESC LIMIT",
        slice.join(" AND ")
    );

    let mut filters = vec!["TRUE".to_owned()];
    if asked.label_contains.is_some() {
        let label = statement.place(Param::Label);
        filters.push(format!("{position}(s.label, {label}) > 0"));
    }
    if asked.expires_before.is_some() {
        let time = statement.place(Param::ExpiresBefore);
        filters.push(format!("s.expires_at < {time}"));
    }
    if !asked.states.is_empty() {
        let now = statement.place(Param::Now);
        filters.push(states(&asked.states, &now));
    }
    let filters = filters.join(" AND ");

    let (looked_at, looked_to) = if filtered {
        let end = format!("SELECT k.created_revision {slice} 1 OFFSET {}", SLICE - 1);
        let short = format!("(SELECT COUNT(*) FROM found) < {size}");
        (
            SLICE.to_string(),
            format!("CASE WHEN {short} THEN ({end}) END"),
        )
    } else {
        (size.clone(), "CAST(NULL AS BIGINT)".to_owned())
    };
    // `found` keeps the order of the slice. A second ORDER BY in it would make SQLite sort the
    // whole slice.
    statement.sql = format!(
        "WITH found AS MATERIALIZED (SELECT s.key_id, s.created_revision FROM \
         (SELECT k.key_id, k.created_revision, k.label, k.expires_at, k.revoked_at, k.suspended \
         {slice} {looked_at}) s WHERE {filters} LIMIT {size}) \
         SELECT {}, {looked_to} AS looked_to FROM (SELECT 1 AS one) one \
         LEFT JOIN found f ON TRUE LEFT JOIN keys k ON k.key_id = f.key_id \
         LEFT JOIN key_usage u ON u.key_id = k.key_id ORDER BY f.created_revision DESC",
        statements::USED_KEY_COLUMNS
    );
    statement
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
