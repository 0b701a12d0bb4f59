//! The plot of `docs/performance.svg`: server CPU a call where it is compared, and what one caller waits for.

use std::fmt::Write as _;

use crate::{
    load::Shape,
    report::{Report, Sample, Subject, digits},
    support::Engine,
};

const SUBJECTS: [Subject; 12] = [
    Subject::Stock,
    Subject::SingleThreaded,
    Subject::Hot,
    Subject::WrongSecret,
    Subject::Garbage,
    Subject::Select(Engine::Sqlite),
    Subject::SelectServed(Engine::Sqlite),
    Subject::Cold(Engine::Sqlite),
    Subject::Select(Engine::Postgres),
    Subject::SelectServed(Engine::Postgres),
    Subject::Cold(Engine::Postgres),
    Subject::Argon2,
];
/// What costs little enough to stand on one linear scale.
const CHEAP: usize = 5;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 270.0;
const RIGHT: f64 = 80.0;
const ROW: f64 = 24.0;
const HEAD: f64 = 48.0;
const OURS: &str = "#2563eb";
const OTHERS: &str = "#94a3b8";
const TEXT: &str = "#1e293b";
const RULE: &str = "#e2e8f0";

/// The whole picture.
pub fn svg(report: &Report) -> String {
    let mut picture = Picture::default();
    let rows = |subjects: &[Subject], shape, of: fn(&Sample) -> f64| -> Vec<(Subject, f64)> {
        let median = |subject: &Subject| Some((*subject, report.median(*subject, shape, of)?));
        subjects.iter().filter_map(median).collect()
    };
    picture.bars(
        &format!("Server CPU a call, µs: {} calls at a time", Shape::BUSY),
        &rows(&SUBJECTS[..CHEAP], Shape::BUSY, |sample| sample.cpu),
    );
    picture.dots(
        "p50, µs, one call at a time (each line is ten times the one before)",
        &rows(&SUBJECTS, Shape::ALONE, |sample| sample.p50),
    );
    picture.finish()
}

#[derive(Default)]
struct Picture {
    body: String,
    height: f64,
}

impl Picture {
    /// A bar a row, from zero.
    fn bars(&mut self, title: &str, rows: &[(Subject, f64)]) {
        let most = rows
            .iter()
            .map(|(_, figure)| *figure)
            .fold(f64::MIN_POSITIVE, f64::max);
        self.title(title);
        for &(subject, figure) in rows {
            let length = (WIDTH - LEFT - RIGHT) * figure / most;
            let (top, color) = (self.height + 4.0, color(subject));
            self.draw(&format!(
                r#"<rect x="{LEFT}" y="{top}" width="{length:.1}" height="16" rx="2" fill="{color}"/>"#
            ));
            self.row(subject, figure, LEFT + length);
        }
    }

    /// A dot a row, on a scale of powers of ten.
    fn dots(&mut self, title: &str, rows: &[(Subject, f64)]) {
        let figures = || rows.iter().map(|(_, figure)| figure.log10());
        let least = figures().fold(f64::INFINITY, f64::min).floor();
        let most = figures()
            .fold(f64::NEG_INFINITY, f64::max)
            .ceil()
            .max(least + 1.0);
        let place = |log: f64| LEFT + (WIDTH - LEFT - RIGHT) * (log - least) / (most - least);
        self.title(title);
        let (top, bottom) = (self.height, self.height + ROW * rows.len() as f64);
        let mut power = least;
        while power <= most {
            let (x, y) = (place(power), top - 6.0);
            let label = digits(10_f64.powf(power)).replace(".0", "");
            self.draw(&format!(
                r#"<path d="M{x:.1} {top}V{bottom}" stroke="{RULE}"/>"#
            ));
            self.draw(&format!(
                r#"<text x="{x:.1}" y="{y}" text-anchor="middle" font-size="10">{label}</text>"#
            ));
            power += 1.0;
        }
        for &(subject, figure) in rows {
            let (x, y, color) = (
                place(figure.log10()),
                self.height + ROW / 2.0,
                color(subject),
            );
            self.draw(&format!(
                r#"<circle cx="{x:.1}" cy="{y}" r="5" fill="{color}"/>"#
            ));
            self.row(subject, figure, x + 5.0);
        }
    }

    fn title(&mut self, title: &str) {
        self.height += HEAD;
        let y = self.height - 22.0;
        self.draw(&format!(
            r#"<text x="16" y="{y}" font-weight="600">{title}</text>"#
        ));
    }

    /// The words of a row, whose mark ends at `end`; and down to the next one.
    fn row(&mut self, subject: Subject, figure: f64, end: f64) {
        let (y, left, right) = (self.height + 16.0, LEFT - 10.0, end + 6.0);
        self.draw(&format!(
            r#"<text x="{left}" y="{y}" text-anchor="end">{subject}</text>"#
        ));
        self.draw(&format!(
            r#"<text x="{right:.1}" y="{y}">{}</text>"#,
            digits(figure)
        ));
        self.height += ROW;
    }

    fn draw(&mut self, element: &str) {
        writeln!(self.body, "  {element}").expect("memory takes all");
    }

    fn finish(self) -> String {
        let height = self.height + 16.0;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"{TEXT}\">\n  \
             <rect width=\"{WIDTH}\" height=\"{height}\" rx=\"8\" fill=\"#ffffff\"/>\n{}</svg>\n",
            self.body
        )
    }
}

fn color(subject: Subject) -> &'static str {
    match subject {
        Subject::Hot
        | Subject::HotSingle
        | Subject::HotBatch
        | Subject::WrongSecret
        | Subject::Garbage
        | Subject::Cold(_)
        | Subject::ColdSingle(_)
        | Subject::ColdBatch(_) => OURS,
        Subject::Stock
        | Subject::SingleThreaded
        | Subject::Argon2
        | Subject::Select(_)
        | Subject::SelectServed(_) => OTHERS,
    }
}
