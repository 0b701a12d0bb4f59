//! Tenants: the rules of a workspace, and what they forbid.

use std::time::Duration;

use thiserror::Error;

use super::{
    clock::Timestamp,
    owner::Owner,
    scope::{Scope, Scopes},
    token::DEFAULT_PREFIX,
};

/// The service's own tenant: its keys are the credentials of gatekey's callers.
pub const SYSTEM: &str = "system";

/// A workspace: its keys, owners and rules are apart from every other's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tenant {
    /// `[a-z0-9][a-z0-9-]{0,62}`
    pub tenant_id: String,
    /// For people.
    pub display_name: String,
    /// All its keys are refused, and it gets no new ones.
    pub suspended: bool,
    /// What new keys start with. Empty: [`DEFAULT_PREFIX`].
    pub key_prefix: String,
    /// The scopes that keys may be given. Empty: any.
    pub scope_catalog: Scopes,
    /// How long a key lives whose maker does not say.
    pub default_ttl: Option<Duration>,
    /// The longest that a key may live.
    pub max_ttl: Option<Duration>,
    /// Whether every key must expire.
    pub require_expiry: bool,
    /// How many active keys an owner may have. 0: no limit.
    pub max_active_keys_per_owner: u32,
    /// What creating a key over that limit does.
    pub on_limit: OnLimit,
    /// Whether only an owner with a record can hold a working key.
    pub require_owner: bool,
    /// The scope without which the owner can hold no working key.
    pub required_owner_scope: Option<Scope>,
    /// The user names that HTTP Basic credentials may carry.
    pub basic_usernames: Vec<String>,
    /// The revision of the last change.
    pub revision: i64,
    /// Whether a part of its row could not be read. It is then suspended.
    pub unreadable: bool,
}

/// What creating a key over the limit does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnLimit {
    /// The new key is refused.
    #[default]
    Reject,
    /// The oldest active key is revoked in the same transaction.
    ReplaceOldest,
}

/// A tenant's rule that forbids what was asked. The names are the API's.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Rule {
    #[error("the tenant is suspended")]
    TenantSuspended,
    /// These scopes are outside.
    #[error("the tenant's catalog does not have {}", told(.0))]
    ScopeCatalog(Vec<Scope>),
    #[error("the tenant requires keys to expire: give expires_at or ttl")]
    RequireExpiry,
    #[error("the tenant lets keys live for {} at most", humantime::format_duration(*.0))]
    MaxTtl(Duration),
    #[error("the owner has as many active keys as the tenant allows: {0}")]
    MaxActiveKeysPerOwner(u32),
    #[error("a part of the tenant's record cannot be read: write it anew")]
    TenantUnreadable,
    #[error("the tenant requires the owner to have a record: see PutOwner")]
    RequireOwner,
    #[error("the tenant requires the owner to have the scope {0}")]
    RequiredOwnerScope(Scope),
}

impl Tenant {
    /// Checks that the tenant may get new keys.
    ///
    /// # Errors
    /// [`Rule::TenantUnreadable`] or [`Rule::TenantSuspended`].
    pub fn admit_new_keys(&self) -> Result<(), Rule> {
        match (self.unreadable, self.suspended) {
            (true, _) => Err(Rule::TenantUnreadable),
            (false, true) => Err(Rule::TenantSuspended),
            (false, false) => Ok(()),
        }
    }

    /// What the tenant's new keys start with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        if self.key_prefix.is_empty() {
            DEFAULT_PREFIX
        } else {
            &self.key_prefix
        }
    }

    /// When a key made at `now` expires, whose maker asked for `wanted`. Whether it may is
    /// another question.
    #[must_use]
    pub fn expiry(&self, now: Timestamp, wanted: Option<Timestamp>) -> Option<Timestamp> {
        wanted.or_else(|| Some(now.after(self.default_ttl?)))
    }

    /// Whether a key made at `made` may expire at `expiry`.
    ///
    /// # Errors
    /// The rule that forbids it.
    pub fn admit_expiry(&self, made: Timestamp, expiry: Option<Timestamp>) -> Result<(), Rule> {
        match (expiry, self.max_ttl) {
            (None, _) if self.require_expiry => Err(Rule::RequireExpiry),
            (None, Some(max)) => Err(Rule::MaxTtl(max)),
            (Some(at), Some(max)) if at > made.after(max) => Err(Rule::MaxTtl(max)),
            _ => Ok(()),
        }
    }

    /// Whether keys may be given these scopes.
    ///
    /// # Errors
    /// The rule, with all that it forbids.
    pub fn admit_scopes(&self, scopes: &Scopes) -> Result<(), Rule> {
        if self.scope_catalog.is_empty() {
            return Ok(());
        }
        let outside = |scope: &&Scope| !self.scope_catalog.covers(scope);
        let outside: Vec<_> = scopes.iter().filter(outside).cloned().collect();
        if outside.is_empty() {
            Ok(())
        } else {
            Err(Rule::ScopeCatalog(outside))
        }
    }

    /// Whether this owner may hold a working key.
    ///
    /// # Errors
    /// The rule that forbids it.
    pub fn admit_owner(&self, owner: Option<&Owner>) -> Result<(), Rule> {
        if self.require_owner && owner.is_none() {
            return Err(Rule::RequireOwner);
        }
        match &self.required_owner_scope {
            Some(scope) if !owner.is_some_and(|owner| owner.scopes.grants(scope.as_str())) => {
                Err(Rule::RequiredOwnerScope(scope.clone()))
            }
            _ => Ok(()),
        }
    }
}

/// The first of these scopes, and how many there are besides: a message is for people.
fn told(scopes: &[Scope]) -> String {
    match scopes {
        [] => String::new(),
        [only] => only.to_string(),
        [first, others @ ..] => format!("{first} and {} more", others.len()),
    }
}

/// Whether this may name a tenant: `[a-z0-9][a-z0-9-]{0,62}`.
#[must_use]
pub fn is_tenant_id(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && !text.starts_with('-')
        && text
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_000_000);
    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn the_expiry_is_the_askers_or_the_default_within_the_limit() {
        let expiry = |tenant: &Tenant, wanted| {
            let expiry = tenant.expiry(NOW, wanted);
            tenant.admit_expiry(NOW, expiry).map(|()| expiry)
        };
        let free = Tenant::default();
        assert_eq!(expiry(&free, None), Ok(None));
        assert_eq!(
            expiry(&free, Some(NOW.after(HOUR))),
            Ok(Some(NOW.after(HOUR)))
        );

        let strict = Tenant {
            max_ttl: Some(HOUR),
            ..free.clone()
        };
        assert_eq!(expiry(&strict, None), Err(Rule::MaxTtl(HOUR)));
        assert_eq!(
            expiry(&strict, Some(NOW.after(HOUR * 2))),
            Err(Rule::MaxTtl(HOUR))
        );
        assert_eq!(
            expiry(&strict, Some(NOW.after(HOUR))),
            Ok(Some(NOW.after(HOUR)))
        );

        let helpful = Tenant {
            default_ttl: Some(HOUR / 2),
            ..strict
        };
        assert_eq!(expiry(&helpful, None), Ok(Some(NOW.after(HOUR / 2))));

        let expiring = Tenant {
            require_expiry: true,
            ..free
        };
        assert_eq!(expiry(&expiring, None), Err(Rule::RequireExpiry));
    }

    #[test]
    fn tenant_ids() {
        for right in ["a", "0", "default", "a-b-", &"a".repeat(63)] {
            assert!(is_tenant_id(right), "{right}");
        }
        for wrong in ["", "-a", "A", "a_b", "a:b", "ä", &"a".repeat(64)] {
            assert!(!is_tenant_id(wrong), "{wrong}");
        }
    }
}
