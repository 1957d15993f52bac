//! What keeps the CPUs busy behind the game: processes that count what they have done.

use crate::board::Counter;
use crate::clock::sleep_until;
use crate::process::{self, Children};
use crate::random::Random;
use crate::tree::{ASSEMBLE, compile_work, touch_memory};
use crate::work::{Rate, spin};
use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Iterations of the work loop in one unit, the same on every machine: units of two runs compare
/// even if their calibrations do not.
pub const UNIT: u64 = 10_000;

/// What they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Batch {
    /// Processes that never sleep: the plainest competitor, which a scheduler knows best
    #[default]
    Hogs,
    /// Processes that each fork a short job, wait for it, and fork the next: all that works is new
    /// to the scheduler, and comes when it likes
    Jobs,
    /// One tree, as of `make -jN`: units of two stages, each a process; what a unit leaves to the
    /// tree the next one takes
    Build,
}

impl fmt::Display for Batch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        out.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// Forks so many as there are counters; they start at `epoch`.
///
/// # Errors
/// A process could not be forked.
pub fn fork(
    kind: Batch,
    children: &mut Children,
    counters: &[Counter],
    rate: Rate,
    epoch: u64,
) -> Result<()> {
    match kind {
        Batch::Hogs => hogs(children, counters, epoch),
        Batch::Jobs => jobs(children, counters, rate, epoch),
        Batch::Build if counters.is_empty() => Ok(()),
        Batch::Build => children.fork("make".to_owned(), || {
            sleep_until(epoch);
            // It ends when the run kills it, and a run that finds it ended says so.
            let _ = make(counters, rate);
        }),
    }
}

/// Hogs alone.
///
/// # Errors
/// As [`fork`].
pub fn hogs(children: &mut Children, counters: &[Counter], epoch: u64) -> Result<()> {
    for (index, counter) in counters.iter().enumerate() {
        children.fork(format!("hog-{index}"), || {
            sleep_until(epoch);
            loop {
                work(counter, 1);
            }
        })?;
    }
    Ok(())
}

fn jobs(children: &mut Children, counters: &[Counter], rate: Rate, epoch: u64) -> Result<()> {
    for (index, counter) in counters.iter().enumerate() {
        children.fork(format!("shell-{index}"), || {
            sleep_until(epoch);
            let mut random = Random(index as u64);
            while stage("job", counter, compile_work(&mut random, rate)).is_ok() {}
        })?;
    }
    Ok(())
}

/// As many units at a time as there are counters.
fn make(counters: &[Counter], rate: Rate) -> Result<()> {
    let mut random = Random(1);
    let mut start = |counter: &Counter| {
        let iterations = compile_work(&mut random, rate);
        process::fork("cc", || {
            let _ = stage("cc1", counter, iterations);
            let _ = stage("as", counter, (iterations as f64 * ASSEMBLE) as u64);
        })
    };
    let mut running = Vec::with_capacity(counters.len());
    for counter in counters {
        running.push(start(counter)?);
    }
    loop {
        let ended = process::wait()?;
        for (pid, counter) in running.iter_mut().zip(counters) {
            if *pid == ended {
                *pid = start(counter)?;
            }
        }
    }
}

/// A process that works so many iterations, which is waited for.
fn stage(name: &str, counter: &Counter, iterations: u64) -> Result<()> {
    process::fork(name, || {
        touch_memory();
        work(counter, iterations / UNIT);
    })?;
    process::wait()?;
    Ok(())
}

fn work(counter: &Counter, units: u64) {
    for _ in 0..units {
        spin(UNIT);
        counter.increment();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Board;
    use crate::clock::{MS, now};
    use crate::tree::tests::ONE_AT_A_TIME;

    #[test]
    fn each_kind_of_work_gets_on_in_each_place() -> Result<()> {
        // A build of another test would reap them.
        let _alone = ONE_AT_A_TIME.lock();
        let rate = Rate {
            iterations_per_ms: 20_000,
            scale: 1.0,
        };
        for kind in [Batch::Hogs, Batch::Jobs, Batch::Build] {
            let board = Board::new(2)?;
            let mut children = Children::default();
            fork(kind, &mut children, board.counters(), rate, now())?;
            let end = now() + 10_000 * MS;
            while board.counts().contains(&0) && now() < end {
                sleep_until(now() + 10 * MS);
            }
            assert!(board.counts().iter().all(|count| *count > 0), "{kind}");
            children.finish()?;
        }
        Ok(())
    }
}
