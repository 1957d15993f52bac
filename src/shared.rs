//! The memory between the two sides as one thing: the ring, the mailboxes, what the CPUs publish, and the kick list.
//!
//! # Who needs a kick
//! A decision in a mailbox is found when its CPU next looks for work. A CPU that is idle does not look until it is kicked,
//! which costs a system call, so only such CPUs are, and all those of a turn together.
//!
//! Each CPU publishes `idle_seq`, which is odd while it is idle and grows with every look for work that finds none. We
//! remember the reading at which a CPU was promised a kick, and promise no second one at the same reading. That loses no
//! wake-up (Dekker's argument): we publish the decision, pass a full barrier, and read `idle_seq`; the CPU adds to
//! `idle_seq`, a full barrier, and looks into its mailboxes once more (`publish_idle()` in `bpf/metronome.bpf.c`). Either
//! we see the new value and kick, or the CPU sees the decision.
#![deny(clippy::indexing_slicing)]

use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use heapless::Vec;

use crate::abi::{
    Control, CpuState, DECISION_ANY_CPU, KICK_PREEMPT, MAILBOX_SLOTS, MAX_CPUS,
    SHARED_MAILBOX_SLOTS,
};
use crate::mailbox::{Decision, Full, Mailbox};
use crate::ring::Ring;
use crate::task::{DispatchedTask, QueuedTask, RL_CPU_ANY};

/// Where the mapped arrays are.
#[derive(Clone, Copy, Debug)]
pub struct SharedMemory {
    /// One mailbox for each CPU, in a row.
    pub mailboxes: NonNull<u8>,
    /// The mailbox of all CPUs.
    pub shared_mailbox: NonNull<u8>,
    /// One state for each CPU, in a row.
    pub cpus: NonNull<CpuState>,
    /// The control page.
    pub control: NonNull<Control>,
    /// How many CPUs there are: the bound of their numbers.
    pub nr_cpus: u32,
    /// The CPU of the scheduler thread, which gets no decisions.
    pub agent_cpu: u32,
}

/// A CPU as we know it.
#[derive(Debug)]
struct Cpu {
    mailbox: Mailbox,
    /// The reading of `idle_seq` at which it was promised a kick.
    promised: u64,
}

/// Our side of the shared memory.
#[derive(Debug)]
pub struct Shared {
    memory: SharedMemory,
    ring: Ring,
    shared_mailbox: Mailbox,
    cpus: Vec<Cpu, MAX_CPUS>,
    /// CPUs that got mail since the last flush.
    mailed: Vec<u16, MAX_CPUS>,
    /// Decisions for any CPU since the last flush.
    shared_mailed: u32,
    /// Kicks promised since the last flush.
    kicks: Vec<u32, MAX_CPUS>,
    /// Where the search for an idle CPU begins.
    cursor: u32,
    heartbeat: u64,
}

// SAFETY: the pointers are to shared memory that any thread may access, and `&mut self` keeps users one at a time.
unsafe impl Send for Shared {}

impl Shared {
    /// Takes over the mapped memory of one loaded object.
    ///
    /// # Safety
    /// Until this is dropped, `memory` must describe live, writable mappings of the arrays of one loaded object, never
    /// used before: `nr_cpus` mailboxes and states, `nr_cpus` at most [`MAX_CPUS`].
    pub unsafe fn new(memory: SharedMemory, ring: Ring) -> Self {
        // SAFETY: the layout is that of `struct shared_mailbox`, by the caller's word.
        let shared_mailbox = unsafe { Mailbox::new(memory.shared_mailbox, SHARED_MAILBOX_SLOTS) };
        let mut cpus = Vec::new();
        for cpu in 0..memory.nr_cpus as usize {
            // A mailbox is a head of a line and its slots of a line each.
            // SAFETY: within the array of `nr_cpus` mailboxes.
            let at = unsafe { memory.mailboxes.add(cpu * 64 * (1 + MAILBOX_SLOTS)) };
            // SAFETY: the layout is that of `struct mailbox`, by the caller's word.
            let mailbox = unsafe { Mailbox::new(at, MAILBOX_SLOTS) };
            // 0 is even: never a reading of an idle CPU.
            if cpus
                .push(Cpu {
                    mailbox,
                    promised: 0,
                })
                .is_err()
            {
                break;
            }
        }
        Self {
            memory,
            ring,
            shared_mailbox,
            cpus,
            mailed: Vec::new(),
            shared_mailed: 0,
            kicks: Vec::new(),
            cursor: 0,
            heartbeat: 0,
        }
    }

    /// The ring, to read its counts.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// How many CPUs there are: the bound of their numbers.
    pub fn nr_cpus(&self) -> u32 {
        self.memory.nr_cpus
    }

    /// The CPU of the scheduler thread, which gets no decisions.
    pub fn agent_cpu(&self) -> u32 {
        self.memory.agent_cpu
    }

    /// Hands each waiting task to `each`; see [`Ring::drain`].
    pub fn drain(&mut self, limit: usize, each: impl FnMut(&QueuedTask)) -> usize {
        self.ring.drain(limit, each)
    }

    /// Takes one waiting task; see [`Ring::dequeue`].
    pub fn dequeue(&mut self) -> Option<QueuedTask> {
        self.ring.dequeue()
    }

    /// Puts a decision into the mailbox where it belongs: of the CPU it names, or of all. A pinned task goes to its own
    /// CPU in any case. If that mailbox is full, the shared one takes the decision, and the kernel side sees to affinity.
    ///
    /// CPUs that must be kicked for it are by [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`Full`] if there is room nowhere.
    ///
    /// # Cost
    /// One or two mailbox pushes and a load of the CPU's state.
    pub fn dispatch(&mut self, task: &DispatchedTask) -> Result<(), Full> {
        let mut decision = Decision {
            id: task.id,
            generation: task.generation,
            slice_ns: task.slice_ns,
            vtime: task.vtime,
            flags: 0,
        };
        let named = task.flags & RL_CPU_ANY == 0 || task.pinned;
        if named && task.cpu as u32 != self.memory.agent_cpu && self.push_to(task.cpu, decision) {
            return Ok(());
        }
        decision.flags = DECISION_ANY_CPU;
        self.shared_mailbox.push(decision)?;
        self.shared_mailed += 1;
        Ok(())
    }

    fn push_to(&mut self, cpu: i32, decision: Decision) -> bool {
        let Some(entry) = self.cpus.get_mut(cpu as usize) else {
            return false;
        };
        if entry.mailbox.push(decision).is_err() {
            return false;
        }
        if self.promise(cpu as u32) || self.mailed.push(cpu as u16).is_ok() {
            return true;
        }
        // More mail in a turn than there are CPUs, so some are listed twice: a kick too many does no harm.
        self.kicks.push(cpu as u32).is_ok()
    }

    /// How many decisions for any CPU have not been taken yet.
    pub fn shared_backlog(&self) -> u64 {
        self.shared_mailbox.len()
    }

    /// An idle CPU with no mail that has not been promised a kick since it became idle: `prefer` if it is one, else any.
    ///
    /// # Cost
    /// One load for each CPU, of lines that change only when a CPU goes idle or stops being so.
    pub fn idle_cpu(&mut self, prefer: i32) -> Option<u32> {
        if self.is_free(prefer as u32) {
            return Some(prefer as u32);
        }
        let nr_cpus = self.memory.nr_cpus;
        for step in 0..nr_cpus {
            let cpu = (self.cursor + step) % nr_cpus;
            if self.is_free(cpu) {
                self.cursor = cpu + 1;
                return Some(cpu);
            }
        }
        None
    }

    /// Whether any CPU is idle, promised or not. Same cost as [`idle_cpu`](Self::idle_cpu).
    pub fn any_idle(&self) -> bool {
        (0..self.memory.nr_cpus).any(|cpu| self.idle_seq(cpu) & 1 == 1)
    }

    /// Ends a turn: beats the heart, and writes the list of CPUs to kick. Returns how many there are; if any, the caller
    /// runs the program `kick_cpus`.
    ///
    /// # Cost
    /// One fence if anything was dispatched.
    pub fn flush(&mut self) -> u32 {
        self.beat();
        if self.mailed.is_empty() && self.shared_mailed == 0 && self.kicks.is_empty() {
            return 0;
        }
        // ORDERING: full, with the addition in publish_idle(); see the module.
        fence(Ordering::SeqCst);
        while let Some(cpu) = self.mailed.pop() {
            self.promise(u32::from(cpu));
        }
        for _ in 0..core::mem::take(&mut self.shared_mailed).min(self.memory.nr_cpus) {
            let Some(cpu) = self.idle_cpu(-1) else { break };
            self.promise(cpu);
        }
        self.write_kicks()
    }

    fn beat(&mut self) {
        self.heartbeat += 1;
        self.control()
            .heartbeat
            .store(self.heartbeat, Ordering::Relaxed);
    }

    fn write_kicks(&mut self) -> u32 {
        let nr = self.kicks.len() as u32;
        let control = self.control();
        for (slot, kick) in control.kicks.iter().zip(&self.kicks) {
            slot.store(*kick & !KICK_PREEMPT, Ordering::Relaxed);
        }
        control.nr_kicks.store(nr, Ordering::Relaxed);
        self.kicks.clear();
        nr
    }

    /// Promises `cpu` a kick if it is idle and has not been promised one since.
    fn promise(&mut self, cpu: u32) -> bool {
        let seq = self.idle_seq(cpu);
        let Some(entry) = self.cpus.get_mut(cpu as usize) else {
            return false;
        };
        if seq & 1 == 0 || entry.promised == seq || self.kicks.push(cpu).is_err() {
            return false;
        }
        entry.promised = seq;
        true
    }

    fn is_free(&self, cpu: u32) -> bool {
        let seq = self.idle_seq(cpu);
        seq & 1 == 1
            && self
                .cpus
                .get(cpu as usize)
                .is_some_and(|entry| entry.promised != seq)
    }

    /// 0, which is even, for a CPU that does not exist.
    fn idle_seq(&self, cpu: u32) -> u64 {
        // ORDERING: relaxed: flush() has the fence, and before it the value is a hint.
        self.state(cpu)
            .map_or(0, |state| state.idle_seq.load(Ordering::Relaxed))
    }

    fn state(&self, cpu: u32) -> Option<&CpuState> {
        (cpu < self.memory.nr_cpus).then(|| {
            // SAFETY: within the array, by the contract of `new`.
            let at = unsafe { self.memory.cpus.add(cpu as usize) };
            // SAFETY: live and aligned by the contract of `new`; all its fields are atomics.
            unsafe { at.as_ref() }
        })
    }

    fn control(&self) -> &Control {
        // SAFETY: live and aligned by the contract of `new`; all its fields are atomics.
        unsafe { self.memory.control.as_ref() }
    }

    /// How many decisions have not been taken from any mailbox yet.
    pub fn backlog(&self) -> u64 {
        self.cpus.iter().map(|cpu| cpu.mailbox.len()).sum::<u64>() + self.shared_mailbox.len()
    }
}
