//! Parses text columns, the same for both engines.

use ipnet::IpNet;
use serde::de::DeserializeOwned;

use super::StoreError;
use crate::domain::{
    scope::{Scope, Scopes},
    token::KeyId,
};

pub(super) fn key_id(bare: &str) -> Result<KeyId, StoreError> {
    KeyId::from_bare(bare).ok_or(StoreError::Corrupt("key_id"))
}

/// Parses a JSON list or map.
pub(super) fn json<T: DeserializeOwned>(text: &str, column: &'static str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|_| StoreError::Corrupt(column))
}

pub(super) fn scopes(text: &str) -> Result<Scopes, StoreError> {
    let texts: Vec<&str> = serde_json::from_str(text).map_err(|_| StoreError::Corrupt("scopes"))?;
    texts.into_iter().map(scope).collect()
}

pub(super) fn scope(text: &str) -> Result<Scope, StoreError> {
    Scope::parse(text).ok_or(StoreError::Corrupt("scopes"))
}

pub(super) fn cidrs(text: &str) -> Result<Vec<IpNet>, StoreError> {
    let corrupt = || StoreError::Corrupt("allowed_cidrs");
    let texts: Vec<&str> = serde_json::from_str(text).map_err(|_| corrupt())?;
    let nets = texts.into_iter().map(str::parse);
    nets.collect::<Result<_, _>>().map_err(|_| corrupt())
}
