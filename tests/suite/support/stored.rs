//! Many keys at once, written past gatekey into PostgreSQL: through its door argon2 would take minutes.
//!
//! The MACs are right, so that every key is good; the argon2 hash is one for all, for nothing asks it.

use std::{fmt::Write as _, fs};

use gatekey::{
    domain::token::{DEFAULT_PREFIX, KeyId, Plaintext},
    service::secret::Peppers,
};
use rand::{SeedableRng as _, rngs::StdRng};
use sqlx::{AssertSqlSafe, PgConnection, raw_sql};

use super::Setup;

const ROWS_A_STATEMENT: usize = 1000;
/// A hash of nothing that anybody asks.
const PHC: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGFza3MgaXQ$NhZr1OZOdXxGZF3uL3JmUW1hdGNoZWQgYnkgbm9ib2R5";

/// A key of tenant `default` that was stored, with scope `jobs:*`.
#[derive(Clone, Debug)]
pub struct Stored {
    pub key_id: String,
    pub plaintext: String,
    pub owner_id: String,
}

/// Stores as many keys as there are owners here, in a database that a server of this setup has made and none has cached.
pub async fn store(setup: &Setup, owners: &[String]) -> Vec<Stored> {
    let pepper = fs::read_to_string(setup.folder().join("gatekey.pepper"));
    let peppers = Peppers::parse(&pepper.expect("the server has a pepper"));
    let peppers = peppers.expect("the server could read it");
    let pepper = peppers.current().expect("the server has a pepper");
    let database = <PgConnection as sqlx::Connection>::connect(setup.database_url()).await;
    let mut database = database.expect("the database is there");

    let mut stored = Vec::with_capacity(owners.len());
    for owners in owners.chunks(ROWS_A_STATEMENT) {
        let mut rows = String::new();
        for owner in owners {
            let seed = stored.len() as u64;
            let (id, plaintext) = Plaintext::mint(DEFAULT_PREFIX, &mut StdRng::seed_from_u64(seed));
            let mac = peppers.mac(pepper, plaintext.expose());
            let mac = mac
                .expect("the pepper is known")
                .map(|byte| format!("{byte:02x}"));
            let comma = if rows.is_empty() { "" } else { "," };
            let (mac, place) = (mac.concat(), stored.len() + 1);
            write!(
                rows,
                "{comma}('{}','{owner}','{mac}',{place})",
                id.as_bare()
            )
            .expect("memory takes all");
            stored.push(Stored {
                key_id: KeyId::to_string(&id),
                plaintext: plaintext.expose().to_owned(),
                owner_id: owner.clone(),
            });
        }
        let insert = format!(
            "INSERT INTO keys (key_id, tenant_id, owner_id, label, description, prefix, scopes, audiences, \
             allowed_cidrs, metadata, suspended, created_at, created_by, hash_version, secret_phc, secret_mac, \
             mac_pepper, created_revision, revision) \
             SELECT column1, 'default', column2, 'stored', '', '{DEFAULT_PREFIX}', '[\"jobs:*\"]', '[]', '[]', '{{}}', \
             FALSE, 1700000000000000, 'admin', 'v1', '{PHC}', decode(column3, 'hex'), '{pepper}', \
             revision + column4, revision + column4 FROM log_head, (VALUES {rows}) AS v"
        );
        run(&mut database, insert).await;
    }
    let count = stored.len();
    run(
        &mut database,
        format!("UPDATE log_head SET revision = revision + {count}"),
    )
    .await;
    stored
}

async fn run(database: &mut PgConnection, statement: String) {
    let done = raw_sql(AssertSqlSafe(statement)).execute(database).await;
    done.unwrap_or_else(|error| panic!("the keys are not stored: {error}"));
}
