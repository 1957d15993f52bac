//! The regression gate: ratios of Metronome to EEVDF, against those that were committed.
//!
//! A figure itself depends on the kernel and the emulator; its ratio to EEVDF's median in the same
//! run much less. A ratio has become worse when its median is beyond the committed one by more than
//! the spread: that of Metronome's rounds, the whole range, of the two runs the larger; and that of
//! EEVDF's, between the quartiles, of both runs, for each has a median of its own that is no surer.
//! A gate that cries wolf is switched off.

use crate::figure::Figure;
use crate::result::{Column, Outcome, Row};
use crate::stats::{Better, Summary};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Fewer rounds show no spread.
const FEWEST: usize = 3;
/// What is not in the gate: it is 0 on good runs, and a ratio of it means nothing.
const LEFT_OUT: [Figure; 1] = [Figure::FramesMissed];

/// The ratios of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ratios {
    /// The kernel that they were taken on.
    pub(crate) kernel: String,
    /// CPUs.
    pub(crate) cpus: usize,
    /// By cell and figure: each round of Metronome's over the median of EEVDF's.
    pub(crate) ratios: BTreeMap<String, Vec<f64>>,
    /// Likewise: the distance between the quartiles of EEVDF's rounds, as a part of their median.
    pub(crate) baseline: BTreeMap<String, f64>,
}

/// How one ratio has changed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    /// Cell and figure.
    pub(crate) name: String,
    /// The committed median.
    pub(crate) before: f64,
    /// The median of this run.
    pub(crate) after: f64,
    /// What it may differ by.
    pub(crate) spread: f64,
    /// It is worse by more than that.
    pub(crate) worse: bool,
}

impl Ratios {
    /// Of a run.
    ///
    /// # Errors
    /// One of the two has failed, or there were too few rounds.
    pub(crate) fn of(outcome: &Outcome) -> Result<Self> {
        let column = |id: &str| {
            let column = outcome
                .column(id)
                .with_context(|| format!("{id} has no samples"))?;
            match &column.failure {
                Some(failure) => bail!("{id} failed at {}: {}", failure.step, failure.message),
                None => Ok(column),
            }
        };
        let (ours, baseline) = (column("scx_metronome")?, column("eevdf")?);
        let (mut ratios, mut spreads) = (BTreeMap::new(), BTreeMap::new());
        for row in rows(outcome) {
            // EEVDF has no process whose cost could be asked for.
            let Some(theirs) = baseline.at(&row) else {
                continue;
            };
            let rounds = to_median(&row, ours, theirs.median);
            if rounds.len() < FEWEST {
                bail!(
                    "{} has {} rounds, {FEWEST} are needed: the machine was too slow",
                    name(&row),
                    rounds.len()
                );
            }
            ratios.insert(name(&row), rounds);
            let spread = theirs.spread.unwrap_or(0.0) / theirs.median;
            spreads.insert(name(&row), if spread.is_finite() { spread } else { 0.0 });
        }
        Ok(Self {
            kernel: outcome.environment.kernel.clone(),
            cpus: outcome.environment.cpus,
            ratios,
            baseline: spreads,
        })
    }

    /// How these ratios compare with those of `committed`.
    #[must_use]
    pub(crate) fn against(&self, committed: &Self, outcome: &Outcome) -> Vec<Change> {
        let changes = rows(outcome).filter_map(|row| {
            let name = name(&row);
            let (before, after) = (committed.ratios.get(&name)?, self.ratios.get(&name)?);
            let own = range(before).max(range(after));
            let baseline = [committed, self].map(|run| run.baseline.get(&name).unwrap_or(&0.0));
            let (before, after) = (Summary::of(before)?.median, Summary::of(after)?.median);
            let spread = own + before * (baseline[0] + baseline[1]);
            let worsening = match row.figure.shown().better {
                Better::Lower => after - before,
                Better::Higher => before - after,
            };
            Some(Change {
                name,
                before,
                after,
                spread,
                worse: worsening > spread,
            })
        });
        changes.collect()
    }
}

fn rows(outcome: &Outcome) -> impl Iterator<Item = Row> {
    outcome.rows().filter(|row| !LEFT_OUT.contains(&row.figure))
}

fn name(row: &Row) -> String {
    format!("{} {}", row.cell.id, row.figure)
}

/// Of each round of ours to the median of the baseline's.
fn to_median(row: &Row, ours: &Column, baseline: f64) -> Vec<f64> {
    let samples = ours
        .samples
        .iter()
        .filter(|sample| sample.cell == row.cell.id);
    let figures = samples.filter_map(|sample| sample.figures.get(&row.figure));
    let ratios = figures.map(|figure| figure / baseline);
    ratios.filter(|ratio| ratio.is_finite()).collect()
}

fn range(values: &[f64]) -> f64 {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (most - least).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::outcome;

    fn changed(ratios: &Ratios, name: &str, factor: f64) -> Ratios {
        let mut changed = ratios.clone();
        for ratio in changed.ratios.get_mut(name).into_iter().flatten() {
            *ratio *= factor;
        }
        changed
    }

    fn worse(after: &Ratios, before: &Ratios) -> Vec<String> {
        let changes = after.against(before, &outcome()).into_iter();
        changes
            .filter(|change| change.worse)
            .map(|change| change.name)
            .collect()
    }

    #[test]
    fn the_same_again_passes() -> Result<()> {
        let ratios = Ratios::of(&outcome())?;
        assert!(ratios.ratios.contains_key("messaging seconds"));
        assert!(!ratios.ratios.contains_key("frame-1.5x frame.missed"));
        assert!(worse(&ratios, &ratios).is_empty());
        Ok(())
    }

    #[test]
    fn worse_is_up_for_latency_and_down_for_work() -> Result<()> {
        let ratios = Ratios::of(&outcome())?;
        let (latency, work) = ("frame-1.5x frame.p99", "frame-1.5x hogs.work");
        assert_eq!(worse(&changed(&ratios, latency, 1.5), &ratios), [latency]);
        assert!(worse(&changed(&ratios, latency, 0.5), &ratios).is_empty());
        assert_eq!(worse(&changed(&ratios, work, 0.5), &ratios), [work]);
        assert!(worse(&changed(&ratios, work, 1.5), &ratios).is_empty());
        Ok(())
    }

    #[test]
    fn within_the_spread_nothing_is_worse() -> Result<()> {
        let mut before = Ratios::of(&outcome())?;
        let name = "messaging seconds";
        before.ratios.insert(name.to_owned(), vec![1.0, 0.8, 1.2]);
        before.baseline.insert(name.to_owned(), 0.0);
        let mut after = before.clone();
        after.ratios.insert(name.to_owned(), vec![1.39, 1.39, 1.39]);
        assert!(worse(&after, &before).is_empty());
        after.ratios.insert(name.to_owned(), vec![1.41, 1.41, 1.41]);
        assert_eq!(worse(&after, &before), [name]);
        // EEVDF's own figure differs, by a twentieth in each run.
        before.baseline.insert(name.to_owned(), 0.05);
        assert!(worse(&after, &before).is_empty());
        after.ratios.insert(name.to_owned(), vec![1.49, 1.49, 1.49]);
        assert_eq!(worse(&after, &before), [name]);
        after.baseline.insert(name.to_owned(), 0.05);
        assert!(worse(&after, &before).is_empty());
        Ok(())
    }

    #[test]
    fn too_few_rounds_are_an_error() {
        let mut outcome = outcome();
        outcome.columns[2].samples.retain(|sample| sample.round < 3);
        assert!(Ratios::of(&outcome).is_err());
    }
}
