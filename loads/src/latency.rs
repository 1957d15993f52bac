//! Histograms of times, and what a report says of them.

use hdrhistogram::{CreationError, Histogram};
use serde::{Deserialize, Serialize};

/// Below this (ns) times are not told apart.
const LOWEST: u64 = 1_000;
/// Times above this (ns) are recorded as this: 100 s.
const HIGHEST: u64 = 100_000_000_000;
/// Significant decimal digits: 0.1 %.
const DIGITS: u8 = 3;

/// Times of one kind. Recording neither allocates nor faults in a page.
#[derive(Debug)]
pub struct Latency(Histogram<u64>);

impl Latency {
    /// An empty histogram, all of its memory touched.
    ///
    /// # Errors
    /// None in practice: the bounds are constant.
    pub fn new() -> Result<Self, CreationError> {
        let mut histogram = Histogram::new_with_bounds(LOWEST, HIGHEST, DIGITS)?;
        // The allocator hands out pages that are not there before they are written; `reset` writes
        // all of them.
        histogram.reset();
        Ok(Self(histogram))
    }

    /// Records `ns`.
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// Adds all that `other` has.
    pub fn add(&mut self, other: &Self) {
        // Of the same bounds, so nothing can be out of range.
        let _ = self.0.add(&other.0);
    }

    /// What a report says.
    #[must_use]
    pub fn percentiles(&self) -> Percentiles {
        // An empty histogram's largest value is the end of its first bucket.
        let max = if self.0.is_empty() { 0 } else { self.0.max() };
        let ms = |ns: u64| ns as f64 / 1e6;
        // A bucket is told by its upper end, which may lie above the largest time.
        let at = |quantile| ms(self.0.value_at_quantile(quantile).min(max));
        Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: ms(max),
            samples: self.0.len(),
        }
    }

    /// Mean (ns) of the longest times, `fraction` of all, at least one; None if there are none at
    /// all.
    #[must_use]
    pub fn mean_of_longest(&self, fraction: f64) -> Option<f64> {
        let wanted = ((self.0.len() as f64 * fraction).ceil() as u64).max(1);
        let buckets: Vec<_> = self.0.iter_recorded().collect();
        let (mut left, mut sum) = (wanted, 0.0);
        for bucket in buckets.iter().rev() {
            let taken = bucket.count_at_value().min(left);
            sum += taken as f64 * bucket.value_iterated_to() as f64;
            left -= taken;
        }
        (!buckets.is_empty()).then(|| sum / (wanted - left) as f64)
    }
}

/// Percentiles in milliseconds; all 0 if there are no samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// One in 10 is longer.
    pub p90: f64,
    /// One in 100 is longer.
    pub p99: f64,
    /// One in 1000 is longer. With fewer samples than that it is the longest.
    pub p99_9: f64,
    /// The longest.
    pub max: f64,
    /// How many there were.
    pub samples: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= b * 0.002
    }

    #[test]
    fn percentiles_of_1_to_1000_ms() -> Result<(), CreationError> {
        let mut latency = Latency::new()?;
        for ms in 1..=1000 {
            latency.record(ms * 1_000_000);
        }
        let p = latency.percentiles();
        assert!(
            near(p.p50, 500.0) && near(p.p90, 900.0) && near(p.p99, 990.0),
            "{p:?}"
        );
        assert!(
            near(p.p99_9, 999.0) && near(p.max, 1000.0) && p.samples == 1000,
            "{p:?}"
        );
        Ok(())
    }

    #[test]
    fn two_make_one() -> Result<(), CreationError> {
        let (mut a, mut b) = (Latency::new()?, Latency::new()?);
        a.record(1_000_000);
        b.record(3_000_000);
        a.add(&b);
        let p = a.percentiles();
        assert!(near(p.max, 3.0) && p.samples == 2, "{p:?}");
        Ok(())
    }

    #[test]
    fn nothing_recorded() -> Result<(), CreationError> {
        let latency = Latency::new()?;
        assert_eq!(latency.percentiles(), Percentiles::default());
        assert_eq!(latency.mean_of_longest(0.01), None);
        Ok(())
    }

    #[test]
    fn too_long_is_recorded_as_the_longest() -> Result<(), CreationError> {
        let mut latency = Latency::new()?;
        latency.record(u64::MAX);
        assert!(latency.percentiles().max >= 100_000.0);
        Ok(())
    }

    #[test]
    fn the_longest_hundredth() -> Result<(), CreationError> {
        let mut latency = Latency::new()?;
        for _ in 0..198 {
            latency.record(10_000_000);
        }
        latency.record(30_000_000);
        latency.record(50_000_000);
        assert!(
            latency
                .mean_of_longest(0.01)
                .is_some_and(|mean| near(mean, 40_000_000.0))
        );
        assert!(
            latency
                .mean_of_longest(0.0)
                .is_some_and(|mean| near(mean, 50_000_000.0))
        );
        Ok(())
    }
}
