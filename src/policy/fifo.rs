//! First come, first served.

use crate::policy::Policy;
use crate::task::QueuedTask;

/// Tasks run in the order in which they came to wait, each for the same slice to its end: none has
/// a deadline.
#[derive(Clone, Copy, Debug)]
pub struct Fifo {
    slice_ns: u64,
}

impl Fifo {
    /// Slices of `slice_ns`; 0 is the default slice.
    pub const fn new(slice_ns: u64) -> Self {
        Self { slice_ns }
    }
}

impl Policy for Fifo {
    fn deadline(&mut self, _task: &QueuedTask) -> u64 {
        0
    }

    fn slice_ns(&mut self, _id: u32, _waiting: usize) -> u64 {
        self.slice_ns
    }

    fn adopt(&mut self, _id: u32, _nr: u64) -> u64 {
        0
    }
}
