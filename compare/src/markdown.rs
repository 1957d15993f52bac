//! The result as Markdown, for `result.md` and docs/RESULTS.md.

use crate::figure::Shown;
use crate::result::{Column, Outcome, Row};
use crate::scheduler::Kind;
use crate::stats::{Better, Summary, Verdict};
use std::fmt::Write;

/// The whole page.
#[must_use]
pub(crate) fn render(outcome: &Outcome) -> String {
    let mut text = "# Side by side\n\n".to_owned();
    text += "Made by `compare report`; not to be edited by hand.\n\n";
    text += &circumstances(outcome);
    text += "\n## Metronome against each\n\n";
    text += &score(outcome);
    text += "\n## Where another is better\n\n";
    text += &losses(outcome);
    text += "\n## All figures\n\n";
    text += LEGEND;
    text += &table(outcome);
    text
}

const LEGEND: &str = "The median over the rounds, and after ± the spread: the distance between the quartiles, with fewer than five \
rounds that between the least and the most. Against EEVDF: **+** better, **-** worse, = no difference, which means that it is \
no larger than one of the two spreads. The best median of a row is **bold**.\n\n";

fn circumstances(outcome: &Outcome) -> String {
    let about = &outcome.circumstances;
    let versions = outcome
        .columns
        .iter()
        .filter(|column| column.scheduler.is_attached());
    let versions: Vec<_> = versions
        .map(|column| format!("{} {}", column.scheduler.title, column.version_for_people()))
        .collect();
    let mut text = String::new();
    let rows = [
        ("When", about.date.clone()),
        ("Command", format!("`{}`", about.command)),
        ("Where", about.place.clone()),
        (
            "Kernel",
            format!(
                "{}, {} CPUs",
                outcome.environment.kernel, outcome.environment.cpus
            ),
        ),
        ("Host", about.machine.clone()),
        ("Commit", about.commit.clone()),
        ("Schedulers", versions.join("; ")),
        (
            "Rounds",
            format!("{} ({} form)", rounds(outcome), outcome.form),
        ),
    ];
    text += "| | |\n|---|---|\n";
    let programs = ("Programs", about.programs.clone());
    let programs = Some(programs).filter(|(_, list)| !list.is_empty());
    for (name, value) in rows.into_iter().chain(programs) {
        let _ = writeln!(text, "| {name} | {} |", escape(&value));
    }
    for column in &outcome.columns {
        if let Some(failure) = &column.failure {
            let (who, step, message) = (column.scheduler.title, &failure.step, &failure.message);
            let _ = writeln!(
                text,
                "\n**{who} is missing in part or in whole**: it failed at {step}: {}",
                escape(message)
            );
        }
    }
    text
}

/// Rounds differ where a run ended early.
fn rounds(outcome: &Outcome) -> String {
    let counts = outcome.columns.iter().flat_map(|column| {
        outcome
            .rows()
            .filter_map(|row| column.at(&row).map(|summary| summary.samples))
    });
    let (least, most) = counts.fold((usize::MAX, 0), |(a, b), n| (a.min(n), b.max(n)));
    if least >= most {
        most.to_string()
    } else {
        format!("{least} to {most}")
    }
}

fn escape(text: &str) -> String {
    text.replace('|', "\\|")
        .replace('\n', " ")
        .replace('<', "&lt;")
}

/// How often Metronome is better, the same, worse.
fn score(outcome: &Outcome) -> String {
    let Some(ours) = metronome(outcome) else {
        return "It has no samples.\n".to_owned();
    };
    let mut text =
        "| | better | no difference | worse | one sample only |\n|---|--:|--:|--:|--:|\n"
            .to_owned();
    for theirs in others(outcome) {
        let verdicts: Vec<_> = outcome
            .rows()
            .filter_map(|row| outcome.verdict(&row, ours, theirs))
            .collect();
        let count = |wanted| {
            verdicts
                .iter()
                .filter(|&&verdict| verdict == wanted)
                .count()
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            theirs.scheduler.title,
            count(Verdict::Better),
            count(Verdict::NoDifference),
            count(Verdict::Worse),
            count(Verdict::Unknown),
        );
    }
    text
}

fn metronome(outcome: &Outcome) -> Option<&Column> {
    outcome
        .columns
        .iter()
        .find(|column| column.scheduler.kind == Kind::Metronome && !column.samples.is_empty())
}

fn others(outcome: &Outcome) -> impl Iterator<Item = &Column> {
    let columns = outcome.columns.iter();
    columns.filter(|column| column.scheduler.kind != Kind::Metronome && !column.samples.is_empty())
}

/// Each row in which another is better than Metronome by more than the spread.
fn losses(outcome: &Outcome) -> String {
    let Some(ours) = metronome(outcome) else {
        return "It has no samples.\n".to_owned();
    };
    let mut text = "| | | scx_metronome | better |\n|---|---|--:|---|\n".to_owned();
    let mut rows = 0;
    for row in outcome.rows() {
        let better: Vec<_> = others(outcome)
            .filter(|theirs| outcome.verdict(&row, ours, theirs) == Some(Verdict::Worse))
            .filter_map(|theirs| {
                Some(format!(
                    "{} {}",
                    theirs.scheduler.title,
                    number(&row, theirs.at(&row)?.median)
                ))
            })
            .collect();
        if let (false, Some(figure)) = (better.is_empty(), ours.at(&row)) {
            rows += 1;
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} |",
                row.cell.title,
                name(&row),
                number(&row, figure.median),
                better.join(", ")
            );
        }
    }
    let is_known = outcome.rows().any(|row| {
        others(outcome)
            .filter_map(|theirs| outcome.verdict(&row, ours, theirs))
            .any(|verdict| verdict != Verdict::Unknown)
    });
    match (rows, is_known) {
        (0, true) => "Nowhere by more than the spread.\n".to_owned(),
        (0, false) => "Not known: one sample has no spread.\n".to_owned(),
        _ => text,
    }
}

fn name(row: &Row) -> String {
    let Shown { title, unit, .. } = row.figure.shown();
    if unit.is_empty() {
        title
    } else {
        format!("{title}, {unit}")
    }
}

fn number(row: &Row, value: f64) -> String {
    format!("{value:.*}", row.figure.shown().decimals)
}

fn table(outcome: &Outcome) -> String {
    let columns: Vec<_> = outcome
        .columns
        .iter()
        .filter(|column| !column.samples.is_empty())
        .collect();
    let mut text = "| | |".to_owned();
    columns.iter().for_each(|column| {
        let _ = write!(text, " {} |", column.scheduler.title);
    });
    text += &format!("\n|---|---|{}\n", "--:|".repeat(columns.len()));
    let mut before = "";
    for row in outcome.rows() {
        let title = if row.cell.id == before {
            ""
        } else {
            row.cell.title
        };
        before = row.cell.id;
        let _ = write!(text, "| {title} | {} |", name(&row));
        for column in &columns {
            let _ = write!(
                text,
                " {} |",
                figure(outcome, &row, column).unwrap_or_default()
            );
        }
        text.push('\n');
    }
    text
}

fn figure(outcome: &Outcome, row: &Row, column: &Column) -> Option<String> {
    let summary = column.at(row)?;
    let mut text = number(row, summary.median);
    if is_best(outcome, row, summary) {
        text = format!("**{text}**");
    }
    if let Some(spread) = summary.spread {
        text += &format!(" ±{}", number(row, spread));
    }
    Some(text + mark(outcome, row, column))
}

/// Against EEVDF.
fn mark(outcome: &Outcome, row: &Row, column: &Column) -> &'static str {
    if column.scheduler.kind == Kind::Default {
        return "";
    }
    let baseline = outcome
        .columns
        .iter()
        .find(|column| column.scheduler.kind == Kind::Default);
    match baseline.and_then(|baseline| outcome.verdict(row, column, baseline)) {
        Some(Verdict::Better) => " **+**",
        Some(Verdict::Worse) => " **-**",
        Some(Verdict::NoDifference) => " =",
        Some(Verdict::Unknown) | None => "",
    }
}

fn is_best(outcome: &Outcome, row: &Row, summary: Summary) -> bool {
    let medians = outcome
        .columns
        .iter()
        .filter_map(|column| Some(column.at(row)?.median));
    match row.figure.shown().better {
        Better::Lower => medians.fold(f64::INFINITY, f64::min) >= summary.median,
        Better::Higher => medians.fold(f64::NEG_INFINITY, f64::max) <= summary.median,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::CELLS;
    use crate::figure::Figure;
    use crate::result::tests::outcome;
    use crate::sample::Failure;

    #[test]
    fn every_cell_and_scheduler_has_its_place() {
        let text = render(&outcome());
        assert!(CELLS.iter().all(|cell| text.contains(cell.title)));
        assert!(
            outcome()
                .columns
                .iter()
                .all(|column| text.contains(column.scheduler.title))
        );
        let rows = text
            .lines()
            .filter(|line| line.starts_with("| pipe "))
            .count();
        assert_eq!(rows, 2, "as a loss and in the table");
    }

    #[test]
    fn rows_where_another_is_better_are_told() {
        let losses = losses(&outcome());
        // In the made-up outcome every later scheduler has a higher figure: EEVDF is better where
        // lower is.
        assert!(
            losses.contains("| pipe | time for an exchange, µs | 12.2 | EEVDF 10.2 |"),
            "{losses}"
        );
        assert!(losses.contains("scx_flash 18"), "{losses}");
    }

    #[test]
    fn of_one_sample_each_no_verdict_is_told() {
        let mut outcome = outcome();
        for column in &mut outcome.columns {
            column.samples.retain(|sample| sample.round == 1);
        }
        assert_eq!(losses(&outcome), "Not known: one sample has no spread.\n");
    }

    #[test]
    fn a_spread_larger_than_the_difference_is_no_difference() {
        let mut outcome = outcome();
        for sample in &mut outcome.columns[2].samples {
            if sample.cell == "pipe" {
                sample
                    .figures
                    .insert(Figure::Exchange, 10.0 + f64::from(sample.round));
            }
        }
        let text = table(&outcome);
        let line = text.lines().find(|line| line.starts_with("| pipe "));
        assert!(
            line.is_some_and(|line| line.contains("| 12.0 ±2.0 = |")),
            "{line:?}"
        );
        assert!(
            line.is_some_and(|line| line.contains("| **10.2** ±0.2 |")),
            "{line:?}"
        );
        assert!(
            line.is_some_and(|line| line.contains("13.2 ±0.2 **-**")),
            "{line:?}"
        );
    }

    #[test]
    fn failures_are_told() {
        let mut outcome = outcome();
        outcome.columns[8].samples.clear();
        outcome.columns[8].failure = Some(Failure {
            scheduler: "scx_flash".to_owned(),
            step: "attaching".to_owned(),
            message: "no <way> | out".to_owned(),
        });
        let text = render(&outcome);
        assert!(text.contains("**scx_flash is missing in part or in whole**: it failed at attaching: no &lt;way> \\| out"));
        assert_eq!(table(&outcome).matches("scx_flash").count(), 0);
    }
}
