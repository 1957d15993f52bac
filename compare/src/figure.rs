//! Figures: what is measured, and the names by which samples keep it.

use crate::stats::Better::{self, Higher, Lower};
use loads::weights::LEVELS;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) enum Figure {
    /// Of how long something takes, ms.
    Time(Of, At),
    /// How often that was measured.
    Samples(Of),
    /// Of the frames, %.
    FramesMissed,
    /// Of the game's first ten.
    MissedAtFirst,
    /// Frames a second in the slowest 1 %.
    SlowestFps,
    /// Frames a second.
    Fps,
    /// Of the periods, %.
    AudioMissed,
    /// That came half a period late, or later.
    LateFrames,
    /// Periods of sound that came too late.
    Xruns,
    /// Files compiled, or frames encoded, a second.
    WorkDone,
    /// Units a second.
    HogsWork,
    /// The least work of a hog over the most.
    HogsFairness,
    /// Round trips a second.
    PingPong,
    /// For the whole, s.
    Seconds,
    /// For an exchange, µs.
    Exchange,
    /// Requests a second.
    Rate,
    /// Work done by the wrong hogs, %.
    Misplaced,
    /// Of all work, by the hogs of a nice level, %.
    Share(usize),
    /// CPU time of the process in 1,000 switches, ms.
    Cpu,
    /// Time in its BPF programs in 1,000 switches, ms.
    Bpf,
    /// CPU time of the process, % of a CPU.
    Percent,
    /// Memory, MiB.
    Memory,
    /// Page faults a second.
    Faults,
    /// Switches of context.
    Switches,
    /// System calls for a switch.
    Syscalls,
}

/// What takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Of {
    /// A frame, from when it is due to its completion.
    Frame,
    /// The wake-up of the audio thread.
    Audio,
    /// The wake-up of the input thread.
    Input,
    /// The wake-up of a worker, or of cyclictest's threads.
    Wakeup,
    /// A request.
    Request,
    /// From one frame to the next.
    Interval,
    /// By how much a period of sound came too late.
    Xrun,
}

/// Where in a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum At {
    P50,
    P90,
    P99,
    P999,
    Max,
}

impl Of {
    pub(crate) const ALL: [Self; 7] = [
        Self::Frame,
        Self::Audio,
        Self::Input,
        Self::Wakeup,
        Self::Request,
        Self::Interval,
        Self::Xrun,
    ];

    /// In samples, and for people.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Frame => ("frame", "frame completion"),
            Self::Audio => ("audio", "audio wake-up"),
            Self::Input => ("input", "input wake-up"),
            Self::Wakeup => ("wakeup", "wake-up"),
            Self::Request => ("request", "request"),
            Self::Interval => ("interval", "frame to frame"),
            Self::Xrun => ("xrun", "xrun"),
        }
    }
}

impl At {
    /// From the middle outwards.
    pub(crate) const ALL: [Self; 5] = [Self::P50, Self::P90, Self::P99, Self::P999, Self::Max];

    /// In samples.
    const fn name(self) -> &'static str {
        match self {
            Self::P999 => "p99_9",
            at => at.title(),
        }
    }

    /// For people.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::Max => "max",
        }
    }
}

/// All figures but times and shares: the name in samples, the title, the unit, which way is better,
/// and digits after the point.
#[rustfmt::skip]
const SINGLE: [(Figure, &str, &str, &str, Better, usize); 22] = [
    (Figure::FramesMissed, "frame.missed", "frames missed", "%", Lower, 1),
    (Figure::MissedAtFirst, "frame.first", "missed of the first ten", "", Lower, 0),
    (Figure::SlowestFps, "frame.low1", "1 % low", "fps", Higher, 1),
    (Figure::Fps, "frame.fps", "frames", "fps", Higher, 1),
    (Figure::AudioMissed, "audio.missed", "audio periods missed", "%", Lower, 1),
    (Figure::LateFrames, "frame.late", "late frames", "", Lower, 0),
    (Figure::Xruns, "xruns", "xruns", "", Lower, 0),
    (Figure::WorkDone, "work", "work done beside", "1/s", Higher, 1),
    (Figure::HogsWork, "hogs.work", "hogs' work", "units/s", Higher, 0),
    (Figure::HogsFairness, "hogs.fairness", "hogs' least over most", "", Higher, 2),
    (Figure::PingPong, "pingpong", "ping-pong", "trips/s", Higher, 0),
    (Figure::Seconds, "seconds", "time", "s", Lower, 3),
    (Figure::Exchange, "us", "time for an exchange", "µs", Lower, 1),
    (Figure::Rate, "rate", "requests", "1/s", Higher, 0),
    (Figure::Misplaced, "misplaced", "work done by the wrong hogs", "%", Lower, 1),
    (Figure::Cpu, "cpu", "CPU time of the process, 1,000 switches", "ms", Lower, 2),
    (Figure::Bpf, "bpf", "time in its BPF programs, 1,000 switches", "ms", Lower, 2),
    (Figure::Percent, "percent", "CPU time of the process", "% of a CPU", Lower, 1),
    (Figure::Memory, "rss", "memory", "MiB", Lower, 1),
    (Figure::Faults, "faults", "page faults", "1/s", Lower, 1),
    (Figure::Switches, "switches", "switches", "", Lower, 0),
    (Figure::Syscalls, "syscalls", "system calls for a switch", "", Lower, 3),
];

/// How a figure is shown and compared.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shown {
    /// In tables.
    pub(crate) title: String,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// Which way is better.
    pub(crate) better: Better,
    /// Digits after the point.
    pub(crate) decimals: usize,
}

impl Figure {
    /// All that there are.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let times = Of::ALL.into_iter().flat_map(|of| {
            let times = At::ALL.map(|at| Self::Time(of, at));
            times.into_iter().chain([Self::Samples(of)])
        });
        let single = SINGLE.map(|(figure, ..)| figure);
        times
            .chain(single)
            .chain((0..LEVELS.len()).map(Self::Share))
    }

    /// How it is shown.
    #[must_use]
    pub(crate) fn shown(self) -> Shown {
        let (title, unit, better, decimals) = self.details();
        Shown {
            title,
            unit,
            better,
            decimals,
        }
    }

    fn details(self) -> (String, &'static str, Better, usize) {
        match self {
            Self::Time(of, at) => {
                let fine = at == At::P50 || (of, at) == (Of::Wakeup, At::P99);
                let title = format!("{} {}", of.names().1, at.title());
                (title, "ms", Lower, if fine { 3 } else { 2 })
            }
            Self::Samples(of) => (format!("{} samples", of.names().1), "", Higher, 0),
            Self::Share(level) => (format!("share of nice {}", LEVELS[level].0), "%", Higher, 1),
            _ => SINGLE
                .into_iter()
                .find(|(figure, ..)| *figure == self)
                .map(|(_, _, title, unit, better, decimals)| {
                    (title.to_owned(), unit, better, decimals)
                })
                .unwrap_or((String::new(), "", Lower, 0)),
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(of, at) => write!(out, "{}.{}", of.names().0, at.name()),
            Self::Samples(of) => write!(out, "{}.samples", of.names().0),
            Self::Share(level) => write!(out, "share.{}", LEVELS[*level].0),
            _ => {
                let found = SINGLE.iter().find(|(figure, ..)| figure == self);
                out.write_str(found.map_or("", |(_, name, ..)| name))
            }
        }
    }
}

impl From<Figure> for String {
    fn from(figure: Figure) -> Self {
        figure.to_string()
    }
}

impl TryFrom<String> for Figure {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let found = Self::all().find(|figure| figure.to_string() == name);
        found.ok_or_else(|| format!("no figure is called {name:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn each_figure_has_a_name_and_a_title_of_its_own_and_is_found_by_it() {
        let names: BTreeSet<_> = Figure::all().map(String::from).collect();
        let titles: BTreeSet<_> = Figure::all().map(|figure| figure.shown().title).collect();
        assert_eq!(names.len(), Figure::all().count());
        assert_eq!(titles.len(), Figure::all().count());
        for figure in Figure::all() {
            let Shown { title, .. } = figure.shown();
            assert!(
                !figure.to_string().is_empty() && !title.is_empty(),
                "{figure:?}"
            );
            assert_eq!(Figure::try_from(figure.to_string()), Ok(figure));
        }
        assert!(Figure::try_from("frame.p98".to_owned()).is_err());
    }

    #[test]
    fn samples_keep_figures_by_their_names() -> anyhow::Result<()> {
        let figures = BTreeMap::from([(Figure::Time(Of::Frame, At::P999), 1.5)]);
        let text = serde_json::to_string(&figures)?;
        assert_eq!(text, r#"{"frame.p99_9":1.5}"#);
        assert_eq!(
            serde_json::from_str::<BTreeMap<Figure, f64>>(&text)?,
            figures
        );
        Ok(())
    }
}
