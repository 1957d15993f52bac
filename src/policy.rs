//! What a scheduler decides: in which order tasks run, and for how long.
//!
//! The control flow around it is in [`turn`](crate::turn): a policy never touches shared memory.

use crate::abi::{RUNS_DECIDED, RUNS_ORDERED, RunningTask};
use crate::orders::Order;
use crate::shared::Shared;
use crate::sync::Ordering;
use crate::task::QueuedTask;

pub mod deadline;
pub mod fifo;

/// Where the task that is due runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// On an idle CPU if there is one, the one where it ran last if possible; else on the first that becomes available, once
    /// fewer decisions than there are CPUs, and fewer than 128, lie ahead of it.
    #[default]
    First,
    /// On this CPU, after what runs there and what waits there with an earlier deadline. On the first that becomes available if it may
    /// not run there, or 256 decisions lie ahead.
    On(u32),
    /// On this CPU, at once: what runs there gives way. After it, if this is a guess that has been overtaken.
    Preempt(u32),
    /// Nowhere yet. It, and all behind it, wait for the next turn.
    Later,
}

/// The task that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Its dense id.
    pub id: u32,
    /// Thread id.
    pub pid: i32,
    /// What [`Policy::deadline`] said.
    pub deadline: u64,
    /// Where it ran last.
    pub cpu: i32,
    /// How many CPUs its affinity allows; the number of possible CPUs if it allows all that take tasks.
    pub nr_cpus_allowed: u16,
}

/// What runs on a CPU. Read while it changes: a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Thread id; 0 before the first.
    pub pid: i32,
    /// Its dense id.
    pub id: u32,
    /// When it got the CPU, ns on the clock of `scx_bpf_now()`.
    pub since: u64,
    /// Of the last decision about it, plus the CPU time it had since, scaled by weight; with a standing order, ns on the clock of
    /// `scx_bpf_now()`.
    pub deadline: u64,
    /// What it had of its slice then, ns.
    pub slice: u64,
    /// What kind of task it is.
    pub kind: RunningKind,
}

impl Running {
    pub(crate) fn read(running: &RunningTask) -> Self {
        // ORDERING: relaxed: the words may belong to two tasks in any case.
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

/// Who gives way to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunningKind {
    /// Nothing, or nothing that gives way, or something that is about to.
    Other,
    /// A task that the policy decides about.
    Decided,
    /// A task with a standing order.
    Ordered,
}

/// The CPUs, as a policy sees them.
#[derive(Debug)]
pub struct Machine<'a>(pub(crate) &'a Shared);

impl Machine<'_> {
    /// How many CPUs there are: the bound of their numbers.
    pub fn nr_cpus(&self) -> u32 {
        self.0.nr_cpus()
    }

    /// The CPU of the scheduler thread, which gets no decisions.
    pub fn agent_cpu(&self) -> u32 {
        self.0.agent_cpu()
    }

    /// Whether the CPU takes tasks: it is online, and not that of the scheduler thread.
    pub fn is_worker(&self, cpu: u32) -> bool {
        self.0.is_worker(cpu)
    }

    /// Whether the CPU is idle.
    pub fn is_idle(&self, cpu: u32) -> bool {
        self.0.is_idle(cpu)
    }

    /// What runs on the CPU, or ran last; `None` if there is no such CPU.
    ///
    /// # Cost
    /// Loads from one cache line that the CPU writes with each task.
    pub fn running(&self, cpu: u32) -> Option<Running> {
        self.0.running(cpu)
    }

    /// What is left of the slice of what runs on the CPU, ns; 0 if it is used up, or there is no such CPU. [`u64::MAX`] is no limit.
    ///
    /// # Cost
    /// As [`running`](Self::running), and reading a clock.
    pub fn slice_left(&self, cpu: u32) -> u64 {
        let Some((running, now)) = self.running(cpu).zip(self.0.now()) else {
            return 0;
        };
        let used = now.saturating_sub(running.since);
        match running.slice {
            u64::MAX => u64::MAX,
            slice => slice.saturating_sub(used),
        }
    }

    /// How many tasks wait for the CPU alone, by decisions that name it. A guess: what has been taken from its mailbox is counted when it
    /// gets a task.
    pub fn backlog(&self, cpu: u32) -> u64 {
        self.0.backlog_of(cpu)
    }

    /// How many decisions for any CPU have not been taken yet.
    pub fn shared_backlog(&self) -> u64 {
        self.0.shared_backlog()
    }
}

/// A scheduling policy: it orders the waiting tasks.
///
/// All calls come from the scheduler thread. None may allocate, block, or call the system.
pub trait Policy {
    /// From now on this policy decides: at the start, after another policy, and after CPUs have come or gone, for which the scheduler
    /// restarts.
    fn begin(&mut self, _machine: &Machine<'_>) {}

    /// A task waits. Returns its deadline, in ns of a clock of the policy's own choosing; the smallest runs first, equal
    /// ones in the order of their arrival. Deadlines are compared by wrapping difference, so those in use at the same time
    /// must lie within 2^63 of each other.
    fn deadline(&mut self, task: &QueuedTask) -> u64;

    /// The task of this id gets a CPU next. Returns its slice in ns; 0 is the default slice. `waiting` other tasks wait.
    fn slice_ns(&mut self, id: u32, waiting: usize) -> u64;

    /// Where the task that is due runs. Called for one task after the other, in the order of their deadlines, until one waits.
    fn place(&mut self, _task: &Due, _machine: &Machine<'_>) -> Place {
        Place::First
    }

    /// There was no room for the decision in any mailbox: 16,384 lie ahead. The task still waits, and is due again in the next turn.
    fn refused(&mut self, _task: &Due) {}

    /// Another policy is at the end, and this one takes over its waiting tasks, one after the other in the order of their
    /// deadlines. Returns the deadline of the `nr`th, in this policy's clock.
    fn adopt(&mut self, _id: u32, nr: u64) -> u64 {
        nr
    }

    /// The standing order of a task, asked after each record about it. It holds from the task's next wake-up on.
    fn order(&mut self, _task: &QueuedTask) -> Option<Order> {
        None
    }

    /// The standing order that a new task starts with, until the policy is asked for one of its own. A task whose parent's order
    /// says so ([`Order::inherit`]) starts with that instead. Asked once, when the policy begins. Kernel threads are the exception: they
    /// start with one that answers within 1 ms for up to 4 ms of work, because others wait for them, the policy itself not excepted.
    fn newborn(&self) -> Option<Order> {
        None
    }

    /// Something has happened to a task, of a [`kind`](QueuedTask::kind) that [`events`](Self::events) asks for. The records of
    /// one task come in order; one may be missing, if the ring was full. So what is kept by id is another task's as soon as
    /// [`birth`](QueuedTask::birth) is another.
    fn event(&mut self, _task: &QueuedTask) {}

    /// The kinds of records to be told of besides the questions, as a set of [`Kind::bit`](crate::task::Kind::bit).
    fn events(&self) -> u32 {
        0
    }
}
