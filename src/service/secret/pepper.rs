//! Peppers: MAC keys that are never in the database.
//!
//! The first pepper is current. The others still verify, so that a pepper can be rotated.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rand::RngExt as _;
use thiserror::Error;
use zeroize::Zeroizing;

/// Input of the check value. The database stores, for each pepper, the MAC of this text and of the
/// pepper record's revision, to detect a wrong pepper or a changed record. No key has this text.
const CHECK: &str = "gatekey pepper check v2";

const ID_MAX: usize = 32;

/// An error in a pepper file. The message never repeats the file's contents.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PepperError {
    #[error("line {0} is not `id:base64 of 32 bytes`, the id being 1-32 of [A-Za-z0-9_.-]")]
    Line(usize),
    #[error("line {0} has the id of an earlier line")]
    Repeated(usize),
    #[error("it has no line `id:base64 of 32 bytes`")]
    Empty,
}

struct Pepper {
    id: String,
    key: Zeroizing<[u8; 32]>,
}

/// The peppers in use; the first one is current. `Debug` shows only their ids.
pub struct Peppers {
    listed: Vec<Pepper>,
    /// A random key that replaces the current pepper in the cache if there is none.
    of_process: Zeroizing<[u8; 32]>,
    /// See [`Peppers::expect_argon2`].
    argon2_until: i64,
    /// Ids of the peppers that were in use before the current one.
    older: Vec<String>,
}

impl Peppers {
    /// Returns no peppers: secrets are checked only by Argon2.
    #[must_use]
    pub fn none() -> Self {
        Self::new(Vec::new()).expect_argon2(i64::MAX, Vec::new())
    }

    /// Parses a pepper file: one `id:base64 of 32 bytes` per line. Ignores empty lines.
    ///
    /// # Errors
    /// Returns the number of the invalid line, or [`PepperError::Empty`].
    pub fn parse(file: &str) -> Result<Self, PepperError> {
        let mut peppers: Vec<Pepper> = Vec::new();
        for (place, line) in file.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let pepper = parse_line(line.trim()).ok_or(PepperError::Line(place + 1))?;
            if peppers.iter().any(|earlier| earlier.id == pepper.id) {
                return Err(PepperError::Repeated(place + 1));
            }
            peppers.push(pepper);
        }
        if peppers.is_empty() {
            return Err(PepperError::Empty);
        }
        Ok(Self::new(peppers))
    }

    /// Returns the contents of a pepper file with one new pepper, whose random id is unlikely to
    /// collide with another.
    #[must_use]
    pub fn generate() -> Zeroizing<String> {
        let mut rng = rand::rng();
        let key = Zeroizing::new(rng.random::<[u8; 32]>());
        let key = Zeroizing::new(BASE64_STANDARD.encode(*key));
        Zeroizing::new(format!("p{:08x}:{}\n", rng.random::<u32>(), &*key))
    }

    /// Returns the id of the current pepper.
    #[must_use]
    pub fn current(&self) -> Option<&str> {
        self.listed.first().map(|pepper| &*pepper.id)
    }

    /// Returns the same peppers with the contents of their records in the database. Keys created up
    /// to the revision `argon2_until` may have no MAC under a known pepper, and are then checked by
    /// Argon2. The peppers `older` were in use before the current one. Without this call, every key
    /// is expected to have such a MAC.
    #[must_use]
    pub fn expect_argon2(self, argon2_until: i64, older: Vec<String>) -> Self {
        Self {
            argon2_until,
            older,
            ..self
        }
    }

    /// Returns whether a key that was created with this revision may be checked by Argon2.
    pub(super) fn expects_argon2(&self, created: i64) -> bool {
        // Revisions begin with 1, so gatekey did not write a row with a lower one.
        (1..=self.argon2_until).contains(&created)
    }

    /// Returns the ids, the current pepper's first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.listed.iter().map(|pepper| &*pepper.id)
    }

    /// Returns the ids of the peppers that were in use before the current one.
    #[must_use]
    pub fn older(&self) -> &[String] {
        &self.older
    }

    /// Returns the check value of a pepper whose record has this revision, if the pepper is known.
    #[must_use]
    pub fn check(&self, id: &str, argon2_until: i64) -> Option<[u8; 32]> {
        self.mac(id, &format!("{CHECK} {argon2_until}"))
    }

    /// Returns the MAC of a whole key under the current pepper or, without one, under the process's
    /// key.
    pub(super) fn memory_mac(&self, whole: &str) -> [u8; 32] {
        let key = self
            .listed
            .first()
            .map_or(&self.of_process, |current| &current.key);
        *blake3::keyed_hash(key, whole.as_bytes()).as_bytes()
    }

    fn new(listed: Vec<Pepper>) -> Self {
        let of_process = Zeroizing::new(rand::rng().random());
        Self {
            listed,
            of_process,
            argon2_until: 0,
            older: Vec::new(),
        }
    }

    /// Returns the keyed BLAKE3 MAC of a whole key under a pepper, if the pepper is known.
    #[must_use]
    pub fn mac(&self, id: &str, whole: &str) -> Option<[u8; 32]> {
        let pepper = self.listed.iter().find(|pepper| pepper.id == id)?;
        Some(keyed(pepper, whole))
    }
}

impl fmt::Debug for Peppers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.listed.iter().map(|pepper| &pepper.id))
            .finish()
    }
}

fn keyed(pepper: &Pepper, text: &str) -> [u8; 32] {
    *blake3::keyed_hash(&pepper.key, text.as_bytes()).as_bytes()
}

fn parse_line(line: &str) -> Option<Pepper> {
    let (id, key) = line.split_once(':')?;
    let named = (1..=ID_MAX).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    let key = Zeroizing::new(BASE64_STANDARD.decode(key).ok()?);
    Some(Pepper {
        id: named.then(|| id.to_owned())?,
        key: Zeroizing::new(key.as_slice().try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "a:b2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xkb2w=";

    #[test]
    fn a_generated_file_is_read_back() {
        let peppers = Peppers::parse(&Peppers::generate()).unwrap();
        assert!(peppers.current().is_some());
        assert!(Peppers::parse(&format!("\n{LINE}\n\n")).is_ok());
    }

    #[test]
    fn a_wrong_file_says_which_line_and_not_what_it_holds() {
        for (file, wrong) in [
            (String::new(), PepperError::Empty),
            ("b2xk".to_owned(), PepperError::Line(1)),
            (format!("{LINE}\nb:c2hvcnQ="), PepperError::Line(2)),
            (format!("{LINE}\n{LINE}"), PepperError::Repeated(2)),
            (LINE.replace("a:", "a b:"), PepperError::Line(1)),
        ] {
            assert_eq!(Peppers::parse(&file).unwrap_err(), wrong);
        }
    }

    #[test]
    fn debug_tells_ids_alone() {
        assert_eq!(format!("{:?}", Peppers::parse(LINE).unwrap()), r#"{"a"}"#);
    }
}
