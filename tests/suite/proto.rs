//! The proto files as other people's tools see them.

use std::path::Path;
use std::process::Command;

use crate::support::tool;

#[test]
fn the_proto_files_pass_buf_lint() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    tool::run(
        Command::new(tool::buf())
            .args(["lint", "proto"])
            .current_dir(root),
    );
}
