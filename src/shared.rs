//! The memory between the two sides as one thing: the rings, the mailboxes, what the CPUs publish,
//! and the kick list.
//!
//! # Which CPUs need a kick
//! A decision in a mailbox is found when its CPU next looks for work. A CPU that is idle does not
//! look until it is kicked, which costs a system call, so only such CPUs are, and all those of a
//! turn together.
//!
//! Each CPU publishes `idle_seq`, which is odd while it is idle and grows with every look for work
//! that finds none. We remember the reading for which a kick is pending, and note no second one at
//! the same reading. That loses no wake-up (Dekker's argument): we publish the
//! decision, pass a full barrier, and read `idle_seq`; the CPU adds to `idle_seq`, a full barrier,
//! and looks into its mailboxes once more (`publish_idle()` in `bpf/metronome.bpf.c`). Either
//! we see the new value and kick, or the CPU sees the decision.
//!
//! | `idle_seq`            | `kick_pending` | the CPU                                       | a decision for it, at [`Shared::flush`]      |
//! |-----------------------|----------------|-----------------------------------------------|----------------------------------------------|
//! | even                  | any            | runs something, and will look when it is done | no kick                                      |
//! | odd                   | another number | idle; has looked, and found nothing           | a kick: `kick_pending` = `idle_seq`          |
//! | odd                   | the same       | idle; its kick is on the way                  | no kick: the one on the way finds it         |
//!
//! | `idle_seq` | when, in `publish_idle()`                  | to   | and                                                       |
//! |------------|--------------------------------------------|------|-----------------------------------------------------------|
//! | even       | it has run out of work                     | odd  | looks into its mailboxes once more, and kicks itself      |
//! | odd        | it was kicked, looked, and found nothing   | odd, + 2 | the same: no kick is pending any more                 |
//! | odd        | it has got work                            | even | nothing                                                   |
//! | even       | it goes from one task to the next          | even | not even a store                                          |
//!
//! `make loom` runs this against a model of `publish_idle()`, and shows that neither barrier can be
//! weaker (`src/models.rs`: two decisions in two turns for one CPU that goes idle, and up to five
//! preemptions).
//!
//! A bit per CPU says the same in less space, so that the search for an idle CPU costs 16 words and
//! not 1,024 cache lines. It is set before `idle_seq` is made odd, so the argument holds for it as
//! well. The bit of a CPU for which a kick is pending stays until that CPU has woken up: so we
//! strike it out of a set of our own ([`idle`](crate::idle)), and look at each such CPU once in a
//! turn. [`Shared::flush`] begins, ahead of its barrier, with all CPUs in that set.
//!
//! A pending kick is a claim, too: only this thread notes kicks, so a plain store is enough.
//!
//! # What is looked after
//! Positions in the mailboxes that neither side wrote would stop them for ever: a look at one of
//! them in every 64th turn finds them ([`mailbox`](crate::mailbox)). That of our own CPU gets no
//! decisions, so it does not matter.
//!
//! # Why several rings
//! A ring has one spinlock, which all CPUs that enqueue take in turn: with two that do nothing
//! else, a record costs each of them 224 ns instead of 52 (`benches/contention.rs`). How many CPUs
//! one ring bears is worked out at `nr_rings()` in `src/host/builder.rs`: 16.
//!
//! Each task belongs to one ring by its id, so that its records stay in order; between tasks there
//! is no order to keep. A ring for each last-level cache would keep the lock's line within it, but
//! a task that moves to another cache would leave an older record in a ring that is read later: the
//! older enqueue would replace the newer one in the queue, its decision would be dropped as
//! stale, and the task would wait until the kernel side loses patience. Nor do caches have 16 CPUs
//! each: some have 2, some 64, and the busiest would have one ring for itself. Dense ids spread
//! evenly.
#![deny(clippy::indexing_slicing)]

use core::fmt;
use core::ptr::NonNull;

use heapless::Vec;

use crate::abi::{
    Control, CpuState, DECISION_ANY_CPU, DECISION_PREEMPT, KICK_PREEMPT, MAILBOX_SLOTS, MAX_CPUS,
    MAX_RINGS, MachineState, MailboxHead, SHARED_MAILBOX_SLOTS, Slot,
};
use crate::idle::{CpuMap, CpuPlace, CpuSet};
use crate::latency::{Clock, Sampler, is_sampled};
use crate::mailbox::{Decision, Full, Mailbox};
use crate::orders::{Order, Orders};
use crate::ring::{Next, Ring, RingCounts};
use crate::running::Running;
use crate::sync::{AtomicU64, Guard, Ordering, fence, order};
use crate::task::{DispatchedTask, Kinds, Place, QueuedTask, RL_CPU_ANY, RL_PREEMPT};
use crate::wait;

/// Where the mapped arrays are.
#[derive(Clone, Copy, Debug)]
pub struct SharedMemory {
    /// One mailbox for each CPU, in a row.
    pub mailboxes: NonNull<u8>,
    /// The mailbox of all CPUs.
    pub shared_mailbox: NonNull<u8>,
    /// One state for each CPU, in a row.
    pub cpus: NonNull<CpuState>,
    /// What is published about the machine as a whole.
    pub machine: NonNull<MachineState>,
    /// The standing orders, one for each task id.
    pub orders: NonNull<AtomicU64>,
    /// The control page.
    pub control: NonNull<Control>,
    /// How many CPUs there are: the bound of their numbers.
    pub nr_cpus: u32,
    /// The CPU of the scheduler thread, which gets no decisions.
    pub agent_cpu: u32,
}

/// Every so many turns one mailbox is looked at.
const TURNS_PER_CHECK: u64 = 64;

/// Whose a mailbox is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailboxOf {
    /// That of one CPU.
    Cpu(u32),
    /// The one that all share.
    All,
}

impl fmt::Display for MailboxOf {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(cpu) => write!(out, "the mailbox of CPU {cpu}"),
            Self::All => out.write_str("the mailbox of all CPUs"),
        }
    }
}

/// A CPU as we know it.
#[derive(Debug)]
struct Cpu {
    mailbox: Mailbox,
    /// The reading of `idle_seq` for which a kick is pending.
    kick_pending: u64,
}

impl Cpu {
    /// Whether it is idle and has neither mail nor a pending kick, at this reading of its
    /// `idle_seq`.
    fn is_free(&self, seq: u64) -> bool {
        // One that leaves its mail unread, as a CPU does that is being taken offline, gets no more.
        seq & 1 == 1 && self.kick_pending != seq && self.mailbox.is_empty()
    }
}

/// Our side of the shared memory.
#[derive(Debug)]
pub struct Shared {
    memory: SharedMemory,
    rings: Vec<Ring, MAX_RINGS>,
    /// The ring that is looked at first next time.
    next_ring: usize,
    orders: Orders,
    shared_mailbox: Mailbox,
    cpus: Vec<Cpu, MAX_CPUS>,
    /// CPUs that got mail since the last flush.
    mailed: Vec<u16, MAX_CPUS>,
    /// Decisions for any CPU since the last flush.
    shared_mailed: u32,
    /// Kicks noted since the last flush.
    kicks: Vec<u32, MAX_CPUS>,
    map: CpuMap,
    /// The CPUs that take tasks.
    workers: CpuSet,
    /// Of these, the ones that were found with neither mail nor a pending kick in this turn, or
    /// not looked at.
    open: CpuSet,
    heartbeat: u64,
    sampler: Sampler,
    /// The mailbox that is looked at next: of a CPU, or behind them the shared one.
    checked: usize,
    bad_mailbox: Option<MailboxOf>,
    /// The fallback for which `marks` were noted.
    marked: u64,
    /// How far each ring must be read to know all that was asked before the fallback.
    marks: Vec<u64, MAX_RINGS>,
}

// SAFETY: the pointers are to shared memory that any thread may access, and `&mut self` keeps users
// one at a time.
unsafe impl Send for Shared {}

impl Shared {
    /// Takes over the mapped memory of one loaded object, and its rings, of which those beyond
    /// [`MAX_RINGS`] are ignored.
    ///
    /// # Safety
    /// Until this is dropped, `memory` must describe live, writable mappings of the arrays of one
    /// loaded object, never used before: `nr_cpus` mailboxes and states, `nr_cpus` from 1 to
    /// [`MAX_CPUS`].
    pub unsafe fn new(memory: SharedMemory, rings: impl IntoIterator<Item = Ring>) -> Self {
        // SAFETY: the layout is that of `struct shared_mailbox`, by the caller's word.
        let shared_mailbox = unsafe { Mailbox::new(memory.shared_mailbox, SHARED_MAILBOX_SLOTS) };
        let mailbox_bytes = size_of::<MailboxHead>() + MAILBOX_SLOTS * size_of::<Slot>();
        let mut cpus = Vec::new();
        for cpu in 0..memory.nr_cpus as usize {
            // SAFETY: within the array of `nr_cpus` mailboxes.
            let at = unsafe { memory.mailboxes.add(cpu * mailbox_bytes) };
            // SAFETY: the layout is that of `struct mailbox`, by the caller's word.
            let mailbox = unsafe { Mailbox::new(at, MAILBOX_SLOTS) };
            // 0 is even: never a reading of an idle CPU.
            if cpus
                .push(Cpu {
                    mailbox,
                    kick_pending: 0,
                })
                .is_err()
            {
                break;
            }
        }
        let mut workers = CpuSet::below(memory.nr_cpus);
        workers.remove(memory.agent_cpu);
        Self {
            memory,
            rings: rings.into_iter().take(MAX_RINGS).collect(),
            next_ring: 0,
            // SAFETY: live, of the right size and ours alone, by the caller's word.
            orders: unsafe { Orders::new(memory.orders) },
            shared_mailbox,
            cpus,
            mailed: Vec::new(),
            shared_mailed: 0,
            kicks: Vec::new(),
            map: const { CpuMap::flat() },
            workers,
            open: workers,
            heartbeat: 0,
            sampler: Sampler::default(),
            checked: 0,
            bad_mailbox: None,
            marked: 0,
            marks: Vec::new(),
        }
    }

    /// Has the stages of some tasks measured by this clock, which must be that of the kernel side;
    /// see [`latency`](crate::latency).
    pub fn set_clock(&mut self, clock: Clock) {
        self.sampler.set_clock(clock);
    }

    /// Says where the CPUs are, in the order of their numbers. Until then all count as alike.
    pub fn set_places(&mut self, places: &[CpuPlace]) {
        let nr = (self.memory.nr_cpus as usize).min(places.len());
        self.map.set(places.get(..nr).unwrap_or(places));
    }

    /// Says which CPUs are online. Until then all count as such.
    pub fn set_online(&mut self, online: &[u32]) {
        self.workers = CpuSet::default();
        let is_worker = |cpu: &&u32| **cpu != self.memory.agent_cpu && **cpu < self.memory.nr_cpus;
        for cpu in online.iter().filter(is_worker) {
            self.workers.insert(*cpu);
        }
        self.open = self.workers;
    }

    /// Whether the CPU takes tasks: it is online, and not that of the scheduler thread.
    pub fn is_worker(&self, cpu: u32) -> bool {
        self.workers.contains(cpu)
    }

    /// What the rings have seen besides tasks.
    pub fn ring_counts(&self) -> RingCounts {
        let sum = |sum: RingCounts, ring: &Ring| sum.plus(ring.counts());
        self.rings.iter().fold(RingCounts::default(), sum)
    }

    /// How many CPUs there are: the bound of their numbers.
    pub fn nr_cpus(&self) -> u32 {
        self.memory.nr_cpus
    }

    /// The CPU of the scheduler thread, which gets no decisions.
    pub fn agent_cpu(&self) -> u32 {
        self.memory.agent_cpu
    }

    /// Hands records to `each`, at most `limit` of them; see [`Ring::drain`]. The rings take turns
    /// in being first.
    ///
    /// # Cost
    /// Of each ring a load of its producer position; per record as [`Ring::drain`], and whether it
    /// is [sampled](is_sampled). No copy, no allocation, no system call.
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(&QueuedTask)) -> usize {
        self.drain_with_orders(limit, |task, _, _| each(task))
    }

    /// The same, with a look at the record behind each, and the standing orders at hand.
    ///
    /// # Cost
    /// As [`drain`](Self::drain), with [`Ring::drain_ahead`].
    pub fn drain_with_orders(
        &mut self,
        limit: usize,
        mut each: impl FnMut(&QueuedTask, Next<'_>, &mut Orders),
    ) -> usize {
        let Self {
            rings,
            orders,
            sampler,
            ..
        } = self;
        let mut taken = 0;
        for _ in 0..rings.len() {
            if taken == limit {
                break;
            }
            if let Some(ring) = rings.get_mut(self.next_ring) {
                taken += ring.drain_ahead(limit - taken, |task, next| {
                    sampler.see(task);
                    each(task, next, orders);
                });
            }
            self.next_ring += 1;
            if self.next_ring >= rings.len() {
                self.next_ring = 0;
            }
        }
        taken
    }

    /// Gives what was read from the rings back to the producers; see [`Ring::release`].
    pub fn release(&mut self) {
        self.rings.iter_mut().for_each(Ring::release);
    }

    /// Takes one waiting task by value.
    ///
    /// # Cost
    /// As [`drain`](Self::drain) with one record, and a copy of 120 bytes.
    pub fn dequeue(&mut self) -> Option<QueuedTask> {
        let mut dequeued = None;
        self.drain(1, |task| dequeued = Some(*task));
        dequeued
    }

    /// Puts a decision into the mailbox where it belongs: of the CPU it names, or of all. A pinned
    /// task goes to its own CPU in any case. If that mailbox is full, the shared one takes the
    /// decision, and the kernel side sees to affinity.
    ///
    /// CPUs that must be kicked for it are by [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`Full`] if there is room nowhere.
    ///
    /// # Cost
    /// One or two mailbox pushes and a load of the CPU's state.
    pub fn dispatch(&mut self, task: &DispatchedTask) -> Result<(), Full> {
        let decision = Decision {
            id: task.id,
            generation: task.generation,
            slice_ns: task.slice_ns,
            vtime: task.vtime,
            flags: 0,
        };
        let place = if task.flags & RL_CPU_ANY != 0 && !task.pinned {
            Place::First
        } else if task.flags & RL_PREEMPT != 0 {
            Place::Preempt(task.cpu as u32)
        } else {
            Place::On(task.cpu as u32)
        };
        self.send(decision, place)
    }

    /// Posts a decision: to the CPU of `place`, or to all if it has none, there is no such CPU, it
    /// is the scheduler thread's, or its mailbox is full.
    ///
    /// # Errors
    /// [`Full`] if there is room nowhere.
    pub(crate) fn send(&mut self, mut decision: Decision, place: Place) -> Result<(), Full> {
        let named = match place {
            Place::On(cpu) => Some((cpu, 0)),
            Place::Preempt(cpu) => Some((cpu, DECISION_PREEMPT)),
            Place::First | Place::Later => None,
        };
        if let Some((cpu, flags)) = named.filter(|(cpu, _)| *cpu != self.memory.agent_cpu) {
            decision.flags = flags;
            if self.push_to(cpu, decision) {
                return Ok(());
            }
        }
        decision.flags = DECISION_ANY_CPU;
        if is_sampled(decision.id, decision.generation) {
            self.sampler.stamp(&mut self.shared_mailbox, &decision);
        }
        self.shared_mailbox.push(decision)?;
        self.shared_mailed += 1;
        Ok(())
    }

    fn push_to(&mut self, cpu: u32, decision: Decision) -> bool {
        let Some(entry) = self.cpus.get_mut(cpu as usize) else {
            return false;
        };
        if is_sampled(decision.id, decision.generation) {
            self.sampler.stamp(&mut entry.mailbox, &decision);
        }
        if entry.mailbox.push(decision).is_err() {
            return false;
        }
        if decision.flags & DECISION_PREEMPT != 0 {
            // Without room for the kick the task waits for the CPU's next look, as without the
            // flag.
            let _ = self.kicks.push(cpu | KICK_PREEMPT);
            return true;
        }
        if self.note_kick(cpu) || self.mailed.push(cpu as u16).is_ok() {
            return true;
        }
        // More mail in a turn than there are CPUs, so some are listed twice: a kick too many does
        // no harm, and one too few neither, for the CPU is in one of the lists.
        let _ = self.kicks.push(cpu);
        true
    }

    /// No task has a standing order, nor is any born with one; what tasks were born with is void,
    /// those of kernel threads aside.
    pub fn clear_orders(&mut self) {
        self.orders.clear();
        self.set_newborn(None);
        // ORDERING: relaxed: a task that wakes meanwhile still goes by its old order. The partner
        // is birth_order() in bpf/orders.h.
        let policies = &self.control().policies;
        policies.store(policies.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Which kinds of records the kernel side shall send besides enqueue records, and how often at
    /// most for one task with a standing order, in µs.
    pub fn listen(&mut self, kinds: Kinds, tell_us: u32) {
        let control = self.control();
        // ORDERING: relaxed, with the loads in tell() (bpf/records.h) and tell_of_wakeup()
        // (bpf/orders.h): records of the kinds before may still come, and the loop does not
        // look at those that were not asked for.
        control.tell_us.store(tell_us, Ordering::Relaxed);
        control.events.store(kinds.word(), Ordering::Relaxed);
    }

    /// The order that tasks are born with whose parent has none that is inherited.
    pub fn set_newborn(&mut self, order: Option<Order>) {
        let word = order.map_or(0, |order| order.encode(0));
        // ORDERING: relaxed: the word is all there is. The partner is birth_order() in
        // bpf/orders.h.
        self.control().newborn.store(word, Ordering::Relaxed);
    }

    /// How many decisions for any CPU have not been taken yet.
    ///
    /// # Cost
    /// A load of a line that all CPUs write.
    pub fn shared_backlog(&self) -> u64 {
        self.shared_mailbox.len()
    }

    /// An idle CPU with neither mail nor a pending kick: `prefer` if
    /// it is one, else the one that [`CpuMap::pick`] finds. `prefer` below 0 is none.
    ///
    /// # Cost
    /// A load for every 64 CPUs, and nothing else if none is idle. Else two more and a search;
    /// again for each idle CPU with a pending kick, once in a turn.
    pub fn idle_cpu(&mut self, prefer: i32) -> Option<u32> {
        let mut idle = self.idle_set()?;
        loop {
            let cpu = self.map.pick(prefer, &idle, &self.workers)?;
            let seq = self.idle_seq(cpu);
            let is_free = |entry: &Cpu| entry.is_free(seq);
            if self.cpus.get(cpu as usize).is_some_and(is_free) {
                return Some(cpu);
            }
            idle.remove(cpu);
            self.open.remove(cpu);
        }
    }

    /// The same, and notes a kick for it: no other call finds it in this turn. It is kicked by the
    /// next [`flush`](Self::flush), with mail or without; if it finds nothing to do it is free
    /// again.
    ///
    /// # Cost
    /// As [`idle_cpu`](Self::idle_cpu), and two stores.
    pub fn claim_idle_cpu(&mut self, prefer: i32) -> Option<u32> {
        let cpu = self.idle_cpu(prefer)?;
        self.note_kick(cpu).then_some(cpu)
    }

    /// The open CPUs that are idle, if there are any.
    fn idle_set(&self) -> Option<CpuSet> {
        let mut idle = CpuSet::default();
        let mut any = 0;
        for at in 0..self.memory.nr_cpus.div_ceil(64) {
            let bits = self.idle_word(at) & self.open.word(at as usize);
            if let Some(word) = idle.word_mut(at as usize) {
                *word = bits;
            }
            any |= bits;
        }
        (any != 0).then_some(idle)
    }

    /// Whether the CPU is idle, with a pending kick or without.
    pub fn is_idle(&self, cpu: u32) -> bool {
        self.idle_word(cpu / 64) >> (cpu % 64) & 1 == 1
    }

    /// What runs on the CPU, or ran last; `None` if there is no such CPU.
    pub fn running(&self, cpu: u32) -> Option<Running> {
        Some(Running::read(&self.state(cpu)?.running))
    }

    /// How many tasks wait for this CPU alone: decisions that it has not taken yet, and what of
    /// those it has taken waited when it last looked for them.
    ///
    /// # Cost
    /// Two loads, of two lines that this CPU writes.
    pub fn backlog_of(&self, cpu: u32) -> u64 {
        let entry = self.cpus.get(cpu as usize);
        // ORDERING: relaxed, with the plain store of publish_running() in bpf/metronome.bpf.c: a
        // guess.
        let taken = self
            .state(cpu)
            .map_or(0, |state| state.running.waiting.load(Ordering::Relaxed));
        entry.map_or(0, |entry| entry.mailbox.len() + u64::from(taken))
    }

    /// `CLOCK_MONOTONIC`, ns; `None` if no clock was set.
    pub fn now(&self) -> Option<u64> {
        self.sampler.now()
    }

    /// Virtual time of the tasks that take turns, ns; 0 before the first.
    pub fn virtual_now(&self) -> u64 {
        // ORDERING: relaxed, with the stores of bpf/turns.h: the word is all there is.
        self.machine().virtual_now.load(Ordering::Relaxed)
    }

    /// Whether any CPU is idle, with a pending kick or without.
    ///
    /// # Cost
    /// A load for every 64 CPUs.
    pub fn any_idle(&self) -> bool {
        (0..self.memory.nr_cpus.div_ceil(64)).any(|at| self.idle_word(at) != 0)
    }

    /// Ends a turn: beats the heart, and writes the list of CPUs to kick. Returns how many there
    /// are; if any, the caller runs the program `kick_cpus`.
    ///
    /// # Cost
    /// One fence if anything was dispatched; in every 64th turn, three loads from a mailbox.
    pub fn flush(&mut self) -> u32 {
        self.beat();
        self.catch_up();
        self.check_a_mailbox();
        // What is struck out before the fence may have become idle since.
        self.open = self.workers;
        if self.mailed.is_empty() && self.shared_mailed == 0 && self.kicks.is_empty() {
            return 0;
        }
        // ORDERING: full, with the addition in publish_idle(); see the module.
        fence(order(Guard::PendingKick, Ordering::SeqCst));
        while let Some(cpu) = self.mailed.pop() {
            self.note_kick(u32::from(cpu));
        }
        for _ in 0..core::mem::take(&mut self.shared_mailed).min(self.memory.nr_cpus) {
            let Some(cpu) = self.idle_cpu(-1) else { break };
            self.note_kick(cpu);
        }
        self.open = self.workers;
        self.write_kicks()
    }

    /// Sleeps by `sleep` until a task waits, if none does; see [`wait`]. Returns whether it slept.
    ///
    /// # Cost
    /// Of each ring a store and a load; two stores and a full fence. `sleep` is a system call, and
    /// what it does costs the rest.
    pub fn park(&mut self, sleep: impl FnOnce()) -> bool {
        self.release();
        wait::park(&self.control().parked, || self.rings_are_empty(), sleep)
    }

    /// Whether nothing lies in any ring.
    ///
    /// # Cost
    /// Of each ring a load of its producer position.
    pub(crate) fn rings_are_empty(&self) -> bool {
        self.rings.iter().all(|ring| ring.backlog_bytes() == 0)
    }

    fn fallback(&self) -> u64 {
        // ORDERING: relaxed, with the compare-and-swap of begin_fallback() in bpf/fallback.h: it
        // says what to write into `caught_up`, and nothing else depends on it. One that
        // begins meanwhile has another number.
        self.machine().fallback.load(Ordering::Relaxed)
    }

    /// Once the thread has read what was in the rings when it first saw the fallback, it is asked
    /// again. All empty at once they may never be: events go on.
    fn catch_up(&mut self) {
        let fallback = self.fallback();
        if fallback & 1 == 0 {
            return;
        }
        if self.marked != fallback {
            self.marked = fallback;
            self.marks = self.rings.iter().map(Ring::end).collect();
        }
        let mut rings = self.rings.iter().zip(&self.marks);
        if rings.all(|(ring, mark)| ring.has_passed(*mark)) {
            // ORDERING: relaxed, with the load of end_fallback() in bpf/fallback.h. A task that is
            // asked about before that fallback began and whose record is published only
            // after we have looked is seen in a later turn, as any other.
            self.control().caught_up.store(fallback, Ordering::Relaxed);
        }
    }

    fn check_a_mailbox(&mut self) {
        if !self.heartbeat.is_multiple_of(TURNS_PER_CHECK) {
            return;
        }
        let cpu = self.checked as u32;
        let (mailbox, of) = match self.cpus.get_mut(self.checked) {
            Some(entry) => (&mut entry.mailbox, MailboxOf::Cpu(cpu)),
            None => (&mut self.shared_mailbox, MailboxOf::All),
        };
        if cpu != self.memory.agent_cpu {
            mailbox.check();
            self.bad_mailbox = self.bad_mailbox.or(mailbox.is_bad().then_some(of));
        }
        self.checked = (self.checked + 1) % (self.cpus.len() + 1);
    }

    /// The mailbox that was found to hold what neither side wrote, if there is one. Some decisions
    /// never leave it.
    pub fn bad_mailbox(&self) -> Option<MailboxOf> {
        self.bad_mailbox
    }

    fn beat(&mut self) {
        self.heartbeat += 1;
        // ORDERING: relaxed, with the load of user_space_is_late() in bpf/fallback.h, which only
        // asks whether it changes.
        self.control()
            .heartbeat
            .store(self.heartbeat, Ordering::Relaxed);
    }

    fn write_kicks(&mut self) -> u32 {
        let nr = self.kicks.len() as u32;
        let control = self.control();
        // ORDERING: relaxed: the reader is kick_cpus() in bpf/metronome.bpf.c, which this thread
        // itself runs by a system call.
        for (slot, kick) in control.kicks.iter().zip(&self.kicks) {
            slot.store(*kick, Ordering::Relaxed);
        }
        control.nr_kicks.store(nr, Ordering::Relaxed);
        self.kicks.clear();
        nr
    }

    /// Notes a kick for `cpu` if it is idle and none is pending.
    ///
    /// # Cost
    /// A load of a line that the CPU writes; two stores into memory of our own if a kick
    /// is noted.
    pub(crate) fn note_kick(&mut self, cpu: u32) -> bool {
        let seq = self.idle_seq(cpu);
        let Some(entry) = self.cpus.get_mut(cpu as usize) else {
            return false;
        };
        if seq & 1 == 0 || entry.kick_pending == seq || self.kicks.push(cpu).is_err() {
            return false;
        }
        entry.kick_pending = seq;
        self.open.remove(cpu);
        true
    }

    /// 0, which is even, for a CPU that does not exist.
    fn idle_seq(&self, cpu: u32) -> u64 {
        // ORDERING: relaxed: flush() has the fence that pairs with the addition in publish_idle(),
        // and before it the value is a hint.
        self.state(cpu)
            .map_or(0, |state| state.idle_seq.load(Ordering::Relaxed))
    }

    /// A bit for each of 64 CPUs; none of those that do not exist.
    fn idle_word(&self, at: u32) -> u64 {
        // ORDERING: as idle_seq.
        let words = &self.machine().idle;
        words
            .get(at as usize)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn machine(&self) -> &MachineState {
        // SAFETY: live and aligned by the contract of `new`; all its fields are atomics.
        unsafe { self.memory.machine.as_ref() }
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

#[cfg(all(test, not(loom)))]
mod tests;
