//! Fairness between weights: hogs of four nice levels, and how the CPU was shared against how it
//! should be.
//!
//! The weight of nice n is 1024 / 1.25^n, as the kernel's table has it (`sched_prio_to_weight`,
//! kernel/sched/core.c). As many hogs of each level as there are CPUs: then even the heaviest are
//! due less than a CPU each, and any share can be met.

use crate::board::Board;
use crate::clock::{SECOND, now, sleep_until};
use crate::process::Children;
use crate::work::spin;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::io;

/// The nice levels and their weights.
pub const LEVELS: [(i32, f64); 4] = [(-5, 3121.0), (0, 1024.0), (5, 335.0), (10, 110.0)];
/// Iterations between two counts: small, because the lightest hogs get little done.
const UNIT: u64 = 1_000;
/// Until all hogs are there, and until they have settled, ns.
const LEAD: u64 = SECOND / 5;
const WARMUP: u64 = SECOND / 4;

/// The work of each level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    /// Of all work, by level, in the order of [`LEVELS`].
    pub share: [f64; 4],
    /// Half the sum of the distances from the ideal shares: the part of the work that the wrong
    /// hogs have done.
    pub misplaced: f64,
}

/// The shares that the weights ask for.
#[must_use]
pub fn ideal() -> [f64; 4] {
    let sum: f64 = LEVELS.iter().map(|(_, weight)| weight).sum();
    LEVELS.map(|(_, weight)| weight / sum)
}

impl Shares {
    /// Of `work` by level; None if there is none.
    #[must_use]
    pub fn of(work: [f64; 4]) -> Option<Self> {
        let sum: f64 = work.iter().sum();
        if sum <= 0.0 {
            return None;
        }
        let share = work.map(|work| work / sum);
        let distances = share.iter().zip(ideal()).map(|(a, b)| (a - b).abs());
        Some(Self {
            share,
            misplaced: distances.sum::<f64>() / 2.0,
        })
    }
}

/// Runs `each` hogs of each level for `length` ns.
///
/// # Errors
/// A process could not be forked, died, or was not allowed its nice level.
pub fn run(each: usize, length: u64) -> Result<Shares> {
    let (mut children, epoch) = (Children::default(), now() + LEAD);
    let board = Board::new(LEVELS.len() * each)?;
    for (index, counter) in board.counters().iter().enumerate() {
        let (nice, _) = LEVELS[index / each];
        children.fork(format!("nice{nice}-{}", index % each), || {
            if set_nice(nice).is_err() {
                return;
            }
            sleep_until(epoch);
            loop {
                spin(UNIT);
                counter.increment();
            }
        })?;
    }
    sleep_until(epoch + WARMUP);
    let before = board.counts();
    sleep_until(now() + length);
    let after = board.counts();
    children.finish()?;
    let done: Vec<f64> = after
        .iter()
        .zip(&before)
        .map(|(a, b)| (a - b) as f64)
        .collect();
    let mut work = [0.0; 4];
    for (level, hogs) in work.iter_mut().zip(done.chunks(each)) {
        *level = hogs.iter().sum();
    }
    match Shares::of(work) {
        Some(shares) => Ok(shares),
        None => bail!("no hog did anything"),
    }
}

fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: plain numbers; 0 is the calling process.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_the_kernels() {
        for (nice, weight) in LEVELS {
            let expected = 1024.0 / 1.25_f64.powi(nice);
            assert!((weight / expected - 1.0).abs() < 0.08, "nice {nice}");
        }
    }

    #[test]
    fn ideal_work_is_not_misplaced() {
        let exact = Shares::of(LEVELS.map(|(_, weight)| weight * 7.0));
        assert!(exact.is_some_and(|shares| shares.misplaced < 1e-9));
    }

    #[test]
    fn equal_work_is_misplaced() {
        let equal = Shares::of([1.0; 4]).map(|shares| (shares.share[0], shares.misplaced));
        // Nice -5 is due 68 % and got 25 %: 43 % went to others.
        assert!(equal.is_some_and(|(share, misplaced)| share == 0.25 && (misplaced - 0.43).abs() < 0.005));
        assert!(Shares::of([0.0; 4]).is_none());
    }
}
