//! Presented credentials: a bare key, or the value of an HTTP `Authorization` header.
//!
//! The text is zeroized on drop, and `Debug` never shows it.

use std::fmt;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use zeroize::Zeroizing;

use super::token::Presented;

/// Accepts base64 with or without padding: RFC 7617 requires padding, but some clients omit it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A presented credential. It may contain no valid key: see [`Credential::presented`].
pub struct Credential {
    text: Zeroizing<String>,
    /// The byte offset in `text` at which the key starts.
    key: usize,
    /// The byte offset in `text` at which the user name of HTTP Basic ends.
    username: Option<usize>,
}

impl Credential {
    /// Creates a credential from a bare key.
    #[must_use]
    pub fn key(text: String) -> Self {
        Self {
            text: Zeroizing::new(text),
            key: 0,
            username: None,
        }
    }

    /// Parses the value of an `Authorization` header: `Bearer <key>` (RFC 6750) or
    /// `Basic base64(<username>:<key>)` (RFC 7617). Returns `None` if it is neither. An empty
    /// value, or a scheme only, is an empty credential.
    #[must_use]
    pub fn authorization(value: String) -> Option<Self> {
        let value = Zeroizing::new(value);
        let trimmed = value.trim();
        if trimmed.is_empty()
            || ["bearer", "basic"]
                .iter()
                .any(|scheme| trimmed.eq_ignore_ascii_case(scheme))
        {
            return Some(Self::key(String::new()));
        }
        let start = value.len() - value.trim_start().len();
        let space = start + value[start..].find(' ')?;
        let scheme = &value[start..space];
        if scheme.eq_ignore_ascii_case("bearer") {
            Some(Self {
                key: space + 1,
                text: value,
                username: None,
            })
        } else if scheme.eq_ignore_ascii_case("basic") {
            let decoded = Zeroizing::new(BASE64.decode(value[space..].trim()).ok()?);
            let text = Zeroizing::new(std::str::from_utf8(&decoded).ok()?.to_owned());
            let colon = text.find(':')?;
            Some(Self {
                text,
                key: colon + 1,
                username: Some(colon),
            })
        } else {
            None
        }
    }

    /// Returns the key, if it has the shape and the checksum of a key.
    #[must_use]
    pub fn presented(&self) -> Option<Presented<'_>> {
        Presented::parse(&self.text[self.key..])
    }

    /// Returns the text in place of the key, without white space around it. It may be a secret.
    #[must_use]
    pub fn bare(&self) -> &str {
        self.text[self.key..].trim()
    }

    /// Returns whether the key is missing, with or without a user name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bare().is_empty()
    }

    /// Returns the user name of an HTTP Basic credential.
    #[must_use]
    pub fn username(&self) -> Option<&str> {
        Some(&self.text[..self.username?])
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::token::Plaintext;

    proptest! {
        #[test]
        fn bearer_and_basic_carry_the_same_key(
            username in "[^:\\x00-\\x1f]{0,20}",
            bearer in "[bB][eE][aA][rR][eE][rR]",
            basic in "[bB][aA][sS][iI][cC]",
        ) {
            let (id, plaintext) = Plaintext::mint("gk", &mut rand::rng());
            let key = plaintext.expose();

            let credential = Credential::authorization(format!("{bearer}  {key} ")).unwrap();
            prop_assert_eq!(credential.presented().unwrap().id(), id);
            prop_assert_eq!(credential.username(), None);

            let pair = base64::prelude::BASE64_STANDARD.encode(format!("{username}:{key}"));
            for encoded in [pair.as_str(), pair.trim_end_matches('=')] {
                let credential = Credential::authorization(format!("{basic} {encoded}")).unwrap();
                prop_assert_eq!(credential.presented().unwrap().id(), id);
                prop_assert_eq!(credential.username(), Some(username.as_str()));
            }
        }

        #[test]
        fn no_header_makes_the_parser_panic(value in any::<String>(), scheme in "(Basic |Bearer |)") {
            if let Some(credential) = Credential::authorization(format!("{scheme}{value}")) {
                let _ = (credential.presented(), credential.username());
            }
        }
    }

    #[test]
    fn other_schemes_are_no_credentials() {
        for value in ["Digest x", "Digest", "Basic !!!!", "Basic eA=="] {
            assert!(
                Credential::authorization(value.to_owned()).is_none(),
                "{value}"
            );
        }
    }

    #[test]
    fn a_header_without_a_key_is_an_empty_credential() {
        // The last value encodes `feed:`, a user name without a password.
        for value in ["", " ", "Bearer", "bearer  ", "Basic", "Basic ZmVlZDo="] {
            let credential = Credential::authorization(value.to_owned()).unwrap();
            assert!(credential.is_empty(), "{value}");
        }
        assert!(Credential::key(" \n".to_owned()).is_empty());
        assert!(!Credential::key("gk_".to_owned()).is_empty());
    }
}
