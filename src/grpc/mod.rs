//! The doors: the wire, and nothing but the wire.
//!
//! Every handler reads alike: who calls, what is asked (all violations at once), one call to a
//! room, the reply. Status codes are chosen in `status.rs` alone.

mod caller;
pub mod codec;
mod complete;
mod convert;
mod events;
mod keys;
mod owners;
mod parse;
mod redact;
mod status;
mod tenants;
pub mod trace;
mod validate;

pub use complete::complete;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::{
    domain::clock::Clock,
    service::{keyring::Keyring, log::Log, secret::AdminToken, validator::Validator},
};

/// What the proto files define, as Rust.
#[allow(clippy::pedantic, missing_docs, reason = "generated")]
pub mod proto {
    tonic::include_proto!("gatekey.v1");
}

/// The proto files themselves, comments and all: an encoded `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gatekey.v1.bin"));

/// The service whose health tells whether this server is ready.
pub const READINESS: &str = "gatekey.v1.KeyService";

/// The largest message that is read: 64 KiB.
const MESSAGE_MAX: usize = 64 * 1024;

/// What stands behind the doors.
pub struct Doors {
    pub validator: Arc<Validator>,
    pub keyring: Keyring,
    pub log: Log,
    pub clock: Arc<dyn Clock>,
    pub admin: AdminToken,
    /// Whether Validate asks who calls.
    pub validate_auth: bool,
    /// Cancelled when the server stops: streams end.
    pub stop: CancellationToken,
}

impl Doors {
    /// The routes of all four services.
    #[must_use]
    pub fn routes(self) -> Routes {
        use proto::{
            event_service_server::EventServiceServer, key_service_server::KeyServiceServer,
            owner_service_server::OwnerServiceServer, tenant_service_server::TenantServiceServer,
        };
        let doors = Arc::new(self);
        Routes::new(
            KeyServiceServer::from_arc(Arc::clone(&doors)).max_decoding_message_size(MESSAGE_MAX),
        )
        .add_service(
            OwnerServiceServer::from_arc(Arc::clone(&doors)).max_decoding_message_size(MESSAGE_MAX),
        )
        .add_service(
            TenantServiceServer::from_arc(Arc::clone(&doors))
                .max_decoding_message_size(MESSAGE_MAX),
        )
        .add_service(EventServiceServer::from_arc(doors).max_decoding_message_size(MESSAGE_MAX))
    }
}
