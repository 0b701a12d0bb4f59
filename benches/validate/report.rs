//! What was measured, and what it says: medians over the rounds, and ratios of two things measured in the same round.

use std::fmt::{self, Write as _};

use serde_json::{Value, json};

use crate::{
    load::{Instrumented, Shape},
    support::Engine,
    usage,
};

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    Stock,
    SingleThreaded,
    Hot,
    Garbage,
    WrongSecret,
    Argon2,
    /// One of many keys in each call.
    HotSingle,
    HotBatch,
    Cold(Engine),
    ColdSingle(Engine),
    ColdBatch(Engine),
    /// The row of the key read through sqlx, without gRPC.
    Select(Engine),
    /// The same behind gRPC, with a constant answer.
    SelectServed(Engine),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stock => f.write_str("constant answer, tonic's usual runtime"),
            Self::SingleThreaded => f.write_str("constant answer, one runtime a core"),
            Self::Hot => f.write_str("gatekey, hot"),
            Self::Garbage => f.write_str("gatekey, garbage"),
            Self::WrongSecret => f.write_str("gatekey, wrong secret"),
            Self::Argon2 => f.write_str("argon2id in every call"),
            Self::HotSingle => f.write_str("gatekey, hot, one of 100 keys"),
            Self::HotBatch => f.write_str("gatekey, hot, batch of 100 keys"),
            Self::ColdSingle(engine) => {
                write!(f, "gatekey, cold, beside batches, {}", name(*engine))
            }
            Self::ColdBatch(engine) => {
                write!(f, "gatekey, cold, batch of 256 keys, {}", name(*engine))
            }
            Self::Cold(engine) => write!(f, "gatekey, cold, {}", name(*engine)),
            Self::Select(engine) => write!(f, "bare SELECT, {}, no gRPC", name(*engine)),
            Self::SelectServed(engine) => write!(f, "bare SELECT, {}, behind gRPC", name(*engine)),
        }
    }
}

/// What an engine is called.
pub fn name(engine: Engine) -> &'static str {
    match engine {
        Engine::Sqlite => "SQLite",
        Engine::Postgres => "PostgreSQL",
    }
}

/// One round's figures. All times are in microseconds; what was not measured is not a number.
#[derive(Clone, Copy)]
pub struct Sample {
    pub calls_per_second: f64,
    /// Of the server, a call.
    pub cpu: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

impl Sample {
    /// What a load on this process comes to.
    pub fn of(pid: u32, load: impl FnOnce() -> Instrumented) -> Self {
        let before = usage::cpu(pid);
        let measured = load();
        let used = usage::cpu(pid).saturating_sub(before);
        Self {
            cpu: used.as_secs_f64() * 1e6 / measured.calls as f64,
            ..Self::without_server(&measured)
        }
    }

    /// What calls come to that no server answered.
    pub fn without_server(measured: &Instrumented) -> Self {
        Self {
            calls_per_second: measured.calls_per_second,
            cpu: f64::NAN,
            p50: measured.latencies.percentile(0.50),
            p90: measured.latencies.percentile(0.90),
            p99: measured.latencies.percentile(0.99),
        }
    }
}

/// The same thing measured once a round.
struct Series {
    subject: Subject,
    shape: Shape,
    rounds: Vec<Sample>,
}

/// Something to reach.
pub struct Goal {
    pub what: String,
    /// At most so much.
    pub limit: f64,
    pub unit: &'static str,
    /// What it came to, or why nobody knows.
    pub measured: Result<f64, String>,
}

impl Goal {
    fn verdict(&self) -> &'static str {
        match self.measured {
            Ok(measured) if measured <= self.limit => "pass",
            Ok(_) => "FAIL",
            Err(_) => "not run",
        }
    }

    fn measured(&self) -> String {
        match &self.measured {
            Ok(measured) => format!("{}{}", digits(*measured), self.unit),
            Err(why) => why.clone(),
        }
    }
}

/// All of a run.
#[derive(Default)]
pub struct Report {
    series: Vec<Series>,
    goals: Vec<Goal>,
    remarks: Vec<String>,
}

impl Report {
    /// Adds one round's figures.
    pub fn add(&mut self, subject: Subject, shape: Shape, sample: Sample) {
        let same = |series: &&mut Series| series.subject == subject && series.shape == shape;
        match self.series.iter_mut().find(same) {
            Some(series) => series.rounds.push(sample),
            None => self.series.push(Series {
                subject,
                shape,
                rounds: vec![sample],
            }),
        }
    }

    /// Adds a goal.
    pub fn goal(
        &mut self,
        what: impl Into<String>,
        limit: f64,
        unit: &'static str,
        measured: Result<f64, String>,
    ) {
        self.goals.push(Goal {
            what: what.into(),
            limit,
            unit,
            measured,
        });
    }

    /// Adds what a reader of the figures must know.
    pub fn remark(&mut self, remark: impl Into<String>) {
        self.remarks.push(remark.into());
    }

    /// The median over the rounds; `None` when it was not measured.
    pub fn median(&self, subject: Subject, shape: Shape, of: fn(&Sample) -> f64) -> Option<f64> {
        median(self.rounds(subject, shape).iter().map(of))
    }

    /// The median of the ratios in each round.
    pub fn ratio(
        &self,
        subject: Subject,
        to: Subject,
        shape: Shape,
        of: fn(&Sample) -> f64,
    ) -> Result<f64, String> {
        let (rounds, others) = (self.rounds(subject, shape), self.rounds(to, shape));
        let ratios = rounds
            .iter()
            .zip(others)
            .map(|(this, that)| of(this) / of(that));
        median(ratios).ok_or_else(|| format!("{subject} and {to} were not both measured"))
    }

    fn rounds(&self, subject: Subject, shape: Shape) -> &[Sample] {
        let same = |series: &&Series| series.subject == subject && series.shape == shape;
        self.series
            .iter()
            .find(same)
            .map_or(&[], |series| &series.rounds)
    }

    /// Goals, figures and remarks, as Markdown that is also legible as it is.
    pub fn markdown(&self) -> String {
        let mut text = table(
            &["goal", "at most", "measured", ""],
            self.goals.iter().map(|goal| {
                let limit = format!("{}{}", goal.limit, goal.unit);
                vec![
                    goal.what.clone(),
                    limit,
                    goal.measured(),
                    goal.verdict().to_owned(),
                ]
            }),
        );
        let head = [
            "who answers",
            "calls at a time",
            "calls/s",
            "server CPU µs a call",
            "p50 µs",
            "p90 µs",
            "p99 µs",
        ];
        let figures = self.series.iter().map(|series| {
            let figures: [fn(&Sample) -> f64; 5] = [
                |s| s.calls_per_second,
                |s| s.cpu,
                |s| s.p50,
                |s| s.p90,
                |s| s.p99,
            ];
            let figures = figures.map(|of| {
                let median = self.median(series.subject, series.shape, of);
                median.map_or("—".to_owned(), digits)
            });
            let mut row = vec![series.subject.to_string(), series.shape.to_string()];
            row.extend(figures);
            row
        });
        if !self.series.is_empty() {
            text += "\n";
            text += &table(&head, figures);
        }
        for remark in &self.remarks {
            write!(text, "\n- {remark}").expect("memory takes all");
        }
        text + "\n"
    }

    /// Every round of every figure, for programs.
    pub fn json(&self) -> String {
        let figures = self.series.iter().map(|series| {
            let rounds = |of: fn(&Sample) -> f64| -> Value {
                series
                    .rounds
                    .iter()
                    .map(|sample| rounded(of(sample)))
                    .collect()
            };
            json!({
                "subject": series.subject.to_string(),
                "connections": series.shape.connections,
                "streams": series.shape.streams,
                "calls_per_second": rounds(|sample| sample.calls_per_second),
                "cpu_us": rounds(|sample| sample.cpu),
                "p50_us": rounds(|sample| sample.p50),
                "p90_us": rounds(|sample| sample.p90),
                "p99_us": rounds(|sample| sample.p99),
            })
        });
        let goals = self.goals.iter().map(|goal| {
            json!({
                "goal": goal.what,
                "limit": goal.limit,
                "unit": goal.unit.trim(),
                "measured": goal.measured.as_ref().ok().map(|measured| rounded(*measured)),
                "verdict": goal.verdict(),
            })
        });
        let lines = |each: Vec<String>| each.join(",\n  ");
        format!(
            "{{\"goals\": [\n  {}\n], \"figures\": [\n  {}\n]}}\n",
            lines(goals.map(|goal| goal.to_string()).collect()),
            lines(figures.map(|figure| figure.to_string()).collect())
        )
    }
}

/// The one in the middle; `None` when there is none.
pub fn median(figures: impl Iterator<Item = f64>) -> Option<f64> {
    let mut figures: Vec<_> = figures.filter(|figure| figure.is_finite()).collect();
    figures.sort_by(f64::total_cmp);
    let (below, above) = (figures.len().checked_sub(1)? / 2, figures.len() / 2);
    Some(f64::midpoint(figures[below], figures[above]))
}

/// Three digits, or all of them before the point.
pub fn digits(figure: f64) -> String {
    match figure.abs() {
        large if large >= 100.0 => grouped(figure),
        large if large >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// Thousands apart: `107 000`.
fn grouped(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push('\u{a0}');
        }
        grouped.push(digit);
    }
    grouped
}

fn rounded(figure: f64) -> Value {
    json!((figure.is_finite()).then_some((figure * 100.0).round() / 100.0))
}

/// A table whose columns stand one below the other.
fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut lines = vec![head.iter().map(ToString::to_string).collect()];
    lines.extend(rows);
    let width = |column: usize| {
        lines
            .iter()
            .map(|line: &Vec<String>| line[column].chars().count())
            .max()
    };
    let widths: Vec<_> = (0..head.len())
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let rule = widths
        .iter()
        .map(|width| "-".repeat((*width).max(3)))
        .collect();
    lines.insert(1, rule);
    let mut text = String::new();
    for line in lines {
        for (cell, width) in line.iter().zip(&widths) {
            write!(text, "| {cell:<width$} ", width = (*width).max(3)).expect("memory takes all");
        }
        text += "|\n";
    }
    text
}
