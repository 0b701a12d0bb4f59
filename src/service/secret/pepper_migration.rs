//! Migrates keys to the current pepper, in the background, as their secrets are verified, and
//! counts the keys that still need each pepper.
//!
//! A key that was verified under an older pepper, or by Argon2, is queued with its new MAC. A key
//! that does not fit into the queue is dropped; its next use queues it again.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::Secrets;
use crate::{
    domain::{clock::Clock, key::Mac, token::KeyId},
    metrics::{Collect, Encoder},
    store::{Store, StoreError},
};

/// Maximum number of keys that wait for migration.
const WAITING_MAX: usize = 1024;
/// Minimum time between two counts, if keys were migrated between them and if not.
const COUNT_AGAIN: [Duration; 2] = [Duration::from_millis(100), Duration::from_mins(1)];
/// Minimum time between two counts as a multiple of the duration of a count, in the same two cases.
/// Counting reads an index of all keys.
const COUNT_SHARE: [u32; 2] = [100, 1000];
/// Labels for keys without a MAC, and for keys under a pepper that is not in the file. No pepper id
/// contains parentheses.
const NO_PEPPER: &str = "(none)";
const OTHER_PEPPER: &str = "(other)";

/// Number of working keys per pepper, by its id or label.
type Counts = BTreeMap<String, u64>;

/// A handle that queues keys for migration.
#[derive(Clone)]
pub struct PepperMigration {
    waiting: mpsc::Sender<(KeyId, Mac)>,
    counts: Arc<Mutex<Counts>>,
}

impl PepperMigration {
    /// Starts to migrate and count keys on the current runtime, until the returned handle and its
    /// clones are dropped.
    #[must_use]
    pub fn start(store: Arc<dyn Store>, secrets: &Secrets, clock: Arc<dyn Clock>) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let counts = Arc::default();
        let mover = Mover {
            store,
            clock,
            older: secrets.peppers().older().to_vec(),
            ids: secrets.peppers().ids().map(str::to_owned).collect(),
            counts: Arc::clone(&counts),
            logged: false,
        };
        tokio::spawn(mover.run(receiver));
        Self {
            waiting: sender,
            counts,
        }
    }

    /// Queues a key with its MAC under the current pepper. Returns true if it was accepted.
    #[must_use]
    pub fn move_key(&self, id: KeyId, mac: Mac) -> bool {
        self.waiting.try_send((id, mac)).is_ok()
    }
}

impl Collect for PepperMigration {
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        page.gauges(
            "gatekey_pepper_keys",
            "Keys that are neither revoked nor expired, by the pepper of their MAC",
            counts
                .iter()
                .map(|(pepper, count)| ([("pepper", &**pepper)], *count)),
        )
    }
}

struct Mover {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    /// The ids of the peppers in the file.
    ids: Vec<String>,
    /// The peppers that were in use before the current one and have not been logged as unused.
    older: Vec<String>,
    counts: Arc<Mutex<Counts>>,
    /// True once the first counts have been logged.
    logged: bool,
}

impl Mover {
    async fn run(mut self, mut waiting: mpsc::Receiver<(KeyId, Mac)>) {
        let (mut counted, mut took) = (Instant::now(), Duration::ZERO);
        let mut next = counted;
        loop {
            tokio::select! {
                moved = waiting.recv() => {
                    let Some(first) = moved else {
                        return;
                    };
                    self.move_all(first, &mut waiting).await;
                    next = next.min(counted + COUNT_AGAIN[0].max(took * COUNT_SHARE[0]));
                }
                () = sleep_until(next) => {
                    let began = Instant::now();
                    if let Err(error) = self.count().await {
                        let error = &error as &dyn std::error::Error;
                        warn!(error, "the keys of each pepper could not be counted");
                    }
                    (counted, took) = (Instant::now(), began.elapsed());
                    next = counted + COUNT_AGAIN[1].max(took * COUNT_SHARE[1]);
                }
            }
        }
    }

    /// Migrates this key and the queued ones.
    async fn move_all(&self, first: (KeyId, Mac), waiting: &mut mpsc::Receiver<(KeyId, Mac)>) {
        let mut next = Some(first);
        while let Some((id, mac)) = next {
            if let Err(error) = self.store.replace_mac(id, &mac).await {
                warn!(key_id = %id, error = &error as &dyn std::error::Error, "a key could not be moved to the current pepper");
            }
            next = waiting.try_recv().ok();
        }
    }

    /// Counts the keys of each pepper. Logs each older pepper once when no key needs it any more.
    async fn count(&mut self) -> Result<(), StoreError> {
        let mut counts: Counts = self.ids.iter().map(|id| (id.clone(), 0)).collect();
        for (pepper, count) in self.store.count_by_pepper(self.clock.now()).await? {
            let label = match pepper {
                None => NO_PEPPER.to_owned(),
                Some(id) if self.ids.contains(&id) => id,
                Some(_) => OTHER_PEPPER.to_owned(),
            };
            *counts.entry(label).or_default() += count;
        }
        let shown: Vec<_> = counts
            .iter()
            .map(|(id, count)| format!("{id}: {count}"))
            .collect();
        let shown = shown.join(", ");
        if !self.logged {
            self.logged = true;
            info!(keys = shown, "working keys by pepper");
        }
        self.older.retain(|pepper| {
            let needed = counts.get(pepper).is_some_and(|count| *count > 0);
            if !needed {
                info!(
                    pepper,
                    keys = shown,
                    "no working key is under this pepper any more: its line can be removed"
                );
            }
            needed
        });
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
        Ok(())
    }
}
