//! The key policy: all data for a decision about a key, in little memory.
//!
//! [`KeyPolicy::decide`] is the central decision of Validate: a pure function of the key, its owner,
//! its tenant and the request. It is called only after the secret is verified. A policy is built
//! once from a [`Grant`] and then evaluated many times.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    clock::Timestamp,
    key::Grant,
    owner::Owner,
    scope::{self, Scope, Scopes},
    tenant::Tenant,
};

/// The policy of a key: the reason to deny all its uses, its permissions and its restrictions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyPolicy {
    /// `tenant_id`, `owner_id` and the scopes in force, concatenated. Spaces separate the scopes,
    /// because no scope contains a space.
    text: Box<str>,
    owner_at: u32,
    scopes_at: u32,
    expires_at: Option<Timestamp>,
    bar: Option<Bar>,
    limits: Option<Box<Limits>>,
}

/// The values of a key, its owner and its tenant from which a policy is built.
#[derive(Clone, Copy, Debug)]
pub struct PolicyInputs<'a> {
    pub tenant_id: &'a str,
    pub owner_id: &'a str,
    pub scopes: &'a Scopes,
    pub audiences: &'a [String],
    pub allowed_cidrs: &'a [IpNet],
    pub metadata: &'a BTreeMap<String, String>,
    pub expires_at: Option<Timestamp>,
    pub revoked: bool,
    pub suspended: bool,
    /// The owner's record, if it exists.
    pub owner: Option<&'a Owner>,
    pub tenant: &'a Tenant,
}

impl<'a> From<&'a Grant> for PolicyInputs<'a> {
    fn from(Grant { key, owner, tenant }: &'a Grant) -> Self {
        Self {
            tenant_id: &key.tenant_id,
            owner_id: &key.owner_id,
            scopes: &key.scopes,
            audiences: &key.audiences,
            allowed_cidrs: &key.allowed_cidrs,
            metadata: &key.metadata,
            expires_at: key.expires_at,
            revoked: key.revoked.is_some(),
            suspended: key.suspended,
            owner: owner.as_ref(),
            tenant,
        }
    }
}

/// The reason to deny every use of a key, in the order of the checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bar {
    Revoked,
    Suspended,
    TenantSuspended,
    OwnerSuspended,
    OwnerNotPermitted,
}

/// Policy data that few keys have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Limits {
    key_audiences: Vec<String>,
    owner_audiences: Vec<String>,
    allowed_cidrs: Vec<IpNet>,
    basic_usernames: Vec<String>,
    metadata: BTreeMap<String, String>,
    /// The scopes of the key and of its owner, if there are more than [`MEET_MAX`] pairs.
    both: Option<(Scopes, Scopes)>,
}

/// The maximum number of pairs of scopes that are intersected. Above it a scope is in force if both
/// sets grant it, and the policy lists only common scopes that are elements of one of the sets.
const MEET_MAX: usize = 256;

/// A request to use a key whose secret is verified.
#[derive(Clone, Copy, Debug, Default)]
pub struct AccessRequest<'a> {
    /// Concrete scopes that must all be in force.
    pub required_scopes: &'a [String],
    /// Concrete scopes of which at least one must be in force, unless the list is empty.
    pub any_scopes: &'a [String],
    /// The audience for which the key is used.
    pub audience: Option<&'a str>,
    /// The address from which the key was presented; never an IPv4-mapped one.
    pub client_ip: Option<IpAddr>,
}

/// The reason to deny a verified key, in the order of the checks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DenyReason {
    Revoked,
    Expired,
    Suspended,
    TenantSuspended,
    OwnerSuspended,
    OwnerNotPermitted,
    AudienceNotAllowed,
    IpNotAllowed,
    /// The required scopes that are not in force, and all of `any_scopes` if none of them is.
    InsufficientScope(Vec<String>),
}

impl KeyPolicy {
    /// Returns the policy of a key with its owner and its tenant.
    #[must_use]
    pub fn of(grant: &Grant) -> Self {
        Self::new(&grant.into())
    }

    /// Returns the policy of the owner itself: that of a key with the same permissions as the
    /// owner's record. Without a record it grants nothing.
    #[must_use]
    pub fn of_owner(owner_id: &str, owner: Option<&Owner>, tenant: &Tenant) -> Self {
        Self::new(&PolicyInputs {
            tenant_id: &tenant.tenant_id,
            owner_id,
            scopes: &owner.and(Scope::parse("*")).into_iter().collect(),
            audiences: &[],
            allowed_cidrs: &[],
            metadata: &BTreeMap::new(),
            expires_at: None,
            revoked: false,
            suspended: false,
            owner,
            tenant,
        })
    }

    /// Builds a policy.
    #[must_use]
    pub fn new(terms: &PolicyInputs<'_>) -> Self {
        let met;
        let (scopes, both) = match terms.owner {
            None => (terms.scopes, None),
            Some(owner) if terms.scopes.len() * owner.scopes.len() <= MEET_MAX => {
                met = terms.scopes.meet(&owner.scopes);
                (&met, None)
            }
            Some(owner) => {
                met = terms.scopes.common(&owner.scopes);
                (&met, Some((terms.scopes.clone(), owner.scopes.clone())))
            }
        };
        let length = |scope: &Scope| scope.as_str().len() + 1;
        let scopes_length: usize = scopes.iter().map(length).sum();
        let names = terms.tenant_id.len() + terms.owner_id.len();
        let mut text = String::with_capacity(names + scopes_length);
        text.push_str(terms.tenant_id);
        let owner_at = text.len();
        text.push_str(terms.owner_id);
        let scopes_at = text.len();
        for (place, scope) in scopes.iter().enumerate() {
            if place > 0 {
                text.push(' ');
            }
            text.push_str(scope.as_str());
        }
        let limits = Limits {
            key_audiences: terms.audiences.to_vec(),
            owner_audiences: terms
                .owner
                .map_or_else(Vec::new, |owner| owner.audiences.clone()),
            allowed_cidrs: terms.allowed_cidrs.to_vec(),
            basic_usernames: terms.tenant.basic_usernames.clone(),
            metadata: terms.metadata.clone(),
            both,
        };
        Self {
            text: text.into(),
            owner_at: self::length(owner_at),
            scopes_at: self::length(scopes_at),
            expires_at: terms.expires_at,
            bar: Bar::of(terms),
            limits: (limits != Limits::default()).then(|| Box::new(limits)),
        }
    }

    /// Returns the tenant of the key.
    #[must_use]
    pub fn tenant_id(&self) -> &str {
        &self.text[..self.owner_at as usize]
    }

    /// Returns the owner of the key.
    #[must_use]
    pub fn owner_id(&self) -> &str {
        &self.text[self.owner_at as usize..self.scopes_at as usize]
    }

    /// Returns the scopes in force: the intersection of the scopes of the key and of its owner.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.scopes_text()
            .split(' ')
            .filter(|scope| !scope.is_empty())
    }

    /// Returns the scopes in force, separated by spaces.
    #[must_use]
    pub fn scopes_text(&self) -> &str {
        &self.text[self.scopes_at as usize..]
    }

    /// Returns the scopes in force, as a set.
    #[must_use]
    pub fn scope_set(&self) -> Scopes {
        self.scopes().filter_map(Scope::parse).collect()
    }

    /// Returns the time from which the key is expired.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// Returns the key's metadata.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        let limits = self.limits.iter();
        limits
            .flat_map(|limits| &limits.metadata)
            .map(|(name, value)| (&**name, &**value))
    }

    /// Returns whether the tenant allows this user name in HTTP Basic credentials.
    #[must_use]
    pub fn knows_username(&self, username: &str) -> bool {
        let limits = self.limits.as_ref();
        limits.is_some_and(|limits| limits.basic_usernames.iter().any(|name| name == username))
    }

    /// Returns whether the concrete scope `required` is in force.
    #[must_use]
    pub fn grants(&self, required: &str) -> bool {
        let limits = self.limits.as_ref();
        match limits.and_then(|limits| limits.both.as_ref()) {
            Some((key, owner)) => key.grants(required) && owner.grants(required),
            None => self
                .scopes()
                .any(|pattern| scope::grants(pattern, required)),
        }
    }

    /// Returns the approximate number of bytes on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let texts = |texts: &Vec<String>| texts.iter().map(|text| text.len() + 32).sum::<usize>();
        let limits = self.limits.as_ref().map_or(0, |limits| {
            let both = limits.both.iter().flat_map(|(key, owner)| [key, owner]);
            size_of::<Limits>()
                + both.map(Scopes::heap_bytes).sum::<usize>()
                + texts(&limits.key_audiences)
                + texts(&limits.owner_audiences)
                + texts(&limits.basic_usernames)
                + limits.allowed_cidrs.len() * size_of::<IpNet>()
                + self
                    .metadata()
                    .map(|(name, value)| name.len() + value.len() + 64)
                    .sum::<usize>()
        });
        self.text.len() + limits
    }

    /// Returns the reason to deny every use of the key at `now`. At `expires_at` the key is
    /// expired.
    #[must_use]
    pub fn barred(&self, now: Timestamp) -> Option<DenyReason> {
        let expired = self.expires_at.is_some_and(|at| at <= now);
        match self.bar {
            Some(Bar::Revoked) => Some(DenyReason::Revoked),
            _ if expired => Some(DenyReason::Expired),
            Some(Bar::Suspended) => Some(DenyReason::Suspended),
            Some(Bar::TenantSuspended) => Some(DenyReason::TenantSuspended),
            Some(Bar::OwnerSuspended) => Some(DenyReason::OwnerSuspended),
            Some(Bar::OwnerNotPermitted) => Some(DenyReason::OwnerNotPermitted),
            None => None,
        }
    }

    /// Decides whether the key may be used at `now` as `ask` describes.
    ///
    /// # Errors
    /// Returns the first reason to deny the use.
    pub fn decide(&self, now: Timestamp, ask: &AccessRequest<'_>) -> Result<(), DenyReason> {
        if let Some(deny_reason) = self.barred(now) {
            return Err(deny_reason);
        }
        if let Some(limits) = &self.limits {
            limits.admit(ask)?;
        }
        let in_force = |scope: &String| self.grants(scope);
        let any = ask.any_scopes.is_empty() || ask.any_scopes.iter().any(in_force);
        if any && ask.required_scopes.iter().all(in_force) {
            return Ok(());
        }
        let required = ask.required_scopes.iter().filter(|scope| !in_force(scope));
        let alternatives = if any { &[] } else { ask.any_scopes };
        let missing = required.chain(alternatives).cloned().collect();
        Err(DenyReason::InsufficientScope(missing))
    }
}

impl Bar {
    fn of(terms: &PolicyInputs<'_>) -> Option<Self> {
        if terms.revoked {
            Some(Self::Revoked)
        } else if terms.suspended {
            Some(Self::Suspended)
        } else if terms.tenant.suspended {
            Some(Self::TenantSuspended)
        } else if terms.owner.is_some_and(|owner| owner.suspended) {
            Some(Self::OwnerSuspended)
        } else if terms.tenant.admit_owner(terms.owner).is_err() {
            Some(Self::OwnerNotPermitted)
        } else {
            None
        }
    }
}

impl Limits {
    fn admit(&self, ask: &AccessRequest<'_>) -> Result<(), DenyReason> {
        let within = |allowed: &Vec<String>| {
            let asked = |audience| allowed.iter().any(|allowed| allowed == audience);
            allowed.is_empty() || ask.audience.is_some_and(asked)
        };
        if !within(&self.key_audiences) || !within(&self.owner_audiences) {
            return Err(DenyReason::AudienceNotAllowed);
        }
        let nets = &self.allowed_cidrs;
        let inside = |ip: IpAddr| nets.iter().any(|net| net.contains(&ip));
        if nets.is_empty() || ask.client_ip.is_some_and(inside) {
            Ok(())
        } else {
            Err(DenyReason::IpNotAllowed)
        }
    }
}

/// Converts a length, which fits because the names and scopes of one key are in one message of at
/// most 64 KiB.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{key::Key, owner::Owner, tenant::Tenant};

    fn grant(key: Scopes, owner: Option<Scopes>) -> Grant {
        Grant {
            key: Key {
                scopes: key,
                ..Key::usual()
            },
            owner: owner.map(|scopes| Owner {
                tenant_id: "acme".to_owned(),
                owner_id: "alice".to_owned(),
                scopes,
                audiences: Vec::new(),
                suspended: false,
                display_name: String::new(),
                revision: 1,
                unreadable: false,
            }),
            tenant: Tenant::default(),
        }
    }

    fn scopes(count: usize, scope: impl Fn(usize) -> String) -> Scopes {
        (0..count)
            .map(|n| Scope::parse(&scope(n)).unwrap())
            .collect()
    }

    #[test]
    fn the_texts_of_a_key_are_told_apart() {
        let policy = KeyPolicy::of(&grant(scopes(2, |n| format!("s{n}")), None));
        assert_eq!(policy.tenant_id(), "acme");
        assert_eq!(policy.owner_id(), "alice");
        assert_eq!(policy.scopes().collect::<Vec<_>>(), ["s0", "s1"]);
    }

    #[test]
    fn an_owner_without_scopes_leaves_its_keys_none() {
        let policy = KeyPolicy::of(&grant(
            scopes(2, |n| format!("s{n}")),
            Some(Scopes::default()),
        ));
        assert_eq!(policy.scopes().count(), 0);
        assert!(!policy.grants("s0"));
    }

    #[test]
    fn as_many_scopes_as_there_may_be_are_decided_by_both_sets() {
        // 65 536 pairs of scopes that intersect, but of which neither covers the other.
        let key = scopes(256, |n| format!("x{n}:*"));
        let owner = scopes(256, |n| format!("*:y{n}"));
        let policy = KeyPolicy::of(&grant(key, Some(owner)));
        assert!(policy.grants("x7:y200"));
        assert!(!policy.grants("x7:z"));
        assert!(!policy.grants("x256:y7"));
        assert_eq!(policy.scopes().count(), 0);
        // Common scopes that are elements of one of the sets are listed.
        let key = scopes(256, |n| format!("x{n}"));
        let owner = scopes(200, |n| format!("x{n}"));
        let policy = KeyPolicy::of(&grant(key, Some(owner)));
        assert_eq!(policy.scopes().count(), 200);
    }
}
