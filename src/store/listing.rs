//! The statement that lists keys: newest first, in bounded time whatever is asked.
//!
//! What an index can answer narrows a slice of at most [`SLICE`] keys; what no index can answer
//! (a part of a label, most states, an expiry that many keys have before them) is looked for in that slice alone, in
//! columns that the index has. A page may so have fewer keys than it could, and tells how far
//! it has looked. Slice, page and place are of one statement, and so of one moment.

use super::{KeyQuery, text};
use crate::domain::{clock::Timestamp, key::KeyState};

/// In how many keys one page is looked for: some milliseconds.
pub const SLICE: usize = 10_000;
/// Up to how many keys are found by their expiry and then sorted. Not more than a slice has.
pub const FEW: i64 = 1_000;

/// What a place in the statement stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Param {
    Tenant,
    Owner,
    Label,
    /// Only keys that expire before this.
    ExpiresBefore,
    Now,
    /// Only keys created before this revision.
    Before,
    /// How many.
    Size,
}

/// A statement, and what its places `$1`, `$2` … stand for.
#[derive(Clone, Debug, Default)]
pub struct Statement {
    pub sql: String,
    pub params: Vec<Param>,
}

/// The time before which a key must expire to be in this list, if there is one.
#[must_use]
pub fn expires_before(asked: &KeyQuery, now: Timestamp) -> Option<Timestamp> {
    // At `expires_at` a key is expired: before the next microsecond.
    let expired = || Timestamp::from_micros(now.as_micros().saturating_add(1));
    let only_expired = asked.states == [KeyState::Expired];
    let times = [asked.expires_before, only_expired.then(expired)];
    times.into_iter().flatten().min()
}

/// How many of a tenant's keys expire before some time, at most one more than [`FEW`].
#[must_use]
pub fn count_expiring() -> String {
    format!(
        "SELECT COUNT(*) FROM (SELECT 1 FROM keys WHERE tenant_id = $1 AND expires_at < $2 LIMIT {}) k",
        FEW + 1
    )
}

/// The statement for a list. `few`: so few keys expire before the time asked for that they are
/// found by it. `position` is the engine's function that says where in a text another stands.
#[must_use]
pub fn list(asked: &KeyQuery, now: Timestamp, few: bool, position: &str) -> Statement {
    let mut statement = Statement::default();
    let expires = expires_before(asked, now).is_some();
    let filtered = asked.label_contains.is_some() || !asked.states.is_empty() || expires;
    let [tenant, before, size] =
        [Param::Tenant, Param::Before, Param::Size].map(|param| statement.place(param));

    let by_expiry = few && expires;
    // `+` keeps SQLite from reading the whole tenant in order, when a few rows can be sorted.
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
    // What is found comes in the slice's order: to ask for that once more makes SQLite sort the
    // whole slice.
    statement.sql = format!(
        "WITH found AS MATERIALIZED (SELECT s.key_id, s.created_revision FROM \
         (SELECT k.key_id, k.created_revision, k.label, k.expires_at, k.revoked_at, k.suspended \
         {slice} {looked_at}) s WHERE {filters} LIMIT {size}) \
         SELECT {}, {looked_to} AS looked_to FROM (SELECT 1 AS one) one \
         LEFT JOIN found f ON TRUE LEFT JOIN keys k ON k.key_id = f.key_id \
         LEFT JOIN key_usage u ON u.key_id = k.key_id ORDER BY f.created_revision DESC",
        text::USED_KEY_COLUMNS
    );
    statement
}

/// The same order of checks as `Key::state`.
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
    /// The place that stands for this.
    fn place(&mut self, param: Param) -> String {
        let known = self.params.iter().position(|known| *known == param);
        let at = known.unwrap_or_else(|| {
            self.params.push(param);
            self.params.len() - 1
        });
        format!("${}", at + 1)
    }
}
