//! Callers of gatekey and their permissions in each tenant.
//!
//! Permissions are scopes `<tenant>:<resource>:<action>`. The contents of a tenant in which a
//! caller has no permission do not exist for that caller.

use super::{
    clock::Timestamp,
    key_policy::KeyPolicy,
    name::is_name,
    scope::{Scope, Scopes},
    token::KeyId,
};

/// The actor in the event log for requests with the admin token.
pub const ADMIN: &str = "admin";

/// Returns whether a name in a certificate can be an actor in the event log without ambiguity: an
/// owner of that name can exist, and no other actor has that name.
#[must_use]
pub fn is_owner_name(name: &str) -> bool {
    is_name(name) && name != ADMIN && KeyId::parse(name).is_none()
}

/// An operation, as permissions name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    KeysCreate,
    KeysGet,
    KeysList,
    KeysUpdate,
    KeysRotate,
    KeysRevoke,
    KeysValidate,
    KeysLookup,
    OwnersRead,
    OwnersWrite,
    TenantsRead,
    TenantsWrite,
    EventsRead,
}

impl Action {
    /// Returns `<resource>:<action>`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KeysCreate => "keys:create",
            Self::KeysGet => "keys:get",
            Self::KeysList => "keys:list",
            Self::KeysUpdate => "keys:update",
            Self::KeysRotate => "keys:rotate",
            Self::KeysRevoke => "keys:revoke",
            Self::KeysValidate => "keys:validate",
            Self::KeysLookup => "keys:lookup",
            Self::OwnersRead => "owners:read",
            Self::OwnersWrite => "owners:write",
            Self::TenantsRead => "tenants:read",
            Self::TenantsWrite => "tenants:write",
            Self::EventsRead => "events:read",
        }
    }
}

/// The permission of a caller for one action in one tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Right {
    /// The action is granted.
    Granted,
    /// Other actions in the tenant are granted, but not this one.
    Forbidden,
    /// No action in the tenant is granted: it does not exist for the caller.
    Blind,
}

/// The tenants in which an action is granted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TenantSet {
    All,
    These(Vec<String>),
}

/// The identity of a caller.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Principal {
    /// The admin token, or gatekey itself.
    Admin,
    /// A key of tenant `system`.
    Key(KeyId),
    /// A certificate: the owner of the same name in tenant `system`.
    Owner(String),
}

/// An authenticated caller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    /// [`ADMIN`], the key_id of the credential used, or the name in the certificate used.
    pub actor: String,
    /// The permissions in force.
    pub scopes: Scopes,
    pub principal: Principal,
    /// The W3C trace id of the request.
    pub trace_id: Option<String>,
}

impl Caller {
    /// Returns a caller with every permission.
    #[must_use]
    pub fn admin(actor: &str) -> Self {
        Self {
            actor: actor.to_owned(),
            scopes: Scope::parse("*").into_iter().collect(),
            principal: Principal::Admin,
            trace_id: None,
        }
    }

    /// Returns the caller that holds a key of tenant `system`.
    #[must_use]
    pub fn holder(key_id: KeyId, policy: &KeyPolicy) -> Self {
        Self {
            actor: key_id.to_string(),
            scopes: policy.scope_set(),
            principal: Principal::Key(key_id),
            trace_id: None,
        }
    }

    /// Returns the caller that is an owner of tenant `system`, by a certificate with its name.
    #[must_use]
    pub fn owner(policy: &KeyPolicy) -> Self {
        let name = policy.owner_id().to_owned();
        Self {
            actor: name.clone(),
            scopes: policy.scope_set(),
            principal: Principal::Owner(name),
            trace_id: None,
        }
    }

    /// Returns the same caller with its current permissions, or `None` if the credential is no
    /// longer valid. The audience and the client address are not checked again after the start of
    /// the request.
    #[must_use]
    pub fn renewed(&self, policy: &KeyPolicy, now: Timestamp) -> Option<Self> {
        if policy.barred(now).is_some() {
            return None;
        }
        Some(Self {
            scopes: policy.scope_set(),
            ..self.clone()
        })
    }

    /// Returns the caller's permission for `action` in `tenant`.
    #[must_use]
    pub fn right(&self, tenant: &str, action: Action) -> Right {
        if self.scopes.grants(&format!("{tenant}:{}", action.name())) {
            Right::Granted
        } else if self
            .scopes
            .iter()
            .any(|scope| ["*", tenant].contains(&scope.first_segment()))
        {
            Right::Forbidden
        } else {
            Right::Blind
        }
    }

    /// Returns the tenants in which the action is granted. An empty set means that it is granted in
    /// none.
    #[must_use]
    pub fn tenants(&self, action: Action) -> TenantSet {
        let mut these = Vec::new();
        for tenant in self.scopes.iter().map(Scope::first_segment) {
            // No tenant is named `?`, so only a wildcard grants the action there.
            let asked = if tenant == "*" { "?" } else { tenant };
            if self.right(asked, action) != Right::Granted {
                continue;
            }
            if tenant == "*" {
                return TenantSet::All;
            }
            these.push(tenant.to_owned());
        }
        these.sort();
        these.dedup();
        TenantSet::These(these)
    }

    /// Returns whether the action is granted in at least one tenant.
    #[must_use]
    pub fn may_somewhere(&self, action: Action) -> bool {
        self.tenants(action) != TenantSet::These(Vec::new())
    }

    /// Returns whether the caller holds every permission that `scopes` grant. In tenant `system` a
    /// caller can grant only permissions that it holds.
    #[must_use]
    pub fn holds(&self, scopes: &Scopes) -> bool {
        scopes.iter().all(|scope| self.scopes.covers(scope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(scopes: &[&str]) -> Caller {
        Caller {
            actor: "key_0".to_owned(),
            scopes: scopes
                .iter()
                .map(|text| Scope::parse(text).unwrap())
                .collect(),
            principal: Principal::Admin,
            trace_id: None,
        }
    }

    #[test]
    fn a_backend_may_validate_everywhere_and_do_nothing_else() {
        let backend = caller(&["*:keys:validate"]);
        assert_eq!(backend.right("acme", Action::KeysValidate), Right::Granted);
        assert_eq!(backend.right("acme", Action::KeysCreate), Right::Forbidden);
        assert_eq!(backend.tenants(Action::KeysValidate), TenantSet::All);
        assert!(!backend.may_somewhere(Action::KeysList));
    }

    #[test]
    fn a_tenants_admin_sees_that_tenant_alone() {
        let admin = caller(&["acme:*"]);
        assert_eq!(admin.right("acme", Action::KeysRevoke), Right::Granted);
        assert_eq!(admin.right("other", Action::KeysRevoke), Right::Blind);
        let acme = TenantSet::These(vec!["acme".to_owned()]);
        assert_eq!(admin.tenants(Action::EventsRead), acme);
        assert!(!admin.holds(&caller(&["*"]).scopes));
        assert!(admin.holds(&caller(&["acme:keys:*"]).scopes));
    }

    #[test]
    fn no_certificate_is_taken_for_the_admin_or_for_a_key() {
        assert!(is_owner_name("spiffe://example.org/orders"));
        assert!(is_owner_name("admin.example.org"));
        assert!(!is_owner_name("admin"));
        assert!(!is_owner_name("key_0123456789abcdef"));
        assert!(!is_owner_name("spiffe://example.org/orders\u{7}"));
        assert!(!is_owner_name(&"a".repeat(256)));
    }

    #[test]
    fn the_admin_may_do_everything() {
        let admin = Caller::admin(ADMIN);
        assert_eq!(admin.tenants(Action::TenantsWrite), TenantSet::All);
        assert_eq!(admin.right("system", Action::KeysCreate), Right::Granted);
        assert!(admin.holds(&caller(&["*", "a:*:b"]).scopes));
    }
}
