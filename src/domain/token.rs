//! The text of a key: `<prefix>_<id><secret><checksum>`, all base62 after the prefix.
//!
//! Only [`Plaintext`] owns a plaintext. It is zeroized on drop, is not `Clone`, and its `Debug`
//! prints `[redacted]`. [`Presented`] borrows the text that a caller presents and never copies it.

use std::fmt;

use rand::{CryptoRng, RngExt as _};
use zeroize::Zeroizing;

/// The number of characters of a key's id, which is public.
pub const ID_LENGTH: usize = 16;
/// The number of base62 characters of a key's secret: `62^43 > 2^256`.
pub const SECRET_LENGTH: usize = 43;
/// The number of characters of the checksum: `62^6 > 2^32`.
pub const CHECKSUM_LENGTH: usize = 6;
/// The maximum length of a prefix.
pub const PREFIX_MAX: usize = 24;
/// The prefix of keys whose tenant does not set one.
pub const DEFAULT_PREFIX: &str = "gk";

const BODY_LENGTH: usize = ID_LENGTH + SECRET_LENGTH + CHECKSUM_LENGTH;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The public name of a key, displayed as `key_<id>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; ID_LENGTH]);

impl KeyId {
    /// A placeholder for a missing id.
    pub const NONE: Self = Self([b'0'; ID_LENGTH]);

    /// Parses a displayed `key_id`: `key_` and sixteen base62 characters.
    #[must_use]
    pub fn parse(shown: &str) -> Option<Self> {
        Self::from_bare(shown.strip_prefix("key_")?)
    }

    /// Parses the sixteen characters without `key_`, as in a key and in the database.
    #[must_use]
    pub fn from_bare(bare: &str) -> Option<Self> {
        let id: [u8; ID_LENGTH] = bare.as_bytes().try_into().ok()?;
        id.iter().all(u8::is_ascii_alphanumeric).then_some(Self(id))
    }

    /// Returns the sixteen characters without `key_`.
    #[must_use]
    pub fn as_bare(&self) -> &str {
        // An id consists of ASCII letters and digits, so it is always UTF-8.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Returns eight of the random bytes of the id, as the input of a hash.
    #[must_use]
    pub fn low_bits(&self) -> u64 {
        self.0[..8]
            .iter()
            .fold(0, |bits, byte| bits << 8 | u64::from(*byte))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key_{}", self.as_bare())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A new key's plaintext, for the one response that shows it.
pub struct Plaintext(Zeroizing<String>);

impl Plaintext {
    /// Generates a new key with this prefix, which must be valid (see [`is_prefix`]).
    pub fn mint(prefix: &str, rng: &mut impl CryptoRng) -> (KeyId, Self) {
        let mut text = Zeroizing::new(String::with_capacity(prefix.len() + 1 + BODY_LENGTH));
        text.push_str(prefix);
        text.push('_');
        let mut id = [0; ID_LENGTH];
        id.fill_with(|| random_digit(rng));
        text.extend(id.map(char::from));
        text.extend((0..SECRET_LENGTH).map(|_| char::from(random_digit(rng))));
        let sum = checksum(&text);
        text.extend(sum.map(char::from));
        (KeyId(id), Self(text))
    }

    /// Returns the text, for the hash functions and for the response that shows it once.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A text with the shape and the checksum of a key. Its secret is not verified.
#[derive(Clone, Copy)]
pub struct Presented<'a> {
    id: KeyId,
    whole: &'a str,
}

impl<'a> Presented<'a> {
    /// Parses a presented key, without white space around it. Returns `None` if it is malformed;
    /// the checksum detects this without a database lookup.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let whole = text.trim();
        if whole.len() > PREFIX_MAX + 1 + BODY_LENGTH {
            return None;
        }
        // The body has no `_`, so the last one ends the prefix.
        let (prefix, body) = whole.rsplit_once('_')?;
        let base62 = body.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if body.len() != BODY_LENGTH || !base62 || !is_prefix(prefix) {
            return None;
        }
        let (summed, sum) = whole.split_at(whole.len() - CHECKSUM_LENGTH);
        if sum.as_bytes() != checksum(summed) {
            return None;
        }
        Some(Self {
            id: KeyId::from_bare(&body[..ID_LENGTH])?,
            whole,
        })
    }

    /// Returns the id in the key.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Returns the whole key, for the hash functions only.
    #[must_use]
    pub fn expose(&self) -> &'a str {
        self.whole
    }
}

impl fmt::Debug for Presented<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [redacted]", self.id)
    }
}

/// The visible beginning of keys, or a part of it: the tenant's prefix, and first characters of the
/// id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyPrefix {
    pub tenant: String,
    /// At most as long as an id. May be empty.
    pub id: String,
}

impl KeyPrefix {
    /// Reads `<prefix>_` with up to all 16 characters of an id behind it, or returns `None`. The
    /// last `_` separates the two, because an id has none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (tenant, id) = text.rsplit_once('_')?;
        let base62 = id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        (is_prefix(tenant) && base62 && id.len() <= ID_LENGTH).then(|| Self {
            tenant: tenant.to_owned(),
            id: id.to_owned(),
        })
    }
}

/// Returns whether a text has the form of the beginning of a key that is shown for recognition: a
/// prefix, `_` and the first four characters of an ID.
#[must_use]
pub fn is_visible_beginning(text: &str) -> bool {
    KeyPrefix::parse(text.trim()).is_some_and(|beginning| beginning.id.len() == 4)
}

/// Returns whether the text is a valid key prefix: 1–24 of `[a-z0-9_]`, a letter first, no `_`
/// last.
#[must_use]
pub fn is_prefix(text: &str) -> bool {
    text.len() <= PREFIX_MAX
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && !text.ends_with('_')
        && text
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

fn random_digit(rng: &mut impl CryptoRng) -> u8 {
    DIGITS[rng.random_range(0..DIGITS.len())]
}

/// Returns the CRC-32 (IEEE) in base62, left-padded with `0`, as in GitHub's tokens.
fn checksum(text: &str) -> [u8; CHECKSUM_LENGTH] {
    let mut rest = crc32fast::hash(text.as_bytes()) as usize;
    let mut digits = [b'0'; CHECKSUM_LENGTH];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[rest % DIGITS.len()];
        rest /= DIGITS.len();
    }
    digits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_checksum_is_the_known_crc_of_ieee_in_base62() {
        // CRC-32("123456789") = 0xCBF43926, the check value of every CRC catalogue. Python gives
        // its base62 digits: [3, 45, 35, 27, 22, 14].
        assert_eq!(&checksum("123456789"), b"3jZRME");
    }

    #[test]
    fn the_checksum_is_padded_on_the_left() {
        // CRC-32("") = 0.
        assert_eq!(&checksum(""), b"000000");
    }

    #[test]
    fn a_plaintext_is_not_shown_by_debug() {
        let (id, plaintext) = Plaintext::mint("gk", &mut rand::rng());
        assert_eq!(format!("{plaintext:?}"), "[redacted]");
        let presented = Presented::parse(plaintext.expose()).unwrap();
        assert_eq!(format!("{presented:?}"), format!("{id} [redacted]"));
    }

    proptest! {
        #[test]
        fn a_minted_key_is_read_back(prefix in "[a-z]([a-z0-9_]{0,22}[a-z0-9])?", pad in "[ \t\r\n]{0,3}") {
            let (id, plaintext) = Plaintext::mint(&prefix, &mut rand::rng());
            let padded = format!("{pad}{}{pad}", plaintext.expose());
            let presented = Presented::parse(&padded).expect("a minted key has the right shape");
            prop_assert_eq!(presented.id(), id);
            prop_assert_eq!(presented.expose(), plaintext.expose());
            prop_assert_eq!(presented.expose().len(), prefix.len() + 1 + 16 + 43 + 6);
        }

        #[test]
        fn one_wrong_character_is_a_typo(place in any::<prop::sample::Index>(), other in "[ -~]") {
            let (_, plaintext) = Plaintext::mint("pgk_live", &mut rand::rng());
            let mut typo = plaintext.expose().to_owned();
            let place = place.index(typo.len());
            prop_assume!(typo[place..=place] != other);
            // White space at either end is ignored, so the remaining text is too short.
            typo.replace_range(place..=place, &other);
            prop_assert!(Presented::parse(&typo).is_none());
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in any::<String>()) {
            let _ = Presented::parse(&text);
        }

        #[test]
        fn key_ids_are_read_back(id in "[0-9A-Za-z]{16}") {
            let parsed = KeyId::parse(&format!("key_{id}")).unwrap();
            prop_assert_eq!(parsed.as_bare(), id.as_str());
            prop_assert_eq!(KeyId::parse(&parsed.to_string()), Some(parsed));
        }
    }
}
