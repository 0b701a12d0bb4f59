//! The implementation of `Store` with sqlx, for both engines.
//!
//! This file is compiled twice, as a part of `sqlite.rs` and of `postgres.rs`, which define `Db`
//! and the engine-specific parts. Generic code would need a page of trait bounds.

use std::{collections::HashMap, fmt, fs::File, time::Duration};

use async_trait::async_trait;
use sqlx::{
    Database, Pool, QueryBuilder, Row as _, pool::PoolConnection, query, query::Query, query_scalar,
};
use tokio::task::yield_now;

use super::{DIALECT, Db, Hints, POSITION};
use crate::{
    domain::{
        caller::TenantSet,
        clock::Timestamp,
        event::{Change, Event},
        key::{Grant, Key, Mac, Revocation, Verifier},
        owner::Owner,
        page::Page,
        scope::{Scope, Scopes},
        tenant::{OnLimit, Tenant},
        token::KeyId,
        usage::Uses,
    },
    metrics::{self, Collect},
    store::{
        Choose, EventQuery, KeyQuery, Listed, LivingCount, Loaded, LoadedMany, LoadedOwner,
        LogPosition, Member, Mutation, PepperCheck, Replicas, Store, StoreError, WarmPage,
        WarmQuery, WarmSet, column,
        idle_connections::IdleConnections,
        listing::{self, Place, Value},
        statements,
    },
};

#[path = "row.rs"]
mod row;
#[path = "transaction.rs"]
mod transaction;

use row::{as_json, as_micros, scopes_as_json};
pub(in crate::store) use transaction::Transaction;

type Row = <Db as Database>::Row;

/// Number of rows of a batch after which other calls of the same thread get a turn.
const ROWS_A_TURN: usize = 16;

pub(super) struct SqlStore {
    pub(super) reader: Pool<Db>,
    pub(super) loaders: IdleConnections<Db>,
    pub(super) writer: Pool<Db>,
    /// Separate connections for coordination between replicas, so that a lease does not expire
    /// because of many other calls.
    pub(super) pulse: Pool<Db>,
    pub(super) hints: Hints,
    pub(super) loads_at_once: usize,
    /// The statement that begins a mutation.
    pub(super) begin: String,
    /// The lock on the database file; released when the store is dropped.
    #[expect(dead_code, reason = "it is held, not used")]
    pub(super) lock: Option<File>,
}

impl Collect for SqlStore {
    fn collect(&self, page: &mut metrics::Encoder<'_>) -> fmt::Result {
        let pools = [
            ("reader", &self.reader),
            ("writer", &self.writer),
            ("pulse", &self.pulse),
        ];
        page.gauges(
            "gatekey_store_connections",
            "Connections to the store that are open",
            pools.iter().flat_map(|(name, pool)| {
                let idle = u32::try_from(pool.num_idle()).unwrap_or(u32::MAX);
                let used = pool.size().saturating_sub(idle);
                [("used", used), ("idle", idle)]
                    .map(|(state, count)| ([("pool", *name), ("state", state)], count))
            }),
        )?;
        page.gauges(
            "gatekey_store_connections_max",
            "How many connections to the store may be open",
            pools.map(|(name, pool)| ([("pool", name)], pool.options().get_max_connections())),
        )
    }
}

#[async_trait]
impl Replicas for SqlStore {
    async fn join(&self, id: &str, lease: Duration) -> Result<i64, StoreError> {
        Ok(query_scalar(statements::JOIN)
            .bind(id)
            .bind(as_micros(lease))
            .fetch_one(&self.pulse)
            .await?)
    }

    async fn renew(&self, id: &str, applied: i64) -> Result<Option<i64>, StoreError> {
        Ok(query_scalar(statements::RENEW)
            .bind(id)
            .bind(applied)
            .fetch_optional(&self.pulse)
            .await?)
    }

    async fn leave(&self, id: &str) -> Result<(), StoreError> {
        query(statements::LEAVE)
            .bind(id)
            .execute(&self.pulse)
            .await?;
        Ok(())
    }

    async fn members(&self) -> Result<Vec<Member>, StoreError> {
        let rows = query(DIALECT.replicas).fetch_all(&self.pulse).await?;
        for row in &rows {
            writable(row)?;
        }
        let members = rows.iter().map(row::member).filter_map(Result::transpose);
        members.collect()
    }

    async fn remove(&self, seen: &Member) -> Result<(), StoreError> {
        query(statements::REMOVE_REPLICA)
            .bind(&seen.id)
            .bind(seen.renewals)
            .execute(&self.pulse)
            .await?;
        Ok(())
    }

    async fn events_from(&self, revision: i64, limit: u32) -> Result<Vec<Event>, StoreError> {
        let mut connection = self.pulse.acquire().await?;
        super::admit(&mut connection).await?;
        follow_events(&mut *connection, &TenantSet::All, revision, limit).await
    }

    async fn hint(&self) {
        self.hints.send(&self.pulse).await;
    }

    async fn hinted(&self) {
        self.hints.next(&self.pulse).await;
    }
}

impl SqlStore {
    /// Runs a load and returns its only row.
    async fn load_row(
        &self,
        load: Query<'_, Db, <Db as Database>::Arguments>,
    ) -> Result<Row, StoreError> {
        let mut lent = self.loaders.take().await?;
        let row = load.fetch_one(&mut *lent.connection).await;
        let row = row.map_err(StoreError::from);
        let row = row.and_then(|row| writable(&row).map(|()| row));
        self.loaders.settle(lent, row)
    }

    /// Returns a connection for reads whose rows do not show whether they ran on the primary.
    async fn reader(&self) -> Result<PoolConnection<Db>, StoreError> {
        let mut connection = self.reader.acquire().await?;
        super::admit(&mut connection).await?;
        Ok(connection)
    }

    /// Begins an exclusive transaction: the first statement takes the lock.
    async fn begin_with<T>(
        &self,
        first: &'static str,
        read: impl FnOnce(&Row) -> Result<T, sqlx::Error>,
    ) -> Result<(Transaction, T), StoreError> {
        let mut transaction = Transaction::begin(&self.writer, &self.begin).await?;
        let row = query(first).fetch_one(transaction.connection()).await;
        match row.and_then(|row| read(&row)) {
            Ok(read) => Ok((transaction, read)),
            Err(error) => {
                // The session may take no changes as long as it exists.
                transaction.abort();
                Err(error.into())
            }
        }
    }
}

/// Returns an error if the row was read on a server that takes no changes.
fn writable(row: &Row) -> Result<(), StoreError> {
    if row.try_get("writable")? {
        Ok(())
    } else {
        Err(StoreError::ReadOnly)
    }
}

/// Reads a key with its owner, its tenant and its verifier, if the row has one.
fn grant(row: &Row) -> Result<Option<(Grant, Verifier)>, StoreError> {
    if row.try_get::<Option<&str>, _>("k_key_id")?.is_none() {
        return Ok(None);
    }
    let grant = Grant {
        key: row::key(row),
        owner: row::owner_if_any(row),
        tenant: row::tenant(row),
    };
    Ok(Some((grant, row::verifier(row))))
}

#[async_trait]
impl Store for SqlStore {
    fn loads_at_once(&self) -> usize {
        self.loads_at_once
    }

    async fn load(&self, id: KeyId) -> Result<Loaded, StoreError> {
        let row = self
            .load_row(query(DIALECT.load).bind(id.as_bare()))
            .await?;
        Ok(Loaded {
            head: row.try_get("head")?,
            found: grant(&row)?,
        })
    }

    async fn load_many(&self, ids: &[KeyId]) -> Result<LoadedMany, StoreError> {
        let mut lent = self.loaders.take().await?;
        let rows = query(DIALECT.load_many)
            .bind(super::id_list(ids))
            .fetch_all(&mut *lent.connection)
            .await;
        let rows = self.loaders.settle(lent, rows)?;
        // There is one row even if there is no key.
        let first = rows.first().ok_or(StoreError::Corrupt("log_head"))?;
        writable(first)?;
        let head = first.try_get("head")?;
        let mut found = HashMap::with_capacity(rows.len());
        for (place, row) in rows.into_iter().enumerate() {
            if place % ROWS_A_TURN == ROWS_A_TURN - 1 {
                yield_now().await;
            }
            if let Some((grant, verifier)) = grant(&row)? {
                found.insert(grant.key.key_id, (grant, verifier));
            }
        }
        Ok(LoadedMany { head, found })
    }

    async fn load_owner(&self, tenant: &str, owner: &str) -> Result<LoadedOwner, StoreError> {
        let load = query(DIALECT.load_owner).bind(tenant).bind(owner);
        let row = self.load_row(load).await?;
        Ok(LoadedOwner {
            head: row.try_get("head")?,
            owner: row::owner_if_any(&row),
            tenant: row::tenant(&row),
        })
    }

    async fn count_keys(&self, most: usize) -> Result<usize, StoreError> {
        let count: i64 = query_scalar(statements::COUNT_KEYS)
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .fetch_one(&mut *self.reader().await?)
            .await?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    async fn warm(&self, asked: &WarmQuery) -> Result<WarmPage, StoreError> {
        let [all, used, unused] = DIALECT.warm;
        let page = query(match asked.of {
            WarmSet::All => all,
            WarmSet::Used => used,
            WarmSet::Unused => unused,
        })
        .bind(asked.places.end)
        .bind(asked.now.as_micros())
        .bind(&asked.pepper_id)
        .bind(i64::from(asked.size))
        .bind(WarmPage::FIELD_END)
        .bind(WarmPage::KEY_END)
        .bind(asked.places.start);
        let row = self.load_row(page).await?;
        Ok(WarmPage {
            head: row.try_get("head")?,
            last: row.try_get("last")?,
            keys: usize::try_from(row.try_get::<i64, _>("keys")?).unwrap_or_default(),
            lines: row.try_get::<Option<_>, _>("lines")?.unwrap_or_default(),
        })
    }

    async fn find_key(&self, id: KeyId) -> Result<Option<Key>, StoreError> {
        find_key(&mut *self.reader().await?, id).await
    }

    async fn list_keys(
        &self,
        asked: &KeyQuery,
        now: Timestamp,
        page: &Page,
    ) -> Result<Listed, StoreError> {
        let place = Place {
            now,
            before: numeric_cursor(page).unwrap_or(i64::MAX),
            size: page.size,
        };
        let few = match (&asked.tenants, listing::expires_before(asked, now)) {
            (TenantSet::These(tenants), Some(time)) if tenants.len() == 1 => {
                let sql = sqlx::AssertSqlSafe(listing::count_expiring());
                let count: i64 = query_scalar(sql)
                    .bind(&tenants[0])
                    .bind(time.as_micros())
                    .fetch_one(&mut *self.reader().await?)
                    .await?;
                count <= listing::FEW
            }
            _ => false,
        };
        let statement = listing::list(asked, now, few, POSITION);
        // The listing generates the SQL text; the values of the query are bound.
        let mut list = query(sqlx::AssertSqlSafe(statement.sql));
        for param in statement.params {
            list = match param.value(asked, place) {
                Value::Text(text) => list.bind(text),
                Value::Number(number) => list.bind(number),
            };
        }
        let rows = list
            .persistent(false)
            .fetch_all(&mut *self.reader().await?)
            .await?;
        let looked_to = rows.first().map(|row| row.try_get("looked_to"));
        // If no key is found, one row reports how far the search went.
        let found = |row: &&Row| !matches!(row.try_get("k_key_id"), Ok(None::<&str>));
        let keys = rows.iter().filter(found).map(row::used_key);
        Ok(Listed {
            looked_to: looked_to.transpose()?.flatten(),
            keys: keys.collect(),
        })
    }

    async fn count_living(
        &self,
        tenant: &str,
        owner: Option<&str>,
        now: Timestamp,
        after: i64,
    ) -> Result<LivingCount, StoreError> {
        let sql = owner.map_or(statements::COUNT_LIVING, |_| {
            statements::COUNT_LIVING_OF_OWNER
        });
        let slice = i64::try_from(listing::SLICE).unwrap_or(i64::MAX);
        let mut count = query(sql)
            .bind(tenant)
            .bind(now.as_micros())
            .bind(after)
            .bind(slice);
        if let Some(owner) = owner {
            count = count.bind(owner);
        }
        let row = count.fetch_one(&self.reader).await?;
        let full = row.try_get::<i64, _>("looked")? == slice;
        let last: Option<i64> = row.try_get("last")?;
        Ok(LivingCount {
            living: usize::try_from(row.try_get::<i64, _>("living")?).unwrap_or_default(),
            next: last.filter(|_| full),
        })
    }

    async fn find_owner(&self, tenant: &str, owner: &str) -> Result<Option<Owner>, StoreError> {
        find_owner(&mut *self.reader().await?, tenant, owner).await
    }

    async fn list_owners(&self, tenant: &str, page: &Page) -> Result<Vec<Owner>, StoreError> {
        let rows = query(statements::LIST_OWNERS)
            .bind(tenant)
            .bind(page.after.as_deref().unwrap_or_default())
            .bind(i64::from(page.size))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        Ok(rows.iter().map(row::owner).collect())
    }

    async fn find_tenant(&self, tenant: &str) -> Result<Option<Tenant>, StoreError> {
        find_tenant(&mut *self.reader().await?, tenant).await
    }

    async fn list_tenants(&self, of: &TenantSet, page: &Page) -> Result<Vec<Tenant>, StoreError> {
        let mut sql = QueryBuilder::<Db>::new(statements::LIST_TENANTS);
        sql.push_bind(page.after.clone().unwrap_or_default());
        push_tenants(&mut sql, "t.tenant_id", of);
        sql.push(" ORDER BY t.tenant_id LIMIT ")
            .push_bind(i64::from(page.size));
        let rows = sql.build().fetch_all(&mut *self.reader().await?).await?;
        Ok(rows.iter().map(row::tenant).collect())
    }

    async fn list_events(&self, asked: &EventQuery, page: &Page) -> Result<Vec<Event>, StoreError> {
        let mut sql = QueryBuilder::<Db>::new(statements::LIST_EVENTS);
        sql.push("< ")
            .push_bind(numeric_cursor(page).unwrap_or(i64::MAX));
        push_tenants(&mut sql, "tenant_id", &asked.tenants);
        if let Some(key) = asked.key_id {
            let key = key.as_bare().to_owned();
            sql.push(" AND (key_id = ")
                .push_bind(key.clone())
                .push(statements::EVENTS_AROUND_KEY)
                .push_bind(key)
                .push("))");
        }
        if let Some(owner) = &asked.owner_id {
            sql.push(" AND (owner_id = ")
                .push_bind(owner.clone())
                .push(statements::EVENTS_AROUND_OWNER)
                .push_bind(owner.clone())
                .push(")))");
        }
        if let Some(actor) = &asked.actor {
            sql.push(" AND actor = ").push_bind(actor.clone());
        }
        if let Some(after) = asked.after {
            sql.push(" AND at >= ").push_bind(after.as_micros());
        }
        if let Some(before) = asked.before {
            sql.push(" AND at < ").push_bind(before.as_micros());
        }
        if !asked.kinds.is_empty() {
            let names = asked.kinds.iter().map(|kind| kind.name().to_owned());
            push_in(&mut sql, "kind", names);
        }
        sql.push(" ORDER BY revision DESC LIMIT ")
            .push_bind(i64::from(page.size));
        collect(
            &sql.build().fetch_all(&mut *self.reader().await?).await?,
            row::event,
        )
    }

    async fn follow_events(
        &self,
        of: &TenantSet,
        revision: i64,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError> {
        follow_events(&mut *self.reader().await?, of, revision, limit).await
    }

    async fn head(&self) -> Result<i64, StoreError> {
        let row = query(DIALECT.head).fetch_one(&self.reader).await?;
        writable(&row)?;
        Ok(row.try_get("head")?)
    }

    async fn position(&self) -> Result<LogPosition, StoreError> {
        let row = query(statements::POSITION)
            .fetch_one(&mut *self.reader().await?)
            .await?;
        Ok(LogPosition {
            store_id: row.try_get("store_id")?,
            head: row.try_get("revision")?,
        })
    }

    async fn mark_restored(&self) -> Result<LogPosition, StoreError> {
        let store_id = format!("{:032x}", rand::random::<u128>());
        // First, because a surviving replica must not apply revisions of another log.
        query(statements::RENAME_REPLICAS)
            .execute(&self.pulse)
            .await?;
        let head = query_scalar(statements::RENAME_STORE)
            .bind(&store_id)
            .fetch_one(&self.writer)
            .await?;
        Ok(LogPosition { store_id, head })
    }

    async fn begin(&self) -> Result<Box<dyn Mutation>, StoreError> {
        let next = |row: &Row| row.try_get("revision");
        let (transaction, revision) = self.begin_with(statements::NEXT_REVISION, next).await?;
        Ok(Box::new(SqlMutation {
            transaction,
            revision,
        }))
    }

    async fn pepper_checks(&self) -> Result<Vec<PepperCheck>, StoreError> {
        pepper_checks(&mut *self.reader().await?).await
    }

    async fn record_pepper_checks(&self, choose: &Choose<'_>) -> Result<(), StoreError> {
        let head = |row: &Row| row.try_get("revision");
        let (mut transaction, head) = self.begin_with(statements::LOCK, head).await?;
        let known = pepper_checks(transaction.connection()).await?;
        for record in choose(head, &known) {
            query(statements::INSERT_PEPPER_CHECK)
                .bind(record.pepper_id)
                .bind(record.ordinal)
                .bind(record.argon2_until)
                .bind(record.check_value)
                .execute(transaction.connection())
                .await?;
        }
        Ok(transaction.commit().await?)
    }

    async fn forget_pepper_checks(&self) -> Result<(), StoreError> {
        query(statements::FORGET_PEPPER_CHECKS)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    async fn probe_changes(&self) -> Result<(), StoreError> {
        let (transaction, ()) = self.begin_with(statements::LOCK, |_| Ok(())).await?;
        Ok(transaction.commit().await?)
    }

    async fn count_by_pepper(
        &self,
        now: Timestamp,
    ) -> Result<Vec<(Option<String>, u64)>, StoreError> {
        let rows = query(statements::COUNT_BY_PEPPER)
            .bind(now.as_micros())
            .fetch_all(&mut *self.reader().await?)
            .await?;
        collect(&rows, |row| {
            let count: i64 = row.try_get(1)?;
            Ok((row.try_get(0)?, u64::try_from(count).unwrap_or_default()))
        })
    }

    async fn replace_mac(&self, id: KeyId, mac: &Mac) -> Result<(), StoreError> {
        query(statements::REPLACE_MAC)
            .bind(id.as_bare())
            .bind(&mac.value[..])
            .bind(&mac.pepper_id)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    async fn add_uses(&self, uses: &[(KeyId, Uses)]) -> Result<(), StoreError> {
        if uses.is_empty() {
            return Ok(());
        }
        let mut sql = QueryBuilder::<Db>::new(statements::ADD_USES);
        sql.push_values(uses, |mut row, (key, uses)| {
            row.push_bind(key.as_bare().to_owned())
                .push_bind(uses.last.at.as_micros())
                .push_bind(uses.last.from.map(|ip| ip.to_string()))
                .push_bind(i64::try_from(uses.count).unwrap_or(i64::MAX));
        });
        sql.push(statements::TO_KNOWN_USES);
        // There are as many statements as batch lengths, so none is worth keeping prepared.
        sql.build().persistent(false).execute(&self.writer).await?;
        Ok(())
    }

    async fn close(&self) {
        // This also closes the reader pool, which owns these connections.
        self.loaders.close().await;
        self.hints.close().await;
        self.pulse.close().await;
        // Last: the last connection moves SQLite's write-ahead log into the database file, if it
        // can write.
        self.writer.close().await;
    }
}

struct SqlMutation {
    transaction: Transaction,
    revision: i64,
}

#[async_trait]
impl Mutation for SqlMutation {
    fn revision(&self) -> i64 {
        self.revision
    }

    async fn find_key(&mut self, id: KeyId) -> Result<Option<Key>, StoreError> {
        find_key(self.transaction.connection(), id).await
    }

    async fn find_owner(&mut self, tenant: &str, owner: &str) -> Result<Option<Owner>, StoreError> {
        find_owner(self.transaction.connection(), tenant, owner).await
    }

    async fn find_tenant(&mut self, tenant: &str) -> Result<Option<Tenant>, StoreError> {
        find_tenant(self.transaction.connection(), tenant).await
    }

    async fn find_request(
        &mut self,
        tenant: &str,
        request_id: &str,
    ) -> Result<Option<KeyId>, StoreError> {
        let row = query(statements::FIND_REQUEST)
            .bind(tenant)
            .bind(request_id)
            .fetch_optional(self.transaction.connection())
            .await?;
        row.map(|row| column::key_id(row.try_get(0)?)).transpose()
    }

    async fn list_living(
        &mut self,
        tenant: &str,
        owner: Option<&str>,
        now: Timestamp,
    ) -> Result<Vec<KeyId>, StoreError> {
        let sql = owner.map_or(statements::LIST_LIVING, |_| {
            statements::LIST_LIVING_OF_OWNER
        });
        let mut list = query(sql).bind(tenant).bind(now.as_micros());
        if let Some(owner) = owner {
            list = list.bind(owner);
        }
        let rows = list.fetch_all(self.transaction.connection()).await?;
        // A key whose id cannot be read cannot be listed; RevokeKeys revokes it with the others.
        let ids = rows.iter().filter_map(|row| row.try_get(0).ok());
        Ok(ids.filter_map(|id| column::key_id(id).ok()).collect())
    }

    async fn living_scopes(
        &mut self,
        tenant: &str,
        owner: &str,
        now: Timestamp,
    ) -> Result<Vec<Scopes>, StoreError> {
        let rows = query(statements::LIVING_SCOPES)
            .bind(tenant)
            .bind(now.as_micros())
            .bind(owner)
            .fetch_all(self.transaction.connection())
            .await?;
        collect(&rows, |row| column::scopes(row.try_get(0)?))
    }

    async fn insert_key(
        &mut self,
        key: &Key,
        verifier: &Verifier,
        request_id: Option<&str>,
    ) -> Result<(), StoreError> {
        let mac = verifier.mac.as_ref();
        query(statements::INSERT_KEY)
            .bind(key.key_id.as_bare())
            .bind(&key.tenant_id)
            .bind(&key.owner_id)
            .bind(&key.label)
            .bind(&key.description)
            .bind(&key.prefix)
            .bind(scopes_as_json(&key.scopes))
            .bind(as_json(&key.audiences))
            .bind(cidrs_as_json(key))
            .bind(as_json(&key.metadata))
            .bind(key.suspended)
            .bind(key.created_at.as_micros())
            .bind(&key.created_by)
            .bind(key.expires_at.map(Timestamp::as_micros))
            .bind(key.rotated_from.as_ref().map(KeyId::as_bare))
            .bind(request_id)
            .bind(&key.hash_version)
            .bind(&verifier.phc)
            .bind(mac.map(|mac| &mac.value[..]))
            .bind(mac.map(|mac| &mac.pepper_id))
            .bind(key.created_revision)
            .bind(key.revision)
            .execute(self.transaction.connection())
            .await?;
        Ok(())
    }

    async fn update_key(&mut self, key: &Key) -> Result<(), StoreError> {
        let revoked = key.revoked.as_ref();
        query(statements::UPDATE_KEY)
            .bind(key.key_id.as_bare())
            .bind(&key.label)
            .bind(&key.description)
            .bind(scopes_as_json(&key.scopes))
            .bind(as_json(&key.audiences))
            .bind(cidrs_as_json(key))
            .bind(as_json(&key.metadata))
            .bind(key.suspended)
            .bind(key.expires_at.map(Timestamp::as_micros))
            .bind(revoked.map(|revoked| revoked.at.as_micros()))
            .bind(revoked.map(|revoked| &revoked.by))
            .bind(revoked.map(|revoked| &revoked.reason))
            .bind(key.rotated_to.as_ref().map(KeyId::as_bare))
            .bind(key.revision)
            .execute(self.transaction.connection())
            .await?;
        Ok(())
    }

    async fn revoke_key(&mut self, id: KeyId, revoked: &Revocation) -> Result<(), StoreError> {
        query(statements::REVOKE_KEY)
            .bind(id.as_bare())
            .bind(revoked.at.as_micros())
            .bind(&revoked.by)
            .bind(&revoked.reason)
            .bind(self.revision)
            .execute(self.transaction.connection())
            .await?;
        Ok(())
    }

    async fn revoke_living(
        &mut self,
        tenant: &str,
        owner: Option<&str>,
        now: Timestamp,
        by: &str,
        reason: &str,
    ) -> Result<(), StoreError> {
        let sql = owner.map_or(statements::REVOKE_LIVING, |_| {
            statements::REVOKE_LIVING_OF_OWNER
        });
        let mut revoke = query(sql)
            .bind(tenant)
            .bind(now.as_micros())
            .bind(by)
            .bind(reason)
            .bind(self.revision);
        if let Some(owner) = owner {
            revoke = revoke.bind(owner);
        }
        revoke.execute(self.transaction.connection()).await?;
        Ok(())
    }

    async fn has_living(
        &mut self,
        tenant: &str,
        owner: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let found = query(statements::HAS_LIVING)
            .bind(tenant)
            .bind(now.as_micros())
            .bind(owner)
            .fetch_optional(self.transaction.connection())
            .await?;
        Ok(found.is_some())
    }

    async fn has_keys(&mut self, tenant: &str) -> Result<bool, StoreError> {
        let found = query(statements::HAS_KEYS)
            .bind(tenant)
            .fetch_optional(self.transaction.connection())
            .await?;
        Ok(found.is_some())
    }

    async fn count_owners(&mut self, tenant: &str, most: usize) -> Result<usize, StoreError> {
        let count: i64 = query_scalar(statements::COUNT_OWNERS)
            .bind(tenant)
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .fetch_one(self.transaction.connection())
            .await?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    async fn put_owner(&mut self, owner: &Owner) -> Result<(), StoreError> {
        query(statements::PUT_OWNER)
            .bind(&owner.tenant_id)
            .bind(&owner.owner_id)
            .bind(scopes_as_json(&owner.scopes))
            .bind(as_json(&owner.audiences))
            .bind(owner.suspended)
            .bind(&owner.display_name)
            .bind(owner.revision)
            .execute(self.transaction.connection())
            .await?;
        Ok(())
    }

    async fn delete_owner(&mut self, tenant: &str, owner: &str) -> Result<(), StoreError> {
        query(statements::DELETE_OWNER)
            .bind(tenant)
            .bind(owner)
            .execute(self.transaction.connection())
            .await?;
        Ok(())
    }

    async fn put_tenant(&mut self, tenant: &Tenant) -> Result<(), StoreError> {
        query(statements::PUT_TENANT)
            .bind(&tenant.tenant_id)
            .bind(&tenant.display_name)
            .bind(&tenant.key_prefix)
            .bind(scopes_as_json(&tenant.scope_catalog))
            .bind(tenant.default_ttl.map(as_micros))
            .bind(tenant.max_ttl.map(as_micros))
            .bind(tenant.require_expiry)
            .bind(i64::from(tenant.max_active_keys_per_owner))
            .bind(tenant.on_limit == OnLimit::ReplaceOldest)
            .bind(tenant.require_owner)
            .bind(tenant.required_owner_scope.as_ref().map(Scope::as_str))
            .bind(as_json(&tenant.basic_usernames))
            .bind(tenant.suspended)
            .bind(tenant.revision)
            .execute(self.transaction.connection())
            .await?;
        Ok(())
    }

    async fn delete_tenant(&mut self, tenant: &str) -> Result<(), StoreError> {
        for statement in [statements::DELETE_OWNERS, statements::DELETE_TENANT] {
            query(statement)
                .bind(tenant)
                .execute(self.transaction.connection())
                .await?;
        }
        Ok(())
    }

    async fn commit(mut self: Box<Self>, change: Change) -> Result<(), StoreError> {
        query(statements::INSERT_EVENT)
            .bind(self.revision)
            .bind(change.at.as_micros())
            .bind(&change.actor)
            .bind(change.kind.name())
            .bind(&change.tenant_id)
            .bind(change.key_id.as_ref().map(KeyId::as_bare))
            .bind(&change.owner_id)
            .bind(as_json(&change.details))
            .bind(&change.trace_id)
            .execute(self.transaction.connection())
            .await?;
        let committed = self.transaction.commit().await;
        committed.map_err(|error| StoreError::Unknown(error.into()))
    }
}

async fn pepper_checks(
    on: impl sqlx::Executor<'_, Database = Db>,
) -> Result<Vec<PepperCheck>, StoreError> {
    let rows = query(statements::PEPPER_CHECKS).fetch_all(on).await?;
    collect(&rows, |row| {
        Ok(PepperCheck {
            pepper_id: row.try_get("pepper_id")?,
            ordinal: row.try_get("ordinal")?,
            argon2_until: row.try_get("argon2_until")?,
            check_value: row.try_get("check_value")?,
        })
    })
}

async fn follow_events(
    on: impl sqlx::Executor<'_, Database = Db>,
    of: &TenantSet,
    revision: i64,
    limit: u32,
) -> Result<Vec<Event>, StoreError> {
    let mut sql = QueryBuilder::<Db>::new(statements::LIST_EVENTS);
    sql.push(">= ").push_bind(revision);
    push_tenants(&mut sql, "tenant_id", of);
    sql.push(" ORDER BY revision LIMIT ")
        .push_bind(i64::from(limit));
    collect(&sql.build().fetch_all(on).await?, row::event)
}

async fn find_key(
    on: impl sqlx::Executor<'_, Database = Db>,
    id: KeyId,
) -> Result<Option<Key>, StoreError> {
    let row = query(statements::FIND_KEY)
        .bind(id.as_bare())
        .fetch_optional(on)
        .await?;
    Ok(row.as_ref().map(row::used_key))
}

async fn find_owner(
    on: impl sqlx::Executor<'_, Database = Db>,
    tenant: &str,
    owner: &str,
) -> Result<Option<Owner>, StoreError> {
    let row = query(statements::FIND_OWNER)
        .bind(tenant)
        .bind(owner)
        .fetch_optional(on)
        .await?;
    Ok(row.as_ref().map(row::owner))
}

async fn find_tenant(
    on: impl sqlx::Executor<'_, Database = Db>,
    tenant: &str,
) -> Result<Option<Tenant>, StoreError> {
    let row = query(statements::FIND_TENANT)
        .bind(tenant)
        .fetch_optional(on)
        .await?;
    Ok(row.as_ref().map(row::tenant))
}

fn collect<T>(
    rows: &[Row],
    read: impl Fn(&Row) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    rows.iter().map(read).collect()
}

fn push_tenants(sql: &mut QueryBuilder<Db>, column: &str, of: &TenantSet) {
    if let TenantSet::These(tenants) = of {
        push_in(sql, column, tenants.iter().cloned());
    }
}

/// Appends `AND column IN (…)`, which is false for an empty list.
fn push_in(sql: &mut QueryBuilder<Db>, column: &str, values: impl Iterator<Item = String>) {
    sql.push(" AND ").push(column).push(" IN (NULL");
    for value in values {
        sql.push(", ").push_bind(value);
    }
    sql.push(")");
}

/// Parses the cursor of a list that is ordered by a revision. A cursor that is not a number gives
/// an empty page.
fn numeric_cursor(page: &Page) -> Option<i64> {
    page.after
        .as_ref()
        .map(|cursor| cursor.parse().unwrap_or(0))
}

fn cidrs_as_json(key: &Key) -> String {
    as_json(
        &key.allowed_cidrs
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
    )
}
