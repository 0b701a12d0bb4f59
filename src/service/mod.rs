//! The rooms: what gatekey does.
//!
//! [`validator`] decides, [`keyring`] changes, [`log`] tells what changed, [`repepper`] moves
//! keys to the current pepper, [`warm`] reads keys before they are asked about. They share the store, the [`cache`] and the domain, and do not know
//! each other.

pub mod cache;
pub mod gate;
pub mod keyring;
pub mod log;
pub mod refused;
pub mod repepper;
pub mod secret;
pub mod validator;
pub mod warm;
