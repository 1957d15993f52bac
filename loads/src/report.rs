//! What a run came to: for people, and as JSON.

use crate::audio::Periods;
use crate::batch::{Batch, UNIT};
use crate::frames::Frames;
use crate::game::Kind;
use crate::kernel::Scheduler;
use crate::latency::{Latency, Percentiles};
use crate::work::Calibration;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The meaning of the JSON fields; a file with another number is refused.
pub const VERSION: u32 = 1;
/// A report is a few kilobytes; what is longer than this is something else.
const LONGEST_FILE: u64 = 1 << 20;

/// A run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// The run's name.
    pub label: String,
    /// What was run, and where.
    pub config: Config,
    /// Seconds recorded: fewer than configured if the run was interrupted.
    pub measured_seconds: f64,
    /// A signal ended the run.
    pub interrupted: bool,
    /// The game.
    pub frame: FrameReport,
    /// The audio thread.
    pub audio: AudioReport,
    /// The input thread.
    pub input: InputReport,
    /// The CPU hogs, or what stands in for them.
    pub hogs: HogReport,
    /// The ping-pong pairs.
    pub ping_pong: PingPongReport,
}

/// What was run, and where.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Seconds to record.
    pub seconds: f64,
    /// Seconds before that.
    pub warmup: f64,
    /// The game.
    #[serde(default)]
    pub game: Kind,
    /// Frames a second.
    pub hz: u32,
    /// What keeps the CPUs busy.
    #[serde(default)]
    pub batch: Batch,
    /// So many of it.
    pub hogs: usize,
    /// Ping-pong pairs.
    pub pairs: usize,
    /// The latency-sensitive threads were in SCHED_FIFO.
    pub rt: bool,
    /// Seed of the input events.
    pub seed: u64,
    /// Factor on the work of game, audio and input.
    pub work_scale: f64,
    /// Iterations of the work loop that count as a millisecond.
    pub iterations_per_ms: u64,
    /// Where they come from.
    pub calibration: Calibration,
    /// The machine was idle before the run; if not, the calibration and the results are doubtful.
    pub idle_before: bool,
    /// Kernel release.
    pub kernel: String,
    /// CPUs online.
    pub cpus: usize,
    /// The scheduler before the run.
    pub scheduler: Scheduler,
    /// The scheduler after the run: a different one means that the run measured a mixture.
    pub scheduler_at_end: Scheduler,
}

/// The game's frames.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FrameReport {
    /// From due time to completion.
    pub completion_ms: Percentiles,
    /// Completed, late ones included.
    pub done: u64,
    /// Completed after the next one's due time, or skipped.
    pub missed: u64,
    /// Skipped.
    pub skipped: u64,
    /// Frames completed a second.
    pub fps: f64,
    /// Frames a second over the longest hundredth of the intervals between completions.
    pub fps_low_1_percent: f64,
    /// Of each frame, warm-up included, when it was due and when complete, ms since the game's
    /// start.
    #[serde(default)]
    pub each_ms: Vec<(f64, f64)>,
}

/// A scheduler that learns may take so many frames to know a game.
pub const LEARNING: usize = 10;

/// The audio thread's periods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AudioReport {
    /// From due time to running.
    pub wakeup_ms: Percentiles,
    /// From due time to the work's end.
    pub completion_ms: Percentiles,
    /// Due.
    pub periods: u64,
    /// Completed after the next one's due time, or skipped.
    pub missed: u64,
}

/// The input thread's events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InputReport {
    /// From event to running.
    pub wakeup_ms: Percentiles,
}

/// The hogs' work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HogReport {
    /// Units of [`UNIT`] iterations a second, all hogs together.
    pub units_per_second: f64,
    /// The same as CPUs kept busy, by the run's `iterations_per_ms`.
    pub cpus: f64,
    /// The least of a hog over the most of one: 1 is fair. None with fewer than two hogs.
    pub fairness: Option<f64>,
    /// Units a second of each.
    pub each: Vec<f64>,
}

/// The ping-pong pairs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PingPongReport {
    /// Round trips a second, all pairs together.
    pub round_trips_per_second: f64,
    /// Round trips a second of each pair.
    pub each: Vec<f64>,
}

impl FrameReport {
    /// `frames`, of `seconds`.
    #[must_use]
    pub fn new(frames: &Frames, seconds: f64) -> Self {
        let longest = frames.interval.mean_of_longest(0.01);
        Self {
            completion_ms: frames.completion.percentiles(),
            done: frames.done,
            missed: frames.missed,
            skipped: frames.skipped,
            fps: ratio(frames.done as f64, seconds).unwrap_or(0.0),
            fps_low_1_percent: longest.and_then(|ns| ratio(1e9, ns)).unwrap_or(0.0),
            each_ms: frames
                .each
                .iter()
                .map(|&(due, end)| (ms(due), ms(end)))
                .collect(),
        }
    }
}

impl FrameReport {
    /// How many of the game's first [`LEARNING`] frames, due at `hz`, were missed, recorded or not.
    #[must_use]
    pub fn missed_at_first(&self, hz: u32) -> usize {
        let period = 1e3 / f64::from(hz.max(1));
        let until = (LEARNING as f64 - 0.5) * period;
        let first = self.each_ms.iter().take_while(|(due, _)| *due < until);
        // To a µs, as they are listed.
        let in_time = first.filter(|(due, end)| end - due <= period + 1e-3);
        LEARNING.saturating_sub(in_time.count())
    }
}

impl AudioReport {
    /// `periods`.
    #[must_use]
    pub fn new(periods: &Periods) -> Self {
        Self {
            wakeup_ms: periods.wakeup.percentiles(),
            completion_ms: periods.completion.percentiles(),
            periods: periods.periods,
            missed: periods.missed,
        }
    }
}

impl InputReport {
    /// `latency` of the events.
    #[must_use]
    pub fn new(latency: &Latency) -> Self {
        Self {
            wakeup_ms: latency.percentiles(),
        }
    }
}

impl HogReport {
    /// `each` hog's units a second.
    #[must_use]
    pub fn new(each: Vec<f64>, iterations_per_ms: u64) -> Self {
        let units_per_second = sum(&each);
        let least = each.iter().copied().fold(f64::INFINITY, f64::min);
        let most = each.iter().copied().fold(0.0, f64::max);
        let iterations_per_second = iterations_per_ms as f64 * 1e3;
        Self {
            units_per_second,
            cpus: ratio(units_per_second * UNIT as f64, iterations_per_second).unwrap_or(0.0),
            fairness: if each.len() < 2 {
                None
            } else {
                ratio(least, most)
            },
            each,
        }
    }
}

impl PingPongReport {
    /// `each` pair's round trips a second.
    #[must_use]
    pub fn new(each: Vec<f64>) -> Self {
        Self {
            round_trips_per_second: sum(&each),
            each,
        }
    }
}

/// 0 for nothing, where `Iterator::sum` has -0.
#[must_use]
pub fn sum(rates: &[f64]) -> f64 {
    rates.iter().fold(0.0, |sum, rate| sum + rate)
}

/// To a µs, which is what is worth to be written down.
fn ms(ns: u64) -> f64 {
    (ns / 1000) as f64 / 1e3
}

/// None instead of infinity or NaN, which JSON does not have.
fn ratio(a: f64, b: f64) -> Option<f64> {
    (b > 0.0).then(|| a / b)
}

impl Report {
    /// Reads a JSON file.
    ///
    /// # Errors
    /// It cannot be read or is no report; one line that names the file.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
        let mut text = Vec::new();
        let read = file.take(LONGEST_FILE).read_to_end(&mut text);
        read.with_context(|| format!("cannot read {name}"))?;
        let report: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{name} is not a report of `frame run --json`"))?;
        if report.version != VERSION {
            bail!(
                "{name} has version {}, this program reads {VERSION}",
                report.version
            );
        }
        Ok(report)
    }

    /// The report as JSON, with a line feed at the end.
    ///
    /// # Errors
    /// None in practice.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt_head(f, &self.label)?;
        if self.interrupted {
            writeln!(f, "INTERRUPTED after {:.1} s", self.measured_seconds)?;
        }
        let titles = ["", "p50", "p90", "p99", "p99.9", "max", "samples"];
        let [name, columns @ ..] = titles;
        write!(f, "\n{name:<21}")?;
        columns
            .iter()
            .try_for_each(|title| write!(f, "{title:>9}"))?;
        writeln!(f)?;
        fmt_row(f, "frame completion, ms", &self.frame.completion_ms)?;
        fmt_row(f, "audio wake-up, ms", &self.audio.wakeup_ms)?;
        fmt_row(f, "audio completion, ms", &self.audio.completion_ms)?;
        fmt_row(f, "input wake-up, ms", &self.input.wakeup_ms)?;
        self.fmt_counts(f)
    }
}

impl Report {
    fn fmt_counts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            frame,
            audio,
            hogs,
            ping_pong,
            ..
        } = self;
        writeln!(
            f,
            "\nframes      {} done, {} missed (of these {} skipped), {:.1} fps, 1 % low {:.1} fps",
            frame.done, frame.missed, frame.skipped, frame.fps, frame.fps_low_1_percent
        )?;
        writeln!(
            f,
            "audio       {} periods, {} deadlines missed",
            audio.periods, audio.missed
        )?;
        write!(
            f,
            "hogs        {:.0} units/s ({:.2} CPUs)",
            hogs.units_per_second, hogs.cpus
        )?;
        if let Some(fairness) = hogs.fairness {
            write!(f, ", min/max {fairness:.2}")?;
        }
        writeln!(
            f,
            "\nping-pong   {:.0} round trips/s",
            ping_pong.round_trips_per_second
        )
    }
}

impl Config {
    fn fmt_head(&self, f: &mut fmt::Formatter<'_>, label: &str) -> fmt::Result {
        writeln!(
            f,
            "{label}: kernel {}, {} CPUs, sched_ext {}, scheduler {}{}",
            self.kernel,
            self.cpus,
            self.scheduler.state.as_deref().unwrap_or("absent"),
            self.scheduler.name(),
            if self.rt {
                ", latency threads in SCHED_FIFO"
            } else {
                ""
            },
        )?;
        writeln!(
            f,
            "{} game, {} Hz, audio, input; CPU {}: {}, ping-pong pairs: {}; {} s after {} s of warm-up; \
             {} iterations/ms ({}), work x {}",
            self.game,
            self.hz,
            self.batch,
            self.hogs,
            self.pairs,
            self.seconds,
            self.warmup,
            self.iterations_per_ms,
            match self.calibration {
                Calibration::Given => "given",
                Calibration::Alone => "alone",
                Calibration::Together => "all CPUs busy",
            },
            self.work_scale,
        )?;
        if !self.idle_before {
            writeln!(
                f,
                "THE MACHINE WAS BUSY BEFORE THE RUN, the figures are doubtful"
            )?;
        }
        if self.scheduler != self.scheduler_at_end {
            let end = self.scheduler_at_end.name();
            writeln!(
                f,
                "THE SCHEDULER CHANGED DURING THE RUN, at the end it was {end}"
            )?;
        }
        Ok(())
    }
}

fn fmt_row(f: &mut fmt::Formatter<'_>, name: &str, p: &Percentiles) -> fmt::Result {
    write!(f, "{name:<21}")?;
    for ms in [p.p50, p.p90, p.p99, p.p99_9, p.max] {
        write!(f, "{ms:>9.3}")?;
    }
    writeln!(f, "{:>9}", p.samples)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report with round numbers.
    pub(crate) fn sample(label: &str) -> Report {
        let ms = |p99| Percentiles {
            p50: 1.0,
            p90: 2.0,
            p99,
            p99_9: 9.0,
            max: 9.5,
            samples: 600,
        };
        Report {
            version: VERSION,
            label: label.to_owned(),
            config: Config {
                seconds: 10.0,
                warmup: 1.0,
                game: Kind::Heavy,
                hz: 60,
                batch: Batch::Hogs,
                hogs: 2,
                pairs: 1,
                rt: false,
                seed: 1,
                work_scale: 1.0,
                iterations_per_ms: 1000,
                calibration: Calibration::Alone,
                idle_before: true,
                kernel: "6.18.0".to_owned(),
                cpus: 4,
                scheduler: Scheduler::default(),
                scheduler_at_end: Scheduler::default(),
            },
            measured_seconds: 10.0,
            interrupted: false,
            frame: FrameReport {
                completion_ms: ms(8.0),
                done: 598,
                missed: 3,
                skipped: 2,
                fps: 59.8,
                fps_low_1_percent: 40.0,
                each_ms: vec![(0.0, 8.25), (16.667, 24.5)],
            },
            audio: AudioReport {
                wakeup_ms: ms(4.0),
                completion_ms: ms(5.0),
                periods: 1000,
                missed: 0,
            },
            input: InputReport { wakeup_ms: ms(3.0) },
            hogs: HogReport::new(vec![50.0, 100.0], 1000),
            ping_pong: PingPongReport::new(vec![5000.0]),
        }
    }

    #[test]
    fn hogs_are_summed_and_compared() {
        let hogs = HogReport::new(vec![50.0, 100.0], 1000);
        assert_eq!(
            (hogs.units_per_second, hogs.cpus, hogs.fairness),
            (150.0, 1.5, Some(0.5))
        );
        let none = HogReport::new(vec![], 1000);
        assert!(none.fairness.is_none() && none.units_per_second.is_sign_positive());
        assert_eq!(HogReport::new(vec![7.0], 1000).fairness, None);
        assert_eq!(HogReport::new(vec![0.0, 0.0], 1000).fairness, None);
    }

    #[test]
    fn json_comes_back_the_same() -> Result<()> {
        let report = sample("a");
        assert_eq!(serde_json::from_str::<Report>(&report.to_json()?)?, report);
        Ok(())
    }

    #[test]
    fn frames_a_second_and_the_slowest_of_them() -> Result<()> {
        let mut frames = Frames::new()?;
        frames.done = 120;
        (0..99).for_each(|_| frames.interval.record(16_666_667));
        frames.interval.record(50_000_000);
        let report = FrameReport::new(&frames, 2.0);
        assert_eq!(report.fps, 60.0);
        assert!((report.fps_low_1_percent - 20.0).abs() < 0.1, "{report:?}");
        Ok(())
    }

    #[test]
    fn the_first_ten_frames_count_by_themselves() {
        // Two in time, one late, so that two are skipped, and then all in time.
        let late = [(0.0, 8.0), (16.667, 33.333), (33.333, 90.0)];
        let rest = (6..20).map(|nr| (f64::from(nr) * 16.667, f64::from(nr) * 16.667 + 9.0));
        let frame = FrameReport {
            each_ms: late.into_iter().chain(rest).collect(),
            ..FrameReport::default()
        };
        assert_eq!(frame.missed_at_first(60), 4);
        assert_eq!(FrameReport::default().missed_at_first(60), 10);
    }

    #[test]
    fn people_see_what_went_wrong() {
        let mut report = sample("a");
        assert!(report.to_string().contains("3 missed (of these 2 skipped)"));
        assert!(!report.to_string().contains("INTERRUPTED"));
        report.interrupted = true;
        report.config.scheduler_at_end.ops = Some("other".to_owned());
        let text = report.to_string();
        assert!(
            text.contains("INTERRUPTED") && text.contains("CHANGED"),
            "{text}"
        );
    }
}
