//! `load`: the smaller loads that schedulers are compared with; each prints its result as a line of
//! JSON.

use anyhow::Result;
use clap::{Parser, value_parser};
use loads::clock::nanoseconds;
use loads::tree::{Step, build};
use loads::work::Rate;
use loads::{barrier, requests, weights};
use serde::Serialize;
use std::io::{Write, stderr, stdout};
use std::process::ExitCode;

/// Requests, builds and weights for comparing schedulers
#[derive(Parser)]
#[command(version)]
enum Load {
    /// A server's workers; prints wake-up and request percentiles and requests a second
    Requests {
        /// Workers
        #[arg(long, value_parser = value_parser!(u32).range(1..=4096))]
        workers: u32,
        /// Seconds to record
        #[arg(long, default_value = "1")]
        seconds: f64,
        /// Iterations of the work loop in a millisecond
        #[arg(long)]
        iterations_per_ms: u64,
        /// Seed of the requests' work
        #[arg(long, default_value = "1")]
        seed: u64,
    },
    /// A build of short compile-sized processes; prints the time that it takes
    Tree {
        /// Units to compile
        #[arg(long, default_value = "40")]
        units: u32,
        /// Units at a time
        #[arg(long, value_parser = value_parser!(u32).range(1..=4096))]
        jobs: u32,
        /// Iterations of the work loop in a millisecond
        #[arg(long)]
        iterations_per_ms: u64,
        /// Seed of the units' work
        #[arg(long, default_value = "1")]
        seed: u64,
    },
    /// Threads that work for 0.5 ms and spin until all have; prints rounds a second
    Barrier {
        /// Threads
        #[arg(long, value_parser = value_parser!(u64).range(1..=1024))]
        threads: u64,
        /// Seconds to record
        #[arg(long, default_value = "1")]
        seconds: f64,
        /// Iterations of the work loop in a millisecond
        #[arg(long)]
        iterations_per_ms: u64,
    },
    /// Hogs of nice -5, 0, 5 and 10; prints the share of each level
    Weights {
        /// Hogs of each level
        #[arg(long, value_parser = value_parser!(u32).range(1..=1024))]
        each: u32,
        /// Seconds to record
        #[arg(long, default_value = "1")]
        seconds: f64,
    },
    /// A process of a build
    #[command(hide = true)]
    Unit { iterations: u64 },
    /// A process of a build
    #[command(hide = true)]
    Stage { iterations: u64 },
}

/// The kernel resolves it when the new image is loaded, so it needs no search.
const THIS: &str = "/proc/self/exe";

fn main() -> ExitCode {
    match perform(Load::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(stderr(), "load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(load: Load) -> Result<()> {
    let rate = |iterations_per_ms| Rate {
        iterations_per_ms,
        scale: 1.0,
    };
    match load {
        Load::Requests {
            workers,
            seconds,
            iterations_per_ms,
            seed,
        } => print(&requests::run(
            workers as usize,
            rate(iterations_per_ms),
            nanoseconds(seconds),
            seed,
        )?),
        Load::Tree {
            units,
            jobs,
            iterations_per_ms,
            seed,
        } => print(&build(THIS, units, jobs, rate(iterations_per_ms), seed)?),
        Load::Barrier {
            threads,
            seconds,
            iterations_per_ms,
        } => print(&barrier::run(
            threads,
            rate(iterations_per_ms),
            nanoseconds(seconds),
        )),
        Load::Weights { each, seconds } => {
            print(&weights::run(each as usize, nanoseconds(seconds))?)
        }
        Load::Unit { iterations } => Step::Unit(iterations).perform(THIS),
        Load::Stage { iterations } => Step::Stage(iterations).perform(THIS),
    }
}

fn print(result: &impl Serialize) -> Result<()> {
    Ok(writeln!(stdout(), "{}", serde_json::to_string(result)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Load::command().debug_assert();
    }
}
