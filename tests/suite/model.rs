//! The promise of revocation, on a model: the real lease, cache, wait, validator and keyring, on a store and clocks
//! that are made up, in made-up time. Each seed is a world of its own: what is delayed, cut, paused, killed and
//! changed, and when.
//!
//! `GATEKEY_SEEDS=100000` tries that many seeds, `GATEKEY_SEED=7` the one.

mod store;

use std::{
    env,
    net::IpAddr,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use gatekey::{
    domain::{
        caller::{ADMIN, Caller},
        clock::{Clock, Timestamp},
        credential::Credential,
        enforcement::Enforcement,
        key::{HASH_VERSION, Key, Mac, Verifier},
        key_policy::AccessRequest,
        owner::Owner,
        scope::{Scope, Scopes},
        token::{KeyId, Plaintext},
    },
    service::{
        cache::Cache,
        context::CallContext,
        failpoint::{Failpoint, Failpoints},
        keyring::{KeyPatch, Keyring},
        replica::Replica,
        secret::{HashCost, Peppers, Secrets, pepper_migration::PepperMigration},
        validator::{Decision, ValidationRequest, Validator},
    },
};
use store::World;
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

const SEEDS: u64 = 1_000;
const REPLICAS: usize = 3;
const LEASE: Duration = Duration::from_secs(5);
/// How long a world lasts before it is healed.
const LIFE: Duration = Duration::from_secs(20);
/// The key that nobody touches.
const LEFT_ALONE: usize = 4;
/// The owner of one key; the others have one that nobody suspends.
const SUSPENDED_OWNER: &str = "bob";

/// Keys that are there in every world: `0` is revoked, `1` and `2` are suspended and resumed, `3` its owner, `4` is
/// left alone.
struct Known {
    secrets: Arc<Secrets>,
    keys: Vec<(Key, Verifier)>,
    plaintexts: Vec<String>,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let peppers = Peppers::parse(&Peppers::generate()).unwrap();
    let pepper = peppers.current().unwrap().to_owned();
    let (mut keys, mut plaintexts) = (Vec::new(), Vec::new());
    for owner in ["alice", "alice", "alice", SUSPENDED_OWNER, "alice"] {
        let (key_id, plaintext) = Plaintext::mint("gk", &mut rand::rng());
        let verifier = Verifier {
            phc: String::new(),
            mac: Some(Mac {
                value: peppers.mac(&pepper, plaintext.expose()).unwrap(),
                pepper_id: pepper.clone(),
            }),
        };
        keys.push((key(key_id, owner), verifier));
        plaintexts.push(plaintext.expose().to_owned());
    }
    Known {
        secrets: Arc::new(Secrets::new(peppers, HashCost::default())),
        keys,
        plaintexts,
    }
});

fn scopes() -> Scopes {
    Scope::parse("jobs:read").into_iter().collect()
}

fn key(key_id: KeyId, owner: &str) -> Key {
    Key {
        key_id,
        tenant_id: "acme".to_owned(),
        owner_id: owner.to_owned(),
        label: String::new(),
        description: String::new(),
        prefix: "gk".to_owned(),
        scopes: scopes(),
        audiences: Vec::new(),
        allowed_cidrs: Vec::new(),
        metadata: std::collections::BTreeMap::new(),
        suspended: false,
        created_at: Timestamp::from_micros(0),
        created_by: ADMIN.to_owned(),
        expires_at: None,
        revoked: None,
        last_used: None,
        rotated_from: None,
        rotated_to: None,
        hash_version: HASH_VERSION.to_owned(),
        created_revision: 0,
        revision: 0,
        unreadable: false,
    }
}

/// A machine's clock: it began somewhere, and is up to 1 % wrong.
struct Machine {
    began: Instant,
    offset: Duration,
    rate: f64,
}

impl Clock for Machine {
    fn now(&self) -> Timestamp {
        let elapsed = self.began.elapsed().as_micros();
        Timestamp::from_micros(1_700_000_000_000_000 + i64::try_from(elapsed).unwrap())
    }

    fn uptime(&self) -> Duration {
        self.offset + self.began.elapsed().mul_f64(self.rate)
    }
}

/// A process.
struct Node {
    place: usize,
    validator: Validator,
    keyring: Keyring,
    replica: Arc<Replica>,
    cache: Arc<Cache>,
    clock: Arc<Machine>,
    killed: CancellationToken,
}

impl Node {
    fn start(world: &Arc<World>, place: usize, faults: Failpoints) -> Arc<Self> {
        let clock = Arc::new(Machine {
            began: Instant::now(),
            offset: Duration::from_secs(world.below(1_000_000)),
            rate: [0.99, 1.0, 1.01][usize::try_from(world.below(3)).unwrap()],
        });
        let store = world.store(place);
        let secrets = || Arc::clone(&KNOWN.secrets);
        let cache = Arc::new(Cache::new(100, faults));
        let pepper_migration =
            PepperMigration::start(Arc::clone(&store), &KNOWN.secrets, clock.clone());
        let killed = CancellationToken::new();
        let replica = Arc::new(Replica::new(
            Arc::clone(&store),
            Arc::clone(&cache),
            clock.clone(),
            LEASE,
        ));
        tokio::spawn({
            let (replica, killed) = (Arc::clone(&replica), killed.clone());
            async move { killed.run_until_cancelled(replica.run()).await }
        });
        Arc::new(Self {
            place,
            validator: Validator::new(
                Arc::clone(&store),
                secrets(),
                Arc::clone(&cache),
                clock.clone(),
                pepper_migration,
            ),
            keyring: Keyring::new(store, secrets(), Arc::clone(&cache), clock.clone()),
            replica,
            cache,
            clock,
            killed,
        })
    }
}

/// What has been told to clients about each key.
#[derive(Clone, Copy, Default)]
struct Encoded {
    /// Since when the key is refused everywhere: its narrowing was ENFORCED, and no widening has begun since.
    narrowed: Option<Instant>,
    /// Whether it was ever narrowed, or tried to be.
    touched: bool,
}

/// What happened, over all seeds: a test in which it did not would prove nothing.
#[derive(Default, Debug)]
struct Branches {
    from_memory: AtomicUsize,
    from_store: AtomicUsize,
    undecided: AtomicUsize,
    refused: AtomicUsize,
    quick: AtomicUsize,
    waited_for_lease: AtomicUsize,
    pending: AtomicUsize,
    unknown_outcome: AtomicUsize,
}

fn count(branch: &AtomicUsize) {
    branch.fetch_add(1, Ordering::Relaxed);
}

/// What can go wrong with a process.
#[derive(Clone, Copy)]
enum Trouble {
    Pause,
    Cut,
    Deaf,
    Slow,
    Kill,
    Stop,
}

impl Trouble {
    const ALL: [Self; 6] = [
        Self::Pause,
        Self::Cut,
        Self::Deaf,
        Self::Slow,
        Self::Kill,
        Self::Stop,
    ];
}

/// One seed's world, its processes and its clients.
struct Run {
    world: Arc<World>,
    faults: Failpoints,
    nodes: Mutex<Vec<Arc<Node>>>,
    told: Mutex<Vec<Encoded>>,
    violations: Mutex<Vec<String>>,
    branches: Arc<Branches>,
    over: AtomicBool,
}

impl Run {
    fn node(&self, place: usize) -> Arc<Node> {
        Arc::clone(&self.nodes.lock().unwrap()[place])
    }

    fn any_node(&self) -> Arc<Node> {
        self.node(usize::try_from(self.world.below(REPLICAS as u64)).unwrap())
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    async fn pause(&self, most_millis: u64) {
        time::sleep(Duration::from_micros(self.world.below(most_millis * 1000))).await;
    }

    /// Asks one process about one key, and holds the answer against what was told before.
    async fn validate(&self, node: &Node, place: usize) -> Option<bool> {
        let began = Instant::now();
        let credential = Credential::key(KNOWN.plaintexts[place].clone());
        let question = ValidationRequest {
            credential: &credential,
            in_view: &|_| true,
            ask: AccessRequest {
                required_scopes: &["jobs:read".to_owned()],
                any_scopes: &[],
                audience: None,
                client_ip: Some(IpAddr::from([127, 0, 0, 1])),
            },
        };
        let loads = self.world.loads();
        let decided = async {
            // A process that stands still reads no call, and sends no answer.
            self.world.running(node.place).await;
            let decided = node.validator.validate(&question).await;
            self.world.running(node.place).await;
            decided
        };
        let decided = node.killed.run_until_cancelled(decided).await?;
        let branches = &self.branches;
        let Ok(decision) = decided else {
            count(&branches.undecided);
            return None;
        };
        count(if loads == self.world.loads() {
            &branches.from_memory
        } else {
            &branches.from_store
        });
        let allowed = matches!(decision, Decision::Allowed(_));
        let told = self.told.lock().unwrap()[place];
        if allowed && told.narrowed.is_some_and(|since| since < began) {
            let story = format!(
                "key {place} was allowed by {} though refused before",
                node.place
            );
            self.violations.lock().unwrap().push(story);
        }
        if !allowed {
            count(&branches.refused);
            if !told.touched {
                let story = format!(
                    "key {place} was refused by {} though nobody touched it",
                    node.place
                );
                self.violations.lock().unwrap().push(story);
            }
        }
        Some(allowed)
    }

    /// One that asks again and again.
    async fn ask(&self, place: usize, key: usize) {
        while !self.is_over() {
            self.pause(400).await;
            let node = self.node(place);
            self.validate(&node, key).await;
        }
    }

    /// Waits as the service does, sometimes with less patience than it takes.
    async fn enforced(&self, node: &Node, revision: i64) -> bool {
        let deadline =
            (self.world.below(4) == 0).then(|| Duration::from_millis(self.world.below(2 * 5_000)));
        let began = Instant::now();
        let enforcement = node.replica.enforced(revision, deadline).await;
        self.world.running(node.place).await;
        let branches = &self.branches;
        match enforcement {
            Enforcement::Pending { .. } => count(&branches.pending),
            Enforcement::Enforced if began.elapsed() > LEASE / 2 => {
                count(&branches.waited_for_lease);
            }
            Enforcement::Enforced => count(&branches.quick),
        }
        enforcement == Enforcement::Enforced
    }

    /// Carries out a change at some process; `None` when its outcome is not known.
    async fn change<T, E>(
        &self,
        node: &Node,
        change: impl Future<Output = Result<T, E>>,
    ) -> Option<T> {
        let deadline = Duration::from_secs(3);
        let change = time::timeout(deadline, change);
        let changed = node.killed.run_until_cancelled(change).await;
        if !matches!(changed, Some(Ok(Ok(_)))) {
            count(&self.branches.unknown_outcome);
        }
        changed?.ok()?.ok()
    }

    /// Revokes the first key, at two processes at once, until one was told that it is enforced.
    async fn revoke(&self) {
        self.pause(15_000).await;
        let caller = CallContext::patient(Caller::admin(ADMIN));
        let id = KNOWN.keys[0].0.key_id;
        while !self.is_over() {
            self.told.lock().unwrap()[0].touched = true;
            let node = self.any_node();
            let revoke = node.keyring.revoke(&caller, "acme", id, String::new());
            if let Some((_, since)) = self.change(&node, revoke).await {
                let enforced = node
                    .killed
                    .run_until_cancelled(self.enforced(&node, since))
                    .await;
                if enforced == Some(true) {
                    let told = &mut self.told.lock().unwrap()[0];
                    told.narrowed = Some(told.narrowed.unwrap_or_else(Instant::now));
                }
            }
            self.pause(2_000).await;
        }
    }

    /// Narrows and widens what a key may do, by what `change` does.
    async fn toggle(&self, key: usize, of_owner: bool) {
        let caller = CallContext::patient(Caller::admin(ADMIN));
        let mut suspended = false;
        while !self.is_over() {
            self.pause(2_000).await;
            suspended = !suspended;
            {
                let told = &mut self.told.lock().unwrap()[key];
                told.touched = true;
                // Whatever is widened may be in force from now on.
                told.narrowed = None;
            }
            let node = self.any_node();
            let revision = if of_owner {
                let owner = Owner {
                    tenant_id: "acme".to_owned(),
                    owner_id: SUSPENDED_OWNER.to_owned(),
                    scopes: scopes(),
                    audiences: Vec::new(),
                    suspended,
                    display_name: String::new(),
                    revision: 0,
                    unreadable: false,
                };
                let put = self
                    .change(&node, node.keyring.put_owner(&caller, owner))
                    .await;
                put.map(|owner| owner.revision)
            } else {
                let patch = KeyPatch {
                    suspended: Some(suspended),
                    ..KeyPatch::default()
                };
                let id = KNOWN.keys[key].0.key_id;
                let updated = self
                    .change(&node, node.keyring.update(&caller, None, id, patch))
                    .await;
                updated.map(|key| key.revision)
            };
            let Some(revision) = revision else {
                // It was done or not, and will not be done later.
                continue;
            };
            let enforced = node
                .killed
                .run_until_cancelled(self.enforced(&node, revision))
                .await;
            if suspended && enforced == Some(true) {
                self.told.lock().unwrap()[key].narrowed = Some(Instant::now());
            }
        }
    }

    /// Makes things go wrong, in each world only some: what is rare among all is then frequent in a few.
    async fn harm(&self) {
        let kinds: Vec<_> = Trouble::ALL
            .into_iter()
            .filter(|_| self.world.below(3) == 0)
            .collect();
        while !self.is_over() && !kinds.is_empty() {
            self.pause(3_000).await;
            let place = usize::try_from(self.world.below(REPLICAS as u64)).unwrap();
            // Troubles come in pairs.
            for _ in 0..2 {
                let kind = usize::try_from(self.world.below(kinds.len() as u64)).unwrap();
                self.trouble(place, kinds[kind]).await;
                self.pause(1_000).await;
            }
        }
    }

    async fn trouble(&self, place: usize, kind: Trouble) {
        let world = &self.world;
        let tenths = |tenths| LEASE / 10 * u32::try_from(tenths).unwrap();
        let span = tenths(1 + world.below(30));
        match kind {
            Trouble::Pause => world.pause(place, span),
            Trouble::Cut => world.cut(place, span),
            Trouble::Deaf => world.deafen(place, span),
            Trouble::Slow => world.slow(place, span, tenths(1 + world.below(4))),
            Trouble::Kill => {
                self.node(place).killed.cancel();
                self.restart(place);
            }
            Trouble::Stop => {
                // Nobody is answered any more, then it leaves.
                let stopped = self.node(place);
                stopped.killed.cancel();
                let _ = time::timeout(LEASE, stopped.replica.leave()).await;
                self.restart(place);
            }
        }
    }

    fn restart(&self, place: usize) {
        let node = Node::start(&self.world, place, self.faults);
        self.nodes.lock().unwrap()[place] = node;
    }

    /// Runs one seed's world to its end, and returns what went wrong.
    async fn live(seed: u64, faults: Failpoints, branches: Arc<Branches>) -> Vec<String> {
        let world = World::new(seed, REPLICAS, KNOWN.keys.clone());
        let nodes = (0..REPLICAS)
            .map(|place| Node::start(&world, place, faults))
            .collect();
        let run = Arc::new(Self {
            world,
            faults,
            nodes: Mutex::new(nodes),
            told: Mutex::new(vec![Encoded::default(); KNOWN.keys.len()]),
            violations: Mutex::default(),
            branches,
            over: AtomicBool::new(false),
        });
        let mut clients = JoinSet::new();
        for place in 0..REPLICAS {
            for key in 0..KNOWN.keys.len() {
                let run = Arc::clone(&run);
                clients.spawn(async move { run.ask(place, key).await });
            }
        }
        for _ in 0..2 {
            let run = Arc::clone(&run);
            clients.spawn(async move { run.revoke().await });
        }
        for (key, of_owner) in [(1, false), (2, false), (3, true)] {
            let run = Arc::clone(&run);
            clients.spawn(async move { run.toggle(key, of_owner).await });
        }
        clients.spawn({
            let run = Arc::clone(&run);
            async move { run.harm().await }
        });
        time::sleep(LIFE).await;
        run.over.store(true, Ordering::Relaxed);
        run.world.heal();
        while clients.join_next().await.is_some() {}
        run.world.heal();
        run.well_again().await;
        for node in run.nodes.lock().unwrap().drain(..) {
            node.killed.cancel();
        }
        std::mem::take(&mut *run.violations.lock().unwrap())
    }

    /// Once nothing goes wrong any more, every process holds a lease and allows what nobody touched.
    async fn well_again(&self) {
        time::sleep(2 * LEASE).await;
        for place in 0..REPLICAS {
            let node = self.node(place);
            let held = node.cache.lease().deadline().is_ahead(&*node.clock);
            let allowed = self.validate(&node, LEFT_ALONE).await;
            if !held || allowed != Some(true) {
                let story = format!("{place} is not well again: lease {held}, allowed {allowed:?}");
                self.violations.lock().unwrap().push(story);
            }
        }
    }
}

/// What goes wrong in one seed's world.
fn violations(seed: u64, faults: Failpoints, branches: &Arc<Branches>) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(Run::live(seed, faults, Arc::clone(branches)))
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name| {
        env::var(name)
            .ok()
            .map(|text: String| text.parse().unwrap())
    };
    match number("GATEKEY_SEED") {
        Some(seed) => {
            // What the replicas say of it.
            tracing_subscriber::fmt().without_time().init();
            seed..seed + 1
        }
        None => 0..number("GATEKEY_SEEDS").unwrap_or(SEEDS),
    }
}

#[test]
fn no_key_is_allowed_after_its_revocation_was_enforced() {
    let (seeds, branches) = (seeds(), Arc::new(Branches::default()));
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let seed @ 0.. = next.fetch_add(1, Ordering::Relaxed)
                    && seed < seeds.end
                {
                    let violations = violations(seed, Failpoints::NONE, &branches);
                    assert!(
                        violations.is_empty(),
                        "GATEKEY_SEED={seed}: {violations:#?}"
                    );
                }
            });
        }
    });
    println!("{} seeds: {branches:?}", seeds.end - seeds.start);
    if seeds.end - seeds.start >= SEEDS {
        let Branches {
            from_memory,
            from_store,
            undecided,
            refused,
            quick,
            waited_for_lease,
            pending,
            unknown_outcome,
        } = &*branches;
        for seen in [
            from_memory,
            from_store,
            undecided,
            refused,
            quick,
            waited_for_lease,
            pending,
            unknown_outcome,
        ] {
            assert!(seen.load(Ordering::Relaxed) > 0, "{branches:?}");
        }
    }
}

/// Returns the seed with which the search for this fault starts. Most faults show within 300 seeds,
/// this one in one of about 3 000.
#[cfg(debug_assertions)]
const fn first_seed(fault: Failpoint) -> u64 {
    match fault {
        Failpoint::LeaseFromAnswer => 2_700,
        _ => 0,
    }
}

/// The model detects each of these faults. A release build has no failpoints.
#[cfg(debug_assertions)]
#[test]
fn every_fault_is_noticed() {
    let missed: Vec<_> = Failpoint::ALL
        .into_iter()
        // A test of its own shows this one: the ticket of a load guards against most of what it does.
        .filter(|fault| *fault != Failpoint::JoinGrants)
        .filter(|fault| {
            println!("{fault:?} …");
            let branches = Arc::new(Branches::default());
            let first = first_seed(*fault);
            let noticed = (first..first + 3 * SEEDS).find(|seed| {
                let violations = violations(*seed, Failpoints::with(*fault), &branches);
                !violations.is_empty()
            });
            println!("{fault:?} is noticed with seed {noticed:?}");
            noticed.is_none()
        })
        .collect();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

/// Joining is no renewal: between the two nothing is answered from memory.
async fn is_answered_from_memory_before_the_first_renewal(faults: Failpoints) -> bool {
    let world = World::new(1, 1, KNOWN.keys.clone());
    world.refuse_renewals();
    let node = Node::start(&world, 0, faults);
    time::sleep(LEASE / 2).await;
    let credential = Credential::key(KNOWN.plaintexts[LEFT_ALONE].clone());
    let question = ValidationRequest {
        credential: &credential,
        in_view: &|_| true,
        ask: AccessRequest::default(),
    };
    for _ in 0..2 {
        let decided = node.validator.validate(&question).await;
        assert!(matches!(decided, Ok(Decision::Allowed(_))));
    }
    node.killed.cancel();
    world.loads() < 2
}

#[tokio::test(start_paused = true)]
async fn joining_grants_no_lease() {
    assert!(!is_answered_from_memory_before_the_first_renewal(Failpoints::NONE).await);
    if cfg!(debug_assertions) {
        let granted = Failpoints::with(Failpoint::JoinGrants);
        assert!(is_answered_from_memory_before_the_first_renewal(granted).await);
    }
}
