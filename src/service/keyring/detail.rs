//! Event details as JSON, with the names and the spelling of the API's fields.

use std::time::Duration;

use serde_json::{Value, json};

use crate::domain::{
    clock::Timestamp,
    scope::{Scope, Scopes},
    token::KeyId,
};

/// `null` means never.
pub(super) fn of_time(time: Option<Timestamp>) -> Value {
    json!(time.map(|time| time.to_string()))
}

/// `null` means none.
pub(super) fn of_span(span: Option<Duration>) -> Value {
    json!(span.map(|span| format!("{}s", span.as_secs_f64())))
}

pub(super) fn of_scopes(scopes: &Scopes) -> Value {
    json!(scopes.iter().map(Scope::as_str).collect::<Vec<_>>())
}

pub(super) fn of_ids(ids: &[KeyId]) -> Value {
    json!(ids.iter().map(KeyId::to_string).collect::<Vec<_>>())
}
