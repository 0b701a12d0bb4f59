//! Keys by number, the same in every run, and what is asked about them.

use bytes::Bytes;
use gatekey::{
    api::proto::{ValidateRequest, validate_request::Credential},
    domain::token::{CHECKSUM_LENGTH, DEFAULT_PREFIX, KeyId, Plaintext},
};
use rand::{SeedableRng as _, rngs::StdRng};

use crate::load::frame;

/// What a key that is measured may do; each has three scopes.
pub const SCOPES: [&str; 3] = ["jobs:read", "jobs:write", "reports:*"];
/// The scope that every question requires.
const REQUIRED: &str = "jobs:read";

/// The key of this number. Nobody made it, unless it was stored.
pub fn key(number: u64) -> (KeyId, Plaintext) {
    Plaintext::mint(DEFAULT_PREFIX, &mut StdRng::seed_from_u64(number))
}

/// The question about the key of this number, as it stands on the wire.
pub fn ask_number(number: u64) -> Bytes {
    frame(&ask(key(number).1.expose()))
}

/// The question about a key.
pub fn ask(key: &str) -> ValidateRequest {
    ValidateRequest {
        credential: Some(Credential::Key(key.to_owned())),
        required_scopes: vec![REQUIRED.to_owned()],
        ..ValidateRequest::default()
    }
}

/// The same key with a typo, which its checksum tells.
pub fn with_typo(key: &str) -> String {
    let (rest, last) = key.split_at(key.len() - 1);
    format!("{rest}{}", if last == "0" { "1" } else { "0" })
}

/// The same id with another secret, and the checksum that goes with it.
pub fn with_wrong_secret(key: &str) -> String {
    let summed = with_typo(&key[..key.len() - CHECKSUM_LENGTH]);
    let sum = base62(crc32fast::hash(summed.as_bytes()));
    format!("{summed}{sum}")
}

fn base62(mut rest: u32) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut digits = [b'0'; CHECKSUM_LENGTH];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(rest % 62) as usize];
        rest /= 62;
    }
    digits.map(char::from).iter().collect()
}
