//! The response to a Check, encoded directly from the cache entry.
//!
//! The wire format is `envoy.service.auth.v3.CheckResponse`; a test decodes it as that message.

use std::borrow::Cow;

use prost::bytes::BufMut as _;
use tonic::Code;

use super::{NO_RULE, NO_RULE_NAME, attributes::Attributes, rule::Rule};
use crate::{
    api::{
        convert::response,
        hot_call::Encode,
        validate::{decode::HEAD, encode::words},
        wire::{write_message, write_number, write_text},
    },
    domain::key_policy::DenyReason,
    service::validator::{Decision, Known},
};

/// Initial capacity of a response buffer in bytes, more than a usual response needs.
const USUAL: usize = 768;
/// Maximum length in bytes of the scopes in a header. Services accept about 8 KiB of headers.
const SCOPES_MAX: usize = 4096;
/// The prefix of the names of the headers that gatekey sets.
const OWN: &[u8] = b"x-gatekey-";
const KEY_ID: &str = "x-gatekey-key-id";
const TENANT: &str = "x-gatekey-tenant";
const OWNER: &str = "x-gatekey-owner";
const SCOPES: &str = "x-gatekey-scopes";
/// The realm of a challenge by a rule for every tenant.
const REALM: &str = "gatekey";
/// Envoy's `OVERWRITE_IF_EXISTS_OR_ADD`.
const OVERWRITE: u64 = 2;

/// Field numbers, each after its message.
mod field {
    pub(super) const RESPONSE_STATUS: u8 = 1;
    pub(super) const RESPONSE_DENIED: u8 = 2;
    pub(super) const RESPONSE_OK: u8 = 3;
    pub(super) const RESPONSE_METADATA: u8 = 4;
    pub(super) const STATUS_CODE: u8 = 1;
    pub(super) const HEADERS: u8 = 2;
    pub(super) const OK_REMOVE: u8 = 5;
    pub(super) const OK_REMOVE_PARAMETERS: u8 = 8;
    pub(super) const DENIED_STATUS: u8 = 1;
    pub(super) const DENIED_BODY: u8 = 3;
    pub(super) const OPTION_HEADER: u8 = 1;
    pub(super) const OPTION_ACTION: u8 = 3;
    /// Of a header, and of an entry of a map.
    pub(super) const KEY: u8 = 1;
    pub(super) const VALUE: u8 = 2;
    pub(super) const STRUCT_FIELDS: u8 = 1;
    pub(super) const VALUE_STRING: u8 = 3;
    pub(super) const VALUE_LIST: u8 = 6;
    pub(super) const LIST_VALUES: u8 = 1;
}

/// The encoded response to a Check.
#[derive(Debug)]
pub struct Verdict {
    decision: usize,
    framed: Vec<u8>,
}

impl Encode for Verdict {
    fn decision(&self) -> usize {
        self.decision
    }

    fn framed(self) -> Vec<u8> {
        self.framed
    }
}

/// A denial.
struct Denial<'a> {
    code: &'a str,
    http_status: u16,
    message: &'a str,
    /// The value of `WWW-Authenticate`.
    challenge: Option<String>,
}

impl Verdict {
    /// Encodes the decision about a request with this rule.
    pub(super) fn of(decision: &Decision, rule: &Rule, attributes: &Attributes<'_>) -> Self {
        let (reason, http_status, message) = words(decision);
        let code = response::reason_name(reason);
        let mut to = begin();
        let known = match decision {
            Decision::Allowed(known) => {
                write_message(&mut to, field::RESPONSE_STATUS, |_| {});
                write_message(&mut to, field::RESPONSE_OK, |to| {
                    write_ok(to, known, rule, attributes);
                });
                Some(known)
            }
            Decision::Missing | Decision::Malformed | Decision::NotFound => None,
            Decision::Denied(known, _) => Some(known),
        };
        if !matches!(decision, Decision::Allowed(_)) {
            let denial = Denial {
                code,
                http_status,
                message,
                challenge: challenge(decision, rule),
            };
            write_denial(&mut to, &denial, attributes.is_grpc());
        }
        write_metadata(&mut to, code, known);
        Self {
            decision: reason as usize,
            framed: to,
        }
    }

    /// Encodes the denial of a request without a rule.
    pub(super) fn no_rule(attributes: &Attributes<'_>) -> Self {
        let denial = Denial {
            code: NO_RULE_NAME,
            http_status: 403,
            message: "No rule allows this request.",
            challenge: None,
        };
        let mut to = begin();
        write_denial(&mut to, &denial, attributes.is_grpc());
        write_metadata(&mut to, NO_RULE_NAME, None);
        Self {
            decision: NO_RULE,
            framed: to,
        }
    }
}

fn begin() -> Vec<u8> {
    let mut to = Vec::with_capacity(USUAL);
    to.put_bytes(0, HEAD);
    to
}

fn write_ok(to: &mut Vec<u8>, known: &Known, rule: &Rule, attributes: &Attributes<'_>) {
    let policy = known.policy();
    write_header(to, KEY_ID, &known.key_id.to_string());
    write_header(to, TENANT, policy.tenant_id());
    write_header(to, OWNER, &header_text(policy.owner_id()));
    let scopes = policy.scopes_text();
    // Without the header a service behind Envoy finds no scope, which grants nothing.
    let told = !scopes.is_empty() && scopes.len() <= SCOPES_MAX;
    if told {
        write_header(to, SCOPES, scopes);
    } else {
        write_text(to, field::OK_REMOVE, SCOPES);
    }
    for (name, _) in attributes.headers() {
        if is_spoofed(name)
            && let Ok(name) = std::str::from_utf8(name)
        {
            write_text(to, field::OK_REMOVE, name);
        }
    }
    if rule.forward_credential {
        return;
    }
    write_text(to, field::OK_REMOVE, &rule.header);
    if let Some(parameter) = &rule.query_parameter {
        write_text(to, field::OK_REMOVE_PARAMETERS, parameter);
    }
}

/// Returns true for the name of a header that only gatekey may set, and does not overwrite. Many
/// services do not distinguish `_` from `-`.
fn is_spoofed(name: &[u8]) -> bool {
    let own = name.len() >= OWN.len()
        && OWN
            .iter()
            .zip(name)
            .all(|(own, byte)| own == byte || (*own == b'-' && *byte == b'_'));
    let overwritten = [KEY_ID, TENANT, OWNER, SCOPES];
    own && !overwritten.iter().any(|it| it.as_bytes() == name)
}

/// Encodes every byte other than visible ASCII, and `%`, as `%XX`. The names of owners may have any
/// visible character, but headers have no character set.
fn header_text(text: &str) -> Cow<'_, str> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'%';
    if text.bytes().all(plain) {
        return text.into();
    }
    let mut encoded = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push(char::from(DIGITS[usize::from(byte >> 4)]));
            encoded.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    encoded.into()
}

/// Returns the challenge of RFC 6750, section 3. It has no error if no credential was presented.
fn challenge(decision: &Decision, rule: &Rule) -> Option<String> {
    let realm = rule.tenant().unwrap_or(REALM);
    let (_, http_status, _) = words(decision);
    match decision {
        Decision::Missing => Some(format!("Bearer realm=\"{realm}\"")),
        Decision::Denied(_, DenyReason::InsufficientScope(missing)) => {
            let mut scope = missing.join(" ");
            if let Some((end, _)) = scope.char_indices().nth(SCOPES_MAX) {
                let end = scope[..end].rfind(' ').unwrap_or(0);
                scope.truncate(end);
            }
            let error = "insufficient_scope";
            Some(format!(
                "Bearer realm=\"{realm}\", error=\"{error}\", scope=\"{scope}\""
            ))
        }
        _ if http_status == 401 => {
            Some(format!("Bearer realm=\"{realm}\", error=\"invalid_token\""))
        }
        _ => None,
    }
}

fn write_denial(to: &mut Vec<u8>, denial: &Denial<'_>, grpc: bool) {
    let code = match denial.http_status {
        401 => Code::Unauthenticated,
        _ => Code::PermissionDenied,
    };
    write_message(to, field::RESPONSE_STATUS, |to| {
        write_number(to, field::STATUS_CODE, code as u64);
    });
    write_message(to, field::RESPONSE_DENIED, |to| {
        write_message(to, field::DENIED_STATUS, |to| {
            write_number(to, field::STATUS_CODE, u64::from(denial.http_status));
        });
        if let Some(challenge) = &denial.challenge {
            write_header(to, "www-authenticate", challenge);
        }
        let (code, message) = (denial.code, denial.message);
        // Envoy makes a gRPC status of it, with the body as its message. Neither text has a
        // character that JSON escapes.
        let body = if grpc {
            format!("{code}: {message}")
        } else {
            write_header(to, "content-type", "application/json");
            format!(r#"{{"error":{{"code":"{code}","message":"{message}"}}}}"#)
        };
        write_text(to, field::DENIED_BODY, &body);
    });
}

fn write_header(to: &mut Vec<u8>, name: &str, value: &str) {
    write_message(to, field::HEADERS, |to| {
        write_message(to, field::OPTION_HEADER, |to| {
            write_text(to, field::KEY, name);
            write_text(to, field::VALUE, value);
        });
        write_number(to, field::OPTION_ACTION, OVERWRITE);
    });
}

/// Writes the dynamic metadata, for access logs and later filters of Envoy.
fn write_metadata(to: &mut Vec<u8>, code: &str, known: Option<&Known>) {
    write_message(to, field::RESPONSE_METADATA, |to| {
        write_entry(to, "reason", code);
        let Some(known) = known else { return };
        let policy = known.policy();
        write_entry(to, "key_id", &known.key_id.to_string());
        write_entry(to, "tenant_id", policy.tenant_id());
        write_entry(to, "owner_id", policy.owner_id());
        write_message(to, field::STRUCT_FIELDS, |to| {
            write_text(to, field::KEY, "scopes");
            write_message(to, field::VALUE, |to| {
                write_message(to, field::VALUE_LIST, |to| {
                    for scope in policy.scopes() {
                        write_message(to, field::LIST_VALUES, |to| {
                            write_text(to, field::VALUE_STRING, scope);
                        });
                    }
                });
            });
        });
    });
}

fn write_entry(to: &mut Vec<u8>, name: &str, value: &str) {
    write_message(to, field::STRUCT_FIELDS, |to| {
        write_text(to, field::KEY, name);
        write_message(to, field::VALUE, |to| {
            write_text(to, field::VALUE_STRING, value);
        });
    });
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::api::{
        ext_authz::proto::{
            AttributeContext, CheckRequest, CheckResponse, attribute_context,
            check_response::HttpResponse,
        },
        wire::write_message,
    };

    #[test]
    fn a_denial_is_the_message_that_envoy_reads() {
        let http = attribute_context::HttpRequest::default();
        let request = CheckRequest {
            attributes: Some(AttributeContext {
                request: Some(attribute_context::Request { http: Some(http) }),
                ..AttributeContext::default()
            }),
        };
        let attributes = Attributes::of(&request).unwrap();
        let verdict = Verdict::no_rule(&attributes);
        let response = CheckResponse::decode(&verdict.framed[HEAD..]).unwrap();
        assert_eq!(response.encode_to_vec(), verdict.framed[HEAD..]);
        assert_eq!(response.status.unwrap().code, 7);
        let Some(HttpResponse::DeniedResponse(denied)) = response.http_response else {
            panic!("it is a denial");
        };
        assert_eq!(denied.status.unwrap().code, 403);
        assert_eq!(
            denied.body,
            r#"{"error":{"code":"NO_RULE","message":"No rule allows this request."}}"#
        );
    }

    #[test]
    fn a_nested_message_of_any_length_is_read_as_it_was_written() {
        for length in [0, 1, 120, 127, 128, 129, 16383, 16384, 70000] {
            let text = "x".repeat(length);
            let mut to = vec![7];
            write_message(&mut to, 1, |to| write_text(to, 2, &text));
            write_text(&mut to, 9, "after");
            let mut expected = vec![7];
            let mut inner = Vec::new();
            write_text(&mut inner, 2, &text);
            crate::api::wire::write_head(&mut expected, 1, inner.len() as u64);
            expected.extend(inner);
            write_text(&mut expected, 9, "after");
            assert_eq!(to, expected, "{length}");
        }
    }
}
