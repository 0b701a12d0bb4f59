//! The parser of presented credentials, on any bytes: it never panics, and whatever it takes is what it says.
//!
//! Each input is read as a bare key and as the value of an Authorization header, is put behind `Bearer` and inside
//! `Basic`, and is the dough that a good key is made from, without which mutation would hardly ever get past the
//! checksum. What a key looks like is written down a second time here, in other words; nothing of gatekey's own
//! parser is used to judge it.
#![no_main]

use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, Engine as _};
use gatekey::domain::{
    credential::Credential,
    token::{KeyId, Presented},
};
use libfuzzer_sys::fuzz_target;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);

    check_key(&text);
    check_header(&text);
    check_bearer(&text);
    check_basic(input);

    let key = key_of(input);
    assert_eq!(expected(&key).map(|(_, whole)| whole), Some(&*key));
    check_key(&key);
    check_bearer(&key);
    check_basic(format!("{text}:{key}").as_bytes());
    check_key(&format!("{text}{key}"));
    check_key(&format!("{key}{text}"));
    check_key(&bent(&key, input));
});

/// A bare key is presented exactly when it has the shape and the checksum of one.
fn check_key(text: &str) {
    let credential = Credential::key(text.to_owned());
    assert_eq!(credential.username(), None);
    assert_eq!(shown(&credential), expected(text));
    check_debug(&credential);
}

/// A header that is taken is one of the two schemes, and holds what stands behind the scheme.
fn check_header(value: &str) {
    let Some(credential) = Credential::authorization(value.to_owned()) else {
        return;
    };
    let (scheme, rest) = value
        .trim_start()
        .split_once(' ')
        .expect("a scheme ends at a space");
    match credential.username() {
        None => {
            assert!(scheme.eq_ignore_ascii_case("bearer"));
            assert_eq!(shown(&credential), expected(rest));
        }
        Some(username) => {
            assert!(scheme.eq_ignore_ascii_case("basic"));
            let encoded = rest.trim();
            let decoded = decode(encoded);
            assert_eq!(
                BASE64_STANDARD_NO_PAD.encode(&decoded),
                encoded.trim_end_matches('=')
            );
            let pair = str::from_utf8(&decoded).expect("a pair that is taken is UTF-8");
            let (before, key) = pair
                .split_once(':')
                .expect("a pair that is taken has a colon");
            assert_eq!(username, before);
            assert_eq!(shown(&credential), expected(key));
        }
    }
    check_debug(&credential);
}

/// Behind `Bearer`, any text is the key that it is by itself.
fn check_bearer(text: &str) {
    for value in [format!("Bearer {text}"), format!(" bEARER  {text}\n")] {
        let credential = Credential::authorization(value).expect("Bearer takes any text");
        assert_eq!(credential.username(), None);
        assert_eq!(shown(&credential), expected(text));
    }
}

/// Inside `Basic`, padded or not, any text with a colon is the user name before it and the key behind it.
fn check_basic(pair: &[u8]) {
    let text = str::from_utf8(pair).ok();
    let parts = text.and_then(|text| text.split_once(':'));
    let padded = BASE64_STANDARD.encode(pair);
    for encoded in [padded.as_str(), padded.trim_end_matches('=')] {
        let credential = Credential::authorization(format!("Basic {encoded}"));
        let read = credential
            .as_ref()
            .map(|credential| (credential.username(), shown(credential)));
        let want = parts.map(|(username, key)| (Some(username), expected(key)));
        assert_eq!(read, want);
    }
}

/// What a credential presents: its id and the whole key. Reading that key again changes nothing.
fn shown(credential: &Credential) -> Option<(String, &str)> {
    let presented = credential.presented()?;
    let (id, whole) = (presented.id(), presented.expose());

    assert_eq!(whole, whole.trim());
    let again = Presented::parse(whole).expect("a key that was read is read again");
    assert_eq!((again.id(), again.expose()), (id, whole));
    assert_eq!(KeyId::parse(&id.to_string()), Some(id));
    assert_eq!(KeyId::from_bare(id.as_bare()), Some(id));
    assert_eq!(format!("{presented:?}"), format!("{id} [redacted]"));
    Some((id.to_string(), whole))
}

/// What a bare key must present: `<prefix>_<id 16><secret 43><checksum 6>`, the contract's words.
fn expected(text: &str) -> Option<(String, &str)> {
    let whole = text.trim_matches(char::is_whitespace);
    let bytes = whole.as_bytes();
    let body = bytes.len().checked_sub(16 + 43 + 6)?;
    let prefix = bytes[..body].strip_suffix(b"_")?;
    let shaped = (1..=24).contains(&prefix.len())
        && prefix
            .iter()
            .all(|byte| b"abcdefghijklmnopqrstuvwxyz0123456789_".contains(byte))
        && prefix[0].is_ascii_lowercase()
        && prefix[prefix.len() - 1] != b'_'
        && bytes[body..].iter().all(|byte| DIGITS.contains(byte));
    let summed = bytes.len() - 6;
    if !shaped || checksum(&whole[..summed]) != whole[summed..] {
        return None;
    }
    Some((format!("key_{}", &whole[body..body + 16]), whole))
}

/// CRC-32 (IEEE), bit by bit, in base62 of six digits.
fn checksum(text: &str) -> String {
    let mut crc = u32::MAX;
    for byte in text.bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0xedb8_8320
            } else {
                crc >> 1
            };
        }
    }
    let value = !crc as usize;
    let digit = |power| char::from(DIGITS[value / 62_usize.pow(power) % 62]);
    (0..6).rev().map(digit).collect()
}

/// Base64, six bits at a time, of what is known to be base64.
fn decode(encoded: &str) -> Vec<u8> {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut held, mut decoded) = (0_u32, 0, Vec::new());
    for digit in encoded.trim_end_matches('=').chars() {
        let value = ALPHABET.find(digit).expect("what is taken is base64");
        bits = bits << 6 | u32::try_from(value).expect("a digit is less than 64");
        held += 6;
        if held >= 8 {
            held -= 8;
            decoded.push((bits >> held & 0xff) as u8);
        }
    }
    decoded
}

/// A good key: the first byte says how long its prefix is, and each of the next bytes is a character.
fn key_of(input: &[u8]) -> String {
    const FIRST: &[u8] = b"abcdefghijklmnopqrstuvwxyz";
    const LAST: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    const INNER: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789_";

    let mut bytes = input
        .iter()
        .copied()
        .chain(std::iter::repeat(0))
        .map(usize::from);
    let mut next = || bytes.next().expect("it never ends");
    let of = |digits: &[u8], byte: usize| char::from(digits[byte % digits.len()]);
    let inner = next() % 24;
    let mut key = String::from(of(FIRST, next()));
    for place in 1..=inner {
        key.push(of(if place == inner { LAST } else { INNER }, next()));
    }
    key.push('_');
    key.extend((0..16 + 43).map(|_| of(DIGITS, next())));
    let sum = checksum(&key);
    key + &sum
}

/// The key with one character changed, or left out: where and to what, the last two bytes say.
fn bent(key: &str, input: &[u8]) -> String {
    let (place, other) = match input {
        [.., place, other] => (usize::from(*place) % key.len(), *other),
        _ => (0, 0),
    };
    let other = other.is_ascii().then(|| char::from(other));
    let (before, after) = (&key[..place], &key[place + 1..]);
    before.chars().chain(other).chain(after.chars()).collect()
}

fn check_debug(credential: &Credential) {
    assert_eq!(format!("{credential:?}"), "[redacted]");
}
