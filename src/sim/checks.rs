//! What must hold.

use std::collections::BTreeSet;
use std::format;
use std::string::String;
use std::vec::Vec;

use core::sync::atomic::Ordering;

use super::kernel::{Kernel, Place, Task};
use super::{Event, Sim};
use crate::abi::{Counter, CpuState};
use crate::policy::Policy;
use crate::stats::{Accounting, Snapshot};

/// A policy may put the first task off for so many turns on end.
const PUT_OFF: u32 = 1;

impl<P: Policy> Sim<P> {
    /// The accounts of both sides so far.
    pub fn accounting(&self) -> Accounting {
        let kernel = &self.kernel;
        let counts = Snapshot {
            taken: self.taken,
            sent: self.sent,
            superseded: self.superseded,
            waiting: self.turn.waiting() as u64,
            ..kernel.snapshot()
        };
        Accounting {
            counts,
            left_in_ring: kernel.left_in_rings(),
            left_in_policy: counts.waiting,
            left_in_mailboxes: self.shared.backlog(),
        }
    }

    /// Says what is wrong, if anything is.
    ///
    /// # Errors
    /// The violated invariant, in words.
    pub fn check(&self) -> Result<(), String> {
        if let Some(violation) = &self.kernel.violation {
            return Err(violation.clone());
        }
        self.kernel.check_places()?;
        let accounting = self.accounting();
        let counts = accounting.counts;
        let right =
            self.kernel.faults || counts.taken == counts.sent + counts.superseded + counts.waiting;
        if !right || counts.sent != counts.answered() + accounting.left_in_mailboxes {
            return Err(format!("{accounting}"));
        }
        Ok(())
    }

    /// Lets the machine go on without anything new until every task that is runnable has had a CPU.
    ///
    /// # Errors
    /// The violated invariant: a task that never gets one, or one that the kernel side had to take
    /// over although nothing was wrong.
    pub fn settle(&mut self) -> Result<(), String> {
        self.kernel.apply(Event::Release);
        let mut vain_turns = 0;
        // Each round every CPU gets rid of a task; the rest is slack for tasks that only some CPUs
        // may run.
        for _ in 0..16 + 4 * self.kernel.tasks.len() {
            let sent = self.sent;
            self.apply(Event::Turn);
            self.check()?;
            let is_idle = self.running().next().is_none();
            if is_idle && self.waiting() == 0 {
                return Ok(());
            }
            // Decisions that find no task to carry out are progress as well.
            let is_vain = is_idle && self.sent == sent;
            vain_turns = if is_vain { vain_turns + 1 } else { 0 };
            if is_vain && self.kernel.faults {
                self.kernel.run_pending();
            } else if vain_turns > PUT_OFF {
                return Err(format!("{} tasks wait on an idle machine", self.waiting()));
            }
            let busy: Vec<u32> = self.running().map(|(cpu, _)| cpu).collect();
            for cpu in busy {
                self.apply(Event::Sleep(cpu));
                self.check()?;
            }
        }
        Err(format!("{} tasks wait and no end", self.waiting()))
    }
}

impl Kernel {
    pub(super) fn count(&self, counter: Counter) {
        // SAFETY: the first state of the array; all counts go there.
        let state = unsafe { self.cpus.start().cast::<CpuState>().as_ref() };
        state.counters[counter as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        // SAFETY: as in count().
        let state = unsafe { self.cpus.start().cast::<CpuState>().as_ref() };
        Snapshot::of_kernel_side(|counter| state.counters[counter as usize].load(Ordering::Relaxed))
    }

    pub(super) fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(super) fn check_places(&self) -> Result<(), String> {
        let on_dsqs = self.pending.len()
            + self.shared.len()
            + self.fallback.len()
            + self.own.iter().map(BTreeSet::len).sum::<usize>();
        let placed = |task: &&Task| matches!(task.place, Place::On(..));
        if on_dsqs != self.tasks.iter().filter(placed).count() {
            return Err(format!("{on_dsqs} entries on DSQs, but not as many tasks"));
        }
        for (cpu, id) in self.running.iter().enumerate() {
            if let Some(id) = id
                && self.tasks[*id as usize].place != Place::Running(cpu as u32)
            {
                return Err(format!("CPU {cpu} runs {id}, which is elsewhere"));
            }
        }
        let runs = |task: &&Task| matches!(task.place, Place::Running(_));
        let nr = self.tasks.iter().filter(runs).count();
        if nr != self.running.iter().flatten().count() {
            return Err(format!("{nr} tasks run, but not as many CPUs"));
        }
        Ok(())
    }
}
