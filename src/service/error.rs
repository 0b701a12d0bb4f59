//! The errors of administrative calls, and the only permission check.

use thiserror::Error;

use super::{presence::Gone, secret::Busy};
use crate::{
    domain::{
        caller::{Action, Caller, Right, TenantSet},
        tenant::{Rule, TenantUse},
        token::KeyId,
        violation::Violation,
    },
    store::StoreError,
};

/// The reason why a call failed, with one variant for each way in which a caller can react.
#[derive(Debug, Error)]
pub enum ServiceError {
    #[error("there is no such key")]
    NoKey,
    #[error("there is no such owner")]
    NoOwner,
    #[error("there is no such tenant")]
    NoTenant,
    #[error("there is an owner with this owner_id already: change it with UpdateOwner")]
    OwnerExists,
    #[error("there is a tenant with this tenant_id already: change it with UpdateTenant")]
    TenantExists,
    #[error(
        "the owner has keys that are neither revoked nor expired, which nothing would limit: \
         revoke them in the same call with revoke_keys, or suspend the owner"
    )]
    OwnerHasKeys,
    #[error("a part of the owner's record cannot be read: replace it with update_mask `*`")]
    OwnerUnreadable,
    /// The reason why the tenant cannot be deleted.
    #[error("the tenant cannot be deleted: {0}")]
    TenantInUse(TenantUse),
    /// The current revision of the resource.
    #[error("the resource has revision {0}: it was changed since it was read; read it again")]
    RevisionMismatch(i64),
    /// A field that is invalid together with the values that stay unchanged.
    #[error("{} {}", .0.field, .0.description)]
    Invalid(Violation),
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
    /// An earlier CreateKey with this `request_id` created that key.
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
    /// All tenant rules that forbid the call; at least one.
    #[error("{}", told(.0))]
    Rules(Vec<Rule>),
    /// The last revision of the log.
    #[error(
        "the log ends with revision {0}: the database was restored from a backup, or the revision \
         is of another database; read the state anew and watch from there"
    )]
    RevisionAhead(i64),
    /// The `store_id` of the database.
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
    /// The caller no longer waits for the response, and nothing was changed.
    #[error(transparent)]
    Gone(#[from] Gone),
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Rule> for ServiceError {
    fn from(rule: Rule) -> Self {
        Self::Rules(vec![rule])
    }
}

fn told(rules: &[Rule]) -> String {
    let rules: Vec<_> = rules.iter().map(ToString::to_string).collect();
    rules.join("; ")
}

/// Checks that no rule forbids the call, given the result of each rule.
///
/// # Errors
/// Returns [`ServiceError::Rules`] with all violated rules.
pub fn obey(rules: impl IntoIterator<Item = Result<(), Rule>>) -> Result<(), ServiceError> {
    let broken: Vec<_> = rules.into_iter().filter_map(Result::err).collect();
    if broken.is_empty() {
        Ok(())
    } else {
        Err(ServiceError::Rules(broken))
    }
}

/// Checks that the caller may perform the action in the tenant.
///
/// # Errors
/// Returns [`ServiceError::Forbidden`], or [`ServiceError::NoTenant`] if the caller has no permission in the
/// tenant at all.
pub fn authorize(caller: &Caller, tenant: &str, action: Action) -> Result<(), ServiceError> {
    match caller.right(tenant, action) {
        Right::Granted => Ok(()),
        Right::Forbidden => Err(ServiceError::Forbidden(action)),
        Right::Blind => Err(ServiceError::NoTenant),
    }
}

/// Returns the tenants that a list may include: the requested one, or all in which the caller may
/// perform the action.
///
/// # Errors
/// Returns the errors of [`authorize`].
pub fn in_view(
    caller: &Caller,
    tenant: Option<String>,
    action: Action,
) -> Result<TenantSet, ServiceError> {
    match tenant {
        None => Ok(caller.tenants(action)),
        Some(tenant) => {
            authorize(caller, &tenant, action)?;
            Ok(TenantSet::These(vec![tenant]))
        }
    }
}
