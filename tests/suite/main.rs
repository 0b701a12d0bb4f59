//! Everything but the pure rules, through the real port of the real server.

mod proto;
mod support;
mod traces;
