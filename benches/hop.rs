//! How long a record is on its way from one CPU to another, beside how long a single cache line is.
//!
//! A thread on CPU 0 runs a BPF program that reads the clock, reserves a record, fills it and
//! submits it. A thread on CPU 1 spins on the [`Ring`] as the scheduler does and reads the clock
//! when it sees the record. The next record is written once that has happened, so that a moment in
//! which either thread does not run spoils one record and not all behind it.
//!
//! So each figure holds the kernel's writing of the record, two cache lines that must come over
//! (the producer position, the record with its header), and about one reading of the clock: from
//! the middle of the first to the middle of the second. What these cost is measured beside it. The
//! line of comparison is one atomic word that the same two CPUs pass to and fro.
//!
//! A new thread begins on the CPU of the thread that made it, so both wait for one another once
//! they are apart: a real-time thread that spins would not let the other leave.
//!
//! The published figure to compare it with is ghOSt's: 265 ns from the kernel to an agent that
//! spins (Humphries et al., SOSP 2021, table 3), on other hardware.
//!
//! How much noise the machine makes is told by a thread on CPU 1 that does nothing but read the
//! clock.
#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::hint::{self, black_box};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

mod support;
use support::bpf::{BpfSide, Program};

const PRODUCER_CPU: usize = 0;
const CONSUMER_CPU: usize = 1;

/// A message from the kernel to a spinning agent of ghOSt's, as published.
const GHOST_NS: u64 = 265;

fn main() {
    let Some(side) = BpfSide::load("hop") else {
        return;
    };
    if thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("hop: skipped, it needs two CPUs");
        return;
    }
    let records = if support::is_measuring() {
        300_000
    } else {
        100
    };
    support::pin(CONSUMER_CPU);
    let (latencies, writing) = ring_latency(&side, records);
    let line = Figures::of(&cache_line(records / 10));
    let clock = clock_ns(1_000_000.min(records));
    let kernel_clock = kernel_clock_ns(&side);
    let (noise, longest) = noise(Duration::from_millis(500));

    let ring = Figures::of(&latencies);
    let writing = Figures::of(&writing);
    println!("hop/ring_latency    {ring} ({records} records)");
    println!("hop/cache_line      {line} (one way)");
    println!("hop/ghost           {GHOST_NS} ns, as published, on other hardware");
    println!("hop/writing         {writing} (of hop/ring_latency, by the kernel side)");
    println!(
        "hop/clock           {clock:.0} ns here, {kernel_clock:.0} ns in BPF (one of them is in hop/ring_latency)"
    );
    println!(
        "hop/noise           {:.2} % of the time taken from a thread that spins, longest {longest:?}",
        100.0 * noise
    );
    if support::is_measuring() {
        let figures = json!({
            "ring_latency": ring.json(), "cache_line": line.json(), "writing": writing.json(), "clock_ns": clock,
            "ghost_ns": GHOST_NS,
            "kernel_clock_ns": kernel_clock, "noise": noise, "noise_longest_ns": longest.as_nanos() as u64,
        });
        support::leave("hop.json", &figures);
    }
}

/// Quantiles, in ns.
struct Figures {
    p50: u64,
    p99: u64,
    p999: u64,
}

impl Figures {
    fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
        }
    }

    fn json(&self) -> Value {
        json!({ "p50_ns": self.p50, "p99_ns": self.p99, "p999_ns": self.p999 })
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { p50, p99, p999 } = self;
        write!(out, "p50 {p50} ns, p99 {p99} ns, p99.9 {p999} ns")
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).unwrap()
}

/// From the clock read before reserve to the clock read behind the check; and the kernel side's
/// part of it, one reading of the clock included in either.
fn ring_latency(side: &BpfSide, records: u64) -> (Histogram<u64>, Histogram<u64>) {
    let stamp = Program::new(&side.skel.progs.stamp);
    let mut ring = side.ring();
    let seen = CachePadded::new(AtomicU64::new(0));
    let apart = Barrier::new(2);
    let mut latencies = histogram();
    let writing = thread::scope(|scope| {
        let producer = scope.spawn(|| {
            support::pin(PRODUCER_CPU);
            apart.wait();
            let mut writing = histogram();
            for record in 1..=records {
                writing.saturating_record(stamp.run(None::<&mut u32>) as u64);
                // Reading: relaxed, for nothing is passed on but the word itself.
                while seen.load(Ordering::Relaxed) < record {}
            }
            writing
        });
        apart.wait();
        let mut taken = 0;
        while taken < records {
            let mut written_at = None;
            ring.drain(1, |task| written_at = Some(task.enqueued_at));
            let Some(written_at) = written_at else {
                // As the scheduler does between two turns; and it leaves the line to the producer
                // for a moment.
                hint::spin_loop();
                continue;
            };
            latencies.saturating_record(monotonic_ns().saturating_sub(written_at));
            taken += 1;
            seen.store(taken, Ordering::Relaxed);
        }
        producer.join().unwrap()
    });
    (latencies, writing)
}

/// One way of a word that two CPUs pass to and fro; the mean of 100 at a time.
fn cache_line(rounds: u64) -> Histogram<u64> {
    const AT_A_TIME: u64 = 100;
    let word = CachePadded::new(AtomicU64::new(0));
    let apart = Barrier::new(2);
    let rounds = rounds.next_multiple_of(AT_A_TIME);
    let mut ways = histogram();
    thread::scope(|scope| {
        scope.spawn(|| {
            support::pin(PRODUCER_CPU);
            apart.wait();
            for round in 0..rounds {
                while word.load(Ordering::Acquire) != 2 * round + 1 {}
                word.store(2 * round + 2, Ordering::Release);
            }
        });
        apart.wait();
        let mut start = Instant::now();
        for round in 0..rounds {
            word.store(2 * round + 1, Ordering::Release);
            while word.load(Ordering::Acquire) != 2 * round + 2 {}
            if (round + 1) % AT_A_TIME == 0 {
                let elapsed = start.elapsed().as_nanos() as u64;
                ways.saturating_record(elapsed / (2 * AT_A_TIME));
                start = Instant::now();
            }
        }
    });
    ways
}

/// The clock of `bpf_ktime_get_ns()`.
fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What a reading of it costs: the median of a hundred means.
fn clock_ns(readings: u64) -> f64 {
    let mut means: Vec<f64> = (0..100)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..readings / 100 {
                black_box(monotonic_ns());
            }
            start.elapsed().as_nanos() as f64 / (readings / 100) as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    means[means.len() / 2]
}

/// The same in a BPF program.
fn kernel_clock_ns(side: &BpfSide) -> f64 {
    const READINGS: u32 = 10_000;
    let program = Program::new(&side.skel.progs.read_clock);
    let mut times: Vec<i32> = (0..100)
        .map(|_| program.run(Some(&mut READINGS.clone())))
        .collect();
    times.sort_unstable();
    f64::from(times[times.len() / 2]) / f64::from(READINGS)
}

/// The share of `window` that this thread could not use, as seen by gaps of more than a
/// microsecond; and the longest gap.
fn noise(window: Duration) -> (f64, Duration) {
    let start = Instant::now();
    let mut last = start;
    let mut taken = Duration::ZERO;
    let mut longest = Duration::ZERO;
    while last - start < window {
        let now = Instant::now();
        let gap = now - last;
        if gap > Duration::from_micros(1) {
            taken += gap;
            longest = longest.max(gap);
        }
        last = now;
    }
    (taken.as_secs_f64() / window.as_secs_f64(), longest)
}
