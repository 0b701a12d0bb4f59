//! The rule for a request: which keys may be used for it, and where the key is.

use std::str;

use super::proto::Entry;
use crate::{
    api::convert::{request::Fields, status::Invalid},
    domain::tenant::is_tenant_id,
};

/// The prefix of gatekey's entries in `context_extensions`. Other entries are for other services.
const PREFIX: &str = "gatekey.";
/// The tenant of a rule that accepts the keys of every tenant but `system`.
const ANY_TENANT: &str = "*";
/// The header that has the credential unless the rule names another one.
const AUTHORIZATION: &str = "authorization";
/// The maximum length in bytes of the name of a header or a query parameter.
const NAME_MAX: usize = 64;
/// The header that cannot have a credential, because Envoy does not remove it.
const HOST: &str = "host";
/// The prefix of the headers that gatekey sets.
const OWN: &str = "x-gatekey-";

/// A rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Rule {
    /// `None` accepts every tenant but `system`.
    tenant: Option<String>,
    /// Scopes that the key must all have.
    pub(super) required_scopes: Vec<String>,
    /// Scopes of which the key must have one, unless there are none.
    pub(super) any_scopes: Vec<String>,
    pub(super) audience: Option<String>,
    /// The lower-case name of the header that has the credential.
    pub(super) header: String,
    /// The query parameter that may have the key instead.
    pub(super) query_parameter: Option<String>,
    /// True if Envoy forwards the credential.
    pub(super) forward_credential: bool,
}

/// The fields of a rule, as its source has them.
#[derive(Default)]
pub(super) struct RuleFields {
    pub(super) tenant: Option<String>,
    pub(super) scopes: Vec<String>,
    pub(super) any_scopes: Vec<String>,
    pub(super) audience: Option<String>,
    pub(super) header: Option<String>,
    pub(super) query_parameter: Option<String>,
    pub(super) forward_credential: bool,
}

impl RuleFields {
    /// Parses the fields, whose names in violations begin with `prefix`.
    pub(super) fn parse(self, fields: &mut Fields, prefix: &str) -> Rule {
        let name = |field: &str| format!("{prefix}{field}");
        let tenant = self.tenant.unwrap_or_default();
        if tenant != ANY_TENANT && !is_tenant_id(&tenant) {
            fields.note(name("tenant"), "must be a tenant_id, or * for every tenant");
        }
        for (field, scopes) in [("scopes", &self.scopes), ("any_scopes", &self.any_scopes)] {
            if !scopes.is_empty() {
                fields.required_scopes(&name(field), scopes);
            }
        }
        let audience = self
            .audience
            .map(|audience| fields.line(&name("audience"), audience, 1..=255));
        let header = self.header.map_or_else(
            || AUTHORIZATION.to_owned(),
            |header| parse_header(fields, &name("header"), &header),
        );
        let parameter = self.query_parameter;
        if parameter.as_ref().is_some_and(|it| !is_parameter(it)) {
            let description = "must have 1-64 letters, digits or any of -._~";
            fields.note(name("query_parameter"), description);
        }
        Rule {
            tenant: Some(tenant).filter(|tenant| tenant != ANY_TENANT),
            required_scopes: self.scopes,
            any_scopes: self.any_scopes,
            audience,
            header,
            query_parameter: parameter,
            forward_credential: self.forward_credential,
        }
    }
}

impl Rule {
    /// Parses the rule in the entries of a route. Returns `None` if gatekey has no entry.
    ///
    /// # Errors
    /// If an entry is unknown, repeated or invalid. An entry that is not understood could be one
    /// that restricts.
    pub(super) fn of_extensions(entries: &[Entry]) -> Result<Option<Self>, Invalid> {
        let ours = |entry: &&Entry| entry.key.starts_with(PREFIX.as_bytes());
        let mut found = RuleFields::default();
        let (mut fields, mut any) = (Fields::default(), false);
        for (place, entry) in entries.iter().filter(ours).enumerate() {
            any = true;
            let before = entries.iter().filter(ours).take(place);
            if before.into_iter().any(|it| it.key == entry.key) {
                fields.note("context_extensions", "must not repeat an entry");
            }
            take_entry(&mut found, &mut fields, entry);
        }
        if !any {
            return Ok(None);
        }
        let rule = found.parse(&mut fields, PREFIX);
        fields.check()?;
        Ok(Some(rule))
    }

    /// Returns the tenant whose keys are accepted, or `None` for every tenant but `system`.
    pub(super) fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }
}

/// Takes one of gatekey's entries into the fields of a rule.
fn take_entry(found: &mut RuleFields, fields: &mut Fields, entry: &Entry) {
    let key = str::from_utf8(&entry.key).unwrap_or(PREFIX);
    let Ok(value) = str::from_utf8(&entry.value) else {
        fields.note("context_extensions", "must be UTF-8");
        return;
    };
    let text = || Some(value.to_owned());
    match key.strip_prefix(PREFIX).unwrap_or_default() {
        "tenant" => found.tenant = text(),
        "scopes" => found.scopes = list(value),
        "any_scopes" => found.any_scopes = list(value),
        "audience" => found.audience = text(),
        "header" => found.header = text(),
        "query_parameter" => found.query_parameter = text(),
        "forward_credential" => match value {
            "true" => found.forward_credential = true,
            "false" => found.forward_credential = false,
            _ => fields.note(key, "must be true or false"),
        },
        _ => fields.note(
            "context_extensions",
            "may have gatekey.tenant, gatekey.scopes, gatekey.any_scopes, gatekey.audience, \
             gatekey.header, gatekey.query_parameter and gatekey.forward_credential only",
        ),
    }
}

/// Splits a list. An empty text is a list of one empty scope, which is invalid: a variable that is
/// not set must not remove a requirement.
fn list(value: &str) -> Vec<String> {
    let items = value.split(',');
    items.map(|item| item.trim().to_owned()).collect()
}

fn parse_header(fields: &mut Fields, field: &str, header: &str) -> String {
    let header = header.to_ascii_lowercase();
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !(1..=NAME_MAX).contains(&header.len()) || !header.bytes().all(token) {
        fields.note(field, "must be the name of a header, of 1-64 characters");
    } else if header == HOST || header.starts_with(OWN) {
        fields.note(field, "must not be host or begin with x-gatekey-");
    }
    header
}

fn is_parameter(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain)
}
