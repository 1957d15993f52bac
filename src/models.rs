//! Models of the handshakes with the kernel side, for loom: `make loom`.
//!
//! Our half is the real code. The kernel's half is written down here after `bpf/metronome.bpf.c`
//! and `kernel/bpf/ringbuf.c`, under the names of their functions. loom runs every interleaving
//! within the bounds that each model states, and every value that a load may return: a lost,
//! doubled or torn record fails an assertion, two accesses to a slot or record that nothing orders
//! are a "causality violation", and a lost wake-up is a "deadlock".
//!
//! Each ordering has a name ([`Guard`]). Beside each model a test weakens those that it needs, one
//! at a time (full to acquire-release, acquire and release to relaxed), and expects loom to find
//! what goes wrong.
//!
//! # Limits
//! loom's SeqCst accesses order no more than AcqRel ones, so full barriers are fences here, as they
//! are in the core. A barrier of the kernel that is needed for less is modelled as no more than
//! that. loom does not reorder a load with a later store of the same thread;
//! [`OwnedU32`](crate::sync::OwnedU32) makes up for that where it matters.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::undocumented_unsafe_blocks,
    reason = "models; all their memory is live until the last thread is done"
)]

extern crate std;
use core::ptr::NonNull;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use loom::cell::UnsafeCell;
use loom::sync::{Mutex, Notify};
use loom::thread;

use crate::abi::{Control, CpuState, MAILBOX_SLOTS, MachineState, MailboxHead, RunningTask, Slot};
use crate::latency::Stamps;
use crate::mailbox::{Decision, Mailbox};
use crate::ring::{ModelRecord, Ring, RingMemory};
use crate::shared::{Shared, SharedMemory};
use crate::sync::{AtomicU32, AtomicU64, Guard, Ordering, OwnedU32, OwnedU64, Weakened};
use crate::sync::{fence, order};
use crate::task::{DispatchedTask, QueuedTask, RL_CPU_ANY};

/// Runs a model with at most so many switches away from a thread that could go on.
fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// What `make check` has the time for, by LOOM_THOROUGH in the environment, and `make test` has
/// not.
fn thorough() -> bool {
    std::env::var_os("LOOM_THOROUGH").is_some()
}

/// Asserts that the model fails without this guard, and with one of these words.
fn breaks_without(guard: Guard, words: &[&str], model: impl Fn()) {
    let weakened = Weakened::new(guard);
    let outcome = catch_unwind(AssertUnwindSafe(model));
    drop(weakened);
    let Err(failure) = outcome else {
        panic!("{guard:?} was not missed")
    };
    let message = failure
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(failure.downcast_ref::<&str>().copied())
        .unwrap_or_default();
    assert!(
        words.iter().any(|word| message.contains(word)),
        "{guard:?} was missed, but in another way: {message}"
    );
}

const RACE: &str = "Causality violation";
const LOST_WAKEUP: &str = "deadlock";

/// A barrier of the kernel side.
fn barrier(name: &'static str, strong: Ordering) {
    match order(Guard::Kernel(name), strong) {
        // There is no such fence.
        Ordering::Relaxed => {}
        ordering => fence(ordering),
    }
}

// Mailboxes

/// `struct mailbox`, and as small `struct shared_mailbox`.
#[repr(C)]
struct Boxed {
    head: MailboxHead,
    slots: [Slot; MAILBOX_SLOTS],
}

unsafe impl Sync for Boxed {}
unsafe impl Send for Boxed {}

impl Boxed {
    fn new() -> Self {
        Self {
            head: MailboxHead {
                head: AtomicU64::new(0),
                pad: [0; 7],
            },
            slots: core::array::from_fn(|_| Slot {
                seq: AtomicU64::new(0),
                id: OwnedU32::new(0),
                generation: OwnedU32::new(0),
                slice_ns: OwnedU64::new(0),
                vtime: OwnedU64::new(0),
                flags: OwnedU64::new(0),
                seen_at: OwnedU64::new(0),
                decided_at: OwnedU64::new(0),
                pad: 0,
            }),
        }
    }

    fn mailbox(&self) -> Mailbox {
        unsafe { Mailbox::new(NonNull::from(self).cast(), MAILBOX_SLOTS) }
    }

    /// take(): the id of the decision.
    fn take(&self) -> Option<u32> {
        let position = self.head.head.load(Ordering::Relaxed);
        let slot = &self.slots[position as usize % MAILBOX_SLOTS];
        if slot.seq.load(Ordering::Relaxed) != position + 1 {
            return None;
        }
        let relaxed = Ordering::Relaxed;
        self.head
            .head
            .compare_exchange(position, position + 1, relaxed, relaxed)
            .ok()?;
        // Of the compare-and-swap; it need not be more than this.
        barrier("take, claim", Ordering::Acquire);
        let taken = Decision {
            id: slot.id.load(relaxed),
            generation: slot.generation.load(relaxed),
            slice_ns: slot.slice_ns.load(relaxed),
            vtime: slot.vtime.load(relaxed),
            flags: slot.flags.load(relaxed),
        };
        let stamped = Stamps {
            seen_at: slot.seen_at.load(relaxed),
            decided_at: slot.decided_at.load(relaxed),
        };
        slot.seq
            .swap(0, order(Guard::Kernel("take, free"), Ordering::Release));
        let flags = taken.flags;
        assert_eq!(
            taken,
            Decision {
                flags,
                ..decision(taken.id)
            },
            "torn"
        );
        // A slot that becomes free between stamp() and push() has those of an earlier decision, or
        // none.
        let of = stamped.seen_at as u32;
        assert!(of <= taken.id, "stamps of a later decision");
        assert!(of == 0 || stamped == stamps(of), "torn");
        Some(taken.id)
    }

    /// Half of has_mail().
    fn has_mail(&self) -> bool {
        let position = self.head.head.load(Ordering::Relaxed);
        let slot = &self.slots[position as usize % MAILBOX_SLOTS];
        slot.seq.load(Ordering::Relaxed) == position + 1
    }
}

fn decision(id: u32) -> Decision {
    Decision {
        id,
        generation: id + 1,
        slice_ns: 0,
        vtime: 0,
        flags: 0,
    }
}

fn stamps(id: u32) -> Stamps {
    Stamps {
        seen_at: u64::from(id),
        decided_at: u64::from(id) + 100,
    }
}

/// Three decisions with stamps for two slots; two CPUs try twice each.
fn two_cpus_take_from_one_mailbox() {
    explore(4, || {
        let boxed = Arc::new(Boxed::new());
        let cpus: [_; 2] = core::array::from_fn(|_| {
            let boxed = Arc::clone(&boxed);
            thread::spawn(move || [boxed.take(), boxed.take()])
        });
        let mut mailbox = boxed.mailbox();
        let mut sent = vec![];
        for id in 1..=3 {
            mailbox.stamp(stamps(id));
            match mailbox.push(decision(id)) {
                Ok(()) => sent.push(id),
                Err(full) => assert_eq!((full.0, sent.len()), (decision(id), 2), "not full"),
            }
        }
        let mut taken: Vec<u32> = vec![];
        for cpu in cpus {
            let took: Vec<u32> = cpu.join().unwrap().into_iter().flatten().collect();
            assert!(took.is_sorted(), "out of order");
            taken.extend(took);
        }
        assert_eq!(mailbox.len(), (sent.len() - taken.len()) as u64);
        while let Some(id) = boxed.take() {
            taken.push(id);
        }
        taken.sort();
        assert_eq!(taken, sent, "lost or doubled");
    });
}

#[test]
fn no_decision_is_lost_doubled_or_torn() {
    two_cpus_take_from_one_mailbox();
}

#[test]
fn a_mailbox_needs_its_orderings() {
    for guard in [
        Guard::MailboxPublish,
        Guard::MailboxReuse,
        Guard::Kernel("take, claim"),
        Guard::Kernel("take, free"),
    ] {
        breaks_without(guard, &[RACE], two_cpus_take_from_one_mailbox);
    }
}

// Ring

const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;
const PAYLOAD: u32 = 120;
const RECORD: u64 = 128;

/// `struct bpf_ringbuf`, with room for RECORDS less one.
struct RingBuf<const RECORDS: usize> {
    consumer: AtomicU64,
    producer: AtomicU64,
    /// rb->spinlock and rb->pending_pos.
    pending: Mutex<u64>,
    data: [ModelRecord; RECORDS],
}

unsafe impl<const RECORDS: usize> Sync for RingBuf<RECORDS> {}
unsafe impl<const RECORDS: usize> Send for RingBuf<RECORDS> {}

impl<const RECORDS: usize> RingBuf<RECORDS> {
    const SIZE: u64 = RECORDS as u64 * RECORD;

    fn new(position: u64) -> Self {
        Self {
            consumer: AtomicU64::new(position),
            producer: AtomicU64::new(position),
            pending: Mutex::new(position),
            data: core::array::from_fn(|_| ModelRecord {
                header: AtomicU32::new(0),
                payload: UnsafeCell::new([0; _]),
            }),
        }
    }

    fn ring(&self) -> Ring {
        let memory = RingMemory {
            consumer: NonNull::from(&self.consumer),
            producer: NonNull::from(&self.producer),
            data: NonNull::from(&self.data).cast(),
            size: Self::SIZE,
        };
        unsafe { Ring::new(memory, 1) }
    }

    fn at(&self, position: u64) -> &ModelRecord {
        &self.data[(position % Self::SIZE / RECORD) as usize]
    }

    /// `__bpf_ringbuf_reserve()`, after which its caller writes the payload.
    fn reserve(&self, id: u32) -> Option<&ModelRecord> {
        let acquire = order(Guard::Kernel("reserve, consumer_pos"), Ordering::Acquire);
        let consumer = self.consumer.load(acquire);
        let mut pending = self.pending.lock().unwrap();
        let at = self.producer.load(Ordering::Relaxed);
        while *pending < at && self.at(*pending).header.load(Ordering::Relaxed) & BUSY == 0 {
            *pending += RECORD;
        }
        let next = at + RECORD;
        if next - consumer >= Self::SIZE || next - *pending >= Self::SIZE {
            return None;
        }
        let record = self.at(at);
        record.header.store(BUSY | PAYLOAD, Ordering::Relaxed);
        let release = order(Guard::Kernel("reserve, producer_pos"), Ordering::Release);
        self.producer.store(next, release);
        drop(pending);
        let task = *QueuedTask::example(id, id + 1, 0, 1).as_record();
        record.payload.with_mut(|at| unsafe { *at = task });
        Some(record)
    }

    /// `bpf_ringbuf_commit()`, without its wake-up.
    fn commit(&self, record: &ModelRecord, discard: bool) {
        let header = if discard { DISCARD | PAYLOAD } else { PAYLOAD };
        let release = order(Guard::Kernel("commit"), Ordering::Release);
        record.header.swap(header, release);
    }

    /// Reserves and submits. Returns whether there was room.
    fn send(&self, id: u32) -> bool {
        let record = self.reserve(id);
        record
            .inspect(|record| self.commit(record, false))
            .is_some()
    }

    /// Reserves and discards. Returns whether there was room.
    fn give_up(&self, id: u32) -> bool {
        let record = self.reserve(id);
        record.inspect(|record| self.commit(record, true)).is_some()
    }
}

/// Takes what is there, letting others run while a record is read. The producers are told even if
/// that was nothing: with a bound on preemptions, loom looks at too few interleavings around the
/// first look otherwise.
fn receive(ring: &mut Ring, received: &mut Vec<u32>) {
    ring.drain(usize::MAX, |task| {
        let id = task.id;
        thread::yield_now();
        assert_eq!((task.id, task.generation), (id, id + 1), "torn");
        received.push(id);
    });
    ring.release();
    let counts = ring.counts();
    assert_eq!((counts.refused, counts.resyncs), (0, 0), "misread");
}

/// Two CPUs with two records each, one of them given up, for a ring with room for three; the
/// consumer looks twice while they write, and once in the end.
fn two_cpus_write_to_the_ring() {
    explore(2, || {
        let ring_buf = Arc::new(RingBuf::<4>::new(3 * RECORD));
        let mut ring = ring_buf.ring();
        let other = Arc::clone(&ring_buf);
        let first = thread::spawn(move || [other.send(10), other.send(11)]);
        let other = Arc::clone(&ring_buf);
        let second = thread::spawn(move || [other.give_up(20), other.send(21)]);
        let mut received = vec![];
        receive(&mut ring, &mut received);
        receive(&mut ring, &mut received);
        let sent_first = first.join().unwrap();
        let sent_second = second.join().unwrap();
        receive(&mut ring, &mut received);

        let of = |ids: core::ops::Range<u32>| {
            received.iter().copied().filter(move |id| ids.contains(id))
        };
        let expected = [
            (10, sent_first[0]),
            (11, sent_first[1]),
            (21, sent_second[1]),
        ];
        let expected = expected
            .into_iter()
            .filter(|(_, sent)| *sent)
            .map(|(id, _)| id);
        let (low, high): (Vec<u32>, Vec<u32>) = expected.partition(|id| *id < 20);
        assert_eq!(
            of(0..20).collect::<Vec<_>>(),
            low,
            "lost, doubled or out of order"
        );
        assert_eq!(of(20..99).collect::<Vec<_>>(), high, "lost or doubled");
        assert_eq!(ring.counts().discarded, u64::from(sent_second[0]));
        assert_eq!(ring.backlog_bytes(), 0);
    });
}

/// One CPU with three records for a ring of two, with room for one: the third overwrites the first.
fn a_cpu_follows_the_consumer_round() {
    explore(if thorough() { 3 } else { 2 }, || {
        let ring_buf = Arc::new(RingBuf::<2>::new(0));
        let mut ring = ring_buf.ring();
        let other = Arc::clone(&ring_buf);
        let cpu = thread::spawn(move || {
            for id in 1..=3 {
                while !other.send(id) {
                    thread::yield_now();
                }
            }
        });
        let mut received = vec![];
        while received.len() < 3 {
            receive(&mut ring, &mut received);
            thread::yield_now();
        }
        cpu.join().unwrap();
        receive(&mut ring, &mut received);
        assert_eq!(received, [1, 2, 3], "lost, doubled or out of order");
    });
}

#[test]
fn no_record_is_lost_doubled_torn_or_out_of_order() {
    two_cpus_write_to_the_ring();
}

#[test]
fn no_record_is_overwritten_while_it_is_read() {
    a_cpu_follows_the_consumer_round();
}

#[test]
fn a_ring_needs_its_orderings() {
    for guard in [
        Guard::RingProducer,
        Guard::RingHeader,
        Guard::Kernel("reserve, producer_pos"),
        Guard::Kernel("commit"),
    ] {
        breaks_without(guard, &[RACE, "misread"], two_cpus_write_to_the_ring);
    }
    for guard in [Guard::RingConsumer, Guard::Kernel("reserve, consumer_pos")] {
        breaks_without(guard, &[RACE], a_cpu_follows_the_consumer_round);
    }
}

// Kicks and wake-ups

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

const WORKER: usize = 0;
const CPUS: usize = 2;

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
struct Machine {
    mailboxes: [Boxed; CPUS],
    shared_mailbox: Boxed,
    cpus: [CpuState; CPUS],
    machine: MachineState,
    control: Control,
    ring_buf: RingBuf<4>,
    worker: Sleeper,
    waitq: Sleeper,
}

unsafe impl Sync for Machine {}
unsafe impl Send for Machine {}

impl Machine {
    fn new() -> (Arc<Self>, Shared) {
        let machine = Arc::new(Self {
            mailboxes: core::array::from_fn(|_| Boxed::new()),
            shared_mailbox: Boxed::new(),
            cpus: core::array::from_fn(|_| busy_cpu()),
            machine: MachineState {
                idle: [AtomicU64::new(0)],
                takeover: AtomicU64::new(0),
                clock_ahead: AtomicU64::new(0),
                pad: [0; 6],
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
            // Nobody has an order.
            orders: NonNull::dangling(),
            control: NonNull::from(&machine.control),
            nr_cpus: CPUS as u32,
            agent_cpu: 1,
        };
        let shared = unsafe { Shared::new(memory, [machine.ring_buf.ring()]) };
        (machine, shared)
    }

    /// kick_cpus()
    fn kick_cpus(&self, nr: u32) {
        for kick in self.control.kicks.iter().take(nr as usize) {
            assert_eq!(kick.load(Ordering::Relaxed), WORKER as u32);
            self.worker.wake();
        }
    }

    /// publish_idle(): whether the CPU kicks itself.
    fn publish_idle(&self, idle: bool) -> bool {
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
    fn look_for(&self, tasks: usize) -> Vec<u32> {
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
    fn enqueue(&self, id: u32) {
        let record = self.ring_buf.reserve(id).unwrap();
        barrier("wakeup_flags", Ordering::SeqCst);
        let parked = self.control.parked.load(Ordering::Relaxed) == 1;
        self.ring_buf.commit(record, false);
        if parked {
            self.waitq.wake();
        }
    }

    /// poll() with `ringbuf_map_poll_kern()`, without a time-out.
    fn poll(&self) {
        self.waitq.register();
        let consumer = self.ring_buf.consumer.load(Ordering::Acquire);
        if self.ring_buf.producer.load(Ordering::Acquire) == consumer {
            self.waitq.sleep();
        }
    }
}

/// Two decisions in two turns, with `flags`, for a CPU that goes idle, takes them, and goes idle
/// again.
fn a_cpu_goes_idle(flags: u64) {
    explore(5, move || {
        let (machine, mut shared) = Machine::new();
        let kernel = Arc::clone(&machine);
        let cpu = thread::spawn(move || kernel.look_for(2));
        for id in 1..=2 {
            let task = QueuedTask::example(id, id + 1, WORKER as i32, CPUS as u16);
            let mut decision = DispatchedTask::new(&task);
            decision.flags = flags;
            shared.dispatch(&decision).unwrap();
            machine.kick_cpus(shared.flush());
        }
        assert_eq!(cpu.join().unwrap(), [1, 2]);
    });
}

#[test]
fn an_idle_cpu_is_kicked_for_its_mail() {
    a_cpu_goes_idle(0);
}

#[test]
fn an_idle_cpu_is_kicked_for_the_mail_of_all() {
    a_cpu_goes_idle(RL_CPU_ANY);
}

#[test]
fn a_kick_needs_its_barriers() {
    for guard in [Guard::KickPromise, Guard::Kernel("publish_idle")] {
        breaks_without(guard, &[LOST_WAKEUP], || a_cpu_goes_idle(0));
        breaks_without(guard, &[LOST_WAKEUP], || a_cpu_goes_idle(RL_CPU_ANY));
    }
}

/// The thread parks whenever there is nothing in the ring. Each CPU enqueues the tasks of its list.
fn park_while_cpus_enqueue(preemptions: usize, cpus: &'static [&'static [u32]]) {
    explore(preemptions, move || {
        let (machine, mut shared) = Machine::new();
        let start = |ids: &'static [u32]| {
            let kernel = Arc::clone(&machine);
            thread::spawn(move || ids.iter().for_each(|id| kernel.enqueue(*id)))
        };
        let threads: Vec<_> = cpus.iter().copied().map(start).collect();
        let tasks: usize = cpus.iter().map(|ids| ids.len()).sum();
        let mut received = vec![];
        while received.len() < tasks {
            if shared.drain(usize::MAX, |task| received.push(task.id)) == 0
                && !shared.park(|| machine.poll())
            {
                // A record is not committed yet.
                thread::yield_now();
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(shared.drain(usize::MAX, |_| ()), 0, "doubled");
        received.sort();
        let sent: Vec<u32> = cpus.concat();
        assert_eq!(received, sent, "lost or doubled");
    });
}

#[test]
fn a_parked_thread_is_woken_by_one_cpu_again_and_again() {
    park_while_cpus_enqueue(3, &[&[1, 2, 3]]);
}

#[test]
fn a_parked_thread_is_woken_by_either_of_two_cpus() {
    park_while_cpus_enqueue(2, &[&[1], &[2]]);
}

#[test]
fn parking_needs_its_barriers() {
    for guard in [Guard::Park, Guard::Kernel("wakeup_flags")] {
        breaks_without(guard, &[LOST_WAKEUP], || {
            park_while_cpus_enqueue(3, &[&[1, 2, 3]])
        });
    }
}
