//! Reads the event log: pages of it for auditors, a stream of it for followers.
//!
//! Followers read when this process has seen the log grow, whichever replica made the change. One
//! reader watches the log for all followers.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    error::{ServiceError, in_view},
    quota::Quota,
};
use crate::{
    domain::{
        caller::{Action, Caller, Principal},
        clock::Clock,
        event::Event,
        key_policy::KeyPolicy,
        page::Page,
        tenant::SYSTEM,
    },
    store::{EventQuery, LogPosition, Store, StoreError},
};

/// Maximum number of events that a follower reads in one query.
const BATCH: u32 = 200;
/// Maximum number of events buffered for a slow subscriber before the follower waits.
const AHEAD: usize = 64;
/// Maximum number of concurrent followers; each one queries the database separately.
const FOLLOWERS_MAX: usize = 256;
/// Maximum number of followers per caller, so that one caller cannot exclude the others.
const FOLLOWERS_MAX_PER_CALLER: usize = 16;

/// Reads the event log.
pub struct Log {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    grown: watch::Receiver<i64>,
    followers: Arc<Quota<Principal>>,
}

impl Log {
    /// Returns a reader of the log in `store`; `grown` signals that the log has grown.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, grown: watch::Receiver<i64>) -> Self {
        Self {
            store,
            clock,
            grown,
            followers: Quota::new(FOLLOWERS_MAX, FOLLOWERS_MAX_PER_CALLER),
        }
    }

    /// Returns events, newest first.
    ///
    /// # Errors
    /// Returns an error if the database does not respond.
    pub async fn list(&self, query: &EventQuery, page: &Page) -> Result<Vec<Event>, StoreError> {
        self.store.list_events(query, page).await
    }

    /// Sends new events, oldest first, until the receiver is dropped or `stop` is cancelled.
    /// Returns the current end of the log, and the receiver. The stream ends after an error, which
    /// it sends. The loss of the caller's permission, a replaced log and a shorter log are such
    /// errors.
    ///
    /// # Errors
    /// Returns an error if the caller may not read these events, too many followers exist, or the
    /// log ends before the requested revision.
    pub async fn follow(
        &self,
        mut watch: Watch,
        stop: CancellationToken,
    ) -> Result<(LogPosition, mpsc::Receiver<Result<Event, ServiceError>>), ServiceError> {
        in_view(&watch.caller, watch.tenant.clone(), Action::EventsRead)?;
        let place = self.followers.try_take(&watch.caller.principal);
        let place = place.ok_or(ServiceError::Followed)?;
        let position = self.store.position().await?;
        watch.admit(&position)?;
        watch.store_id = Some(position.store_id.clone());
        let next = watch.from.unwrap_or(position.head + 1);
        let (sender, receiver) = mpsc::channel(AHEAD);
        let follower = Follower {
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            grown: self.grown.clone(),
            watch,
            next,
            sender,
        };
        tokio::spawn(async move {
            let _place = place;
            stop.run_until_cancelled(follower.run()).await
        });
        Ok((position, receiver))
    }
}

/// A caller and the events that it subscribes to.
#[derive(Clone, Debug)]
pub struct Watch {
    pub caller: Caller,
    /// `None` means every tenant whose events the caller may read.
    pub tenant: Option<String>,
    /// The first requested revision; `None` means the first one after the end of the log.
    pub from: Option<i64>,
    /// The log that the revision belongs to; `None` means the existing one.
    pub store_id: Option<String>,
}

impl Watch {
    /// Checks that the log is the requested one and reaches the requested revision. A restored
    /// backup meets neither condition.
    fn admit(&self, position: &LogPosition) -> Result<(), ServiceError> {
        let LogPosition { store_id, head } = position;
        if self
            .store_id
            .as_ref()
            .is_some_and(|meant| meant != store_id)
        {
            return Err(ServiceError::OtherStore(store_id.clone()));
        }
        if self.from.is_some_and(|from| from > head + 1) {
            return Err(ServiceError::RevisionAhead(*head));
        }
        Ok(())
    }
}

struct Follower {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    grown: watch::Receiver<i64>,
    watch: Watch,
    /// The first revision that was not sent yet.
    next: i64,
    sender: mpsc::Sender<Result<Event, ServiceError>>,
}

impl Follower {
    async fn run(mut self) {
        while !self.sender.is_closed() {
            // Marked before the read, so that a change during the read causes another read.
            self.grown.mark_unchanged();
            match self.send_new().await {
                Ok(()) => {}
                Err(refused) => {
                    // A failed send means that the receiver is gone and nobody needs the error.
                    let _ = self.sender.send(Err(refused)).await;
                    return;
                }
            }
            tokio::select! {
                grown = self.grown.changed() => if grown.is_err() {
                    return;
                },
                () = self.sender.closed() => return,
            }
        }
    }

    /// Sends the new events that the caller may currently read.
    async fn send_new(&mut self) -> Result<(), ServiceError> {
        let position = self.store.position().await?;
        self.watch.from = Some(self.next);
        self.watch.admit(&position)?;
        let head = position.head;
        while self.next <= head {
            let caller = self.watch.caller.clone();
            let of = in_view(&caller, self.watch.tenant.clone(), Action::EventsRead)?;
            let events = self.store.follow_events(&of, self.next, BATCH).await?;
            // Reloads the caller after the events: no event is sent that occurred after the
            // permission was lost.
            self.watch.caller = self.caller_now().await?;
            if self.watch.caller != caller {
                continue;
            }
            let Some(last) = events.last() else {
                self.next = head + 1;
                return Ok(());
            };
            self.next = last.revision + 1;
            for event in events {
                if self.sender.send(Ok(event)).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn caller_now(&self) -> Result<Caller, ServiceError> {
        let caller = &self.watch.caller;
        let policy = match &caller.principal {
            Principal::Admin => return Ok(caller.clone()),
            Principal::Key(id) => {
                let found = self.store.load(*id).await?.found;
                found.map(|(grant, _)| KeyPolicy::of(&grant))
            }
            Principal::Owner(name) => {
                let loaded = self.store.load_owner(SYSTEM, name).await?;
                let owner = loaded.owner.as_ref();
                Some(KeyPolicy::of_owner(name, owner, &loaded.tenant))
            }
        };
        let renewed = policy.and_then(|policy| caller.renewed(&policy, self.clock.now()));
        renewed.ok_or(ServiceError::CallerGone)
    }
}
