//! A run from calibration to report.

use crate::audio::{self, Periods};
use crate::batch::Batch;
use crate::board::Board;
use crate::clock::{MS, SECOND, nanoseconds, now, seconds};
use crate::frames::Frames;
use crate::game::{self, Game, Kind};
use crate::kernel::{self, Scheduler};
use crate::latency::Latency;
use crate::plan::Plan;
use crate::priority::{Policy, with_policy};
use crate::process::Children;
use crate::report::{
    AudioReport, Config, FrameReport, HogReport, InputReport, PingPongReport, Report, VERSION, sum,
};
use crate::signals::Signals;
use crate::work::{self, Calibration, Rate};
use crate::{batch, input, pingpong};
use anyhow::{Result, anyhow, bail};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seconds to record.
    pub seconds: f64,
    /// Seconds before that.
    pub warmup: f64,
    /// What keeps the CPUs busy.
    pub batch: Batch,
    /// So many of it; None is 1.5 times the CPUs online.
    pub hogs: Option<usize>,
    /// Ping-pong pairs.
    pub pairs: usize,
    /// The game.
    pub game: Kind,
    /// Frames a second; None is the game's own.
    pub hz: Option<u32>,
    /// The run's name; None is the scheduler's.
    pub label: Option<String>,
    /// How the latency-sensitive threads are scheduled.
    pub policy: Policy,
    /// Seed of the input events.
    pub seed: u64,
    /// Factor on the work of game, audio and input.
    pub work_scale: f64,
    /// Iterations of the work loop in a millisecond.
    pub speed: Speed,
}

/// How the work loop's speed becomes known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speed {
    /// So many iterations in a millisecond.
    Given(u64),
    /// By [`work::alone`].
    Alone,
    /// By [`work::together`].
    Together,
}

/// How long to wait for an idle machine, ns.
const PATIENCE: u64 = 5 * SECOND;
/// Between the plan and the first of the load, for forking and starting threads, ns.
const LEAD: u64 = 200 * MS;
/// The background begins so much before the game, ns: a player starts one on a machine that works.
const HEAD_START: u64 = 500 * MS;

/// Runs the load and calls `progress` with a line every second.
///
/// # Errors
/// Something could not be set up, a signal came before anything was recorded, or a background
/// process died.
pub fn run(options: &Options, progress: impl FnMut(&str)) -> Result<Report> {
    let signals = Signals::block()?;
    let mut config = configure(options, &signals)?;
    let rate = Rate {
        iterations_per_ms: config.iterations_per_ms,
        scale: config.work_scale,
    };
    let lengths = [config.warmup, config.seconds].map(nanoseconds);
    let plan = Arc::new(Plan::new(now() + LEAD + HEAD_START, lengths[0], lengths[1]));

    let background = Background::fork(&config, rate, plan.epoch - HEAD_START)?;
    let foreground = with_policy(options.policy, || Foreground::start(&plan, rate, &config))?;
    let counts = watch(&signals, &plan, &background.board, config.hogs, progress)?;
    let (frames, periods, events) = foreground.finish()?;
    background.children.finish()?;
    config.scheduler_at_end = Scheduler::read();

    let measured_seconds = seconds(plan.until().saturating_sub(plan.from));
    let mut hogs = counts.rates();
    let pairs = hogs.split_off(config.hogs);
    Ok(Report {
        version: VERSION,
        label: options
            .label
            .clone()
            .unwrap_or_else(|| default_label(&config)),
        measured_seconds,
        interrupted: counts.interrupted,
        frame: FrameReport::new(&frames, measured_seconds),
        audio: AudioReport::new(&periods),
        input: InputReport::new(&events),
        hogs: HogReport::new(hogs, config.iterations_per_ms),
        ping_pong: PingPongReport::new(pairs),
        config,
    })
}

fn configure(options: &Options, signals: &Signals) -> Result<Config> {
    let (cpus, scheduler) = (kernel::online_cpus(), Scheduler::read());
    let idle_before = kernel::wait_for_idle(PATIENCE, |due| pause(signals, due))?;
    let (iterations_per_ms, calibration) = match options.speed {
        Speed::Given(speed) => (speed, Calibration::Given),
        Speed::Alone => (work::alone(), Calibration::Alone),
        Speed::Together => (work::together(cpus), Calibration::Together),
    };
    Ok(Config {
        seconds: options.seconds,
        warmup: options.warmup,
        game: options.game,
        hz: options.hz.unwrap_or(options.game.hz()),
        batch: options.batch,
        hogs: options.hogs.unwrap_or((cpus * 3).div_ceil(2)),
        pairs: options.pairs,
        rt: options.policy == Policy::Fifo,
        seed: options.seed,
        work_scale: options.work_scale,
        iterations_per_ms,
        calibration,
        idle_before,
        kernel: kernel::release(),
        cpus,
        scheduler_at_end: scheduler.clone(),
        scheduler,
    })
}

/// Sleeps until `due` (ns); a signal is an error.
fn pause(signals: &Signals, due: u64) -> Result<()> {
    if signals.wait_until(due) {
        bail!("interrupted before anything was recorded");
    }
    Ok(())
}

fn default_label(config: &Config) -> String {
    let suffix = if config.rt { "+fifo" } else { "" };
    format!("{}{suffix}", config.scheduler.name())
}

/// What keeps the CPUs busy, and the ping-pong pairs. Fields drop in order: the processes end before their board.
struct Background {
    children: Children,
    board: Board,
}

impl Background {
    fn fork(config: &Config, rate: Rate, epoch: u64) -> Result<Self> {
        let mut children = Children::default();
        let board = Board::new(config.hogs + config.pairs)?;
        let (hogs, pairs) = board.counters().split_at(config.hogs);
        batch::fork(config.batch, &mut children, hogs, rate, epoch)?;
        pingpong::fork(&mut children, pairs, epoch)?;
        Ok(Self { children, board })
    }
}

/// The latency-sensitive threads.
struct Foreground {
    game: Game,
    audio: JoinHandle<Periods>,
    input: JoinHandle<Latency>,
}

impl Foreground {
    fn start(plan: &Arc<Plan>, rate: Rate, config: &Config) -> Result<Self> {
        Ok(Self {
            game: game::start(config.game, plan, rate, config.hz)?,
            audio: audio::start(plan, rate)?,
            input: input::start(plan, rate, config.seed)?,
        })
    }

    fn finish(self) -> Result<(Frames, Periods, Latency)> {
        Ok((
            self.game.finish()?,
            self.audio
                .join()
                .map_err(|_| anyhow!("the audio thread panicked"))?,
            self.input
                .join()
                .map_err(|_| anyhow!("the input thread panicked"))?,
        ))
    }
}

/// The board at one instant.
#[derive(Clone, Debug)]
struct Sample {
    at: u64,
    counts: Vec<u64>,
}

impl Sample {
    fn take(board: &Board) -> Self {
        Self {
            at: now(),
            counts: board.counts(),
        }
    }

    /// Counts a second since `before`.
    fn rates_since(&self, before: &Self) -> Vec<f64> {
        let elapsed = seconds(self.at.saturating_sub(before.at).max(1));
        let pairs = self.counts.iter().zip(&before.counts);
        pairs
            .map(|(after, before)| after.wrapping_sub(*before) as f64 / elapsed)
            .collect()
    }
}

/// The background's counts over the recorded part.
struct Counts {
    first: Sample,
    last: Sample,
    interrupted: bool,
}

impl Counts {
    fn rates(&self) -> Vec<f64> {
        self.last.rates_since(&self.first)
    }
}

/// Waits for the end of the run, or ends it when a signal comes.
fn watch(
    signals: &Signals,
    plan: &Plan,
    board: &Board,
    hogs: usize,
    mut progress: impl FnMut(&str),
) -> Result<Counts> {
    pause(signals, plan.from)?;
    let first = Sample::take(board);
    let (mut before, mut tick) = (first.clone(), plan.from);
    loop {
        tick = plan.until().min(tick + SECOND);
        let interrupted = signals.wait_until(tick);
        let sample = Sample::take(board);
        if interrupted {
            plan.stop(sample.at);
        }
        progress(&progress_line(plan, &sample, &before, hogs));
        if plan.is_over(tick) {
            return Ok(Counts {
                first,
                last: sample,
                interrupted,
            });
        }
        before = sample;
    }
}

fn progress_line(plan: &Plan, sample: &Sample, before: &Sample, hogs: usize) -> String {
    let rates = sample.rates_since(before);
    let (hogs, pairs) = rates.split_at(hogs);
    format!(
        "{:5.1} s: {} frames, {} missed; hogs {:.0} units/s; ping-pong {:.0} round trips/s",
        seconds(sample.at.saturating_sub(plan.from)),
        plan.frames.load(Relaxed),
        plan.missed.load(Relaxed),
        sum(hogs),
        sum(pairs),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_counts_over_seconds() {
        let before = Sample {
            at: SECOND,
            counts: vec![10, 100],
        };
        let after = Sample {
            at: 3 * SECOND,
            counts: vec![20, 100],
        };
        assert_eq!(after.rates_since(&before), [5.0, 0.0]);
        assert!(after.rates_since(&after).iter().all(|&rate| rate == 0.0));
    }
}
