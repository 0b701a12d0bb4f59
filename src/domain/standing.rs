//! All that a decision about a key needs, in little memory.
//!
//! [`Standing::decide`] is the heart of Validate: a pure function of the key, its owner, its
//! tenant and the question. It is asked only once the secret is proven. A standing is made of a
//! [`Grant`] once, and then asked a great many times.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    clock::Timestamp,
    key::Grant,
    owner::Owner,
    scope::{self, Scope, Scopes},
    tenant::Tenant,
};

/// A key's standing: what bars it, what it grants, how it is limited.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// `tenant_id`, `owner_id` and the scopes in force, one after the other; scopes are apart by
    /// a space, which no scope has.
    text: Box<str>,
    owner_at: u32,
    scopes_at: u32,
    expires_at: Option<Timestamp>,
    bar: Option<Bar>,
    limits: Option<Box<Limits>>,
}

/// What of a key, its owner and its tenant a standing is made of.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    pub tenant_id: &'a str,
    pub owner_id: &'a str,
    pub scopes: &'a Scopes,
    pub audiences: &'a [String],
    pub allowed_cidrs: &'a [IpNet],
    pub metadata: &'a BTreeMap<String, String>,
    pub expires_at: Option<Timestamp>,
    pub revoked: bool,
    pub suspended: bool,
    /// The owner's record, if it has one.
    pub owner: Option<&'a Owner>,
    pub tenant: &'a Tenant,
}

impl<'a> From<&'a Grant> for Terms<'a> {
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

/// What bars a key whatever is asked, in the order of the checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bar {
    Revoked,
    Suspended,
    TenantSuspended,
    OwnerSuspended,
    OwnerNotPermitted,
}

/// What few keys have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Limits {
    key_audiences: Vec<String>,
    owner_audiences: Vec<String>,
    allowed_cidrs: Vec<IpNet>,
    basic_usernames: Vec<String>,
    metadata: BTreeMap<String, String>,
    /// The scopes of the key and of its owner, where there are too many to meet each with each.
    both: Option<(Scopes, Scopes)>,
}

/// How many pairs of scopes are met each with each. Above it both sets are asked, and of what they
/// have in common only what stands in one of them is told.
const MEET_MAX: usize = 256;

/// What a caller wants to know about a key whose secret is proven.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    /// Scopes that must all be in force; concrete.
    pub required_scopes: &'a [String],
    /// Scopes of which at least one must be in force, unless it is empty; concrete.
    pub any_scopes: &'a [String],
    /// Where the key is being used.
    pub audience: Option<&'a str>,
    /// The address it was presented from; never an IPv4-mapped one.
    pub client_ip: Option<IpAddr>,
}

/// Why a proven key is refused, in the order of the checks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    Revoked,
    Expired,
    Suspended,
    TenantSuspended,
    OwnerSuspended,
    OwnerNotPermitted,
    AudienceNotAllowed,
    IpNotAllowed,
    /// The required scopes that are not in force, and all of `any_scopes` if none is.
    InsufficientScope(Vec<String>),
}

impl Standing {
    /// The standing of a key with all that bounds it.
    #[must_use]
    pub fn of(grant: &Grant) -> Self {
        Self::new(&grant.into())
    }

    /// The standing of an owner itself, by its name: that of a key of its own which grants all
    /// that the owner's record does. Without a record it grants nothing.
    #[must_use]
    pub fn of_owner(owner_id: &str, owner: Option<&Owner>, tenant: &Tenant) -> Self {
        Self::new(&Terms {
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

    /// The standing that these terms make.
    #[must_use]
    pub fn new(terms: &Terms<'_>) -> Self {
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

    /// The tenant that the key is of.
    #[must_use]
    pub fn tenant_id(&self) -> &str {
        &self.text[..self.owner_at as usize]
    }

    /// The owner that the key belongs to.
    #[must_use]
    pub fn owner_id(&self) -> &str {
        &self.text[self.owner_at as usize..self.scopes_at as usize]
    }

    /// The scopes in force: what both the key and its owner grant.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.text[self.scopes_at as usize..]
            .split(' ')
            .filter(|scope| !scope.is_empty())
    }

    /// The scopes in force, as a set.
    #[must_use]
    pub fn scope_set(&self) -> Scopes {
        self.scopes().filter_map(Scope::parse).collect()
    }

    /// At this instant the key is expired.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// The key's metadata.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        let limits = self.limits.iter();
        limits
            .flat_map(|limits| &limits.metadata)
            .map(|(name, value)| (&**name, &**value))
    }

    /// Whether the tenant lets HTTP Basic credentials carry this user name.
    #[must_use]
    pub fn knows_username(&self, username: &str) -> bool {
        let limits = self.limits.as_ref();
        limits.is_some_and(|limits| limits.basic_usernames.iter().any(|name| name == username))
    }

    /// Whether the concrete scope `required` is in force.
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

    /// About how many bytes of memory it takes beside itself.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let texts = |texts: &Vec<String>| texts.iter().map(|text| text.len() + 32).sum::<usize>();
        let limits = self.limits.as_ref().map_or(0, |limits| {
            size_of::<Limits>()
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

    /// Why the key cannot be used at `now`, whatever is asked. At `expires_at` it is expired.
    #[must_use]
    pub fn barred(&self, now: Timestamp) -> Option<Refusal> {
        let expired = self.expires_at.is_some_and(|at| at <= now);
        match self.bar {
            Some(Bar::Revoked) => Some(Refusal::Revoked),
            _ if expired => Some(Refusal::Expired),
            Some(Bar::Suspended) => Some(Refusal::Suspended),
            Some(Bar::TenantSuspended) => Some(Refusal::TenantSuspended),
            Some(Bar::OwnerSuspended) => Some(Refusal::OwnerSuspended),
            Some(Bar::OwnerNotPermitted) => Some(Refusal::OwnerNotPermitted),
            None => None,
        }
    }

    /// Whether the key may be used as `ask` says, at `now`.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn decide(&self, now: Timestamp, ask: &Ask<'_>) -> Result<(), Refusal> {
        if let Some(refusal) = self.barred(now) {
            return Err(refusal);
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
        Err(Refusal::InsufficientScope(missing))
    }
}

impl Bar {
    fn of(terms: &Terms<'_>) -> Option<Self> {
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
    fn admit(&self, ask: &Ask<'_>) -> Result<(), Refusal> {
        let within = |allowed: &Vec<String>| {
            let asked = |audience| allowed.iter().any(|allowed| allowed == audience);
            allowed.is_empty() || ask.audience.is_some_and(asked)
        };
        if !within(&self.key_audiences) || !within(&self.owner_audiences) {
            return Err(Refusal::AudienceNotAllowed);
        }
        let nets = &self.allowed_cidrs;
        let inside = |ip: IpAddr| nets.iter().any(|net| net.contains(&ip));
        if nets.is_empty() || ask.client_ip.is_some_and(inside) {
            Ok(())
        } else {
            Err(Refusal::IpNotAllowed)
        }
    }
}

/// Names and scopes of one key come in one message of at most 64 KiB.
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
        let standing = Standing::of(&grant(scopes(2, |n| format!("s{n}")), None));
        assert_eq!(standing.tenant_id(), "acme");
        assert_eq!(standing.owner_id(), "alice");
        assert_eq!(standing.scopes().collect::<Vec<_>>(), ["s0", "s1"]);
    }

    #[test]
    fn an_owner_without_scopes_leaves_its_keys_none() {
        let standing = Standing::of(&grant(
            scopes(2, |n| format!("s{n}")),
            Some(Scopes::default()),
        ));
        assert_eq!(standing.scopes().count(), 0);
        assert!(!standing.grants("s0"));
    }

    #[test]
    fn as_many_scopes_as_there_may_be_are_decided_by_both_sets() {
        // Each meets each: 65 536 pairs, of which none is worth telling.
        let key = scopes(256, |n| format!("x{n}:*"));
        let owner = scopes(256, |n| format!("*:y{n}"));
        let standing = Standing::of(&grant(key, Some(owner)));
        assert!(standing.grants("x7:y200"));
        assert!(!standing.grants("x7:z"));
        assert!(!standing.grants("x256:y7"));
        assert_eq!(standing.scopes().count(), 0);
        // What stands in one of them is told.
        let key = scopes(256, |n| format!("x{n}"));
        let owner = scopes(200, |n| format!("x{n}"));
        let standing = Standing::of(&grant(key, Some(owner)));
        assert_eq!(standing.scopes().count(), 200);
    }
}
