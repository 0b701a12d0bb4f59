//! The pieces of a Validate, each by itself: `cargo bench --bench pieces`.
//!
//! What they are together, with gRPC around them, is measured by `cargo bench --bench validate`.

use std::{hint::black_box, net::IpAddr, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use gatekey::{
    domain::{
        clock::{SystemClock, Timestamp},
        key::{Grant, HASH_VERSION, Key},
        key_policy::{AccessRequest, KeyPolicy},
        scope::{Scope, Scopes},
        tenant::Tenant,
        token::{DEFAULT_PREFIX, KeyId, Plaintext, Presented},
        usage::Use,
    },
    service::{cache::Cache, failpoint::Failpoints, secret::Peppers, usage::Usage},
};

/// As the server has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

fn pieces(criterion: &mut Criterion) {
    let (id, plaintext) = Plaintext::mint(DEFAULT_PREFIX, &mut rand::rng());
    let key = plaintext.expose();
    let typo = &key[..key.len() - 1];
    let typo = format!("{typo}{}", if key.ends_with('0') { '1' } else { '0' });
    criterion.bench_function("parse", |bench| {
        bench.iter(|| Presented::parse(black_box(key)).is_some());
    });
    criterion.bench_function("parse garbage", |bench| {
        bench.iter(|| Presented::parse(black_box(&typo)).is_some());
    });

    let peppers = Peppers::parse(&Peppers::generate()).expect("a generated file is valid");
    let pepper = peppers.current().expect("it has a pepper");
    criterion.bench_function("MAC", |bench| {
        bench.iter(|| peppers.mac(black_box(pepper), black_box(key)));
    });

    let (cache, ids) = filled_cache();
    let mut ids = ids.iter().cycle();
    criterion.bench_function("look-up among a million keys", |bench| {
        bench.iter(|| {
            cache
                .get(*ids.next().expect("a cycle has no end"), &SystemClock)
                .is_some()
        });
    });

    let policy = KeyPolicy::of(&grant(id));
    criterion.bench_function("scope match, the last of three", |bench| {
        bench.iter(|| policy.grants(black_box("reports:weekly")));
    });

    let (required, address) = (["jobs:read".to_owned()], IpAddr::from([127, 0, 0, 1]));
    let ask = AccessRequest {
        required_scopes: &required,
        any_scopes: &[],
        audience: None,
        client_ip: Some(address),
    };
    criterion.bench_function("decide", |bench| {
        bench.iter(|| policy.decide(black_box(NOW), black_box(&ask)).is_ok());
    });

    let usage = Usage::default();
    let ids = new_ids(100_000);
    let mut ids = ids.iter().cycle();
    criterion.bench_function("note a use, of a hundred thousand keys", |bench| {
        bench.iter(|| {
            let noted = Use {
                at: black_box(NOW),
                from: Some(address),
            };
            usage.note(*ids.next().expect("a cycle has no end"), noted);
        });
    });
}

/// A cache with a million keys, and their ids in no order.
fn filled_cache() -> (Cache, Vec<KeyId>) {
    const KEYS: usize = 1_000_000;
    let cache = Cache::new(KEYS, Failpoints::NONE);
    cache.clear(0);
    cache.lease().grant(Duration::MAX);
    let ids = new_ids(KEYS);
    for id in &ids {
        let (entry, _) = cache.entry(*id, KeyPolicy::of(&grant(*id)), [0; 32], 0, cache.ticket());
        cache.insert(*id, entry);
    }
    (cache, ids)
}

/// As many ids of keys.
fn new_ids(count: usize) -> Vec<KeyId> {
    let mut rng = rand::rng();
    (0..count)
        .map(|_| Plaintext::mint(DEFAULT_PREFIX, &mut rng).0)
        .collect()
}

/// A key with three scopes and an end, of a tenant without rules and an owner without a record.
fn grant(key_id: KeyId) -> Grant {
    let scopes = ["jobs:read", "jobs:write", "reports:*"];
    let scopes: Scopes = scopes.into_iter().filter_map(Scope::parse).collect();
    let key = Key {
        key_id,
        tenant_id: "default".to_owned(),
        owner_id: "alice".to_owned(),
        label: "a key".to_owned(),
        description: String::new(),
        prefix: DEFAULT_PREFIX.to_owned(),
        scopes,
        audiences: Vec::new(),
        allowed_cidrs: Vec::new(),
        metadata: std::collections::BTreeMap::default(),
        suspended: false,
        created_at: NOW,
        created_by: "admin".to_owned(),
        expires_at: Some(Timestamp::MAX),
        revoked: None,
        rotated_from: None,
        rotated_to: None,
        last_used: None,
        hash_version: HASH_VERSION.to_owned(),
        created_revision: 1,
        revision: 1,
        unreadable: false,
    };
    Grant {
        key,
        owner: None,
        tenant: Tenant::default(),
    }
}

criterion_group!(benches, pieces);
criterion_main!(benches);
