//! The rooms: what gatekey does.
//!
//! [`validator`] decides, [`keyring`] changes, [`log`] tells what changed, [`replica`] keeps memory
//! true, [`warm`] fills it before anybody asks, [`usage`] gathers when keys are used, [`repepper`]
//! moves keys to the current pepper. They
//! share the store, the [`cache`] and the domain, and do not know
//! each other.

pub mod cache;
pub mod context;
pub mod fair_queue;
pub mod fault;
pub mod keyring;
pub mod lease;
pub mod log;
pub mod pepper_check;
pub mod presence;
pub mod quota;
pub mod refused;
pub mod repepper;
pub mod replica;
pub mod secret;
pub mod usage;
pub mod validator;
pub mod warm;
