//! The admin token: the break-glass credential with every permission.

use std::fmt;

use rand::RngExt as _;
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use zeroize::Zeroizing;

/// Minimum length of an admin token, in bytes.
const LENGTH_MIN: usize = 32;

/// An admin token that cannot be used. The message never repeats the file's contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AdminTokenError {
    #[error("the admin token must have {LENGTH_MIN} bytes or more, not {0}")]
    TooShort(usize),
    #[error("the admin token must be one line, not {0}")]
    Lines(usize),
    #[error("the admin token must be printable ASCII, because it is sent in an HTTP header")]
    NotPrintable,
}

/// The admin token, kept as its hash and its length. `Debug` reveals neither.
pub struct AdminToken {
    hash: blake3::Hash,
    length: usize,
}

impl AdminToken {
    /// Parses the token in a file's contents, without the white space around it.
    ///
    /// # Errors
    /// Returns an error if the token is too short to be safe, or if no client could send it.
    pub fn parse(file: &str) -> Result<Self, AdminTokenError> {
        let token = file.trim();
        if token.len() < LENGTH_MIN {
            return Err(AdminTokenError::TooShort(token.len()));
        }
        let lines = token.split(['\n', '\r']).filter(|line| !line.is_empty());
        match lines.count() {
            1 => {}
            lines => return Err(AdminTokenError::Lines(lines)),
        }
        // The characters that a gRPC metadata value may contain.
        if !token.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(AdminTokenError::NotPrintable);
        }
        Ok(Self {
            hash: blake3::hash(token.as_bytes()),
            length: token.len(),
        })
    }

    /// Returns the contents of a token file with a new token of 256 random bits.
    #[must_use]
    pub fn generate() -> Zeroizing<String> {
        let bits = Zeroizing::new(rand::rng().random::<[u8; 32]>());
        Zeroizing::new(format!(
            "gkadmin_{}\n",
            blake3::Hash::from_bytes(*bits).to_hex()
        ))
    }

    /// Returns whether `presented` is the token. Every text of the token's length takes the same
    /// time. Texts of another length, such as most keys, are not hashed.
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
    }

    #[test]
    fn a_token_that_is_too_short_or_cannot_be_sent_is_refused() {
        let long = "x".repeat(LENGTH_MIN);
        for (file, error) in [
            ("short\n".to_owned(), AdminTokenError::TooShort(5)),
            (format!("{long}\n{long}\n"), AdminTokenError::Lines(2)),
            (
                format!("{long}\r{long}\r\n\r\n{long}"),
                AdminTokenError::Lines(3),
            ),
            (format!("{long}\t{long}"), AdminTokenError::NotPrintable),
            (format!("{long}\0{long}"), AdminTokenError::NotPrintable),
            (format!("{long}é"), AdminTokenError::NotPrintable),
        ] {
            assert_eq!(AdminToken::parse(&file).unwrap_err(), error);
        }
        assert!(AdminToken::parse(&format!(" {long} {long}\r\n")).is_ok());
    }
}
