//! The clock by which guest time is told. All virtual CPUs share one instruction a nanosecond
//! (`vm/run --time icount`), so a CPU's speed depends on what the others do. No scheduler of ours
//! runs here.

use std::hint::{black_box, spin_loop};

use super::inject::allow;
use super::*;

/// Iterations of the counted loop: some 40 ms of a CPU that has the machine for itself.
const COUNTED: u64 = 10_000_000;

fn count(iterations: u64) {
    (0..iterations).for_each(|nr| {
        black_box(nr);
    });
}

/// What the last CPU does meanwhile.
#[derive(Clone, Copy)]
enum Last {
    Counts,
    /// Reads a word until it changes, as a thread that waits does under a hypervisor.
    Polls,
    /// The same with the processor's hint, which the emulator takes for "let others run".
    Pauses,
    Idles,
}

fn work(cpu: usize, does: Last, over: &AtomicBool) {
    allow(0, [cpu]);
    while !over.load(Ordering::Relaxed) {
        match does {
            Last::Counts => count(1_000),
            Last::Polls => {}
            Last::Pauses => spin_loop(),
            Last::Idles => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// How long the counted loop takes on CPU 0 while the last of `cpus` does this and those between
/// count, in seconds: the least of five.
fn time_beside(last: Last, cpus: usize) -> f64 {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Stop(&over);
        for cpu in 1..cpus {
            let does = if cpu == cpus - 1 { last } else { Last::Counts };
            let over = &over;
            scope.spawn(move || work(cpu, does, over));
        }
        allow(0, [0]);
        thread::sleep(Duration::from_millis(20));
        let times = (0..5).map(|_| {
            let start = Instant::now();
            count(COUNTED);
            start.elapsed().as_secs_f64()
        });
        times.fold(f64::MAX, f64::min)
    })
}

/// A thread that polls without the hint slows the others down no more and no less than one that
/// works, so what is measured on a full machine holds. What a CPU leaves that idles or pauses, the
/// others have: below saturation, work ends a quarter sooner than on real CPUs.
#[test]
fn a_cpu_is_as_fast_beside_one_that_polls_as_beside_one_that_works() {
    let cpus = cpus();
    // What the boot has left to do.
    thread::sleep(Duration::from_secs(3));
    let [full, polled, paused, idle] =
        [Last::Counts, Last::Polls, Last::Pauses, Last::Idles].map(|last| time_beside(last, cpus));
    allow(0, 0..cpus);
    println!("polled {polled:.3}, paused {paused:.3}, idle {idle:.3} of {full:.3} s");
    // Twice what ten runs differ by.
    figure(
        "by how much it differs beside one that polls",
        100.0 * (polled / full - 1.0).abs(),
        "%",
        Bound::AtMost(20.0),
    );
}

/// A millisecond is as much work on one CPU as on another. In turns that last until the next timer
/// is due, the first CPU after an interrupt had several times as much of it as the last.
#[test]
fn cpus_that_work_are_equally_fast() {
    let (cpus, over) = (cpus(), AtomicBool::new(false));
    let counts: Vec<AtomicU64> = (0..cpus).map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        let _stop = Stop(&over);
        for (cpu, counted) in counts.iter().enumerate() {
            let over = &over;
            scope.spawn(move || {
                allow(0, [cpu]);
                while !over.load(Ordering::Relaxed) {
                    count(1_000);
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(Duration::from_millis(500));
    });
    let mut counts: Vec<u64> = counts
        .iter()
        .map(|counted| counted.load(Ordering::Relaxed))
        .collect();
    counts.sort_unstable();
    println!("{counts:?}");
    figure(
        "work of the slowest CPU",
        counts[0] as f64 / counts[cpus - 1] as f64,
        "of the fastest's",
        Bound::AtLeast(0.75),
    );
}
