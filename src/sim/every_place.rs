//! A policy for tests.

use crate::policy::{Due, Machine, Place, Policy};
use crate::task::QueuedTask;

/// Puts tasks in every place that there is, by the bits of their ids: on the first CPU that becomes
/// available, on some CPU, whether it exists, takes tasks, and may be used by the task or not, with
/// or without displacing what runs there. Each task of an id with bit 2 set waits for a turn first.
#[derive(Clone, Debug, Default)]
pub struct EveryPlace {
    /// The task that has waited for its turn.
    put_off: Option<u32>,
}

impl EveryPlace {
    /// What it says of a task that does not wait any more.
    fn place_of(id: u32, machine: &Machine<'_>) -> Place {
        // One more than there are.
        let cpu = (id >> 3) % (machine.nr_cpus() + 1);
        match id & 3 {
            0 => Place::First,
            1 => Place::Preempt(cpu),
            _ => Place::On(cpu),
        }
    }
}

impl Policy for EveryPlace {
    fn deadline(&mut self, task: &QueuedTask) -> u64 {
        task.vtime
    }

    fn slice_ns(&mut self, id: u32, _waiting: usize) -> u64 {
        u64::from(id % 4) * 1_000_000
    }

    fn place(&mut self, task: &Due, machine: &Machine<'_>) -> Place {
        if task.id & 4 != 0 && self.put_off.replace(task.id) != Some(task.id) {
            return Place::Later;
        }
        self.put_off = None;
        Self::place_of(task.id, machine)
    }
}
