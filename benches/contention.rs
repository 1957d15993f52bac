//! What producers cost each other on one ring: a reason for how many rings to have.
//!
//! Threads on CPUs of their own run a BPF program that writes records as fast as it can: one
//! thread; two to the same ring; two to a ring each. No thread reads the records: each thread moves
//! the consumer position up to the producer's from time to time. A ring has one lock, and one line
//! with the producer position.
//!
//! This is the worst case. Between the wake-ups of a real CPU lie microseconds, not nanoseconds.
#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::os::fd::AsFd;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use scx_metronome_core::ring::RingMemory;
use serde_json::json;

mod support;
use support::bpf::{BpfSide, Program, ring_memory};

/// Records written in one go.
const BATCH: u32 = 1_000;

fn main() {
    let Some(side) = BpfSide::load("contention") else {
        return;
    };
    if thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("contention: skipped, it needs two CPUs");
        return;
    }
    let first = || Producer::of(&side.skel.progs.flood, side.skel.maps.queued.as_fd());
    let second = || {
        Producer::of(
            &side.skel.progs.flood_too,
            side.skel.maps.queued_too.as_fd(),
        )
    };
    let alone = ns_per_record(|| vec![first()]);
    let together = ns_per_record(|| vec![first(), first()]);
    let apart = ns_per_record(|| vec![first(), second()]);

    let line = |name: &str, producers: f64, ns: f64| {
        let rate = 1_000.0 * producers / ns;
        println!(
            "contention/producers {name}: {ns:.0} ns per record and producer, {rate:.1} M records/s in all"
        );
    };
    line("1 on 1 ring ", 1.0, alone);
    line("2 on 1 ring ", 2.0, together);
    line("2 on 2 rings", 2.0, apart);
    if support::is_measuring() {
        let figures = json!({
            "one_producer_ns": alone, "two_on_one_ring_ns": together, "two_on_two_rings_ns": apart,
        });
        support::leave("contention.json", &figures);
    }
}

/// Which threads write, and to where.
struct Producer {
    flood: Program,
    ring: RingMemory,
}

// SAFETY: the pointers are to shared memory that any thread may access, mapped until the process
// ends.
unsafe impl Send for Producer {}

impl Producer {
    fn of(flood: &impl AsFd, ring: std::os::fd::BorrowedFd<'_>) -> Self {
        Self {
            flood: Program::new(flood),
            ring: ring_memory(ring),
        }
    }

    /// Time for one batch. May stop short when the other producer has filled the ring.
    fn write_batch(&self) -> f64 {
        let mut nr = BATCH;
        let start = Instant::now();
        let written = self.flood.run(Some(&mut nr));
        let elapsed = start.elapsed().as_nanos() as f64;
        self.forget_records();
        elapsed / f64::from(written.max(1))
    }

    /// Moves the consumer position on, never back. A record that the other producer is still
    /// writing may be passed: it is written all the same, and no thread reads it.
    fn forget_records(&self) {
        // SAFETY: mapped until the process ends.
        let producer = unsafe { self.ring.producer.as_ref() };
        // SAFETY: as above.
        let consumer = unsafe { self.ring.consumer.as_ref() };
        let written = producer.load(std::sync::atomic::Ordering::Acquire);
        consumer.fetch_max(written, std::sync::atomic::Ordering::AcqRel);
    }
}

/// The median batch while all `producers` write, the mean of the producers'.
fn ns_per_record(producers: impl Fn() -> Vec<Producer>) -> f64 {
    let producers = producers();
    let nr = producers.len();
    let window = if support::is_measuring() {
        Duration::from_millis(700)
    } else {
        Duration::from_millis(1)
    };
    let barrier = Barrier::new(nr);
    let medians = thread::scope(|scope| {
        let threads: Vec<_> = producers
            .into_iter()
            .enumerate()
            .map(|(cpu, producer)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    support::pin(cpu);
                    barrier.wait();
                    let end = Instant::now() + window;
                    let mut batches = vec![producer.write_batch()];
                    while Instant::now() < end {
                        batches.push(producer.write_batch());
                    }
                    batches.sort_by(f64::total_cmp);
                    batches[batches.len() / 2]
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap());
        joined.collect::<Vec<f64>>()
    });
    medians.iter().sum::<f64>() / nr as f64
}
