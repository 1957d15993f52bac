//! A machine with one worker: the memory that both sides share, and where they sleep.

use core::ptr::NonNull;
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use loom::sync::{Mutex, Notify};

use super::barrier;
use super::mailbox::Boxed;
use super::ring::RingBuf;
use crate::abi::{Control, CpuState, MachineState, RunningTask};
use crate::shared::{Shared, SharedMemory};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// A CPU that is idle, or a wait queue.
struct Sleeper {
    woken: Mutex<bool>,
    changed: Notify,
}

impl Sleeper {
    fn new() -> Self {
        Self {
            woken: Mutex::new(false),
            changed: Notify::new(),
        }
    }

    fn wake(&self) {
        *self.woken.lock().unwrap() = true;
        self.changed.notify();
    }

    /// Forgets what came before: only a wake-up from here on counts.
    fn register(&self) {
        *self.woken.lock().unwrap() = false;
    }

    fn sleep(&self) {
        while !core::mem::take(&mut *self.woken.lock().unwrap()) {
            self.changed.wait();
        }
    }
}

pub(super) const WORKER: usize = 0;
pub(super) const CPUS: usize = 2;

fn busy_cpu() -> CpuState {
    CpuState {
        idle_seq: AtomicU64::new(0),
        pad: [0; 7],
        running: RunningTask {
            pid: AtomicU32::new(0),
            id: AtomicU32::new(0),
            since: AtomicU64::new(0),
            deadline: AtomicU64::new(0),
            slice: AtomicU64::new(0),
            kind: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            pad: [0; 3],
        },
        counters: core::array::from_fn(|_| AtomicU64::new(0)),
    }
}

fn control() -> Control {
    Control {
        heartbeat: AtomicU64::new(0),
        nr_kicks: AtomicU32::new(0),
        kicks: core::array::from_fn(|_| AtomicU32::new(0)),
        parked: AtomicU32::new(0),
        newborn: AtomicU64::new(0),
        events: AtomicU32::new(0),
        tell_us: AtomicU32::new(0),
        caught_up: AtomicU64::new(0),
        policies: AtomicU64::new(0),
    }
}

/// All that the two sides share, on a machine with one CPU besides the scheduler thread's.
pub(super) struct Machine {
    mailboxes: [Boxed; CPUS],
    shared_mailbox: Boxed,
    cpus: [CpuState; CPUS],
    machine: MachineState,
    pub(super) control: Control,
    ring_buf: RingBuf<4>,
    worker: Sleeper,
    waitq: Sleeper,
}

unsafe impl Sync for Machine {}
unsafe impl Send for Machine {}

impl Machine {
    pub(super) fn new() -> (Arc<Self>, Shared) {
        let machine = Arc::new(Self {
            mailboxes: core::array::from_fn(|_| Boxed::new()),
            shared_mailbox: Boxed::new(),
            cpus: core::array::from_fn(|_| busy_cpu()),
            machine: MachineState {
                idle: [AtomicU64::new(0)],
                fallback: AtomicU64::new(0),
                pad: [0; 7],
                virtual_now: AtomicU64::new(0),
                pad2: [0; 7],
            },
            control: control(),
            ring_buf: RingBuf::new(0),
            worker: Sleeper::new(),
            waitq: Sleeper::new(),
        });
        let memory = SharedMemory {
            mailboxes: NonNull::from(&machine.mailboxes).cast(),
            shared_mailbox: NonNull::from(&machine.shared_mailbox).cast(),
            cpus: NonNull::from(&machine.cpus).cast(),
            machine: NonNull::from(&machine.machine),
            // No task has an order.
            orders: NonNull::dangling(),
            control: NonNull::from(&machine.control),
            nr_cpus: CPUS as u32,
            agent_cpu: 1,
        };
        let shared = unsafe { Shared::new(memory, [machine.ring_buf.ring()]) };
        (machine, shared)
    }

    /// kick_cpus()
    pub(super) fn kick_cpus(&self, nr: u32) {
        for kick in self.control.kicks.iter().take(nr as usize) {
            assert_eq!(kick.load(Ordering::Relaxed), WORKER as u32);
            self.worker.wake();
        }
    }

    /// publish_idle(): whether the CPU kicks itself.
    pub(super) fn publish_idle(&self, idle: bool) -> bool {
        let state = &self.cpus[WORKER];
        let seq = state.idle_seq.load(Ordering::Relaxed);
        if !idle && seq & 1 == 0 {
            return false;
        }
        if idle && seq & 1 == 0 {
            self.machine.idle[0].fetch_or(1 << WORKER, Ordering::Relaxed);
        } else if !idle {
            self.machine.idle[0].fetch_and(!(1 << WORKER), Ordering::Relaxed);
        }
        let step = if (seq & 1 == 1) == idle { 2 } else { 1 };
        state.idle_seq.fetch_add(step, Ordering::Relaxed);
        barrier("publish_idle", Ordering::SeqCst);
        idle && (self.mailboxes[WORKER].has_mail() || self.shared_mailbox.has_mail())
    }

    /// What a CPU does that has nothing to do, until it has been given so many tasks.
    pub(super) fn look_for(&self, tasks: usize) -> Vec<u32> {
        let mut taken = vec![];
        loop {
            let before = taken.len();
            taken.extend(core::iter::from_fn(|| self.mailboxes[WORKER].take()));
            taken.extend(core::iter::from_fn(|| self.shared_mailbox.take()));
            if taken.len() == tasks {
                return taken;
            }
            if taken.len() > before {
                self.publish_idle(false);
            }
            if !self.publish_idle(true) {
                self.worker.sleep();
            }
        }
    }

    /// metronome_enqueue()
    pub(super) fn enqueue(&self, id: u32) {
        let record = self.ring_buf.reserve(id).unwrap();
        barrier("wakeup_flags", Ordering::SeqCst);
        let parked = self.control.parked.load(Ordering::Relaxed) == 1;
        self.ring_buf.commit(record, false);
        if parked {
            self.waitq.wake();
        }
    }

    /// poll() with `ringbuf_map_poll_kern()`, without a time-out.
    pub(super) fn poll(&self) {
        self.waitq.register();
        let consumer = self.ring_buf.consumer.load(Ordering::Acquire);
        if self.ring_buf.producer.load(Ordering::Acquire) == consumer {
            self.waitq.sleep();
        }
    }
}
