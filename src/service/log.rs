//! The log, read: pages of it for auditors, a stream of it for those who follow.
//!
//! Followers look when this process has seen the log grow, whoever changed what: one looks for all.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    quota::Quota,
    refused::{Refused, in_view},
};
use crate::{
    domain::{
        caller::{Action, Caller, Principal},
        clock::Clock,
        event::Event,
        page::Page,
        standing::Standing,
        tenant::SYSTEM,
    },
    store::{EventQuery, LogPosition, Store, StoreError},
};

/// How many events a follower reads at once.
const BATCH: u32 = 200;
/// How many events may wait for a slow subscriber before the follower waits, too.
const AHEAD: usize = 64;
/// How many may follow at once: each of them looks by itself.
const FOLLOWERS_MAX: usize = 256;
/// The most of them by one caller, so that none keeps the others out.
const FOLLOWERS_MAX_PER_CALLER: usize = 16;

/// Reads the log.
pub struct Log {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    grown: watch::Receiver<i64>,
    followers: Arc<Quota<Principal>>,
}

impl Log {
    /// The log in `store`; `grown` tells when it has grown.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, grown: watch::Receiver<i64>) -> Self {
        Self {
            store,
            clock,
            grown,
            followers: Quota::new(FOLLOWERS_MAX, FOLLOWERS_MAX_PER_CALLER),
        }
    }

    /// Events, newest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn list(&self, query: &EventQuery, page: &Page) -> Result<Vec<Event>, StoreError> {
        self.store.list_events(query, page).await
    }

    /// Sends events, oldest first, as they come, until the receiver is dropped or `stop` is
    /// cancelled, and returns where the log ends now. Ends after an error, which it sends: also when
    /// the caller loses the right, or the log becomes another or shorter.
    ///
    /// # Errors
    /// When the caller may not read these events, as many follow as may, or the log does not go
    /// that far.
    pub async fn follow(
        &self,
        mut watch: Watch,
        stop: CancellationToken,
    ) -> Result<(LogPosition, mpsc::Receiver<Result<Event, Refused>>), Refused> {
        in_view(&watch.caller, watch.tenant.clone(), Action::EventsRead)?;
        let place = self.followers.try_take(&watch.caller.principal);
        let place = place.ok_or(Refused::Followed)?;
        let position = self.store.position().await?;
        watch.admit(&position)?;
        watch.store_id = Some(position.store_id.clone());
        let (sender, receiver) = mpsc::channel(AHEAD);
        let follower = Follower {
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            grown: self.grown.clone(),
            watch,
            sender,
        };
        tokio::spawn(async move {
            let _place = place;
            stop.run_until_cancelled(follower.run()).await
        });
        Ok((position, receiver))
    }
}

/// Who wants to know of which events.
#[derive(Clone, Debug)]
pub struct Watch {
    pub caller: Caller,
    /// `None`: every tenant whose events the caller may read.
    pub tenant: Option<String>,
    /// The first revision wanted.
    pub from: i64,
    /// Which log the revision is of; `None`: whichever there is.
    pub store_id: Option<String>,
}

impl Watch {
    /// Checks that the log is the one that is meant, and that it goes up to what is wanted: a
    /// restored backup does neither.
    fn admit(&self, position: &LogPosition) -> Result<(), Refused> {
        let LogPosition { store_id, head } = position;
        if self
            .store_id
            .as_ref()
            .is_some_and(|meant| meant != store_id)
        {
            return Err(Refused::OtherStore(store_id.clone()));
        }
        if self.from > head + 1 {
            return Err(Refused::RevisionAhead(*head));
        }
        Ok(())
    }
}

struct Follower {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    grown: watch::Receiver<i64>,
    watch: Watch,
    sender: mpsc::Sender<Result<Event, Refused>>,
}

impl Follower {
    async fn run(mut self) {
        while !self.sender.is_closed() {
            // Seen before looking, so that a change during the look is looked for again.
            self.grown.mark_unchanged();
            match self.send_new().await {
                Ok(()) => {}
                Err(refused) => {
                    // Gone already: nobody is to be told.
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

    /// Sends what is new to the caller as of now.
    async fn send_new(&mut self) -> Result<(), Refused> {
        let position = self.store.position().await?;
        self.watch.admit(&position)?;
        let head = position.head;
        while self.watch.from <= head {
            let caller = self.watch.caller.clone();
            let of = in_view(&caller, self.watch.tenant.clone(), Action::EventsRead)?;
            let events = self
                .store
                .follow_events(&of, self.watch.from, BATCH)
                .await?;
            // The caller as of after the events: none is told that came after the right was lost.
            self.watch.caller = self.caller_now().await?;
            if self.watch.caller != caller {
                continue;
            }
            let Some(last) = events.last() else {
                self.watch.from = head + 1;
                return Ok(());
            };
            self.watch.from = last.revision + 1;
            for event in events {
                if self.sender.send(Ok(event)).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn caller_now(&self) -> Result<Caller, Refused> {
        let caller = &self.watch.caller;
        let standing = match &caller.principal {
            Principal::Admin => return Ok(caller.clone()),
            Principal::Key(id) => {
                let found = self.store.load(*id).await?.found;
                found.map(|(grant, _)| Standing::of(&grant))
            }
            Principal::Owner(name) => {
                let loaded = self.store.load_owner(SYSTEM, name).await?;
                let owner = loaded.owner.as_ref();
                Some(Standing::of_owner(name, owner, &loaded.tenant))
            }
        };
        let renewed = standing.and_then(|standing| caller.renewed(&standing, self.clock.now()));
        renewed.ok_or(Refused::CallerGone)
    }
}
