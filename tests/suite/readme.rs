//! The README's tour, run as it stands there: every command prints what the README says.

use std::{path::Path, process::Command};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    program::Program,
    support::{
        Database, Gatekey,
        tool::{grpcurl, run, sqlite3_folder},
    },
};

/// A command of the tour, and what it prints where the README shows that.
struct Step {
    commands: String,
    shown: Option<String>,
}

/// The `sh` blocks of the README, each with the `json` block that follows at once.
fn steps(readme: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = readme;
    while let Some((_, block)) = rest.split_once("```sh\n") {
        let (commands, after) = block.split_once("```\n").expect("a block has an end");
        let shown = after.strip_prefix("```json\n").map(|output| {
            let (output, _) = output.split_once("```").expect("a block has an end");
            output.to_owned()
        });
        steps.push(Step {
            commands: commands.to_owned(),
            shown,
        });
        rest = after;
    }
    steps
}

/// The text without what differs from run to run: keys, ids and times, and whether a use is written
/// already.
fn settled(text: &str) -> String {
    let settle = |word: &str| match word {
        _ if word.starts_with("gk_") && word.len() > 60 => "<plaintext>".to_owned(),
        _ if word.starts_with("gk_") && word.len() == 7 => "<prefix>".to_owned(),
        _ if word.starts_with("key_") && word.len() == 20 => "<id>".to_owned(),
        _ if word.starts_with("20") && word.ends_with('Z') => "<time>".to_owned(),
        _ => word.to_owned(),
    };
    let lines = text.split_inclusive('\n');
    let text: String = lines.filter(|line| !line.contains("\"lastUsed")).collect();
    let words: Vec<_> = text.split('"').map(settle).collect();
    words.join("\"")
}

/// Runs all `sh` blocks of a page in one shell, as a reader would, on this server; each succeeds, and prints what the
/// page shows if it shows something.
pub fn prove_page(page: &str, server: &Gatekey) {
    let steps = steps(page);
    assert!(steps.iter().any(|step| step.shown.is_some()));
    let mark = "--- the next step ---\n";
    let commands: Vec<_> = steps.iter().map(|step| &*step.commands).collect();
    let printed = shell(&commands.join(&format!("printf -- '{mark}'\n")), server);
    let printed: Vec<_> = printed.split(mark).collect();
    assert_eq!(printed.len(), steps.len());
    for (step, printed) in steps.iter().zip(printed) {
        if let Some(shown) = &step.shown {
            assert_eq!(settled(printed), settled(shown), "{}", step.commands);
        }
    }
}

/// Runs commands written for a server at the usual address, in the folder of this one, with the tools that they need on
/// the path.
pub fn shell(commands: &str, server: &Gatekey) -> String {
    let commands = commands.replace("127.0.0.1:50051", &server.addr().to_string());
    tokio::task::block_in_place(|| {
        let grpcurl = grpcurl();
        let mut folders = vec![grpcurl.parent().expect("a tool is in a folder").to_owned()];
        if commands.contains("sqlite3 ") {
            folders.push(sqlite3_folder());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        folders.extend(std::env::split_paths(&path));
        let path = std::env::join_paths(folders).expect("a path has no colon");
        run(Command::new("bash")
            .args(["-euc", &commands])
            .env("PATH", path)
            .current_dir(server.folder()))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_tour_prints_what_the_readme_says() {
    let server = Gatekey::sqlite().start().await;
    prove_page(include_str!("../../README.md"), &server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_for_postgresql_make_secrets_that_it_serves_with() {
    let page = include_str!("../../docs/configuration.md");
    let (_, block) = page.split_once("```\numask 077\n").expect("the block");
    let (commands, _) = block.split_once("```").expect("a block has an end");
    let database = Database::create().await;
    // The shell becomes the server, so that it ends with the test.
    let commands = [
        ("postgres://gatekey@db/gatekey", &*database.url()),
        ("0.0.0.0:50051", "127.0.0.1:0"),
        (" gatekey\n", " exec gatekey\n"),
    ]
    .iter()
    .fold(
        format!("umask 077\n{commands}"),
        |commands, (shown, here)| {
            assert!(commands.contains(shown), "{commands}");
            commands.replace(shown, here)
        },
    );
    let binary = Path::new(env!("CARGO_BIN_EXE_gatekey"));
    let programs = binary.parent().expect("a program is in a folder").display();
    let folder = TempDir::new().expect("a temporary folder");
    let mut server = Program::through("bash", folder.path(), &["-euc", &commands])
        .env("PATH", format!("{programs}:/usr/bin:/bin"))
        .env("GATEKEY_METRICS_LISTEN", "off")
        .start();
    server.serving().await;
    let (status, _) = server.end_by(Signal::TERM).await;
    assert!(status.success(), "{status}");
}

#[test]
fn the_page_of_configuration_has_every_setting() {
    let help = run(Command::new(env!("CARGO_BIN_EXE_gatekey")).arg("--help"));
    let page = include_str!("../../docs/configuration.md");
    let settings: Vec<_> = help
        .split("[env: ")
        .skip(1)
        .filter_map(|rest| rest.split(['=', ']']).next())
        .collect();
    assert!(settings.len() >= 8, "{help}");
    for setting in settings {
        let told = |row: &str| row.starts_with("| ") && row.contains(&format!("`{setting}`"));
        assert!(page.lines().any(told), "{setting}");
    }
}
