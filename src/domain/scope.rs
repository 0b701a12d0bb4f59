//! Scopes: permissions of a key, as patterns over segments joined by `:`.
//!
//! `*` matches one whole segment; as the last segment it matches one or more. An empty set of
//! scopes grants nothing; it never means every scope.

use std::fmt;

/// The maximum number of segments in a scope.
pub const SEGMENTS_MAX: usize = 8;
/// The maximum number of characters in a segment.
pub const SEGMENT_MAX: usize = 64;
/// The maximum number of scopes of a key, an owner, a catalog or a request.
pub const SCOPES_MAX: usize = 256;

const WILDCARD: &str = "*";

/// A scope, such as `jobs:read`, `jobs:*` or `*`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Scope(Box<str>);

impl Scope {
    /// Parses a scope. Returns `None` unless it is 1–8 segments of `[A-Za-z0-9_.\-/]{1,64}` or `*`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let right = text.split(':').all(|segment| {
            segment == WILDCARD
                || (1..=SEGMENT_MAX).contains(&segment.len())
                    && segment.bytes().all(|byte| {
                        byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'/')
                    })
        });
        (right && text.split(':').count() <= SEGMENTS_MAX).then(|| Self(text.into()))
    }

    /// Returns the text of the scope, unchanged.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether the scope is concrete, that is, has no `*`. Scopes in a request are
    /// concrete.
    #[must_use]
    pub fn is_concrete(&self) -> bool {
        !self.0.contains('*')
    }

    /// Returns whether this pattern grants the concrete scope `required`.
    #[must_use]
    pub fn grants(&self, required: &str) -> bool {
        grants(&self.0, required)
    }

    /// Returns the intersection of both patterns, which is at most one pattern.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Option<Self> {
        let (mut short, mut long) = (self, other);
        if short.0.split(':').count() > long.0.split(':').count() {
            (short, long) = (long, short);
        }
        if !overlap(&short.0, &long.0) {
            return None;
        }
        let mut met = String::new();
        let mut rest = long.0.split(':');
        let mut patterns = short.0.split(':').peekable();
        while let Some(pattern) = patterns.next() {
            let segment = rest.next()?;
            push_segment(
                &mut met,
                if pattern == WILDCARD {
                    segment
                } else {
                    pattern
                },
            );
            if patterns.peek().is_some() {
                continue;
            }
            // The short pattern ends here; further segments are those that its final `*` grants.
            rest.by_ref()
                .for_each(|segment| push_segment(&mut met, segment));
        }
        Some(Self(met.into()))
    }

    /// Returns whether this pattern grants everything that `other` grants.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        // A wildcard of `other` equals no name, and only a wildcard grants it.
        grants(&self.0, &other.0)
    }

    /// Returns the first segment, which is the tenant in scopes of tenant `system`.
    #[must_use]
    pub fn first_segment(&self) -> &str {
        self.0.split_once(':').map_or(&*self.0, |(first, _)| first)
    }
}

/// Returns whether `pattern`, the text of a scope, grants the concrete scope `required`.
#[must_use]
pub fn grants(pattern: &str, required: &str) -> bool {
    let mut wanted = required.split(':');
    let mut granted = pattern.split(':').peekable();
    while let Some(pattern) = granted.next() {
        let Some(segment) = wanted.next() else {
            return false;
        };
        if pattern == WILDCARD {
            if granted.peek().is_none() {
                return true;
            }
        } else if pattern != segment {
            return false;
        }
    }
    wanted.next().is_none()
}

/// Returns whether two patterns grant a common scope; `short` has no more segments than `long`.
/// Allocates nothing, because most pairs of a key's and an owner's scopes have nothing in common.
fn overlap(short: &str, long: &str) -> bool {
    let mut rest = long.split(':');
    let mut last = "";
    for pattern in short.split(':') {
        let segment = rest.next().unwrap_or_default();
        if pattern != WILDCARD && segment != WILDCARD && pattern != segment {
            return false;
        }
        last = pattern;
    }
    last == WILDCARD || rest.next().is_none()
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn push_segment(scope: &mut String, segment: &str) {
    if !scope.is_empty() {
        scope.push(':');
    }
    scope.push_str(segment);
}

/// A set of scopes without duplicates, in the given order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scopes(Vec<Scope>);

impl Scopes {
    /// Returns the approximate number of bytes on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let scope = |scope: &Scope| size_of::<Scope>() + scope.0.len() + 16;
        self.0.iter().map(scope).sum()
    }

    /// Returns whether the set is empty and so grants nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the scopes in order.
    pub fn iter(&self) -> impl Iterator<Item = &Scope> {
        self.0.iter()
    }

    /// Returns whether one of the scopes grants the concrete scope `required`.
    #[must_use]
    pub fn grants(&self, required: &str) -> bool {
        self.0.iter().any(|scope| scope.grants(required))
    }

    /// Returns whether one of the scopes grants everything that `other` grants.
    #[must_use]
    pub fn covers(&self, other: &Scope) -> bool {
        self.0.iter().any(|scope| scope.covers(other))
    }

    /// Returns the number of scopes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the scopes of either set that a scope of the other set covers.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let ours = self.0.iter().filter(|scope| other.covers(scope));
        let theirs = other.0.iter().filter(|scope| self.covers(scope));
        ours.chain(theirs).cloned().collect()
    }

    /// Returns the intersection of both sets, without scopes that another scope of the result
    /// covers.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        let mut met = Self::default();
        for ours in &self.0 {
            for scope in other.0.iter().filter_map(|theirs| ours.meet(theirs)) {
                if !met.covers(&scope) {
                    met.0.retain(|weaker| !scope.covers(weaker));
                    met.0.push(scope);
                }
            }
        }
        met
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        let mut set = Self::default();
        for scope in scopes {
            if !set.0.contains(&scope) {
                set.0.push(scope);
            }
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A recursive reference implementation of the contract, independent of the code above.
    fn naive_grants(pattern: &[&str], required: &[&str]) -> bool {
        match (pattern, required) {
            ([], []) => true,
            ([], _) | (_, []) => false,
            (["*"], _) => true,
            (["*", pattern @ ..], [_, required @ ..]) => naive_grants(pattern, required),
            ([first, pattern @ ..], [wanted, required @ ..]) => {
                first == wanted && naive_grants(pattern, required)
            }
        }
    }

    fn split(text: &str) -> Vec<&str> {
        text.split(':').collect()
    }

    fn scope(text: &str) -> Scope {
        Scope::parse(text).unwrap()
    }

    /// Few names and few segments, so that patterns and requests often match.
    const PATTERN: &str = "(a|b|\\*)(:(a|b|\\*)){0,3}";
    const CONCRETE: &str = "(a|b)(:(a|b)){0,4}";

    proptest! {
        #[test]
        fn grants_as_the_naive_matcher_does(pattern in PATTERN, required in CONCRETE) {
            prop_assert_eq!(
                scope(&pattern).grants(&required),
                naive_grants(&split(&pattern), &split(&required))
            );
        }

        #[test]
        fn the_meet_grants_what_both_grant(one in PATTERN, other in PATTERN, required in CONCRETE) {
            let (one, other) = (scope(&one), scope(&other));
            let both = one.grants(&required) && other.grants(&required);
            let met = one.meet(&other);
            prop_assert_eq!(met.as_ref().is_some_and(|met| met.grants(&required)), both);
            prop_assert_eq!(met, other.meet(&one));
        }

        #[test]
        fn the_meet_of_sets_grants_what_both_grant(
            ours in prop::collection::vec(PATTERN, 0..4),
            theirs in prop::collection::vec(PATTERN, 0..4),
            required in CONCRETE,
        ) {
            let [ours, theirs] = [ours, theirs]
                .map(|set| set.iter().map(|text| scope(text)).collect::<Scopes>());
            let both = ours.grants(&required) && theirs.grants(&required);
            prop_assert_eq!(ours.meet(&theirs).grants(&required), both);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in any::<String>()) {
            let _ = Scope::parse(&text);
        }

        #[test]
        fn what_covers_a_scope_grants_all_it_grants(one in PATTERN, other in PATTERN, required in CONCRETE) {
            let (one, other) = (scope(&one), scope(&other));
            if one.covers(&other) && other.grants(&required) {
                prop_assert!(one.grants(&required));
            }
        }
    }

    #[test]
    fn the_contracts_examples() {
        assert!(scope("jobs:*").grants("jobs:read"));
        assert!(scope("jobs:*").grants("jobs:runs:read"));
        assert!(!scope("jobs:*").grants("jobs"));
        assert!(scope("*:read").grants("jobs:read"));
        assert!(!scope("*:read").grants("jobs:runs:read"));
        assert!(scope("*").grants("anything:at:all"));
        assert!(scope("edit_orders").grants("edit_orders"));
        assert!(!Scopes::default().grants("a"));
        assert_eq!(
            scope("jobs:*").meet(&scope("*:read")),
            Some(scope("jobs:read"))
        );
    }

    #[test]
    fn what_is_not_a_scope() {
        let long = "a".repeat(65);
        let deep = ["a"; 9].join(":");
        for text in ["", ":", "a:", ":a", "a b", "a*", "a:**", "ä", &long, &deep] {
            assert!(Scope::parse(text).is_none(), "{text}");
        }
        let (long, deep) = ("a".repeat(64), ["a"; 8].join(":"));
        for text in ["*", "a", "a:*", "*:*", "A-Z_0.9/x", &long, &deep] {
            assert!(Scope::parse(text).is_some(), "{text}");
        }
    }
}
