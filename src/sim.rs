//! A simulated kernel over the same memory: what the scheduler thread does can be tested, measured
//! and fuzzed without one.
//!
//! # Why not only the real one
//! A real kernel shows that the whole works, but not twice the same, not in a microsecond, and not
//! with a corrupt record at a chosen byte. A mock of the interface would be all that, but would not
//! contain the memory, where the bugs are.
//!
//! # Mechanism
//! [`Sim`] holds both sides. The kernel's side does with rings, mailboxes and CPU states what
//! `bpf/metronome.bpf.c` does, in the same layout, one function for each of the BPF side's. Ours is
//! the real code: [`Shared`], [`Turn`] and a policy. Nothing happens by itself: each [`Event`] is
//! one thing that happens, in virtual time, so the same events give the same result.
//!
//! # What it checks
//! [`Sim::check`]: every runnable task is in exactly one place, no enqueue is decided twice, none
//! runs on a CPU that it may not use, and the accounting balances. [`Sim::settle`]: let alone,
//! every runnable task gets a CPU, and without [faults](Event::is_fault) no idle machine has a task
//! that waits. Whether a policy names only CPUs that the task may use is for the caller to judge,
//! by the count of those that bounced; so is whether any task should have been taken over.
//!
//! # Limits
//! One thread: orderings are the matter of the loom models. Latency is not modelled, nor are
//! standing orders, events for the policy, hotplug and other classes. Slices and ticks end when the
//! caller says so: see [`Sim::slice_ends_at`]. So does the scheduler thread's budget
//! ([`Event::Late`], [`Event::Back`]): no clock runs for it, nor for the patience with one
//! decision. In fallback the CPU of the scheduler thread takes no task, and a
//! task on a CPU's own DSQ stays there.

use std::boxed::Box;

use crate::abi::MAX_CPUS;
use crate::policy::Policy;
use crate::shared::Shared;
use crate::turn::{Turn, Turned};
use kernel::{Kernel, Place, Task};

mod checks;
mod event;
mod every_place;
mod kernel;
mod life;
mod memory;
mod ops;

pub use event::Event;
pub use every_place::EveryPlace;

/// Task ids of a simulation are below this.
pub const TASKS: usize = 4096;

/// The machine to simulate.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// 2 to [`MAX_CPUS`]. The last is the scheduler thread's.
    pub nr_cpus: u32,
    /// 1 to 16, a power of two.
    pub nr_rings: u32,
    /// Bytes of each ring, a power of two, at least 4096.
    pub ring_bytes: u64,
    /// 1 to [`TASKS`].
    pub nr_tasks: u32,
    /// Whether a waking task goes to an idle CPU without an enqueue record.
    pub builtin_idle: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            nr_cpus: 4,
            nr_rings: 1,
            ring_bytes: 1 << 16,
            nr_tasks: 64,
            builtin_idle: true,
        }
    }
}

/// Both sides of a simulated machine.
pub struct Sim<P> {
    /// Dropped before the memory it points into.
    shared: Box<Shared>,
    turn: Box<Turn<TASKS>>,
    policy: P,
    taken: u64,
    sent: u64,
    superseded: u64,
    kernel: Kernel,
}

impl<P> core::fmt::Debug for Sim<P> {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.debug_struct("Sim")
            .field("kernel", &self.kernel)
            .finish_non_exhaustive()
    }
}

/// The scheduler thread's side, and the whole.
impl<P: Policy> Sim<P> {
    /// A machine on which all tasks sleep and all CPUs are idle. Numbers out of range are brought
    /// into it.
    pub fn new(config: Config, policy: P) -> Self {
        let kernel = Kernel::new(Config {
            nr_cpus: config.nr_cpus.clamp(2, MAX_CPUS as u32),
            nr_rings: config.nr_rings.clamp(1, 16).next_power_of_two(),
            ring_bytes: config.ring_bytes.next_power_of_two().max(4096),
            nr_tasks: config.nr_tasks.clamp(1, TASKS as u32),
            ..config
        });
        let turn = Box::new_zeroed();
        Self {
            shared: Box::new(kernel.other_side()),
            // SAFETY: all bytes zero are a Turn in which nothing waits, by its own word.
            turn: unsafe { turn.assume_init() },
            policy,
            taken: 0,
            sent: 0,
            superseded: 0,
            kernel,
        }
    }

    /// Lets one thing happen.
    pub fn apply(&mut self, event: Event) {
        self.kernel.faults |= event.is_fault();
        match event {
            Event::Turn => {
                self.turn();
                self.answer_kicks();
            }
            Event::Misplace(by) => {
                self.kernel.misplace(by);
                self.turn();
                self.kernel.misplace(by.wrapping_neg());
                self.answer_kicks();
            }
            other => self.kernel.apply(other),
        }
    }

    /// One turn of the scheduler thread, as [`BpfScheduler::run`](crate::BpfScheduler::run) takes
    /// it. Nothing else: CPUs that are kicked look for work in
    /// [`answer_kicks`](Self::answer_kicks).
    pub fn turn(&mut self) -> Turned {
        let turned = self.turn.turn(&mut self.shared, &mut self.policy);
        self.taken += turned.taken as u64;
        self.sent += turned.handed_out as u64;
        self.superseded += turned.superseded as u64;
        self.kernel.note_kicks(self.shared.flush());
        // So that the accounting can be read off the rings at any time.
        self.shared.release();
        turned
    }

    /// Every CPU that was kicked looks for work.
    pub fn answer_kicks(&mut self) {
        self.kernel.answer_kicks();
    }

    /// The policy, to look at or to change.
    pub fn policy(&mut self) -> &mut P {
        &mut self.policy
    }

    /// The tasks that run, with their CPUs.
    pub fn running(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let on = |(cpu, id): (usize, &Option<u32>)| id.map(|id| (cpu as u32, id));
        self.kernel.running.iter().enumerate().filter_map(on)
    }

    /// Virtual time, ns.
    pub fn now(&self) -> u64 {
        self.kernel.now
    }

    /// When the slice of the task that runs on a CPU ends, ns; `None` if none runs there.
    pub fn slice_ends_at(&self, cpu: u32) -> Option<u64> {
        let id = (*self.kernel.running.get(cpu as usize)?)?;
        let task = &self.kernel.tasks[id as usize];
        Some(task.started_at.saturating_add(task.slice))
    }

    /// How many tasks are runnable and do not run.
    pub fn waiting(&self) -> usize {
        let on_dsq = |task: &&Task| matches!(task.place, Place::On(..));
        self.kernel.tasks.iter().filter(on_dsq).count()
    }
}
