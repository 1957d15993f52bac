//! What the scheduler thread counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the scheduler thread counts. One writer, any number of readers.
#[derive(Debug, Default)]
pub(super) struct UserCounts {
    pub(super) taken: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) superseded: AtomicU64,
    pub(super) waiting: AtomicU64,
    pub(super) syscalls: AtomicU64,
    /// Page faults of the scheduler thread before it began to schedule.
    pub(super) faults_at_start: AtomicU64,
}

/// Adds to a counter that has one writer: no locked instruction.
pub(super) fn bump(counter: &AtomicU64, by: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}
