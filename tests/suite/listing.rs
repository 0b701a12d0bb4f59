//! Lists by pages: every key once, newest first, whatever the page size and whatever is created
//! meanwhile.

use std::collections::{BTreeMap, HashSet};

use gatekey::api::proto::{
    CreateKeyRequest, CreateTenantRequest, Key, KeyState, ListKeysRequest, Tenant,
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use tonic::Code;

use crate::{
    inside::Inside,
    support::{Client, on_both_engines},
};

const TENANT: &str = "default";
pub const MANY: usize = 10_000;
/// More than there are cores: while some keys are hashed, others are being committed.
const CREATORS: usize = 16;

on_both_engines! {
    async fn among_many_keys_each_filter_lets_its_keys_through_and_no_page_looks_at_all(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let mut inside = Inside::of(&setup).await;
        inside.run(STORE).await;
        inside.run(USE).await;
        inside.run("UPDATE log_head SET revision = 45000").await;
        for (request, lets_through) in filters() {
            let (mut numbers, mut pages, mut page_token) = (Vec::new(), 0, String::new());
            loop {
                let request = ListKeysRequest { page_size: 1000, page_token, ..request.clone() };
                let page = admin.keys.clone().list_keys(request).await.expect("a page").into_inner();
                pages += 1;
                numbers.extend(page.keys.iter().map(|key| key.revision));
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            let expected: Vec<_> = (1..=STORED).rev().filter(|n| lets_through(*n)).collect();
            assert!(numbers == expected, "{request:?}: {} of {}", numbers.len(), expected.len());
            assert!(pages <= expected.len() / 1000 + 5, "{request:?}: {pages} pages");
            if request.label_contains == "nowhere" {
                assert_eq!(pages, 5, "each looked at some of the keys");
            }
        }
    }

    async fn a_list_without_a_tenant_has_the_keys_of_all_tenants_that_the_caller_may_list(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let mut created = Vec::new();
        for tenant in ["acme", "blue", "coral", "acme", "blue"] {
            let request = CreateTenantRequest {
                tenant: Some(Tenant { tenant_id: tenant.to_owned(), ..Tenant::default() }),
            };
            // The second time the tenant is there already.
            let _ = admin.tenants.clone().create_tenant(request).await;
            created.push(admin.issue(tenant, &["jobs:read"]).await.0);
        }
        created.reverse();
        let (all, _) = list(&admin, "", 0, String::new()).await;
        assert_eq!(all, created, "for the administrator");
        let (_, plaintext) = admin.issue("system", &["acme:keys:list", "coral:keys:list", "blue:keys:get"]).await;
        let narrow = server.client(Some(&plaintext)).await;
        created.retain(|key| key.tenant_id != "blue");
        let listed = pages(&narrow, "", 1).await.concat();
        assert_eq!(listed, created, "for a caller with two tenants");
        let (_, plaintext) = admin.issue("system", &["blue:keys:get"]).await;
        let blind = server.client(Some(&plaintext)).await;
        let refused = blind.keys.clone().list_keys(ListKeysRequest::default()).await;
        assert_eq!(refused.map(|_| ()).unwrap_err().code(), Code::PermissionDenied);
    }

    async fn a_key_prefix_that_no_key_can_have_is_refused_and_not_repeated(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (_, plaintext) = admin.issue(TENANT, &["jobs:read"]).await;
        for (text, advice) in [("gk", "such as gk_"), ("gk_1-2", "such as gk_"), (plaintext.as_str(), "LookupKey")] {
            let request = ListKeysRequest { key_prefix: text.to_owned(), ..ListKeysRequest::default() };
            let refused = admin.keys.clone().list_keys(request).await.expect_err("it is refused");
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().contains(advice), "{}", refused.message());
            assert!(!format!("{refused:?}").contains(&plaintext), "the key is repeated");
        }
    }

    async fn pages_of_every_size_give_the_same_list(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let mut created = Vec::new();
        for _ in 0..20 {
            created.push(admin.issue(TENANT, &["jobs:read"]).await.0);
        }
        created.reverse();
        let (whole, next) = list(&admin, TENANT, 0, String::new()).await;
        assert_eq!(whole, created, "newest first");
        assert_eq!(next, "");
        for size in 1..=7 {
            let pages = pages(&admin, TENANT, size).await;
            let (last, full) = pages.split_last().expect("a page");
            let size = usize::try_from(size).expect("a size");
            assert!(
                full.iter().all(|page| page.len() == size),
                "pages of {size}"
            );
            assert!((1..=size).contains(&last.len()), "pages of {size}");
            assert_eq!(pages.concat(), created, "pages of {size}");
        }
    }
}

/// How many keys are written past gatekey: pages are looked for in 10 000 at a time.
const STORED: i64 = 45_000;
/// The key of number n has the label `key n`; some expire, some are suspended, some revoked.
const STORE: &str = "INSERT INTO keys (key_id, tenant_id, owner_id, label, description, prefix, scopes, \
    audiences, allowed_cidrs, metadata, suspended, created_at, created_by, expires_at, revoked_at, hash_version, \
    secret_phc, created_revision, revision) \
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 45000) \
    SELECT CAST(1000000000000000 + n AS TEXT), 'default', CASE WHEN n % 15000 = 3 THEN 'rare' ELSE 'usual' END, \
    'key ' || n, '', 'gk', '[\"a\"]', '[]', '[]', '{}', n IN (9, 20000, 40000), 0, 'admin', \
    CASE WHEN n % 9000 = 5 THEN 1000 + n WHEN n % 2 = 0 THEN 4000000000000000 + n END, \
    CASE WHEN n % 9000 = 7 THEN 5 END, 'v1', '', n, n FROM numbers";

const USE: &str = "INSERT INTO key_usage (key_id, last_used_at, uses) \
    SELECT key_id, created_revision * 1000000, 1 FROM keys WHERE created_revision % 10 = 0";

/// What the statement above says of the key of this number.
fn is(state: KeyState, n: i64) -> bool {
    let (revoked, expired) = (n % 9000 == 7, n % 9000 == 5);
    let suspended = [9, 20_000, 40_000].contains(&n);
    match state {
        KeyState::Revoked => revoked,
        KeyState::Expired => expired,
        KeyState::Suspended => suspended,
        _ => !(revoked || expired || suspended),
    }
}

/// A filter, and of which numbers the keys are that it lets through.
type Filter = (ListKeysRequest, fn(i64) -> bool);

fn filters() -> Vec<Filter> {
    let mut filters = filters_of_one_tenant();
    filters.extend(filters_by_tenant_prefix_and_use());
    filters
}

/// A list of all keys of the tenant.
fn all() -> ListKeysRequest {
    ListKeysRequest {
        tenant_id: TENANT.to_owned(),
        ..ListKeysRequest::default()
    }
}

fn states(states: &[KeyState]) -> ListKeysRequest {
    ListKeysRequest {
        states: states.iter().map(|state| (*state).into()).collect(),
        ..all()
    }
}

fn label(part: &str) -> ListKeysRequest {
    ListKeysRequest {
        label_contains: part.to_owned(),
        ..all()
    }
}

fn filters_of_one_tenant() -> Vec<Filter> {
    let all = all();
    let ending = |micros: i32| ListKeysRequest {
        expires_before: Some(prost_types::Timestamp {
            seconds: 4_000_000_000,
            nanos: micros * 1000,
        }),
        ..all.clone()
    };
    vec![
        (all.clone(), |_| true),
        (states(&[KeyState::Active]), |n| is(KeyState::Active, n)),
        (states(&[KeyState::Suspended]), |n| {
            is(KeyState::Suspended, n)
        }),
        (states(&[KeyState::Expired]), |n| is(KeyState::Expired, n)),
        (states(&[KeyState::Revoked]), |n| is(KeyState::Revoked, n)),
        (states(&[KeyState::Suspended, KeyState::Expired]), |n| {
            is(KeyState::Suspended, n) || is(KeyState::Expired, n)
        }),
        (label("nowhere"), |_| false),
        (label("key 4999"), |n| n == 4999 || n / 10 == 4999),
        (label("99"), |n| n.to_string().contains("99")),
        (ending(0), |n| n % 9000 == 5),
        // So few that they are found by their end …
        (ending(1001), |n| n % 9000 == 5 || n % 2 == 0 && n <= 1000),
        // … and so many that they are not, none of them among the newest.
        (ending(20_001), |n| {
            n % 9000 == 5 || n % 2 == 0 && n <= 20_000
        }),
        (
            ListKeysRequest {
                states: vec![KeyState::Suspended.into()],
                ..ending(20_001)
            },
            |n| n == 20_000,
        ),
        (
            ListKeysRequest {
                owner_id: "rare".to_owned(),
                ..label("3")
            },
            |n| n % 15_000 == 3,
        ),
        (
            ListKeysRequest {
                owner_id: "usual".to_owned(),
                states: vec![KeyState::Active.into()],
                ..label("000")
            },
            |n| n.to_string().contains("000") && is(KeyState::Active, n) && n % 15_000 != 3,
        ),
    ]
}

fn filters_by_tenant_prefix_and_use() -> Vec<Filter> {
    let all = all();
    let everywhere = |request: ListKeysRequest| ListKeysRequest {
        tenant_id: String::new(),
        ..request
    };
    let prefix = |text: &str| ListKeysRequest {
        key_prefix: text.to_owned(),
        ..all.clone()
    };
    let unused_since = |seconds: i64| ListKeysRequest {
        last_used_before: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        ..all.clone()
    };
    vec![
        (everywhere(all.clone()), |_| true),
        (everywhere(states(&[KeyState::Revoked])), |n| {
            is(KeyState::Revoked, n)
        }),
        (everywhere(label("key 4999")), |n| {
            n == 4999 || n / 10 == 4999
        }),
        (
            ListKeysRequest {
                owner_id: "rare".to_owned(),
                ..everywhere(all.clone())
            },
            |n| n % 15_000 == 3,
        ),
        (prefix("gk_"), |_| true),
        (prefix("other_"), |_| false),
        (prefix("gk_1"), |_| true),
        (prefix("gk_2"), |_| false),
        (prefix("gk_100000000004"), |n| n >= 40_000),
        (everywhere(prefix("gk_1000000000040000")), |n| n == 40_000),
        (
            ListKeysRequest {
                states: vec![KeyState::Suspended.into()],
                ..prefix("gk_100000000004")
            },
            |n| n == 40_000,
        ),
        // Every tenth key was used, at its number in seconds.
        (unused_since(1), |n| n % 10 != 0),
        (unused_since(40_001), |n| n % 10 != 0 || n <= 40_000),
        (everywhere(unused_since(40_001)), |n| {
            n % 10 != 0 || n <= 40_000
        }),
    ]
}

/// All pages of a list, of this size.
async fn pages(admin: &Client, tenant: &str, page_size: i32) -> Vec<Vec<Key>> {
    let mut pages = Vec::new();
    let mut page_token = String::new();
    loop {
        let (page, next) = list(admin, tenant, page_size, page_token).await;
        pages.push(page);
        if next.is_empty() {
            return pages;
        }
        page_token = next;
    }
}

/// One page of a tenant's keys, and the token of the next.
pub async fn list(
    admin: &Client,
    tenant: &str,
    page_size: i32,
    page_token: String,
) -> (Vec<Key>, String) {
    let request = ListKeysRequest {
        tenant_id: tenant.to_owned(),
        page_size,
        page_token,
        ..ListKeysRequest::default()
    };
    let answer = admin.keys.clone().list_keys(request).await;
    let answer = answer.expect("a page").into_inner();
    (answer.keys, answer.next_page_token)
}

/// A key that was made.
pub struct Made {
    pub key_id: String,
    pub plaintext: String,
}

/// As many new keys as asked for, by the revisions that created them.
pub async fn create_many(admin: &Client, request: &CreateKeyRequest) -> BTreeMap<i64, Made> {
    let mut creators = JoinSet::new();
    for _ in 0..CREATORS {
        let (admin, request) = (admin.clone(), request.clone());
        creators.spawn(async move {
            let mut created = Vec::new();
            for _ in 0..MANY / CREATORS {
                let (key, plaintext) = admin.create(request.clone()).await;
                let key_id = key.key_id;
                created.push((key.revision, Made { key_id, plaintext }));
            }
            created
        });
    }
    creators.join_all().await.into_iter().flatten().collect()
}

/// Another administrator, who goes on creating keys until it is stopped.
pub struct Others {
    /// How many it has created.
    count: watch::Receiver<usize>,
    /// Ends with the ids of what it has created, when nobody counts any more.
    creator: JoinHandle<HashSet<String>>,
}

impl Others {
    pub fn start(admin: Client, request: CreateKeyRequest) -> Self {
        let (counter, count) = watch::channel(0);
        let creator = tokio::spawn(async move {
            let mut created = HashSet::new();
            while !counter.is_closed() {
                let (key, _) = admin.create(request.clone()).await;
                created.insert(key.key_id);
                counter.send_replace(created.len());
            }
            created
        });
        Self { count, creator }
    }

    /// Waits until it has created another key.
    pub async fn one_more(&mut self) {
        self.count.mark_unchanged();
        self.count.changed().await.expect("it goes on creating");
    }

    /// Stops it, and gives the ids of all that it created.
    pub async fn stop(self) -> HashSet<String> {
        drop(self.count);
        self.creator.await.expect("it created what it was to")
    }
}
