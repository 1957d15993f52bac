//! How long each stage of a task's way takes.
//!
//! # Problem
//! Five parties handle a task between its enqueue and its run, on up to three CPUs. An engineer who
//! looks for a delay must know at which stage it arises, while the scheduler runs, at full load,
//! and without changing what is measured. A record for each task would be a second ring as busy as
//! the first; a lock around a histogram would let a reader stop the loop.
//!
//! # Mechanism
//! One wake-up in 256 is measured ([`is_sampled`]), by both sides the same. The kernel side notes
//! when the task was enqueued. We note when we took its record and when we put the decision into a
//! mailbox, and the decision carries both back. The CPU that takes it out notes that, and the one
//! that runs the task, when it does, adds all stages to histograms of its own (`bpf/latency.h`). So
//! all stages are of the same tasks, each histogram has one writer, and a reader needs no writer's
//! leave.
//!
//! | [`Stage`] | from                                          | to                                         |
//! |-----------|-----------------------------------------------|--------------------------------------------|
//! | `Seen`    | `enqueue()` writes the record                 | the scheduler thread takes it              |
//! | `Decided` | there                                         | the decision is in a mailbox               |
//! | `Drained` | there                                         | a CPU takes it out, in `dispatch()`        |
//! | `Running` | there                                         | the task runs                              |
//! | `Whole`   | `enqueue()` writes the record                 | the task runs                              |
//! | `Ordered` | a task with a standing order wakes            | it runs: no stage in user space              |
//!
//! A histogram is log-linear: eight buckets for each power of two of ns, up to 17 s, in 2 KiB. A
//! quantile is at most 12.5 % too large.
//!
//! # What it shows
//! A real kernel (7.3) with 4 CPUs, all busy, in guest time, µs, where only urgent tasks have
//! orders: six hogs, two tasks that give their CPU away all the time, and a pair that passes
//! messages. At p99 a task with an order runs in a tenth of the time that a decision takes:
//!
//! | stage                 | measured | p50 | p99   | p99.9  | max    |
//! |-----------------------|----------|-----|-------|--------|--------|
//! | `enqueued -> seen`    | 293      | 21  | 213   | 328    | 328    |
//! | `seen -> decided`     | 293      | 1   | 4,194 | 7,864  | 7,864  |
//! | `decided -> drained`  | 293      | 29  | 3,932 | 3,932  | 3,932  |
//! | `drained -> running`  | 293      | 115 | 9,437 | 13,632 | 13,632 |
//! | `enqueued -> running` | 293      | 213 | 9,437 | 13,632 | 13,632 |
//! | `ordered -> running`  | 32       | 197 | 918   | 918    | 918    |
//!
//! One run; of so few the longest stands for the last columns. What a task waits for its turn is in
//! "seen -> decided", while it is in our queue, and in "drained -> running". The command is
//!
//! ```text
//! vm/run --time icount --timeout 900 -- sh -c 'scx_metronome --orders urgent --stats 60 & sleep 1; stress-ng -q --cpu 6 --pipe 1 --yield 2 -t 6s; kill -INT $!; wait $!'
//! ```
//!
//! # Clock
//! All stamps are `CLOCK_MONOTONIC`: `bpf_ktime_get_ns()` there, `clock_gettime()` here. It is the
//! one clock that both sides can read without a system call, and records have their times on it, too.
//! What the kernel keeps it by is its resolution: with a TSC about a ns, and CPUs agree to some ten
//! ns.
//! Where the clock source is not in the vDSO (`hpet`, `acpi_pm`), a reading is a system call and
//! takes a µs.
//!
//! # Cost
//! For each record and each decision a multiplication and a comparison; for one in 256 of them a
//! reading of the clock and two cache lines. `benches/decision.rs` measures it along.
//!
//! # Limits
//! The largest of a sample is not the largest of all. A task that ran without its decision, because
//! user space was late or it changed its class, is in no histogram. While more than 1,024 tasks
//! wait at once, a measured one may displace another.
#![deny(clippy::indexing_slicing)]

use core::fmt;

use crate::abi::{CpuLatency, LATENCY_BUCKETS, NR_STAGES, SAMPLE_FACTOR, SAMPLE_SHIFT};
use crate::mailbox::{Decision, Mailbox, Stamps};
use crate::sync::Ordering;
use crate::task::{Kind, QueuedTask};

/// Reads `CLOCK_MONOTONIC`, in ns.
pub type Clock = fn() -> u64;

/// Whether the stages of this enqueue are measured. Multiples of the golden ratio are spread
/// evenly, so each task has its share, and not periodically, so enqueues that alternate between two
/// kinds have theirs (Knuth, TAOCP 3, 6.4).
#[inline(always)]
pub const fn is_sampled(id: u32, generation: u32) -> bool {
    id.wrapping_add(generation).wrapping_mul(SAMPLE_FACTOR) >> SAMPLE_SHIFT == 0
}

/// What is measured; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the enqueue until user space took the record.
    Seen,
    /// From there until the decision was in a mailbox.
    Decided,
    /// From there until a CPU took it out.
    Drained,
    /// From there until the task ran.
    Running,
    /// All four together.
    Whole,
    /// From the wake-up of a task with a standing order until it ran.
    Ordered,
}

impl Stage {
    /// All, in order.
    pub const ALL: [Self; NR_STAGES] = [
        Self::Seen,
        Self::Decided,
        Self::Drained,
        Self::Running,
        Self::Whole,
        Self::Ordered,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Seen => "enqueued -> seen",
            Self::Decided => "seen -> decided",
            Self::Drained => "decided -> drained",
            Self::Running => "drained -> running",
            Self::Whole => "enqueued -> running",
            Self::Ordered => "ordered -> running",
        }
    }
}

/// Buckets for each power of two.
const PARTS_LOG: u32 = 3;
/// From here on, ns, all is in the last bucket.
const END: u64 = 1 << 34;

/// How many of what took how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; LATENCY_BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            counts: [0; LATENCY_BUCKETS],
        }
    }

    /// Something took so many ns.
    pub fn record(&mut self, ns: u64) {
        if let Some(count) = self.counts.get_mut(bucket_of(ns)) {
            *count += 1;
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// So many of ten thousand took no longer than this, ns: 5,000 is the median. At most 12.5 %
    /// too large; 0 if there are none.
    pub fn quantile(&self, of_ten_thousand: u64) -> u64 {
        let all = u128::from(self.count());
        let rank = (all * u128::from(of_ten_thousand.min(10_000))).div_ceil(10_000);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= rank.max(1) {
                return longest_in(bucket);
            }
        }
        0
    }

    /// Their mean, ns, at most 12.5 % too large; 0 if there are none. Means of stages add up to
    /// that of the whole.
    pub fn mean(&self) -> u64 {
        let sum = |sum: u128, (bucket, count): (usize, &u64)| {
            sum + u128::from(longest_in(bucket)) * u128::from(*count)
        };
        let all = self.counts.iter().enumerate().fold(0, sum);
        (all / u128::from(self.count().max(1))) as u64
    }

    /// The figures that are told of it.
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.count(),
            mean: self.mean(),
            p50: self.quantile(5_000),
            p99: self.quantile(9_900),
            p999: self.quantile(9_990),
            max: self.quantile(10_000),
        }
    }

    fn each(&mut self, other: impl Iterator<Item = u64>, combine: impl Fn(u64, u64) -> u64) {
        for (count, other) in self.counts.iter_mut().zip(other) {
            *count = combine(*count, other);
        }
    }
}

/// The kernel side's bucket_of() is the same.
const fn bucket_of(ns: u64) -> usize {
    if ns < 1 << PARTS_LOG {
        return ns as usize;
    }
    if ns >= END {
        return LATENCY_BUCKETS - 1;
    }
    let log = ns.ilog2();
    let part = (ns >> (log - PARTS_LOG)) as usize & ((1 << PARTS_LOG) - 1);
    (((log - PARTS_LOG + 1) as usize) << PARTS_LOG) + part
}

/// The longest time of a bucket, ns.
const fn longest_in(bucket: usize) -> u64 {
    let (power, part) = (bucket >> PARTS_LOG, bucket & ((1 << PARTS_LOG) - 1));
    if power == 0 {
        return bucket as u64;
    }
    let parts = (1 << PARTS_LOG) + part as u64 + 1;
    (parts << (power - 1)) - 1
}

/// Figures of a histogram, ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many were measured.
    pub count: u64,
    /// The mean.
    pub mean: u64,
    /// The median.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The 99.9th percentile.
    pub p999: u64,
    /// The largest that was measured.
    pub max: u64,
}

/// How long the stages took, on all CPUs together. Displayed, it is a table in µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    stages: [Histogram; NR_STAGES],
}

impl Latency {
    /// Of one stage.
    pub fn of(&self, stage: Stage) -> &Histogram {
        // As many as there are stages.
        const NONE: &Histogram = &Histogram::new();
        self.stages.get(stage as usize).unwrap_or(NONE)
    }

    /// What has been measured since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = *self;
        for (stage, earlier) in since.stages.iter_mut().zip(&earlier.stages) {
            stage.each(earlier.counts.into_iter(), u64::saturating_sub);
        }
        since
    }

    /// Adds what a CPU has measured. It may go on meanwhile.
    pub fn add(&mut self, cpu: &CpuLatency) {
        for (stage, shared) in self.stages.iter_mut().zip(&cpu.stages) {
            // ORDERING: relaxed: each count stands for itself. The partner is add_latency() in
            // bpf/latency.h.
            let counts = shared
                .buckets
                .iter()
                .map(|count| count.load(Ordering::Relaxed));
            stage.each(counts, u64::wrapping_add);
        }
    }

    /// Median and 99th percentile of each stage that has any, for a line of statistics: "seen
    /// 1.2/3.4 us decided ...".
    pub fn line(&self) -> impl fmt::Display {
        Line(*self)
    }
}

struct Line(Latency);

impl fmt::Display for Line {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("p50/p99 us:")?;
        for stage in Stage::ALL {
            let Summary { p50, p99, .. } = self.0.of(stage).summary();
            write!(out, " {stage:?} {}/{}", Micros(p50), Micros(p99))?;
        }
        Ok(())
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{:<20} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "us", "measured", "mean", "p50", "p99", "p99.9", "max"
        )?;
        for stage in Stage::ALL {
            let figures = self.of(stage).summary();
            write!(
                out,
                "\n{:<20} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9}",
                stage.name(),
                figures.count,
                Micros(figures.mean),
                Micros(figures.p50),
                Micros(figures.p99),
                Micros(figures.p999),
                Micros(figures.max)
            )?;
        }
        Ok(())
    }
}

/// ns, shown as µs with one decimal.
struct Micros(u64);

impl fmt::Display for Micros {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = self.0.div_ceil(100);
        let digits = tenths.max(1).ilog10().max(1) as usize + 2;
        let width = out.width().unwrap_or_default().saturating_sub(digits);
        for _ in 0..width {
            out.write_str(" ")?;
        }
        write!(out, "{}.{}", tenths / 10, tenths % 10)
    }
}

/// Tasks that are being measured. A power of two.
const SEEN: usize = if cfg!(loom) { 1 } else { 1024 };

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    id: u32,
    generation: u32,
    at: u64,
}

/// Our part of the measurement.
#[derive(Debug)]
pub(crate) struct Sampler {
    clock: Option<Clock>,
    /// By the lower bits of the id.
    seen: [Seen; SEEN],
}

impl Default for Sampler {
    fn default() -> Self {
        let none = Seen::default();
        Self {
            clock: None,
            seen: [none; SEEN],
        }
    }
}

impl Sampler {
    pub(crate) fn set_clock(&mut self, clock: Clock) {
        self.clock = Some(clock);
    }

    pub(crate) fn now(&self) -> Option<u64> {
        self.clock.map(|clock| clock())
    }

    /// A record has been taken.
    ///
    /// # Cost
    /// A multiplication and a comparison; for one in 256 a reading of the clock and three stores.
    #[inline(always)]
    pub(crate) fn see(&mut self, task: &QueuedTask) {
        if is_sampled(task.id, task.generation) {
            self.note(task);
        }
    }

    #[cold]
    fn note(&mut self, task: &QueuedTask) {
        if let Some(clock) = self.clock
            && task.kind() == Kind::Queued
            && let Some(seen) = self.seen.get_mut(task.id as usize % SEEN)
        {
            *seen = Seen {
                id: task.id,
                generation: task.generation,
                at: clock(),
            };
        }
    }

    /// A decision that is measured is about to be put into a mailbox.
    ///
    /// # Cost
    /// A reading of the clock, a line of our own, and [`Mailbox::stamp`].
    #[cold]
    pub(crate) fn stamp(&self, mailbox: &mut Mailbox, decision: &Decision) {
        if let Some(stamps) = self.stamps(decision.id, decision.generation) {
            mailbox.stamp(stamps);
        }
    }

    fn stamps(&self, id: u32, generation: u32) -> Option<Stamps> {
        let decided_at = self.clock?();
        let seen = self.seen.get(id as usize % SEEN)?;
        let is_it = seen.id == id && seen.generation == generation;
        Some(Stamps {
            seen_at: if is_it { seen.at } else { 0 },
            decided_at,
        })
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::format;
    use std::vec::Vec;

    #[test]
    fn buckets_follow_each_other_without_gap_or_overlap_to_the_end() {
        for bucket in 0..LATENCY_BUCKETS {
            let longest = longest_in(bucket);
            assert_eq!(bucket_of(longest), bucket);
            assert_eq!(
                bucket_of(longest + 1),
                (bucket + 1).min(LATENCY_BUCKETS - 1)
            );
        }
        assert_eq!(longest_in(LATENCY_BUCKETS - 1), END - 1);
        assert_eq!(bucket_of(u64::MAX), LATENCY_BUCKETS - 1);
    }

    #[test]
    fn of_nothing_all_figures_are_zero() {
        assert_eq!(Histogram::new().summary(), Summary::default());
    }

    #[test]
    fn one_enqueue_in_256_is_measured_of_each_task_and_of_each_of_two_kinds_in_turn() {
        for id in [0, 1, 77, 65_535] {
            for first in [0, 1] {
                let generations = (0..400_000).map(|n| (5 << 20) + 2 * n + first);
                let hits = generations.filter(|generation| is_sampled(id, *generation));
                let share = hits.count() as f64 / 400_000.0;
                assert!((share * 256.0 - 1.0).abs() < 0.05, "{share}");
            }
        }
    }

    fn sampled(id: u32) -> QueuedTask {
        let generation = (1 << 20..).find(|generation| is_sampled(id, *generation));
        QueuedTask::example(id, generation.unwrap_or_default(), 0, 4)
    }

    #[test]
    fn a_measured_enqueue_gets_its_own_stamps_and_others_none() {
        let task = sampled(3);
        let mut sampler = Sampler::default();
        sampler.see(&task);
        assert_eq!(sampler.stamps(3, task.generation), None, "no clock");
        sampler.set_clock(|| 42);
        sampler.see(&task);
        let stamps = |seen_at| {
            Some(Stamps {
                seen_at,
                decided_at: 42,
            })
        };
        assert_eq!(sampler.stamps(3, task.generation), stamps(42));
        // Of an enqueue that was not seen only the decision is known, and the kernel side drops it.
        assert_eq!(sampler.stamps(3, task.generation + 1), stamps(0));
        // Another task of the same place, whose record was never seen.
        let other = sampled(3 + SEEN as u32);
        assert_eq!(sampler.stamps(other.id, other.generation), stamps(0));
    }

    #[test]
    fn the_table_has_a_line_for_each_stage() {
        let mut latency = Latency::default();
        latency.stages[Stage::Drained as usize].record(1_234);
        let table = format!("{latency}");
        assert_eq!(table.lines().count(), 1 + NR_STAGES);
        let line = table.lines().find(|line| line.starts_with("decided ->"));
        let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
        assert_eq!(
            words,
            [
                "decided", "->", "drained", "1", "1.3", "1.3", "1.3", "1.3", "1.3"
            ]
        );
        let widths = table.lines().map(|line| line.chars().count());
        assert_eq!(
            widths.collect::<std::collections::BTreeSet<_>>().len(),
            1,
            "{table}"
        );
    }

    /// The value of which so many of ten thousand are no larger.
    fn exact(sorted: &[u64], of_ten_thousand: usize) -> u64 {
        let rank = (sorted.len() * of_ten_thousand).div_ceil(10_000);
        sorted[rank.max(1) - 1]
    }

    proptest! {
        #[test]
        fn quantiles_are_the_exact_ones_or_up_to_an_eighth_larger(
            // Of all magnitudes alike.
            samples in prop::collection::vec((0u32..34, any::<u64>()), 1..2000),
        ) {
            let mut sorted: Vec<u64> = samples.iter().map(|(log, any)| any % (1 << log)).collect();
            let mut histogram = Histogram::new();
            sorted.iter().for_each(|ns| histogram.record(*ns));
            sorted.sort_unstable();
            prop_assert_eq!(histogram.count(), sorted.len() as u64);
            let mean = sorted.iter().sum::<u64>() / sorted.len() as u64;
            prop_assert!(mean <= histogram.mean() && histogram.mean() - mean <= mean / 8 + 1);
            for part in [1, 5_000, 9_900, 9_990, 10_000] {
                let (exact, found) = (exact(&sorted, part as usize), histogram.quantile(part));
                prop_assert!(exact <= found && found - exact <= exact / 8, "{part}: {exact} {found}");
            }
        }

        #[test]
        fn what_came_since_is_what_was_recorded_since(
            before in prop::collection::vec(any::<u64>(), 0..100),
            after in prop::collection::vec(any::<u64>(), 0..100),
        ) {
            let (mut latency, mut expected) = (Latency::default(), Latency::default());
            before.iter().for_each(|ns| latency.stages[0].record(*ns));
            let earlier = latency;
            after.iter().for_each(|ns| latency.stages[0].record(*ns));
            after.iter().for_each(|ns| expected.stages[0].record(*ns));
            prop_assert_eq!(latency.since(&earlier), expected);
        }
    }
}
