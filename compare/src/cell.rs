//! The work: cells, what is measured in each, and how long each takes in the long, the short and
//! the gate's form.

use crate::figure::At::{Max, P50, P99};
use crate::figure::Figure::{
    self, Bpf, Cpu, Exchange, Faults, Fps, FramesMissed, HogsFairness, HogsWork, Memory, Misplaced,
    MissedAtFirst, Percent, PingPong, Rate, Seconds, SlowestFps, Syscalls, Time,
};
use crate::figure::Of;
use crate::real::{Beside, Program};
use crate::scheduler::{Kind, Scheduler};
use loads::batch::Batch;
use loads::game;

/// The meaning of the loads and of the figures' names. Samples of another version are not looked
/// at.
pub(crate) const VERSION: u32 = 3;

/// A piece of work that a scheduler is measured at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cell {
    /// In file names.
    pub(crate) id: &'static str,
    /// In tables.
    pub(crate) title: &'static str,
    /// What is run.
    pub(crate) work: Work,
}

/// What is run. Loads are given per CPU: 1.0 saturates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Work {
    /// `frame` beside so many hogs and one ping-pong pair.
    Frame(f64),
    /// Another game than that, beside so much of that.
    Game(game::Kind, Batch, f64),
    /// `perf bench sched messaging`.
    Messaging,
    /// `perf bench sched pipe`.
    Pipe,
    /// cyclictest, a thread on each CPU, beside so many hogs.
    Cyclictest(f64),
    /// So many of a server's workers.
    Requests(f64),
    /// A build.
    Tree,
    /// A build while `frame` runs.
    TreeBesideFrame,
    /// Hogs of four nice levels.
    Weights,
    /// A program that people run, beside another.
    Real(Program, Beside),
    /// `frame` at 1.5, with an eye on the scheduler's own process.
    Cost,
}

const fn cell(id: &'static str, title: &'static str, work: Work) -> Cell {
    Cell { id, title, work }
}

/// All work, in the order in which it is run and shown.
#[rustfmt::skip]
pub(crate) static CELLS: [Cell; 54] = [
    cell("frame-0.5x", "frame, 0.5x", Work::Frame(0.5)),
    cell("frame-1x", "frame, 1x", Work::Frame(1.0)),
    cell("frame-1.5x", "frame, 1.5x", Work::Frame(1.5)),
    cell("frame-3x", "frame, 3x", Work::Frame(3.0)),
    cell("messaging", "messaging", Work::Messaging),
    cell("pipe", "pipe", Work::Pipe),
    cell("cyclictest-idle", "cyclictest, idle", Work::Cyclictest(0.0)),
    cell("cyclictest-1x", "cyclictest, N hogs", Work::Cyclictest(1.0)),
    cell(
        "cyclictest-2x",
        "cyclictest, 2N hogs",
        Work::Cyclictest(2.0),
    ),
    cell("requests-0.5x", "requests, 0.5x", Work::Requests(0.5)),
    cell("requests-1x", "requests, 1x", Work::Requests(1.0)),
    cell("requests-1.5x", "requests, 1.5x", Work::Requests(1.5)),
    cell("requests-3x", "requests, 3x", Work::Requests(3.0)),
    cell("build", "build, alone", Work::Tree),
    cell("build-frame", "build beside frame", Work::TreeBesideFrame),
    cell("weights", "nice levels", Work::Weights),
    cell("cost", "own cost, frame 1.5x", Work::Cost),
    cell("heavy-1.5x", "heavy game, 1.5x", Work::Game(game::Kind::Heavy, Batch::Hogs, 1.5)),
    cell("heavy-3x", "heavy game, 3x", Work::Game(game::Kind::Heavy, Batch::Hogs, 3.0)),
    cell("heavy-jobs", "heavy game, 1.5x of jobs", Work::Game(game::Kind::Heavy, Batch::Jobs, 1.5)),
    cell("heavy-build", "heavy game, 1.5x of a build", Work::Game(game::Kind::Heavy, Batch::Build, 1.5)),
    cell("144-1.5x", "144 Hz, 1.5x", Work::Game(game::Kind::Fast, Batch::Hogs, 1.5)),
    cell("144-3x", "144 Hz, 3x", Work::Game(game::Kind::Fast, Batch::Hogs, 3.0)),
    cell("144-jobs", "144 Hz, 1.5x of jobs", Work::Game(game::Kind::Fast, Batch::Jobs, 1.5)),
    cell("144-build", "144 Hz, 1.5x of a build", Work::Game(game::Kind::Fast, Batch::Build, 1.5)),
    cell("30-1.5x", "30 Hz, 1.5x", Work::Game(game::Kind::Slow, Batch::Hogs, 1.5)),
    cell("30-3x", "30 Hz, 3x", Work::Game(game::Kind::Slow, Batch::Hogs, 3.0)),
    cell("30-jobs", "30 Hz, 1.5x of jobs", Work::Game(game::Kind::Slow, Batch::Jobs, 1.5)),
    cell("30-build", "30 Hz, 1.5x of a build", Work::Game(game::Kind::Slow, Batch::Build, 1.5)),
    cell("chain-1.5x", "chain of twelve, 1.5x", Work::Game(game::Kind::Chain, Batch::Hogs, 1.5)),
    cell("chain-3x", "chain of twelve, 3x", Work::Game(game::Kind::Chain, Batch::Hogs, 3.0)),
    cell("chain-jobs", "chain of twelve, 1.5x of jobs", Work::Game(game::Kind::Chain, Batch::Jobs, 1.5)),
    cell("chain-build", "chain of twelve, 1.5x of a build", Work::Game(game::Kind::Chain, Batch::Build, 1.5)),
    cell("polled-1.5x", "35 Hz polled, 1.5x", Work::Game(game::Kind::Polled, Batch::Hogs, 1.5)),
    cell("polled-3x", "35 Hz polled, 3x", Work::Game(game::Kind::Polled, Batch::Hogs, 3.0)),
    cell("polled-jobs", "35 Hz polled, 1.5x of jobs", Work::Game(game::Kind::Polled, Batch::Jobs, 1.5)),
    cell("polled-build", "35 Hz polled, 1.5x of a build", Work::Game(game::Kind::Polled, Batch::Build, 1.5)),
    cell("uncapped-1.5x", "uncapped, 1.5x", Work::Game(game::Kind::Uncapped, Batch::Hogs, 1.5)),
    cell("uncapped-3x", "uncapped, 3x", Work::Game(game::Kind::Uncapped, Batch::Hogs, 3.0)),
    cell("uncapped-jobs", "uncapped, 1.5x of jobs", Work::Game(game::Kind::Uncapped, Batch::Jobs, 1.5)),
    cell("uncapped-build", "uncapped, 1.5x of a build", Work::Game(game::Kind::Uncapped, Batch::Build, 1.5)),
    cell("doom-compile", "Chocolate Doom, compiling", Work::Real(Program::Doom, Beside::Compile)),
    cell("doom-encode", "Chocolate Doom, encoding", Work::Real(Program::Doom, Beside::Encode)),
    cell("doom-scripts", "Chocolate Doom, scripts", Work::Real(Program::Doom, Beside::Scripts)),
    cell("doom-messages", "Chocolate Doom, hackbench", Work::Real(Program::Doom, Beside::Messages)),
    cell("crispy-compile", "Crispy Doom, compiling", Work::Real(Program::Crispy, Beside::Compile)),
    cell("crispy-encode", "Crispy Doom, encoding", Work::Real(Program::Crispy, Beside::Encode)),
    cell("desktop-compile", "Weston, compiling", Work::Real(Program::Desktop, Beside::Compile)),
    cell("desktop-encode", "Weston, encoding", Work::Real(Program::Desktop, Beside::Encode)),
    cell("desktop-scripts", "Weston, scripts", Work::Real(Program::Desktop, Beside::Scripts)),
    cell("jack-64", "JACK, 64 frames, compiling", Work::Real(Program::Jack(64), Beside::Compile)),
    cell("jack-256", "JACK, 256 frames, compiling", Work::Real(Program::Jack(256), Beside::Compile)),
    cell("pipewire-64", "PipeWire, 64 frames, compiling", Work::Real(Program::Pipewire(64), Beside::Compile)),
    cell("pipewire-256", "PipeWire, 256 frames, compiling", Work::Real(Program::Pipewire(256), Beside::Compile)),
];

impl Work {
    /// Its figures that are shown and compared; samples hold more.
    #[must_use]
    pub(crate) const fn shown(&self) -> &'static [Figure] {
        match self {
            Self::Frame(_) => &[
                Time(Of::Frame, P99),
                FramesMissed,
                SlowestFps,
                Time(Of::Audio, P99),
                Time(Of::Input, P50),
                Time(Of::Input, P99),
                HogsWork,
                HogsFairness,
                PingPong,
            ],
            Self::Game(game::Kind::Uncapped, ..) => &[
                Fps,
                Time(Of::Frame, P99),
                SlowestFps,
                Time(Of::Audio, P99),
                Time(Of::Input, P99),
                HogsWork,
            ],
            Self::Game(..) => &[
                Time(Of::Frame, P50),
                Time(Of::Frame, P99),
                FramesMissed,
                MissedAtFirst,
                Time(Of::Audio, P99),
                Time(Of::Input, P99),
                HogsWork,
            ],
            Self::Real(program, _) => program.shown(),
            Self::Messaging | Self::Tree => &[Seconds],
            Self::Pipe => &[Exchange],
            Self::Cyclictest(_) => &[
                Time(Of::Wakeup, P50),
                Time(Of::Wakeup, P99),
                Time(Of::Wakeup, Max),
            ],
            Self::Requests(_) => &[
                Time(Of::Wakeup, P50),
                Time(Of::Wakeup, P99),
                Time(Of::Request, P99),
                Rate,
            ],
            Self::TreeBesideFrame => &[
                Seconds,
                Time(Of::Frame, P99),
                FramesMissed,
                Time(Of::Audio, P99),
                Time(Of::Input, P99),
            ],
            Self::Weights => &[Misplaced],
            Self::Cost => &[Cpu, Bpf, Percent, Memory, Faults, Syscalls],
        }
    }
}

impl Cell {
    /// The one with this id.
    #[must_use]
    pub(crate) fn find(id: &str) -> Option<&'static Self> {
        CELLS.iter().find(|cell| cell.id == id)
    }

    fn is_game(&self) -> bool {
        matches!(self.work, Work::Game(..))
    }

    fn is_real(&self) -> bool {
        matches!(self.work, Work::Real(..))
    }

    /// Whether it says anything about `scheduler`: SCHED_FIFO differs from EEVDF only where
    /// something is put into it, and only what is attached has a process of its own.
    #[must_use]
    pub(crate) fn applies_to(&self, scheduler: &Scheduler) -> bool {
        match (scheduler.kind, self.work) {
            (
                Kind::Fifo,
                Work::Frame(_)
                | Work::Game(..)
                | Work::Real(..)
                | Work::Cyclictest(_)
                | Work::TreeBesideFrame,
            ) => true,
            (Kind::Fifo, _) => false,
            (_, Work::Cost) => scheduler.is_attached(),
            _ => true,
        }
    }
}

/// How long a run is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// In file names.
    pub(crate) name: &'static str,
    /// Samples of each cell.
    pub(crate) rounds: u32,
    /// Minutes of the host after which no more is started, if there is a limit.
    pub(crate) minutes: Option<u64>,
    /// Cells that are run.
    pub(crate) takes: fn(&Cell, &Scheduler) -> bool,
    /// Seconds of `frame`, and before that.
    pub(crate) frame: (f64, f64),
    /// Messages of each sender, and exchanges.
    pub(crate) perf: (u32, u32),
    /// Cycles of each cyclictest thread, of 1 ms.
    pub(crate) cycles: u32,
    /// Seconds of requests and of the nice levels.
    pub(crate) seconds: f64,
    /// Units of a build.
    pub(crate) units: u32,
}

const GAMES: Form = Form {
    name: "games",
    rounds: 3,
    minutes: None,
    takes: |cell, _| cell.is_game(),
    // The warm-up is ten frames of a game that has a third of its frames.
    frame: (3.0, 1.0),
    perf: (20, 2_000),
    cycles: 400,
    seconds: 0.5,
    units: 40,
};

/// The forms.
pub(crate) static FORMS: [Form; 6] = [
    Form {
        name: "long",
        rounds: 5,
        minutes: None,
        takes: |cell, _| !cell.is_game() && !cell.is_real(),
        frame: (5.0, 1.0),
        perf: (100, 10_000),
        cycles: 2_000,
        seconds: 2.0,
        units: 120,
    },
    Form {
        name: "quick",
        rounds: 3,
        minutes: Some(14),
        takes: |cell, _| !cell.is_game() && !cell.is_real(),
        frame: (2.0, 0.5),
        perf: (20, 2_000),
        cycles: 400,
        seconds: 0.5,
        units: 40,
    },
    Form {
        name: "check",
        rounds: 5,
        minutes: Some(4),
        takes: |cell, scheduler| {
            matches!(cell.id, "frame-1.5x" | "messaging")
                && matches!(scheduler.kind, Kind::Default | Kind::Metronome)
        },
        frame: (3.0, 0.5),
        perf: (40, 2_000),
        cycles: 400,
        seconds: 0.5,
        units: 40,
    },
    GAMES,
    Form {
        name: "real",
        takes: |cell, _| cell.is_real(),
        frame: (6.0, 1.0),
        ..GAMES
    },
    Form {
        name: "real-quick",
        rounds: 1,
        minutes: Some(28),
        takes: |cell, _| cell.is_real(),
        ..GAMES
    },
];

impl Form {
    /// The one of this name.
    #[must_use]
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        FORMS.iter().find(|form| form.name == name)
    }

    /// The cells of a scheduler.
    pub(crate) fn cells(&self, scheduler: &Scheduler) -> impl Iterator<Item = &'static Cell> {
        CELLS
            .iter()
            .filter(|cell| cell.applies_to(scheduler) && (self.takes)(cell, scheduler))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::SCHEDULERS;
    use std::collections::BTreeSet;

    #[test]
    fn ids_are_unique() {
        let cells: BTreeSet<_> = CELLS.iter().map(|cell| cell.id).collect();
        let schedulers: BTreeSet<_> = SCHEDULERS.iter().map(|scheduler| scheduler.id).collect();
        assert_eq!(
            (cells.len(), schedulers.len()),
            (CELLS.len(), SCHEDULERS.len())
        );
        assert!(CELLS.iter().all(|cell| Cell::find(cell.id) == Some(cell)));
    }

    #[test]
    fn figures_of_a_cell_are_unique() {
        for cell in &CELLS {
            let shown = cell.work.shown();
            let figures: BTreeSet<_> = shown.iter().collect();
            assert_eq!(figures.len(), shown.len(), "{}", cell.id);
        }
    }

    #[test]
    fn cost_is_asked_only_of_what_has_a_process() {
        let asked = |id| {
            Scheduler::find(id).is_some_and(|scheduler| {
                FORMS[0]
                    .cells(scheduler)
                    .any(|cell| cell.work == Work::Cost)
            })
        };
        assert!(asked("scx_metronome") && asked("scx_lavd") && !asked("eevdf") && !asked("fifo"));
    }

    #[test]
    fn the_gate_is_small() {
        let count: usize = SCHEDULERS
            .iter()
            .map(|scheduler| FORMS[2].cells(scheduler).count())
            .sum();
        assert_eq!(count, 4);
    }
}
