//! The log, read: pages of it for auditors, a stream of it for those who follow.
//!
//! Followers are woken by this process's own changes, and look by themselves for those of
//! others: what they see is right without any wake.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time,
};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{caller::TenantSet, event::Event, page::Page},
    store::{EventQuery, Store, StoreError},
};

/// How often a follower looks for changes made by other replicas.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How many events a follower reads at once.
const BATCH: u32 = 200;
/// How many events may wait for a slow subscriber before the follower waits, too.
const AHEAD: usize = 64;

/// Reads the log.
pub struct Log {
    store: Arc<dyn Store>,
    changed: watch::Receiver<i64>,
}

impl Log {
    /// The log in `store`; `changed` tells of this process's own changes.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, changed: watch::Receiver<i64>) -> Self {
        Self { store, changed }
    }

    /// Events, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn list(&self, query: &EventQuery, page: &Page) -> Result<Vec<Event>, StoreError> {
        self.store.list_events(query, page).await
    }

    /// Sends the events of these tenants from `revision` on, oldest first, as they come, until
    /// the receiver is dropped or `stop` is cancelled. Ends after an error, which it sends.
    #[must_use]
    pub fn follow(
        &self,
        of: TenantSet,
        revision: i64,
        stop: CancellationToken,
    ) -> mpsc::Receiver<Result<Event, StoreError>> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let follower = Follower {
            store: Arc::clone(&self.store),
            changed: self.changed.clone(),
            of,
            next: revision,
            sender,
        };
        tokio::spawn(async move { stop.run_until_cancelled(follower.run()).await });
        receiver
    }
}

struct Follower {
    store: Arc<dyn Store>,
    changed: watch::Receiver<i64>,
    of: TenantSet,
    next: i64,
    sender: mpsc::Sender<Result<Event, StoreError>>,
}

impl Follower {
    async fn run(mut self) {
        while !self.sender.is_closed() {
            // Seen before looking, so that a change during the look is looked for again.
            self.changed.mark_unchanged();
            if self.send_new().await.is_err() {
                return;
            }
            tokio::select! {
                _ = self.changed.changed() => {}
                () = time::sleep(LOOK_EVERY) => {}
                () = self.sender.closed() => return,
            }
        }
    }

    /// Sends what is new. `Err`: the subscriber is gone, or was told of an error.
    async fn send_new(&mut self) -> Result<(), ()> {
        loop {
            let events = match self.store.follow_events(&self.of, self.next, BATCH).await {
                Ok(events) => events,
                Err(error) => {
                    let _ = self.sender.send(Err(error)).await;
                    return Err(());
                }
            };
            if events.is_empty() {
                return Ok(());
            }
            for event in events {
                self.next = event.revision + 1;
                self.sender.send(Ok(event)).await.map_err(drop)?;
            }
        }
    }
}
