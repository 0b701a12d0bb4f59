//! What the tests stand on: the real server as a child process, a throw-away PostgreSQL, real tools from PyPI.
//!
//! Nothing here is a mock, and nothing here skips: where something cannot be had, the test that wants it fails and says
//! why. A test that must hold on both stores is written once, in `on_both_engines!`.
#![allow(
    dead_code,
    reason = "support is written as a whole; not every part has a caller at all times"
)]

pub mod authority;
pub mod client;
pub mod names;
pub mod pgbouncer;
pub mod postgres;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod stored;
pub mod tool;

pub use authority::Authority;
pub use client::Client;
pub use postgres::Database;
pub use process::{Gatekey, Setup, write_secret};

/// The stores a server can keep its keys in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    /// A fresh setup: an empty folder and, on PostgreSQL, an empty database in the shared cluster.
    pub async fn setup(self) -> Setup {
        match self {
            Engine::Sqlite => Gatekey::sqlite(),
            Engine::Postgres => Gatekey::postgres(&Database::create().await),
        }
    }
}

/// Makes each test a module with two tests in it, `sqlite` and `postgres`, which hand the body a fresh [`Setup`].
/// Attributes (a doc comment) go to both.
///
/// ```ignore
/// on_both_engines! {
///     async fn a_revoked_key_is_refused(setup: Setup) {
///         let server = setup.start().await;
///     }
/// }
/// ```
macro_rules! on_both_engines {
    ($($(#[$attribute:meta])* async fn $name:ident($setup:ident: Setup) $body:block)+) => {$(
        mod $name {
            #[allow(unused_imports, reason = "a body may need nothing from its file")]
            use super::*;

            async fn prove($setup: $crate::support::Setup) $body

            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                prove($crate::support::Engine::Sqlite.setup().await).await;
            }

            $(#[$attribute])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                prove($crate::support::Engine::Postgres.setup().await).await;
            }
        }
    )+};
}
#[allow(unused_imports, reason = "as for dead code, above")]
pub(crate) use on_both_engines;
