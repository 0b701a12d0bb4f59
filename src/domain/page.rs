//! Pages of a list: how many, and where to go on.
//!
//! A page token carries the place to go on at and a fingerprint of the query, so that a token of
//! another query is refused. It grants nothing: whoever forges one only moves in their own list.

use std::fmt::Debug;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

/// Entries on a page when the caller does not say.
pub const PAGE_SIZE_DEFAULT: u32 = 50;
/// The most entries on a page.
pub const PAGE_SIZE_MAX: u32 = 1000;

const FINGERPRINT_LENGTH: usize = 16;

/// Which part of a list is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// 1 to [`PAGE_SIZE_MAX`].
    pub size: u32,
    /// The last entry of the page before this one, as the list orders them.
    pub after: Option<String>,
}

impl Page {
    /// This page and one entry more, which tells whether another page follows.
    #[must_use]
    pub fn and_one(&self) -> Self {
        Self {
            size: self.size + 1,
            after: self.after.clone(),
        }
    }
}

/// Makes the token that goes on after `cursor` in the list that `query` asks for.
#[must_use]
pub fn token(query: &impl Debug, cursor: &str) -> String {
    let mut bytes = fingerprint(query).to_vec();
    bytes.extend_from_slice(cursor.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads the cursor of a token. `None`: it was not made by [`token`] for this query.
#[must_use]
pub fn cursor(query: &impl Debug, token: &str) -> Option<String> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
    let (print, cursor) = bytes.split_at_checked(FINGERPRINT_LENGTH)?;
    (print == fingerprint(query)).then(|| String::from_utf8(cursor.to_vec()).ok())?
}

/// `Debug` tells every field of a query, so that none can be forgotten here.
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
