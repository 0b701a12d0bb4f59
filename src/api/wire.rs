//! Writes protobuf fields directly, for responses that are sent on every request of every service.

use prost::{bytes::BufMut, encoding::encode_varint};

const VARINT: u8 = 0;
const LENGTH_DELIMITED: u8 = 2;
/// The maximum length in bytes of an encoded number.
const VARINT_MAX: usize = 10;

pub(super) fn write_number(to: &mut impl BufMut, field: u8, value: u64) {
    to.put_u8(field << 3 | VARINT);
    encode_varint(value, to);
}

pub(super) fn write_text(to: &mut impl BufMut, field: u8, text: &str) {
    write_parts(to, field, &[text]);
}

/// Writes a text that consists of these parts.
pub(super) fn write_parts(to: &mut impl BufMut, field: u8, parts: &[&str]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    write_head(to, field, length as u64);
    for part in parts {
        to.put_slice(part.as_bytes());
    }
}

/// Writes the beginning of a field with a length.
pub(super) fn write_head(to: &mut impl BufMut, field: u8, length: u64) {
    to.put_u8(field << 3 | LENGTH_DELIMITED);
    encode_varint(length, to);
}

/// Writes a nested message, whose length is known once `fields` has written its fields.
pub(super) fn write_message(to: &mut Vec<u8>, field: u8, fields: impl FnOnce(&mut Vec<u8>)) {
    to.put_u8(field << 3 | LENGTH_DELIMITED);
    let at = to.len();
    // One byte is enough for most messages.
    to.put_u8(0);
    fields(to);
    let length = (to.len() - at - 1) as u64;
    let mut encoded = [0; VARINT_MAX];
    let mut rest = &mut encoded[..];
    encode_varint(length, &mut rest);
    let used = VARINT_MAX - rest.len();
    to[at] = encoded[0];
    let (start, end, more) = (at + 1, to.len(), &encoded[1..used]);
    if !more.is_empty() {
        to.resize(end + more.len(), 0);
        to.copy_within(start..end, start + more.len());
        to[start..start + more.len()].copy_from_slice(more);
    }
}

pub(super) fn text_length(text: &str) -> usize {
    1 + prost::encoding::encoded_len_varint(text.len() as u64) + text.len()
}
