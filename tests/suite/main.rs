//! Everything but the pure rules, through the real port of the real server.

mod callers;
mod contract_admin;
mod contract_validate;
mod durability;
mod floors;
mod listing;
mod proto;
mod secrecy;
mod statements;
mod support;
mod tools;
mod traces;
