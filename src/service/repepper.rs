//! Moves keys to the current pepper, in the background, as they are proven.
//!
//! A key that was proven under an older pepper, or by argon2, is handed over with its new MAC.
//! What cannot be taken now is dropped: the key's next use hands it over again. [`check`] tells,
//! before anything is served, whether the peppers are the right ones.

use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::secret::{Peppers, Secrets};
use crate::{
    domain::{key::Mac, token::KeyId},
    store::{PepperCheck, Store, StoreError},
};

/// How many keys may wait to be moved.
const WAITING_MAX: usize = 1024;

/// Why these peppers must not be used with this store.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Unfit {
    #[error("the pepper {0} is not the one that the store knows by that id")]
    Wrong(String),
    #[error(
        "it has none of the peppers that the store's keys were made under ({0}): restore it, or, if they are lost, run `gatekey migrate --forget-peppers`, after which those keys are checked by argon2 until each has been used once"
    )]
    Lost(String),
}

/// Why the peppers could not be admitted.
#[derive(Debug, Error)]
pub enum PepperMismatch {
    #[error(transparent)]
    Unfit(Unfit),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks that the peppers are those that the store was used with, and records new ones.
///
/// # Errors
/// See [`PepperMismatch`]. Without any pepper nothing is checked.
pub async fn check(store: &dyn Store, peppers: &Peppers) -> Result<(), PepperMismatch> {
    let ours: Vec<_> = peppers
        .checks()
        .map(|(id, check)| (id.to_owned(), check.to_vec()))
        .collect();
    let judged = Mutex::new(Ok(()));
    store
        .record_pepper_checks(&|known| {
            let missing = unrecorded(known, &ours);
            let mut judged = judged.lock().unwrap_or_else(PoisonError::into_inner);
            *judged = missing.as_ref().map(drop).map_err(Clone::clone);
            missing.unwrap_or_default()
        })
        .await?;
    judged
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .map_err(PepperMismatch::Unfit)
}

/// Which of our peppers the store does not know yet.
fn unrecorded(known: &[PepperCheck], ours: &[PepperCheck]) -> Result<Vec<PepperCheck>, Unfit> {
    let of = |id: &str| known.iter().find(|(known, _)| known == id);
    if let Some((id, _)) = ours
        .iter()
        .find(|(id, check)| of(id).is_some_and(|(_, known)| known != check))
    {
        return Err(Unfit::Wrong(id.clone()));
    }
    let (recorded, missing): (Vec<_>, Vec<_>) =
        ours.iter().cloned().partition(|(id, _)| of(id).is_some());
    if !known.is_empty() && !ours.is_empty() && recorded.is_empty() {
        return Err(Unfit::Lost(ids(known)));
    }
    Ok(missing)
}

fn ids(known: &[PepperCheck]) -> String {
    known
        .iter()
        .map(|(id, _)| &**id)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Where keys to be moved are handed over.
#[derive(Clone)]
pub struct Repepper(mpsc::Sender<(KeyId, Mac)>);

impl Repepper {
    /// Starts moving keys on the current runtime, until the returned handle and its clones are
    /// dropped.
    #[must_use]
    pub fn start(store: Arc<dyn Store>, secrets: Arc<Secrets>) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(run(store, secrets, receiver));
        Self(sender)
    }

    /// Hands over a key with its MAC under the current pepper, and says whether it was taken.
    #[must_use]
    pub fn move_key(&self, id: KeyId, mac: Mac) -> bool {
        self.0.try_send((id, mac)).is_ok()
    }
}

async fn run(
    store: Arc<dyn Store>,
    secrets: Arc<Secrets>,
    mut waiting: mpsc::Receiver<(KeyId, Mac)>,
) {
    let mut older: Vec<String> = secrets
        .peppers()
        .checks()
        .skip(1)
        .map(|(id, _)| id.to_owned())
        .collect();
    loop {
        // Nothing is waiting now: a good time to see what is left under the older peppers.
        if let Err(error) = tell_unused(&*store, &mut older).await {
            warn!(
                error = &error as &dyn std::error::Error,
                "older peppers could not be counted"
            );
        }
        let Some(mut next) = waiting.recv().await else {
            return;
        };
        loop {
            let (id, mac) = next;
            if let Err(error) = store.replace_mac(id, &mac).await {
                warn!(key_id = %id, error = &error as &dyn std::error::Error, "a key could not be moved to the current pepper");
            }
            match waiting.try_recv() {
                Ok(another) => next = another,
                Err(_) => break,
            }
        }
    }
}

/// Says, once, of each older pepper that no key is under it any more.
async fn tell_unused(store: &dyn Store, older: &mut Vec<String>) -> Result<(), StoreError> {
    for place in (0..older.len()).rev() {
        if !store.names_pepper(&older[place]).await? {
            let pepper = older.swap_remove(place);
            info!(
                pepper,
                "no key is under this pepper any more: its line can be removed"
            );
        }
    }
    Ok(())
}
