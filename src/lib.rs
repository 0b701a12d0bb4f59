//! gatekey issues, lists, revokes and validates API keys over gRPC.
//!
//! The modules form layers. Each imports only modules below it in this list, and a test enforces
//! it:
//!
//! - [`server`]: configuration, startup, shutdown and telemetry
//! - [`grpc`]: the gRPC protocol only
//! - [`service`]: the operations of gatekey
//! - [`store`]: database access only
//! - [`domain`]: pure values and rules, without I/O; the time is an argument
//! - [`metrics`]: metrics, log limits and spans, used by every layer
//!
//! `ARCHITECTURE.md` gives an overview.

pub mod api;
pub mod domain;
pub mod metrics;
pub mod server;
pub mod service;
pub mod store;
