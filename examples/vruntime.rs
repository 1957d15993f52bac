//! Weighted fair shares: who has had the least CPU time for its weight runs next.

use std::mem::MaybeUninit;

use anyhow::Result;
use scx_metronome::BpfScheduler;
use scx_metronome::abi::MAX_TASKS;
use scx_metronome::policy::Policy;
use scx_metronome::task::{Kind, QueuedTask};

/// What may be caught up on after a sleep, ns.
const LAG: u64 = 10_000_000;

struct Vruntime {
    /// By task id: CPU time already charged, and virtual runtime.
    tasks: Vec<(u64, u64)>,
    /// The virtual runtime of the task that got a CPU last.
    now: u64,
}

impl Policy for Vruntime {
    fn deadline(&mut self, task: &QueuedTask) -> u64 {
        let (charged, vruntime) = &mut self.tasks[task.id as usize];
        *vruntime += task.sum_exec_runtime.saturating_sub(*charged) * 100 / task.weight;
        *charged = task.sum_exec_runtime;
        *vruntime = (*vruntime).max(self.now.saturating_sub(LAG));
        *vruntime
    }

    fn slice_ns(&mut self, id: u32, waiting: usize) -> u64 {
        self.now = self.now.max(self.tasks[id as usize].1);
        (20_000_000 / (waiting as u64 + 1)).max(1_000_000)
    }

    fn adopt(&mut self, id: u32, _nr: u64) -> u64 {
        self.tasks[id as usize].1
    }

    fn event(&mut self, task: &QueuedTask) {
        // The id will be another task's.
        self.tasks[task.id as usize] = (0, 0);
    }

    fn events(&self) -> u32 {
        Kind::Gone.bit()
    }
}

fn main() -> Result<()> {
    let mut policy = Vruntime {
        tasks: vec![(0, 0); MAX_TASKS],
        now: 0,
    };
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false)?;
    let info = scheduler.run(&mut policy)?;
    eprintln!("{}\n{info}", scheduler.books());
    Ok(())
}
