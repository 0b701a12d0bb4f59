//! Moves keys to the current pepper, in the background, as they are proven.
//!
//! A key that was proven under an older pepper, or by argon2, is handed over with its new MAC.
//! What cannot be taken now is dropped: the key's next use hands it over again. [`check`] tells,
//! before anything is served, whether the peppers are the right ones.

use std::sync::Arc;

use thiserror::Error;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::secret::{Peppers, Secrets};
use crate::{
    domain::{key::Mac, token::KeyId},
    store::{Store, StoreError},
};

/// How many keys may wait to be moved.
const WAITING_MAX: usize = 1024;

/// Why these peppers must not be used with this store.
#[derive(Debug, Error)]
pub enum PepperMismatch {
    #[error("the pepper {0} is not the one that the store knows by that id")]
    Wrong(String),
    #[error(
        "it has none of the peppers that the store's keys were made under ({0}): restore it, or, if they are lost, run `gatekey migrate --forget-peppers`, after which those keys are checked by argon2 until each has been used once"
    )]
    Lost(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks that the peppers are those that the store was used with, and records new ones.
///
/// # Errors
/// See [`PepperMismatch`]. Without any pepper nothing is checked.
pub async fn check(store: &dyn Store, peppers: &Peppers) -> Result<(), PepperMismatch> {
    let known = store.pepper_checks().await?;
    let mut unknown = Vec::new();
    for (id, check) in peppers.checks() {
        match known.iter().find(|(known, _)| known == id) {
            Some((_, expected)) if *expected == check => {}
            Some(_) => return Err(PepperMismatch::Wrong(id.to_owned())),
            None => unknown.push((id, check)),
        }
    }
    if !known.is_empty() && !unknown.is_empty() && unknown.len() == peppers.checks().count() {
        return Err(PepperMismatch::Lost(ids(&known)));
    }
    for (id, check) in unknown {
        store.insert_pepper_check(id, &check).await?;
    }
    Ok(())
}

fn ids(known: &[(String, Vec<u8>)]) -> String {
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

    /// Hands over a key with its MAC under the current pepper.
    pub fn move_key(&self, id: KeyId, mac: Mac) {
        // Full: the key's next use hands it over again.
        let _ = self.0.try_send((id, mac));
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
