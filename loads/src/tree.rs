//! A build: a tree of short processes, so many at a time, as `make -j` has it.
//!
//! A unit is a driver that runs two stages one after the other, like a compiler and an assembler;
//! at the end a link alone. Each is a new process image (fork and exec), reads what it is told on
//! its command line, touches fresh memory and works a number of iterations that its seed fixes: to
//! a scheduler every one of them is a task it has never seen.

use crate::clock::{now, seconds};
use crate::random::Random;
use crate::work::{Rate, spin};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::hint::black_box;
use std::io;
use std::process::{Command, ExitStatus};

/// A compiling stage's work is between these, in ms; the other stages do a part of that.
const COMPILE: (f64, f64) = (2.0, 12.0);
pub(crate) const ASSEMBLE: f64 = 0.2;
/// Of the longest compile.
const LINK: f64 = 2.0;
/// What a stage touches.
const BYTES: usize = 512 << 10;
const PAGE: usize = 4096;

/// What a build came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Build {
    /// From start to the link's end.
    pub seconds: f64,
    /// Units compiled.
    pub units: u32,
}

/// Builds `units` units, `jobs` at a time. `program` is the one that understands the arguments of
/// [`Step::arguments`].
///
/// # Errors
/// A process could not be started, or failed.
pub fn build(program: &str, units: u32, jobs: u32, rate: Rate, seed: u64) -> Result<Build> {
    let (start, mut running, mut random) = (now(), 0, Random(seed));
    for _ in 0..units {
        if running == jobs {
            reap()?;
            running -= 1;
        }
        Step::Unit(compile_work(&mut random, rate))
            .command(program)
            .spawn()
            .context("cannot start a unit")?;
        running += 1;
    }
    for _ in 0..running {
        reap()?;
    }
    run(Step::Stage((rate.iterations(COMPILE.1) as f64 * LINK) as u64).command(program))?;
    Ok(Build {
        seconds: seconds(now() - start),
        units,
    })
}

/// The iterations of a unit.
pub(crate) fn compile_work(random: &mut Random, rate: Rate) -> u64 {
    let (least, most) = (rate.iterations(COMPILE.0), rate.iterations(COMPILE.1));
    least + random.below((most - least).max(1))
}

/// A process of the tree, with the iterations of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Runs two stages.
    Unit(u64),
    /// Works.
    Stage(u64),
}

impl Step {
    /// How a process is told what it is.
    #[must_use]
    pub fn arguments(self) -> [String; 2] {
        let (name, iterations) = match self {
            Self::Unit(iterations) => ("unit", iterations),
            Self::Stage(iterations) => ("stage", iterations),
        };
        [name.to_owned(), iterations.to_string()]
    }

    fn command(self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.arguments());
        command
    }

    /// What the process does.
    ///
    /// # Errors
    /// A stage could not be started, or failed.
    pub fn perform(self, program: &str) -> Result<()> {
        match self {
            Self::Unit(iterations) => {
                run(Self::Stage(iterations).command(program))?;
                run(Self::Stage((iterations as f64 * ASSEMBLE) as u64).command(program))
            }
            Self::Stage(iterations) => {
                touch_memory();
                spin(iterations);
                Ok(())
            }
        }
    }
}

/// Fresh memory, as a compiler's.
pub(crate) fn touch_memory() {
    let mut memory = vec![0_u8; BYTES];
    memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    black_box(&memory);
}

fn run(mut command: Command) -> Result<()> {
    check(command.status().context("cannot start a stage")?)
}

fn check(status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("a process of the tree ended with {status}");
    }
    Ok(())
}

/// Waits for any child: which one ends first is the scheduler's business.
fn reap() -> Result<()> {
    use std::os::unix::process::ExitStatusExt;
    let mut status = 0;
    loop {
        // SAFETY: the status is valid, and every child of this process is one of the tree.
        if unsafe { libc::waitpid(-1, &raw mut status, 0) } > 0 {
            return check(ExitStatus::from_raw(status));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).context("cannot wait for a unit");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Mutex;

    const RATE: Rate = Rate {
        iterations_per_ms: 1000,
        scale: 1.0,
    };

    #[test]
    fn work_is_within_bounds_and_repeats() {
        let draw = || {
            let mut random = Random(3);
            [(); 100].map(|()| compile_work(&mut random, RATE))
        };
        assert!(draw().iter().all(|work| (2_000..12_000).contains(work)));
        assert_eq!(draw(), draw());
    }

    /// A build waits for any child of its process.
    pub(crate) static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    #[test]
    fn a_build_ends_when_all_units_have() -> Result<()> {
        let _alone = ONE_AT_A_TIME.lock();
        let build = build("/bin/true", 5, 2, RATE, 1)?;
        assert!(build.units == 5 && build.seconds > 0.0);
        Ok(())
    }

    #[test]
    fn a_unit_that_fails_fails_the_build() {
        let _alone = ONE_AT_A_TIME.lock();
        assert!(build("/bin/false", 3, 2, RATE, 1).is_err());
    }
}
