//! What the CPUs run, as the kernel side publishes it.

use crate::abi::{RUNS_DECIDED, RUNS_ORDERED, RunningTask};
use crate::sync::Ordering;

/// What runs on a CPU. Read while it changes: a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Thread id; 0 before the first.
    pub pid: i32,
    /// Its dense id.
    pub id: u32,
    /// When it got the CPU, ns of `CLOCK_MONOTONIC`.
    pub since: u64,
    /// Of the last decision about it, plus the CPU time it had since, scaled by weight; with a
    /// standing order, ns of `CLOCK_MONOTONIC`.
    pub deadline: u64,
    /// What it had of its slice then, ns.
    pub slice: u64,
    /// What kind of task it is.
    pub kind: RunningKind,
}

impl Running {
    pub(crate) fn read(running: &RunningTask) -> Self {
        // ORDERING: relaxed, with the plain stores of publish_running() in bpf/metronome.bpf.c: the
        // words may belong to two tasks in any case.
        Self {
            pid: running.pid.load(Ordering::Relaxed) as i32,
            id: running.id.load(Ordering::Relaxed),
            since: running.since.load(Ordering::Relaxed),
            deadline: running.deadline.load(Ordering::Relaxed),
            slice: running.slice.load(Ordering::Relaxed),
            kind: match running.kind.load(Ordering::Relaxed) {
                RUNS_DECIDED => RunningKind::Decided,
                RUNS_ORDERED => RunningKind::Ordered,
                _ => RunningKind::Other,
            },
        }
    }
}

/// What gives way to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunningKind {
    /// Nothing, or nothing that gives way, or something that is about to.
    Other,
    /// A task that the policy decides about.
    Decided,
    /// A task with a standing order.
    Ordered,
}
