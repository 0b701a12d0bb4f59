//! The words: keys, scopes, owners, tenants and events as values.
//!
//! Everything here is pure: no I/O, no clock of its own, no knowledge of the wire or of a
//! database. Whatever decides about a key is a function in this floor.

pub mod caller;
pub mod clock;
pub mod credential;
pub mod enforcement;
pub mod event;
pub mod key;
pub mod name;
pub mod owner;
pub mod page;
pub mod scope;
pub mod standing;
pub mod tenant;
pub mod token;
pub mod usage;
pub mod violation;
