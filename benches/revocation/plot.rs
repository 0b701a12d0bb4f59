//! The plot of `docs/revocation.svg`: which share of the revocations had come how far after how long.

use std::fmt::Write as _;

use crate::report::digits;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 300.0;
const COLORS: [&str; 4] = ["#2563eb", "#93c5fd", "#b45309", "#fcd34d"];
const TEXT: &str = "#1e293b";
const RULE: &str = "#e2e8f0";
/// The least time on the scale, in milliseconds; what is less stands here.
const LEAST: f64 = 0.1;

/// Times of many revocations, in milliseconds, the smallest first.
pub struct Curve {
    pub name: String,
    pub millis: Vec<f64>,
}

/// The whole picture.
pub fn svg(curves: &[Curve]) -> String {
    let longest = curves.iter().filter_map(|curve| curve.millis.last());
    let longest = longest.fold(10.0, |longest: f64, last| longest.max(*last));
    let (least, most) = (LEAST.log10(), longest.log10().ceil());
    let x = |millis: f64| {
        LEFT + (WIDTH - LEFT - RIGHT) * (millis.max(LEAST).log10() - least) / (most - least)
    };
    let y = |share: f64| BOTTOM - (BOTTOM - TOP) * share;
    let mut body = String::new();
    let mut draw = |element: String| writeln!(body, "  {element}").expect("memory takes all");

    let title = "Share of revocations, by ms since RevokeKey was called (each line is ten times the one before)";
    draw(format!(
        r#"<text x="16" y="26" font-weight="600">{title}</text>"#
    ));
    let mut power = least;
    while power <= most {
        let (at, label) = (x(10_f64.powf(power)), digits(10_f64.powf(power)));
        let label = label.trim_end_matches('0').trim_end_matches('.');
        let label = if power >= 1.0 {
            digits(10_f64.powf(power)).replace(".0", "")
        } else {
            label.to_owned()
        };
        draw(format!(
            r#"<path d="M{at:.1} {TOP}V{BOTTOM}" stroke="{RULE}"/>"#
        ));
        draw(format!(
            r#"<text x="{at:.1}" y="{}" text-anchor="middle" font-size="10">{label}</text>"#,
            BOTTOM + 14.0
        ));
        power += 1.0;
    }
    for share in [0.0, 0.5, 0.99] {
        let at = y(share);
        draw(format!(
            r#"<path d="M{LEFT} {at:.1}H{:.1}" stroke="{RULE}"/>"#,
            WIDTH - RIGHT
        ));
        draw(format!(
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end" font-size="10">{:.0} %</text>"#,
            LEFT - 6.0,
            at + 4.0,
            share * 100.0
        ));
    }
    for (place, curve) in curves.iter().enumerate() {
        let color = COLORS[place % COLORS.len()];
        let count = curve.millis.len() as f64;
        let mut path = format!("M{LEFT} {BOTTOM}");
        for (number, millis) in curve.millis.iter().enumerate() {
            let share = (number + 1) as f64 / count;
            write!(path, "H{:.1}V{:.1}", x(*millis), y(share)).expect("memory takes all");
        }
        draw(format!(
            r#"<path d="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>"#
        ));
        let (column, row) = ((place % 2) as f64, (place / 2) as f64);
        let (left, top) = (LEFT + column * 330.0, BOTTOM + 40.0 + row * 20.0);
        draw(format!(
            r#"<rect x="{left}" y="{}" width="12" height="12" rx="2" fill="{color}"/>"#,
            top - 10.0
        ));
        draw(format!(
            r#"<text x="{}" y="{top}">{}</text>"#,
            left + 18.0,
            curve.name
        ));
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"{TEXT}\">\n  \
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"8\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}
