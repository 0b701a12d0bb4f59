//! Whatever key, owner, tenant and question: gatekey decides as a naive model of the contract does.

mod model;

use std::{collections::BTreeMap, net::IpAddr};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use gatekey::{
    api::proto::{CreateKeyRequest, Key, Owner, Reason, Tenant, ValidateRequest, ValidateResponse},
    domain::{
        clock::Timestamp,
        key::{Grant, HASH_VERSION, Key as DomainKey, Revocation},
        key_policy::{AccessRequest, DenyReason, KeyPolicy},
        owner::Owner as DomainOwner,
        scope::{Scope, Scopes},
        tenant::Tenant as DomainTenant,
        token::KeyId,
    },
};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::select,
    test_runner::{TestCaseResult, TestRunner},
};
use tokio::{runtime::Handle, task::block_in_place};

use self::model::{Record, ValidationRequest, World, any_grants, decide, in_force};
use crate::{
    contract_keys::update,
    contract_rotation::{rotate, rotation},
    support::{
        Client,
        client::{ask, ask_header, new_key},
        on_both_engines,
    },
};

/// When the key expires, if it does; questions come before, at and after it.
const END: i64 = 1_000;
const TENANT: &str = "acme";

/// Few names, so that what is asked for is often there.
fn pattern() -> impl Strategy<Value = String> {
    "(a|b|\\*)(:(a|b|\\*)){0,2}"
}

fn concrete() -> impl Strategy<Value = String> {
    "(a|b)(:(a|b)){0,3}"
}

fn audience() -> impl Strategy<Value = String> {
    select(vec!["web", "odata"]).prop_map(str::to_owned)
}

fn username() -> impl Strategy<Value = String> {
    select(vec!["FeedKey", "Account Key"]).prop_map(str::to_owned)
}

fn cidr() -> impl Strategy<Value = String> {
    let cidrs = vec![
        "10.0.0.0/24",
        "10.0.0.0/23",
        "10.0.1.1/32",
        "0.0.0.0/0",
        "2001:db8::/33",
        "::/0",
    ];
    select(cidrs).prop_map(str::to_owned)
}

fn address() -> impl Strategy<Value = IpAddr> {
    let addresses = vec![
        "10.0.0.1",
        "10.0.1.1",
        "192.0.2.1",
        "::ffff:10.0.0.1",
        "2001:db8::1",
        "2001:db8:8000::1",
    ];
    select(addresses).prop_map(|text| text.parse().expect("an address"))
}

fn rarely() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.15)
}

prop_compose! {
    fn record()(
        scopes in vec(pattern(), 0..4),
        audiences in vec(audience(), 0..2),
        suspended in rarely(),
    ) -> Record {
        Record { scopes, audiences, suspended }
    }
}

prop_compose! {
    fn world()(
        (revoked, expires, suspended) in (rarely(), rarely(), rarely()),
        scopes in vec(pattern(), 1..4),
        audiences in vec(audience(), 0..2),
        allowed_cidrs in vec(cidr(), 0..3),
        owner in option::of(record()),
        require_owner in rarely(),
        required_owner_scope in option::weighted(0.2, concrete()),
        basic_usernames in vec(username(), 0..3),
        tenant_suspended in rarely(),
    ) -> World {
        World {
            revoked, expires_at: expires.then_some(END), suspended, scopes, audiences, allowed_cidrs,
            owner, require_owner, required_owner_scope, basic_usernames, tenant_suspended,
        }
    }
}

prop_compose! {
    fn question()(
        now in END - 1..=END + 1,
        elsewhere in rarely(),
        username in option::weighted(0.3, username()),
        required_scopes in vec(concrete(), 0..3),
        any_scopes in vec(concrete(), 0..3),
        audience in option::of(audience()),
        client_ip in option::of(address()),
    ) -> ValidationRequest {
        ValidationRequest { now, elsewhere, username, required_scopes, any_scopes, audience, client_ip }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a_standing_decides_as_the_model_does(world in world(), question in question()) {
        let policy = KeyPolicy::of(&grant(&world));
        let named = question.username.as_ref().is_none_or(|name| policy.knows_username(name));
        let decided = if named && !question.elsewhere {
            let ask = AccessRequest {
                required_scopes: &question.required_scopes,
                any_scopes: &question.any_scopes,
                audience: question.audience.as_deref(),
                client_ip: question.client_ip.map(|ip| ip.to_canonical()),
            };
            told(policy.decide(Timestamp::from_micros(question.now), &ask))
        } else {
            (Reason::NotFound, Vec::new())
        };
        prop_assert_eq!(decided, decide(&world, &question));
    }

    #[test]
    fn the_scopes_that_are_told_grant_what_is_in_force(world in world(), scope in concrete()) {
        let policy = KeyPolicy::of(&grant(&world));
        let told: Vec<_> = policy.scopes().map(str::to_owned).collect();
        prop_assert_eq!(any_grants(&told, &scope), in_force(&world, &scope));
    }
}

on_both_engines! {
    async fn validate_decides_as_the_model_does_after_every_change(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let recorded = Keys::issue(&admin, "alice").await;
        let without_record = Keys::issue(&admin, "nobody").await;
        let config = ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() };
        let cases = (world(), vec(question(), 8));
        let proved = block_in_place(|| {
            TestRunner::new(config).run(&cases, |(world, questions)| {
                let keys = if world.owner.is_some() { &recorded } else { &without_record };
                Handle::current().block_on(keys.prove(world, &questions))
            })
        });
        proved.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// An owner's keys: one in each state that it cannot leave, and one that changes.
struct Keys {
    admin: Client,
    living: (Key, String),
    expired: (Key, String),
    revoked: (Key, String),
}

impl Keys {
    async fn issue(admin: &Client, owner: &str) -> Self {
        let tenant = Tenant {
            tenant_id: TENANT.to_owned(),
            ..Tenant::default()
        };
        admin.set_tenant(tenant).await;
        let new = CreateKeyRequest {
            owner_id: owner.to_owned(),
            ..new_key(TENANT, &["*"])
        };
        let keys = Self {
            living: admin.create(new.clone()).await,
            expired: admin.create(new.clone()).await,
            revoked: admin.create(new).await,
            admin: admin.clone(),
        };
        // Without an overlap it ends at once.
        let rotated = rotate(admin, rotation(&keys.expired.0)).await;
        rotated.expect("it has a successor");
        admin.revoke(&keys.revoked.0, "").await;
        keys
    }

    /// Makes the world so, and asks.
    async fn prove(&self, mut world: World, questions: &[ValidationRequest]) -> TestCaseResult {
        let (key, plaintext) = if world.revoked {
            &self.revoked
        } else if world.expires_at.is_some() {
            &self.expired
        } else {
            &self.living
        };
        if !world.revoked {
            let changed = Key {
                suspended: Some(world.suspended),
                scopes: world.scopes.clone(),
                audiences: world.audiences.clone(),
                allowed_cidrs: world.allowed_cidrs.clone(),
                revision: 0,
                ..key.clone()
            };
            let paths = ["suspended", "scopes", "audiences", "allowed_cidrs"];
            update(&self.admin, changed, &paths)
                .await
                .expect("it is changed");
        }
        self.put(&world).await;
        // It is over for all questions.
        world.expires_at = world.expires_at.map(|_| i64::MIN);
        for question in questions {
            let answer = self.admin.validate(request(plaintext, question)).await;
            let missing = answer.missing_scopes.clone();
            let decided = (answer.reason(), missing);
            prop_assert_eq!(decided, decide(&world, question), "{:?}", question);
            assert_told(&answer, key);
        }
        Ok(())
    }

    /// Puts the owner and the tenant.
    async fn put(&self, world: &World) {
        if let Some(record) = &world.owner {
            let owner = Owner {
                tenant_id: TENANT.to_owned(),
                owner_id: self.living.0.owner_id.clone(),
                scopes: record.scopes.clone(),
                audiences: record.audiences.clone(),
                suspended: Some(record.suspended),
                ..Owner::default()
            };
            self.admin.set_owner(owner).await;
        }
        let tenant = Tenant {
            tenant_id: TENANT.to_owned(),
            require_owner: world.require_owner,
            required_owner_scope: world.required_owner_scope.clone().unwrap_or_default(),
            basic_usernames: world.basic_usernames.clone(),
            suspended: Some(world.tenant_suspended),
            ..Tenant::default()
        };
        self.admin.set_tenant(tenant).await;
    }
}

/// Who the key is is told unless it is as if there were none.
fn assert_told(answer: &ValidateResponse, key: &Key) {
    let known = if answer.reason() == Reason::NotFound {
        ""
    } else {
        &key.key_id
    };
    assert_eq!(answer.key_id, known, "{answer:?}");
}

fn request(plaintext: &str, question: &ValidationRequest) -> ValidateRequest {
    let credential = match &question.username {
        None => ask(plaintext).credential,
        Some(name) => {
            let pair = BASE64_STANDARD.encode(format!("{name}:{plaintext}"));
            ask_header(&format!("Basic {pair}")).credential
        }
    };
    let tenant = if question.elsewhere {
        "default"
    } else {
        TENANT
    };
    ValidateRequest {
        credential,
        tenant_id: tenant.to_owned(),
        required_scopes: question.required_scopes.clone(),
        any_scopes: question.any_scopes.clone(),
        audience: question.audience.clone().unwrap_or_default(),
        client_ip: question
            .client_ip
            .map(|ip| ip.to_string())
            .unwrap_or_default(),
    }
}

fn told(decided: Result<(), DenyReason>) -> (Reason, Vec<String>) {
    let reason = match decided {
        Ok(()) => Reason::Allowed,
        Err(DenyReason::Revoked) => Reason::Revoked,
        Err(DenyReason::Expired) => Reason::Expired,
        Err(DenyReason::Suspended) => Reason::Suspended,
        Err(DenyReason::TenantSuspended) => Reason::TenantSuspended,
        Err(DenyReason::OwnerSuspended) => Reason::OwnerSuspended,
        Err(DenyReason::OwnerNotPermitted) => Reason::OwnerNotPermitted,
        Err(DenyReason::AudienceNotAllowed) => Reason::AudienceNotAllowed,
        Err(DenyReason::IpNotAllowed) => Reason::IpNotAllowed,
        Err(DenyReason::InsufficientScope(missing)) => return (Reason::InsufficientScope, missing),
    };
    (reason, Vec::new())
}

fn scopes(texts: &[String]) -> Scopes {
    texts
        .iter()
        .map(|text| Scope::parse(text).expect("a scope"))
        .collect()
}

fn grant(world: &World) -> Grant {
    let nobody = Revocation {
        at: Timestamp::from_micros(1),
        by: String::new(),
        reason: String::new(),
    };
    Grant {
        key: DomainKey {
            key_id: KeyId::from_bare("0123456789abcdef").expect("an id"),
            tenant_id: TENANT.to_owned(),
            owner_id: "alice".to_owned(),
            label: String::new(),
            description: String::new(),
            prefix: "gk".to_owned(),
            scopes: scopes(&world.scopes),
            audiences: world.audiences.clone(),
            allowed_cidrs: world
                .allowed_cidrs
                .iter()
                .map(|cidr| cidr.parse().expect("a network"))
                .collect(),
            metadata: BTreeMap::new(),
            suspended: world.suspended,
            created_at: Timestamp::from_micros(0),
            created_by: String::new(),
            expires_at: world.expires_at.map(Timestamp::from_micros),
            revoked: world.revoked.then_some(nobody),
            rotated_from: None,
            rotated_to: None,
            last_used: None,
            hash_version: HASH_VERSION.to_owned(),
            created_revision: 1,
            revision: 1,
            unreadable: false,
        },
        owner: world.owner.as_ref().map(|record| DomainOwner {
            tenant_id: TENANT.to_owned(),
            owner_id: "alice".to_owned(),
            scopes: scopes(&record.scopes),
            audiences: record.audiences.clone(),
            suspended: record.suspended,
            display_name: String::new(),
            revision: 1,
            unreadable: false,
        }),
        tenant: DomainTenant {
            tenant_id: TENANT.to_owned(),
            require_owner: world.require_owner,
            required_owner_scope: world
                .required_owner_scope
                .as_ref()
                .map(|scope| Scope::parse(scope).expect("a scope")),
            basic_usernames: world.basic_usernames.clone(),
            suspended: world.tenant_suspended,
            ..DomainTenant::default()
        },
    }
}
