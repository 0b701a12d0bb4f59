//! Converts request fields to domain values and reports all violations at once.
//!
//! A parser records a violation and continues with a value that is never used, because
//! [`Fields::check`] then rejects the whole request.

use std::{collections::BTreeMap, fmt::Debug, net::IpAddr, ops::RangeInclusive, time::Duration};

use ipnet::IpNet;

use crate::api::{
    convert::status::Invalid,
    network::{parse_address, parse_network},
};
use crate::domain::{
    clock::Timestamp,
    name::{NAME_MAX, find_invisible, find_misleading},
    page::{self, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, Page},
    scope::{SCOPES_MAX, Scope, Scopes},
    tenant::is_tenant_id,
    token::{KeyId, Presented, is_visible_beginning},
    violation::Violation,
};

const AUDIENCES_MAX: usize = 64;
const CIDRS_MAX: usize = 64;
const METADATA_MAX: usize = 4096;
const TEXT_MAX: usize = 1024;
/// The enums of the API have fewer values than this.
const CHOICES_MAX: i32 = 64;
/// Size in bytes of the recorded violations above which further ones are dropped. An error is sent
/// in headers, and many clients accept at most 8 KiB of headers.
const TOLD_MAX: usize = 2048;

/// Parses the fields of one request and collects their violations.
#[derive(Default)]
pub(in crate::api) struct Fields(Vec<Violation>);

impl Fields {
    /// Rejects the request if any field is invalid.
    pub(in crate::api) fn check(self) -> Result<(), Invalid> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Invalid(self.0))
        }
    }

    /// Records a violation, at most one per field.
    pub(in crate::api) fn note(
        &mut self,
        field: impl Into<String>,
        description: impl Into<String>,
    ) {
        let violation = Violation::new(field, description);
        let length = |told: &Violation| told.field.len() + told.description.len();
        let full = self.0.iter().map(length).sum::<usize>() > TOLD_MAX;
        if !full && self.0.iter().all(|told| told.field != violation.field) {
            self.0.push(violation);
        }
    }

    pub(in crate::api) fn tenant_id(&mut self, field: &str, value: String) -> String {
        if value.is_empty() {
            self.note(field, "is required");
        } else if !is_tenant_id(&value) {
            self.note(field, "must be [a-z0-9][a-z0-9-]{0,62}");
        }
        value
    }

    pub(in crate::api) fn optional_tenant_id(
        &mut self,
        field: &str,
        value: String,
    ) -> Option<String> {
        (!value.is_empty()).then(|| self.tenant_id(field, value))
    }

    pub(in crate::api) fn key_id(&mut self, field: &str, value: &str) -> Option<KeyId> {
        let id = KeyId::parse(value);
        if id.is_none() {
            self.note(field, not_a_key_id(value));
        }
        id
    }

    /// Parses a value of an enum other than 0. `name` returns the name of a value.
    pub(in crate::api) fn choice<E: TryFrom<i32>>(
        &mut self,
        field: &str,
        value: i32,
        name: impl Fn(&E) -> &'static str,
    ) -> Option<E> {
        let known = E::try_from(value).ok().filter(|_| value != 0);
        if known.is_none() {
            let names: Vec<_> = (1..CHOICES_MAX)
                .filter_map(|value| E::try_from(value).ok())
                .map(|known| name(&known))
                .collect();
            let names = names.join(", ");
            self.note(field, format!("must be one of {names}, but is {value}"));
        }
        known
    }

    pub(in crate::api) fn owner_id(&mut self, field: &str, value: String) -> String {
        if value.is_empty() {
            self.note(field, "is required");
        }
        self.name(field, &value);
        value
    }

    /// Checks a name that people compare by eye, such as an owner's ID.
    fn name(&mut self, field: &str, value: &str) {
        if !(1..=NAME_MAX).contains(&value.len()) {
            self.note(field, "must have 1-255 bytes");
        }
        self.visible(field, value);
    }

    fn visible(&mut self, field: &str, value: &str) {
        if let Some(found) = find_invisible(value) {
            let code = u32::from(found);
            self.note(
                field,
                format!("must not have U+{code:04X}, an invisible or control character"),
            );
        }
    }

    pub(in crate::api) fn optional_owner_id(
        &mut self,
        field: &str,
        value: String,
    ) -> Option<String> {
        (!value.is_empty()).then(|| self.owner_id(field, value))
    }

    /// Parses a single-line text that people compare by eye.
    pub(in crate::api) fn line(
        &mut self,
        field: &str,
        value: String,
        characters: RangeInclusive<usize>,
    ) -> String {
        if !characters.contains(&value.chars().count()) {
            let (min, max) = (characters.start(), characters.end());
            self.note(field, format!("must have {min}-{max} characters"));
        }
        self.visible(field, &value);
        value
    }

    /// Parses a text for people: at most 1024 characters, including line breaks and tabs.
    pub(in crate::api) fn text(&mut self, field: &str, value: String) -> String {
        if value.chars().count() > TEXT_MAX {
            self.note(field, "must have at most 1024 characters");
        }
        self.readable(field, &value);
        value
    }

    fn readable(&mut self, field: &str, value: &str) {
        if let Some(found) = find_misleading(value) {
            let code = u32::from(found);
            self.note(
                field,
                format!(
                    "must not have U+{code:04X}, a control character or one that reorders text; \
                     line breaks and tabs are allowed"
                ),
            );
        }
    }

    pub(in crate::api) fn scopes(&mut self, field: &str, values: &[String]) -> Scopes {
        self.count(field, values.len(), SCOPES_MAX);
        let mut scopes = Vec::new();
        for (place, value) in values.iter().enumerate().take(SCOPES_MAX) {
            match Scope::parse(value) {
                Some(scope) => scopes.push(scope),
                None => self.note(
                    format!("{field}[{place}]"),
                    "must be 1-8 segments joined by `:`, each [A-Za-z0-9_.-/]{1,64} or *",
                ),
            }
        }
        scopes.into_iter().collect()
    }

    /// Parses the scopes of a key, which needs at least one.
    pub(in crate::api) fn key_scopes(&mut self, field: &str, values: &[String]) -> Scopes {
        if values.is_empty() {
            self.note(field, "a key needs at least one scope");
        }
        self.scopes(field, values)
    }

    /// Checks the scopes that a request requires. Each must be without wildcards.
    pub(in crate::api) fn required_scopes(&mut self, field: &str, values: &[String]) {
        self.count(field, values.len(), SCOPES_MAX);
        for (place, value) in values.iter().enumerate().take(SCOPES_MAX) {
            if !Scope::parse(value).is_some_and(|scope| scope.is_concrete()) {
                self.note(
                    format!("{field}[{place}]"),
                    "must be 1-8 segments joined by `:`, each [A-Za-z0-9_.-/]{1,64}, without *",
                );
            }
        }
    }

    /// Parses an optional scope, which must be without wildcards.
    pub(in crate::api) fn optional_scope(&mut self, field: &str, value: &str) -> Option<Scope> {
        let scope = Scope::parse(value).filter(Scope::is_concrete);
        if scope.is_none() && !value.is_empty() {
            self.note(field, "must be a scope without *");
        }
        scope
    }

    pub(in crate::api) fn audiences(&mut self, field: &str, values: Vec<String>) -> Vec<String> {
        self.names(field, values, AUDIENCES_MAX)
    }

    /// Parses a list of names and removes duplicates.
    pub(in crate::api) fn names(
        &mut self,
        field: &str,
        values: Vec<String>,
        max: usize,
    ) -> Vec<String> {
        self.count(field, values.len(), max);
        for (place, value) in values.iter().enumerate().take(max) {
            self.name(&format!("{field}[{place}]"), value);
        }
        let mut names: Vec<String> = Vec::new();
        // Too many values are refused; comparing them all with each other would take seconds.
        for value in values.into_iter().take(max) {
            if !names.contains(&value) {
                names.push(value);
            }
        }
        names
    }

    pub(in crate::api) fn cidrs(&mut self, field: &str, values: &[String]) -> Vec<IpNet> {
        self.count(field, values.len(), CIDRS_MAX);
        let mut nets = Vec::new();
        for (place, value) in values.iter().enumerate().take(CIDRS_MAX) {
            match parse_network(value) {
                Ok(net) => nets.push(net),
                Err(wrong) => self.note(format!("{field}[{place}]"), wrong.to_string()),
            }
        }
        nets
    }

    pub(in crate::api) fn metadata(
        &mut self,
        field: &str,
        values: impl IntoIterator<Item = (String, String)>,
    ) -> BTreeMap<String, String> {
        let map: BTreeMap<_, _> = values.into_iter().collect();
        if map
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum::<usize>()
            > METADATA_MAX
        {
            self.note(
                field,
                "must have at most 4096 bytes, names and values together",
            );
        }
        for (name, value) in &map {
            self.name(field, name);
            self.readable(field, value);
        }
        map
    }

    pub(in crate::api) fn time(
        &mut self,
        field: &str,
        value: Option<prost_types::Timestamp>,
    ) -> Option<Timestamp> {
        let value = value?;
        let nanos = (0..1_000_000_000).contains(&value.nanos);
        let seconds = (-62_135_596_800..=253_402_300_799).contains(&value.seconds);
        if !nanos || !seconds {
            self.note(field, "must be a time from year 1 to year 9999");
            return None;
        }
        let micros = value.seconds * 1_000_000 + i64::from(value.nanos) / 1000;
        Some(Timestamp::from_micros(micros))
    }

    pub(in crate::api) fn future(
        &mut self,
        field: &str,
        value: Option<prost_types::Timestamp>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let time = self.time(field, value)?;
        if time <= now {
            self.note(field, "must be in the future");
        }
        Some(time)
    }

    /// Parses a duration that is not negative.
    pub(in crate::api) fn span(
        &mut self,
        field: &str,
        value: Option<prost_types::Duration>,
    ) -> Option<Duration> {
        let value = value?;
        let nanos = u32::try_from(value.nanos)
            .ok()
            .filter(|nanos| *nanos < 1_000_000_000);
        let seconds = u64::try_from(value.seconds)
            .ok()
            .filter(|seconds| *seconds <= 315_576_000_000);
        let Some((seconds, nanos)) = seconds.zip(nanos) else {
            self.note(field, "must be a duration from 0 to 10000 years");
            return None;
        };
        // Truncates to microseconds, the precision that is stored.
        Some(Duration::new(seconds, nanos / 1000 * 1000))
    }

    /// Parses a duration of at least one microsecond.
    pub(in crate::api) fn positive_span(
        &mut self,
        field: &str,
        value: Option<prost_types::Duration>,
    ) -> Option<Duration> {
        let span = self.span(field, value)?;
        if span < Duration::from_micros(1) {
            self.note(field, "must be more than 0");
        }
        Some(span)
    }

    /// Parses an address and ignores its port. Converts an IPv4-mapped address to IPv4.
    pub(in crate::api) fn ip(&mut self, field: &str, value: &str) -> Option<IpAddr> {
        let text = value.trim();
        if text.is_empty() {
            return None;
        }
        let ip = parse_address(text);
        if let Err(wrong) = &ip {
            self.note(field, wrong.to_string());
        }
        ip.ok()
    }

    /// Parses the page size and token of a list request. A token is valid only for its own `query`.
    pub(in crate::api) fn page(&mut self, query: &impl Debug, size: i32, token: &str) -> Page {
        let size = match u32::try_from(size) {
            Ok(0) => PAGE_SIZE_DEFAULT,
            Ok(size) => size.min(PAGE_SIZE_MAX),
            Err(_) => {
                self.note("page_size", "must not be negative; 0 means 50");
                PAGE_SIZE_DEFAULT
            }
        };
        let after = page::cursor(query, token);
        if after.is_none() && !token.is_empty() {
            self.note(
                "page_token",
                "must be the next_page_token of the same query",
            );
        }
        Page { size, after }
    }

    fn count(&mut self, field: &str, count: usize, max: usize) {
        if count > max {
            self.note(field, format!("must be at most {max}"));
        }
    }
}

/// Returns the reason why a text is not a key's ID, without repeating it: it may be a secret.
fn not_a_key_id(value: &str) -> &'static str {
    if value.is_empty() {
        "is required: key_ and 16 letters or digits"
    } else if Presented::parse(value).is_some() {
        "must be key_ and 16 letters or digits, but is a whole key, which is a secret: LookupKey \
         returns its key_id"
    } else if is_visible_beginning(value) {
        "must be key_ and 16 letters or digits, but is the visible beginning of a key, which \
         ListKeys returns as key_prefix together with the key_id"
    } else {
        "must be key_ and 16 letters or digits"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_names_the_field_and_the_code_point() {
        let mut fields = Fields::default();
        fields.owner_id("owner_id", "ali\u{200b}ce".to_owned());
        fields.line("label", "a\u{7}".to_owned(), 1..=120);
        fields.text("reason", "a\nb\u{202e}".to_owned());
        fields.text("description", "a\n\tb\u{200d}".to_owned());
        fields.names(
            "audiences",
            vec!["web".to_owned(), "\u{feff}".to_owned()],
            9,
        );
        fields.metadata("metadata", [("a\u{ad}".to_owned(), String::new())]);
        let told: Vec<_> = fields
            .0
            .iter()
            .map(|wrong| (&*wrong.field, &*wrong.description))
            .collect();
        let found = [
            ("owner_id", "U+200B"),
            ("label", "U+0007"),
            ("reason", "U+202E"),
            ("audiences[1]", "U+FEFF"),
            ("metadata", "U+00AD"),
        ];
        assert_eq!(told.len(), found.len(), "{told:?}");
        for ((field, description), (of, code)) in told.into_iter().zip(found) {
            assert_eq!(field, of);
            assert!(description.contains(code), "{description}");
        }
    }

    #[test]
    fn a_port_behind_an_address_is_ignored() {
        for (text, read) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("192.0.2.1:5678", Some("192.0.2.1")),
            ("::1", Some("::1")),
            ("[::1]", Some("::1")),
            ("[::1]:80", Some("::1")),
            ("::ffff:192.0.2.1", Some("192.0.2.1")),
            ("[::ffff:192.0.2.1]:80", Some("192.0.2.1")),
            ("", None),
            ("192.0.2.1:", None),
            ("192.0.2.1:65536", None),
            ("[192.0.2.1]:80", None),
            ("192.0.2.1, 192.0.2.2", None),
            ("example.org:80", None),
        ] {
            let mut fields = Fields::default();
            let ip = fields.ip("client_ip", text).map(|ip| ip.to_string());
            assert_eq!(ip.as_deref(), read, "{text}");
            assert_eq!(fields.check().is_ok(), read.is_some() || text.is_empty());
        }
    }

    #[test]
    fn times_and_spans_out_of_range_are_violations() {
        let mut fields = Fields::default();
        let time = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        let span = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        assert_eq!(
            fields.time("a", time(1, 999)),
            Some(Timestamp::from_micros(1_000_000))
        );
        fields.time("b", time(i64::MAX, 0));
        fields.time("c", time(0, -1));
        fields.future("d", time(5, 0), Timestamp::from_micros(5_000_000));
        fields.span("e", span(0, -1));
        fields.span("f", span(i64::MAX, 0));
        fields.positive_span("g", span(0, 1));
        let wrong: Vec<_> = fields
            .0
            .into_iter()
            .map(|violation| violation.field)
            .collect();
        assert_eq!(wrong, ["b", "c", "d", "e", "f", "g"]);
    }
}
