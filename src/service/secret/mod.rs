//! How a secret is kept and checked: an Argon2id PHC string and a peppered MAC beside it.
//!
//! The MAC is asked first and is final where the pepper is known, so that a flood of wrong
//! secrets costs microseconds. Argon2 is asked only where there is no MAC under a known pepper.
//! Plaintext is borrowed, or copied into memory that is zeroized; it is never kept.

mod admin;
mod argon;
mod pepper;
mod requester;

use std::fmt;

use subtle::ConstantTimeEq as _;
use thiserror::Error;

use crate::{
    domain::{
        caller::Principal,
        key::{Mac, Verifier},
        token::{Plaintext, Presented},
    },
    meter::{Page, Tally, Tell},
};

pub use admin::{AdminToken, TooShort};
use argon::Argon;
pub use argon::{HashCost, InvalidHashCost};
pub use pepper::{PepperError, Peppers};
use requester::Requester;

/// More hashing is asked for than this machine can do; later it may be able to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("too many keys are being hashed at once")]
pub struct Busy;

/// Whether a presented key is the one that a verifier was made of.
#[derive(Clone, PartialEq, Eq)]
pub enum Proof {
    /// It is not.
    Wrong,
    /// It is. If the verifier has no MAC under the current pepper, here is one.
    Proven { fresh_mac: Option<Mac> },
}

/// How many hash operations were done since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work {
    /// Peppered MACs.
    pub macs: u64,
    /// Argon2id hashes.
    pub argon2: u64,
}

/// Makes and checks verifiers.
pub struct Secrets {
    peppers: Peppers,
    argon: Argon,
    macs: Tally<1>,
}

impl Tell for Secrets {
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result {
        let (load, work) = (self.argon.load(), self.work());
        let by_purpose = || Requester::PURPOSES.into_iter().zip(load);
        page.gauges(
            "gatekey_argon2_running",
            "Argon2 hashes that are being made, by purpose",
            by_purpose().map(|(purpose, load)| ([("purpose", purpose)], load.running)),
        )?;
        page.gauges(
            "gatekey_argon2_queued",
            "Argon2 hashes that wait for a core, by purpose",
            by_purpose().map(|(purpose, load)| ([("purpose", purpose)], load.waiting)),
        )?;
        page.counters(
            "gatekey_argon2_refused_total",
            "Argon2 hashes that were refused because too many were waiting, by purpose",
            by_purpose().map(|(purpose, load)| ([("purpose", purpose)], load.refused)),
        )?;
        page.counter(
            "gatekey_argon2_hashes_total",
            "Argon2 hashes that were made",
            work.argon2,
        )?;
        page.counter(
            "gatekey_macs_total",
            "Peppered MACs that were made of presented keys",
            work.macs,
        )
    }
}

impl Secrets {
    /// Keeps secrets under these peppers. New keys are hashed at `cost`, on one thread fewer than
    /// there are cores.
    #[must_use]
    pub fn new(peppers: Peppers, cost: HashCost) -> Self {
        Self {
            peppers,
            argon: Argon::new(cost),
            macs: Tally::default(),
        }
    }

    /// The peppers in use.
    #[must_use]
    pub fn peppers(&self) -> &Peppers {
        &self.peppers
    }

    /// How much hashing was done so far.
    #[must_use]
    pub fn work(&self) -> Work {
        Work {
            macs: self.macs.read()[0],
            argon2: self.argon.done(),
        }
    }

    /// Makes the verifier of a new key for `issuer`. Takes about 13 ms at the default cost, and the
    /// wait for a turn among all issuers; dropped while it waits, it hashes nothing.
    ///
    /// # Errors
    /// [`Busy`] when too many are waiting already.
    pub async fn seal(&self, plaintext: &Plaintext, issuer: &Principal) -> Result<Verifier, Busy> {
        Ok(Verifier {
            phc: self.argon.hash(plaintext.expose(), issuer.clone()).await?,
            mac: self.fresh_mac(plaintext.expose()),
        })
    }

    /// Checks a presented key against what the store holds of it: by its MAC where that was made
    /// under a known pepper, by argon2 where not.
    ///
    /// # Errors
    /// [`Busy`] when argon2 is needed and too many are waiting for it already.
    pub async fn prove(
        &self,
        presented: Presented<'_>,
        verifier: &Verifier,
    ) -> Result<Proof, Busy> {
        let whole = presented.expose();
        if let Some(stored) = &verifier.mac
            && let Some(value) = self.mac(&stored.pepper_id, whole)
        {
            let right = value.ct_eq(&stored.value).into();
            return Ok(self.proof(right, &stored.pepper_id, whole));
        }
        let requester = Requester::KnownId(presented.id());
        let verifying = self.argon.verify(whole, verifier.phc.clone(), requester);
        let right = verifying.await?;
        Ok(self.proof(right, "", whole))
    }

    /// What a key in memory is checked by: its MAC under the current pepper or, without one, under
    /// a key that is random to this process.
    #[must_use]
    pub fn memory_mac(&self, presented: Presented<'_>) -> [u8; 32] {
        self.macs.add(0, 1);
        self.peppers.memory_mac(presented.expose())
    }

    /// The memory MAC of a key that nobody presented yet, if its verifier has it.
    #[must_use]
    pub fn stored_memory_mac(&self, verifier: &Verifier) -> Option<[u8; 32]> {
        let mac = verifier.mac.as_ref()?;
        (self.peppers.current() == Some(&*mac.pepper_id)).then_some(mac.value)
    }

    /// Whether a presented key, whose memory MAC is `mac`, is the expected one. A wrong one takes
    /// the same hash operations as one that nothing is known of (`None`); how long it waits for
    /// them may differ, because they wait in separate lanes.
    ///
    /// # Errors
    /// [`Busy`] when that work is argon2 and too many are waiting for it already.
    pub async fn recognize(
        &self,
        presented: Presented<'_>,
        mac: &[u8; 32],
        expected: Option<&[u8; 32]>,
    ) -> Result<bool, Busy> {
        // No text has this MAC but by a chance of 2^-256.
        let compared = mac.ct_eq(expected.unwrap_or(&[0; 32]));
        let right = bool::from(compared) && expected.is_some();
        if !right && self.peppers.current().is_none() {
            let requester = match expected {
                Some(_) => Requester::KnownId(presented.id()),
                None => Requester::UnknownId,
            };
            let work = self.argon.verify_nothing(presented.expose(), requester);
            // Apart, so that a hit has little to carry.
            Box::pin(work).await?;
        }
        Ok(right)
    }

    fn proof(&self, right: bool, pepper: &str, whole: &str) -> Proof {
        let stale = self
            .peppers
            .current()
            .is_some_and(|current| current != pepper);
        match right {
            true if stale => Proof::Proven {
                fresh_mac: self.fresh_mac(whole),
            },
            true => Proof::Proven { fresh_mac: None },
            false => Proof::Wrong,
        }
    }

    fn fresh_mac(&self, whole: &str) -> Option<Mac> {
        let pepper_id = self.peppers.current()?.to_owned();
        let value = self.mac(&pepper_id, whole)?;
        Some(Mac { pepper_id, value })
    }

    fn mac(&self, pepper: &str, whole: &str) -> Option<[u8; 32]> {
        let value = self.peppers.mac(pepper, whole)?;
        self.macs.add(0, 1);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn minted(secrets: &Secrets) -> (Plaintext, Verifier) {
        let (_, plaintext) = Plaintext::mint("gk", &mut rand::rng());
        let verifier = secrets.seal(&plaintext, &Principal::Admin).await.unwrap();
        (plaintext, verifier)
    }

    fn presented(plaintext: &Plaintext) -> Presented<'_> {
        Presented::parse(plaintext.expose()).unwrap()
    }

    fn peppers(lines: &str) -> Peppers {
        Peppers::parse(lines).unwrap()
    }

    const OLD: &str = "old:b2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2w=";
    const NEW: &str = "new:bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmU=";

    #[tokio::test]
    async fn a_key_is_proven_by_one_mac_with_a_pepper_and_by_one_argon2_without() {
        for (peppers, expected) in [(peppers(OLD), (1, 0)), (Peppers::none(), (0, 1))] {
            let secrets = Secrets::new(peppers, HashCost::default());
            let (plaintext, verifier) = minted(&secrets).await;
            let (other, _) = minted(&secrets).await;
            for (asked, right) in [(&plaintext, true), (&other, false)] {
                let before = secrets.work();
                let proof = secrets.prove(presented(asked), &verifier).await.unwrap();
                assert_eq!(proof != Proof::Wrong, right);
                let work = secrets.work();
                let work = (work.macs - before.macs, work.argon2 - before.argon2);
                assert_eq!(work, expected);
            }
        }
    }

    #[tokio::test]
    async fn a_key_under_an_older_or_a_lost_pepper_is_proven_and_gets_a_fresh_mac() {
        let (plaintext, verifier) = minted(&Secrets::new(peppers(OLD), HashCost::default())).await;
        for (lines, argon2) in [(format!("{NEW}\n{OLD}"), 0), (NEW.to_owned(), 1)] {
            let secrets = Secrets::new(peppers(&lines), HashCost::default());
            let proof = secrets
                .prove(presented(&plaintext), &verifier)
                .await
                .unwrap();
            assert_eq!(secrets.work().argon2, argon2);
            let Proof::Proven {
                fresh_mac: Some(mac),
            } = proof
            else {
                panic!("the key is right and its MAC is stale");
            };
            assert_eq!(mac.pepper_id, "new");
            let moved = Verifier {
                mac: Some(mac),
                ..verifier.clone()
            };
            let again = secrets.prove(presented(&plaintext), &moved).await.unwrap();
            assert!(again == Proof::Proven { fresh_mac: None });
        }
    }

    #[tokio::test]
    async fn parameters_that_cost_too_much_are_not_run() {
        let secrets = Secrets::new(Peppers::none(), HashCost::default());
        let (plaintext, mut verifier) = minted(&secrets).await;
        verifier.phc = verifier.phc.replace("m=19456", "m=4194304");
        let proof = secrets
            .prove(presented(&plaintext), &verifier)
            .await
            .unwrap();
        assert!(proof == Proof::Wrong);
    }
}
