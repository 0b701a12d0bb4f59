//! The proto files as other people's tools see them.

use std::path::Path;
use std::process::Command;

use gatekey::api::DESCRIPTORS;
use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

use crate::support::tool;

/// Numbers of fields in `descriptor.proto`, of which the path of a comment consists.
const MESSAGE_TYPE: i32 = 4;
const FIELD: i32 = 2;

#[test]
fn the_proto_files_pass_buf_lint() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    tool::run(
        Command::new(tool::buf())
            .args(["lint", "proto"])
            .current_dir(root),
    );
}

/// `CONTRIBUTING.md` says how to replace the baseline on purpose.
#[test]
fn the_proto_files_break_no_client_of_the_baseline() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    tool::run(
        Command::new(tool::buf())
            .args(["breaking", "proto", "--against", "proto/baseline.binpb"])
            .current_dir(root),
    );
}

#[test]
fn a_removed_field_breaks_clients_of_the_baseline() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copy = tempfile::tempdir().expect("a folder");
    let mut set = FileDescriptorSet::decode(DESCRIPTORS).expect("the descriptors can be read");
    let ours = set.file.iter_mut().find(|file| is_ours(file));
    let file = ours.expect("a file of gatekey");
    file.message_type[0].field.pop().expect("a field");
    let changed = copy.path().join("changed.binpb");
    std::fs::write(&changed, set.encode_to_vec()).expect("the copy can be written");
    let output = Command::new(tool::buf())
        .arg("breaking")
        .arg(&changed)
        .args(["--against", "proto/baseline.binpb"])
        .current_dir(root)
        .output()
        .expect("buf can be run");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        !output.status.success() && printed.contains("was deleted"),
        "{printed}"
    );
}

#[test]
fn every_field_says_its_rule_where_grpcurl_describe_shows_it() {
    let set = FileDescriptorSet::decode(DESCRIPTORS).expect("the descriptors can be read");
    let silent: Vec<_> = set
        .file
        .iter()
        .filter(|file| is_ours(file))
        .flat_map(silent_fields)
        .collect();
    assert_eq!(silent, Vec::<String>::new());
}

fn is_ours(file: &FileDescriptorProto) -> bool {
    file.package() == "gatekey.v1"
}

/// The fields of a file's messages without a comment.
fn silent_fields(file: &FileDescriptorProto) -> Vec<String> {
    let source = file.source_code_info.as_ref().expect("the comments");
    let commented = |path: &[i32]| {
        let mut at_path = source
            .location
            .iter()
            .filter(|location| location.path == path);
        at_path.any(|location| !location.leading_comments().trim().is_empty())
    };
    let mut silent = Vec::new();
    for (message, place) in file.message_type.iter().zip(0..) {
        for (field, number) in message.field.iter().zip(0..) {
            if !commented(&[MESSAGE_TYPE, place, FIELD, number]) {
                silent.push(format!("{}.{}", message.name(), field.name()));
            }
        }
    }
    silent
}
