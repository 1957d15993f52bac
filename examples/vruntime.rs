//! Weighted fair shares: the task that has had the least CPU time for its share runs next.

use std::mem::MaybeUninit;

use anyhow::Result;
use scx_metronome_core::BpfScheduler;
use scx_metronome_core::policy::Policy;
use scx_metronome_core::task::{MAX_TASKS, QueuedTask, SHARE};

/// What may be caught up on after a sleep, ns.
const LAG: u64 = 10_000_000;

/// What is kept of a task.
#[derive(Clone, Copy, Default)]
struct Account {
    /// Tells it from others that had its id before.
    epoch: u32,
    /// CPU time that has been charged already, ns.
    charged: u64,
    vruntime: u64,
}

struct Vruntime {
    /// By task id.
    accounts: Vec<Account>,
    /// The virtual runtime of the task that got a CPU last.
    now: u64,
}

impl Policy for Vruntime {
    fn deadline(&mut self, task: &QueuedTask) -> u64 {
        let account = &mut self.accounts[task.id as usize];
        if account.epoch != task.epoch() {
            *account = Account {
                epoch: task.epoch(),
                charged: task.sum_exec_runtime,
                vruntime: self.now,
            };
        }
        account.vruntime +=
            task.sum_exec_runtime.saturating_sub(account.charged) * 100 * SHARE / task.share();
        account.charged = task.sum_exec_runtime;
        account.vruntime = account.vruntime.max(self.now.saturating_sub(LAG));
        account.vruntime
    }

    fn slice_ns(&mut self, id: u32, waiting: usize) -> u64 {
        self.now = self.now.max(self.accounts[id as usize].vruntime);
        (20_000_000 / (waiting as u64 + 1)).max(1_000_000)
    }

    fn adopt(&mut self, id: u32, _nr: u64) -> u64 {
        self.accounts[id as usize].vruntime
    }
}

fn main() -> Result<()> {
    let mut policy = Vruntime {
        accounts: vec![Account::default(); MAX_TASKS],
        now: 0,
    };
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false)?;
    let info = scheduler.run(&mut policy)?;
    eprintln!("{}\n{info}", scheduler.accounting());
    Ok(())
}
