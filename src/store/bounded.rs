//! A mutation that is given up when the database stays silent: on a connection whose other end is
//! gone and has not said so, an answer would be waited for until TCP gives up, a quarter of an hour.

use async_trait::async_trait;
use tokio::time;

use super::{Mutation, SILENCE, StoreError};
use crate::domain::{
    clock::Timestamp,
    event::Change,
    key::{Key, Verifier},
    owner::Owner,
    tenant::Tenant,
    token::KeyId,
};

/// Gives up what does not answer for longer than [`SILENCE`].
pub(super) struct Bounded<M>(pub M);

/// What is answered, if that is in time.
pub(super) async fn in_time<T>(
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let answered = time::timeout(SILENCE, answer).await;
    answered.unwrap_or_else(|late| Err(StoreError::Unavailable(late.into())))
}

#[async_trait]
impl<M: Mutation> Mutation for Bounded<M> {
    fn revision(&self) -> i64 {
        self.0.revision()
    }

    async fn find_key(&mut self, id: KeyId) -> Result<Option<Key>, StoreError> {
        in_time(self.0.find_key(id)).await
    }

    async fn find_owner(&mut self, tenant: &str, owner: &str) -> Result<Option<Owner>, StoreError> {
        in_time(self.0.find_owner(tenant, owner)).await
    }

    async fn find_tenant(&mut self, tenant: &str) -> Result<Option<Tenant>, StoreError> {
        in_time(self.0.find_tenant(tenant)).await
    }

    async fn find_request(
        &mut self,
        tenant: &str,
        request_id: &str,
    ) -> Result<Option<KeyId>, StoreError> {
        in_time(self.0.find_request(tenant, request_id)).await
    }

    async fn list_living(
        &mut self,
        tenant: &str,
        owner: Option<&str>,
        now: Timestamp,
    ) -> Result<Vec<KeyId>, StoreError> {
        in_time(self.0.list_living(tenant, owner, now)).await
    }

    async fn insert_key(
        &mut self,
        key: &Key,
        verifier: &Verifier,
        request_id: Option<&str>,
    ) -> Result<(), StoreError> {
        in_time(self.0.insert_key(key, verifier, request_id)).await
    }

    async fn update_key(&mut self, key: &Key) -> Result<(), StoreError> {
        in_time(self.0.update_key(key)).await
    }

    async fn revoke_living(
        &mut self,
        tenant: &str,
        owner: Option<&str>,
        now: Timestamp,
        by: &str,
        reason: &str,
    ) -> Result<(), StoreError> {
        in_time(self.0.revoke_living(tenant, owner, now, by, reason)).await
    }

    async fn put_owner(&mut self, owner: &Owner) -> Result<(), StoreError> {
        in_time(self.0.put_owner(owner)).await
    }

    async fn delete_owner(&mut self, tenant: &str, owner: &str) -> Result<(), StoreError> {
        in_time(self.0.delete_owner(tenant, owner)).await
    }

    async fn put_tenant(&mut self, tenant: &Tenant) -> Result<(), StoreError> {
        in_time(self.0.put_tenant(tenant)).await
    }

    async fn commit(self: Box<Self>, change: Change) -> Result<(), StoreError> {
        let committed = time::timeout(SILENCE, Box::new(self.0).commit(change)).await;
        committed.unwrap_or_else(|late| Err(StoreError::Unknown(late.into())))
    }
}
