//! A first-in first-out scheduler, in the verbs of `scx_rustland_core`.

use std::collections::VecDeque;
use std::mem::MaybeUninit;

use anyhow::Result;
use libbpf_rs::OpenObject;
use scx_metronome_core::{BpfScheduler, DispatchedTask, QueuedTask, RL_CPU_ANY, UserExitInfo};

/// How long a task may run, in ns.
const SLICE_NS: u64 = 5_000_000;

struct Scheduler<'a> {
    bpf: BpfScheduler<'a>,
    tasks: VecDeque<QueuedTask>,
}

impl<'a> Scheduler<'a> {
    fn init(open_object: &'a mut MaybeUninit<OpenObject>) -> Result<Self> {
        let exit_dump_len = 0;
        let partial = false;
        let debug = false;
        let bpf = BpfScheduler::init(open_object, exit_dump_len, partial, debug)?;
        Ok(Self {
            bpf,
            tasks: VecDeque::new(),
        })
    }

    fn consume_all_tasks(&mut self) -> Result<()> {
        while let Some(task) = self.bpf.dequeue_task()? {
            self.tasks.push_back(task);
        }
        Ok(())
    }

    /// Sends the first task to an idle CPU, or else to whichever becomes available first.
    fn dispatch_next_task(&mut self) -> Result<()> {
        let Some(task) = self.tasks.front() else {
            return Ok(());
        };
        let mut decision = DispatchedTask::new(task);
        let cpu = self.bpf.select_cpu(task.pid, task.cpu, 0);
        if cpu >= 0 {
            decision.cpu = cpu;
        } else {
            decision.flags |= RL_CPU_ANY;
        }
        decision.slice_ns = SLICE_NS;
        if self.bpf.dispatch_task(&decision).is_ok() {
            self.tasks.pop_front();
        }
        self.bpf.notify_complete(self.tasks.len() as u64);
        Ok(())
    }

    fn run(&mut self) -> Result<UserExitInfo> {
        while !self.bpf.exited() {
            self.consume_all_tasks()?;
            self.dispatch_next_task()?;
            if self.tasks.is_empty() {
                self.bpf.notify_complete(0);
            }
        }
        let info = self.bpf.shutdown_and_report();
        eprintln!("{}", self.bpf.accounting());
        info
    }
}

fn main() -> Result<()> {
    let mut open_object = MaybeUninit::uninit();
    while Scheduler::init(&mut open_object)?.run()?.should_restart() {}
    Ok(())
}
