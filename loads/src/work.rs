//! Work that really uses a CPU: a counted arithmetic loop, and how many of its iterations make a
//! millisecond.
//!
//! Looking at the clock instead would let a thread that was preempted for a millisecond do a
//! millisecond less.
//!
//! The usual calibration ([`alone`]) takes the fastest of several tries, because everything else
//! that runs can only make it slower, and must run while nothing else does. A millisecond of work
//! then lasts longer once all CPUs are busy: a little where they share caches and a power budget,
//! and as many times as there are CPUs under QEMU's instruction-counted time, where they share one
//! clock. [`together`] measures that speed instead: with it a millisecond of work lasts a
//! millisecond beside hogs.

use crate::clock::{MS, now, sleep_until};
use serde::{Deserialize, Serialize};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::scope;

/// A try lasts at least this long (ns), so that reading the clock does not weigh.
const TRY: u64 = 2 * MS;
const TRIES: usize = 25;
/// [`together`] counts in steps of so many iterations, over windows of so many ns, of which it
/// takes the best.
const STEP: u64 = 2_000;
const WINDOW: u64 = 110 * MS;
const WINDOWS: usize = 4;

/// Runs the loop `iterations` times: each needs the result of the one before, so that they cannot
/// overlap.
// Never inlined: the calibrated code and the code that does the work are the same instructions.
#[inline(never)]
pub fn spin(iterations: u64) {
    let mut x = black_box(0x9e37_79b9_7f4a_7c15_u64);
    for _ in 0..iterations {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    black_box(x);
}

/// How fast the loop runs, and by how much the load is scaled.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Iterations in a millisecond.
    pub iterations_per_ms: u64,
    /// Factor on every [`Rate::iterations`].
    pub scale: f64,
}

impl Rate {
    /// The iterations that last `ms` milliseconds, scaled.
    #[must_use]
    pub fn iterations(&self, ms: f64) -> u64 {
        (self.iterations_per_ms as f64 * ms * self.scale) as u64
    }
}

/// Where a run's iterations per millisecond come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Calibration {
    /// Given by the user.
    #[default]
    Given,
    /// From [`alone`].
    Alone,
    /// From [`together`].
    Together,
}

/// Measures the iterations in a millisecond on one CPU while the others are idle. Lasts about 100
/// ms.
#[must_use]
pub fn alone() -> u64 {
    let mut iterations = 10_000;
    while time(iterations) < TRY {
        iterations *= 2;
    }
    let fastest = (0..TRIES).map(|_| time(iterations)).min().unwrap_or(TRY);
    (iterations * MS / fastest.max(1)).max(1)
}

/// Measures the iterations in a millisecond on one of `cpus` CPUs while all are busy. Lasts about
/// 550 ms.
///
/// As many threads as CPUs count what they do, and the sum is shared out: so it matters neither
/// which of them runs where, nor whether each gets the same.
#[must_use]
pub fn together(cpus: usize) -> u64 {
    let (done, over) = (AtomicU64::new(0), AtomicBool::new(false));
    scope(|scope| {
        for _ in 0..cpus {
            scope.spawn(|| {
                // ORDERING: a count and a flag that stand for themselves.
                while !over.load(Relaxed) {
                    spin(STEP);
                    done.fetch_add(STEP, Relaxed);
                }
            });
        }
        sleep_until(now() + WINDOW);
        let most = (0..WINDOWS)
            .map(|_| speed_over_window(&done))
            .max()
            .unwrap_or(1);
        over.store(true, Relaxed);
        (most / cpus.max(1) as u64).max(1)
    })
}

fn speed_over_window(done: &AtomicU64) -> u64 {
    let (start, before) = (now(), done.load(Relaxed));
    sleep_until(start + WINDOW);
    let (elapsed, after) = (now() - start, done.load(Relaxed));
    (after - before) * MS / elapsed.max(1)
}

fn time(iterations: u64) -> u64 {
    let start = now();
    spin(iterations);
    now() - start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iterations_follow_time_and_scale() {
        let rate = Rate {
            iterations_per_ms: 1000,
            scale: 0.5,
        };
        assert_eq!(rate.iterations(2.5), 1250);
    }

    #[test]
    fn calibration_finds_something() {
        assert!(alone() > 1 && together(2) > 1);
    }
}
