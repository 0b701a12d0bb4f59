//! `docs/performance.md`, between its markers, and the plot beside it.

use std::{fs, path::Path};

use crate::{baseline::cores, h2load, plot, report::Report};

const BEGIN: &str = "<!-- written by cargo bench --bench validate -->\n";
const END: &str = "<!-- end of what is written -->";

/// Writes a whole run down.
pub fn write(report: &Report) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let page = docs.join("performance.md");
    let text = fs::read_to_string(&page).expect("docs/performance.md is there");
    let parts = text
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.expect("docs/performance.md has its markers");
    let (figures, json) = (report.markdown(), report.json());
    let text = format!(
        "{before}{BEGIN}\n{figures}\n<details><summary>Every round, as JSON</summary>\n\n```json\n{json}```\n\n\
         </details>\n\n{END}{after}"
    );
    fs::write(&page, text).expect("docs/performance.md is writable");
    fs::write(docs.join("performance.svg"), plot::svg(report)).expect("docs is writable");
    println!("Written to docs/performance.md and docs/performance.svg.");
}

/// Where it was measured, and with what.
pub fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown CPU", |(_, model)| model);
    let generator = if h2load::is_here() {
        "h2load in one thread, on the same cores"
    } else {
        "the benchmark's own generator in one thread, on the same cores (h2load is not installed)"
    };
    format!("{} cores, {model}; the load: {generator}.", cores())
}
