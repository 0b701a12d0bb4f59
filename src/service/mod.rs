//! The service layer.
//!
//! [`validator`] decides about keys, [`keyring`] changes them, [`log`] reads the event log,
//! [`replica`] keeps the cache up to date, [`warm`] fills the cache before the first request,
//! [`usage`] records uses of keys, and [`pepper_migration`] migrates keys to the current pepper. They share
//! the database, the [`cache`] and the domain, and do not depend on each other.

pub mod cache;
pub mod context;
pub mod error;
pub mod event_log;
pub mod failpoint;
pub mod fair_queue;
pub mod keyring;
pub mod lease;
pub mod presence;
pub mod quota;
pub mod replica;
pub mod secret;
pub mod usage;
pub mod validator;
pub mod warm;
