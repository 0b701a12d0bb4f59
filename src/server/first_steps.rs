//! Prints three lines on stdout while there is no key yet: the secret files, the addresses, and the
//! command that creates the first key.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use super::{config::Config, tls};

/// The request message of the first CreateKey.
const FIRST_KEY: &str = r#"{"tenant_id":"default","owner_id":"me","label":"first","scopes":["*"]}"#;

/// Prints the lines. `made` lists the secret files that this start created.
pub(super) fn print(made: &[PathBuf], config: &Config, listen: SocketAddr) {
    let token = absolute(&config.admin_token_file);
    let files: Vec<_> = made.iter().map(|path| path.display().to_string()).collect();
    if files.is_empty() {
        println!("The admin token is in {}: keep it secret.", token.display());
    } else {
        println!(
            "Made {}: keep them, and keep them secret.",
            files.join(" and ")
        );
    }
    println!(
        "Serving gRPC on {listen}, keys in {}. Issue the first one:",
        config.shown_database_url()
    );
    let (token, address) = (quoted(&token), reachable(listen));
    let transport = match &config.tls_cert_file {
        None => "-plaintext".to_owned(),
        Some(certificate) => {
            // The server's own certificate is enough for grpcurl to trust it, regardless of the
            // issuer.
            let trusted = format!("-cacert {}", quoted(&absolute(certificate)));
            match tls::name_for(certificate, address.ip()) {
                None => trusted,
                Some(name) => format!("{trusted} -servername {name}"),
            }
        }
    };
    // The token is in the environment of grpcurl because any user can see its arguments.
    println!(
        "  GATEKEY_TOKEN=\"$(cat {token})\" grpcurl {transport} -expand-headers \
         -H 'authorization: Bearer ${{GATEKEY_TOKEN}}' -d '{FIRST_KEY}' {address} \
         gatekey.v1.KeyService/CreateKey"
    );
}

fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Quotes a path for the shell, regardless of its characters.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// Returns an address that a client on this machine can connect to.
fn reachable(mut listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    listen
}
