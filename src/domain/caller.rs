//! Who calls gatekey, and what they may do to which tenant.
//!
//! A caller's rights are scopes `<tenant>:<resource>:<action>`. What lies in a tenant in which a
//! caller has no right at all does not exist for that caller.

use super::{
    clock::Timestamp,
    scope::{Scope, Scopes},
    standing::Standing,
    token::KeyId,
};

/// The actor's name in the log when the admin token was used.
pub const ADMIN: &str = "admin";

/// Whether a name in a certificate can be an actor's in the log, and not be taken for another's.
#[must_use]
pub fn is_owner_name(name: &str) -> bool {
    name != ADMIN && KeyId::parse(name).is_none()
}

/// What a call does, as rights name it.
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
    /// `<resource>:<action>`
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

/// What a caller may do in one tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Right {
    /// The action is granted.
    Granted,
    /// Others are, this one is not.
    Forbidden,
    /// None is: the tenant does not exist for the caller.
    Blind,
}

/// The tenants in which an action is granted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TenantSet {
    All,
    These(Vec<String>),
}

/// What a caller is known by.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Principal {
    /// The admin token, or this program itself.
    Admin,
    /// A key of tenant `system`.
    Key(KeyId),
    /// A certificate: the owner of that name in tenant `system`.
    Owner(String),
}

/// One who calls, identified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    /// [`ADMIN`], the key_id of the credential used, or the name in the certificate used.
    pub actor: String,
    /// The rights in force.
    pub scopes: Scopes,
    /// What the caller is known by.
    pub principal: Principal,
    /// The W3C trace id of the call.
    pub trace_id: Option<String>,
}

impl Caller {
    /// One who may do everything.
    #[must_use]
    pub fn admin(actor: &str) -> Self {
        Self {
            actor: actor.to_owned(),
            scopes: Scope::parse("*").into_iter().collect(),
            principal: Principal::Admin,
            trace_id: None,
        }
    }

    /// The holder of a key of tenant `system`.
    #[must_use]
    pub fn holder(key_id: KeyId, standing: &Standing) -> Self {
        Self {
            actor: key_id.to_string(),
            scopes: standing.scope_set(),
            principal: Principal::Key(key_id),
            trace_id: None,
        }
    }

    /// An owner of tenant `system`, by a certificate with its name.
    #[must_use]
    pub fn owner(standing: &Standing) -> Self {
        let name = standing.owner_id().to_owned();
        Self {
            actor: name.clone(),
            scopes: standing.scope_set(),
            principal: Principal::Owner(name),
            trace_id: None,
        }
    }

    /// The same caller with the rights of now; `None` when the credential counts no more. Where
    /// and from where it is used was checked when the call came.
    #[must_use]
    pub fn renewed(&self, standing: &Standing, now: Timestamp) -> Option<Self> {
        if standing.barred(now).is_some() {
            return None;
        }
        Some(Self {
            scopes: standing.scope_set(),
            ..self.clone()
        })
    }

    /// What the caller may do in `tenant`.
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

    /// The tenants in which the action is granted. Empty: it is granted nowhere.
    #[must_use]
    pub fn tenants(&self, action: Action) -> TenantSet {
        let mut these = Vec::new();
        for tenant in self.scopes.iter().map(Scope::first_segment) {
            // No tenant is called `?`, so only a wildcard grants it there.
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

    /// Whether the action is granted in some tenant.
    #[must_use]
    pub fn may_somewhere(&self, action: Action) -> bool {
        self.tenants(action) != TenantSet::These(Vec::new())
    }

    /// Whether the caller holds all that `scopes` grant. In tenant `system` nobody can grant
    /// what they do not hold.
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
    }

    #[test]
    fn the_admin_may_do_everything() {
        let admin = Caller::admin(ADMIN);
        assert_eq!(admin.tenants(Action::TenantsWrite), TenantSet::All);
        assert_eq!(admin.right("system", Action::KeysCreate), Right::Granted);
        assert!(admin.holds(&caller(&["*", "a:*:b"]).scopes));
    }
}
