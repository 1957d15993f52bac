//! Side by side: the same work under one scheduler after the other, in one run.
//!
//! 1. The [`driver`] works through rounds. In each it boots a guest for every scheduler in turn
//!    ([`scheduler`]: A B C … A B C …), so that whatever drifts on the host drifts for all. A round
//!    of one scheduler is one boot: nothing that a scheduler leaves behind meets another.
//! 2. In the guest the [`agent`] attaches the scheduler, runs the cells of the plan ([`cell`]) and
//!    prints a line for each.
//! 3. Each line is stored as it comes ([`sample`]). What is stored is not run again: a run can be
//!    stopped, and goes on.
//! 4. The [`result`] makes medians and spreads of them ([`stats`]), the [`markdown`] page, and its
//!    [`plot`]s. The [`gate`] compares a few of them with figures that were committed.
//!
//! Running all in real time on an idle machine would measure that machine; most have another
//! kernel, and none is idle. In the guest, time is instructions executed, so the same run on a busy
//! laptop says the same. Its limit: an instruction is not a nanosecond. Caches, frequencies and the
//! memory bus do not exist there, so work that moves between CPUs costs nothing.

mod agent;
mod cell;
mod cost;
mod driver;
mod figure;
mod gate;
mod markdown;
mod peers;
mod plot;
mod real;
mod result;
mod sample;
mod scheduler;
mod stats;

use crate::cell::{Cell, Form, Work};
use crate::driver::{Driver, Place, find_kernel};
use crate::gate::{Change, Ratios};
use crate::peers::Peers;
use crate::plot::PLOTS;
use crate::result::{Circumstances, Outcome};
use crate::sample::Store;
use crate::scheduler::{SCHEDULERS, Scheduler};
use anyhow::{Context, Result, bail};
use clap::{Args, Parser, value_parser};
use loads::clock::nanoseconds;
use loads::kernel;
use std::io::{Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::{env, fs, process};

/// Metronome, the kernel's default scheduler and the best peers through the same work
#[derive(Parser)]
#[command(version)]
enum Command {
    /// Build the peers that are not built yet
    Peers,
    /// Take the samples that are missing, and make the result of all
    Run(Choice),
    /// Make the result of the samples that are there
    Report {
        #[command(flatten)]
        choice: Choice,
        /// Write the Markdown to this file too
        #[arg(long, value_name = "FILE")]
        results: Option<PathBuf>,
    },
    /// Compare the ratios of Metronome to EEVDF with those that were committed; fails when one is
    /// worse
    Check {
        /// Commit to the ratios of this run instead
        #[arg(long)]
        accept: bool,
        #[command(flatten)]
        choice: Choice,
    },
    /// In the guest: attach a scheduler and run cells
    #[command(hide = true)]
    Agent { order: String },
    /// In the guest: run a cell of `--real` under whatever schedules there
    #[command(hide = true)]
    Program {
        cell: String,
        /// Seconds to record
        #[arg(long, default_value = "5")]
        seconds: f64,
        /// Name of the run
        #[arg(long)]
        label: String,
        /// Write its frames to this file, for `frame picture`
        #[arg(long)]
        json: PathBuf,
    },
    /// What `vm/run` must be told so that its guest has the programs of `--real`, a line each
    #[command(hide = true)]
    Guest,
}

#[derive(Args)]
struct Choice {
    /// The short form: fewer rounds, shorter cells, at most 15 minutes
    #[arg(long)]
    quick: bool,
    /// Heavier games, chains and games without a limit, instead of all the rest
    #[arg(long, conflicts_with = "quick")]
    games: bool,
    /// Games, a desktop and sound that people run, beside real work, instead of all the rest
    #[arg(long, conflicts_with_all = ["games", "host"])]
    real: bool,
    /// A Debian kernel: newest, oldest, or a version
    #[arg(long, default_value = "newest")]
    kernel: String,
    /// Virtual CPUs
    #[arg(long, default_value = "4", value_parser = value_parser!(u16).range(1..=64))]
    cpus: u16,
    /// Samples of each cell [default: 5, and 3 in the short form]
    #[arg(long, value_parser = value_parser!(u32).range(1..=99))]
    rounds: Option<u32>,
    /// Guests at a time [default: as many as this machine has CPUs]
    #[arg(long, value_parser = value_parser!(u16).range(1..=64))]
    jobs: Option<u16>,
    /// Only these schedulers
    #[arg(long, value_delimiter = ',', value_parser = scheduler)]
    only: Vec<&'static Scheduler>,
    /// On this machine's own kernel, in real time, one after the other
    #[arg(long)]
    host: bool,
}

fn scheduler(id: &str) -> Result<&'static Scheduler> {
    Scheduler::find(id).with_context(|| {
        let ids: Vec<_> = SCHEDULERS.iter().map(|scheduler| scheduler.id).collect();
        format!("one of: {}", ids.join(", "))
    })
}

fn main() -> ExitCode {
    match perform(Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("compare: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn tell(line: &str) {
    let _ = writeln!(stderr(), "{line}");
}

fn perform(command: Command) -> Result<()> {
    match command {
        Command::Agent { order } => {
            agent::perform(&serde_json::from_str(&order).context("not an order")?)
        }
        Command::Program {
            cell,
            seconds,
            label,
            json,
        } => program(&cell, seconds, &label, &json),
        Command::Guest => guest(),
        Command::Peers => Peers(Tree::find()?.target.join("peers")).build(&all(), tell),
        Command::Run(choice) => run(&choice),
        Command::Report { choice, results } => report(&Tree::find()?, &choice, results.as_deref()),
        Command::Check { accept, choice } => check(&choice, accept),
    }
}

fn program(cell: &str, seconds: f64, label: &str, json: &Path) -> Result<()> {
    let cell = Cell::find(cell).context("no such cell")?;
    let Work::Real(program, beside) = cell.work else {
        bail!("{} is no program that people run", cell.id);
    };
    let cpus = kernel::online_cpus();
    let record = real::run(program, beside, cpus, nanoseconds(seconds), false)?;
    let figures = record.figures()?;
    let mut line = format!("{label:<16}");
    for figure in cell.work.shown() {
        let shown = figure.shown();
        let value = figures.get(figure).copied().unwrap_or_default();
        line += &format!("{} {value:.1} {}; ", shown.title, shown.unit);
    }
    writeln!(stdout(), "{}", line.trim_end_matches([' ', ';']))?;
    Ok(fs::write(json, record.report(label).to_json()?)?)
}

fn guest() -> Result<()> {
    let tree = Tree::find()?;
    for argument in real::guest::arguments(&tree.repository, &tree.programs)? {
        writeln!(stdout(), "{}", argument.display())?;
    }
    Ok(())
}

/// Where things are.
struct Tree {
    repository: PathBuf,
    target: PathBuf,
    programs: PathBuf,
}

impl Tree {
    /// This program lies in a cargo profile's directory, and is run from within the project.
    fn find() -> Result<Self> {
        let programs = env::current_exe()?
            .parent()
            .map(Path::to_owned)
            .context("no directory")?;
        let here = env::current_dir()?;
        let repository = here
            .ancestors()
            .find(|directory| directory.join("vm/run").exists());
        let repository = repository
            .context("not within the project: vm/run is not here")?
            .to_owned();
        Ok(Self {
            target: repository.join("target"),
            repository,
            programs,
        })
    }
}

fn form(choice: &Choice) -> Result<&'static Form> {
    let name = match (choice.quick, choice.games, choice.real) {
        (true, _, true) => "real-quick",
        (_, _, true) => "real",
        (true, ..) => "quick",
        (_, true, _) => "games",
        _ => "long",
    };
    Form::find(name).context("no such form")
}

fn all() -> Vec<&'static Scheduler> {
    SCHEDULERS.iter().collect()
}

fn run(choice: &Choice) -> Result<()> {
    let tree = Tree::find()?;
    let driver = driver(&tree, form(choice)?, choice)?;
    let mut schedulers = all();
    if !choice.only.is_empty() {
        schedulers.retain(|scheduler| choice.only.contains(scheduler));
    }
    driver.peers.build(&schedulers, tell)?;
    let driver = driver.with_time();
    let complete = driver.run(&schedulers, tell)?;
    write_results(&tree, &outcome(&driver, command(choice))?, None)?;
    if !complete {
        tell("time is up, or a boot failed: the same command goes on where it was");
    }
    Ok(())
}

fn report(tree: &Tree, choice: &Choice, results: Option<&Path>) -> Result<()> {
    let driver = driver(tree, form(choice)?, choice)?;
    write_results(tree, &outcome(&driver, command(choice))?, results)
}

fn write_results(tree: &Tree, outcome: &Outcome, results: Option<&Path>) -> Result<()> {
    let directory = tree.target.join("compare");
    fs::create_dir_all(&directory)?;
    let text = markdown::render(outcome);
    let mut plots = "\n## Plots\n\nMedians over the rounds.\n".to_owned();
    for plot in &PLOTS {
        if let Some(drawing) = plot.draw(outcome)? {
            fs::write(directory.join(plot.name).with_extension("svg"), drawing)?;
            plots += &format!("\n{}:\n\n![{0}]({}.svg)\n", plot.title, plot.name);
        }
    }
    for (name, text) in [
        ("result.md", &format!("{text}{plots}")),
        ("result.json", &outcome.to_json()?),
    ] {
        fs::write(directory.join(name), text)?;
        tell(&format!("target/compare/{name}"));
    }
    if let Some(file) = results {
        fs::write(file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

fn outcome(driver: &Driver, command: String) -> Result<Outcome> {
    let programs = match driver.form.name.starts_with("real") {
        true => real::guest::versions(&driver.repository),
        false => String::new(),
    };
    let place = match driver.place {
        Place::Host => "on the host's own kernel, in real time",
        Place::Guest { .. } => "in a guest (QEMU without KVM), guest time by instruction count",
    };
    let circumstances = Circumstances {
        date: output("date", &["-u", "+%F"]),
        machine: machine(),
        commit: output("git", &["describe", "--always", "--dirty", "--exclude=*"]),
        command,
        place: place.to_owned(),
        programs,
    };
    Outcome::read(&driver.store, driver.form, circumstances)
}

/// What a program prints; "unknown" if it cannot say.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = process::Command::new(program).args(arguments).output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}

fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let model = model
        .and_then(|line| line.split_once(':'))
        .map_or("unknown CPU", |(_, model)| model.trim());
    format!(
        "{model}, {} CPUs, kernel {}",
        kernel::online_cpus(),
        kernel::release()
    )
}

/// The command that a reader would type.
fn command(choice: &Choice) -> String {
    let mut command = "make compare".to_owned();
    let mut add = |name: &str, value: &str| command += &format!(" {name}={value}");
    if choice.quick {
        add("QUICK", "1");
    }
    if choice.games {
        add("GAMES", "1");
    }
    if choice.real {
        add("REAL", "1");
    }
    if choice.host {
        add("HOST", "1");
    }
    if choice.kernel != "newest" {
        add("KERNEL", &choice.kernel);
    }
    if choice.cpus != 4 {
        add("CPUS", &choice.cpus.to_string());
    }
    if let Some(rounds) = choice.rounds {
        add("ROUNDS", &rounds.to_string());
    }
    command
}

/// The committed ratios.
const RATIOS: &str = "compare/ratios.json";

fn check(choice: &Choice, accept: bool) -> Result<()> {
    let tree = Tree::find()?;
    let form = Form::find("check").context("no such form")?;
    let driver = driver(&tree, form, choice)?;
    // A gate that goes on with an older run's samples would judge the older program.
    driver.store.clear()?;
    let schedulers: Vec<_> = SCHEDULERS
        .iter()
        .filter(|scheduler| form.cells(scheduler).next().is_some())
        .collect();
    let driver = driver.with_time();
    driver.run(&schedulers, tell)?;
    let outcome = outcome(&driver, "make compare-check".to_owned())?;
    let ratios = Ratios::of(&outcome)?;
    let file = tree.repository.join(RATIOS);
    if accept {
        fs::write(file, serde_json::to_string_pretty(&ratios)? + "\n")?;
        return Ok(());
    }
    let committed = fs::read_to_string(&file)
        .with_context(|| format!("no {RATIOS}: make it with `compare check --accept`"))?;
    let committed: Ratios = serde_json::from_str(&committed)
        .with_context(|| format!("{RATIOS} holds something else"))?;
    if (&committed.kernel, committed.cpus) != (&ratios.kernel, ratios.cpus) {
        tell(&format!(
            "the committed ratios are of {} with {} CPUs",
            committed.kernel, committed.cpus
        ));
    }
    judge(&ratios.against(&committed, &outcome))
}

fn judge(changes: &[Change]) -> Result<()> {
    tell("Metronome / EEVDF, the committed ratio, this run's, and by how much they may differ:");
    for change in changes {
        let Change {
            name,
            before,
            after,
            spread,
            worse,
        } = change;
        let verdict = if *worse { "WORSE" } else { "ok" };
        tell(&format!(
            "{name:<28}{before:>9.3}{after:>9.3}{spread:>9.3}  {verdict}"
        ));
    }
    match changes.iter().filter(|change| change.worse).count() {
        _ if changes.is_empty() => bail!("nothing to compare"),
        0 => Ok(()),
        worse => bail!(
            "{worse} of {} ratios have become worse by more than the spread",
            changes.len()
        ),
    }
}

fn driver(tree: &Tree, form: &'static Form, choice: &Choice) -> Result<Driver> {
    let place = place(tree, choice)?;
    let (release, cpus) = match &place {
        Place::Guest { release, cpus, .. } => (release.clone(), *cpus),
        Place::Host => (kernel::release(), kernel::online_cpus()),
    };
    let jobs = match (&place, choice.jobs) {
        // In real time two would measure each other.
        (Place::Host, _) => 1,
        (_, Some(jobs)) => usize::from(jobs),
        (_, None) => available_parallelism().map_or(1, usize::from),
    };
    Ok(Driver {
        repository: tree.repository.clone(),
        programs: tree.programs.clone(),
        peers: Peers(tree.target.join("peers")),
        place,
        form,
        rounds: choice.rounds.unwrap_or(form.rounds),
        jobs,
        deadline: None,
        more: if choice.real {
            real::guest::arguments(&tree.repository, &tree.programs)?
        } else {
            Vec::new()
        },
        store: Store::new(&tree.target.join("compare/samples"), form, &release, cpus),
    })
}

fn place(tree: &Tree, choice: &Choice) -> Result<Place> {
    if !choice.host {
        let (kernel, release) = find_kernel(&tree.repository, &choice.kernel)?;
        return Ok(Place::Guest {
            kernel,
            release,
            cpus: usize::from(choice.cpus),
        });
    }
    let running = kernel::Scheduler::read();
    match (running.state.as_deref(), running.ops) {
        (None, _) => bail!(
            "this machine's kernel, {}, has no sched_ext: run `make compare` without HOST=1, in a virtual machine",
            kernel::release()
        ),
        (_, Some(ops)) => bail!("a scheduler is attached already ({ops}): stop it first"),
        // SAFETY: no argument.
        _ if unsafe { libc::geteuid() } != 0 => {
            bail!("attaching a scheduler needs root: sudo make compare HOST=1")
        }
        _ => Ok(Place::Host),
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
    fn schedulers_are_known_by_name() {
        assert!(scheduler("scx_lavd").is_ok());
        assert!(scheduler("lavd").is_err_and(|error| error.to_string().contains("scx_lavd")));
    }
}
