//! The admin token: the break-glass credential that may do everything.

use std::fmt;

use rand::RngExt as _;
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use zeroize::Zeroizing;

/// The fewest bytes that an admin token may have.
const LENGTH_MIN: usize = 32;

/// The token has too few bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the admin token must have {LENGTH_MIN} bytes or more, not {0}")]
pub struct TooShort(usize);

/// The admin token, kept as its hash and its length. `Debug` tells nothing of it.
pub struct AdminToken {
    hash: blake3::Hash,
    length: usize,
}

impl AdminToken {
    /// Takes the token that a file holds, white space around it aside.
    ///
    /// # Errors
    /// When it is too short to be safe.
    pub fn parse(file: &str) -> Result<Self, TooShort> {
        let token = file.trim();
        if token.len() < LENGTH_MIN {
            return Err(TooShort(token.len()));
        }
        Ok(Self {
            hash: blake3::hash(token.as_bytes()),
            length: token.len(),
        })
    }

    /// A token file with a new token of 256 random bits.
    #[must_use]
    pub fn generate() -> Zeroizing<String> {
        let bits = Zeroizing::new(rand::rng().random::<[u8; 32]>());
        Zeroizing::new(format!(
            "gkadmin_{}\n",
            blake3::Hash::from_bytes(*bits).to_hex()
        ))
    }

    /// Whether this is the token. What has its length takes the same time whatever it is; a key
    /// seldom has, and is not hashed here.
    #[must_use]
    pub fn is(&self, presented: &str) -> bool {
        let hash = || blake3::hash(presented.as_bytes());
        presented.len() == self.length && hash().as_bytes().ct_eq(self.hash.as_bytes()).into()
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_alone_is_the_token() {
        let file = AdminToken::generate();
        let token = AdminToken::parse(&file).unwrap();
        assert!(token.is(file.trim()));
        assert!(!token.is(&file));
        assert!(!token.is(""));
        assert_eq!(AdminToken::parse("short\n").unwrap_err(), TooShort(5));
    }
}
