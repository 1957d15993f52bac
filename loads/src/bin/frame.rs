//! `frame`: a 60 Hz game, audio and input among CPU hogs and ping-pong pairs; how late is each,
//! what gets done.

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use loads::batch::Batch;
use loads::game::Kind;
use loads::picture;
use loads::priority::Policy;
use loads::report::Report;
use loads::run::{Options, Speed, run};
use loads::table::render;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A desktop's load for comparing schedulers: a game, audio and input among CPU hogs and pipe
/// ping-pong.
#[derive(Parser)]
#[command(version)]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Run the load once and report
    Run(Box<RunArguments>),
    /// Show the reports of several runs side by side; the last column compares the last run with
    /// the first
    Table {
        /// Files written by `frame run --json`
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Draw the frames of several runs over time, as SVG
    Picture {
        /// Files written by `frame run --json`
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

#[derive(Args)]
struct RunArguments {
    /// Seconds to record
    #[arg(long, default_value = "10", value_parser = positive)]
    seconds: f64,
    /// Seconds before that, not recorded
    #[arg(long, default_value = "1", value_parser = not_negative)]
    warmup: f64,
    /// What keeps the CPUs busy behind the game
    #[arg(long, value_enum, default_value_t)]
    batch: Batch,
    /// So many of it [default: 1.5 x CPUs online]
    #[arg(long, value_parser = value_parser!(u32).range(..=4096))]
    hogs: Option<u32>,
    /// Pipe ping-pong pairs
    #[arg(long, default_value = "1", value_parser = value_parser!(u32).range(..=1024))]
    pairs: u32,
    /// What the game does for a frame
    #[arg(long, value_enum, default_value_t)]
    game: Kind,
    /// Frames per second of the game [default: the game's]
    #[arg(long, value_parser = value_parser!(u32).range(1..=1000))]
    hz: Option<u32>,
    /// Write the report to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Name of the run [default: the scheduler's]
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    /// Put game, audio and input into SCHED_FIFO (priority 10), for reference
    #[arg(long)]
    rt: bool,
    /// Seed of the input events
    #[arg(long, default_value = "1")]
    seed: u64,
    /// Factor on the work of game, audio and input
    #[arg(long, value_name = "F", default_value = "1", value_parser = positive)]
    work_scale: f64,
    /// Iterations of the work loop in a millisecond, as an earlier run printed them [default:
    /// measured]
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=1_000_000_000))]
    iterations_per_ms: Option<u64>,
    /// Measure the work loop alone, or with all CPUs busy: then 1 ms of work lasts 1 ms beside
    /// hogs (for icount time)
    #[arg(
        long,
        value_enum,
        default_value = "alone",
        conflicts_with = "iterations_per_ms"
    )]
    calibrate: Calibrate,
    /// No progress lines
    #[arg(long)]
    quiet: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Calibrate {
    Alone,
    Together,
}

/// Nothing here sensibly lasts longer than a day or is scaled by more.
const LARGEST: f64 = 86_400.0;

fn not_negative(text: &str) -> Result<f64> {
    match text.parse() {
        Ok(number) if (0.0..=LARGEST).contains(&number) => Ok(number),
        _ => bail!("not a number from 0 to {LARGEST}"),
    }
}

fn positive(text: &str) -> Result<f64> {
    match not_negative(text)? {
        number if number >= 0.001 => Ok(number),
        _ => bail!("less than 0.001"),
    }
}

fn main() -> ExitCode {
    let result = match Command::parse().action {
        Action::Run(arguments) => measure(&arguments),
        Action::Table { files } => read(&files).and_then(|reports| print(&render(&reports))),
        Action::Picture { files } => {
            read(&files).and_then(|reports| print(&picture::draw(&reports)?))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "frame: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &RunArguments) -> Result<()> {
    // Opened before the run: a mistyped path should not cost ten seconds.
    let json = arguments.json.as_deref().map(open).transpose()?;
    let report = run(&options(arguments), |line| {
        if !arguments.quiet {
            let _ = writeln!(io::stderr(), "{line}");
        }
    })?;
    print(&report.to_string())?;
    match (json, &arguments.json) {
        (Some(file), Some(path)) => {
            write(file, &report).with_context(|| format!("cannot write {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn options(arguments: &RunArguments) -> Options {
    Options {
        seconds: arguments.seconds,
        warmup: arguments.warmup,
        batch: arguments.batch,
        hogs: arguments.hogs.map(|hogs| hogs as usize),
        pairs: arguments.pairs as usize,
        game: arguments.game,
        hz: arguments.hz,
        label: arguments.label.clone(),
        policy: if arguments.rt {
            Policy::Fifo
        } else {
            Policy::Other
        },
        seed: arguments.seed,
        work_scale: arguments.work_scale,
        speed: match (arguments.iterations_per_ms, arguments.calibrate) {
            (Some(speed), _) => Speed::Given(speed),
            (None, Calibrate::Alone) => Speed::Alone,
            (None, Calibrate::Together) => Speed::Together,
        },
    }
}

/// Opens for writing, and leaves an earlier report as it is for the time being.
fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(path);
    file.with_context(|| format!("cannot write {}", path.display()))
}

fn write(mut file: File, report: &Report) -> Result<()> {
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    Ok(file.write_all(report.to_json()?.as_bytes())?)
}

fn read(files: &[PathBuf]) -> Result<Vec<Report>> {
    files.iter().map(|file| Report::read(file)).collect()
}

/// Prints to a reader that may have gone away.
fn print(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Command::command().debug_assert();
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert!(positive("0").is_err() && positive("nan").is_err() && positive("-1").is_err());
        assert!(positive("1e9").is_err() && positive("2.5").is_ok() && not_negative("0").is_ok());
    }
}
