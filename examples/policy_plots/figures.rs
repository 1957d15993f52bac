//! What the plots show: measured on the simulated machine.

use std::fmt;

use scx_metronome_core::policy::Policy;
use scx_metronome_core::policy::deadline::Deadline;
use scx_metronome_core::policy::fifo::Fifo;
use scx_metronome_core::sim::TASKS;

use crate::machine::{Life, MS, Machine, SECOND};

/// How long each point is measured, ns.
pub(crate) type Measure = u64;

/// CPUs for the tasks.
const CPUS: usize = 3;

/// Of kernels with 1,000 and with 250 ticks a second, ns.
pub(crate) const TICKS: [u64; 2] = [MS, 4 * MS];

/// The slices of the profile `gaming`, ns.
const SLICES: (u64, u64) = (20 * MS, MS);

/// One line of a plot.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

impl fmt::Display for Line {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:", self.name)?;
        self.points
            .iter()
            .try_for_each(|(x, y)| write!(out, "  {x} {y:.3}"))
    }
}

fn deadline() -> Box<Deadline<TASKS>> {
    Box::new(Deadline::new(SLICES.0, SLICES.1))
}

/// A machine that has run these lives for a while, and then for as long as is measured.
fn measured<P: Policy>(
    policy: P,
    tick: u64,
    lives: &[(Life, u16)],
    measure: Measure,
) -> Machine<P> {
    let mut machine = Machine::new(CPUS, tick, policy, lives);
    machine.run(SECOND.min(measure));
    machine.begin_to_measure();
    machine.run(measure);
    machine
}

fn hogs(number: usize) -> impl Iterator<Item = (Life, u16)> {
    std::iter::repeat_n((Life::Hog, 100), number)
}

/// The 99th percentile of a game's wake-up delay, ms, over the number of hogs.
pub(crate) fn delays(measure: Measure) -> Vec<Line> {
    let hz = |tick: u64| SECOND / tick;
    let mut lines = Vec::new();
    for tick in TICKS {
        lines.push(Line {
            name: format!("deadline policy, {} Hz", hz(tick)),
            points: delays_of(deadline, tick, measure),
        });
    }
    for tick in TICKS {
        lines.push(Line {
            name: format!("first come, first served, {} Hz", hz(tick)),
            points: delays_of(|| Fifo::new(SLICES.0), tick, measure),
        });
    }
    lines
}

fn delays_of<P: Policy>(policy: fn() -> P, tick: u64, measure: Measure) -> Vec<(f64, f64)> {
    // 2 ms for each of 59.94 frames a second, which drift along the ticks.
    let game = Life::Periodic {
        period: 16_683_000,
        burst: 2 * MS,
    };
    let numbers = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 21, 24];
    let point = |number: usize| {
        let lives: Vec<_> = [(game, 100)].into_iter().chain(hogs(number)).collect();
        let machine = measured(policy(), tick, &lives, measure);
        let mut delays = machine.task(0).delays.clone();
        delays.sort_unstable();
        let p99 = delays.len().saturating_sub(1) * 99 / 100;
        let delay = delays.get(p99).copied().unwrap_or_default();
        (number as f64, delay as f64 / MS as f64)
    };
    numbers.into_iter().map(point).collect()
}

/// Nice levels, and their weights as the kernel has them for `sched_ext`.
pub(crate) const LEVELS: [(i32, u16); 4] = [(-5, 305), (0, 100), (5, 33), (10, 11)];

/// How much each level has of all CPU time, %.
#[derive(Clone, Debug)]
pub(crate) struct Shares {
    pub(crate) name: String,
    pub(crate) percent: [f64; 4],
}

impl fmt::Display for Shares {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {:.1?}", self.name, self.percent)
    }
}

/// What the weights ask for.
pub(crate) fn ideal() -> [f64; 4] {
    let sum: u16 = LEVELS.iter().map(|(_, weight)| weight).sum();
    LEVELS.map(|(_, weight)| f64::from(weight) / f64::from(sum))
}

/// What so many hogs of each level get.
pub(crate) fn shares_of(each: usize, tick: u64, measure: Measure) -> [f64; 4] {
    let lives: Vec<_> = LEVELS
        .iter()
        .cycle()
        .take(each * LEVELS.len())
        .map(|(_, weight)| (Life::Hog, *weight))
        .collect();
    let machine = measured(deadline(), tick, &lives, measure);
    let mut cpus = [0.0; 4];
    for id in 0..lives.len() {
        cpus[id % LEVELS.len()] += machine.cpus_of(id);
    }
    let all: f64 = cpus.iter().sum();
    cpus.map(|of_level| of_level / all)
}

/// The share of each nice level, beside the ideal.
pub(crate) fn shares(measure: Measure) -> Vec<Shares> {
    let row = |name: &str, shares: [f64; 4]| Shares {
        name: name.to_owned(),
        percent: shares.map(|share| 100.0 * share),
    };
    vec![
        row("by weight", ideal()),
        row("12 hogs on 3 CPUs", shares_of(3, TICKS[1], measure)),
        row("96 hogs on 3 CPUs", shares_of(24, TICKS[1], measure)),
    ]
}

/// What a sleeper beside six hogs would get of three CPUs if it did not sleep, in CPUs.
pub(crate) const FAIR: f64 = CPUS as f64 / 7.0;

/// What a task gets, % of a CPU, that sleeps after so many ms, beside six hogs.
pub(crate) fn sleepers(measure: Measure) -> Vec<Line> {
    let bursts = [
        0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 3.0, 4.0, 6.0, 10.0, 16.0,
    ];
    let line = |pause_us: u64| {
        let point = |ms: f64| {
            let sleeper = Life::Sleeper {
                burst: (ms * MS as f64) as u64,
                pause: pause_us * 1000,
            };
            let lives: Vec<_> = [(sleeper, 100)].into_iter().chain(hogs(6)).collect();
            let machine = measured(deadline(), TICKS[1], &lives, measure);
            (ms, 100.0 * machine.cpus_of(0))
        };
        Line {
            name: format!("sleeps for {} ms", pause_us as f64 / 1000.0),
            points: bursts.into_iter().map(point).collect(),
        }
    };
    [50, 1000, 5000].into_iter().map(line).collect()
}

/// The longest that three hogs and a crowd of sleepers wait, ms, over the size of the crowd.
pub(crate) fn crowds(measure: Measure) -> Vec<Line> {
    let sizes = [5, 10, 20, 30, 45, 60, 100, 150, 200, 300, 400];
    let mut lines = ["a hog", "one of the crowd"].map(|name| Line {
        name: name.to_owned(),
        points: Vec::new(),
    });
    for size in sizes {
        let sleeper = Life::Sleeper {
            burst: MS,
            pause: MS,
        };
        let crowd = std::iter::repeat_n((sleeper, 100), size);
        let lives: Vec<_> = hogs(3).chain(crowd).collect();
        let machine = measured(deadline(), TICKS[1], &lives, measure);
        let longest = |ids: std::ops::Range<usize>| {
            let waits = ids.map(|id| machine.task(id).longest_wait);
            waits.max().unwrap_or_default() as f64 / MS as f64
        };
        lines[0].points.push((size as f64, longest(0..3)));
        lines[1].points.push((size as f64, longest(3..lives.len())));
    }
    lines.into()
}

/// How long the frame of a chain takes, ms, over its links.
pub(crate) fn chains(measure: Measure) -> Vec<Line> {
    let line = |name: String, hogs: usize, tick: u64| Line {
        name,
        points: (1..=12)
            .map(|links| {
                (
                    f64::from(links),
                    frame_of(links as usize, hogs, tick, measure),
                )
            })
            .collect(),
    };
    let mut lines = vec![line("beside an idle CPU".to_owned(), CPUS - 1, TICKS[1])];
    for tick in TICKS {
        let hz = SECOND / tick;
        lines.push(line(format!("beside 12 hogs, {hz} Hz"), 12, tick));
    }
    lines
}

/// The median, from the timer that wakes the first link to the end of the last. Each runs for
/// 0.5 ms; a frame begins every 101 ms, so that none meets the one before.
fn frame_of(links: usize, number: usize, tick: u64, measure: Measure) -> f64 {
    let burst = MS / 2;
    let period = 101 * MS;
    let first = (Life::Periodic { period, burst }, 100);
    let rest = std::iter::repeat_n((Life::Link { burst }, 100), links - 1);
    let lives: Vec<_> = [first]
        .into_iter()
        .chain(rest)
        .chain(hogs(number))
        .collect();
    let machine = measured(deadline(), tick, &lives, measure);
    let ends = &machine.task(links - 1).slept_at;
    let took = |began: &u64| Some(ends.get(ends.partition_point(|end| end <= began))? - began);
    let mut frames: Vec<_> = machine.task(0).woke_at.iter().filter_map(took).collect();
    frames.sort_unstable();
    frames
        .get(frames.len() / 2)
        .map_or(0.0, |frame| *frame as f64 / MS as f64)
}
