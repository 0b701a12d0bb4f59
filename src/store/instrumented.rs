//! Retries store calls where that is safe, times out calls that the database leaves unanswered, and
//! records metrics, and spans for sampled requests.

use std::{array, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use opentelemetry::trace::SpanKind;
use tokio::time::{self, Instant};

use super::{
    Choose, EventQuery, KeyQuery, Listed, LivingCount, Loaded, LoadedMany, LoadedOwner,
    LogPosition, Member, Mutation, PepperCheck, Replicas, Store, StoreError, WarmPage, WarmQuery,
    retry::{SILENCE, again, in_time},
    trust::Trust,
    writable::Writable,
};
use crate::{
    domain::{
        caller::TenantSet,
        clock::Timestamp,
        event::{Change, Event},
        key::{Key, Mac, Revocation, Verifier},
        owner::Owner,
        page::Page,
        scope::Scopes,
        tenant::Tenant,
        token::KeyId,
        usage::Uses,
    },
    metrics::{self, Collect, Durations, ShardedCounter},
};

/// A kind of store call, as metrics and spans name it.
#[derive(Clone, Copy)]
enum Call {
    Load,
    Warm,
    Find,
    List,
    Follow,
    Begin,
    Commit,
    Lease,
    Members,
    Usage,
    Pepper,
}

const CALLS: usize = 11;

impl Call {
    const ALL: [Self; CALLS] = [
        Self::Load,
        Self::Warm,
        Self::Find,
        Self::List,
        Self::Follow,
        Self::Begin,
        Self::Commit,
        Self::Lease,
        Self::Members,
        Self::Usage,
        Self::Pepper,
    ];

    /// Returns the name in metrics and the name in spans.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Load => ("load", "store load"),
            Self::Warm => ("warm", "store warm"),
            Self::Find => ("find", "store find"),
            Self::List => ("list", "store list"),
            Self::Follow => ("follow", "store follow"),
            Self::Begin => ("begin", "store begin"),
            Self::Commit => ("commit", "store commit"),
            Self::Lease => ("lease", "store lease"),
            Self::Members => ("members", "store members"),
            Self::Usage => ("usage", "store usage"),
            Self::Pepper => ("pepper", "store pepper"),
        }
    }
}

/// Metrics and state of the calls.
struct Calls {
    took: [Durations; CALLS],
    failed: ShardedCounter<CALLS>,
    trust: Arc<Trust>,
    writable: Writable,
}

impl Calls {
    /// Runs a call that changes nothing, or nothing durable, and retries it if it is interrupted.
    async fn retried<T, F>(&self, call: Call, work: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let noted = || async { self.noted(work().await) };
        self.run(call, again(noted)).await
    }

    /// Replaces connections after a response from a server that takes no changes.
    fn noted<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if matches!(done, Err(StoreError::ReadOnly)) {
            self.trust.lose();
        }
        done
    }

    /// Runs a step of a mutation, with a timeout.
    async fn step<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let done = in_time(work).await;
        if let Err(error) = &done {
            self.writable.fail(error);
        }
        done
    }

    async fn run<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let done = self.noted(metrics::child(call.names().1, SpanKind::Client, work).await);
        self.took[call as usize].note(began.elapsed());
        if done.is_err() {
            self.failed.add(call as usize, 1);
        }
        done
    }
}

/// A store with retries, timeouts and metrics.
pub(super) struct Instrumented<S> {
    store: S,
    calls: Arc<Calls>,
}

impl<S: Store> Instrumented<S> {
    /// Wraps the store and starts a task that detects when changes can be written again; the task
    /// ends with the store. The store's pools replace the connections that `trust` no longer
    /// covers.
    pub(super) fn start(store: S, trust: Arc<Trust>) -> Arc<Self> {
        let calls = Arc::new(Calls {
            took: array::from_fn(|_| Durations::cold()),
            failed: ShardedCounter::default(),
            trust,
            writable: Writable::default(),
        });
        let this = Arc::new(Self { store, calls });
        let weak = Arc::downgrade(&this);
        tokio::spawn(async move {
            loop {
                time::sleep(PROBE_EVERY).await;
                let Some(this) = weak.upgrade() else { return };
                if !this.calls.writable.get() && this.probe_changes().await.is_ok() {
                    this.calls.writable.succeed();
                }
            }
        });
        this
    }
}

/// The interval between probes while changes cannot be written.
const PROBE_EVERY: Duration = Duration::from_secs(1);

impl<S: Store> Collect for Instrumented<S> {
    fn collect(&self, page: &mut metrics::Encoder<'_>) -> fmt::Result {
        let calls = || Call::ALL.map(|call| ([("call", call.names().0)], call as usize));
        page.durations(
            "gatekey_store_call_duration_seconds",
            "How long calls of the store took, waiting for a connection included",
            calls().map(|(labels, call)| (labels, &self.calls.took[call])),
        )?;
        let failed = self.calls.failed.read();
        page.counters(
            "gatekey_store_failures_total",
            "Calls of the store that failed",
            calls().map(|(labels, call)| (labels, failed[call])),
        )?;
        page.gauge(
            "gatekey_database_writable",
            "1 while changes can be written to the database, 0 from a change that could not be until one can",
            u32::from(self.calls.writable.get()),
        )?;
        self.store.collect(page)
    }
}

#[async_trait]
impl<S: Store> Replicas for Instrumented<S> {
    async fn join(&self, id: &str, lease: Duration) -> Result<i64, StoreError> {
        let work = self.store.join(id, lease);
        self.calls.run(Call::Lease, work).await
    }

    async fn renew(&self, id: &str, applied: i64) -> Result<Option<i64>, StoreError> {
        let work = self.store.renew(id, applied);
        self.calls.run(Call::Lease, work).await
    }

    async fn leave(&self, id: &str) -> Result<(), StoreError> {
        self.calls.run(Call::Lease, self.store.leave(id)).await
    }

    async fn members(&self) -> Result<Vec<Member>, StoreError> {
        self.calls.run(Call::Members, self.store.members()).await
    }

    async fn remove(&self, seen: &Member) -> Result<(), StoreError> {
        self.calls.run(Call::Members, self.store.remove(seen)).await
    }

    async fn events_from(&self, revision: i64, limit: u32) -> Result<Vec<Event>, StoreError> {
        let work = self.store.events_from(revision, limit);
        self.calls.run(Call::Follow, work).await
    }

    async fn hint(&self) {
        self.store.hint().await;
    }

    async fn hinted(&self) {
        self.store.hinted().await;
    }
}

#[async_trait]
impl<S: Store> Store for Instrumented<S> {
    fn loads_at_once(&self) -> usize {
        self.store.loads_at_once()
    }

    async fn load(&self, id: KeyId) -> Result<Loaded, StoreError> {
        self.calls.retried(Call::Load, || self.store.load(id)).await
    }

    async fn load_many(&self, ids: &[KeyId]) -> Result<LoadedMany, StoreError> {
        self.calls
            .retried(Call::Load, || self.store.load_many(ids))
            .await
    }

    async fn load_owner(&self, tenant: &str, owner: &str) -> Result<LoadedOwner, StoreError> {
        self.calls
            .retried(Call::Load, || self.store.load_owner(tenant, owner))
            .await
    }

    async fn count_keys(&self, most: usize) -> Result<usize, StoreError> {
        self.calls
            .retried(Call::Warm, || self.store.count_keys(most))
            .await
    }

    async fn warm(&self, asked: &WarmQuery) -> Result<WarmPage, StoreError> {
        self.calls
            .retried(Call::Warm, || self.store.warm(asked))
            .await
    }

    async fn find_key(&self, id: KeyId) -> Result<Option<Key>, StoreError> {
        self.calls
            .retried(Call::Find, || self.store.find_key(id))
            .await
    }

    async fn list_keys(
        &self,
        query: &KeyQuery,
        now: Timestamp,
        page: &Page,
    ) -> Result<Listed, StoreError> {
        self.calls
            .retried(Call::List, || self.store.list_keys(query, now, page))
            .await
    }

    async fn count_living(
        &self,
        tenant: &str,
        owner: Option<&str>,
        now: Timestamp,
        after: i64,
    ) -> Result<LivingCount, StoreError> {
        self.calls
            .retried(Call::List, || {
                self.store.count_living(tenant, owner, now, after)
            })
            .await
    }

    async fn find_owner(&self, tenant: &str, owner: &str) -> Result<Option<Owner>, StoreError> {
        self.calls
            .retried(Call::Find, || self.store.find_owner(tenant, owner))
            .await
    }

    async fn list_owners(&self, tenant: &str, page: &Page) -> Result<Vec<Owner>, StoreError> {
        self.calls
            .retried(Call::List, || self.store.list_owners(tenant, page))
            .await
    }

    async fn find_tenant(&self, tenant: &str) -> Result<Option<Tenant>, StoreError> {
        self.calls
            .retried(Call::Find, || self.store.find_tenant(tenant))
            .await
    }

    async fn list_tenants(&self, of: &TenantSet, page: &Page) -> Result<Vec<Tenant>, StoreError> {
        self.calls
            .retried(Call::List, || self.store.list_tenants(of, page))
            .await
    }

    async fn list_events(&self, query: &EventQuery, page: &Page) -> Result<Vec<Event>, StoreError> {
        self.calls
            .retried(Call::List, || self.store.list_events(query, page))
            .await
    }

    async fn follow_events(
        &self,
        of: &TenantSet,
        revision: i64,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError> {
        self.calls
            .retried(Call::Follow, || {
                self.store.follow_events(of, revision, limit)
            })
            .await
    }

    async fn head(&self) -> Result<i64, StoreError> {
        self.calls.retried(Call::Follow, || self.store.head()).await
    }

    async fn position(&self) -> Result<LogPosition, StoreError> {
        self.calls
            .retried(Call::Follow, || self.store.position())
            .await
    }

    async fn mark_restored(&self) -> Result<LogPosition, StoreError> {
        let work = in_time(self.store.mark_restored());
        self.calls.run(Call::Members, work).await
    }

    async fn begin(&self) -> Result<Box<dyn Mutation>, StoreError> {
        let begun = self.calls.retried(Call::Begin, || self.store.begin()).await;
        let mutation = begun.inspect_err(|error| self.calls.writable.fail(error))?;
        Ok(Box::new(InstrumentedMutation {
            mutation,
            calls: Arc::clone(&self.calls),
        }))
    }

    async fn pepper_checks(&self) -> Result<Vec<PepperCheck>, StoreError> {
        self.calls
            .retried(Call::Pepper, || self.store.pepper_checks())
            .await
    }

    async fn record_pepper_checks(&self, choose: &Choose<'_>) -> Result<(), StoreError> {
        let work = in_time(self.store.record_pepper_checks(choose));
        self.calls.run(Call::Pepper, work).await
    }

    async fn forget_pepper_checks(&self) -> Result<(), StoreError> {
        let work = in_time(self.store.forget_pepper_checks());
        self.calls.run(Call::Pepper, work).await
    }

    async fn probe_changes(&self) -> Result<(), StoreError> {
        let work = in_time(self.store.probe_changes());
        self.calls.run(Call::Commit, work).await
    }

    async fn count_by_pepper(
        &self,
        now: Timestamp,
    ) -> Result<Vec<(Option<String>, u64)>, StoreError> {
        self.calls
            .retried(Call::Pepper, || self.store.count_by_pepper(now))
            .await
    }

    async fn replace_mac(&self, id: KeyId, mac: &Mac) -> Result<(), StoreError> {
        let work = in_time(self.store.replace_mac(id, mac));
        self.calls.run(Call::Pepper, work).await
    }

    async fn add_uses(&self, uses: &[(KeyId, Uses)]) -> Result<(), StoreError> {
        self.calls
            .run(Call::Usage, in_time(self.store.add_uses(uses)))
            .await
    }

    async fn close(&self) {
        self.store.close().await;
    }
}

/// A mutation with a timeout for each step. Only its commit is measured, because the earlier steps
/// are short.
struct InstrumentedMutation {
    mutation: Box<dyn Mutation>,
    calls: Arc<Calls>,
}

#[async_trait]
impl Mutation for InstrumentedMutation {
    fn revision(&self) -> i64 {
        self.mutation.revision()
    }

    async fn find_key(&mut self, id: KeyId) -> Result<Option<Key>, StoreError> {
        self.calls.step(self.mutation.find_key(id)).await
    }

    async fn find_owner(&mut self, tenant: &str, owner: &str) -> Result<Option<Owner>, StoreError> {
        self.calls
            .step(self.mutation.find_owner(tenant, owner))
            .await
    }

    async fn find_tenant(&mut self, tenant: &str) -> Result<Option<Tenant>, StoreError> {
        self.calls.step(self.mutation.find_tenant(tenant)).await
    }

    async fn find_request(
        &mut self,
        tenant: &str,
        request_id: &str,
    ) -> Result<Option<KeyId>, StoreError> {
        self.calls
            .step(self.mutation.find_request(tenant, request_id))
            .await
    }

    async fn list_living(
        &mut self,
        tenant: &str,
        owner: Option<&str>,
        now: Timestamp,
    ) -> Result<Vec<KeyId>, StoreError> {
        self.calls
            .step(self.mutation.list_living(tenant, owner, now))
            .await
    }

    async fn living_scopes(
        &mut self,
        tenant: &str,
        owner: &str,
        now: Timestamp,
    ) -> Result<Vec<Scopes>, StoreError> {
        self.calls
            .step(self.mutation.living_scopes(tenant, owner, now))
            .await
    }

    async fn insert_key(
        &mut self,
        key: &Key,
        verifier: &Verifier,
        request_id: Option<&str>,
    ) -> Result<(), StoreError> {
        self.calls
            .step(self.mutation.insert_key(key, verifier, request_id))
            .await
    }

    async fn update_key(&mut self, key: &Key) -> Result<(), StoreError> {
        self.calls.step(self.mutation.update_key(key)).await
    }

    async fn revoke_key(&mut self, id: KeyId, revoked: &Revocation) -> Result<(), StoreError> {
        self.calls.step(self.mutation.revoke_key(id, revoked)).await
    }

    async fn revoke_living(
        &mut self,
        tenant: &str,
        owner: Option<&str>,
        now: Timestamp,
        by: &str,
        reason: &str,
    ) -> Result<(), StoreError> {
        self.calls
            .step(self.mutation.revoke_living(tenant, owner, now, by, reason))
            .await
    }

    async fn has_living(
        &mut self,
        tenant: &str,
        owner: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.calls
            .step(self.mutation.has_living(tenant, owner, now))
            .await
    }

    async fn has_keys(&mut self, tenant: &str) -> Result<bool, StoreError> {
        self.calls.step(self.mutation.has_keys(tenant)).await
    }

    async fn count_owners(&mut self, tenant: &str, most: usize) -> Result<usize, StoreError> {
        self.calls
            .step(self.mutation.count_owners(tenant, most))
            .await
    }

    async fn put_owner(&mut self, owner: &Owner) -> Result<(), StoreError> {
        self.calls.step(self.mutation.put_owner(owner)).await
    }

    async fn delete_owner(&mut self, tenant: &str, owner: &str) -> Result<(), StoreError> {
        self.calls
            .step(self.mutation.delete_owner(tenant, owner))
            .await
    }

    async fn put_tenant(&mut self, tenant: &Tenant) -> Result<(), StoreError> {
        self.calls.step(self.mutation.put_tenant(tenant)).await
    }

    async fn delete_tenant(&mut self, tenant: &str) -> Result<(), StoreError> {
        self.calls.step(self.mutation.delete_tenant(tenant)).await
    }

    async fn commit(self: Box<Self>, change: Change) -> Result<(), StoreError> {
        let Self { mutation, calls } = *self;
        let commit = async {
            let committed = time::timeout(SILENCE, mutation.commit(change)).await;
            committed.unwrap_or_else(|late| Err(StoreError::Unknown(late.into())))
        };
        let committed = calls.run(Call::Commit, commit).await;
        match &committed {
            Ok(()) => calls.writable.succeed(),
            Err(error) => calls.writable.fail(error),
        }
        committed
    }
}
