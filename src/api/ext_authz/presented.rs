//! Finds the credential of a request, where its rule says that it is.

use super::{attributes::Attributes, rule::Rule};
use crate::domain::credential::Credential;

/// Headers whose values have the scheme `Bearer` or `Basic`. Any other header has a bare key.
const WITH_SCHEME: [&str; 2] = ["authorization", "proxy-authorization"];

/// The credential of a request.
pub(super) enum Presentation {
    None,
    One(Credential),
    /// Several values, or one that is no credential.
    Malformed,
}

impl Presentation {
    /// Finds the credential in the header and the query parameter that the rule names.
    pub(super) fn find(rule: &Rule, attributes: &Attributes<'_>) -> Self {
        let name = rule.header.as_bytes();
        let headers = attributes.headers().filter(|(it, _)| *it == name);
        let mut given = headers.map(|(_, value)| value);
        let mut parameters = parameters(rule, attributes);
        let (header, parameter) = (given.next(), parameters.next());
        if given.next().is_some() || parameters.next().is_some() {
            return Self::Malformed;
        }
        match (header, parameter) {
            (None, None) => Self::None,
            (Some(_), Some(_)) => Self::Malformed,
            (Some(value), None) if WITH_SCHEME.contains(&&*rule.header) => {
                let credential = text(value).and_then(Credential::authorization);
                credential.map_or(Self::Malformed, Self::One)
            }
            (Some(value), None) | (None, Some(value)) => {
                text(value).map_or(Self::Malformed, |key| Self::One(Credential::key(key)))
            }
        }
    }
}

/// Returns the values of the query parameter that the rule names. A key has no character that must
/// be encoded, so values are not decoded.
fn parameters<'a>(rule: &Rule, attributes: &Attributes<'a>) -> impl Iterator<Item = &'a [u8]> {
    let name = rule.query_parameter.as_deref().map(str::as_bytes);
    let query = attributes.query();
    let pairs = name.map(|name| (name, query.split(|byte| *byte == b'&')));
    pairs
        .into_iter()
        .flat_map(|(name, pairs)| {
            let value = move |pair: &'a [u8]| match pair.strip_prefix(name)? {
                [] => Some(&[][..]),
                [b'=', value @ ..] => Some(value),
                _ => None,
            };
            pairs.filter_map(value)
        })
        .collect::<Vec<_>>()
        .into_iter()
}

fn text(value: &[u8]) -> Option<String> {
    std::str::from_utf8(value).ok().map(str::to_owned)
}
