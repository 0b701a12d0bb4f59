//! An unknown id, a wrong secret and another tenant's key are told apart neither by the answer nor
//! by the hash operations that it takes.
//!
//! Hash operations are counted, because a count is the same on every machine. The time is not
//! promised to be the same: the look-up may differ (a known key can be in the cache, an unknown id
//! is always read from the database), and so may the wait for Argon2 while it is busy.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use gatekey::{
    api::proto::{Reason, ValidateRequest, validate_request},
    domain::{
        caller::{ADMIN, Caller},
        clock::SystemClock,
        credential::Credential,
        key_policy::AccessRequest,
        scope::Scope,
        tenant::Tenant,
    },
    service::{
        cache::Cache,
        context::CallContext,
        failpoint::Failpoints,
        keyring::{Issued, Keyring, NewKey},
        secret::{HashCost, Peppers, Secrets, Work, pepper_migration::PepperMigration},
        validator::{Decision, ValidationRequest, Validator},
    },
    store::{self, Store},
};
use prost::Message as _;

use crate::support::{
    Setup,
    client::{ask, new_key},
    on_both_engines,
};

on_both_engines! {
    async fn an_unknown_id_a_wrong_secret_and_another_tenants_key_get_the_same_bytes(setup: Setup) {
        assert_one_answer(&setup).await;
    }

    async fn without_a_pepper_they_get_the_same_bytes_too(setup: Setup) {
        assert_one_answer(&setup.env("GATEKEY_PEPPER_FILE", "none")).await;
    }

    async fn an_unknown_id_a_wrong_secret_and_another_tenants_key_take_one_mac_each(setup: Setup) {
        let peppers = Peppers::parse(&Peppers::generate()).expect("what is generated can be read");
        let one_mac = Work { macs: 1, argon2: 0 };
        assert_same_hash_work(&setup, peppers, one_mac).await;
    }

    async fn without_a_pepper_they_take_one_mac_and_one_argon2_each(setup: Setup) {
        let one_of_each = Work { macs: 1, argon2: 1 };
        assert_same_hash_work(&setup, Peppers::none(), one_of_each).await;
    }
}

/// A key that was never issued, well formed and with the right checksum.
pub fn unknown() -> String {
    let body: String = rand::random::<[u8; 16 + 43]>()
        .map(|byte| char::from(DIGITS[usize::from(byte) % DIGITS.len()]))
        .iter()
        .collect();
    summed(&format!("gk_{body}"))
}

/// The same id with another secret and the right checksum.
pub fn with_another_secret(plaintext: &str) -> String {
    let secret = plaintext.len() - 43 - 6;
    let first = if plaintext[secret..].starts_with('x') {
        "y"
    } else {
        "x"
    };
    let rest = &plaintext[secret + 1..plaintext.len() - 6];
    let forged = summed(&format!("{}{first}{rest}", &plaintext[..secret]));
    assert_ne!(forged, plaintext);
    forged
}

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The text and its checksum, as the contract has it: CRC-32 in six digits of base62.
fn summed(text: &str) -> String {
    let crc = crc32fast::hash(text.as_bytes()) as usize;
    let digit = |place| char::from(DIGITS[crc / 62_usize.pow(place) % 62]);
    let sum: String = (0..6).rev().map(digit).collect();
    format!("{text}{sum}")
}

#[test]
fn the_checksum_made_here_is_the_one_of_the_contract() {
    // CRC-32("123456789") = 0xCBF43926, the check value of every CRC catalogue.
    assert_eq!(summed("123456789"), "1234567893jZRME");
}

/// Asks a server about each, through the port.
async fn assert_one_answer(setup: &Setup) {
    let server = setup.start().await;
    let admin = server.admin().await;
    for tenant_id in ["acme", "beta"] {
        admin
            .set_tenant(gatekey::api::proto::Tenant {
                tenant_id: tenant_id.to_owned(),
                basic_usernames: vec!["listed".to_owned()],
                ..Default::default()
            })
            .await;
    }
    let (_, ours) = admin.issue("acme", &["jobs:read"]).await;
    let (_, theirs) = admin.issue("beta", &["jobs:read"]).await;
    let (revoked, ours_revoked) = admin.create(new_key("acme", &["jobs:read"])).await;
    let (lost, theirs_revoked) = admin.create(new_key("beta", &["jobs:read"])).await;
    admin.revoke(&revoked, "").await;
    admin.revoke(&lost, "").await;

    let in_acme = |credential| ValidateRequest {
        tenant_id: "acme".to_owned(),
        credential: Some(credential),
        ..ValidateRequest::default()
    };
    let bare = |text: &str| in_acme(validate_request::Credential::Key(text.to_owned()));
    let basic = |user: &str, key: &str| {
        use base64::prelude::{BASE64_STANDARD, Engine as _};
        let pair = BASE64_STANDARD.encode(format!("{user}:{key}"));
        in_acme(validate_request::Credential::Authorization(format!(
            "Basic {pair}"
        )))
    };

    // What is asked is right but for the one thing: else all would be alike for another reason.
    let good = admin.validate(bare(&ours)).await;
    assert_eq!(good.reason(), Reason::Allowed);
    let good = admin.validate(basic("listed", &ours)).await;
    assert_eq!(good.reason(), Reason::Allowed);
    assert_eq!(admin.reason(&theirs).await, Reason::Allowed);
    assert_eq!(admin.reason(&theirs_revoked).await, Reason::Revoked);

    let reference = admin.validate(bare(&unknown())).await;
    assert_eq!(reference.reason(), Reason::NotFound);
    let reference = reference.encode_to_vec();
    for (what, question) in [
        ("another unknown id", bare(&unknown())),
        ("a wrong secret", bare(&with_another_secret(&ours))),
        (
            "a wrong secret of a revoked key",
            bare(&with_another_secret(&ours_revoked)),
        ),
        (
            "a wrong secret of another tenant's key",
            bare(&with_another_secret(&theirs)),
        ),
        ("another tenant's key", bare(&theirs)),
        ("another tenant's revoked key", bare(&theirs_revoked)),
        ("a user name not listed", basic("unlisted", &ours)),
        (
            "another tenant's key with a listed name",
            basic("listed", &theirs),
        ),
        (
            "an unknown id with a listed name",
            basic("listed", &unknown()),
        ),
        (
            "a tenant that does not exist",
            ValidateRequest {
                tenant_id: "gamma".to_owned(),
                ..ask(&ours)
            },
        ),
    ] {
        let answer = admin.validate(question).await;
        assert_eq!(answer.encode_to_vec(), reference, "{what}: {answer:?}");
    }
}

/// Asks a validator in this process about each, and counts what it hashes.
async fn assert_same_hash_work(setup: &Setup, peppers: Peppers, expected: Work) {
    let app = App::open(setup.database_url(), peppers).await;
    let ours = app.issue("acme").await;
    let theirs = app.issue("beta").await;
    let revoked = app.issue("acme").await;
    let admin = CallContext::patient(Caller::admin(ADMIN));
    app.keyring
        .revoke(&admin, Some("acme"), revoked.key.key_id, String::new())
        .await
        .expect("the key is revoked");

    let (ours, theirs) = (ours.plaintext.expose(), theirs.plaintext.expose());
    for (what, presented) in [
        ("an unknown id", unknown()),
        ("a wrong secret", with_another_secret(ours)),
        (
            "a wrong secret of a revoked key",
            with_another_secret(revoked.plaintext.expose()),
        ),
        ("another tenant's key", theirs.to_owned()),
        (
            "a wrong secret of another tenant's key",
            with_another_secret(theirs),
        ),
    ] {
        let (decision, work) = app.validate_in_acme(presented).await;
        assert!(
            matches!(decision, Decision::NotFound),
            "{what}: {decision:?}"
        );
        assert_eq!(work, expected, "{what}");
    }
    // A right secret takes the same hash operations, too.
    let (decision, work) = app.validate_in_acme(ours.to_owned()).await;
    assert!(matches!(decision, Decision::Allowed(_)), "{decision:?}");
    assert_eq!(work, expected);
    app.store.close().await;
}

/// The rooms that a server has, over a real store, without its doors.
struct App {
    store: Arc<dyn Store>,
    secrets: Arc<Secrets>,
    keyring: Keyring,
    validator: Validator,
}

impl App {
    async fn open(url: &str, peppers: Peppers) -> Self {
        let store = store::open(url).await.expect("the store opens");
        let secrets = Arc::new(Secrets::new(peppers, HashCost::default()));
        let clock = Arc::new(SystemClock);
        let pepper_migration = PepperMigration::start(Arc::clone(&store), &secrets, clock.clone());
        let cache = Arc::new(Cache::new(100, Failpoints::NONE));
        // There is nobody beside it.
        cache.clear(0);
        cache.lease().grant(Duration::MAX);
        let keyring = Keyring::new(
            Arc::clone(&store),
            Arc::clone(&secrets),
            Arc::clone(&cache),
            clock.clone(),
        );
        for tenant_id in ["acme", "beta"] {
            let tenant = Tenant {
                tenant_id: tenant_id.to_owned(),
                ..Tenant::default()
            };
            let admin = CallContext::patient(Caller::admin(ADMIN));
            let put = keyring.create_tenant(&admin, tenant).await;
            put.expect("the tenant is created");
        }
        Self {
            validator: Validator::new(
                Arc::clone(&store),
                Arc::clone(&secrets),
                cache,
                clock,
                pepper_migration,
            ),
            store,
            secrets,
            keyring,
        }
    }

    async fn issue(&self, tenant: &str) -> Issued {
        let new = NewKey {
            tenant_id: tenant.to_owned(),
            owner_id: "alice".to_owned(),
            label: "a key".to_owned(),
            description: String::new(),
            scopes: Scope::parse("jobs:read").into_iter().collect(),
            audiences: Vec::new(),
            allowed_cidrs: Vec::new(),
            metadata: BTreeMap::new(),
            lifetime: None,
            request_id: None,
        };
        let admin = CallContext::patient(Caller::admin(ADMIN));
        let issued = self.keyring.create(&admin, new).await;
        issued.expect("the key is issued")
    }

    /// What is decided about a key that must be of tenant `acme`, and the hashing it took.
    async fn validate_in_acme(&self, presented: String) -> (Decision, Work) {
        let credential = Credential::key(presented);
        let question = ValidationRequest {
            credential: &credential,
            in_view: &|tenant| tenant == "acme",
            ask: AccessRequest::default(),
        };
        let before = self.secrets.work();
        let decision = self.validator.validate(&question).await;
        let after = self.secrets.work();
        let work = Work {
            macs: after.macs - before.macs,
            argon2: after.argon2 - before.argon2,
        };
        (decision.expect("a decision"), work)
    }
}
