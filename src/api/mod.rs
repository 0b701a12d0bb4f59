//! The gRPC API: the protocol, without business logic.
//!
//! Every handler has the same steps: identify the caller, parse the request (reporting all
//! violations at once), call one service, build the response. Only `convert/status.rs` chooses status
//! codes.

mod caller;
mod connection_service;
mod convert;
mod events;
pub mod ext_authz;
mod hot_call;
mod infrastructure;
mod keys;
mod method;
mod middleware;
mod network;
mod owners;
mod redact;
mod tenants;
pub mod validate;
mod wire;

pub use caller::Peer;
pub use connection_service::{App, ConnectionService};
pub use convert::status::{metadata_too_large, overloaded};
pub use infrastructure::{Infrastructure, Probes};
pub use middleware::metrics::Calls;
pub use middleware::{stall::StreamExecutor, trace};

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use self::{ext_authz::GatewayRules, middleware::deadline::CallDeadline};
use crate::{
    domain::clock::Clock,
    service::{
        event_log::Log, keyring::Keyring, replica::Replica, secret::AdminToken, usage::Usage,
        validator::Validator,
    },
};

/// The Rust code generated from the proto files.
#[allow(clippy::pedantic, missing_docs, reason = "generated")]
pub mod proto {
    tonic::include_proto!("gatekey.v1");
}

/// The proto files with their comments, as an encoded `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gatekey.v1.bin"));

/// The service whose health status reports whether this server is ready.
pub const READINESS: &str = "gatekey.v1.KeyService";

/// The maximum size of a message that is read: 64 KiB.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// The size limit of a response with many parts, below the 4 MiB that gRPC clients read by default.
const LIST_BYTES_MAX: usize = 3 * 1024 * 1024;

/// The services and settings that the handlers use.
pub struct Api {
    pub validator: Validator,
    pub keyring: Keyring,
    pub replica: Arc<Replica>,
    pub log: Log,
    pub usage: Arc<Usage>,
    pub clock: Arc<dyn Clock>,
    pub admin: AdminToken,
    /// True if Validate authenticates its caller.
    pub validate_auth: bool,
    /// The metrics of all calls.
    pub calls: Calls,
    /// The rules for Envoy's requests.
    pub gateway_rules: GatewayRules,
    /// Cancelled when the server stops; streams then end.
    pub stop: CancellationToken,
}

impl Api {
    /// Waits until every replica enforces a change, or until shortly before the caller's deadline,
    /// and returns the enforcement state.
    async fn enforced(&self, revision: i64, deadline: CallDeadline) -> proto::Enforcement {
        let enforcement = self.replica.enforced(revision, deadline.left()).await;
        convert::response::enforcement(enforcement)
    }

    /// Returns the routes of all four services.
    fn routes(api: &Arc<Self>) -> Routes {
        use proto::{
            event_service_server::EventServiceServer as Events,
            key_service_server::KeyServiceServer as Keys,
            owner_service_server::OwnerServiceServer as Owners,
            tenant_service_server::TenantServiceServer as Tenants,
        };
        let api = || Arc::clone(api);
        Routes::default()
            .add_service(Keys::from_arc(api()).max_decoding_message_size(MESSAGE_MAX))
            .add_service(Owners::from_arc(api()).max_decoding_message_size(MESSAGE_MAX))
            .add_service(Tenants::from_arc(api()).max_decoding_message_size(MESSAGE_MAX))
            .add_service(Events::from_arc(api()).max_decoding_message_size(MESSAGE_MAX))
    }
}
