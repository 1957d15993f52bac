//! All samples of a run, and medians and spreads of them.

use crate::cell::{CELLS, Cell, Form};
use crate::figure::Figure;
use crate::sample::{Environment, Failure, Sample, Store};
use crate::scheduler::{Kind, SCHEDULERS, Scheduler};
use crate::stats::{Summary, Verdict, verdict};
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

/// What the run took place on and with, in words.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Circumstances {
    /// The day.
    pub(crate) date: String,
    /// The host.
    pub(crate) machine: String,
    /// What was compared, of this project: a commit.
    pub(crate) commit: String,
    /// The command that does it again.
    pub(crate) command: String,
    /// Where the cells ran and what time is there.
    pub(crate) place: String,
    /// What of Debian ran there, if anything did.
    pub(crate) programs: String,
}

/// One scheduler's samples.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// Whose.
    pub(crate) scheduler: &'static Scheduler,
    /// Which build of it.
    pub(crate) version: String,
    /// Why it has fewer samples than it should.
    pub(crate) failure: Option<Failure>,
    /// All of them.
    pub(crate) samples: Vec<Sample>,
}

/// A run's outcome.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Where and when.
    pub(crate) circumstances: Circumstances,
    /// The guest or the host.
    pub(crate) environment: Environment,
    /// A form's name.
    pub(crate) form: &'static str,
    /// A column for each scheduler that has samples or failed.
    pub(crate) columns: Vec<Column>,
}

/// A row of the table: a figure of a cell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// The cell.
    pub(crate) cell: &'static Cell,
    /// Its figure.
    pub(crate) figure: Figure,
}

impl Outcome {
    /// Reads all that is stored.
    ///
    /// # Errors
    /// A file is not what it should be, or nothing is stored.
    pub(crate) fn read(
        store: &Store,
        form: &'static Form,
        circumstances: Circumstances,
    ) -> Result<Self> {
        let mut columns = Vec::new();
        for scheduler in &SCHEDULERS {
            let column = Column {
                scheduler,
                version: store.version(scheduler.id).unwrap_or_default(),
                failure: store.failure(scheduler.id),
                samples: store.samples(scheduler.id)?,
            };
            if !column.samples.is_empty() || column.failure.is_some() {
                columns.push(column);
            }
        }
        Ok(Self {
            circumstances,
            environment: store.environment().context("there are no samples")?,
            form: form.name,
            columns,
        })
    }

    /// All rows that some scheduler has a figure for.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Row> {
        let rows = CELLS.iter().flat_map(|cell| {
            let figures = cell.work.shown().iter();
            figures.map(move |figure| Row {
                cell,
                figure: *figure,
            })
        });
        rows.filter(|row| self.columns.iter().any(|column| column.at(row).is_some()))
    }

    /// A scheduler's column.
    #[must_use]
    pub(crate) fn column(&self, id: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.scheduler.id == id)
    }

    /// How `ours` compares with `theirs` in a row; None where one has no figure.
    #[must_use]
    pub(crate) fn verdict(&self, row: &Row, ours: &Column, theirs: &Column) -> Option<Verdict> {
        Some(verdict(
            row.figure.shown().better,
            ours.at(row)?,
            theirs.at(row)?,
        ))
    }

    /// Everything, for programs.
    ///
    /// # Errors
    /// None in practice.
    pub(crate) fn to_json(&self) -> Result<String> {
        let schedulers: Vec<_> = self.columns.iter().map(Column::to_json).collect();
        let rows: Vec<_> = self.rows().map(|row| self.row_to_json(&row)).collect();
        let samples: Vec<_> = self
            .columns
            .iter()
            .flat_map(|column| &column.samples)
            .collect();
        let all = json!({
            "circumstances": self.circumstances,
            "environment": self.environment,
            "form": self.form,
            "schedulers": schedulers,
            "rows": rows,
            "samples": samples,
        });
        Ok(serde_json::to_string_pretty(&all)? + "\n")
    }

    fn row_to_json(&self, row: &Row) -> Value {
        let shown = row.figure.shown();
        let summaries = self.columns.iter().filter_map(|column| {
            let summary = serde_json::to_value(column.at(row)?).ok()?;
            Some((column.scheduler.id.to_owned(), summary))
        });
        let summaries: serde_json::Map<String, Value> = summaries.collect();
        json!({
            "cell": row.cell.id,
            "key": row.figure,
            "title": format!("{}: {}", row.cell.title, shown.title),
            "unit": shown.unit,
            "better": shown.better,
            "schedulers": summaries,
        })
    }
}

impl Column {
    /// Its figure in a row.
    #[must_use]
    pub(crate) fn at(&self, row: &Row) -> Option<Summary> {
        self.summary(row.cell.id, row.figure)
    }

    /// Any figure of its samples.
    #[must_use]
    pub(crate) fn summary(&self, cell: &str, figure: Figure) -> Option<Summary> {
        let samples = self.samples.iter().filter(|sample| sample.cell == cell);
        let figures: Vec<f64> = samples
            .filter_map(|sample| sample.figures.get(&figure).copied())
            .collect();
        Summary::of(&figures)
    }

    /// Its version, for people.
    #[must_use]
    pub(crate) fn version_for_people(&self) -> String {
        match self.scheduler.kind {
            Kind::Default | Kind::Fifo => "the kernel's".to_owned(),
            Kind::Peer(version) => version.to_owned(),
            Kind::Metronome => format!("{}, build {:.8}", env!("CARGO_PKG_VERSION"), self.version),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "id": self.scheduler.id,
            "title": self.scheduler.title,
            "version": self.version_for_people(),
            "failure": self.failure,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::figure::{At, Of};
    use crate::sample::tests::sample;

    /// Three rounds of every cell, each scheduler some per cent worse than the one before it.
    pub(crate) fn outcome() -> Outcome {
        let columns = SCHEDULERS
            .iter()
            .enumerate()
            .map(|(index, scheduler)| Column {
                scheduler,
                version: "0123456789abcdef".to_owned(),
                failure: None,
                samples: samples(scheduler, 10.0 + index as f64),
            });
        Outcome {
            circumstances: Circumstances {
                date: "2026-01-01".to_owned(),
                machine: "a <machine>".to_owned(),
                commit: "abc".to_owned(),
                command: "make compare".to_owned(),
                place: "in a guest".to_owned(),
                programs: String::new(),
            },
            environment: Environment {
                kernel: "7.3".to_owned(),
                cpus: 4,
                iterations_per_ms: 1000,
            },
            form: "quick",
            columns: columns.collect(),
        }
    }

    fn samples(scheduler: &Scheduler, value: f64) -> Vec<Sample> {
        let cells = CELLS.iter().filter(|cell| cell.applies_to(scheduler));
        let rounds = cells.flat_map(|cell| (1..=3).map(move |round| (cell, round)));
        rounds
            .map(|(cell, round)| {
                let value = value + f64::from(round) * 0.1;
                let mut one = sample(scheduler.id, cell.id, round, Figure::Fps, value);
                let shown = cell.work.shown().iter().copied();
                let shares = (0..4).map(Figure::Share);
                let times = Of::ALL
                    .into_iter()
                    .flat_map(|of| At::ALL.map(|at| Figure::Time(of, at)));
                one.figures.extend(
                    shown
                        .chain(shares)
                        .chain(times)
                        .map(|figure| (figure, value)),
                );
                one
            })
            .collect()
    }

    #[test]
    fn figures_are_medians_over_rounds() {
        let outcome = outcome();
        let first = outcome
            .column("eevdf")
            .and_then(|column| column.summary("pipe", Figure::Exchange));
        assert!(first.is_some_and(|summary| (summary.median - 10.2).abs() < 1e-9 && summary.samples == 3));
    }

    #[test]
    fn json_has_all_samples_and_rows() -> Result<()> {
        let outcome = outcome();
        let value: Value = serde_json::from_str(&outcome.to_json()?)?;
        let count = |key: &str| value[key].as_array().map_or(0, Vec::len);
        let samples: usize = outcome
            .columns
            .iter()
            .map(|column| column.samples.len())
            .sum();
        assert_eq!(count("samples"), samples);
        assert_eq!(count("rows"), outcome.rows().count());
        assert!(value["rows"][0]["schedulers"]["eevdf"]["median"].is_number());
        Ok(())
    }
}
