//! Compiles gatekey's proto files. protox is written in Rust, so no protoc is needed.

use std::error::Error;

/// The folder `proto` of gatekey's repository, or your copy of it.
const PROTO: &str = "../../../proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO}");
    let files = protox::compile(["gatekey/v1/key_service.proto"], [PROTO])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(files)?;
    Ok(())
}
