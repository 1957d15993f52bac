//! What the kernel side allows tasks before it acts by itself: the limits of its mechanism, in one
//! table.
//!
//! A policy decides which task runs where, when and for how long. It cannot decide in the middle of
//! a slice, nor while it is late. What happens then is bounded by these numbers. The defaults are
//! for desktops; [`Builder::limits`](crate::Builder::limits) sets others.

use core::time::Duration;

use crate::orders::Order;

/// The limits, each with its default and the reason for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A running task with an order gives way only to a deadline that is earlier by this. 500 µs:
    /// the price of two switches and of a cold cache, beyond which a later deadline is the
    /// better choice.
    pub preempt_margin: Duration,
    /// A task that is not urgent and has got a CPU keeps it for so long before it gives way to an
    /// urgent one that is due in 33 ms or later, as those are that work for no frame. To any other
    /// it gives way after a quarter of it, or of the order's latency if that is less. 1 ms: a task
    /// that sends messages to many is not interrupted for each, and two switches with a cold cache
    /// cost a few per cent of it. An urgent task that finds all CPUs just taken waits for so long,
    /// while a timer looks after it.
    pub undisturbed: Duration,
    /// For so long a chain of hand-offs may keep a CPU. 3 ms: others wait for it as for one task,
    /// and one that ran for longer would not be called short.
    pub hand_off: Duration,
    /// After so long with nothing but orders on a CPU a task without one has its turn, if any
    /// waits there; after a quarter of it while user space is late and takes no order back. 20
    /// ms: a frame of 60 Hz.
    pub urgent: Duration,
    /// In that turn it is not displaced for so long. 1 ms: with `urgent`, a twentieth of the CPU.
    pub protected: Duration,
    /// A task runs, whatever the deadlines say, once it has waited for so long. 400 ms: a twelfth
    /// of what the kernel's watchdog allows, and hundreds of such tasks need some time.
    pub longest_wait: Duration,
    /// That is watched for decided tasks whose deadline is so far ahead, in virtual time. 20 ms:
    /// one slice. Nearer ones are soon the first.
    pub far_ahead: Duration,
    /// A CPU that a task of another class has for longer than this loses what waits for it alone.
    /// 2 ms: most real-time tasks and interrupt threads run for some 10 µs.
    pub taken: Duration,
    /// No slice of a decision is longer. 1 s: others wait, and the watchdog counts.
    pub longest_slice: Duration,
    /// What a task that may run nowhere but on the scheduler thread's CPU runs there at a time, if
    /// the thread needs the CPU. 1 ms.
    pub guest_slice: Duration,
    /// What the thread then has to itself. 4 ms: so it has four fifths of its CPU.
    pub agent_slice: Duration,
    /// The order that kernel threads are born with. By default an answer within 1 ms for up to 4
    /// ms of work: other tasks wait for them, and so does the watchdog, which is a kernel
    /// thread's work itself. `None`: they are asked about.
    pub kernel_threads: Option<Order>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            preempt_margin: Duration::from_micros(500),
            undisturbed: Duration::from_millis(1),
            hand_off: Duration::from_millis(3),
            urgent: Duration::from_millis(20),
            protected: Duration::from_millis(1),
            longest_wait: Duration::from_millis(400),
            far_ahead: Duration::from_millis(20),
            taken: Duration::from_millis(2),
            longest_slice: Duration::from_secs(1),
            guest_slice: Duration::from_millis(1),
            agent_slice: Duration::from_millis(4),
            kernel_threads: Some(Order {
                latency_ns: 1_000_000,
                slice_ns: 1_000_000,
                budget_ns: 4_000_000,
                ..Order::default()
            }),
        }
    }
}
