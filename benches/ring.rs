//! What it costs to take one record from the kernel's ring: by our own mapping of it, and by libbpf.
//!
//! The kernel writes as many records as a turn takes at most, and then they are taken, which alone is timed. Both sides run on
//! one CPU, so the records are in its cache: the price of fetching them from another CPU's is in `hop`. `drain` and
//! `dequeue` check each record and libbpf's callbacks do not. All look at the same two fields.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use libbpf_rs::{RingBuffer, RingBufferBuilder};

mod support;
use support::bpf::BpfSide;
use support::incumbent;

/// Records written before each timed part.
const BATCH: u64 = 256;

fn ring(criterion: &mut Criterion) {
    let Some(side) = BpfSide::load("ring") else {
        return;
    };
    support::pin(1);
    side.reset(1024);
    let mut group = criterion.benchmark_group("ring");
    group.measurement_time(Duration::from_secs(2));
    group.warm_up_time(Duration::from_millis(500));

    let mut ours = side.ring();
    group.bench_function("metronome_drain", |bencher| {
        bencher.iter_custom(|records| {
            by_batches(&side, records, || {
                ours.drain(usize::MAX, |task| look_at(task.pid, task.exec_runtime));
            })
        });
    });
    group.bench_function("metronome_dequeue", |bencher| {
        bencher.iter_custom(|records| {
            by_batches(&side, records, || {
                while let Some(task) = ours.dequeue() {
                    look_at(task.pid, task.exec_runtime);
                }
            })
        });
    });

    let mut theirs = incumbent::Queued::new(&side);
    group.bench_function("libbpf_consume_one", |bencher| {
        bencher.iter_custom(|records| {
            by_batches(&side, records, || {
                while let Some(task) = theirs.dequeue_task() {
                    look_at(task.pid, task.exec_runtime);
                }
            })
        });
    });

    let all = consumer_of_all(&side);
    group.bench_function("libbpf_consume_all", |bencher| {
        bencher.iter_custom(|records| {
            by_batches(&side, records, || {
                all.consume_raw();
            })
        });
    });
    group.finish();
}

/// Time that `take` needs for so many records, which are written in batches before it is called.
fn by_batches(side: &BpfSide, records: u64, mut take: impl FnMut()) -> Duration {
    let mut timed = Duration::ZERO;
    let mut left = records;
    while left > 0 {
        let batch = left.min(BATCH);
        side.fill(batch as usize);
        let start = Instant::now();
        take();
        timed += start.elapsed();
        left -= batch;
    }
    timed
}

fn look_at(pid: i32, exec_runtime: u64) {
    black_box(pid);
    black_box(exec_runtime);
}

fn consumer_of_all(side: &BpfSide) -> RingBuffer<'_> {
    let mut builder = RingBufferBuilder::new();
    let read = |record: &[u8], at: usize| {
        let word = record.get(at..at + 8).and_then(|word| word.try_into().ok());
        u64::from_ne_bytes(word.unwrap_or_default())
    };
    // Where `pid` and `exec_runtime` are in `struct queued_task`.
    let callback = move |record: &[u8]| {
        look_at(read(record, 8) as i32, read(record, 64));
        0
    };
    builder.add(&side.skel.maps.queued, callback).unwrap();
    builder.build().unwrap()
}

criterion_group!(benches, ring);
criterion_main!(benches);
