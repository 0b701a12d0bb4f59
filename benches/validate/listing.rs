//! Pages of a million keys in one tenant, by each filter: how long a page takes, and how the engine finds it.

use std::time::Instant;

use gatekey::{
    api::proto::{self, ListKeysRequest, ListKeysResponse},
    domain::{caller::TenantSet, clock::Timestamp, key::KeyState, token::KeyPrefix},
    store::{
        KeyQuery,
        listing::{self, Place, Value},
    },
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};

use crate::{
    report::{Report, name},
    stored::{END, KEYS, Stored},
    support::{Client, Engine},
};

const ROUNDS: usize = 51;
const TENANT: &str = "default";
/// Before this all stored keys were made, and after it none expires.
const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

/// What a page has that nobody asked to be longer.
const USUAL_PAGE: u32 = 50;

/// A list, and how much there is on its first page.
struct Case {
    what: &'static str,
    query: KeyQuery,
    size: u32,
    found: usize,
    /// Whether the page is the last.
    last: bool,
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<Case> {
    let all = KeyQuery {
        tenants: TenantSet::These(vec![TENANT.to_owned()]),
        owner_id: None,
        states: Vec::new(),
        label_contains: None,
        expires_before: None,
        last_used_before: None,
        key_prefix: None,
    };
    let case = |what, query, found, last| Case {
        what,
        query,
        size: USUAL_PAGE,
        found,
        last,
    };
    let states = |states: &[KeyState]| KeyQuery {
        states: states.to_vec(),
        ..all.clone()
    };
    let label = |part: &str| KeyQuery {
        label_contains: Some(part.to_owned()),
        ..all.clone()
    };
    // The older a key, the earlier its end.
    let ending = |keys: u64| KeyQuery {
        expires_before: Some(Timestamp::from_micros(END + 1 + keys.cast_signed())),
        ..all.clone()
    };
    let owner = KeyQuery {
        owner_id: Some("owner-4711".to_owned()),
        ..all.clone()
    };
    let prefix = |id: &str| KeyQuery {
        key_prefix: Some(KeyPrefix {
            tenant: "gk".to_owned(),
            id: id.to_owned(),
        }),
        ..all.clone()
    };
    let everywhere = |query: KeyQuery| KeyQuery {
        tenants: TenantSet::All,
        ..query
    };
    vec![
        case("all tenants", everywhere(all.clone()), 50, false),
        case(
            "all tenants, label_contains: nowhere",
            everywhere(label("nowhere")),
            0,
            false,
        ),
        case(
            "all tenants, states: REVOKED, none is",
            everywhere(states(&[KeyState::Revoked])),
            0,
            false,
        ),
        case(
            "last_used_before: all",
            KeyQuery {
                last_used_before: Some(NOW),
                ..all.clone()
            },
            50,
            false,
        ),
        case("key_prefix: the tenant's part only", prefix(""), 50, false),
        case(
            "key_prefix: four characters of an id that no key has",
            prefix("zzzz"),
            0,
            true,
        ),
        case("no filter", all.clone(), 50, false),
        Case {
            size: 1000,
            ..case("no filter, 1000 a page", all.clone(), 1000, false)
        },
        case("owner_id", owner.clone(), 10, true),
        case(
            "states: ACTIVE, all are",
            states(&[KeyState::Active]),
            50,
            false,
        ),
        case(
            "states: SUSPENDED, none is",
            states(&[KeyState::Suspended]),
            0,
            true,
        ),
        case(
            "states: REVOKED, none is",
            states(&[KeyState::Revoked]),
            0,
            true,
        ),
        case(
            "states: EXPIRED, none is",
            states(&[KeyState::Expired]),
            0,
            true,
        ),
        case(
            "states: SUSPENDED or EXPIRED, none is",
            states(&[KeyState::Suspended, KeyState::Expired]),
            0,
            false,
        ),
        case("label_contains: one key in ten", label("7"), 50, false),
        case("label_contains: nowhere", label("nowhere"), 0, false),
        case("expires_before: none does", ending(0), 0, true),
        case("expires_before: 100, the oldest", ending(100), 50, false),
        case("expires_before: 1000, the oldest", ending(1000), 50, false),
        case("expires_before: the older half", ending(KEYS / 2), 0, false),
        case("expires_before: all", ending(KEYS), 50, false),
        case(
            "owner_id, states, label_contains and expires_before",
            KeyQuery {
                states: vec![KeyState::Active],
                label_contains: Some("key".to_owned()),
                expires_before: ending(KEYS).expires_before,
                ..owner
            },
            10,
            true,
        ),
    ]
}

pub async fn measure(report: &mut Report, stored: &Stored, engine: Engine) {
    let server = stored.setup.clone().start().await;
    let admin = server.admin().await;
    for case in cases() {
        let first = page(&admin, &case).await;
        let found = (first.keys.len(), first.next_page_token.is_empty());
        assert_eq!(found, (case.found, case.last), "{}", case.what);
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let asked = Instant::now();
            page(&admin, &case).await;
            times.push(asked.elapsed());
        }
        times.sort();
        let p50 = times[ROUNDS / 2].as_secs_f64() * 1e3;
        let what = format!("ListKeys, {}, {}: p50", case.what, name(engine));
        if case.size == USUAL_PAGE {
            report.goal(what, 10.0, "ms", Ok(p50));
        } else {
            report.remark(format!("{what} {p50:.1} ms."));
        }
    }
    server.stop().await;
    println!("How {} finds them:\n", name(engine));
    for case in cases() {
        println!("{}", case.what);
        for line in plan(stored, engine, &case).await {
            println!("    {line}");
        }
    }
}

async fn page(admin: &Client, case: &Case) -> ListKeysResponse {
    let time = |at: Timestamp| prost_types::Timestamp {
        seconds: at.as_micros() / 1_000_000,
        nanos: (at.as_micros() % 1_000_000) as i32 * 1000,
    };
    let state = |state: &KeyState| match state {
        KeyState::Active => proto::KeyState::Active,
        KeyState::Suspended => proto::KeyState::Suspended,
        KeyState::Expired => proto::KeyState::Expired,
        KeyState::Revoked => proto::KeyState::Revoked,
    };
    let query = case.query.clone();
    let prefix = query
        .key_prefix
        .map(|prefix| format!("{}_{}", prefix.tenant, prefix.id));
    let request = ListKeysRequest {
        tenant_id: match query.tenants {
            TenantSet::All => String::new(),
            TenantSet::These(tenants) => tenants.concat(),
        },
        owner_id: query.owner_id.unwrap_or_default(),
        states: query.states.iter().map(|one| state(one).into()).collect(),
        label_contains: query.label_contains.unwrap_or_default(),
        expires_before: query.expires_before.map(time),
        last_used_before: query.last_used_before.map(time),
        key_prefix: prefix.unwrap_or_default(),
        page_size: case.size.cast_signed(),
        page_token: String::new(),
    };
    let page = admin.keys.clone().list_keys(request).await;
    page.expect("a page").into_inner()
}

/// What the engine says of the statement for this list.
async fn plan(stored: &Stored, engine: Engine, case: &Case) -> Vec<String> {
    let url = stored.setup.database_url();
    // As many as the server would have counted.
    let few = case.found == 0 && case.last || case.what.contains("the oldest");
    let (position, explain) = match engine {
        Engine::Sqlite => ("instr", "EXPLAIN QUERY PLAN "),
        Engine::Postgres => ("strpos", "EXPLAIN (COSTS OFF) "),
    };
    let statement = listing::list(&case.query, NOW, few, position);
    let sql = AssertSqlSafe(format!("{explain}{}", statement.sql));
    let place = Place {
        now: NOW,
        before: i64::MAX,
        size: case.size + 1,
    };
    macro_rules! bound {
        () => {{
            let mut explained = sqlx::query_as(sql);
            for param in &statement.params {
                explained = match param.value(&case.query, place) {
                    Value::Text(text) => explained.bind(text),
                    Value::Number(number) => explained.bind(number),
                };
            }
            explained
        }};
    }
    match engine {
        Engine::Sqlite => {
            let mut connection = SqliteConnection::connect(url).await.expect("the store");
            let rows: Vec<(i64, i64, i64, String)> =
                bound!().fetch_all(&mut connection).await.expect("a plan");
            rows.into_iter().map(|(.., line)| line).collect()
        }
        Engine::Postgres => {
            let mut connection = PgConnection::connect(url).await.expect("the store");
            let rows: Vec<(String,)> = bound!().fetch_all(&mut connection).await.expect("a plan");
            rows.into_iter().map(|(line,)| line).collect()
        }
    }
}
