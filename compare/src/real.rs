//! Programs that people run, instead of loads that were made to be measured: games, a desktop and
//! sound, and work beside them.
//!
//! The program is there first, as when a player is in a game and a build begins. Then the work
//! begins, and a second later the record.
//!
//! Each program is Debian's, and tells by itself how it fares: a game by when it presents its
//! frames (`presented`), Weston's client by the times at which its frames were shown, sound by the
//! periods that came too late.

pub(crate) mod guest;
mod sound;
mod work;

pub(crate) use work::Beside;
use work::Work;

use crate::figure::At::{Max, P50, P99};
use crate::figure::Figure::{self, Fps, LateFrames, Time, WorkDone, Xruns};
use crate::figure::Of;
use anyhow::{Context, Result, bail};
use loads::clock::{MS, SECOND, nanoseconds, now, seconds, sleep_until};
use loads::latency::Latency;
use loads::report::{Report, VERSION};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Where the guest has the library `presented`, and the sources that are compiled.
const PRESENTED: &str = "/usr/lib/libpresented.so";
const SOURCES: &str = "/usr/src/zlib";

/// What must not stutter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Chocolate Doom plays the first demo of Freedoom: 35 frames a second, drawn and scaled by the
    /// CPU, by one thread that polls the clock.
    Doom,
    /// Crispy Doom plays the same with as many frames as there can be: it never sleeps.
    Crispy,
    /// Weston without a screen, drawn by the CPU, with a client that draws anew as soon as its last
    /// frame was shown.
    Desktop,
    /// JACK with periods of so many frames at 48 kHz, and three clients, one after the other.
    Jack(u32),
    /// PipeWire with such periods, and one client that plays to a device that is none.
    Pipewire(u32),
}

/// In a directory that is there at the start and gone with the guest.
const DIRECTORY: &str = "/tmp/real";
const DEMO: [&str; 10] = [
    "-iwad",
    "/usr/share/games/doom/freedoom1.wad",
    "-extraconfig",
    "/tmp/real/doom.cfg",
    "-window",
    "-nomusic",
    "-nograb",
    "-nogui",
    "-playdemo",
    "demo1",
];
/// Sound at the rate of its samples needs no resampling at the start, which takes a slow CPU
/// seconds.
const DOOM_CONFIG: &str = "force_software_renderer 1\nfullscreen 0\nwindow_width 640\n\
    window_height 480\nsnd_samplerate 11025\ncrispy_uncapped 1\ncrispy_fpslimit 0\ncrispy_vsync 0\n";
/// A program that has not begun after this, ns, never will.
const PATIENCE: u64 = 30 * SECOND;
/// Before the work begins, and before the record, ns.
const LEAD: u64 = SECOND;

type Figures = BTreeMap<Figure, f64>;

/// Runs `program` beside that, and records it for `length` ns. `fifo` puts it into SCHED_FIFO.
///
/// # Errors
/// A program could not be started, or did not begin.
pub(crate) fn run(
    program: Program,
    beside: Beside,
    cpus: usize,
    length: u64,
    fifo: bool,
) -> Result<Record> {
    fs::create_dir_all(DIRECTORY)?;
    let watched = Watched::start(program, fifo)?;
    sleep_until(now() + LEAD);
    let work = Work::start(beside, 2 * cpus)?;
    sleep_until(now() + LEAD);
    let (done, seen, begin) = (work.done()?, watched.events()?.len(), now());
    sleep_until(begin + length);
    let (events, end) = (watched.events()?, now());
    Ok(Record {
        program,
        events: events.get(seen..).unwrap_or_default().to_vec(),
        seconds: seconds(end - begin),
        done: work.done()?.saturating_sub(done),
    })
}

/// What a program has told, and what was done beside it.
pub(crate) struct Record {
    program: Program,
    /// See [`Watched::events`].
    events: Vec<u64>,
    seconds: f64,
    done: u64,
}

impl Record {
    /// Those that are shown, and more.
    ///
    /// # Errors
    /// None in practice.
    pub(crate) fn figures(&self) -> Result<Figures> {
        let work = (WorkDone, self.done as f64 / self.seconds);
        if self.program.is_sound() {
            let worst = self.events.iter().max().copied().unwrap_or(0);
            let worst = (Time(Of::Xrun, Max), worst as f64 / MS as f64);
            return Ok([(Xruns, self.events.len() as f64), worst, work].into());
        }
        let intervals = self.intervals();
        let mut latency = Latency::new()?;
        intervals.iter().for_each(|&ns| latency.record(ns));
        if intervals.is_empty() {
            // It stood still all the time.
            latency.record(nanoseconds(self.seconds));
        }
        let p = latency.percentiles();
        let mut figures = Figures::from([
            (Time(Of::Interval, P50), p.p50),
            (Time(Of::Interval, P99), p.p99),
            (Time(Of::Interval, Max), p.max),
            (Fps, intervals.len() as f64 / self.seconds),
            work,
        ]);
        if self.program.period().is_some() {
            figures.insert(LateFrames, self.late() as f64);
        }
        Ok(figures)
    }

    /// From one frame to the next, ns.
    fn intervals(&self) -> Vec<u64> {
        match self.program {
            Program::Desktop => self.events.clone(),
            _ => {
                let pairs = self.events.windows(2);
                pairs.map(|two| two[1].saturating_sub(two[0])).collect()
            }
        }
    }

    /// Its frames as those of a run of `frame`, for a picture of them. One is missed if it is late.
    pub(crate) fn report(&self, label: &str) -> Report {
        let mut at = 0.0;
        let each = self.intervals().into_iter().map(|ns| {
            let begin = at;
            at += ns as f64 / MS as f64;
            (begin, at)
        });
        let mut report = Report {
            version: VERSION,
            label: label.to_owned(),
            measured_seconds: self.seconds,
            ..Report::default()
        };
        report.frame.each_ms = each.collect();
        report.frame.missed = self.late();
        let period = self.program.period().unwrap_or(SECOND);
        report.config.hz = (SECOND / (period + period / 2)) as u32;
        report
    }

    /// Frames that came half a period late, or later; none where there is no pace.
    fn late(&self) -> u64 {
        let period = self.program.period();
        let is_late = |ns: &u64| period.is_some_and(|period| *ns > period + period / 2);
        self.intervals().into_iter().filter(is_late).count() as u64
    }
}

/// A program of its own process group, whose output goes to a file; killed when dropped, with all
/// that it has started.
struct Started {
    child: Child,
    output: PathBuf,
}

impl Started {
    fn new(name: &str, fifo: bool, prepare: impl FnOnce(&mut Command)) -> Result<Self> {
        let output = Path::new(DIRECTORY).join(Path::new(name).file_name().unwrap_or_default());
        let output = output.with_extension("out");
        let file = File::create(&output)?;
        let mut command = match fifo {
            true => {
                let mut command = Command::new("chrt");
                command.args(["-f", "10", name]);
                command
            }
            false => Command::new(name),
        };
        prepare(&mut command);
        command
            .current_dir(DIRECTORY)
            .env("XDG_RUNTIME_DIR", DIRECTORY)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command.spawn();
        let child = child.with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, output })
    }

    fn text(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.output)?).into_owned())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // SAFETY: plain numbers; a child that has not been waited for keeps its number.
        unsafe { libc::kill(-self.child.id().cast_signed(), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// A program that is watched. The first of `started` is the one that tells.
struct Watched {
    program: Program,
    started: Vec<Started>,
}

impl Watched {
    /// It has begun when it returns.
    fn start(program: Program, fifo: bool) -> Result<Self> {
        let started = match program {
            Program::Doom => vec![game("/usr/games/chocolate-doom", fifo)?],
            Program::Crispy => vec![game("/usr/games/crispy-doom", fifo)?],
            Program::Desktop => desktop(fifo)?,
            Program::Jack(frames) => sound::jack(frames, fifo)?,
            Program::Pipewire(frames) => sound::pipewire(frames, fifo)?,
        };
        let watched = Self { program, started };
        let enough = if program.is_sound() { 0 } else { 20 };
        wait_until("the program has not begun", || {
            Ok(watched.events()?.len() >= enough)
        })?;
        Ok(watched)
    }

    /// What it has told until now, ns: when each frame was presented, or, of the others, how long
    /// each frame or each period that came too late took.
    fn events(&self) -> Result<Vec<u64>> {
        let told = self.started.first().context("nothing was started")?;
        match self.program {
            Program::Doom | Program::Crispy => presented(&fs::read(frames_file())?),
            Program::Desktop => Ok(shown(&told.text()?)),
            Program::Jack(_) => Ok(sound::late_in_jack(&told.text()?)),
            Program::Pipewire(_) => sound::late_in_pipewire(),
        }
    }
}

impl Program {
    /// Its figures that are shown and compared.
    pub(crate) const fn shown(self) -> &'static [Figure] {
        match self {
            Self::Doom | Self::Desktop => &[
                Time(Of::Interval, P50),
                Time(Of::Interval, P99),
                Time(Of::Interval, Max),
                LateFrames,
                WorkDone,
            ],
            Self::Crispy => &[
                Fps,
                Time(Of::Interval, P50),
                Time(Of::Interval, P99),
                Time(Of::Interval, Max),
                WorkDone,
            ],
            Self::Jack(_) | Self::Pipewire(_) => &[Xruns, Time(Of::Xrun, Max), WorkDone],
        }
    }

    /// From one frame to the next, ns, if it has a pace. Weston waits for 16 ms after each frame,
    /// and another 7 ms for its clients; with what both need that is 25 ms on an idle machine.
    fn period(self) -> Option<u64> {
        match self {
            Self::Doom => Some(SECOND / 35),
            Self::Desktop => Some(25 * MS),
            Self::Crispy | Self::Jack(_) | Self::Pipewire(_) => None,
        }
    }

    /// It tells of periods that came too late, and of nothing else.
    fn is_sound(self) -> bool {
        matches!(self, Self::Jack(_) | Self::Pipewire(_))
    }
}

fn wait_until(otherwise: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let end = now() + PATIENCE;
    while !is_so()? {
        if now() > end {
            bail!("{otherwise} after {} s", PATIENCE / SECOND);
        }
        sleep_until(now() + 50 * MS);
    }
    Ok(())
}

fn frames_file() -> PathBuf {
    Path::new(DIRECTORY).join("presented")
}

fn game(program: &str, fifo: bool) -> Result<Started> {
    fs::write(Path::new(DIRECTORY).join("doom.cfg"), DOOM_CONFIG)?;
    fs::write(frames_file(), [])?;
    Started::new(program, fifo, |command| {
        command
            .args(DEMO)
            .env("LD_PRELOAD", PRESENTED)
            .env("PRESENTED", frames_file())
            .env("SDL_VIDEODRIVER", "dummy")
            .env("SDL_AUDIODRIVER", "dummy");
    })
}

/// The compositor goes on drawing its clients' frames whether there is a screen or not.
fn desktop(fifo: bool) -> Result<Vec<Started>> {
    let socket = Path::new(DIRECTORY).join("desktop");
    let _ = fs::remove_file(&socket);
    let compositor = Started::new("weston", fifo, |command| {
        command.args([
            "--backend=headless-backend.so",
            "--use-pixman",
            "--no-config",
        ]);
        command.args([
            "--width=1280",
            "--height=720",
            "--idle-time=0",
            "--socket=desktop",
        ]);
    })?;
    wait_until("weston is not there", || Ok(socket.exists()))?;
    let client = Started::new("weston-presentation-shm", fifo, |command| {
        command
            .arg("-f")
            .env("WAYLAND_DISPLAY", "desktop")
            .env("LD_PRELOAD", PRESENTED);
    })?;
    Ok(vec![client, compositor])
}

/// What a program prints, or None if it does not end well.
fn answer(name: &str, arguments: &[&str]) -> Result<Option<String>> {
    let mut command = Command::new(name);
    command.args(arguments).env("XDG_RUNTIME_DIR", DIRECTORY);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output();
    let output = output.with_context(|| format!("cannot start {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(output.status.success().then_some(text))
}

/// Of the file of `presented`.
fn presented(bytes: &[u8]) -> Result<Vec<u64>> {
    let mut words = bytes.as_chunks().0.iter().copied().map(u64::from_ne_bytes);
    let count = words.next().unwrap_or(0) as usize;
    let frames: Vec<u64> = words.take(count).collect();
    if frames.len() < count {
        bail!(
            "{count} frames were presented, and {} are there",
            frames.len()
        );
    }
    Ok(frames)
}

/// The times between frames in what `weston-presentation-shm` prints, ns: "p2p 25319 us".
fn shown(text: &str) -> Vec<u64> {
    let interval = |line: &str| {
        let (us, _) = line.split_once("p2p")?.1.split_once("us")?;
        us.trim().parse::<u64>().ok()
    };
    text.lines()
        .filter_map(interval)
        .map(|us| us * 1000)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_print_is_understood() {
        let weston =
            "  97: f2c 10 ms, c2p 41 ms, f2p 51 ms, p2p 25319 us, t2p 0, [____], seq 0\nx\n";
        assert_eq!(shown(weston), [25_319_000]);
        assert_eq!(shown(""), Vec::<u64>::new());
    }

    #[test]
    fn a_frame_is_late_that_comes_half_a_period_after_its_time() -> Result<()> {
        let events = [0, 28, 57, 110, 138].map(|ms| ms * MS).to_vec();
        let record = Record {
            program: Program::Doom,
            events,
            seconds: 0.5,
            done: 20,
        };
        let figures = record.figures()?;
        assert_eq!(figures.get(&LateFrames), Some(&1.0));
        assert_eq!(
            (figures.get(&Fps), figures.get(&WorkDone)),
            (Some(&8.0), Some(&40.0))
        );
        let report = record.report("a");
        assert_eq!((report.frame.missed, report.frame.each_ms.len()), (1, 4));
        assert_eq!(report.frame.each_ms[2], (57.0, 110.0));
        Ok(())
    }

    #[test]
    fn a_game_that_stands_still_is_not_the_quickest() -> Result<()> {
        let record = Record {
            program: Program::Crispy,
            events: vec![5],
            seconds: 3.0,
            done: 0,
        };
        let figures = record.figures()?;
        let median = figures.get(&Time(Of::Interval, P50)).copied();
        assert!(
            median.is_some_and(|ms| (2_900.0..3_100.0).contains(&ms)),
            "{median:?}"
        );
        assert_eq!(figures.get(&Fps), Some(&0.0));
        Ok(())
    }

    #[test]
    fn frames_are_read_while_the_game_goes_on() -> Result<()> {
        let words = |words: &[u64]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_ne_bytes()).collect()
        };
        assert_eq!(presented(&words(&[2, 10, 20, 0]))?, [10, 20]);
        assert_eq!(presented(&[])?, Vec::<u64>::new());
        assert!(presented(&words(&[3, 10])).is_err());
        Ok(())
    }
}
