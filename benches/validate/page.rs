//! A page below `docs/`, of which a part is written by a benchmark.

use std::{fs, path::Path};

const END: &str = "<!-- end of what is written -->";

/// Replaces what stands after `<!-- written by {command} -->`.
pub fn rewrite(name: &str, command: &str, written: &str) {
    let begin = format!("<!-- written by {command} -->\n");
    let page = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name);
    let text = fs::read_to_string(&page).expect("the page is there");
    let parts = text
        .split_once(&begin)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.expect("the page has its markers");
    let text = format!("{before}{begin}\n{written}\n{END}{after}");
    fs::write(&page, text).expect("the page is writable");
}

/// Writes a picture beside the pages.
pub fn draw(name: &str, svg: &str) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    fs::write(docs.join(name), svg).expect("docs is writable");
}

/// What this machine computes with.
pub fn processor() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown CPU", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{cores} cores, {model}")
}
