//! `docs/performance.md`, between its markers, and the plot beside it.

use crate::{h2load, page, plot, report::Report};

/// Writes a whole run down.
pub fn write(report: &Report) {
    let (figures, json) = (report.markdown(), report.json());
    let written = format!(
        "{figures}\n<details><summary>Every round, as JSON</summary>\n\n```json\n{json}```\n\n</details>\n"
    );
    page::rewrite("performance.md", "cargo bench --bench validate", &written);
    page::draw("performance.svg", &plot::svg(report));
    println!("Written to docs/performance.md and docs/performance.svg.");
}

/// Where it was measured, and with what.
pub fn machine() -> String {
    let generator = if h2load::is_here() {
        "h2load in one thread, on the same cores"
    } else {
        "the benchmark's own generator in one thread, on the same cores (h2load is not installed)"
    };
    format!("{}; the load: {generator}.", page::processor())
}
