//! Replicas as real processes, each behind a network of its own, on one PostgreSQL that can be stopped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::{
    sync::{Mutex, watch},
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::support::{
    Client, Database, Gatekey, Setup,
    postgres::{Cluster, Stop},
    proxy::{Network, Proxy},
    stored::{self, Stored},
};

/// How long a lease lasts where whole histories are made.
pub const LEASE: Duration = Duration::from_secs(1);
/// How long anything may take that must happen.
const DEADLINE: Duration = Duration::from_mins(1);
/// What says that a store can be reached.
const REACHABLE: u64 = u64::MAX;

/// The store, and all that serve its keys.
pub struct Fleet {
    pub cluster: Arc<Cluster>,
    pub database: Database,
    pub keys: Vec<Stored>,
    pub slots: Vec<Slot>,
    start: Instant,
}

/// The place of one replica, behind its own network.
pub struct Slot {
    pub proxy: Proxy,
    setup: Setup,
    /// Whoever does something to the process holds this.
    pub process: Mutex<Option<Gatekey>>,
    served: watch::Sender<Option<Served>>,
    /// When the network was cut, in microseconds since the start.
    cut: AtomicU64,
}

/// A process that serves, and how it is called.
#[derive(Clone)]
pub struct Served {
    /// Unlike any other's.
    pub process: u32,
    pub client: Client,
}

impl Fleet {
    /// So many places without a process, on a fresh store that holds a key for each of these owners.
    pub async fn make(places: usize, lease: Duration, owners: &[String]) -> Fleet {
        let cluster = blocking(|| Arc::new(Cluster::start())).await;
        let database = Database::create_in(&cluster).await;
        let lease = format!("{}ms", lease.as_millis());
        let setup = Gatekey::postgres(&database)
            .env("GATEKEY_LEASE", lease)
            .env("GATEKEY_LOG", "info");
        // Keys are stored past it, which one that serves would not understand.
        setup.start().await.stop().await;
        let keys = stored::store(&setup, owners).await;
        let mut slots = Vec::new();
        for _ in 0..places {
            let proxy = Proxy::start(cluster.addr()).await;
            let setup = setup.clone();
            slots.push(Slot {
                setup: setup.env("GATEKEY_DATABASE_URL", database.url_at(proxy.addr())),
                proxy,
                process: Mutex::new(None),
                served: watch::Sender::new(None),
                cut: AtomicU64::new(REACHABLE),
            });
        }
        Fleet {
            cluster,
            database,
            keys,
            slots,
            start: Instant::now(),
        }
    }

    /// The same with a process in each place that is ready.
    pub async fn started(places: usize, lease: Duration, owners: &[String]) -> Fleet {
        Self::started_with(places, lease, owners, &[]).await
    }

    /// The same with these settings.
    pub async fn started_with(
        places: usize,
        lease: Duration,
        owners: &[String],
        settings: &[(&str, &str)],
    ) -> Fleet {
        let mut fleet = Self::make(places, lease, owners).await;
        for slot in &mut fleet.slots {
            for (name, value) in settings {
                slot.setup = slot.setup.clone().env(name, *value);
            }
        }
        for slot in &fleet.slots {
            slot.start().await;
        }
        for slot in &fleet.slots {
            slot.ready().await;
        }
        fleet
    }

    /// The time since the start, by the one clock of all histories.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Cuts a place off from the store, or no more.
    pub fn cut(&self, slot: &Slot, cut: bool) {
        if cut {
            slot.proxy.set(Network::Cut);
            let now = u64::try_from(self.now().as_micros()).expect("tests are short");
            slot.cut.store(now, Ordering::SeqCst);
        } else {
            slot.cut.store(REACHABLE, Ordering::SeqCst);
            slot.proxy.set(Network::Whole);
        }
    }

    /// Stops the store, and starts it again this much later.
    pub async fn restart_store(&self, how: Stop, after: Duration) {
        self.stop_store(how).await;
        sleep(after).await;
        self.start_store().await;
    }

    pub async fn stop_store(&self, how: Stop) {
        let cluster = Arc::clone(&self.cluster);
        blocking(move || cluster.stop_as(how)).await;
    }

    pub async fn start_store(&self) {
        let cluster = Arc::clone(&self.cluster);
        blocking(move || cluster.start_again()).await;
    }

    /// Ends the connections that listen for changes; `false` when the store does not answer.
    pub async fn deafen(&self) -> bool {
        let ended = async {
            let mut database = PgConnection::connect(&self.database.url()).await?;
            database
                .execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE application_name = 'gatekey' AND query LIKE 'LISTEN%'",
                )
                .await
        };
        matches!(timeout(LEASE, ended).await, Ok(Ok(_)))
    }

    /// The one number that a query gives.
    pub async fn count(&self, query: &'static str) -> i64 {
        let mut database = self.database.connect().await;
        let count = sqlx::query_scalar(query).fetch_one(&mut database).await;
        count.unwrap_or_else(|error| panic!("{query}: {error}"))
    }
}

impl Slot {
    /// Starts a process in an empty place, and waits until it serves, which is before it is ready.
    pub async fn start(&self) {
        let mut process = self.process.lock().await;
        self.start_in(&mut process).await;
    }

    /// The same, of one who holds the place.
    pub async fn start_in(&self, place: &mut Option<Gatekey>) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(place.is_none(), "there is a process here");
        let process = place.insert(self.setup.start().await);
        self.served.send_replace(Some(Served {
            process: COUNT.fetch_add(1, Ordering::Relaxed),
            client: Client::lazy(process.addr(), &process.admin_token()),
        }));
    }

    /// The process leaves its place: it is killed or stopped by whom it is given to.
    pub fn leave(&self, place: &mut Option<Gatekey>) -> Gatekey {
        self.served.send_replace(None);
        place.take().expect("there is a process here")
    }

    /// The process that serves here now.
    pub fn served(&self) -> Option<Served> {
        self.served.borrow().clone()
    }

    /// A caller of the process that serves here now.
    pub fn client(&self) -> Client {
        self.served().expect("there is a process here").client
    }

    /// When the process here was cut off from the store, if it is.
    pub fn cut_since(&self) -> Option<Duration> {
        let cut = self.cut.load(Ordering::SeqCst);
        (cut != REACHABLE).then(|| Duration::from_micros(cut))
    }

    /// Waits until the process here is ready.
    pub async fn ready(&self) {
        self.becomes(ServingStatus::Serving).await;
    }

    /// Waits until the process here says this of its readiness.
    pub async fn becomes(&self, wanted: ServingStatus) {
        let mut health = HealthClient::new(self.client().channel);
        let asked = HealthCheckRequest {
            service: "gatekey.v1.KeyService".to_owned(),
        };
        let becomes = async {
            let mut told = health.watch(asked).await.expect("it tells").into_inner();
            while let Some(told) = told.message().await.expect("it goes on telling") {
                if told.status() == wanted {
                    return;
                }
            }
            panic!("it tells no more");
        };
        let became = timeout(DEADLINE, becomes).await;
        assert!(became.is_ok(), "a replica does not become {wanted:?}");
    }
}

/// Owners by number, each named this often.
pub fn owners(count: usize, keys_each: usize) -> Vec<String> {
    let owners = (0..count).map(|number| format!("owner-{number}"));
    owners.flat_map(|owner| vec![owner; keys_each]).collect()
}

/// Runs what blocks, and panics if it does.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
