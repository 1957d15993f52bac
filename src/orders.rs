//! Standing orders: what the kernel side shall do when a task wakes, decided ahead.
//!
//! # Problem
//! A decision on every wake-up costs a round trip through another CPU, just where it hurts: in
//! chains of short wake-ups on a busy machine. To let the kernel side decide by itself would move
//! the policy there.
//!
//! # Mechanism
//! The policy decides ahead. A mapped table holds one word per task id, its standing order: how
//! soon the task must run after a wake-up, for how long, whether it displaces others. We write the
//! word whenever the policy's view of the task changes; the kernel side reads it when the task
//! wakes, and acts at once (`bpf/orders.h`). It tells us afterwards, by a record of
//! the kind [`Ordered`](crate::task::Kind::Ordered), and asks only when there is no order or it is
//! used up.
//!
//! An order may hold for all that is not urgent, too: then a task whose budget is used up, or is 0,
//! takes turns with all others by weight (`bpf/turns.h`), and a policy that gives such orders to
//! all is asked about none.
//!
//! | bits  | field    | meaning                                                                              |
//! |-------|----------|--------------------------------------------------------------------------------------|
//! | 0-11  | epoch    | of the id that is meant; in another epoch the order is void                         |
//! | 12-23 | latency  | the deadline is so long after the wake-up, in units of 16 µs                         |
//! | 24-35 | slice    | in units of 16 µs; 0 is the default slice                                            |
//! | 36-47 | budget   | CPU time since it last slept for which the order holds, in units of 16 µs            |
//! | 48-57 | CPU      | where it prefers to run, if bit 61 is set                                            |
//! | 58    | valid    | 0: no order                                                                          |
//! | 59    | preempt  | may displace a task without an order, or one whose deadline is later by a margin     |
//! | 60    | hand-off | may be handed the CPU of its waker, if that has an order too                         |
//! | 61    | prefers  | the CPU field counts                                                                 |
//! | 62    | inherit  | its children start with this order                                                   |
//! | 63    | in turn  | past its budget it takes turns with all others, and is not asked about               |
//!
//! One word is read and written at once, so there are no torn orders, and nothing to lock. Any 64
//! bits are an order that the kernel side can carry out: what is out of range is ignored, and
//! counted.
//!
//! # What they are worth
//! The game of `vm/demo` (a frame, an audio and an input thread, six hogs, a pair that passes
//! messages) on a real kernel (7.3) with 4 CPUs, in guest time, 3 s each, one run: under the
//! default scheduler, and with orders for no task, for urgent ones, and for all (`--orders`):
//!
//! |                          | default | none | urgent | all   |
//! |--------------------------|---------|------|--------|-------|
//! | frame completion p99, ms | 37.5    | 23.1 | 12.7   | 13.4  |
//! | frames missed, %         | 68      | 21   | 0      | 0     |
//! | audio wake-up p99, ms    | 4.8     | 6.8  | 1.7    | 2.1   |
//! | input wake-up p50, ms    | 0.01    | 1.34 | 0.40   | 0.36  |
//! | input wake-up p99, ms    | 1.9     | 7.2  | 2.0    | 1.7   |
//! | hogs' CPU time, CPUs     | 2.93    | 2.50 | 2.34   | 2.82  |
//! | ping-pong, round trips/s | 7982    | 871  | 10318  | 7285  |
//!
//! Runs differ by some 10 %, ping-pong by 40. The command is
//!
//! ```text
//! vm/run --time icount --timeout 900 --add vm/orders-guest -- sh /bin/orders-guest 3
//! ```
//!
//! # Limits
//! Times are up to 65.5 ms in steps of 16 µs. What the policy does not know cannot be in an order:
//! it is the policy's task to look at the records and to write the order anew.
#![deny(clippy::indexing_slicing)]

use core::ptr::NonNull;

use crate::abi::{
    MAX_CPUS, MAX_TASKS, ORDER_BUDGET_SHIFT, ORDER_CPU_SHIFT, ORDER_FIELD, ORDER_HAND_OFF,
    ORDER_IN_TURN, ORDER_INHERIT, ORDER_LATENCY_SHIFT, ORDER_PREEMPT, ORDER_PREFERS,
    ORDER_SLICE_SHIFT, ORDER_UNIT_NS, ORDER_VALID,
};
use crate::prefetch::prefetch;
use crate::sync::{AtomicU64, Ordering};
use crate::task::QueuedTask;

/// ns of a unit of the fields that are times.
pub const UNIT_NS: u64 = ORDER_UNIT_NS;

const _: () = assert!(MAX_CPUS <= 1 << 10);

/// What to do with a task when it wakes. Times are in ns, from 0 to 65,520,000, and are rounded up
/// to 16 µs; longer ones count as the longest.
///
/// The default is an order that a policy can begin with: the task should run within 4 ms, holds to
/// that for up to 8 ms of work, for the default slice at a time, and displaces no task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// It should have a CPU at most so long after it wakes. Of several tasks with orders the one
    /// whose time is up first runs first, and all of them before those without.
    pub latency_ns: u64,
    /// How long it may run in one go; 0 is the default slice.
    pub slice_ns: u64,
    /// For how much CPU time since it last slept the task goes by this order, or since the last
    /// record of the kind [`Caller`](crate::task::Kind::Caller), if the policy asks for these. Past
    /// it user space is asked about the task, or the task takes turns
    /// ([`in_turn`](Self::in_turn)). With 0 that is so from the start.
    pub budget_ns: u64,
    /// If no CPU is idle, it displaces a task without an order, or else one whose deadline is
    /// later by a margin.
    pub preempts: bool,
    /// If its waker is about to sleep and has an order too, it may run on the waker's CPU next.
    pub hand_off: bool,
    /// The CPU that is looked at first.
    pub cpu: Option<u32>,
    /// Its children start with this order, until the policy gives them one.
    pub inherit: bool,
    /// Past the budget it takes turns with the others of its kind, by weight, and is not asked
    /// about: of two with the same share the one that runs in short bursts comes first.
    /// `bpf/turns.h` has the rules. Slices are then the default slice, shortened as others
    /// wait to no less than [`Builder::slice_min`](crate::Builder::slice_min).
    ///
    /// Before that it is late, if its latency is below 33 ms: for seven budgets more, of a task
    /// whose share is less than 100 for that part of them, it runs before those without an order,
    /// and behind all others with one.
    pub in_turn: bool,
}

impl Default for Order {
    fn default() -> Self {
        Self {
            latency_ns: 4_000_000,
            slice_ns: 0,
            budget_ns: 8_000_000,
            preempts: false,
            hand_off: false,
            cpu: None,
            inherit: false,
            in_turn: false,
        }
    }
}

impl Order {
    /// The order of a task that is never urgent: it takes turns.
    pub const IN_TURN: Self = Self {
        latency_ns: 0,
        slice_ns: 0,
        budget_ns: 0,
        preempts: false,
        hand_off: false,
        cpu: None,
        inherit: false,
        in_turn: true,
    };

    /// The word for the task of this epoch.
    pub fn encode(&self, epoch: u32) -> u64 {
        let units = |ns: u64| ns.div_ceil(UNIT_NS).min(ORDER_FIELD);
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        let cpu = self.cpu.filter(|cpu| (*cpu as usize) < MAX_CPUS);
        ORDER_VALID
            | u64::from(epoch) & ORDER_FIELD
            | units(self.latency_ns) << ORDER_LATENCY_SHIFT
            | units(self.slice_ns) << ORDER_SLICE_SHIFT
            | units(self.budget_ns) << ORDER_BUDGET_SHIFT
            | u64::from(cpu.unwrap_or_default()) << ORDER_CPU_SHIFT
            | flag(cpu.is_some(), ORDER_PREFERS)
            | flag(self.preempts, ORDER_PREEMPT)
            | flag(self.hand_off, ORDER_HAND_OFF)
            | flag(self.inherit, ORDER_INHERIT)
            | flag(self.in_turn, ORDER_IN_TURN)
    }

    /// What a word says, and for the task of which epoch; `None` if it is no order.
    pub fn decode(word: u64) -> Option<(Self, u32)> {
        let ns = |shift: u32| (word >> shift & ORDER_FIELD) * UNIT_NS;
        let order = Self {
            latency_ns: ns(ORDER_LATENCY_SHIFT),
            slice_ns: ns(ORDER_SLICE_SHIFT),
            budget_ns: ns(ORDER_BUDGET_SHIFT),
            preempts: word & ORDER_PREEMPT != 0,
            hand_off: word & ORDER_HAND_OFF != 0,
            cpu: (word & ORDER_PREFERS != 0)
                .then_some((word >> ORDER_CPU_SHIFT & (MAX_CPUS as u64 - 1)) as u32),
            inherit: word & ORDER_INHERIT != 0,
            in_turn: word & ORDER_IN_TURN != 0,
        };
        (word & ORDER_VALID != 0).then_some((order, (word & ORDER_FIELD) as u32))
    }
}

/// The table, of which this is the only writer.
#[derive(Debug)]
pub struct Orders {
    table: NonNull<AtomicU64>,
}

// SAFETY: the pointer is to shared memory that any thread may access, and `&mut self` keeps writers
// one at a time.
unsafe impl Send for Orders {}

impl Orders {
    /// Takes over the table.
    ///
    /// # Safety
    /// Until this is dropped, `table` must point to a live, writable array of [`MAX_TASKS`] words
    /// that no other code writes.
    pub unsafe fn new(table: NonNull<AtomicU64>) -> Self {
        Self { table }
    }

    /// From its next wake-up on, this is done with the task; `None`: user space is asked.
    ///
    /// # Cost
    /// A load and, if the order is another one than before, a store.
    pub fn set(&mut self, task: &QueuedTask, order: Option<Order>) {
        // Without the valid bit the epoch says that the task has none, whatever it was born with.
        let none = u64::from(task.epoch());
        let word = order.map_or(none, |order| order.encode(task.epoch()));
        if let Some(slot) = self.slot(task.id)
            // Most orders are what they were, and the kernel side's copy of the line stays good.
            // ORDERING: relaxed: we read what we alone write; order_of() in bpf/orders.h only
            // reads.
            && slot.load(Ordering::Relaxed) != word
        {
            // ORDERING: relaxed: the word is all there is. The partner is order_of() in
            // bpf/orders.h.
            slot.store(word, Ordering::Relaxed);
        }
    }

    /// Has the order fetched that is [set](Self::set) next, of an id that is any number.
    pub fn prefetch(&self, id: u32) {
        prefetch(self.slot(id));
    }

    /// No task has an order.
    pub fn clear(&mut self) {
        for id in 0..MAX_TASKS as u32 {
            if let Some(slot) = self.slot(id)
                // ORDERING: both relaxed, as in set(): a task that order_of() looks up meanwhile
                // goes by its old order.
                && slot.load(Ordering::Relaxed) & ORDER_VALID != 0
            {
                slot.store(0, Ordering::Relaxed);
            }
        }
    }

    fn slot(&self, id: u32) -> Option<&AtomicU64> {
        ((id as usize) < MAX_TASKS).then(|| {
            // SAFETY: within the table, by the contract of `new`.
            let at = unsafe { self.table.add(id as usize) };
            // SAFETY: live and aligned by the contract of `new`.
            unsafe { at.as_ref() }
        })
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_rounded_up_and_end_at_the_longest() {
        let order = Order {
            latency_ns: 1,
            slice_ns: 16_001,
            budget_ns: u64::MAX,
            ..Order::default()
        };
        let (order, _) = Order::decode(order.encode(0)).unwrap();
        assert_eq!(
            (order.latency_ns, order.slice_ns, order.budget_ns),
            (16_000, 32_000, 65_520_000)
        );
    }

    #[test]
    fn no_order_is_all_zero() {
        assert_eq!(Order::decode(0), None);
        assert_ne!(Order::default().encode(0), 0);
    }

    #[test]
    fn the_default_order_is_one_that_holds() {
        let order = Order::default();
        assert!(order.budget_ns > 0 && order.latency_ns > 0);
        assert_eq!(Order::decode(order.encode(3)), Some((order, 3)));
    }

    proptest! {
        #[test]
        fn any_word_with_the_valid_bit_is_an_order_that_encodes_to_itself(word: u64) {
            // The CPU counts only with its flag.
            let mut meant = word | ORDER_VALID;
            if meant & ORDER_PREFERS == 0 {
                meant &= !(0x3ff << ORDER_CPU_SHIFT);
            }
            let (order, epoch) = Order::decode(meant).unwrap();
            prop_assert_eq!(order.encode(epoch), meant);
        }
    }
}
