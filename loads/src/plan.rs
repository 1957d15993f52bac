//! When a run starts, what part of it is recorded, and how far it is: what all threads of a run
//! share.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

// ORDERING: everything here is a number that means something by itself; nothing is published
// through it. Results are handed over by joining the threads.

/// The common timetable, and the counts that the progress lines are made of.
#[derive(Debug)]
pub struct Plan {
    /// When every part of the load starts.
    pub epoch: u64,
    /// What is due before this is warm-up and not recorded.
    pub from: u64,
    until: AtomicU64,
    /// Frames completed, among those recorded.
    pub frames: AtomicU64,
    /// Frames missed, among those recorded.
    pub missed: AtomicU64,
}

impl Plan {
    /// A run that starts at `epoch` and, after `warmup` ns, is recorded for `length` ns.
    #[must_use]
    pub fn new(epoch: u64, warmup: u64, length: u64) -> Self {
        let from = epoch + warmup;
        Self {
            epoch,
            from,
            until: AtomicU64::new(from + length),
            frames: AtomicU64::new(0),
            missed: AtomicU64::new(0),
        }
    }

    /// When the run ends: what is due then or later is not started.
    #[must_use]
    pub fn until(&self) -> u64 {
        self.until.load(Relaxed)
    }

    /// Ends the run at `now` instead, if that is earlier.
    pub fn stop(&self, now: u64) {
        self.until.fetch_min(now, Relaxed);
    }

    /// Whether the run ends before something due at `due`.
    #[must_use]
    pub fn is_over(&self, due: u64) -> bool {
        due >= self.until()
    }

    /// Whether what is due at `due` is recorded.
    #[must_use]
    pub fn records(&self, due: u64) -> bool {
        due >= self.from && !self.is_over(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_between_warm_up_and_end() {
        let plan = Plan::new(100, 10, 20);
        assert!(!plan.records(109) && plan.records(110) && plan.records(129) && !plan.records(130));
        assert!(!plan.is_over(129) && plan.is_over(130));
    }

    #[test]
    fn a_stop_only_shortens() {
        let plan = Plan::new(100, 10, 20);
        plan.stop(500);
        assert_eq!(plan.until(), 130);
        plan.stop(120);
        assert_eq!(plan.until(), 120);
    }
}
