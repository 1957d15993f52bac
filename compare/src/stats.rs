//! Median, spread, and when a difference is one.
//!
//! Means and standard deviations suit neither latencies, whose tail is long, nor five samples. The
//! median with the interquartile range needs no assumption and is not upset by one odd run. Fewer
//! than five samples have no quartiles worth the name: then the spread is the whole range, and one
//! sample has none at all.

use serde::{Deserialize, Serialize};

/// What several runs of one cell came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// The middle sample, or between the two middle ones.
    pub(crate) median: f64,
    /// Between the quartiles; with fewer than five samples, between the least and the most. None
    /// with only one.
    pub(crate) spread: Option<f64>,
    /// How many there were.
    pub(crate) samples: usize,
}

/// Fewer samples than this have no quartiles worth the name.
const QUARTILES_FROM: usize = 5;

impl Summary {
    /// Of `samples`, those that are no number left out; None if none is left.
    #[must_use]
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.iter().copied().filter(|x| x.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let spread = match sorted.len() {
            1 => None,
            n if n < QUARTILES_FROM => Some(most - least),
            _ => Some(quantile(&sorted, 0.75) - quantile(&sorted, 0.25)),
        };
        Some(Self {
            median: quantile(&sorted, 0.5),
            spread,
            samples: sorted.len(),
        })
    }
}

/// The quantile of sorted, non-empty samples, with straight lines between them.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Better {
    /// Latencies, times, costs.
    Lower,
    /// Work done.
    Higher,
}

/// How one scheduler's cell compares with another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// By more than either's spread.
    Better,
    /// By more than either's spread.
    Worse,
    /// The difference is no larger than one of the spreads.
    NoDifference,
    /// One of them has a single sample: its spread is not known.
    Unknown,
}

/// How `ours` compares with `theirs`.
#[must_use]
pub(crate) fn verdict(better: Better, ours: Summary, theirs: Summary) -> Verdict {
    let (Some(a), Some(b)) = (ours.spread, theirs.spread) else {
        return Verdict::Unknown;
    };
    let difference = ours.median - theirs.median;
    if difference.abs() <= a.max(b) {
        return Verdict::NoDifference;
    }
    if (difference < 0.0) == (better == Better::Lower) {
        Verdict::Better
    } else {
        Verdict::Worse
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(samples: &[f64]) -> Summary {
        let none = Summary {
            median: f64::NAN,
            spread: None,
            samples: 0,
        };
        Summary::of(samples).unwrap_or(none)
    }

    #[test]
    fn medians() {
        assert_eq!(summary(&[3.0, 1.0, 2.0]).median, 2.0);
        assert_eq!(summary(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(summary(&[7.0]).median, 7.0);
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[f64::NAN]), None);
    }

    #[test]
    fn few_samples_spread_over_their_range_and_five_between_quartiles() {
        assert_eq!(summary(&[7.0]).spread, None);
        assert_eq!(summary(&[1.0, 9.0, 2.0, 3.0]).spread, Some(8.0));
        assert_eq!(summary(&[1.0, 2.0, 3.0, 4.0, 100.0]).spread, Some(2.0));
    }

    #[test]
    fn what_is_no_number_does_not_count() {
        let summary = summary(&[1.0, f64::INFINITY, 3.0]);
        assert_eq!((summary.median, summary.samples), (2.0, 2));
    }

    #[test]
    fn a_difference_must_exceed_both_spreads() {
        let (narrow, wide) = (summary(&[10.0, 11.0]), summary(&[14.0, 20.0]));
        assert_eq!(verdict(Better::Lower, narrow, wide), Verdict::Better);
        assert_eq!(verdict(Better::Lower, wide, narrow), Verdict::Worse);
        assert_eq!(verdict(Better::Higher, wide, narrow), Verdict::Better);
        let wider = summary(&[12.0, 20.0]);
        assert_eq!(verdict(Better::Lower, narrow, wider), Verdict::NoDifference);
        assert_eq!(
            verdict(Better::Lower, narrow, narrow),
            Verdict::NoDifference
        );
    }

    #[test]
    fn one_sample_shows_nothing() {
        let (one, two) = (summary(&[1.0]), summary(&[5.0, 6.0]));
        assert_eq!(verdict(Better::Lower, one, two), Verdict::Unknown);
    }
}
