//! Attacks through the real port, with raw HTTP/2: memory stays bounded and others are served.
//!
//! Each one lasts 5 seconds; `GATEKEY_ATTACK_SECONDS=60` makes it last longer. Each prints what was
//! measured beside it.

mod connections;
mod greeting;
pub mod raw;
mod stop;
