//! Pagination of lists.
//!
//! A page token contains a cursor and a fingerprint of the query, so that a token of another query
//! is rejected. A token grants no access: with a forged token, a caller only moves in its own list.

use std::fmt::Debug;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

/// The page size if the caller does not set one.
pub const PAGE_SIZE_DEFAULT: u32 = 50;
/// The maximum page size.
pub const PAGE_SIZE_MAX: u32 = 1000;

const FINGERPRINT_LENGTH: usize = 16;

/// The requested part of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The number of entries, 1 to [`PAGE_SIZE_MAX`].
    pub size: u32,
    /// The last entry of the previous page, in the list's order.
    pub after: Option<String>,
}

impl Page {
    /// Returns this page with one more entry, which shows whether another page follows.
    #[must_use]
    pub fn and_one(&self) -> Self {
        Self {
            size: self.size + 1,
            after: self.after.clone(),
        }
    }
}

/// Returns the token that continues after `cursor` in the list that `query` requests.
#[must_use]
pub fn token(query: &impl Debug, cursor: &str) -> String {
    let mut bytes = fingerprint(query).to_vec();
    bytes.extend_from_slice(cursor.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Returns the cursor of a token, or `None` if [`token`] did not create it for this query.
#[must_use]
pub fn cursor(query: &impl Debug, token: &str) -> Option<String> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
    let (print, cursor) = bytes.split_at_checked(FINGERPRINT_LENGTH)?;
    let cursor = String::from_utf8(cursor.to_vec()).ok()?;
    // PostgreSQL accepts no NUL in a text.
    (print == fingerprint(query) && !cursor.contains('\0')).then_some(cursor)
}

/// Hashes the query's `Debug` output, because it contains every field and none can be omitted.
fn fingerprint(query: &impl Debug) -> [u8; FINGERPRINT_LENGTH] {
    let hash = blake3::hash(format!("{query:?}").as_bytes());
    std::array::from_fn(|place| hash.as_bytes()[place])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_is_read_back(query in any::<(String, u8)>(), at in any::<String>()) {
            prop_assert_eq!(cursor(&query, &token(&query, &at)), Some(at));
        }

        #[test]
        fn a_token_of_another_query_is_refused(query in any::<String>(), other in any::<String>(), at in any::<i64>()) {
            prop_assume!(query != other);
            prop_assert_eq!(cursor(&query, &token(&other, &at.to_string())), None);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in any::<String>(), base64 in "[A-Za-z0-9_-]{0,60}") {
            prop_assert_eq!(cursor(&"query", &text), None);
            prop_assert_eq!(cursor(&"query", &base64), None);
        }
    }
}
