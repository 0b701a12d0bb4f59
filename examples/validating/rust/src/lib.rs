//! The client that `build.rs` generated.

pub use gatekey::v1::*;

/// The messages of gatekey.
pub mod gatekey {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("gatekey.v1");
    }
}

/// The error of an item of BatchValidate.
pub mod google {
    /// `google.rpc.Status`.
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}
