//! The README's tour, run as it stands there: every command prints what the README says.

use std::process::Command;

use crate::support::{
    Gatekey,
    tool::{grpcurl, run},
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_tour_prints_what_the_readme_says() {
    let server = Gatekey::sqlite().start().await;
    let readme = include_str!("../../README.md");
    let steps = steps(readme);
    assert!(steps.iter().filter(|step| step.shown.is_some()).count() > 6);

    // One shell for the whole tour, as a reader would have.
    let mark = "--- the next step ---\n";
    let tour: Vec<_> = steps.iter().map(|step| &*step.commands).collect();
    let tour = tour.join(&format!("printf -- '{mark}'\n"));
    let tour = tour.replace("127.0.0.1:50051", &server.addr().to_string());
    let tools = grpcurl()
        .parent()
        .expect("a tool is in a folder")
        .display()
        .to_string();
    let path = format!("{tools}:{}", std::env::var("PATH").unwrap_or_default());
    let printed = tokio::task::block_in_place(|| {
        run(Command::new("bash")
            .args(["-euc", &tour])
            .env("PATH", path)
            .current_dir(server.folder()))
    });

    let printed: Vec<_> = printed.split(mark).collect();
    assert_eq!(printed.len(), steps.len());
    for (step, printed) in steps.iter().zip(printed) {
        let shown = step.shown.as_deref().unwrap_or_default();
        assert_eq!(settled(printed), settled(shown), "{}", step.commands);
    }
}

#[test]
fn the_readme_tells_every_setting() {
    let help = run(Command::new(env!("CARGO_BIN_EXE_gatekey")).arg("--help"));
    let readme = include_str!("../../README.md");
    let settings: Vec<_> = help
        .split("[env: ")
        .skip(1)
        .filter_map(|rest| rest.split(['=', ']']).next())
        .collect();
    assert!(settings.len() >= 8, "{help}");
    for setting in settings {
        assert!(readme.contains(&format!("| `{setting}` |")), "{setting}");
    }
}
