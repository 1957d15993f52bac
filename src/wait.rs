//! What the scheduler thread does when there is nothing to do: spin, or sleep without missing a
//! task.
//!
//! # Problem
//! Spinning answers within a cache-line transfer, but takes a CPU. A thread that sleeps leaves its
//! CPU to others, but must be woken, by a kernel side that otherwise wakes no thread. To wake it
//! with every record costs each enqueue an interrupt; to look whether it sleeps, and then wake it,
//! can miss the moment in which it falls asleep.
//!
//! # Mechanism
//! `control.parked` tells the kernel side whether records must wake us. Only we write it:
//!
//! | `parked` | we                                     | a record of `metronome_enqueue()` is submitted with      |
//! |----------|----------------------------------------|----------------------------------------------------------|
//! | 0        | run, and look at the rings ourselves   | `BPF_RB_NO_WAKEUP`                                       |
//! | 1        | fall asleep, sleep, or wake up         | `BPF_RB_FORCE_WAKEUP`: the thread in `poll()` is woken   |
//!
//! | from | when                                                       | to | and                                  |
//! |------|------------------------------------------------------------|----|--------------------------------------|
//! | 0    | nothing to do, [`Waiter`] says [`Park`](Next::Park)        | 1  | full fence, then look at the rings   |
//! | 1    | a producer position is past ours                           | 0  | do not sleep                         |
//! | 1    | none is: `poll()` on all rings returns, for any reason     | 0  | look at the rings as always          |
//!
//! No task waits for an answer to an event, so events of `tell()` wake us only once 512 of them lie
//! there, or the first has lain for 20 ms (`event_wakeup_flags()` in `bpf/records.h`). What comes
//! too late for that is read when `poll()` times out.
//!
//! # Orderings
//! Dekker's argument, as for kicks ([`shared`](crate::shared)). We store `parked`, pass a full
//! fence, and read the producer position. `metronome_enqueue()` advances the producer position
//! (`bpf_ringbuf_reserve()`), passes a full barrier (`wakeup_flags()` in `bpf/records.h`), and
//! reads `parked`. So:
//!
//! | whose barrier is first | we                        | the kernel side                                        |
//! |------------------------|---------------------------|--------------------------------------------------------|
//! | the kernel side's      | see the record: no sleep  | may see 0 or 1; if 1, it wakes a thread that is awake  |
//! | ours                   | may sleep                 | sees 1: wakes                                          |
//!
//! That wake-up may come before `poll()` is ready for it. `ringbuf_map_poll_kern()` registers with
//! the wait queue first and then compares the positions; `wake_up_all()` takes the lock of that
//! queue. Either it finds us registered, or we register after it and find the position advanced.
//! The comparison is with the consumer position, which [`Ring::drain`](crate::ring::Ring::drain)
//! has brought up to date.
//!
//! The store of 0 needs no order: a CPU that still reads 1 wakes a thread that is awake.
//!
//! A record that is reserved but not committed counts as a record: the thread stays awake for the
//! moment it takes.
//!
//! # Checked
//! `make loom` runs [`Shared::park`](crate::shared::Shared::park) against a model of reserve,
//! commit and poll, and shows that neither barrier can be weaker (`src/models.rs`: three records of
//! one CPU and up to three preemptions, or one of each of two CPUs and up to two; one ring; no
//! time-out, so that a lost wake-up is a deadlock).
//!
//! # Cost
//! On a real kernel (7.3) with 4 CPUs, in guest time; CPU time in 2 s. "seen" is from the enqueue
//! of a task until the scheduler thread has its record, p50 and p99, while CPUs are idle and four
//! threads sleep a ms at a time and are asked about; busy are two hogs for each CPU:
//!
//! | mode               | idle: scheduler | seen           | busy: hogs | busy: scheduler |
//! |--------------------|-----------------|----------------|------------|-----------------|
//! | [`Wait::Adaptive`] | 0.00 s          | 26.7, 147.5 us | 8.00 s     | 0.01 s          |
//! | [`Wait::Park`]     | 0.00 s          | 26.7, 45.1 us  | 8.00 s     | 0.00 s          |
//! | [`Wait::Spin`]     | 2.00 s          | 13.4, 26.7 us  | 6.00 s     | 2.00 s          |
//!
//! One run, and p50 and p99 are of some fifty to two hundred wake-ups (one in 256). In guest time
//! an instruction takes 2 ns here, so µs of a processor are fewer: the ratios are what counts. The
//! table is printed by
//!
//! ```text
//! vm/test --time icount:2 wait::what_each_wait_mode_costs
//! ```
//!
//! # Limits
//! Only a record wakes the thread: not a signal that came just before `poll()`, nor the end of the
//! scheduler. `poll()` should have a time-out. And only the rings are looked at: do not park while
//! a policy holds tasks.
#![deny(clippy::indexing_slicing)]

use core::fmt;
use core::str::FromStr;

use crate::sync::{AtomicU32, Guard, Ordering, fence, order};

/// How long [`Wait::Adaptive`] spins for nothing before it parks, ns.
///
/// To spin for as long as a wake-up costs, and then to park, never costs more than twice what the
/// best choice would have cost with the future known (Karlin et al., "Empirical studies of
/// competitive spinning", SOSP 1991). A thread in `poll()` ran 28 us after its event in the median
/// and 95 us at the 99th percentile, on a busy virtual machine with two CPUs.
pub const STRETCH_NS: u64 = 100_000;

/// Idle turns between two looks at the clock: a look takes about as long as a turn, and would delay
/// what comes meanwhile.
const TURNS_PER_LOOK: u32 = 64;

/// What to do when there is nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Spin, always.
    Spin,
    /// Spin for [`STRETCH_NS`] after an enqueue record, and then park: while these come faster than
    /// that, the thread answers at once; while they do not, its CPU is a worker like any other.
    #[default]
    Adaptive,
    /// Park at once.
    Park,
}

impl fmt::Display for Wait {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Spin => "spin",
            Self::Adaptive => "adaptive",
            Self::Park => "park",
        })
    }
}

impl FromStr for Wait {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "spin" => Ok(Self::Spin),
            "adaptive" => Ok(Self::Adaptive),
            "park" => Ok(Self::Park),
            _ => Err("must be spin, adaptive or park"),
        }
    }
}

/// What to do in this turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Look again.
    Spin,
    /// Sleep: [`Shared::park`](crate::shared::Shared::park).
    Park,
}

/// Decides between spinning and parking, turn by turn.
#[derive(Clone, Copy, Debug)]
pub struct Waiter {
    wait: Wait,
    /// In a row, up to this one.
    idle_turns: u32,
    /// The clock at the first of them.
    idle_since: u64,
}

impl Waiter {
    /// Starts with a busy turn behind it.
    pub const fn new(wait: Wait) -> Self {
        Self {
            wait,
            idle_turns: 0,
            idle_since: 0,
        }
    }

    /// From now on it waits like this.
    pub fn set(&mut self, wait: Wait) {
        self.wait = wait;
    }

    /// To be called after a turn with something to do.
    pub fn busy(&mut self) {
        self.idle_turns = 0;
    }

    /// To be called after a turn with nothing to do. `clock` is asked for the time in ns, which
    /// must not go backwards.
    ///
    /// # Cost
    /// A look at the clock in one of 64 idle turns; none at all unless [`Wait::Adaptive`].
    pub fn idle(&mut self, clock: impl FnOnce() -> u64) -> Next {
        match self.wait {
            Wait::Adaptive => self.adapt(clock),
            Wait::Spin => Next::Spin,
            Wait::Park => Next::Park,
        }
    }

    fn adapt(&mut self, clock: impl FnOnce() -> u64) -> Next {
        if self.idle_turns.is_multiple_of(TURNS_PER_LOOK) {
            let now = clock();
            if self.idle_turns == 0 {
                self.idle_since = now;
            }
            // A thread that wakes up to no enqueue record looks at the clock at once, and parks
            // again.
            if now.saturating_sub(self.idle_since) >= STRETCH_NS {
                return Next::Park;
            }
        }
        self.idle_turns = self.idle_turns.wrapping_add(1);
        Next::Spin
    }
}

/// Sleeps by `sleep` if there is `nothing` in the rings. Returns whether it slept.
///
/// # Cost
/// Two stores and a full fence, whether it sleeps or not. While `parked` is set, each record costs
/// its enqueue an interrupt.
pub(crate) fn park(
    parked: &AtomicU32,
    nothing: impl FnOnce() -> bool,
    sleep: impl FnOnce(),
) -> bool {
    // ORDERING: relaxed: the fence behind it orders it.
    parked.store(1, Ordering::Relaxed);
    // ORDERING: full, with the addition in wakeup_flags(); see the module.
    fence(order(Guard::Park, Ordering::SeqCst));
    let nothing = nothing();
    if nothing {
        sleep();
    }
    // ORDERING: relaxed, with the load in wakeup_flags() in bpf/records.h: a stale 1 costs a
    // wake-up in vain.
    parked.store(0, Ordering::Relaxed);
    nothing
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The time of the first idle turn that parks, when turns take `turn_ns`.
    fn parks_at(waiter: &mut Waiter, from: u64, turn_ns: u64) -> Option<u64> {
        (0..1_000_000)
            .map(|turn| from + turn * turn_ns)
            .find(|now| waiter.idle(|| *now) == Next::Park)
    }

    #[test]
    fn spin_never_parks_and_park_parks_at_once_and_neither_looks_at_the_clock() {
        let no_clock = || unreachable!("no look at the clock");
        let mut spin = Waiter::new(Wait::Spin);
        assert!((0..1000).all(|_| spin.idle(no_clock) == Next::Spin));
        assert_eq!(Waiter::new(Wait::Park).idle(no_clock), Next::Park);
    }

    #[test]
    fn adaptive_parks_after_a_stretch_whatever_the_length_of_a_turn() {
        for turn_ns in [1, 20, 300, 5_000, STRETCH_NS, 3 * STRETCH_NS] {
            let mut waiter = Waiter::new(Wait::Adaptive);
            let parked_at = parks_at(&mut waiter, 7, turn_ns).map(|now| now - 7);
            let latest = STRETCH_NS + u64::from(TURNS_PER_LOOK) * turn_ns;
            assert!(
                parked_at.is_some_and(|after| (STRETCH_NS..=latest).contains(&after)),
                "turns of {turn_ns} ns: parked after {parked_at:?}"
            );
        }
    }

    #[test]
    fn a_busy_turn_begins_a_new_stretch() {
        let mut waiter = Waiter::new(Wait::Adaptive);
        assert!(parks_at(&mut waiter, 0, 10).is_some());
        waiter.busy();
        let again = parks_at(&mut waiter, 1 << 40, 10);
        assert!(again.is_some_and(|now| now >= (1 << 40) + STRETCH_NS));
    }

    #[test]
    fn a_thread_that_wakes_up_to_nothing_parks_again_soon() {
        let mut waiter = Waiter::new(Wait::Adaptive);
        let parked_at = parks_at(&mut waiter, 0, 10).unwrap_or(u64::MAX);
        let again = parks_at(&mut waiter, parked_at, 10);
        assert!(again.is_some_and(|now| now - parked_at <= 10 * u64::from(TURNS_PER_LOOK)));
    }

    #[test]
    fn looks_at_the_clock_are_rare() {
        let mut looks = 0;
        let mut waiter = Waiter::new(Wait::Adaptive);
        for _ in 0..640 {
            let clock = || {
                looks += 1;
                0
            };
            waiter.idle(clock);
        }
        assert_eq!(looks, 10);
    }
}
