//! Keys, scopes, owners, tenants and events as values.
//!
//! This module is pure: it does no I/O, takes the time as an argument, and does not depend on the
//! wire format or on a database. It contains every function that decides about a key.

pub mod caller;
pub mod clock;
pub mod credential;
pub mod enforcement;
pub mod event;
pub mod key;
pub mod key_policy;
pub mod name;
pub mod owner;
pub mod page;
pub mod scope;
pub mod tenant;
pub mod token;
pub mod usage;
pub mod violation;
