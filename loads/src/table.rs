//! Several reports side by side, and in words whether the last is better than the first.

use Better::{Higher, Lower};

use crate::report::{Config, Report};
use std::fmt::Write;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Better {
    Lower,
    Higher,
}

/// A row of the table.
struct Metric {
    name: &'static str,
    unit: &'static str,
    better: Better,
    decimals: usize,
    value: fn(&Report) -> Option<f64>,
}

/// A difference below this is not spoken of: runs differ by that much by themselves.
const SAME: f64 = 1.05;
/// From this factor on a difference is told as a factor, below it as a percentage.
const FACTOR: f64 = 1.5;

const fn metric(
    name: &'static str,
    unit: &'static str,
    better: Better,
    decimals: usize,
    value: fn(&Report) -> Option<f64>,
) -> Metric {
    Metric {
        name,
        unit,
        better,
        decimals,
        value,
    }
}

#[rustfmt::skip]
static METRICS: [Metric; 25] = [
    metric("frame completion p50", "ms", Lower, 2, |r| Some(r.frame.completion_ms.p50)),
    metric("frame completion p90", "ms", Lower, 2, |r| Some(r.frame.completion_ms.p90)),
    metric("frame completion p99", "ms", Lower, 2, |r| Some(r.frame.completion_ms.p99)),
    metric("frame completion p99.9", "ms", Lower, 2, |r| Some(r.frame.completion_ms.p99_9)),
    metric("frame completion max", "ms", Lower, 2, |r| Some(r.frame.completion_ms.max)),
    metric("frames missed", "%", Lower, 2, |r| percent(r.frame.missed, r.frame.done + r.frame.skipped)),
    metric("of the first ten", "", Lower, 0, |r| Some(r.frame.missed_at_first(r.config.hz) as f64)),
    metric("frames per second", "fps", Higher, 1, |r| Some(r.frame.fps)),
    metric("1 % low", "fps", Higher, 1, |r| Some(r.frame.fps_low_1_percent)),
    metric("audio wake-up p50", "ms", Lower, 2, |r| Some(r.audio.wakeup_ms.p50)),
    metric("audio wake-up p90", "ms", Lower, 2, |r| Some(r.audio.wakeup_ms.p90)),
    metric("audio wake-up p99", "ms", Lower, 2, |r| Some(r.audio.wakeup_ms.p99)),
    metric("audio wake-up p99.9", "ms", Lower, 2, |r| Some(r.audio.wakeup_ms.p99_9)),
    metric("audio wake-up max", "ms", Lower, 2, |r| Some(r.audio.wakeup_ms.max)),
    metric("audio completion p99", "ms", Lower, 2, |r| Some(r.audio.completion_ms.p99)),
    metric("audio deadlines missed", "%", Lower, 2, |r| percent(r.audio.missed, r.audio.periods)),
    metric("input wake-up p50", "ms", Lower, 2, |r| Some(r.input.wakeup_ms.p50)),
    metric("input wake-up p90", "ms", Lower, 2, |r| Some(r.input.wakeup_ms.p90)),
    metric("input wake-up p99", "ms", Lower, 2, |r| Some(r.input.wakeup_ms.p99)),
    metric("input wake-up p99.9", "ms", Lower, 2, |r| Some(r.input.wakeup_ms.p99_9)),
    metric("input wake-up max", "ms", Lower, 2, |r| Some(r.input.wakeup_ms.max)),
    metric("hogs' work", "units/s", Higher, 0, |r| Some(r.hogs.units_per_second)),
    metric("hogs' work", "CPUs", Higher, 2, |r| Some(r.hogs.cpus)),
    metric("hogs' fairness", "min/max", Higher, 2, |r| r.hogs.fairness),
    metric("ping-pong", "trips/s", Higher, 0, |r| Some(r.ping_pong.round_trips_per_second)),
];

fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 * 100.0 / whole as f64)
}

/// The table, with a line for each reason why the runs may not compare.
#[must_use]
pub fn render(reports: &[Report]) -> String {
    let mut rows = vec![titles(reports)];
    rows.extend(METRICS.iter().map(|metric| row(metric, reports)));
    let mut text = align(&rows);
    for report in reports {
        for problem in problems(&reports[0], report) {
            let _ = writeln!(text, "note: {}: {problem}", printable(&report.label));
        }
    }
    text
}

fn titles(reports: &[Report]) -> Vec<String> {
    let mut titles = vec![String::new(), String::new()];
    titles.extend(reports.iter().map(|report| printable(&report.label)));
    if let [first, .., last] = reports {
        titles.push(format!(
            "{} against {}",
            printable(&last.label),
            printable(&first.label)
        ));
    }
    titles
}

fn row(metric: &Metric, reports: &[Report]) -> Vec<String> {
    let mut cells = vec![metric.name.to_owned(), metric.unit.to_owned()];
    let values: Vec<_> = reports.iter().map(metric.value).collect();
    cells.extend(values.iter().map(|value| match value {
        Some(value) => format!("{value:.*}", metric.decimals),
        None => "-".to_owned(),
    }));
    if let [first, .., last] = values[..] {
        cells.push(verdict(metric.better, first, last));
    }
    cells
}

/// How `last` compares with `first`, the judgement first: "better: 2.1x lower", "worse: 12 %
/// higher", "same".
fn verdict(better: Better, first: Option<f64>, last: Option<f64>) -> String {
    let (Some(first), Some(last)) = (first, last) else {
        return "-".to_owned();
    };
    let (small, large) = if first < last {
        (first, last)
    } else {
        (last, first)
    };
    if large <= small * SAME {
        return "same".to_owned();
    }
    let (direction, is_better) = match first < last {
        true => ("higher", better == Higher),
        false => ("lower", better == Lower),
    };
    let judgement = if is_better { "better" } else { "worse" };
    if last <= 0.0 {
        return format!("{judgement}: none left");
    }
    if first <= 0.0 {
        return format!("{judgement}: there were none");
    }
    let factor = large / small;
    if factor < FACTOR {
        let percent = (last - first).abs() / first * 100.0;
        return format!("{judgement}: {percent:.0} % {direction}");
    }
    format!("{judgement}: {factor:.1}x {direction}")
}

/// Why `report` may mislead, by itself or beside `first`.
fn problems(first: &Report, report: &Report) -> Vec<String> {
    let mut problems = Vec::new();
    if report.interrupted {
        problems.push(format!(
            "interrupted after {:.1} s",
            report.measured_seconds
        ));
    }
    if !report.config.idle_before {
        problems.push("the machine was busy before the run".to_owned());
    }
    if report.config.scheduler != report.config.scheduler_at_end {
        problems.push("the scheduler changed during the run".to_owned());
    }
    let (ours, theirs) = (load(&report.config), load(&first.config));
    for ((name, ours), (_, theirs)) in ours.iter().zip(theirs) {
        if *ours != theirs {
            let label = printable(&first.label);
            problems.push(format!("{name} {ours}, but {theirs} in {label}"));
        }
    }
    let speeds = [first, report].map(|report| report.config.iterations_per_ms as f64);
    if (speeds[0] - speeds[1]).abs() > speeds[0] * 0.02 {
        problems.push(format!(
            "{} iterations/ms, but {} in {}: fix it with --iterations-per-ms",
            speeds[1],
            speeds[0],
            printable(&first.label)
        ));
    }
    problems
}

/// What must agree for two runs to compare.
fn load(config: &Config) -> [(&'static str, String); 7] {
    [
        ("CPUs", config.cpus.to_string()),
        ("kernel", printable(&config.kernel)),
        ("frame rate", config.hz.to_string()),
        ("hogs", config.hogs.to_string()),
        ("ping-pong pairs", config.pairs.to_string()),
        ("work scale", config.work_scale.to_string()),
        ("seconds", config.seconds.to_string()),
    ]
}

/// Text from a file, made safe for a terminal and short enough for a column.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .take(40)
        .collect()
}

/// Columns wide enough for their cells: names, units and the last one's words to the left, numbers
/// to the right.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<_> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let reports = columns.saturating_sub(2);
    // With one report there is no column of words.
    let words = if reports > 1 { columns - 1 } else { columns };
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = match column < 2 || column == words {
                true => write!(line, "{cell:<width$}  "),
                false => write!(line, "{cell:>width$}  "),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    #[test]
    fn lower_latency_is_better() {
        let verdict = |a, b| verdict(Lower, Some(a), Some(b));
        assert_eq!(verdict(21.0, 10.0), "better: 2.1x lower");
        assert_eq!(verdict(10.0, 21.0), "worse: 2.1x higher");
        assert_eq!(verdict(10.0, 11.2), "worse: 12 % higher");
        assert_eq!(verdict(10.0, 8.0), "better: 20 % lower");
        assert_eq!(verdict(10.0, 10.4), "same");
        assert_eq!(verdict(0.0, 0.0), "same");
        assert_eq!(verdict(0.0, 3.0), "worse: there were none");
        assert_eq!(verdict(3.0, 0.0), "better: none left");
    }

    #[test]
    fn higher_throughput_is_better() {
        let verdict = |a, b| verdict(Higher, Some(a), Some(b));
        assert_eq!(verdict(100.0, 250.0), "better: 2.5x higher");
        assert_eq!(verdict(100.0, 75.0), "worse: 25 % lower");
        assert_eq!(verdict(100.0, 0.0), "worse: none left");
    }

    #[test]
    fn a_missing_value_is_not_judged() {
        assert_eq!(verdict(Higher, None, Some(1.0)), "-");
    }

    #[test]
    fn columns_line_up_and_the_last_is_judged() {
        let (first, mut last) = (sample("EEVDF"), sample("metronome"));
        last.frame.completion_ms.p99 = 4.0;
        let text = render(&[first, last]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), METRICS.len() + 1);
        assert!(
            lines[0].ends_with("EEVDF  metronome  metronome against EEVDF"),
            "{text}"
        );
        assert!(
            lines[3].ends_with(" 8.00       4.00  better: 2.0x lower"),
            "{text}"
        );
        assert!(lines[1].ends_with(" 1.00       1.00  same"), "{text}");
    }

    #[test]
    fn one_report_is_not_compared() {
        let text = render(&[sample("EEVDF")]);
        assert!(
            !text.contains("against") && !text.contains("same"),
            "{text}"
        );
    }

    #[test]
    fn different_loads_are_noted() {
        let (first, mut last) = (sample("a"), sample("b"));
        last.config.hogs = 9;
        last.config.iterations_per_ms = 1100;
        last.interrupted = true;
        let text = render(&[first, last]);
        assert!(text.contains("note: b: hogs 9, but 2 in a"), "{text}");
        assert!(
            text.contains("note: b: 1100 iterations/ms, but 1000 in a"),
            "{text}"
        );
        assert!(text.contains("note: b: interrupted after 10.0 s"), "{text}");
    }

    #[test]
    fn a_hostile_label_does_no_harm() {
        let text = render(&[sample("a\n\x1b[2J"), sample(&"x".repeat(1000))]);
        assert!(
            !text.contains('\x1b') && text.lines().all(|line| line.len() < 200),
            "{text}"
        );
    }
}
