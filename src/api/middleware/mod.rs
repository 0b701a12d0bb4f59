//! Everything between a connection and the handlers: limits, deadlines, traces and metrics of calls.

pub(super) mod budget;
pub(super) mod deadline;
pub(super) mod graceful_body;
pub(super) mod intake;
pub(super) mod metrics;
pub(super) mod outgoing;
pub(super) mod reflection;
pub(super) mod stall;
pub mod trace;
