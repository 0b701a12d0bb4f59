//! The commands of the pages in `docs`, run as a reader would run them, and what the pages claim about the code.

use std::{fs, path::Path, process::Command};

use gatekey::api::proto::Reason;

use crate::{
    readme::prove_page,
    support::{Gatekey, tool::run},
};

const OPERATIONS: &str = include_str!("../../docs/operations.md");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_administration_prints_what_the_page_shows() {
    let server = Gatekey::sqlite().start().await;
    prove_page(include_str!("../../docs/administration.md"), &server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_validating_prints_what_the_page_shows() {
    let server = Gatekey::sqlite().start().await;
    prove_page(include_str!("../../docs/validating.md"), &server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_by_the_commands_of_operations_can_be_started() {
    let server = Gatekey::sqlite().start().await;
    let admin = server.admin().await;
    let (_, before) = admin.issue("default", &["*"]).await;
    let (revoked, revoked_plaintext) = admin.issue("default", &["*"]).await;
    admin.revoke(&revoked, "").await;
    prove_page(OPERATIONS, &server);
    let (_, after) = admin.issue("default", &["*"]).await;

    let backup = server.folder().join("backup/gatekey.db");
    let url = format!("sqlite://{}", backup.display());
    run(Command::new(env!("CARGO_BIN_EXE_gatekey"))
        .args(["migrate", "--restored", "--database-url", &url])
        .current_dir(server.folder()));
    let restored = server.setup().clone().env("GATEKEY_DATABASE_URL", url);
    let restored = restored.start().await;
    let admin = restored.admin().await;
    assert_eq!(admin.reason(&before).await, Reason::Allowed);
    assert_eq!(admin.reason(&revoked_plaintext).await, Reason::Revoked);
    assert_eq!(admin.reason(&after).await, Reason::NotFound);
}

#[test]
fn each_log_line_of_operations_is_in_the_source() {
    let (_, table) = OPERATIONS
        .split_once("## Log lines worth an alert")
        .expect("the section is there");
    let lines: Vec<_> = table
        .lines()
        .filter_map(|row| Some(row.strip_prefix("| `")?.split_once('`')?.0))
        .collect();
    assert!(!lines.is_empty());
    let source = source(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
    for line in lines {
        assert!(source.contains(line), "{line}");
    }
}

#[test]
fn each_test_that_the_threat_model_names_exists() {
    let (rows, _) = include_str!("../../docs/security.md")
        .split_once("## Measured")
        .expect("the section is there");
    let last_cells = rows
        .lines()
        .filter_map(|row| row.strip_suffix(" |")?.rsplit_once(" | "));
    let named: Vec<_> = last_cells
        .flat_map(|(_, tests)| tests.split('`').skip(1).step_by(2))
        .collect();
    assert!(named.len() > 20, "{named:?}");
    let suite = source(Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/suite"
    )));
    for path in named {
        for name in path.split("::") {
            let declared = [format!("mod {name};"), format!("fn {name}(")];
            let exists = declared.iter().any(|it| suite.contains(it));
            assert!(exists, "{path}: {name}");
        }
    }
}

#[test]
fn each_link_of_a_page_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).expect("the folder is there");
    let pages = docs.map(|entry| entry.expect("it is readable").path());
    let pages = pages.filter(|path| path.extension().is_some_and(|it| it == "md"));
    for page in pages.chain([root.join("README.md")]) {
        let text = fs::read_to_string(&page).expect("a page is text");
        let folder = page.parent().expect("a page is in a folder");
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap_or_default();
            if link.starts_with("https://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                page.clone()
            } else {
                folder.join(path)
            };
            assert!(target.exists(), "{}: {link}", page.display());
            if !anchor.is_empty() {
                let text = fs::read_to_string(target).expect("a page is text");
                let known = text.lines().filter(|line| line.starts_with('#'));
                let known: Vec<_> = known.map(anchor_of).collect();
                assert!(
                    known.iter().any(|it| it == anchor),
                    "{}: {link}",
                    page.display()
                );
            }
        }
    }
}

/// The anchor that GitHub gives a heading.
fn anchor_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|it| it.is_alphanumeric() || " -_".contains(*it));
    kept.map(|it| if it == ' ' { '-' } else { it }).collect()
}

/// All text below a folder.
fn source(folder: &Path) -> String {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let paths = entries.map(|entry| entry.expect("it is readable").path());
    let text = |path: std::path::PathBuf| {
        if path.is_dir() {
            source(&path)
        } else {
            fs::read_to_string(path).expect("source is text")
        }
    };
    paths.map(text).collect()
}
