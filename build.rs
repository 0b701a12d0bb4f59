//! Compiles the proto files without protoc and stores the descriptor set, including comments, for
//! server reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=migrations");

    let files = fs::read_dir("proto/gatekey/v1")?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(&files)?;
    let descriptors = compiler.file_descriptor_set();

    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("gatekey.v1.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .build_client(true)
        .codec_path("crate::api::validate::codec::Codec")
        .extern_path(".google.rpc", "::tonic_types::pb")
        // These messages contain a secret; api/redact.rs implements their `Debug`.
        .skip_debug([
            ".gatekey.v1.CreateKeyResponse",
            ".gatekey.v1.RotateKeyResponse",
            ".gatekey.v1.LookupKeyRequest",
            ".gatekey.v1.RevokeKeyRequest",
            ".gatekey.v1.RevokeKeyRequest.target",
            ".gatekey.v1.ValidateRequest",
            ".gatekey.v1.ValidateRequest.credential",
        ])
        .compile_fds(descriptors)?;
    compile_envoy()
}

/// Compiles the part of Envoy's API that gatekey serves. Its descriptors are not kept, because they
/// are not Envoy's own.
fn compile_envoy() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(["envoy/service/auth/v3/external_auth.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(false)
        .codec_path("crate::api::validate::codec::Codec")
        .bytes(".")
        // These messages contain the headers of a client.
        .skip_debug([
            ".envoy.service.auth.v3.Entry",
            ".envoy.service.auth.v3.HeaderValue",
            ".envoy.service.auth.v3.AttributeContext.HttpRequest",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
