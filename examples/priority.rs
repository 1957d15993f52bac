//! Two classes: tasks of negative nice run before all others, and displace them.

use std::mem::MaybeUninit;

use anyhow::Result;
use scx_metronome::BpfScheduler;
use scx_metronome::policy::{Due, Machine, Place, Policy, RunningKind};
use scx_metronome::task::QueuedTask;

/// Nice 0.
const NORMAL: u64 = 100;

/// Deadlines of the lower class begin here; those of both are numbers of arrival.
const LOWER: u64 = 1 << 40;

struct Priority {
    arrivals: u64,
}

impl Policy for Priority {
    fn deadline(&mut self, task: &QueuedTask) -> u64 {
        self.arrivals += 1;
        if task.weight > NORMAL {
            self.arrivals
        } else {
            LOWER + self.arrivals
        }
    }

    fn slice_ns(&mut self, _id: u32, _waiting: usize) -> u64 {
        5_000_000
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
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false)?;
    let info = scheduler.run(&mut Priority { arrivals: 0 })?;
    eprintln!("{}\n{info}", scheduler.books());
    Ok(())
}
