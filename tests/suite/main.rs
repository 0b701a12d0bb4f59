//! Everything but the pure rules, through the real port of the real server.
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod callers;
mod container;
mod contract_admin;
mod contract_errors;
mod contract_events;
mod contract_keys;
mod contract_owners;
mod contract_revocation;
mod contract_rotation;
mod contract_validate;
mod decisions;
mod durability;
mod explained;
mod flood;
mod floors;
mod helm;
mod indistinguishable;
mod inside;
mod limits;
mod listing;
mod model;
mod peppers;
mod program;
mod promise;
mod proto;
mod readme;
mod secrecy;
mod start;
mod statements;
mod support;
mod systems;
mod tools;
mod traces;
mod usage;
mod warm;
