//! Decides about many presented keys at once. One statement reads all that are not cached.
//!
//! A batch holds the load slots of the keys that it reads, as a single load does. It must not wait
//! for another call's load meanwhile, because two batches could then wait for each other. It waits
//! when it holds no slot, and reads the keys that the other call did not find with a second
//! statement.

use std::{collections::HashMap, sync::Arc};

use futures_util::future::join_all;
use tokio::task::yield_now;

use super::{Decision, Row, ValidateError, ValidationRequest, Validator, in_time, unpresented};
use crate::{
    domain::token::{KeyId, Presented},
    service::cache::{LoadSlot, Lookup},
    store::LoadedMany,
};

/// Number of keys after which other calls of the same thread get a turn: about 50 microseconds.
const KEYS_A_TURN: usize = 32;

/// The decisions about the questions of a batch.
pub struct Batch {
    /// One for each question, in the same order. `None` if its key could not be loaded.
    pub decisions: Vec<Option<Result<Decision, ValidateError>>>,
    /// The reason that keys could not be loaded.
    pub failed: Option<ValidateError>,
}

/// A presented key, and the place of its question.
struct Item<'a> {
    place: usize,
    presented: Presented<'a>,
    mac: [u8; 32],
    /// The cache entry; missing if the key must be loaded.
    hit: Option<Row>,
}

impl Validator {
    /// Decides about each question as [`Validator::validate`] does.
    pub async fn validate_batch(&self, questions: &[ValidationRequest<'_>]) -> Batch {
        let mut decisions: Vec<_> = questions.iter().map(|_| None).collect();
        let mut items = Vec::with_capacity(questions.len());
        for (place, question) in questions.iter().enumerate() {
            if place % KEYS_A_TURN == KEYS_A_TURN - 1 {
                yield_now().await;
            }
            match question.credential.presented() {
                Some(presented) => items.push(Item {
                    place,
                    presented,
                    mac: self.secrets.memory_mac(presented),
                    hit: self.cache.get(presented.id(), &*self.clock).map(Row::Entry),
                }),
                None => decisions[place] = Some(Ok(unpresented(question))),
            }
        }
        let (rows, failed) = self.load_missing(&items).await;
        let loaded = items.iter().filter_map(|item| {
            let row = item.hit.as_ref();
            let row = row.or_else(|| rows.get(&item.presented.id()))?;
            Some(async move {
                let proven = self.prove_row(item.presented, &item.mac, row).await;
                (item, proven)
            })
        });
        for (item, proven) in join_all(loaded).await {
            let question = &questions[item.place];
            let decided = proven.map(|entry| self.decide(question, item.presented, entry));
            decisions[item.place] = Some(decided);
        }
        Batch { decisions, failed }
    }

    /// Loads the keys that were no cache hits. After an error, some are missing.
    async fn load_missing(
        &self,
        items: &[Item<'_>],
    ) -> (HashMap<KeyId, Row>, Option<ValidateError>) {
        let mut rows = HashMap::new();
        let missing = items.iter().filter(|item| item.hit.is_none());
        let mut ids: Vec<_> = missing.map(|item| item.presented.id()).collect();
        ids.sort_unstable();
        ids.dedup();
        let failed = self.load_ids(&ids, &mut rows).await.err();
        (rows, failed)
    }

    async fn load_ids(
        &self,
        ids: &[KeyId],
        rows: &mut HashMap<KeyId, Row>,
    ) -> Result<(), ValidateError> {
        let (mut slots, mut busy) = (Vec::new(), Vec::new());
        for id in ids {
            match self.cache.try_look(*id, &*self.clock).await {
                Some(Lookup::Hit(entry)) => drop(rows.insert(*id, Row::Entry(entry))),
                Some(Lookup::Miss(slot)) => slots.push((*id, slot)),
                None => busy.push(*id),
            }
        }
        let loaded = self.load_keys(slots, rows).await;
        // Waits even after an error, because another call may load the rest.
        let others = busy.iter().map(|id| self.other_load(*id));
        let others = in_time(join_all(others)).await?;
        let mut rest = Vec::new();
        for (id, row) in busy.into_iter().zip(others) {
            if let Some(row) = row {
                rows.insert(id, row);
                continue;
            }
            match self.cache.try_look(id, &*self.clock).await {
                Some(Lookup::Hit(entry)) => drop(rows.insert(id, Row::Entry(entry))),
                Some(Lookup::Miss(slot)) => rest.push((id, slot)),
                // Another call loads it again. This one reads it, too, and does not cache it.
                None => rest.push((id, None)),
            }
        }
        loaded?;
        self.load_keys(rest, rows).await
    }

    /// Waits for a load by another call. Returns `None` if it did not cache the key.
    async fn other_load(&self, id: KeyId) -> Option<Row> {
        match self.cache.look(id, &*self.clock).await {
            Lookup::Hit(entry) => Some(Row::Entry(entry)),
            // Releases the slot at once: no slot may be held while this call waits.
            Lookup::Miss(_) => None,
        }
    }

    /// Reads keys with one statement, and caches them under the guard of a single load.
    async fn load_keys(
        &self,
        wanted: Vec<(KeyId, Option<LoadSlot<'_>>)>,
        rows: &mut HashMap<KeyId, Row>,
    ) -> Result<(), ValidateError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let ticket = self.cache.ticket();
        let ids: Vec<_> = wanted.iter().map(|(id, _)| *id).collect();
        let store = Arc::clone(&self.store);
        let load = async move { store.load_many(&ids).await };
        let LoadedMany { head, mut found } = self.load(load).await?;
        for (id, slot) in wanted {
            let found = found.remove(&id);
            rows.insert(id, self.accept(id, found, (head, ticket), slot));
        }
        Ok(())
    }
}
