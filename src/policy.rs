//! What a scheduler decides: in which order tasks run, and for how long.
//!
//! The control flow around it is in [`turn`](crate::turn): a policy never touches shared memory.

use crate::orders::Order;
use crate::task::QueuedTask;

pub mod deadline;

/// A scheduling policy: it orders the waiting tasks.
///
/// All calls come from the scheduler thread. None may allocate, block, or call the system.
pub trait Policy {
    /// A task waits. Returns its deadline, in ns of a clock of the policy's own choosing; the smallest runs first, equal
    /// ones in the order of their arrival. Deadlines are compared by wrapping difference, so those in use at the same time
    /// must lie within 2^63 of each other.
    fn deadline(&mut self, task: &QueuedTask) -> u64;

    /// The task of this id gets a CPU next. Returns its slice in ns; 0 is the default slice. `waiting` other tasks wait.
    fn slice_ns(&mut self, id: u32, waiting: usize) -> u64;

    /// The standing order of a task, asked after each record about it. It holds from the task's next wake-up on.
    fn order(&mut self, _task: &QueuedTask) -> Option<Order> {
        None
    }

    /// Something has happened to a task, of a [`kind`](QueuedTask::kind) that [`events`](Self::events) asks for. The records of
    /// one task come in order; one may be missing, if the ring was full.
    fn event(&mut self, _task: &QueuedTask) {}

    /// The kinds of records to be told of besides the questions, as a set of [`Kind::bit`](crate::task::Kind::bit).
    fn events(&self) -> u32 {
        0
    }
}
