//! The client that `build.rs` generated.

tonic::include_proto!("gatekey.v1");
