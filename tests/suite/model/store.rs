//! A store with a network before it that delays, cuts and loses: what the model's replicas stand on.
//!
//! It keeps what the promise needs of a database: changes become visible one after the other, in the order of their
//! revisions; a statement sees what was committed when it began; what it writes is seen a little later.

use std::{
    fmt, future,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use gatekey::{
    domain::{
        caller::TenantSet,
        clock::Timestamp,
        event::{Change, Event},
        key::{Grant, Key, Mac, Revocation, Verifier},
        owner::Owner,
        page::Page,
        scope::Scopes,
        tenant::Tenant,
        token::KeyId,
        usage::Uses,
    },
    metrics::{self, Collect},
    store::{
        Choose, EventQuery, KeyQuery, Listed, LivingCount, Loaded, LoadedMany, LoadedOwner,
        LogPosition, Member, Mutation, PepperCheck, Replicas, Store, StoreError, WarmPage,
        WarmQuery,
    },
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::{
    sync::{Notify, OwnedMutexGuard},
    time::{self, Instant},
};

/// What is committed.
#[derive(Default)]
struct Database {
    head: i64,
    events: Vec<Event>,
    keys: Vec<(Key, Verifier)>,
    owners: Vec<Owner>,
    members: Vec<Member>,
    /// How often a key was read.
    loads: usize,
    /// Whether nobody may renew.
    no_renewals: bool,
}

impl Database {
    /// The key with its owner and its tenant.
    fn grant(&self, id: KeyId) -> Option<(Grant, Verifier)> {
        let (key, verifier) = self.keys.iter().find(|(key, _)| key.key_id == id)?;
        let mut owners = self.owners.iter();
        let grant = Grant {
            key: key.clone(),
            owner: owners.find(|owner| owner.owner_id == key.owner_id).cloned(),
            tenant: tenant(),
        };
        Some((grant, verifier.clone()))
    }
}

/// What becomes of the way between one replica and the store.
#[derive(Clone, Copy, Default)]
struct Way {
    /// Until then the process stands still.
    paused: Option<Instant>,
    /// Until then nothing comes through.
    cut: Option<Instant>,
    /// Until then the log cannot be read.
    deaf: Option<Instant>,
    /// Until then everything takes up to this long.
    slow: Option<(Instant, Duration)>,
}

/// One store and the ways to it.
pub struct World {
    database: Mutex<Database>,
    /// Mutations take turns.
    writer: Arc<tokio::sync::Mutex<()>>,
    ways: Mutex<Vec<Way>>,
    hints: Vec<Notify>,
    /// How long a way takes at most when nothing is wrong.
    usual: Duration,
    chance: Mutex<SmallRng>,
}

impl World {
    /// A world for this many replicas.
    pub fn new(seed: u64, replicas: usize, keys: Vec<(Key, Verifier)>) -> Arc<Self> {
        let mut chance = SmallRng::seed_from_u64(seed);
        let usual = [5, 400][chance.random_range(0..2)];
        Arc::new(Self {
            usual: Duration::from_millis(usual),
            database: Mutex::new(Database {
                keys,
                ..Database::default()
            }),
            writer: Arc::default(),
            ways: Mutex::new(vec![Way::default(); replicas]),
            hints: (0..replicas).map(|_| Notify::new()).collect(),
            chance: Mutex::new(chance),
        })
    }

    /// A number below `end`, by chance.
    pub fn below(&self, end: u64) -> u64 {
        self.chance.lock().unwrap().random_range(0..end.max(1))
    }

    pub fn loads(&self) -> usize {
        self.data().loads
    }

    /// From now on nobody can renew a lease.
    pub fn refuse_renewals(&self) {
        self.data().no_renewals = true;
    }

    pub fn pause(&self, replica: usize, span: Duration) {
        self.ways.lock().unwrap()[replica].paused = Some(Instant::now() + span);
    }

    pub fn cut(&self, replica: usize, span: Duration) {
        self.ways.lock().unwrap()[replica].cut = Some(Instant::now() + span);
    }

    pub fn deafen(&self, replica: usize, span: Duration) {
        self.ways.lock().unwrap()[replica].deaf = Some(Instant::now() + span);
    }

    pub fn slow(&self, replica: usize, span: Duration, most: Duration) {
        self.ways.lock().unwrap()[replica].slow = Some((Instant::now() + span, most));
    }

    /// Everything is well again.
    pub fn heal(&self) {
        self.ways.lock().unwrap().fill(Way::default());
    }

    /// Waits until this process goes on.
    pub async fn running(&self, replica: usize) {
        loop {
            let paused = self.ways.lock().unwrap()[replica].paused;
            match paused {
                Some(until) if until > Instant::now() => time::sleep_until(until).await,
                _ => return,
            }
        }
    }

    /// What a replica sees of this world.
    pub fn store(self: &Arc<Self>, replica: usize) -> Arc<dyn Store> {
        Arc::new(Seen {
            world: Arc::clone(self),
            replica,
        })
    }

    fn data(&self) -> MutexGuard<'_, Database> {
        self.database.lock().unwrap()
    }

    /// One way between a replica and the store.
    async fn travel(&self, replica: usize) -> Result<(), StoreError> {
        self.running(replica).await;
        let slow = self.ways.lock().unwrap()[replica].slow;
        let most = match slow {
            Some((until, most)) if until > Instant::now() => most,
            _ => self.usual,
        };
        let most = u64::try_from(most.as_micros()).unwrap();
        time::sleep(Duration::from_micros(self.below(most))).await;
        let cut = self.ways.lock().unwrap()[replica].cut;
        if cut.is_some_and(|until| until > Instant::now()) {
            if self.below(2) == 0 {
                // Nobody says anything any more.
                future::pending::<()>().await;
            }
            return Err(StoreError::Unavailable("cut".into()));
        }
        Ok(())
    }
}

struct Seen {
    world: Arc<World>,
    replica: usize,
}

impl Seen {
    async fn read<T>(&self, read: impl FnOnce(&mut Database) -> T) -> Result<T, StoreError> {
        self.world.travel(self.replica).await?;
        let found = read(&mut self.world.data());
        self.world.travel(self.replica).await?;
        self.world.running(self.replica).await;
        Ok(found)
    }

    /// A statement that sees what was when it began, and whose writing is seen later: even if nobody waits for it any
    /// more.
    async fn write<S: Send, T: Send + 'static>(
        &self,
        see: impl FnOnce(&Database) -> S + Send + 'static,
        write: impl FnOnce(&mut Database, S) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let (world, replica) = (Arc::clone(&self.world), self.replica);
        let written = tokio::spawn(async move {
            world.travel(replica).await?;
            let seen = see(&world.data());
            time::sleep(Duration::from_micros(world.below(5_000))).await;
            let written = write(&mut world.data(), seen);
            world.travel(replica).await?;
            world.running(replica).await;
            Ok(written)
        });
        written.await.unwrap()
    }
}

impl Collect for Seen {
    fn collect(&self, _: &mut metrics::Encoder<'_>) -> fmt::Result {
        Ok(())
    }
}

#[async_trait]
impl Replicas for Seen {
    async fn join(&self, id: &str, lease: Duration) -> Result<i64, StoreError> {
        let member = Member {
            id: id.to_owned(),
            applied: 0,
            renewals: 0,
            lease,
        };
        let join = move |data: &mut Database, head| {
            data.members.push(Member {
                applied: head,
                ..member
            });
            head
        };
        self.write(|data| data.head, join).await
    }

    async fn renew(&self, id: &str, applied: i64) -> Result<Option<i64>, StoreError> {
        if self.world.data().no_renewals {
            return Err(StoreError::Unavailable("refused".into()));
        }
        let id = id.to_owned();
        let renew = move |data: &mut Database, head| {
            let member = data.members.iter_mut().find(|member| member.id == id)?;
            member.applied = applied;
            member.renewals += 1;
            Some(head)
        };
        self.write(|data| data.head, renew).await
    }

    async fn leave(&self, id: &str) -> Result<(), StoreError> {
        self.read(|data| data.members.retain(|member| member.id != id))
            .await
    }

    async fn members(&self) -> Result<Vec<Member>, StoreError> {
        self.read(|data| data.members.clone()).await
    }

    async fn remove(&self, seen: &Member) -> Result<(), StoreError> {
        let same = |member: &Member| member.id == seen.id && member.renewals == seen.renewals;
        self.read(|data| data.members.retain(|member| !same(member)))
            .await
    }

    async fn events_from(&self, revision: i64, limit: u32) -> Result<Vec<Event>, StoreError> {
        let deaf = self.world.ways.lock().unwrap()[self.replica].deaf;
        if deaf.is_some_and(|until| until > Instant::now()) {
            return Err(StoreError::Unavailable("deaf".into()));
        }
        let events = |data: &mut Database| {
            let events = data
                .events
                .iter()
                .filter(|event| event.revision >= revision);
            events.take(limit as usize).cloned().collect()
        };
        self.read(events).await
    }

    async fn hint(&self) {
        for hint in &self.world.hints {
            // Some get lost.
            if self.world.below(4) > 0 {
                hint.notify_one();
            }
        }
    }

    async fn hinted(&self) {
        self.world.hints[self.replica].notified().await;
    }
}

#[async_trait]
impl Store for Seen {
    fn loads_at_once(&self) -> usize {
        16
    }

    async fn load(&self, id: KeyId) -> Result<Loaded, StoreError> {
        let load = |data: &mut Database| {
            data.loads += 1;
            Loaded {
                head: data.head,
                found: data.grant(id),
            }
        };
        self.read(load).await
    }

    async fn load_many(&self, ids: &[KeyId]) -> Result<LoadedMany, StoreError> {
        let load = |data: &mut Database| {
            data.loads += 1;
            let found = ids.iter().filter_map(|id| Some((*id, data.grant(*id)?)));
            LoadedMany {
                head: data.head,
                found: found.collect(),
            }
        };
        self.read(load).await
    }

    async fn load_owner(&self, _: &str, owner: &str) -> Result<LoadedOwner, StoreError> {
        let load = |data: &mut Database| LoadedOwner {
            head: data.head,
            owner: data.owners.iter().find(|it| it.owner_id == owner).cloned(),
            tenant: tenant(),
        };
        self.read(load).await
    }

    async fn head(&self) -> Result<i64, StoreError> {
        self.read(|data| data.head).await
    }

    async fn begin(&self) -> Result<Box<dyn Mutation>, StoreError> {
        self.world.travel(self.replica).await?;
        let turn = Arc::clone(&self.world.writer).lock_owned().await;
        let revision = self.world.data().head + 1;
        Ok(Box::new(Begun {
            world: Arc::clone(&self.world),
            replica: self.replica,
            revision,
            key: None,
            owner: None,
            _turn: turn,
        }))
    }

    async fn close(&self) {}

    async fn find_key(&self, _: KeyId) -> Result<Option<Key>, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn list_keys(&self, _: &KeyQuery, _: Timestamp, _: &Page) -> Result<Listed, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn count_living(
        &self,
        _: &str,
        _: Option<&str>,
        _: Timestamp,
        _: i64,
    ) -> Result<LivingCount, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn find_owner(&self, _: &str, _: &str) -> Result<Option<Owner>, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn list_owners(&self, _: &str, _: &Page) -> Result<Vec<Owner>, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn find_tenant(&self, _: &str) -> Result<Option<Tenant>, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn list_tenants(&self, _: &TenantSet, _: &Page) -> Result<Vec<Tenant>, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn list_events(&self, _: &EventQuery, _: &Page) -> Result<Vec<Event>, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn follow_events(&self, _: &TenantSet, _: i64, _: u32) -> Result<Vec<Event>, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn position(&self) -> Result<LogPosition, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn mark_restored(&self) -> Result<LogPosition, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn pepper_checks(&self) -> Result<Vec<PepperCheck>, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn record_pepper_checks(&self, _: &Choose<'_>) -> Result<(), StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn forget_pepper_checks(&self) -> Result<(), StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn probe_changes(&self) -> Result<(), StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn count_by_pepper(
        &self,
        _: Timestamp,
    ) -> Result<Vec<(Option<String>, u64)>, StoreError> {
        Ok(Vec::new())
    }

    async fn add_uses(&self, _: &[(KeyId, Uses)]) -> Result<(), StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn count_keys(&self, _: usize) -> Result<usize, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn warm(&self, _: &WarmQuery) -> Result<WarmPage, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn replace_mac(&self, _: KeyId, _: &Mac) -> Result<(), StoreError> {
        unreachable!("the model does not ask for this")
    }
}

/// A mutation of one key or one owner.
struct Begun {
    world: Arc<World>,
    replica: usize,
    revision: i64,
    key: Option<Key>,
    owner: Option<Owner>,
    _turn: OwnedMutexGuard<()>,
}

fn tenant() -> Tenant {
    Tenant {
        tenant_id: "acme".to_owned(),
        ..Tenant::default()
    }
}

#[async_trait]
impl Mutation for Begun {
    fn revision(&self) -> i64 {
        self.revision
    }

    async fn find_key(&mut self, id: KeyId) -> Result<Option<Key>, StoreError> {
        self.world.travel(self.replica).await?;
        let data = self.world.data();
        let found = data.keys.iter().find(|(key, _)| key.key_id == id);
        Ok(found.map(|(key, _)| key.clone()))
    }

    async fn find_owner(&mut self, _: &str, owner: &str) -> Result<Option<Owner>, StoreError> {
        let data = self.world.data();
        let found = data.owners.iter().find(|found| found.owner_id == owner);
        Ok(found.cloned())
    }

    async fn find_tenant(&mut self, _: &str) -> Result<Option<Tenant>, StoreError> {
        Ok(Some(tenant()))
    }

    async fn update_key(&mut self, key: &Key) -> Result<(), StoreError> {
        self.key = Some(key.clone());
        Ok(())
    }

    async fn revoke_key(&mut self, id: KeyId, revoked: &Revocation) -> Result<(), StoreError> {
        let found = {
            let data = self.world.data();
            let found = data.keys.iter().find(|(key, _)| key.key_id == id);
            found.map(|(key, _)| key.clone())
        };
        let mut key = found.expect("a key that is revoked exists");
        key.revoked = Some(revoked.clone());
        key.revision = self.revision;
        self.update_key(&key).await
    }

    async fn put_owner(&mut self, owner: &Owner) -> Result<(), StoreError> {
        self.owner = Some(owner.clone());
        Ok(())
    }

    async fn commit(mut self: Box<Self>, change: Change) -> Result<(), StoreError> {
        self.world.travel(self.replica).await?;
        {
            let mut data = self.world.data();
            data.head = self.revision;
            if let Some(changed) = self.key.take() {
                let found = data
                    .keys
                    .iter_mut()
                    .find(|(key, _)| key.key_id == changed.key_id);
                found.expect("a key that is changed exists").0 = changed;
            }
            if let Some(put) = self.owner.take() {
                data.owners.retain(|owner| owner.owner_id != put.owner_id);
                data.owners.push(put);
            }
            data.events.push(Event {
                revision: self.revision,
                change,
                unreadable: false,
            });
        }
        let (world, replica) = (Arc::clone(&self.world), self.replica);
        // It is committed: the next one may begin, whatever becomes of the answer.
        drop(self);
        world.travel(replica).await
    }

    async fn find_request(&mut self, _: &str, _: &str) -> Result<Option<KeyId>, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn list_living(
        &mut self,
        _: &str,
        _: Option<&str>,
        _: Timestamp,
    ) -> Result<Vec<KeyId>, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn living_scopes(
        &mut self,
        _: &str,
        _: &str,
        _: Timestamp,
    ) -> Result<Vec<Scopes>, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn insert_key(
        &mut self,
        _: &Key,
        _: &Verifier,
        _: Option<&str>,
    ) -> Result<(), StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn revoke_living(
        &mut self,
        _: &str,
        _: Option<&str>,
        _: Timestamp,
        _: &str,
        _: &str,
    ) -> Result<(), StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn delete_owner(&mut self, _: &str, _: &str) -> Result<(), StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn put_tenant(&mut self, _: &Tenant) -> Result<(), StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn has_living(&mut self, _: &str, _: &str, _: Timestamp) -> Result<bool, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn has_keys(&mut self, _: &str) -> Result<bool, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn count_owners(&mut self, _: &str, _: usize) -> Result<usize, StoreError> {
        unreachable!("the model does not ask for this")
    }

    async fn delete_tenant(&mut self, _: &str) -> Result<(), StoreError> {
        unreachable!("the model does not ask for this")
    }
}
