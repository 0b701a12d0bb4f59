//! Validate as the contract words it, in as few and as plain words as will do: slow, and with nothing of gatekey's own
//! but the names of the reasons.

use std::net::IpAddr;

use gatekey::api::proto::Reason;

/// A key with its owner's record and its tenant's rules. Times are microseconds.
#[derive(Clone, Debug)]
pub struct World {
    pub revoked: bool,
    pub expires_at: Option<i64>,
    pub suspended: bool,
    pub scopes: Vec<String>,
    pub audiences: Vec<String>,
    pub allowed_cidrs: Vec<String>,
    pub owner: Option<Record>,
    pub require_owner: bool,
    pub required_owner_scope: Option<String>,
    pub basic_usernames: Vec<String>,
    pub tenant_suspended: bool,
}

/// An owner's record.
#[derive(Clone, Debug)]
pub struct Record {
    pub scopes: Vec<String>,
    pub audiences: Vec<String>,
    pub suspended: bool,
}

/// What is asked about the key, by one who presents its secret.
#[derive(Clone, Debug)]
pub struct ValidationRequest {
    pub now: i64,
    /// Whether it is asked for as a key of another tenant.
    pub elsewhere: bool,
    /// With HTTP Basic.
    pub username: Option<String>,
    pub required_scopes: Vec<String>,
    pub any_scopes: Vec<String>,
    pub audience: Option<String>,
    pub client_ip: Option<IpAddr>,
}

/// The reason that the contract gives, and which scopes are missing.
pub fn decide(world: &World, question: &ValidationRequest) -> (Reason, Vec<String>) {
    let reason = first_reason(world, question);
    let missing = match reason {
        Reason::InsufficientScope => missing(world, question),
        _ => Vec::new(),
    };
    (reason, missing)
}

fn first_reason(world: &World, question: &ValidationRequest) -> Reason {
    let owner = world.owner.as_ref();
    let unlisted = |name: &String| !world.basic_usernames.contains(name);
    let lacks = |scope: &String| owner.is_none_or(|owner| !any_grants(&owner.scopes, scope));
    if question.elsewhere || question.username.as_ref().is_some_and(unlisted) {
        return Reason::NotFound;
    }
    if world.revoked {
        return Reason::Revoked;
    }
    if world.expires_at.is_some_and(|at| question.now >= at) {
        return Reason::Expired;
    }
    if world.suspended {
        return Reason::Suspended;
    }
    if world.tenant_suspended {
        return Reason::TenantSuspended;
    }
    if owner.is_some_and(|owner| owner.suspended) {
        return Reason::OwnerSuspended;
    }
    if world.require_owner && owner.is_none() {
        return Reason::OwnerNotPermitted;
    }
    if world.required_owner_scope.as_ref().is_some_and(lacks) {
        return Reason::OwnerNotPermitted;
    }
    let limits = [Some(&world.audiences), owner.map(|owner| &owner.audiences)];
    for audiences in limits.into_iter().flatten() {
        let named = question.audience.as_ref();
        if !audiences.is_empty() && !named.is_some_and(|named| audiences.contains(named)) {
            return Reason::AudienceNotAllowed;
        }
    }
    if !world.allowed_cidrs.is_empty() {
        let Some(ip) = question.client_ip else {
            return Reason::IpNotAllowed;
        };
        if !world.allowed_cidrs.iter().any(|cidr| holds(cidr, ip)) {
            return Reason::IpNotAllowed;
        }
    }
    if missing(world, question).is_empty() {
        Reason::Allowed
    } else {
        Reason::InsufficientScope
    }
}

/// The scopes without which the question is denied: of `any_scopes` one is enough.
fn missing(world: &World, question: &ValidationRequest) -> Vec<String> {
    let mut missing = question.required_scopes.clone();
    missing.retain(|scope| !in_force(world, scope));
    if !question
        .any_scopes
        .iter()
        .any(|scope| in_force(world, scope))
    {
        missing.extend(question.any_scopes.clone());
    }
    missing
}

/// Whether the key and its owner, if it has a record, both grant this.
pub fn in_force(world: &World, scope: &str) -> bool {
    let owner = world.owner.as_ref();
    any_grants(&world.scopes, scope) && owner.is_none_or(|owner| any_grants(&owner.scopes, scope))
}

/// Whether one of the patterns grants the scope.
pub fn any_grants(patterns: &[String], scope: &str) -> bool {
    let wanted: Vec<_> = scope.split(':').collect();
    patterns.iter().any(|pattern| {
        let mut pattern: Vec<_> = pattern.split(':').collect();
        if pattern.last() == Some(&"*") {
            // It stands for one or more.
            while pattern.len() < wanted.len() {
                pattern.push("*");
            }
        }
        let mut pairs = pattern.iter().zip(&wanted);
        pattern.len() == wanted.len() && pairs.all(|(one, other)| *one == "*" || one == other)
    })
}

/// Whether the network holds the address, bit by bit.
fn holds(cidr: &str, ip: IpAddr) -> bool {
    let (network, length) = cidr.split_once('/').expect("a network has a length");
    let (network, length) = (
        bits(network.parse().expect("an address")),
        length.parse().expect("a length"),
    );
    let ip = bits(ip);
    network.len() == ip.len() && network[..length] == ip[..length]
}

/// The bits of an address; one of IPv4 within IPv6 counts as IPv4.
fn bits(ip: IpAddr) -> Vec<bool> {
    let bytes = match ip.to_canonical() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let bits = |byte: u8| (0..8).map(move |place| byte >> (7 - place) & 1 == 1);
    bytes.into_iter().flat_map(bits).collect()
}
