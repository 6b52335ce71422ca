//! The report: what was measured on what, as Markdown.

use std::fmt::Write;

use super::samples::Samples;

/// One table of samples, with a column per target and the ratio of each other target's p50 to the first's.
pub fn table(title: &str, samples: &Samples, targets: &[&str]) -> String {
    let mut text = format!("\n### {title}\n\n| figure |");
    for target in targets {
        let _ = write!(text, " {target}: p50 / p95 / p99 |");
    }
    for other in &targets[1..] {
        let _ = write!(text, " {other} ÷ {} |", targets[0]);
    }
    let columns = 2 * targets.len();
    let _ = writeln!(text, " n |\n|---|{}", "---|".repeat(columns));
    for figure in samples.figures() {
        let _ = write!(text, "| {figure} |");
        for target in targets {
            let cell = |percent| samples.percentile(figure, target, percent).map_or("–".into(), number);
            let _ = write!(text, " {} / {} / {} |", cell(50.0), cell(95.0), cell(99.0));
        }
        for other in &targets[1..] {
            let of = |target: &str| samples.percentile(figure, target, 50.0);
            let ratio = of(other).zip(of(targets[0])).map(|(other, own)| other / own);
            let _ = write!(text, " {} |", ratio.map_or("–".into(), |r| format!("{r:.1}")));
        }
        let _ = writeln!(text, " {} |", samples.count(figure, targets[0]));
    }
    text
}

/// A number with as many digits as say something.
pub fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// A goal of the project and what was reached.
pub struct Goal {
    /// What is to be reached.
    pub what: String,
    /// What was measured.
    pub measured: String,
    /// Whether it is reached; none when this run did not measure it.
    pub reached: Option<bool>,
}

/// The goals as a table.
pub fn goals(goals: &[Goal]) -> String {
    let mut text = "\n### Goals\n\n| goal | measured | |\n|---|---|---|\n".to_owned();
    for goal in goals {
        let verdict = match goal.reached {
            Some(true) => "reached",
            Some(false) => "**missed**",
            None => "not measured",
        };
        let _ = writeln!(text, "| {} | {} | {verdict} |", goal.what, goal.measured);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_row_per_figure_and_the_others_ratio_to_the_first() {
        let mut samples = Samples::default();
        samples.add("pod up", "a", 2.0);
        samples.add("pod up", "b", 50.0);
        let text = table("Times", &samples, &["a", "b"]);
        assert!(text.contains("| pod up | 2.00 / 2.00 / 2.00 | 50.0 / 50.0 / 50.0 | 25.0 | 1 |"), "{text}");
    }
}
