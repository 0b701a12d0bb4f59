//! Why an administrative call was not carried out, and the one check of rights.

use thiserror::Error;

use super::{presence::Gone, secret::Busy};
use crate::{
    domain::{
        caller::{Action, Caller, Right, TenantSet},
        tenant::Rule,
        token::KeyId,
    },
    store::StoreError,
};

/// Why a call was not carried out: one variant for each thing a caller does differently.
#[derive(Debug, Error)]
pub enum Refused {
    #[error("there is no such key")]
    NoKey,
    #[error("there is no such owner")]
    NoOwner,
    #[error("there is no such tenant")]
    NoTenant,
    #[error("the caller may not do {} in this tenant", .0.name())]
    Forbidden(Action),
    #[error("the caller's credential was revoked, or lost its rights, while the call was waiting")]
    CallerGone,
    #[error("the caller cannot grant what it does not hold")]
    NotHeld,
    #[error(
        "the key or owner holds scopes that the caller does not hold: the caller can revoke it, and \
         cannot change, suspend, rotate or replace it"
    )]
    Stronger,
    /// An earlier CreateKey with this `request_id` made that key.
    #[error("this request_id made {0} before; its secret was shown then: rotate it for a new one")]
    RequestRepeated(KeyId),
    #[error("the key is revoked, for ever")]
    KeyRevoked,
    #[error("a part of the key's record cannot be read: the key can only be revoked")]
    KeyUnreadable,
    #[error("the key is expired")]
    KeyExpired,
    #[error("the key is suspended: resume it first")]
    KeySuspended,
    #[error("the key was rotated before, to {0}")]
    KeyRotated(KeyId),
    /// Rules of the tenant, all that forbid it; at least one.
    #[error("{}", told(.0))]
    Rules(Vec<Rule>),
    /// The log ends with that revision.
    #[error(
        "the log ends with revision {0}: the database was restored from a backup, or the revision \
         is of another database; read the state anew and watch from there"
    )]
    RevisionAhead(i64),
    /// The database has that `store_id`.
    #[error(
        "the database has another store_id, {0}: it was restored from a backup, and its revisions \
         are of other changes; read the state anew and watch from there"
    )]
    OtherStore(String),
    #[error("too many follow the log at once")]
    Followed,
    #[error("too many changes are waiting for the database")]
    ChangesBusy,
    #[error("too many lists and dry runs are waiting for the database")]
    ReadsBusy,
    /// Nobody waits for the answer any more, and nothing was changed.
    #[error(transparent)]
    Gone(#[from] Gone),
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Rule> for Refused {
    fn from(rule: Rule) -> Self {
        Self::Rules(vec![rule])
    }
}

fn told(rules: &[Rule]) -> String {
    let rules: Vec<_> = rules.iter().map(ToString::to_string).collect();
    rules.join("; ")
}

/// That no rule forbids something, by what each of them says.
///
/// # Errors
/// [`Refused::Rules`], all of them.
pub fn obey(rules: impl IntoIterator<Item = Result<(), Rule>>) -> Result<(), Refused> {
    let broken: Vec<_> = rules.into_iter().filter_map(Result::err).collect();
    if broken.is_empty() {
        Ok(())
    } else {
        Err(Refused::Rules(broken))
    }
}

/// Checks that the caller may do this in the tenant.
///
/// # Errors
/// [`Refused::Forbidden`], or [`Refused::NoTenant`] where the caller has no right at all.
pub fn authorize(caller: &Caller, tenant: &str, action: Action) -> Result<(), Refused> {
    match caller.right(tenant, action) {
        Right::Granted => Ok(()),
        Right::Forbidden => Err(Refused::Forbidden(action)),
        Right::Blind => Err(Refused::NoTenant),
    }
}

/// The tenants that a list may tell of: the one asked for, or all in which the caller may.
///
/// # Errors
/// As [`authorize`].
pub fn in_view(
    caller: &Caller,
    tenant: Option<String>,
    action: Action,
) -> Result<TenantSet, Refused> {
    match tenant {
        None => Ok(caller.tenants(action)),
        Some(tenant) => {
            authorize(caller, &tenant, action)?;
            Ok(TenantSet::These(vec![tenant]))
        }
    }
}
