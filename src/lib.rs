//! Metronome: Linux schedulers whose policy runs in user space, without paying for it.
//!
//! `sched_ext` lets a BPF program schedule the machine. Metronome's BPF program holds mechanism
//! only: a thread in user space decides, ahead where it can, and is asked otherwise.
//! [`BpfScheduler`] is that thread's side; the command `scx_metronome`, a crate of its own, is a
//! scheduler for gaming desktops made of it.
//!
//! # A task's way
//!
//! 1. A task wakes. If a CPU is idle it goes there at once (`select_cpu` in `bpf/metronome.bpf.c`):
//!    there is no choice to make, so user space is not asked.
//! 2. If the policy has left a standing order for it ([`orders`]), the kernel side carries that
//!    out: the task is handed the CPU of its waker; or displaces what runs on another, if its order
//!    says so; or waits, by deadline, in a dispatch queue that is served before the others. Past
//!    the budget of its order, and if it is not urgent, it takes turns by weight, its own and that
//!    of its control groups, if its order says so: it waits in the queue that all CPUs share, by
//!    virtual runtime (`bpf/turns.h`). One that was urgent is late before, for a while, and runs
//!    behind all others with orders. User space is told, not asked.
//! 3. Otherwise the kernel side puts it into a dispatch queue of its own, PENDING, and describes it
//!    in one fixed-size record of a BPF ring buffer, its enqueue record (`enqueue`). On a large
//!    machine there are several rings; all records of a task go through the one of its id. No
//!    thread is woken, unless the scheduler thread sleeps.
//! 4. The scheduler thread spins while enqueue records come quickly; otherwise it sleeps, and its
//!    CPU is a worker like any other ([`wait`](mod@wait)). An enqueue record wakes it at once; what
//!    it is only told waits until there is enough to read. It has mapped each [`ring`] and sees a
//!    new producer position as one cache-line transfer. It reads the record in place, having
//!    checked it: a [`QueuedTask`].
//! 5. The [`policy`] gives it a deadline, and it goes into a [`queue`] of fixed capacity. The
//!    policy also says what the task's standing order is from its next wake-up on.
//! 6. When its [`turn`] comes, the decision goes into a [`mailbox`]: of one CPU, an [`idle`] one if
//!    there is one, or of all CPUs. One store publishes it.
//! 7. A CPU that needs work (`dispatch`) runs a task with an order, if one waits. Otherwise it
//!    opens its mailbox and the shared one, and moves each decided task from PENDING to its own
//!    dispatch queue or to the one that all share, both ordered by deadline. Then it runs the
//!    first. At the tick, a running task gives way to one with an earlier deadline.
//! 8. Only if a CPU is idle, or what it runs shall give way at once, does the thread make a system
//!    call: one for all such CPUs of a turn ([`shared`]).
//!
//! # Invariants
//!
//! Comments cite them by number.
//!
//! 1. **No allocation.** The core (all modules that exist without features) is `no_std` without
//!    `alloc`: an allocation there is a compile error.
//! 2. **No page fault.** All memory is locked and touched before the scheduler is attached. Faults
//!    and allocations of the scheduler thread are counted while it runs ([`memory`]); both stay 0.
//! 3. **No lost task.** A runnable task is always on a dispatch queue of the kernel, or running.
//!    Ring, queue and mailboxes only talk about it: what is said late, twice or not at all delays a
//!    task but cannot lose it.
//! 4. **No stale decision.** A decision names a task by dense id and generation; the kernel side
//!    checks both.
//! 5. **No blind trust.** What is read from shared memory is an allegation until one function has
//!    checked it ([`QueuedTask::from_record`]). No byte pattern causes undefined behaviour, a panic
//!    or an endless loop.
//! 6. **Fail open.** A task whose decision does not come runs without it, in turn with others of
//!    its kind. When the process dies, the kernel's default scheduler takes over.
//! 7. **No endless wait.** A task that has waited for 400 ms ([`Limits::longest_wait`]) runs,
//!    whatever the deadlines say.
//!
//! # Modules
//!
//! | | |
//! |---|---|
//! | [`abi`] | what both sides share, byte for byte (`bpf/abi.h`) |
//! | [`ring`], [`task`] | records from the kernel side, and the one place where they are checked |
//! | [`policy`] | what is decided; two that are ready: [`deadline`](policy::deadline), `scx_metronome`'s, and [`fifo`](policy::fifo) |
//! | [`queue`], [`turn`] | the waiting tasks by deadline; the one loop around a policy |
//! | [`mailbox`], [`orders`] | decisions on their way to a CPU; decisions made ahead |
//! | [`limits`] | what the kernel side allows tasks before it acts by itself |
//! | [`shared`] | all the shared memory as one thing, and which CPUs must be kicked |
//! | [`idle`] | which idle CPU takes a task |
//! | [`wait`](mod@wait) | what the thread does when nothing is to do |
//! | [`stats`], [`latency`] | what both sides count, and whether it balances; how long each stage takes |
//! | [`memory`], [`topology`], [`preflight`] | locked and counted memory; the CPUs of the machine; what must hold before the start (feature `kernel`) |
//! | `sim` | a simulated kernel over the same memory (feature `sim`) |
//!
//! # Write a scheduler in 60 lines
//!
//! `examples/vruntime.rs`, whole: weighted fair shares.
#![doc = "```no_run"]
#![doc = include_str!("../examples/vruntime.rs")]
//! ```
//!
//! Of a [`Policy`](policy::Policy),
//!
//! - [`deadline`](policy::Policy::deadline) is the order: a task waits, and the smallest number
//!   runs first; 0 is none, and such a task keeps its slice to the end;
//! - [`slice_ns`](policy::Policy::slice_ns) is for how long: the task gets a CPU next, and so many
//!   others wait;
//! - [`place`](policy::Policy::place) is where: by default on an idle CPU, else on the first that
//!   becomes available; or on a certain one, or there at once (`examples/priority.rs`), or not yet;
//! - [`order`](policy::Policy::order) is the task's standing order, asked after each record about
//!   it; by default none;
//! - [`newborn`](policy::Policy::newborn) is the one that new tasks start with; by default none;
//! - [`events`](policy::Policy::events) says which records to be told of besides enqueue records,
//!   by [`event`](policy::Policy::event): its ends, sleeps and changes, and the fate of decisions;
//!   [`tell_us`](policy::Policy::tell_us) how often to be told of the wake-ups of one task;
//! - [`look`](policy::Policy::look) comes before the calls about a turn's records, and
//!   [`prefetch`](policy::Policy::prefetch) says which task comes next, whose memory may be fetched;
//! - [`begin`](policy::Policy::begin) comes first, and again whenever CPUs have come or gone;
//!   [`refused`](policy::Policy::refused) when a decision found no room;
//! - [`adopt`](policy::Policy::adopt) is the deadline of a task that waited when this policy took
//!   over from another (`examples/swap.rs`).
//!
//! Only the first two must be there. A `&mut dyn Policy` and a `Box<dyn Policy>` are policies, too.
//! [`BpfScheduler::run`] is the loop: it asks them, kicks idle CPUs, and ends when the
//! kernel or a signal says so. [`Builder`] has the options, [`BpfScheduler::accounting`] the accounts.
//! `sim::Sim` runs a policy without a kernel, `vm/run -- vruntime` on one that is not your
//! machine's.
//!
//! # Moving over from `scx_rustland_core`
//!
//! The verbs are the same: the scheduler from its documentation compiles with only its `mod` and
//! `use` lines changed (`examples/seed_fifo`). `docs/MIGRATING.md` has the shape of such a program,
//! and tables of what differs.
//!
//! # Features
//!
//! - `kernel` (default): everything that needs std or libbpf. Without it the crate is the core:
//!   `no_std`, no `alloc`.
//! - `sim`: a simulated kernel to test policies on. Needs std.
//! - `internals`: the modules behind the front are public, for our own tests, benchmarks and
//!   fuzzers: [`abi`], [`idle`], [`mailbox`], [`queue`], [`ring`], [`shared`] and [`turn`]. A new
//!   version may change anything in them.
#![cfg_attr(not(any(feature = "kernel", feature = "sim")), no_std)]

include!(concat!(env!("OUT_DIR"), "/counters.rs"));

#[cfg(all(loom, test))]
extern crate std;

/// Modules that our own tests, benchmarks and fuzzers reach: public with the feature `internals`.
macro_rules! internals {
    ($($name:ident),*) => {$(
        #[cfg(feature = "internals")]
        pub mod $name;
        #[cfg(not(feature = "internals"))]
        #[allow(dead_code, unreachable_pub, reason = "public with the feature")]
        mod $name;
    )*};
}

internals!(abi, idle, mailbox, queue, ring, shared, turn);

pub mod latency;
pub mod limits;
#[cfg(all(loom, test))]
mod models;
pub mod orders;
pub mod policy;
mod prefetch;
mod running;
#[cfg(feature = "sim")]
pub mod sim;
pub mod stats;
mod sync;
pub mod task;
pub mod wait;

/// Its program compiles.
#[cfg(all(doctest, feature = "kernel"))]
#[doc = include_str!("../docs/MIGRATING.md")]
struct Migrating;

#[cfg(feature = "kernel")]
mod bpf {
    #![allow(
        missing_docs,
        dead_code,
        unreachable_pub,
        unused_qualifications,
        unsafe_op_in_unsafe_fn,
        clippy::all,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::undocumented_unsafe_blocks,
        clippy::multiple_unsafe_ops_per_block,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated by libbpf-cargo"
    )]
    include!(concat!(env!("OUT_DIR"), "/metronome.skel.rs"));
}
#[cfg(feature = "kernel")]
mod host;

#[cfg(feature = "kernel")]
pub use host::{
    BadMailbox, BadRing, BpfScheduler, Builder, MailboxesFull, Tuning, UserExitInfo, Watch, memory,
    preflight, topology,
};
pub use limits::Limits;
pub use task::{DispatchedTask, QueuedTask, RL_CPU_ANY, RL_PREEMPT};
