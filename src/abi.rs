//! The mirror of `bpf/abi.h`: what user space and the kernel side share.
//!
//! Sizes and offsets are asserted here and there at compile time, and a test compares each field
//! and number with the compiled BPF object. Words that the other side may change at any moment are
//! `Atomic*`. There are two exceptions, because the kernel side leaves them alone by the time they
//! are read: the record of the ring, from the moment it is published until the consumer position
//! has passed it; and the texts of [`ExitRecord`], which it writes once, before `kind`.

use crate::sync::{AtomicU32, AtomicU64, OwnedU32, OwnedU64};

#[cfg(all(test, feature = "kernel"))]
mod layout;

/// CPUs are numbered below this.
pub const MAX_CPUS: usize = if cfg!(loom) { 2 } else { 1024 };
/// Task ids are numbered below this. Tasks beyond it are scheduled by the kernel side alone.
pub const MAX_TASKS: usize = 65_536;
/// Decisions that fit into the mailbox of one CPU.
pub const MAILBOX_SLOTS: usize = if cfg!(loom) { 2 } else { 256 };
/// What a weight of 1 is worth where there are no control groups: the unit of
/// [`QueuedTask::share`](crate::task::QueuedTask::share).
pub const SHARE: u64 = 1024;
/// Decisions that fit into the mailbox that all CPUs share.
pub const SHARED_MAILBOX_SLOTS: usize = if cfg!(loom) { 2 } else { 16_384 };
/// Rings at most. All records of one task are in one ring, so they are in order.
pub const MAX_RINGS: usize = if cfg!(loom) { 1 } else { 16 };
/// Bytes of a ring: room for 8,192 records.
pub const RING_BYTES: u32 = 1 << 20;
/// Where in a generation the epoch begins.
pub const EPOCH_SHIFT: u32 = 20;
/// Epochs are below this, and not 0.
pub const EPOCHS: u32 = 1 << 12;
/// Where in `queued_task.flags` the `SCX_WAKE_*` begin.
pub const WAKE_FLAGS_SHIFT: u32 = 48;
/// In [`QueuedTask::flags`](crate::task::QueuedTask::flags): an idle CPU took the task as it woke.
pub const FOUND_IDLE: u64 = 1 << 56;
/// Likewise: the task is of SCHED_BATCH or SCHED_IDLE.
pub const IS_BATCH: u64 = 1 << 57;
/// `decision.flags`: the first CPU that becomes available runs the task.
pub const DECISION_ANY_CPU: u64 = 1 << 20;
/// `decision.flags`: what runs on its CPU gives way.
pub const DECISION_PREEMPT: u64 = 1 << 21;
/// A task that takes turns is at most so many lags, of a quarter of the default slice, ahead of
/// virtual time.
pub const LEAD_LAGS: u64 = 32;
/// Past its budget an order holds for so many more, behind all others; of a light task for the part
/// of them that its share is of 100.
pub const LATE_BUDGETS: u64 = 7;
/// Real time passes at most this much faster than virtual time.
pub const SLOWEST: u64 = 16;
/// In an entry of `control.kicks`: what runs there gives way.
pub const KICK_PREEMPT: u32 = 1 << 31;

/// Which wake-ups are measured; see [`is_sampled`](crate::latency::is_sampled).
pub const SAMPLE_FACTOR: u32 = 0x9e37_79b1;
/// As [`SAMPLE_FACTOR`].
pub const SAMPLE_SHIFT: u32 = 24;
/// Stages that are measured.
pub const NR_STAGES: usize = 6;
/// Buckets of a histogram.
pub const LATENCY_BUCKETS: usize = 256;

/// `running_task.kind`: a task that user space decided about, or waits to.
pub const RUNS_DECIDED: u32 = 1;
/// `running_task.kind`: a task with a standing order.
pub const RUNS_ORDERED: u32 = 2;

/// The part of the default slice that a task gets while no slice is shortened as tasks wait.
pub const UNDECIDED_SLICE: u64 = 8;
/// Decisions that one look for work carries out at most.
pub const DRAIN_BATCH: usize = 32;

/// ns of a unit of the times in the word of a standing order ([`orders`](crate::orders)).
pub const ORDER_UNIT_NS: u64 = 16_000;
/// The bits of a time, and of the epoch, which are the lowest.
pub const ORDER_FIELD: u64 = (1 << 12) - 1;
/// Where the latency begins.
pub const ORDER_LATENCY_SHIFT: u32 = 12;
/// Where the slice begins.
pub const ORDER_SLICE_SHIFT: u32 = 24;
/// Where the budget begins.
pub const ORDER_BUDGET_SHIFT: u32 = 36;
/// Where the CPU begins.
pub const ORDER_CPU_SHIFT: u32 = 48;
/// It is an order.
pub const ORDER_VALID: u64 = 1 << 58;
/// It displaces.
pub const ORDER_PREEMPT: u64 = 1 << 59;
/// It may be handed its waker's CPU.
pub const ORDER_HAND_OFF: u64 = 1 << 60;
/// Its CPU counts.
pub const ORDER_PREFERS: u64 = 1 << 61;
/// Children start with it.
pub const ORDER_INHERIT: u64 = 1 << 62;
/// Past the budget the task takes turns.
pub const ORDER_IN_TURN: u64 = 1 << 63;

macro_rules! define_counter {
    ($($variant:ident $field:ident $meaning:literal,)*) => {
        /// What the kernel side counts, in the order of `bpf/counters.h`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter {
            $(#[doc = concat!("Counts ", $meaning, ".")] $variant,)*
        }

        impl Counter {
            /// All, in the order of their numbers.
            pub const ALL: [Self; [$(Self::$variant),*].len()] = [$(Self::$variant),*];
        }
    };
}
kernel_counters!(define_counter);

/// Counters per CPU, some unused.
pub const NR_COUNTERS: usize = if cfg!(loom) {
    1
} else {
    Counter::ALL.len().next_multiple_of(8)
};

/// A slot of a mailbox. Which side stores what is told in `mailbox.rs`.
#[repr(C, align(64))]
pub struct Slot {
    pub(crate) seq: AtomicU64,
    pub(crate) id: OwnedU32,
    pub(crate) generation: OwnedU32,
    pub(crate) slice_ns: OwnedU64,
    pub(crate) vtime: OwnedU64,
    pub(crate) flags: OwnedU64,
    pub(crate) seen_at: OwnedU64,
    pub(crate) decided_at: OwnedU64,
    pub(crate) pad: u64,
}

/// What precedes the slots of a mailbox.
#[repr(C, align(64))]
pub struct MailboxHead {
    pub(crate) head: AtomicU64,
    pub(crate) pad: [u64; 7],
}

/// What the kernel side publishes about a CPU.
#[repr(C, align(64))]
pub struct CpuState {
    /// `2 * n + idle`; `n` grows whenever the CPU runs out of work or gets some.
    pub(crate) idle_seq: AtomicU64,
    pub(crate) pad: [u64; 7],
    pub(crate) running: RunningTask,
    pub(crate) counters: [AtomicU64; NR_COUNTERS],
}

/// What a CPU runs. The words are written one after the other, so they may belong to two tasks.
#[repr(C)]
pub struct RunningTask {
    pub(crate) pid: AtomicU32,
    pub(crate) id: AtomicU32,
    pub(crate) since: AtomicU64,
    pub(crate) deadline: AtomicU64,
    pub(crate) slice: AtomicU64,
    pub(crate) kind: AtomicU32,
    /// Tasks on the CPU's own dispatch queue when it last looked there.
    pub(crate) waiting: AtomicU32,
    pub(crate) pad: [u64; 3],
}

/// What the kernel side publishes about the machine as a whole.
#[repr(C, align(64))]
pub struct MachineState {
    /// A bit for each CPU that is idle, which goes along with its `idle_seq`.
    pub(crate) idle: [AtomicU64; MAX_CPUS.div_ceil(64)],
    /// Odd in fallback, while the kernel side decides without user space; grows with each change.
    pub(crate) fallback: AtomicU64,
    pub(crate) pad: [u64; 7],
    /// Virtual time, by which tasks take turns, ns.
    pub(crate) virtual_now: AtomicU64,
    pub(crate) pad2: [u64; 7],
}

/// What user space tells the kernel side as a whole.
#[repr(C)]
pub struct Control {
    /// Grows with every turn of the scheduler thread.
    pub(crate) heartbeat: AtomicU64,
    pub(crate) nr_kicks: AtomicU32,
    pub(crate) kicks: [AtomicU32; MAX_CPUS],
    /// 1 while the scheduler thread sleeps or is about to. It is on another cache line than the
    /// heartbeat, because every CPU reads it with every task that it enqueues.
    pub(crate) parked: AtomicU32,
    /// The standing order of tasks whose parent has none that is inherited; 0: none.
    pub(crate) newborn: AtomicU64,
    /// A bit for each [`Kind`](crate::task::Kind) of record that user space wants besides the
    /// enqueue records.
    pub(crate) events: AtomicU32,
    /// Of the wake-ups of one task about which it is not asked it hears at most so often, µs.
    pub(crate) tell_us: AtomicU32,
    /// The fallback during which the rings were found empty last.
    pub(crate) caught_up: AtomicU64,
    /// How many policies there have been: what a task was born with under an earlier one is void.
    pub(crate) policies: AtomicU64,
}

/// How many tasks took how long; [`latency`](crate::latency) has the buckets.
#[repr(C)]
pub struct SharedHistogram {
    pub(crate) buckets: [AtomicU64; LATENCY_BUCKETS],
}

/// How long each stage took of the tasks that this CPU ran, in the order of `enum stage`.
#[repr(C)]
pub struct CpuLatency {
    pub(crate) stages: [SharedHistogram; NR_STAGES],
}

/// Argument of the program `pick_idle_cpu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PickArgs {
    /// The task.
    pub pid: i32,
    /// Where it ran last.
    pub prev_cpu: i32,
    /// `SCX_WAKE_*`.
    pub wake_flags: u64,
}

/// Why the scheduler ended; `kind` is stored last.
#[repr(C)]
pub struct ExitRecord {
    pub(crate) exit_code: AtomicU64,
    pub(crate) kind: AtomicU32,
    pad: u32,
    pub(crate) reason: [u8; 128],
    pub(crate) msg: [u8; 1024],
}

#[cfg(not(loom))]
const _: () = {
    use core::mem::{offset_of, size_of};

    use crate::task::QueuedTask;

    assert!(size_of::<QueuedTask>() == 120);
    assert!(offset_of!(QueuedTask, flags) == 24);
    assert!(offset_of!(QueuedTask, comm) == 104);
    assert!(size_of::<Slot>() == 64);
    assert!(offset_of!(Slot, flags) == 32);
    assert!(offset_of!(Slot, seen_at) == 40);
    assert!(size_of::<MailboxHead>() == 64);
    assert!(size_of::<RunningTask>() == 64);
    assert!(offset_of!(CpuState, running) == 64);
    assert!(size_of::<CpuState>() == 320);
    assert!(offset_of!(CpuState, counters) == 128);
    assert!(offset_of!(MachineState, fallback) == 128);
    assert!(offset_of!(MachineState, virtual_now) == 192);
    assert!(size_of::<MachineState>() == 256);
    assert!(size_of::<Control>() == 4144);
    assert!(offset_of!(Control, parked) == 4108);
    assert!(size_of::<CpuLatency>() == 12288);
    assert!(size_of::<PickArgs>() == 16);
    assert!(size_of::<ExitRecord>() == 1168);
};
