//! Periods with due times fixed in advance, and what becomes of one that ends late.
//!
//! A loop that sleeps "a period from now" forgives itself every delay. Here period `k` is due at
//! `epoch + k * period` whatever happened before, so lateness shows. Work that ends after the next
//! due time has missed; if it ends even later, the periods that went by in whole are skipped (a
//! screen does not show old frames later), and count as missed too.

use std::ops::Range;

/// The periods of one thread.
#[derive(Clone, Debug)]
pub struct Pace {
    epoch: u64,
    period: u64,
    /// The period to be worked on.
    index: u64,
}

/// What [`Pace::complete`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The work ended after the next period's due time.
    pub missed: bool,
    /// Periods that went by in whole meanwhile and are not worked on.
    pub skipped: Range<u64>,
}

impl Pace {
    /// Periods of `period` ns (at least 1), the first due at `epoch`.
    #[must_use]
    pub fn new(epoch: u64, period: u64) -> Self {
        Self {
            epoch,
            period: period.max(1),
            index: 0,
        }
    }

    /// When the current period is due.
    #[must_use]
    pub fn due(&self) -> u64 {
        self.due_of(self.index)
    }

    /// When period `index` is due.
    #[must_use]
    pub fn due_of(&self, index: u64) -> u64 {
        self.epoch + index * self.period
    }

    /// The current period's work ended at `now`: judges it and moves on to the next period that is
    /// not over yet, which may already be due.
    pub fn complete(&mut self, now: u64) -> Completion {
        let next = self.index + 1;
        let running = now.saturating_sub(self.epoch) / self.period;
        let missed = now > self.due_of(next);
        self.index = next.max(running);
        Completion {
            missed,
            skipped: next..self.index,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_period_3() -> Pace {
        let mut pace = Pace::new(1000, 10);
        for k in 0..3 {
            pace.complete(1000 + k * 10 + 5);
        }
        assert_eq!(pace.due(), 1030);
        pace
    }

    #[test]
    fn in_time() {
        let mut pace = at_period_3();
        assert_eq!(
            pace.complete(1036),
            Completion {
                missed: false,
                skipped: 4..4
            }
        );
        assert_eq!(pace.due(), 1040);
    }

    #[test]
    fn exactly_at_the_next_due_time_is_in_time() {
        let mut pace = at_period_3();
        assert_eq!(
            pace.complete(1040),
            Completion {
                missed: false,
                skipped: 4..4
            }
        );
        assert_eq!(pace.due(), 1040);
    }

    #[test]
    fn late_within_the_next_period_skips_nothing() {
        let mut pace = at_period_3();
        assert_eq!(
            pace.complete(1041),
            Completion {
                missed: true,
                skipped: 4..4
            }
        );
        assert_eq!(pace.due(), 1040);
        assert_eq!(
            pace.complete(1048),
            Completion {
                missed: false,
                skipped: 5..5
            }
        );
    }

    #[test]
    fn whole_periods_that_went_by_are_skipped() {
        let mut pace = at_period_3();
        assert_eq!(
            pace.complete(1065),
            Completion {
                missed: true,
                skipped: 4..6
            }
        );
        assert_eq!(pace.due(), 1060);
    }

    #[test]
    fn a_clock_before_the_epoch_is_in_time() {
        let mut pace = Pace::new(1000, 10);
        assert_eq!(
            pace.complete(5),
            Completion {
                missed: false,
                skipped: 1..1
            }
        );
    }
}
