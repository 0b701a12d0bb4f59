//! Moves keys to the current pepper, in the background, as they are proven, and counts which pepper
//! is still needed.
//!
//! A key that was proven under an older pepper, or by argon2, is handed over with its new MAC.
//! What cannot be taken now is dropped: the key's next use hands it over again.

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

use super::secret::Secrets;
use crate::{
    domain::{clock::Clock, key::Mac, token::KeyId},
    meter::{Page, Tell},
    store::{Store, StoreError},
};

/// How many keys may wait to be moved.
const WAITING_MAX: usize = 1024;
/// The least time between two counts, when keys were moved between them and when not.
const COUNT_AGAIN: [Duration; 2] = [Duration::from_millis(100), Duration::from_mins(1)];
/// The least time between two counts as a multiple of what a count takes: counting reads an index of
/// all keys.
const COUNT_SHARE: [u32; 2] = [100, 1000];
/// The labels of keys without a MAC, and of keys under a pepper that is not in the file. No pepper's
/// id has parentheses.
const NO_PEPPER: &str = "(none)";
const OTHER_PEPPER: &str = "(other)";

/// How many working keys are under which pepper, by its id or label.
type Counts = BTreeMap<String, u64>;

/// Where keys to be moved are handed over.
#[derive(Clone)]
pub struct Repepper {
    waiting: mpsc::Sender<(KeyId, Mac)>,
    counts: Arc<Mutex<Counts>>,
}

impl Repepper {
    /// Starts moving and counting keys on the current runtime, until the returned handle and its
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

    /// Hands over a key with its MAC under the current pepper, and says whether it was taken.
    #[must_use]
    pub fn move_key(&self, id: KeyId, mac: Mac) -> bool {
        self.waiting.try_send((id, mac)).is_ok()
    }
}

impl Tell for Repepper {
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result {
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
    /// Those that were in use before the current one, and were not logged as unused.
    older: Vec<String>,
    counts: Arc<Mutex<Counts>>,
    /// Whether the first counts were logged.
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

    /// Moves this key and those that wait.
    async fn move_all(&self, first: (KeyId, Mac), waiting: &mut mpsc::Receiver<(KeyId, Mac)>) {
        let mut next = Some(first);
        while let Some((id, mac)) = next {
            if let Err(error) = self.store.replace_mac(id, &mac).await {
                warn!(key_id = %id, error = &error as &dyn std::error::Error, "a key could not be moved to the current pepper");
            }
            next = waiting.try_recv().ok();
        }
    }

    /// Counts the keys of each pepper, and logs, once, each older pepper that no key needs any more.
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
