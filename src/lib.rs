//! gatekey issues, lists, revokes and validates API keys over gRPC.
//!
//! The house has five floors and a cellar; imports run down this list only, and a test keeps it so:
//!
//! - [`server`]: the roof: settings, start, stop, telemetry
//! - [`grpc`]: the doors: the wire, and nothing but the wire
//! - [`service`]: the rooms: what gatekey does
//! - [`store`]: the database, and nothing but the database
//! - [`domain`]: the words: pure, no I/O, no clock of their own
//! - [`meter`]: the cellar: what is counted with, on every floor
//!
//! `ARCHITECTURE.md` is the tour.

pub mod domain;
pub mod grpc;
pub mod meter;
pub mod server;
pub mod service;
pub mod store;
