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
//! runs on a CPU that it may not use, and the books balance. [`Sim::settle`]: let alone, every
//! runnable task gets a CPU, and without [faults](Event::is_fault) no idle machine has a task that
//! waits. Whether a policy names only CPUs that the task may use is for the caller to judge, by the
//! count of those that bounced; so is whether any task should have been taken over.
//!
//! # Limits
//! One thread: orderings are the matter of the loom models. Latency is not modelled, nor are
//! standing orders, events for the policy, hotplug and other classes. Slices and ticks end when the
//! caller says so: see [`Sim::slice_ends_at`]. So does the scheduler thread's budget
//! ([`Event::Late`], [`Event::Back`]): no clock runs for it, nor for the patience with one
//! decision. While the kernel side is alone, the CPU of the scheduler thread takes no task, and a
//! task on a CPU's own DSQ stays there.

use std::boxed::Box;
use std::collections::BTreeSet;
use std::format;
use std::string::String;
use std::vec::Vec;

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::abi::{
    BIRTH_SHIFT, BIRTHS, Control, Counter, CpuState, DECISION_ANY_CPU, DECISION_PREEMPT,
    KICK_PREEMPT, MAILBOX_SLOTS, MAX_CPUS, MAX_TASKS, MachineState, MailboxHead,
    SHARED_MAILBOX_SLOTS, Slot,
};
use crate::mailbox::Decision;
use crate::policy::Policy;
use crate::ring::{Ring, RingMemory};
use crate::shared::{Shared, SharedMemory};
use crate::stats::{Books, Snapshot};
use crate::task::QueuedTask;
use crate::turn::{Turn, Turned};

mod event;
mod every_place;

pub use event::Event;
pub use every_place::EveryPlace;

/// Task ids of a simulation are below this.
pub const TASKS: usize = 4096;

const RECORD: u64 = 128;
const BUSY: u64 = 1 << 31;
const DISCARD: u64 = 1 << 30;
const WAKEUP: u64 = 1;
/// The default slice, ns, and the part of it that a task gets without a decision.
const SLICE_NS: u64 = 20_000_000;
const UNDECIDED_SLICE: u64 = 8;
/// Makes deadlines around 0 comparable as numbers.
const VTIME_BIAS: u64 = 1 << 63;
/// A policy may put the first task off for so many turns on end.
const PUT_OFF: u32 = 1;
/// As many decisions as one look for work carries out at most.
const DRAIN_BATCH: usize = 32;

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
    /// Whether a waking task goes to an idle CPU without a question.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Gone,
    Asleep,
    /// On a DSQ, with its key there.
    On(DsqId, DsqKey),
    Running(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DsqId {
    Pending,
    Shared,
    Fallback,
    Cpu(u32),
}

/// Deadline, as an offset from one far in the past, and order of arrival.
type DsqKey = (u64, u64);

#[derive(Debug)]
struct Task {
    pid: i32,
    generation: u32,
    place: Place,
    affinity: u16,
    /// The last enqueue that a decision came for.
    decided: u32,
    weight: u64,
    vtime: u64,
    /// The last decision gave it a deadline.
    has_deadline: bool,
    slice: u64,
    enqueued_at: u64,
    started_at: u64,
    exec_runtime: u64,
    sum_exec_runtime: u64,
    nvcsw: u64,
}

impl Task {
    /// One that has never lived.
    const GONE: Self = Self {
        pid: 0,
        generation: 0,
        place: Place::Gone,
        affinity: u16::MAX,
        decided: 0,
        weight: 100,
        vtime: 0,
        has_deadline: false,
        slice: 0,
        enqueued_at: 0,
        started_at: 0,
        exec_runtime: 0,
        sum_exec_runtime: 0,
        nvcsw: 0,
    };
}

/// Zeroed memory in pages, as the kernel maps it.
#[derive(Debug)]
struct Pages(Box<[Page]>);

#[derive(Debug)]
#[repr(C, align(4096))]
struct Page(core::cell::UnsafeCell<[u8; 4096]>);

impl Pages {
    fn new(bytes: usize) -> Self {
        let pages = Box::new_zeroed_slice(bytes.div_ceil(4096));
        // SAFETY: all bytes zero are a page.
        Self(unsafe { pages.assume_init() })
    }

    /// Both sides write through pointers made of this, so it points into the cells.
    fn start(&self) -> NonNull<u8> {
        NonNull::from(&*self.0).cast()
    }
}

#[derive(Debug)]
struct RingPages {
    consumer: Pages,
    producer: Pages,
    data: Pages,
}

/// The kernel's side.
#[derive(Debug)]
struct Kernel {
    config: Config,
    now: u64,
    arrivals: u64,
    vtime_now: u64,
    next_pid: i32,
    tasks: Vec<Task>,
    pending: BTreeSet<(DsqKey, u32)>,
    shared: BTreeSet<(DsqKey, u32)>,
    fallback: BTreeSet<(DsqKey, u32)>,
    own: Vec<BTreeSet<(DsqKey, u32)>>,
    running: Vec<Option<u32>>,
    kicked: Vec<bool>,
    /// Of the CPUs that are kicked, those that what runs there shall leave.
    preempted: Vec<bool>,
    turns: Vec<u64>,
    rings: Vec<RingPages>,
    mailboxes: Pages,
    shared_mailbox: Pages,
    cpus: Pages,
    machine: Pages,
    orders: Pages,
    control: Pages,
    /// The next record stays busy.
    hold: bool,
    /// A record that is busy: its ring and position.
    held: Option<(usize, u64)>,
    /// There has been a fault: what lies in the rings may be anything.
    faults: bool,
    /// What must not happen and has.
    violation: Option<String>,
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
        // So that the books can be read off the rings at any time.
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

    /// The accounts of both sides so far.
    pub fn books(&self) -> Books {
        let kernel = &self.kernel;
        let counts = Snapshot {
            taken: self.taken,
            sent: self.sent,
            superseded: self.superseded,
            waiting: self.turn.waiting() as u64,
            ..kernel.snapshot()
        };
        Books {
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
        let books = self.books();
        let counts = books.counts;
        let right =
            self.kernel.faults || counts.taken == counts.sent + counts.superseded + counts.waiting;
        if !right || counts.sent != counts.answered() + books.left_in_mailboxes {
            return Err(format!("{books}"));
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
                self.kernel.take_over();
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

/// Setting up.
impl Kernel {
    fn new(config: Config) -> Self {
        let cpus = config.nr_cpus as usize;
        let ring = |_| RingPages {
            consumer: Pages::new(8),
            producer: Pages::new(8),
            data: Pages::new(2 * config.ring_bytes as usize),
        };
        let mut kernel = Self {
            config,
            now: 1_000_000,
            arrivals: 0,
            vtime_now: 0,
            next_pid: 1,
            tasks: (0..config.nr_tasks).map(|_| Task::GONE).collect(),
            pending: BTreeSet::new(),
            shared: BTreeSet::new(),
            fallback: BTreeSet::new(),
            own: (0..cpus).map(|_| BTreeSet::new()).collect(),
            running: (0..cpus).map(|_| None).collect(),
            kicked: (0..cpus).map(|_| false).collect(),
            preempted: (0..cpus).map(|_| false).collect(),
            turns: (0..cpus).map(|_| 0).collect(),
            rings: (0..config.nr_rings).map(ring).collect(),
            mailboxes: Pages::new(cpus * 64 * (1 + MAILBOX_SLOTS)),
            shared_mailbox: Pages::new(64 * (1 + SHARED_MAILBOX_SLOTS)),
            cpus: Pages::new(cpus * size_of::<CpuState>()),
            machine: Pages::new(size_of::<MachineState>()),
            orders: Pages::new(MAX_TASKS * size_of::<u64>()),
            control: Pages::new(size_of::<Control>()),
            hold: false,
            held: None,
            faults: false,
            violation: None,
        };
        for cpu in 0..kernel.agent_cpu() {
            kernel.publish_idle(cpu, true);
        }
        kernel
    }

    fn other_side(&self) -> Shared {
        let memory = SharedMemory {
            mailboxes: self.mailboxes.start(),
            shared_mailbox: self.shared_mailbox.start(),
            cpus: self.cpus.start().cast(),
            machine: self.machine.start().cast(),
            orders: self.orders.start().cast(),
            control: self.control.start().cast(),
            nr_cpus: self.config.nr_cpus,
            agent_cpu: self.agent_cpu(),
        };
        let rings = self.rings.iter().map(|ring| {
            let memory = RingMemory {
                consumer: ring.consumer.start().cast(),
                producer: ring.producer.start().cast(),
                data: ring.data.start(),
                size: self.config.ring_bytes,
            };
            // SAFETY: memory of the right sizes, which `Sim` keeps for longer than `Shared`.
            unsafe { Ring::new(memory, self.config.nr_cpus) }
        });
        // SAFETY: zeroed memory of the sizes for `nr_cpus`, which `Sim` keeps for longer.
        unsafe { Shared::new(memory, rings) }
    }

    fn agent_cpu(&self) -> u32 {
        self.config.nr_cpus - 1
    }
}

/// The events.
impl Kernel {
    fn apply(&mut self, event: Event) {
        let workers = self.agent_cpu();
        let task = |id: u32| id % self.config.nr_tasks;
        match event {
            Event::Wake(id) => self.wake(task(id)),
            Event::Sleep(cpu) => self.stop(cpu % workers, false),
            Event::SliceEnds(cpu) => self.stop(cpu % workers, true),
            Event::Look(cpu) => self.look(cpu % workers),
            Event::Tick(cpu) => self.tick(cpu % workers),
            Event::Exit(id) => self.exit(task(id)),
            Event::SetAffinity(id, mask) => self.set_affinity(task(id), mask),
            Event::SetWeight(id, weight) => {
                self.tasks[task(id) as usize].weight = u64::from(weight).clamp(1, 10_000);
            }
            Event::Late => self.begin_takeover(),
            Event::Back => self.end_takeover(),
            Event::Pass(us) => self.now += u64::from(us) * 1000,
            Event::Hold => self.hold = self.held.is_none(),
            Event::Release => self.release(),
            Event::Discard(id) => {
                if let Some((ring, at)) = self.reserve(task(id)) {
                    self.write(ring, at, DISCARD | (RECORD - 8));
                }
            }
            Event::Scribble(at, byte) => self.scribble(at, byte),
            Event::Turn | Event::Misplace(_) => {}
        }
        self.now += 1_000;
    }

    fn wake(&mut self, id: u32) {
        let task = &mut self.tasks[id as usize];
        match task.place {
            Place::Asleep => {}
            Place::Gone => {
                let birth = (task.generation >> BIRTH_SHIFT) % (BIRTHS - 1) + 1;
                task.generation = birth << BIRTH_SHIFT;
                task.pid = self.next_pid;
                task.vtime = self.vtime_now;
                task.has_deadline = false;
                task.sum_exec_runtime = 0;
                task.affinity = u16::MAX;
                self.next_pid += 1;
            }
            Place::On(..) | Place::Running(_) => return,
        }
        task.exec_runtime = 0;
        task.nvcsw += 1;
        let idle = self.idle_cpu_for(id);
        match idle.filter(|_| self.config.builtin_idle) {
            Some(cpu) => {
                self.tasks[id as usize].slice = SLICE_NS;
                self.count(Counter::Direct);
                self.run(cpu, id);
            }
            None => self.enqueue(id, WAKEUP),
        }
    }

    /// The task that runs on `cpu` leaves it, and the CPU looks for work.
    fn stop(&mut self, cpu: u32, runnable: bool) {
        let Some(id) = self.running[cpu as usize] else {
            return;
        };
        let task = &mut self.tasks[id as usize];
        let ran = self.now - task.started_at;
        task.exec_runtime += ran;
        task.sum_exec_runtime += ran;
        task.vtime = task.vtime.wrapping_add(ran * 100 / task.weight);
        task.place = Place::Asleep;
        let vtime = task.vtime;
        self.advance_vtime_now(vtime);
        // Not idle until it has found no other.
        if runnable {
            self.enqueue(id, 0);
        }
        self.running[cpu as usize] = None;
        self.dispatch(cpu);
    }

    fn look(&mut self, cpu: u32) {
        if self.running[cpu as usize].is_none() {
            self.dispatch(cpu);
        }
    }

    fn exit(&mut self, id: u32) {
        if matches!(self.tasks[id as usize].place, Place::Running(_)) {
            return;
        }
        self.take_off(id);
        let task = &mut self.tasks[id as usize];
        task.place = Place::Gone;
        task.pid = 0;
        task.generation += 1;
    }

    /// As the kernel does it: off its DSQ and enqueued again.
    fn set_affinity(&mut self, id: u32, mask: u16) {
        let place = self.tasks[id as usize].place;
        if place == Place::Gone {
            return;
        }
        self.tasks[id as usize].affinity = mask;
        if !(0..self.agent_cpu()).any(|cpu| self.allows(id, cpu)) {
            self.tasks[id as usize].affinity = u16::MAX;
        }
        match place {
            Place::On(..) => {
                self.take_off(id);
                self.enqueue(id, 0);
            }
            Place::Running(cpu) if !self.allows(id, cpu) => self.stop(cpu, true),
            _ => {}
        }
    }

    fn release(&mut self) {
        self.hold = false;
        if let Some((ring, at)) = self.held.take() {
            self.write(ring, at, RECORD - 8);
        }
    }

    fn scribble(&mut self, at: u32, byte: u8) {
        let ring = at as usize % self.rings.len();
        let offset = u64::from(at) % self.config.ring_bytes;
        let shift = offset % 8 * 8;
        let word = self.read(ring, offset & !7) & !(0xff << shift) | u64::from(byte) << shift;
        self.write(ring, offset & !7, word);
    }

    fn misplace(&mut self, by: i32) {
        let producer = self.producer(0);
        let wrong = producer
            .load(Ordering::Relaxed)
            .wrapping_add_signed(by.into());
        producer.store(wrong, Ordering::Relaxed);
    }

    fn machine_state(&self) -> &MachineState {
        // SAFETY: zeroed memory of the right size, and atomics only.
        unsafe { self.machine.start().cast().as_ref() }
    }

    fn control(&self) -> &Control {
        // SAFETY: as in machine_state().
        unsafe { self.control.start().cast().as_ref() }
    }

    fn is_alone(&self) -> bool {
        self.machine_state().takeover.load(Ordering::Relaxed) & 1 == 1
    }

    /// User space is late while tasks wait for it: from now on it is not asked.
    fn begin_takeover(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        if !self.is_alone() {
            let takeover = &self.machine_state().takeover;
            takeover.fetch_add(1, Ordering::Relaxed);
            self.count(Counter::Late);
        }
        let is_idle = |cpu: &usize| self.running[*cpu].is_none();
        let idle: Vec<usize> = (0..self.agent_cpu() as usize).filter(is_idle).collect();
        for cpu in idle.into_iter().take(self.pending.len()) {
            self.look(cpu as u32);
        }
    }

    /// User space that is back and has read all that was asked of it is asked again.
    fn end_takeover(&mut self) {
        let takeover = &self.machine_state().takeover;
        let caught_up = self.control().caught_up.load(Ordering::Relaxed);
        if self.is_alone() && takeover.load(Ordering::Relaxed) == caught_up {
            takeover.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Nobody will decide about what lies in a ring that is corrupt: a CPU runs what has waited
    /// longest.
    fn take_over(&mut self) {
        for cpu in 0..self.agent_cpu() {
            let first = self
                .pending
                .iter()
                .find(|(_, id)| self.allows(*id, cpu))
                .map(|(_, id)| *id);
            if let (Some(id), None) = (first, self.running[cpu as usize]) {
                self.count(Counter::Takeover);
                self.take_off(id);
                self.run(cpu, id);
            }
        }
    }
}

/// The ops, as in `bpf/metronome.bpf.c`.
impl Kernel {
    fn enqueue(&mut self, id: u32, flags: u64) {
        let task = &mut self.tasks[id as usize];
        task.generation += 1;
        task.slice = SLICE_NS / UNDECIDED_SLICE;
        if self.is_alone() {
            return self.enqueue_fallback(id, Counter::Alone);
        }
        let Some((ring, at)) = self.reserve(id) else {
            return self.enqueue_fallback(id, Counter::RingFull);
        };
        self.tasks[id as usize].enqueued_at = self.now;
        let record = self.record(id, flags);
        for (word, value) in words_of(record).into_iter().enumerate() {
            self.write(ring, at + 8 + 8 * word as u64, value);
        }
        // All keys are equal: first come, first served.
        self.insert(id, DsqId::Pending, 0);
        self.count(Counter::Queued);
        if core::mem::take(&mut self.hold) {
            self.held = Some((ring, at));
        } else {
            self.write(ring, at, RECORD - 8);
        }
    }

    /// User space cannot be asked.
    fn enqueue_fallback(&mut self, id: u32, counter: Counter) {
        self.tasks[id as usize].has_deadline = false;
        self.insert(id, DsqId::Fallback, 0);
        self.count(counter);
        if let Some(cpu) = self.idle_cpu_for(id) {
            self.look(cpu);
        }
    }

    fn record(&self, id: u32, flags: u64) -> QueuedTask {
        let task = &self.tasks[id as usize];
        let workers = 0..self.agent_cpu();
        let allowed = workers.clone().filter(|cpu| self.allows(id, *cpu)).count() as u32;
        let cpu = workers
            .clone()
            .find(|cpu| self.allows(id, *cpu))
            .unwrap_or_default();
        let everywhere = allowed > 1 && allowed == self.agent_cpu();
        let nr_cpus_allowed = if everywhere {
            self.config.nr_cpus
        } else {
            allowed
        };
        QueuedTask {
            pid: task.pid,
            tgid: task.pid,
            flags,
            weight: task.weight as u32,
            enqueued_at: task.enqueued_at,
            exec_runtime: task.exec_runtime,
            sum_exec_runtime: task.sum_exec_runtime,
            nvcsw: task.nvcsw,
            vtime: task.vtime,
            ..QueuedTask::example(id, task.generation, cpu as i32, nr_cpus_allowed as u16)
        }
    }

    fn dispatch(&mut self, cpu: u32) {
        let mut displaces = false;
        for (mailbox, slots) in [
            (self.mailbox(cpu), MAILBOX_SLOTS),
            (self.shared_mailbox.start(), SHARED_MAILBOX_SLOTS),
        ] {
            for _ in 0..DRAIN_BATCH {
                let Some(decision) = take(mailbox, slots) else {
                    break;
                };
                let any = slots == SHARED_MAILBOX_SLOTS || decision.flags & DECISION_ANY_CPU != 0;
                self.carry_out(decision, (!any).then_some(cpu));
                displaces |= decision.flags & DECISION_PREEMPT != 0;
            }
        }
        self.turns[cpu as usize] += 1;
        let next = self.dsqs_of(cpu, displaces).find_map(|dsq| {
            let id = self.first(dsq, cpu)?;
            Some((dsq, id))
        });
        let Some((dsq, id)) = next else {
            return self.publish_idle(cpu, true);
        };
        if dsq == DsqId::Pending {
            self.count(Counter::Takeover);
        }
        self.take_off(id);
        self.run(cpu, id);
        self.pass_on_shared();
    }

    /// Where a CPU looks for a task, in this order.
    fn dsqs_of(&self, cpu: u32, displaces: bool) -> impl Iterator<Item = DsqId> + use<> {
        let turn = self.turns[cpu as usize];
        let (rest, is_alone) = (turn / 2, self.is_alone());
        let own = DsqId::Cpu(cpu);
        let mut decided = [own, DsqId::Shared];
        if rest & 1 == 1 {
            decided.reverse();
        }
        let displacing = displaces.then_some(own);
        let unasked = (turn & 1 == 1).then_some(DsqId::Fallback);
        let asked = (is_alone && rest & 3 != 0).then_some(DsqId::Pending);
        let left = is_alone.then_some(DsqId::Pending);
        let first = displacing.into_iter().chain(unasked).chain(asked);
        first.chain(decided).chain(left).chain([DsqId::Fallback])
    }

    fn tick(&mut self, cpu: u32) {
        if let Some(id) = self.running[cpu as usize]
            && self.is_overtaken(id, cpu)
        {
            self.stop(cpu, true);
        }
    }

    fn is_overtaken(&self, id: u32, cpu: u32) -> bool {
        let task = &self.tasks[id as usize];
        let ran = self.now - task.started_at;
        let deadline = task.vtime.wrapping_add(ran * 100 / task.weight);
        let is_first = |dsq: &BTreeSet<(DsqKey, u32)>| {
            let first = dsq.first();
            first.is_some_and(|(_, id)| self.allows(*id, cpu))
        };
        if ran >= SLICE_NS / UNDECIDED_SLICE && is_first(&self.fallback) {
            return true;
        }
        let first_of = |dsq: &BTreeSet<(DsqKey, u32)>| {
            let (_, id) = *dsq.first()?;
            first_vtime(dsq).filter(|_| self.allows(id, cpu))
        };
        let firsts = [
            first_of(&self.own[cpu as usize]),
            first_of(&self.shared),
            first_mail_vtime(self.mailbox(cpu), MAILBOX_SLOTS),
            first_mail_vtime(self.shared_mailbox.start(), SHARED_MAILBOX_SLOTS),
        ];
        let is_before = |first: &u64| (first.wrapping_sub(deadline) as i64) < 0;
        task.has_deadline && firsts.iter().flatten().any(is_before)
    }

    fn carry_out(&mut self, decision: Decision, cpu: Option<u32>) {
        let id = decision.id;
        let faults = self.faults;
        let Some(task) = self.tasks.get_mut(id as usize).filter(|task| task.pid != 0) else {
            return self.count(Counter::Gone);
        };
        if task.generation != decision.generation {
            return self.count(Counter::Stale);
        }
        if task.decided == decision.generation && !faults {
            self.violate(format!("two decisions about one enqueue of {id}"));
        }
        let task = &mut self.tasks[id as usize];
        task.decided = decision.generation;
        task.has_deadline = decision.vtime != 0;
        if !matches!(task.place, Place::On(DsqId::Pending, _)) {
            return self.count(Counter::Rescued);
        }
        let vtime = match decision.vtime {
            0 => self.vtime_now,
            vtime => vtime,
        };
        task.vtime = vtime;
        task.slice = match decision.slice_ns {
            0 => SLICE_NS,
            slice => slice,
        };
        let mut workers = (0..self.agent_cpu()).filter(|cpu| self.allows(id, *cpu));
        let only = workers.next().filter(|_| workers.next().is_none());
        let cpu = cpu.or(only);
        let here = cpu.filter(|cpu| self.allows(id, *cpu));
        if cpu.is_some() && here.is_none() {
            self.count(Counter::Bounced);
        }
        self.count(Counter::Dispatched);
        self.take_off(id);
        let displaces = here.filter(|_| decision.flags & DECISION_PREEMPT != 0);
        // Before all that wait there. Only this CPU takes it off, and then its own deadline counts.
        let first = displaces.and_then(|cpu| first_vtime(&self.own[cpu as usize]));
        let at = first.map_or(vtime, |first| first.wrapping_sub(1));
        self.insert(id, here.map_or(DsqId::Shared, DsqId::Cpu), at);
        if here.is_none()
            && let Some(cpu) = self.idle_cpu_for(id)
        {
            self.kicked[cpu as usize] = true;
        }
    }

    fn run(&mut self, cpu: u32, id: u32) {
        if !self.allows(id, cpu) {
            self.violate(format!("{id} runs on CPU {cpu}, which it may not use"));
        }
        self.publish_idle(cpu, false);
        let task = &mut self.tasks[id as usize];
        task.place = Place::Running(cpu);
        task.started_at = self.now;
        let vtime = task.vtime;
        self.running[cpu as usize] = Some(id);
        self.advance_vtime_now(vtime);
    }

    fn pass_on_shared(&mut self) {
        if self.shared.is_empty() && self.fallback.is_empty() {
            return;
        }
        let idle = |cpu: &u32| self.running[*cpu as usize].is_none() && !self.kicked[*cpu as usize];
        if let Some(cpu) = (0..self.agent_cpu()).find(idle) {
            self.kicked[cpu as usize] = true;
        }
    }

    fn publish_idle(&mut self, cpu: u32, is_idle: bool) {
        // SAFETY: within the array of `nr_cpus` states.
        let at = unsafe { self.cpus.start().cast::<CpuState>().add(cpu as usize) };
        // SAFETY: zeroed memory of the right size, and atomics only.
        let state = unsafe { at.as_ref() };
        let machine = self.machine_state();
        let was_idle = state.idle_seq.load(Ordering::Relaxed) & 1 == 1;
        if !is_idle && !was_idle {
            return;
        }
        let (word, bit) = (&machine.idle[cpu as usize / 64], 1 << (cpu % 64));
        if is_idle {
            word.fetch_or(bit, Ordering::Relaxed);
        } else {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
        let by = if was_idle == is_idle { 2 } else { 1 };
        state.idle_seq.fetch_add(by, Ordering::Relaxed);
        if is_idle && (has_mail(self.mailbox(cpu), MAILBOX_SLOTS) || self.has_shared_mail()) {
            self.kicked[cpu as usize] = true;
        }
    }

    fn has_shared_mail(&self) -> bool {
        has_mail(self.shared_mailbox.start(), SHARED_MAILBOX_SLOTS)
    }
}

/// DSQs, CPUs, counters.
impl Kernel {
    fn allows(&self, id: u32, cpu: u32) -> bool {
        cpu < self.agent_cpu() && self.tasks[id as usize].affinity >> (cpu % 16) & 1 == 1
    }

    fn idle_cpu_for(&self, id: u32) -> Option<u32> {
        let idle = |cpu: &u32| self.running[*cpu as usize].is_none() && self.allows(id, *cpu);
        (0..self.agent_cpu()).find(idle)
    }

    fn dsq(&mut self, dsq: DsqId) -> &mut BTreeSet<(DsqKey, u32)> {
        match dsq {
            DsqId::Pending => &mut self.pending,
            DsqId::Shared => &mut self.shared,
            DsqId::Fallback => &mut self.fallback,
            DsqId::Cpu(cpu) => &mut self.own[cpu as usize],
        }
    }

    fn insert(&mut self, id: u32, dsq: DsqId, vtime: u64) {
        let key = (vtime.wrapping_add(VTIME_BIAS), self.arrivals);
        self.arrivals += 1;
        self.dsq(dsq).insert((key, id));
        self.tasks[id as usize].place = Place::On(dsq, key);
    }

    fn take_off(&mut self, id: u32) {
        if let Place::On(dsq, key) = self.tasks[id as usize].place {
            self.dsq(dsq).remove(&(key, id));
            self.tasks[id as usize].place = Place::Asleep;
        }
    }

    fn first(&self, dsq: DsqId, cpu: u32) -> Option<u32> {
        let tasks = match dsq {
            DsqId::Pending => &self.pending,
            DsqId::Shared => &self.shared,
            DsqId::Fallback => &self.fallback,
            DsqId::Cpu(cpu) => &self.own[cpu as usize],
        };
        let allowed = tasks.iter().find(|(_, id)| self.allows(*id, cpu));
        allowed.map(|(_, id)| *id)
    }

    fn advance_vtime_now(&mut self, vtime: u64) {
        if (self.vtime_now.wrapping_sub(vtime) as i64) < 0 {
            self.vtime_now = vtime;
        }
    }

    fn note_kicks(&mut self, nr: u32) {
        for at in 0..nr as usize {
            let kick = self.control().kicks[at].load(Ordering::Relaxed);
            let cpu = kick & !KICK_PREEMPT;
            if cpu < self.agent_cpu() {
                self.kicked[cpu as usize] = true;
                self.preempted[cpu as usize] |= kick & KICK_PREEMPT != 0;
            }
        }
    }

    fn answer_kicks(&mut self) {
        while let Some(cpu) = self.kicked.iter().position(|kicked| *kicked) {
            self.kicked[cpu] = false;
            if core::mem::take(&mut self.preempted[cpu]) && self.running[cpu].is_some() {
                self.stop(cpu as u32, true);
            } else {
                self.look(cpu as u32);
            }
        }
    }

    fn count(&self, counter: Counter) {
        // SAFETY: the first state of the array; all counts go there.
        let state = unsafe { self.cpus.start().cast::<CpuState>().as_ref() };
        state.counters[counter as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn snapshot(&self) -> Snapshot {
        // SAFETY: as in count().
        let state = unsafe { self.cpus.start().cast::<CpuState>().as_ref() };
        let count = |counter| state.counters[counter as usize].load(Ordering::Relaxed);
        Snapshot {
            queued: count(Counter::Queued),
            ring_full: count(Counter::RingFull),
            direct: count(Counter::Direct),
            dispatched: count(Counter::Dispatched),
            stale: count(Counter::Stale),
            gone: count(Counter::Gone),
            rescued: count(Counter::Rescued),
            bounced: count(Counter::Bounced),
            takeover: count(Counter::Takeover),
            late: count(Counter::Late),
            alone: count(Counter::Alone),
            ..Snapshot::default()
        }
    }

    fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    fn check_places(&self) -> Result<(), String> {
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

/// The rings, as in the kernel's `kernel/bpf/ringbuf.c`.
impl Kernel {
    fn producer(&self, ring: usize) -> &AtomicU64 {
        // SAFETY: a page of its own, zeroed, and an atomic only.
        unsafe { self.rings[ring].producer.start().cast().as_ref() }
    }

    fn consumer(&self, ring: usize) -> &AtomicU64 {
        // SAFETY: a page of its own, zeroed, an atomic only.
        unsafe { self.rings[ring].consumer.start().cast().as_ref() }
    }

    /// Reserves a record, which is busy, in the ring of a task.
    fn reserve(&mut self, id: u32) -> Option<(usize, u64)> {
        let ring = id as usize & (self.rings.len() - 1);
        let at = self.producer(ring).load(Ordering::Relaxed);
        let used = at.wrapping_sub(self.consumer(ring).load(Ordering::Relaxed));
        if used.checked_add(RECORD)? >= self.config.ring_bytes {
            return None;
        }
        self.write(ring, at, BUSY | (RECORD - 8));
        self.producer(ring).store(at + RECORD, Ordering::Relaxed);
        Some((ring, at))
    }

    /// Both mappings of the same memory.
    fn words(&self, ring: usize, at: u64) -> [&AtomicU64; 2] {
        let size = self.config.ring_bytes;
        let offset = at % size;
        [offset, offset + size].map(|offset| {
            // SAFETY: below twice the size, for which there is memory.
            let word = unsafe { self.rings[ring].data.start().add(offset as usize) };
            // SAFETY: aligned, as positions are multiples of 8, and only ever written through such
            // references. Nobody holds one to a record at this time: there is one
            // thread, and the other side lends them out only while it drains.
            unsafe { word.cast().as_ref() }
        })
    }

    fn write(&self, ring: usize, at: u64, value: u64) {
        for word in self.words(ring, at) {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn read(&self, ring: usize, at: u64) -> u64 {
        self.words(ring, at)[0].load(Ordering::Relaxed)
    }

    /// How many tasks lie in the rings.
    fn left_in_rings(&self) -> u64 {
        let tasks = |ring| {
            let position = |word: &AtomicU64| word.load(Ordering::Relaxed);
            let records = position(self.consumer(ring))..position(self.producer(ring));
            let is_task = |at: &u64| self.read(ring, *at) & DISCARD == 0;
            records.step_by(RECORD as usize).filter(is_task).count() as u64
        };
        (0..self.rings.len()).map(tasks).sum()
    }

    fn mailbox(&self, cpu: u32) -> NonNull<u8> {
        let offset = cpu as usize * 64 * (1 + MAILBOX_SLOTS);
        // SAFETY: within the array of `nr_cpus` mailboxes.
        unsafe { self.mailboxes.start().add(offset) }
    }
}

fn words_of(record: QueuedTask) -> [u64; 15] {
    // SAFETY: 120 bytes of integers without padding.
    unsafe { core::mem::transmute(record) }
}

/// The deadline by which the first task of a DSQ waits there.
fn first_vtime(dsq: &BTreeSet<(DsqKey, u32)>) -> Option<u64> {
    let ((biased, _), _) = dsq.first()?;
    Some(biased.wrapping_sub(VTIME_BIAS))
}

/// The head of a mailbox and the slot at its front.
fn front<'a>(mailbox: NonNull<u8>, slots: usize) -> (&'a MailboxHead, &'a Slot, u64) {
    // SAFETY: zeroed memory that the simulation keeps, and atomics only.
    let head = unsafe { mailbox.cast::<MailboxHead>().as_ref() };
    let position = head.head.load(Ordering::Relaxed);
    let index = 1 + (position as usize & (slots - 1));
    // SAFETY: masked, so within the slots behind the head, which is as large as one.
    let at = unsafe { mailbox.cast::<Slot>().add(index) };
    // SAFETY: as before.
    (head, unsafe { at.as_ref() }, position)
}

fn has_mail(mailbox: NonNull<u8>, slots: usize) -> bool {
    let (_, slot, position) = front(mailbox, slots);
    slot.seq.load(Ordering::Acquire) == position + 1
}

fn first_mail_vtime(mailbox: NonNull<u8>, slots: usize) -> Option<u64> {
    let (_, slot, _) = front(mailbox, slots);
    has_mail(mailbox, slots).then(|| slot.vtime.load(Ordering::Relaxed))
}

fn take(mailbox: NonNull<u8>, slots: usize) -> Option<Decision> {
    if !has_mail(mailbox, slots) {
        return None;
    }
    let (head, slot, position) = front(mailbox, slots);
    head.head.store(position + 1, Ordering::Relaxed);
    let decision = Decision {
        id: slot.id.load(Ordering::Relaxed),
        generation: slot.generation.load(Ordering::Relaxed),
        slice_ns: slot.slice_ns.load(Ordering::Relaxed),
        vtime: slot.vtime.load(Ordering::Relaxed),
        flags: slot.flags.load(Ordering::Relaxed),
    };
    slot.seq.store(0, Ordering::Release);
    Some(decision)
}
