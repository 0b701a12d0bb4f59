//! Tenants and their rules.

use std::time::Duration;

use thiserror::Error;

use super::{
    clock::Timestamp,
    owner::Owner,
    scope::{Scope, Scopes},
    token::DEFAULT_PREFIX,
};

/// The tenant of gatekey itself: its keys are the credentials of gatekey's callers.
pub const SYSTEM: &str = "system";

/// The tenant for callers that have no other.
pub const DEFAULT: &str = "default";

/// A workspace, whose keys, owners and rules are separate from those of every other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tenant {
    /// `[a-z0-9][a-z0-9-]{0,62}`
    pub tenant_id: String,
    /// A name for display.
    pub display_name: String,
    /// True if all keys of the tenant are denied and it cannot have new ones.
    pub suspended: bool,
    /// The prefix of new keys. Empty: [`DEFAULT_PREFIX`].
    pub key_prefix: String,
    /// The scopes that keys may have. Empty: any.
    pub scope_catalog: Scopes,
    /// The lifetime of a key if the request to create it sets none.
    pub default_ttl: Option<Duration>,
    /// The maximum lifetime of a key.
    pub max_ttl: Option<Duration>,
    /// True if every key must expire.
    pub require_expiry: bool,
    /// The maximum number of active keys of an owner. 0: no limit.
    pub max_active_keys_per_owner: u32,
    /// The effect of creating a key above that limit.
    pub on_limit: OnLimit,
    /// True if only an owner with a record can have usable keys.
    pub require_owner: bool,
    /// The scope that an owner must have for its keys to be usable.
    pub required_owner_scope: Option<Scope>,
    /// The user names that are allowed in HTTP Basic credentials.
    pub basic_usernames: Vec<String>,
    /// The revision of the last change.
    pub revision: i64,
    /// True if a part of the row cannot be read. The tenant is then suspended.
    pub unreadable: bool,
}

/// A reason why a tenant cannot be deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum TenantUse {
    #[error("gatekey needs tenants default and system")]
    BuiltIn,
    #[error("it has or had keys, whose history stays; suspend it instead")]
    Keys,
    /// The maximum number of owners of a deleted tenant.
    #[error("it has more than {0} owners; delete them first")]
    Owners(usize),
}

/// The effect of creating a key above the limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnLimit {
    /// The new key is rejected.
    #[default]
    Reject,
    /// The oldest active key is revoked in the same transaction.
    ReplaceOldest,
}

/// A rule of the tenant that forbids a request. The names are the API's.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Rule {
    #[error("the tenant is suspended")]
    TenantSuspended,
    /// The scopes outside the catalog.
    #[error("the tenant's catalog does not have {}", told(.0))]
    ScopeCatalog(Vec<Scope>),
    #[error("the tenant requires keys to expire: give expires_at or ttl")]
    RequireExpiry,
    #[error("the tenant lets keys live for {} at most", humantime::format_duration(*.0))]
    MaxTtl(Duration),
    #[error("the owner has as many active keys as the tenant allows: {0}")]
    MaxActiveKeysPerOwner(u32),
    #[error(
        "a part of the tenant's record cannot be read: replace it by UpdateTenant with update_mask `*`"
    )]
    TenantUnreadable,
    #[error("the tenant requires the owner to have a record: see CreateOwner")]
    RequireOwner,
    #[error("the tenant requires the owner to have the scope {0}")]
    RequiredOwnerScope(Scope),
}

impl Tenant {
    /// Checks that the tenant may have new keys.
    ///
    /// # Errors
    /// Returns [`Rule::TenantUnreadable`] or [`Rule::TenantSuspended`].
    pub fn admit_new_keys(&self) -> Result<(), Rule> {
        match (self.unreadable, self.suspended) {
            (true, _) => Err(Rule::TenantUnreadable),
            (false, true) => Err(Rule::TenantSuspended),
            (false, false) => Ok(()),
        }
    }

    /// Returns the prefix of the tenant's new keys.
    #[must_use]
    pub fn prefix(&self) -> &str {
        if self.key_prefix.is_empty() {
            DEFAULT_PREFIX
        } else {
            &self.key_prefix
        }
    }

    /// Returns whether the default lifetime is at most the maximum one.
    #[must_use]
    pub fn has_consistent_ttls(&self) -> bool {
        (self.default_ttl).is_none_or(|default| self.max_ttl.is_none_or(|max| default <= max))
    }

    /// Returns the expiry of a key created at `now`: `wanted`, or else the one by the tenant's
    /// default. [`Tenant::admit_expiry`] checks whether it is allowed.
    #[must_use]
    pub fn expiry(&self, now: Timestamp, wanted: Option<Timestamp>) -> Option<Timestamp> {
        wanted.or_else(|| Some(now.after(self.default_ttl?)))
    }

    /// Checks that a key created at `made` may expire at `expiry`.
    ///
    /// # Errors
    /// Returns the rule that forbids it.
    pub fn admit_expiry(&self, made: Timestamp, expiry: Option<Timestamp>) -> Result<(), Rule> {
        match (expiry, self.max_ttl) {
            (None, _) if self.require_expiry => Err(Rule::RequireExpiry),
            (None, Some(max)) => Err(Rule::MaxTtl(max)),
            (Some(at), Some(max)) if at > made.after(max) => Err(Rule::MaxTtl(max)),
            _ => Ok(()),
        }
    }

    /// Checks that keys may have these scopes.
    ///
    /// # Errors
    /// Returns the rule, with all scopes that it forbids.
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

    /// Checks that the owner may have usable keys.
    ///
    /// # Errors
    /// Returns the rule that forbids it.
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

/// Formats the first scope and the number of the others, because people read the message.
fn told(scopes: &[Scope]) -> String {
    match scopes {
        [] => String::new(),
        [only] => only.to_string(),
        [first, others @ ..] => format!("{first} and {} more", others.len()),
    }
}

/// Returns whether the text is a valid tenant id: `[a-z0-9][a-z0-9-]{0,62}`.
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
