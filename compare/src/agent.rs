//! The part that runs where the scheduler runs: attaches it, runs the cells, prints a line for
//! each.
//!
//! The work loop is calibrated before anything is attached, or the driver hands on an earlier
//! calibration: so the work is the same for all schedulers.

use crate::cell::{Cell, Form, Work};
use crate::cost::{Reading, resident};
use crate::figure::{At, Figure, Of};
use crate::real::{self, Beside, Program};
use crate::sample::{Environment, Failure, Line, Sample};
use anyhow::{Context, Result, anyhow, bail};
use loads::batch::{self, Batch};
use loads::board::Board;
use loads::clock::{MS, SECOND, nanoseconds, now, sleep_until};
use loads::game::Kind;
use loads::kernel::{self, online_cpus};
use loads::latency::{Latency, Percentiles};
use loads::process::Children;
use loads::report::Report;
use loads::requests::Requests;
use loads::tree::Build;
use loads::weights::Shares;
use loads::work;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// What to do, as the driver says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// A scheduler's id.
    pub(crate) scheduler: String,
    /// Its program; None if nothing is attached.
    pub(crate) program: Option<String>,
    /// The latency-sensitive threads are put into SCHED_FIFO.
    pub(crate) fifo: bool,
    /// A form's name.
    pub(crate) form: String,
    /// Which round.
    pub(crate) round: u32,
    /// Cells' ids.
    pub(crate) cells: Vec<String>,
    /// Iterations of the work loop in a millisecond; None to measure it.
    pub(crate) iterations_per_ms: Option<u64>,
    /// Measure them with all CPUs busy: in instruction-counted time they share one clock.
    pub(crate) together: bool,
}

type Figures = BTreeMap<Figure, f64>;

/// How long a scheduler may take until it is enabled, ns.
const PATIENCE: u64 = 30 * SECOND;
/// Times of cyclictest beyond this (µs) are only counted.
const CYCLICTEST_LIMIT: u64 = 50_000;
const STATE: &str = "/sys/kernel/sched_ext/state";

/// Does it. Failures of a scheduler are lines like others.
///
/// # Errors
/// The order makes no sense, or nothing can be printed.
pub(crate) fn perform(order: &Order) -> Result<()> {
    let form = Form::find(&order.form).context("no such form")?;
    let cpus = online_cpus();
    let _ = kernel::wait_for_idle(5 * SECOND, |due| {
        sleep_until(due);
        Ok(())
    });
    let iterations_per_ms = match (order.iterations_per_ms, order.together) {
        (Some(given), _) => given,
        (None, true) => work::together(cpus),
        (None, false) => work::alone(),
    };
    let environment = Environment {
        kernel: kernel::release(),
        cpus,
        iterations_per_ms,
    };
    say(&Line::Environment(environment))?;
    let mut bench = Bench {
        order,
        form,
        cpus,
        iterations_per_ms,
        attached: None,
    };
    match bench.run() {
        Ok(()) => Ok(()),
        Err((step, error)) => say(&Line::Failure(Failure {
            scheduler: order.scheduler.clone(),
            step,
            message: format!("{error:#}"),
        })),
    }
}

fn say(line: &Line) -> Result<()> {
    writeln!(io::stdout(), "{}", line.print()?).context("cannot print")
}

struct Bench<'a> {
    order: &'a Order,
    form: &'static Form,
    cpus: usize,
    iterations_per_ms: u64,
    attached: Option<Attached>,
}

impl Bench<'_> {
    /// The error comes with the step that it happened in.
    fn run(&mut self) -> Result<(), (String, anyhow::Error)> {
        if let Some(program) = &self.order.program {
            let attached =
                Attached::start(program).map_err(|error| ("attaching".to_owned(), error))?;
            self.attached = Some(attached);
        }
        for id in &self.order.cells {
            let figures = self.cell(id).map_err(|error| (id.clone(), error))?;
            let sample = Sample {
                scheduler: self.order.scheduler.clone(),
                cell: id.clone(),
                round: self.order.round,
                figures,
            };
            say(&Line::Sample(sample)).map_err(|error| (id.clone(), error))?;
        }
        match self.attached.take() {
            Some(attached) => attached
                .stop()
                .map_err(|error| ("detaching".to_owned(), error)),
            None => Ok(()),
        }
    }

    fn cell(&mut self, id: &str) -> Result<Figures> {
        let cell = Cell::find(id).context("no such cell")?;
        let result = self.work(cell.work);
        // A scheduler that was thrown out is the cause of whatever else went wrong.
        if let Some(attached) = &mut self.attached {
            attached.check()?;
        }
        result
    }

    fn work(&self, work: Work) -> Result<Figures> {
        match work {
            Work::Frame(hogs) => self.frame(Kind::Light, Batch::Hogs, hogs),
            Work::Game(game, batch, number) => self.frame(game, batch, number),
            Work::Real(program, beside) => self.real(program, beside),
            Work::Messaging => self.messaging(),
            Work::Pipe => self.pipe(),
            Work::Cyclictest(hogs) => self.cyclictest(hogs),
            Work::Requests(workers) => self.requests(workers),
            Work::Tree => Ok(Figures::from([(Figure::Seconds, self.build()?.seconds)])),
            Work::TreeBesideFrame => self.build_beside_frame(),
            Work::Weights => self.weights(),
            Work::Cost => self.cost(),
        }
    }

    /// So many for each CPU.
    fn count(&self, for_each_cpu: f64) -> usize {
        (for_each_cpu * self.cpus as f64).round() as usize
    }

    fn frame_command(&self, seconds: f64, hogs: usize, pairs: usize) -> Command {
        let mut command = tool("frame");
        let mut option = |name: &str, value: String| {
            command.args([name, &value]);
        };
        option("run", "--quiet".to_owned());
        option("--seconds", seconds.to_string());
        option("--warmup", self.form.frame.1.to_string());
        option("--hogs", hogs.to_string());
        option("--pairs", pairs.to_string());
        option("--seed", self.order.round.to_string());
        option("--iterations-per-ms", self.iterations_per_ms.to_string());
        option("--json", FRAME_JSON.to_owned());
        if self.order.fifo {
            command.arg("--rt");
        }
        command
    }

    fn frame(&self, game: Kind, batch: Batch, number: f64) -> Result<Figures> {
        let mut command = self.frame_command(self.form.frame.0, self.count(number), 1);
        command.args(["--batch", &batch.to_string()]);
        output(command.args(["--game", &game.to_string()]))?;
        Ok(frame_figures(&Report::read(Path::new(FRAME_JSON))?))
    }

    fn real(&self, program: Program, beside: Beside) -> Result<Figures> {
        let length = nanoseconds(self.form.frame.0);
        real::run(program, beside, self.cpus, length, self.order.fifo)?.figures()
    }

    fn messaging(&self) -> Result<Figures> {
        let messages = self.form.perf.0.to_string();
        let text = output(tool("perf").args([
            "bench",
            "-f",
            "simple",
            "sched",
            "messaging",
            "-g",
            "2",
            "-l",
            &messages,
        ]))?;
        Ok(Figures::from([(Figure::Seconds, number(&text)?)]))
    }

    fn pipe(&self) -> Result<Figures> {
        let exchanges = self.form.perf.1;
        let text = output(tool("perf").args([
            "bench",
            "-f",
            "simple",
            "sched",
            "pipe",
            "-l",
            &exchanges.to_string(),
        ]))?;
        let us = number(&text)? * 1e6 / f64::from(exchanges);
        Ok(Figures::from([(Figure::Exchange, us)]))
    }

    fn cyclictest(&self, hogs: f64) -> Result<Figures> {
        let count = self.count(hogs);
        let (mut children, board) = (Children::default(), Board::new(count)?);
        batch::hogs(&mut children, board.counters(), now())?;
        if count > 0 {
            sleep_until(now() + 300 * MS);
        }
        let mut command = tool("cyclictest");
        let policy = if self.order.fifo {
            ["--policy=fifo", "--priority=10"]
        } else {
            ["--policy=other", "--priority=0"]
        };
        command
            .args(policy)
            .args(["-q", "-i1000", "-d0", "--histfile=/dev/null"]);
        command.arg(format!("--threads={}", self.cpus));
        command.arg(format!("--loops={}", self.form.cycles));
        command.arg(format!("--histogram={CYCLICTEST_LIMIT}"));
        command.arg(format!("--json={CYCLICTEST_JSON}"));
        output(&mut command)?;
        children.finish()?;
        let text = fs::read_to_string(CYCLICTEST_JSON).context("cyclictest has left no result")?;
        Ok(times(Of::Wakeup, &cyclictest_latency(&text)?).into())
    }

    fn requests(&self, workers: f64) -> Result<Figures> {
        let mut command = self.load("requests");
        command
            .arg("--workers")
            .arg(self.count(workers).to_string());
        command.arg("--seconds").arg(self.form.seconds.to_string());
        let requests: Requests = serde_json::from_str(&output(&mut command)?)?;
        let mut figures = Figures::from([(Figure::Rate, requests.per_second)]);
        figures.extend(times(Of::Wakeup, &requests.wakeup_ms));
        figures.extend(times(Of::Request, &requests.request_ms));
        Ok(figures)
    }

    /// With the options that these loads have in common.
    fn load(&self, name: &str) -> Command {
        let mut command = tool("load");
        command.arg(name);
        command
            .arg("--iterations-per-ms")
            .arg(self.iterations_per_ms.to_string());
        command.arg("--seed").arg(self.order.round.to_string());
        command
    }

    fn build(&self) -> Result<Build> {
        let mut command = self.load("tree");
        command.arg("--units").arg(self.form.units.to_string());
        command.arg("--jobs").arg(self.cpus.to_string());
        Ok(serde_json::from_str(&output(&mut command)?)?)
    }

    /// `frame` runs for as long as the build takes: a signal ends it, with a report of what was
    /// recorded until then.
    fn build_beside_frame(&self) -> Result<Figures> {
        let long = 100.0 * self.form.frame.0;
        let frame = Running::start(&mut self.frame_command(long, 0, 0))?;
        sleep_until(now() + (self.form.frame.1 * SECOND as f64) as u64 + 500 * MS);
        let build = self.build()?;
        frame.interrupt()?;
        let mut figures = frame_figures(&Report::read(Path::new(FRAME_JSON))?);
        figures.insert(Figure::Seconds, build.seconds);
        Ok(figures)
    }

    fn weights(&self) -> Result<Figures> {
        let mut command = tool("load");
        command.args(["weights", "--each", &self.cpus.to_string()]);
        command.args(["--seconds", &(2.0 * self.form.seconds).to_string()]);
        let shares: Shares = serde_json::from_str(&output(&mut command)?)?;
        let mut figures = Figures::from([(Figure::Misplaced, shares.misplaced * 100.0)]);
        let each = shares.share.iter().enumerate();
        figures.extend(each.map(|(level, share)| (Figure::Share(level), share * 100.0)));
        Ok(figures)
    }

    fn cost(&self) -> Result<Figures> {
        let attached = self.attached.as_ref().context("nothing is attached")?;
        let pid = attached.child.id();
        // Counting costs a little, on each system call and on each run of a BPF program: so this
        // cell is none of the others.
        let _ = fs::write("/proc/sys/kernel/bpf_stats_enabled", "1");
        let mut perf = tool("perf");
        perf.args([
            "stat",
            "-x,",
            "-e",
            "raw_syscalls:sys_enter",
            "-o",
            PERF_CSV,
            "-p",
            &pid.to_string(),
        ]);
        let counter = Running::start(&mut perf)?;
        let before = Reading::take(pid)?;
        let frame = self.frame(Kind::Light, Batch::Hogs, 1.5);
        let after = Reading::take(pid)?;
        let _ = counter.interrupt();
        let _ = fs::write("/proc/sys/kernel/bpf_stats_enabled", "0");
        frame?;
        let syscalls = fs::read_to_string(PERF_CSV)
            .ok()
            .and_then(|text| counted(&text));
        let mut figures = after.since(&before, syscalls);
        figures.extend(resident(pid).map(|mib| (Figure::Memory, mib)));
        Ok(figures)
    }
}

const FRAME_JSON: &str = "/tmp/compare-frame.json";
const CYCLICTEST_JSON: &str = "/tmp/compare-cyclictest.json";
const PERF_CSV: &str = "/tmp/compare-perf.csv";
const SCHEDULER_LOG: &str = "/tmp/compare-scheduler.log";

/// Ours beside this program, others by their names.
fn tool(name: &str) -> Command {
    let ours = std::env::current_exe()
        .ok()
        .map(|path| path.with_file_name(name));
    match ours.filter(|path| path.exists()) {
        Some(path) => Command::new(path),
        None => Command::new(name),
    }
}

/// What a program prints; an error with its last words if it fails.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let result = command.stdin(Stdio::null()).output();
    let result = result.with_context(|| format!("cannot start {name}"))?;
    if !result.status.success() {
        let words = String::from_utf8_lossy(&result.stderr);
        bail!(
            "{name} ended with {}: {}",
            result.status,
            last_lines(&words)
        );
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(6)..].join(" / ")
}

fn number(text: &str) -> Result<f64> {
    text.trim()
        .parse()
        .with_context(|| format!("no number: {text:?}"))
}

/// A program that runs until it is interrupted; killed if that is forgotten.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Self(
            command
                .spawn()
                .with_context(|| format!("cannot start {name}"))?,
        ))
    }

    fn interrupt(mut self) -> Result<()> {
        interrupt(&self.0);
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn interrupt(child: &Child) {
    // SAFETY: plain numbers; a child that has not been waited for keeps its number.
    unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) };
}

/// The scheduler's process.
struct Attached {
    child: Child,
}

impl Attached {
    /// Waits until the kernel says that it is enabled.
    fn start(program: &str) -> Result<Self> {
        let log = File::create(SCHEDULER_LOG)?;
        let mut command = tool(program);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let (mut attached, end) = (Self { child }, now() + PATIENCE);
        while state() != "enabled" {
            if now() > end {
                bail!("not enabled after {} s: {}", PATIENCE / SECOND, log_lines());
            }
            attached.alive()?;
            sleep_until(now() + 20 * MS);
        }
        // Some go on setting things up for a moment.
        sleep_until(now() + 300 * MS);
        attached.check()?;
        Ok(attached)
    }

    fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => Err(anyhow!(
                "the scheduler ended with {status}: {}",
                log_lines()
            )),
            None => Ok(()),
        }
    }

    /// That it still schedules.
    fn check(&mut self) -> Result<()> {
        self.alive()?;
        if state() != "enabled" {
            bail!("the scheduler was thrown out: {}", log_lines());
        }
        Ok(())
    }

    fn stop(mut self) -> Result<()> {
        interrupt(&self.child);
        let end = now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if now() > end {
                bail!("it goes on after SIGINT");
            }
            sleep_until(now() + 20 * MS);
        }
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn state() -> String {
    fs::read_to_string(STATE)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn log_lines() -> String {
    last_lines(&String::from_utf8_lossy(
        &fs::read(SCHEDULER_LOG).unwrap_or_default(),
    ))
}

fn times(of: Of, p: &Percentiles) -> [(Figure, f64); 6] {
    [
        (Figure::Time(of, At::P50), p.p50),
        (Figure::Time(of, At::P90), p.p90),
        (Figure::Time(of, At::P99), p.p99),
        (Figure::Time(of, At::P999), p.p99_9),
        (Figure::Time(of, At::Max), p.max),
        (Figure::Samples(of), p.samples as f64),
    ]
}

fn frame_figures(report: &Report) -> Figures {
    let frames = (report.frame.done + report.frame.skipped).max(1) as f64;
    let periods = report.audio.periods.max(1) as f64;
    let audio_missed = report.audio.missed as f64 * 100.0 / periods;
    let mut figures = Figures::from([
        (
            Figure::FramesMissed,
            report.frame.missed as f64 * 100.0 / frames,
        ),
        (
            Figure::MissedAtFirst,
            report.frame.missed_at_first(report.config.hz) as f64,
        ),
        (Figure::SlowestFps, report.frame.fps_low_1_percent),
        (Figure::Fps, report.frame.fps),
        (Figure::AudioMissed, audio_missed),
    ]);
    if !report.hogs.each.is_empty() {
        figures.insert(Figure::HogsWork, report.hogs.units_per_second);
    }
    figures.extend(
        report
            .hogs
            .fairness
            .map(|least| (Figure::HogsFairness, least)),
    );
    if !report.ping_pong.each.is_empty() {
        figures.insert(Figure::PingPong, report.ping_pong.round_trips_per_second);
    }
    figures.extend(times(Of::Frame, &report.frame.completion_ms));
    figures.extend(times(Of::Audio, &report.audio.wakeup_ms));
    figures.extend(times(Of::Input, &report.input.wakeup_ms));
    figures
}

/// All threads' wake-ups, in ms: from the histograms of µs, and the longest, which may lie beyond
/// them.
fn cyclictest_latency(text: &str) -> Result<Percentiles> {
    #[derive(Deserialize)]
    struct Output {
        thread: BTreeMap<String, Thread>,
    }
    #[derive(Deserialize)]
    struct Thread {
        histogram: BTreeMap<String, u64>,
        cycles: u64,
        max: u64,
    }
    let output: Output =
        serde_json::from_str(text).context("cyclictest's result is not as expected")?;
    let mut latency = Latency::new()?;
    for thread in output.thread.values() {
        let mut beyond = thread.cycles;
        for (us, &count) in &thread.histogram {
            let us: u64 = us.parse()?;
            (0..count).for_each(|_| latency.record(us * 1_000));
            beyond = beyond.saturating_sub(count);
        }
        (0..beyond).for_each(|_| latency.record(thread.max * 1_000));
    }
    Ok(latency.percentiles())
}

/// The count in a line of `perf stat -x,`; what was never scheduled counts as 0.
fn counted(csv: &str) -> Option<f64> {
    let line = csv.lines().find(|line| line.contains("sys_enter"))?;
    match line.split(',').next()? {
        "<not counted>" => Some(0.0),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cyclictest_threads_are_one_distribution() -> Result<()> {
        let text = r#"{"thread": {
            "0": {"histogram": {"10": 98}, "cycles": 98, "max": 10},
            "1": {"histogram": {"20": 1}, "cycles": 2, "max": 70000}}}"#;
        let p = cyclictest_latency(text)?;
        assert_eq!(p.samples, 100);
        assert!(
            (p.p50 - 0.01).abs() < 1e-3 && (p.max - 70.0).abs() < 0.1,
            "{p:?}"
        );
        assert!(cyclictest_latency("{}").is_err());
        Ok(())
    }

    #[test]
    fn perf_counts() {
        assert_eq!(
            counted("# started\n\n72,,raw_syscalls:sys_enter,6304,100.00,,\n"),
            Some(72.0)
        );
        assert_eq!(
            counted("<not counted>,,raw_syscalls:sys_enter,0,100.00,,"),
            Some(0.0)
        );
        assert_eq!(
            counted("<not supported>,,raw_syscalls:sys_enter,0,100.00,,"),
            None
        );
        assert_eq!(counted(""), None);
    }

    #[test]
    fn failing_programs_leave_their_words() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first >&2; echo last >&2; exit 3"]);
        let words = output(&mut command).err().map(|error| error.to_string());
        assert!(words.is_some_and(|words| words.contains("first / last") && words.contains('3')));
    }

    #[test]
    fn shown_figures_are_in_samples() {
        let mut report = Report::default();
        report.frame.completion_ms.p99 = 8.0;
        report.hogs.each = vec![1.0, 1.0];
        report.hogs.fairness = Some(1.0);
        report.ping_pong.each = vec![1.0];
        let figures = frame_figures(&report);
        for figure in Work::Frame(1.0).shown() {
            assert!(figures.contains_key(figure), "{figure}");
        }
        assert_eq!(figures.get(&Figure::Time(Of::Frame, At::P99)), Some(&8.0));
    }
}
