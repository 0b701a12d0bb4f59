//! Three replicas, what is asked of them all the time, and revocations that are watched on each.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use gatekey::api::proto::{EnforcementState, Reason, RevokeKeysRequest};
use tokio::task::{JoinSet, block_in_place, spawn_blocking};

use crate::support::client::owner_target;
use crate::{
    generator::{self, Load},
    load::{Instrumented, Shape, frame},
    support::{
        Client, Database, Gatekey,
        client::ask,
        pgbouncer::Pgbouncer,
        postgres::Cluster,
        stored::{self, Stored},
    },
};

const REPLICAS: usize = 3;
/// Keys that are asked about all the time, and never revoked.
const STEADY: usize = 1000;
const CALLS_A_SECOND: u32 = 1000;
/// How many of an owner's keys are in memory everywhere before all are revoked.
const SAMPLE: usize = 100;

/// Three replicas that have a store of their own.
pub struct Replicas {
    servers: Vec<Gatekey>,
    clients: Vec<Client>,
    steady: Vec<Stored>,
    /// To be revoked one by one.
    single: Vec<Stored>,
    /// To be revoked by owner.
    owned: Vec<Stored>,
    _pgbouncer: Option<Pgbouncer>,
    _cluster: Cluster,
}

/// What came of one revocation, from its call on.
pub struct Encoded {
    pub enforced: Duration,
    /// When a replica said for the last time that the key is good; zero when none did any more.
    pub accepted: Duration,
}

impl Replicas {
    pub async fn start(pooled: bool, single: usize, owners: usize, keys_each: usize) -> Self {
        let cluster = spawn_blocking(Cluster::start)
            .await
            .expect("PostgreSQL starts");
        let database = Database::create_in(&cluster).await;
        let mut setup = Gatekey::postgres(&database).env("GATEKEY_LOG", "info");
        setup.start().await.stop().await;

        let mut names = vec!["steady".to_owned(); STEADY];
        names.extend((0..single).map(|number| format!("single-{number}")));
        for owner in 0..owners {
            names.extend(vec![format!("owner-{owner}"); keys_each]);
        }
        let mut steady = stored::store(&setup, &names).await;
        let mut single = steady.split_off(STEADY);
        let owned = single.split_off(single.len() - owners * keys_each);

        let pgbouncer = pooled.then(|| block_in_place(|| Pgbouncer::start(cluster.addr(), &[])));
        if let Some(pgbouncer) = &pgbouncer {
            setup = setup.env("GATEKEY_DATABASE_URL", database.url_at(pgbouncer.addr()));
        }
        let (mut servers, mut clients) = (Vec::new(), Vec::new());
        for _ in 0..REPLICAS {
            let server = setup.start().await;
            server.wait_for_log(r#""message":"ready""#).await;
            clients.push(server.admin().await);
            servers.push(server);
        }
        let replicas = Self {
            servers,
            clients,
            steady,
            single,
            owned,
            _pgbouncer: pgbouncer,
            _cluster: cluster,
        };
        replicas.warm(&replicas.steady).await;
        replicas.warm(&replicas.single).await;
        replicas
    }

    /// Every replica has these keys in memory.
    async fn warm<'a>(&self, keys: impl IntoIterator<Item = &'a Stored>) {
        for key in keys {
            for client in &self.clients {
                assert_eq!(client.reason(&key.plaintext).await, Reason::Allowed);
            }
        }
    }

    /// Asks each replica at a steady pace, until told to stop.
    pub fn load(&self) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let loads = self.servers.iter().map(|server| {
            let questions = self.steady.iter().map(|key| frame(&ask(&key.plaintext)));
            let questions: Vec<_> = questions.collect();
            let stop = Arc::clone(&stop);
            let bodies = (0..).map(move |call: usize| questions[call % questions.len()].clone());
            let bodies = bodies.take_while(move |_| !stop.load(Ordering::Relaxed));
            let load = Load::of(server.addr(), &server.admin_token(), Shape::of(1, 4));
            generator::start(load.ask(bodies, Reason::Allowed).pace(CALLS_A_SECOND))
        });
        Running {
            loads: loads.collect(),
            stop,
        }
    }

    /// Revokes so many keys one after the other, at one replica after the other, while all are asked about it.
    pub async fn revoke_each(&self, count: usize) -> Vec<Encoded> {
        let mut told = Vec::with_capacity(count);
        for (number, key) in self.single.iter().take(count).enumerate() {
            told.push(self.revoke(number % REPLICAS, key).await);
        }
        told
    }

    async fn revoke(&self, place: usize, key: &Stored) -> Encoded {
        let enforced = Arc::new(AtomicBool::new(false));
        let called = Instant::now();
        let mut watching = JoinSet::new();
        for client in &self.clients {
            let client = client.clone();
            let (enforced, plaintext) = (Arc::clone(&enforced), key.plaintext.clone());
            watching.spawn(async move {
                let mut accepted = Duration::ZERO;
                loop {
                    let is_enforced = enforced.load(Ordering::SeqCst);
                    match client.reason(&plaintext).await {
                        Reason::Allowed if is_enforced => panic!("the promise is broken"),
                        Reason::Allowed => accepted = called.elapsed(),
                        Reason::Revoked => return accepted,
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
        let answer = self.clients[place].revoke_stored(key, None).await;
        let took = called.elapsed();
        enforced.store(true, Ordering::SeqCst);
        let answer = answer.expect("the key is revoked");
        assert_eq!(answer.state(), EnforcementState::Enforced);
        let accepted = watching.join_all().await.into_iter().max();
        Encoded {
            enforced: took,
            accepted: accepted.unwrap_or_default(),
        }
    }

    /// Revokes all keys of the owner with this number, and gives how long that took.
    pub async fn revoke_owner(&self, number: usize, keys_each: usize) -> Duration {
        let keys = &self.owned[number * keys_each..][..keys_each];
        let sample = || keys.iter().step_by(keys_each / SAMPLE);
        self.warm(sample()).await;
        let request = RevokeKeysRequest {
            tenant_id: "default".to_owned(),
            target: owner_target(keys[0].owner_id.clone()),
            ..RevokeKeysRequest::default()
        };
        let called = Instant::now();
        let answer = self.clients[number % REPLICAS]
            .keys
            .clone()
            .revoke_keys(request)
            .await;
        let took = called.elapsed();
        let answer = answer.expect("the keys are revoked").into_inner();
        assert_eq!(usize::try_from(answer.revoked_count), Ok(keys_each));
        for key in sample() {
            for client in &self.clients {
                assert_eq!(client.reason(&key.plaintext).await, Reason::Revoked);
            }
        }
        took
    }
}

/// A load on every replica.
pub struct Running {
    loads: Vec<JoinHandle<Instrumented>>,
    stop: Arc<AtomicBool>,
}

impl Running {
    /// Ends it, and gives how many calls there were and the worst of the replicas' 99th percentiles, in microseconds.
    pub fn finish(self) -> (u64, f64) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.loads.into_iter().map(JoinHandle::join);
        let ended = ended.map(|load| load.expect("every call is answered as expected"));
        ended.fold((0, 0.0), |(calls, p99), load| {
            (calls + load.calls, load.latencies.percentile(0.99).max(p99))
        })
    }
}
