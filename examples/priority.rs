//! Two classes: tasks of negative nice run before all others, and displace them.
//!
//! How much later than asked for a thread of nice -1 runs that sleeps 3 ms at a time, beside 16
//! hogs on 4 CPUs of a real kernel (7.3), in guest time: p99 1.99 ms, by the default scheduler
//! 2.62; medians of three rounds of 300 naps. Each time an enqueue record goes through the
//! scheduler thread's CPU, and in guest time one CPU is emulated after the other, so that each
//! hand-over between two CPUs that are busy takes up to 1 ms (`src/latency.rs`). So the thread
//! spins here: parked, it would have to be woken, too. A task that must
//! not wait for a decision has a standing order (`src/orders.rs`). The test prints it:
//!
//! ```text
//! vm/test loads::a_task_that_preempts_is_sooner
//! ```

use std::mem::MaybeUninit;

use anyhow::Result;
use scx_metronome_core::Builder;
use scx_metronome_core::policy::{Due, Machine, Place, Policy, RunningKind};
use scx_metronome_core::task::QueuedTask;
use scx_metronome_core::wait::Wait;

/// Nice 0.
const NORMAL: u32 = 100;

/// How long a task may run, in ns.
const SLICE_NS: u64 = 5_000_000;

/// Deadlines of the lower class begin here.
const LOWER: u64 = 1 << 62;

/// In both classes a deadline is a slice later than the one before. While a task runs its deadline
/// moves on, so it is behind the next when its slice is over, and not before.
struct Priority {
    last: u64,
}

impl Policy for Priority {
    fn deadline(&mut self, task: &QueuedTask) -> u64 {
        self.last += SLICE_NS;
        if task.weight > NORMAL {
            self.last
        } else {
            LOWER + self.last
        }
    }

    fn slice_ns(&mut self, _id: u32, _waiting: usize) -> u64 {
        SLICE_NS
    }

    fn place(&mut self, due: &Due, machine: &Machine<'_>) -> Place {
        let idle = (0..machine.nr_cpus()).any(|cpu| machine.is_idle(cpu));
        if due.deadline >= LOWER || idle {
            return Place::First;
        }
        let gives_way = |cpu: &u32| {
            machine.backlog(*cpu) == 0
                && machine.running(*cpu).is_some_and(|running| {
                    running.kind == RunningKind::Decided && running.deadline >= LOWER
                })
        };
        let victim = (0..machine.nr_cpus()).find(gives_way);
        victim.map_or(Place::First, Place::Preempt)
    }
}

fn main() -> Result<()> {
    let mut object = MaybeUninit::uninit();
    // A task of the upper class waits for the answer: the thread spins, so that none has to wake
    // it.
    let mut scheduler = Builder::new().wait(Wait::Spin).attach(&mut object)?;
    let info = scheduler.run(&mut Priority { last: 0 })?;
    eprintln!("{}\n{info}", scheduler.accounting());
    Ok(())
}
