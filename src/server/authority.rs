//! Support for gRPC clients whose `:authority` is a list of addresses.
//!
//! The C core of gRPC (Python, C++, Ruby, PHP) sends `:authority: 10.0.0.1:50051,10.0.0.2:50051`
//! for the target `ipv4:10.0.0.1:50051,10.0.0.2:50051`. The HTTP/2 library resets such a stream
//! because an authority cannot have two ports, and it has no hook to change that. gatekey does not
//! read the authority. This filter therefore overwrites the part after the first address, byte by
//! byte and without changing a length, before the library sees it. The header compression (HPACK,
//! RFC 7541) stays in sync: the tables of the client and the server differ only in the value of
//! that entry, which has the same size.
//!
//! Only connections whose first header block contains such a list are inspected further.

/// The name of the field, which the C core sends in full, and its index in the static table.
const NAME: &[u8] = b":authority";
const NAME_INDEX: u8 = 1;

const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Number of bytes before the fields of a HEADERS frame with a priority.
const PRIORITY_LENGTH: u32 = 5;

/// Overwrites the rest of an address list in the bytes that a client sends after its preface.
#[derive(Default)]
pub struct AuthorityFilter {
    /// True once the first header block was found to have no list.
    off: bool,
    /// True once a list was found.
    found: bool,
    head: [u8; FRAME_HEAD],
    /// Number of bytes of the head that have been read.
    head_read: usize,
    frame: Frame,
    block: Block,
}

/// The frame that is being read.
#[derive(Default)]
struct Frame {
    /// Number of payload bytes that have not been read.
    left: u32,
    /// True if the frame holds fields.
    fields: bool,
    /// True if the frame ends a header block.
    ends: bool,
    /// True if the next byte is the length of the padding.
    padded: bool,
    padding: u32,
    /// Number of bytes before the fields.
    skip: u32,
}

impl AuthorityFilter {
    /// Inspects the next bytes that were read, and overwrites those of a list in place.
    pub fn filter(&mut self, mut bytes: &mut [u8]) {
        while !self.off && !bytes.is_empty() {
            let rest = std::mem::take(&mut bytes);
            bytes = if self.frame.left == 0 {
                self.read_head(rest)
            } else {
                self.read_payload(rest)
            };
        }
    }

    fn read_head<'a>(&mut self, bytes: &'a mut [u8]) -> &'a mut [u8] {
        let length = bytes.len().min(FRAME_HEAD - self.head_read);
        let (head, rest) = bytes.split_at_mut(length);
        self.head[self.head_read..][..length].copy_from_slice(head);
        self.head_read += length;
        if self.head_read == FRAME_HEAD {
            self.head_read = 0;
            let [high, middle, low, kind, flags, ..] = self.head;
            let first = kind == HEADERS;
            let fields = first || kind == CONTINUATION;
            let has = |flag| first && flags & flag != 0;
            self.frame = Frame {
                left: u32::from_be_bytes([0, high, middle, low]),
                fields,
                ends: fields && flags & END_HEADERS != 0,
                padded: has(PADDED),
                padding: 0,
                skip: if has(PRIORITY) { PRIORITY_LENGTH } else { 0 },
            };
            self.end_frame();
        }
        rest
    }

    fn read_payload<'a>(&mut self, bytes: &'a mut [u8]) -> &'a mut [u8] {
        let length = bytes.len().min(self.frame.left as usize);
        let (payload, rest) = bytes.split_at_mut(length);
        if self.frame.fields {
            for byte in payload {
                self.read_byte(byte);
            }
        } else {
            // `length` is at most `left`.
            self.frame.left -= u32::try_from(length).unwrap_or(self.frame.left);
        }
        self.end_frame();
        rest
    }

    fn read_byte(&mut self, byte: &mut u8) {
        let frame = &mut self.frame;
        frame.left -= 1;
        if frame.padded {
            frame.padded = false;
            frame.padding = u32::from(*byte);
        } else if frame.skip > 0 {
            frame.skip -= 1;
        } else if frame.left >= frame.padding {
            self.found |= self.block.read(byte);
        }
    }

    fn end_frame(&mut self) {
        if self.frame.left == 0 && self.frame.ends {
            self.off = !self.found;
            self.block = Block::default();
        }
    }
}

/// A header block, split into representations without decoding them.
#[derive(Default)]
struct Block {
    next: Next,
    /// True if the current string is a value, false if it is a name.
    value: bool,
    /// True if the part of the field's name that has been read matches `:authority`.
    authority: bool,
    /// True once a list has begun in the value.
    list: bool,
}

/// The kind of the next byte of a header block.
#[derive(Clone, Copy, Default)]
enum Next {
    /// The first byte of a representation.
    #[default]
    Field,
    /// Another byte of an index. `string` is true if a string follows.
    Index { string: bool },
    /// The first byte of the length of a string.
    Length,
    /// Another byte of the length.
    MoreLength { length: u32, shift: u32 },
    /// A byte of a string.
    Text { read: u32, length: u32, plain: bool },
}

impl Block {
    /// Reads a byte, and overwrites it if necessary. Returns true if it belongs to a list.
    fn read(&mut self, byte: &mut u8) -> bool {
        self.next = match self.next {
            Next::Field => self.field(*byte),
            Next::Index { string } if *byte & 0x80 != 0 => Next::Index { string },
            Next::Index { string: true } => Next::Length,
            Next::Index { string: false } => Next::Field,
            Next::Length if *byte & 0x7f == 0x7f => {
                self.authority &= *byte & 0x80 == 0;
                Next::MoreLength {
                    length: 0x7f,
                    shift: 0,
                }
            }
            Next::Length => self.text(u32::from(*byte & 0x7f), *byte & 0x80 == 0),
            Next::MoreLength { length, shift } => {
                let more = u32::from(*byte & 0x7f).checked_shl(shift).unwrap_or(0);
                let length = length.saturating_add(more);
                if *byte & 0x80 == 0 {
                    self.text(length, true)
                } else {
                    Next::MoreLength {
                        length,
                        shift: shift + 7,
                    }
                }
            }
            Next::Text {
                read,
                length,
                plain,
            } => {
                return self.letter(byte, read, length, plain);
            }
        };
        false
    }

    /// Reads the first byte of a representation (RFC 7541, 6).
    fn field(&mut self, byte: u8) -> Next {
        let (mask, literal) = match byte {
            0x80.. => (0x7f, false),
            0x40..0x80 => (0x3f, true),
            0x20..0x40 => (0x1f, false),
            0x00..0x20 => (0x0f, true),
        };
        let index = byte & mask;
        self.value = index != 0;
        self.authority = literal && (index == NAME_INDEX || index == 0);
        self.list = false;
        match (index == mask, literal) {
            (true, string) => Next::Index { string },
            (false, true) => Next::Length,
            (false, false) => Next::Field,
        }
    }

    /// Begins a string.
    fn text(&mut self, length: u32, plain: bool) -> Next {
        self.authority &= plain && (self.value || length as usize == NAME.len());
        if length == 0 {
            return self.end_text();
        }
        Next::Text {
            read: 0,
            length,
            plain,
        }
    }

    fn end_text(&mut self) -> Next {
        if self.value {
            Next::Field
        } else {
            self.value = true;
            Next::Length
        }
    }

    fn letter(&mut self, byte: &mut u8, read: u32, length: u32, plain: bool) -> bool {
        if !self.value {
            self.authority &= NAME.get(read as usize) == Some(byte);
        } else if self.authority {
            // Clients send the comma as it is or percent-encoded.
            self.list |= matches!(byte, b',' | b'%');
            if self.list && !matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'.') {
                *byte = b'-';
            }
        }
        let list = self.list;
        let read = read + 1;
        self.next = if read == length {
            self.end_text()
        } else {
            Next::Text {
                read,
                length,
                plain,
            }
        };
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a frame of the first stream.
    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn text(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()], text].concat()
    }

    /// Returns a block with this authority, its name in full or by its index, among other fields.
    fn block(authority: &[u8], full: bool) -> Vec<u8> {
        let name = if full {
            [&[0x40][..], &text(NAME)].concat()
        } else {
            vec![0x41]
        };
        let other = [
            &[0x0f, 0x80, 0x01][..],
            &text(b"a,b"),
            &[0x00],
            &text(b"x"),
            &text(b"c,d"),
        ];
        [
            &[0x83, 0x3f, 0x01][..],
            &other.concat(),
            &name,
            &text(authority),
            &[0x86],
        ]
        .concat()
    }

    fn filtered(filter: &mut AuthorityFilter, bytes: &[u8], step: usize) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes.chunks_mut(step).for_each(|part| filter.filter(part));
        bytes
    }

    #[test]
    fn what_follows_the_first_address_is_overwritten_however_the_bytes_come() {
        let settings = frame(4, 0, &[0, 3, 0, 0, 0, 100]);
        for full in [false, true] {
            for (sent, seen) in [
                (
                    &b"127.0.0.1:5,127.0.0.2:6"[..],
                    &b"127.0.0.1:5-127.0.0.2-6"[..],
                ),
                (b"[::1]:5%2C[::1]:6", b"[::1]:5-2C---1--6"),
            ] {
                let (sent, seen) = (block(sent, full), block(seen, full));
                let framed = |block: &[u8]| {
                    let padded = [&[3, 1, 2, 3, 4, 5][..], &block[..20], b",,,"].concat();
                    [
                        settings.clone(),
                        frame(HEADERS, PADDED | PRIORITY, &padded),
                        frame(CONTINUATION, END_HEADERS, &block[20..]),
                        frame(0, 1, b"\0a,b"),
                        frame(HEADERS, END_HEADERS, block),
                    ]
                    .concat()
                };
                for step in [1, 2, 7, 1000] {
                    let mut filter = AuthorityFilter::default();
                    assert_eq!(filtered(&mut filter, &framed(&sent), step), framed(&seen));
                }
            }
        }
    }

    #[test]
    fn a_connection_without_a_list_is_left_alone() {
        let mut filter = AuthorityFilter::default();
        let usual = frame(HEADERS, END_HEADERS, &block(b"localhost:50051", true));
        assert_eq!(filtered(&mut filter, &usual, 3), usual);
        assert!(filter.off);
        let list = frame(HEADERS, END_HEADERS, &block(b"a:1,b:2", true));
        assert_eq!(filtered(&mut filter, &list, 3), list);
    }

    #[test]
    fn whatever_comes_changes_no_length_and_does_not_panic() {
        use rand::{RngExt as _, SeedableRng as _};
        for seed in 0..2000 {
            let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
            let mut bytes: Vec<u8> = (0..300).map(|_| rng.random()).collect();
            bytes[..9].copy_from_slice(&[0, 2, 0, HEADERS, rng.random(), 0, 0, 0, 1]);
            let step = rng.random_range(1..50);
            filtered(&mut AuthorityFilter::default(), &bytes, step);
        }
    }
}
