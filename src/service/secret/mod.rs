//! Stores and checks secrets: an Argon2id PHC string and a peppered MAC for each key.
//!
//! The MAC is checked first and is final where the pepper is known, so that each wrong secret in a
//! flood costs microseconds. Argon2 is used only if there is no MAC under a known pepper and the
//! peppers' records allow that. Otherwise, anyone who can write to the database could remove a
//! key's MAC and replace its Argon2 hash by one of their own secret. Plaintext is borrowed, or
//! copied into memory that is zeroized; it is never kept.

mod admin;
mod argon;
mod pepper;
pub mod pepper_check;
pub mod pepper_migration;
mod requester;

use std::fmt;

use subtle::ConstantTimeEq as _;
use thiserror::Error;
use tracing::error;

use crate::{
    domain::{
        caller::Principal,
        key::{Mac, Verifier},
        token::{KeyId, Plaintext, Presented},
    },
    metrics::{Collect, Encoder, ShardedCounter},
};

pub use admin::{AdminToken, AdminTokenError};
use argon::{Argon, StoredHash};
pub use argon::{HashCost, InvalidHashCost};
pub use pepper::{PepperError, Peppers};
use requester::Requester;

/// More hashing is requested than this machine can do at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("too many keys are being hashed at once")]
pub struct Busy;

/// The result of checking a presented key against a verifier.
#[derive(Clone, PartialEq, Eq)]
pub enum Proof {
    /// The key does not match.
    Wrong,
    /// The key matches. If the verifier has no MAC under the current pepper, `fresh_mac` is one.
    Proven { fresh_mac: Option<Mac> },
    /// Undecidable here: the verifier's MAC was made under a pepper that this process lacks.
    UnknownPepper,
}

/// Numbers of hash operations since the start.
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
    macs: ShardedCounter<1>,
    rejected: ShardedCounter<1>,
}

impl Collect for Secrets {
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
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
        )?;
        page.counter(
            "gatekey_verifiers_rejected_total",
            "Stored verifiers that were not accepted: no MAC under a known pepper where one is \
             required, or Argon2 parameters out of bounds",
            self.rejected.read()[0],
        )
    }
}

impl Secrets {
    /// Creates an instance that uses these peppers. New keys are hashed at `cost`, on one thread
    /// fewer than there are cores.
    #[must_use]
    pub fn new(peppers: Peppers, cost: HashCost) -> Self {
        Self {
            peppers,
            argon: Argon::new(cost),
            macs: ShardedCounter::default(),
            rejected: ShardedCounter::default(),
        }
    }

    /// Returns the peppers in use.
    #[must_use]
    pub fn peppers(&self) -> &Peppers {
        &self.peppers
    }

    /// Returns the numbers of hash operations since the start.
    #[must_use]
    pub fn work(&self) -> Work {
        Work {
            macs: self.macs.read()[0],
            argon2: self.argon.done(),
        }
    }

    /// Makes the verifier of a new key for `issuer`. Takes about 13 ms at the default cost, plus
    /// the wait for a turn among all issuers. A call that is dropped while it waits computes no
    /// hash.
    ///
    /// # Errors
    /// [`Busy`] if too many hashes are already waiting.
    pub async fn seal(&self, plaintext: &Plaintext, issuer: &Principal) -> Result<Verifier, Busy> {
        Ok(Verifier {
            phc: self.argon.hash(plaintext.expose(), issuer.clone()).await?,
            mac: self.fresh_mac(plaintext.expose()),
        })
    }

    /// Checks a presented key, which was created with the revision `created`, against its stored
    /// verifier. Uses the MAC if its pepper is known. Otherwise uses Argon2 if the peppers' records
    /// allow it for this revision.
    ///
    /// # Errors
    /// [`Busy`] if Argon2 is needed and too many hashes are already waiting.
    pub async fn prove(
        &self,
        presented: Presented<'_>,
        verifier: &Verifier,
        created: i64,
    ) -> Result<Proof, Busy> {
        let whole = presented.expose();
        if let Some(stored) = &verifier.mac
            && let Some(value) = self.mac(&stored.pepper_id, whole)
        {
            let right = value.ct_eq(&stored.value).into();
            return Ok(self.proof(right, &stored.pepper_id, whole));
        }
        if !self.peppers.expects_argon2(created) {
            self.reject(presented.id(), "it has no MAC under a known pepper");
            return Ok(match &verifier.mac {
                Some(_) => Proof::UnknownPepper,
                None => Proof::Wrong,
            });
        }
        let requester = Requester::KnownId(presented.id());
        let Some(stored) = StoredHash::parse(&verifier.phc) else {
            self.reject(presented.id(), "its Argon2 hash is not within the bounds");
            self.argon.verify_nothing(whole, requester).await?;
            return Ok(Proof::Wrong);
        };
        let right = self.argon.verify(whole, stored, requester).await?;
        Ok(self.proof(right, "", whole))
    }

    /// Counts a rejected stored verifier, and logs the first one of this process.
    fn reject(&self, key: KeyId, why: &str) {
        if self.rejected.read()[0] == 0 {
            error!(
                key_id = %key,
                "a stored verifier was rejected: {why}. The row was changed outside gatekey, or a \
                 pepper is missing; further ones are counted in gatekey_verifiers_rejected_total"
            );
        }
        self.rejected.add(0, 1);
    }

    /// Returns the MAC by which a cached key is checked: under the current pepper or, without one,
    /// under a random key of this process.
    #[must_use]
    pub fn memory_mac(&self, presented: Presented<'_>) -> [u8; 32] {
        self.macs.add(0, 1);
        self.peppers.memory_mac(presented.expose())
    }

    /// Returns the cache MAC of a key that was not presented yet, if its verifier contains it.
    #[must_use]
    pub fn stored_memory_mac(&self, verifier: &Verifier) -> Option<[u8; 32]> {
        let mac = verifier.mac.as_ref()?;
        (self.peppers.current() == Some(&*mac.pepper_id)).then_some(mac.value)
    }

    /// Returns whether a presented key, whose cache MAC is `mac`, is the expected one. A wrong key
    /// takes the same hash operations as an unknown key (`None`). The waits for them may differ,
    /// because they use separate lanes.
    ///
    /// # Errors
    /// [`Busy`] if the work is Argon2 and too many hashes are already waiting.
    pub async fn recognize(
        &self,
        presented: Presented<'_>,
        mac: &[u8; 32],
        expected: Option<&[u8; 32]>,
    ) -> Result<bool, Busy> {
        // A text has this MAC only with a probability of 2^-256.
        let compared = mac.ct_eq(expected.unwrap_or(&[0; 32]));
        let right = bool::from(compared) && expected.is_some();
        if !right && self.peppers.current().is_none() {
            let requester = match expected {
                Some(_) => Requester::KnownId(presented.id()),
                None => Requester::UnknownId,
            };
            let work = self.argon.verify_nothing(presented.expose(), requester);
            // Boxed, so that the future of a cache hit stays small.
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

    fn secrets(peppers: Peppers) -> Secrets {
        Secrets::new(peppers, HashCost::default())
    }

    fn peppers(lines: &str) -> Peppers {
        Peppers::parse(lines).unwrap()
    }

    const OLD: &str = "old:b2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2w=";
    const NEW: &str = "new:bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmU=";

    #[tokio::test]
    async fn a_key_is_proven_by_one_mac_with_a_pepper_and_by_one_argon2_without() {
        for (peppers, expected) in [(peppers(OLD), (1, 0)), (Peppers::none(), (0, 1))] {
            let secrets = secrets(peppers);
            let (plaintext, verifier) = minted(&secrets).await;
            let (other, _) = minted(&secrets).await;
            for (asked, right) in [(&plaintext, true), (&other, false)] {
                let before = secrets.work();
                let proof = secrets.prove(presented(asked), &verifier, 1).await.unwrap();
                assert_eq!(proof != Proof::Wrong, right);
                let work = secrets.work();
                let work = (work.macs - before.macs, work.argon2 - before.argon2);
                assert_eq!(work, expected);
            }
        }
    }

    #[tokio::test]
    async fn a_key_under_an_older_or_a_lost_pepper_is_proven_and_gets_a_fresh_mac() {
        let (plaintext, verifier) = minted(&secrets(peppers(OLD))).await;
        for (lines, argon2) in [(format!("{NEW}\n{OLD}"), 0), (NEW.to_owned(), 1)] {
            let secrets = secrets(peppers(&lines).expect_argon2(7, Vec::new()));
            let prove = async |verifier| secrets.prove(presented(&plaintext), verifier, 7).await;
            let proof = prove(&verifier).await.unwrap();
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
            let again = prove(&moved).await.unwrap();
            assert!(again == Proof::Proven { fresh_mac: None });
        }
    }

    #[tokio::test]
    async fn argon2_decides_only_about_keys_that_may_lack_a_mac() {
        let (plaintext, unpeppered) = minted(&secrets(Peppers::none())).await;
        let (lost, peppered) = minted(&secrets(peppers(OLD))).await;
        for (until, created, expected) in [
            (0, 1, false),
            (0, 0, false),
            (0, -1, false),
            (7, 8, false),
            (7, 7, true),
            (7, 0, false),
        ] {
            let secrets = secrets(peppers(NEW).expect_argon2(until, Vec::new()));
            for (plaintext, verifier, otherwise) in [
                (&plaintext, &unpeppered, Proof::Wrong),
                (&lost, &peppered, Proof::UnknownPepper),
            ] {
                let proof = secrets.prove(presented(plaintext), verifier, created);
                let proof = proof.await.unwrap();
                let proven = matches!(proof, Proof::Proven { .. });
                assert_eq!(proven, expected, "{created} of {until}");
                assert!(proven || proof == otherwise);
            }
            let rejected = secrets.rejected.read()[0];
            assert_eq!(rejected, if expected { 0 } else { 2 });
            assert_eq!(secrets.work().argon2, if expected { 2 } else { 0 });
        }
    }

    #[tokio::test]
    async fn parameters_out_of_bounds_prove_nothing_for_the_usual_work() {
        let secrets = secrets(Peppers::none());
        let (plaintext, verifier) = minted(&secrets).await;
        for params in ["m=4194304", "m=1023", "m=8"] {
            let before = secrets.work().argon2;
            let verifier = Verifier {
                phc: verifier.phc.replace("m=19456", params),
                ..verifier.clone()
            };
            let proof = secrets.prove(presented(&plaintext), &verifier, 1).await;
            assert!(proof.unwrap() == Proof::Wrong);
            assert_eq!(secrets.work().argon2, before + 1);
        }
        assert_eq!(secrets.rejected.read()[0], 3);
    }
}
