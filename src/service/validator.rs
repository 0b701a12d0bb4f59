//! A presented key → a decision.
//!
//! A refusal is a value; an error means that nothing could be decided. Nothing on this way
//! writes, and nothing is logged a call.

use std::sync::Arc;

use thiserror::Error;

use super::{
    repepper::Repepper,
    secret::{Busy, Proof, Secrets},
};
use crate::{
    domain::{
        clock::Clock,
        credential::Credential,
        key::{Ask, Grant, Refusal},
        token::Presented,
    },
    store::{Store, StoreError},
};

/// Why nothing could be decided.
#[derive(Debug, Error)]
pub enum Undecided {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Busy(#[from] Busy),
}

/// What is to be known about a presented credential.
pub struct Question<'a> {
    pub credential: &'a Credential,
    /// Whether a key of this tenant may be told of at all: the call's tenant, the caller's
    /// rights.
    pub in_view: &'a (dyn Fn(&str) -> bool + Sync),
    pub ask: Ask<'a>,
}

/// What is known about a presented credential.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It is not shaped like a key, or its checksum is wrong.
    Malformed,
    /// An unknown id, a wrong secret or a key out of view: one answer, for the same work.
    NotFound,
    /// The secret is right, and still the key is refused.
    Refused(Box<Grant>, Refusal),
    /// The key may be used as asked.
    Allowed(Box<Grant>),
}

/// Decides about presented keys.
pub struct Validator {
    store: Arc<dyn Store>,
    secrets: Arc<Secrets>,
    clock: Arc<dyn Clock>,
    repepper: Repepper,
}

impl Validator {
    /// A validator of the keys in `store`.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        secrets: Arc<Secrets>,
        clock: Arc<dyn Clock>,
        repepper: Repepper,
    ) -> Self {
        Self {
            store,
            secrets,
            clock,
            repepper,
        }
    }

    /// Decides whether a credential may be used as asked.
    ///
    /// # Errors
    /// When it could not decide: the store does not answer, or too much is being hashed.
    pub async fn validate(&self, question: &Question<'_>) -> Result<Decision, Undecided> {
        let Some(presented) = question.credential.presented() else {
            return Ok(Decision::Malformed);
        };
        let Some(grant) = self.prove(presented).await? else {
            return Ok(Decision::NotFound);
        };
        let named = question.credential.username().is_none_or(|name| {
            grant
                .tenant
                .basic_usernames
                .iter()
                .any(|listed| listed == name)
        });
        if !named || !(question.in_view)(&grant.key.tenant_id) {
            return Ok(Decision::NotFound);
        }
        Ok(match grant.decide(self.clock.now(), &question.ask) {
            Ok(()) => Decision::Allowed(grant),
            Err(refusal) => Decision::Refused(grant, refusal),
        })
    }

    /// The key that was presented, once its secret is proven, be it revoked or expired.
    /// `None`: there is no such key, or the secret is wrong; both take the same work.
    ///
    /// # Errors
    /// When the store does not answer, or too much is being hashed.
    pub async fn prove(&self, presented: Presented<'_>) -> Result<Option<Box<Grant>>, Undecided> {
        let found = self.store.load(presented.id()).await?.found;
        let verifier = found.as_ref().map(|(_, verifier)| verifier);
        match (self.secrets.prove(presented, verifier).await?, found) {
            (Proof::Proven { fresh_mac }, Some((grant, _))) => {
                if let Some(mac) = fresh_mac {
                    self.repepper.move_key(presented.id(), mac);
                }
                Ok(Some(Box::new(grant)))
            }
            _ => Ok(None),
        }
    }
}
