//! A queue for each last-level cache, in effect: a task stays under the cache that has its data
//! while a CPU there can take it.

use std::collections::HashSet;
use std::mem::MaybeUninit;

use anyhow::Result;
use scx_metronome_core::BpfScheduler;
use scx_metronome_core::policy::fifo::Fifo;
use scx_metronome_core::policy::{Due, Machine, Place, Policy};
use scx_metronome_core::task::QueuedTask;

struct PerLlc {
    fifo: Fifo,
    /// By CPU: the first CPU under its last-level cache.
    llcs: Vec<u32>,
    /// Whether the one that is due is kept under its cache, and how many were not and were.
    keeps: bool,
    placed: [u64; 2],
}

impl PerLlc {
    fn find(&self, due: &Due, machine: &Machine<'_>) -> Option<u32> {
        let home = self.llcs.get(due.cpu as usize);
        let cpus = || (0..machine.nr_cpus()).filter(|cpu| machine.is_worker(*cpu));
        let mut near = cpus().filter(|cpu| self.llcs.get(*cpu as usize) == home);
        if cpus().any(|cpu| machine.is_idle(cpu)) {
            return near.find(|cpu| machine.is_idle(*cpu));
        }
        // All CPUs are busy: the shortest queue, its last CPU among equals. Behind four others it
        // would not wait.
        let queue = |cpu: &u32| (machine.backlog(*cpu), *cpu as i32 != due.cpu);
        near.min_by_key(queue)
            .filter(|cpu| machine.backlog(*cpu) < 4)
    }
}

impl Policy for PerLlc {
    fn deadline(&mut self, task: &QueuedTask) -> u64 {
        self.fifo.deadline(task)
    }

    fn slice_ns(&mut self, id: u32, waiting: usize) -> u64 {
        self.placed[usize::from(self.keeps)] += 1;
        self.fifo.slice_ns(id, waiting)
    }

    fn place(&mut self, due: &Due, machine: &Machine<'_>) -> Place {
        // A task that may not run everywhere goes where the kernel side knows that it may.
        let anywhere = u32::from(due.nr_cpus_allowed) >= machine.nr_cpus();
        let found = self.find(due, machine).filter(|_| anywhere);
        self.keeps = found.is_some();
        found.map_or(Place::First, Place::On)
    }
}

fn main() -> Result<()> {
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false)?;
    let cpus = &scheduler.topology().cpus;
    let mut policy = PerLlc {
        fifo: Fifo::new(5_000_000),
        llcs: cpus.iter().map(|cpu| cpu.llc).collect(),
        keeps: false,
        placed: [0; 2],
    };
    let info = scheduler.run(&mut policy)?;
    let [left, kept] = policy.placed;
    let caches = HashSet::<u32>::from_iter(policy.llcs).len();
    eprintln!(
        "kept {kept} left {left} caches {caches}\n{}\n{info}",
        scheduler.accounting()
    );
    Ok(())
}
