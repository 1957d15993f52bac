//! What it costs to take one record from the kernel's ring: by our own mapping of it, and by
//! libbpf.
//!
//! The kernel writes as many records as a turn takes at most, and then they are taken, which alone
//! is timed. Both sides run on one CPU, so the records are in its cache: the price of fetching them
//! from another CPU's is in `hop`. `drain` and `dequeue` check each record and libbpf's callbacks
//! do not. All look at the same two fields, but one: `libbpf_consume_raw_n_1` is `consume_raw_n(1)`
//! with a callback that does nothing, the least that a record costs if libbpf takes them one by
//! one. `libbpf_consume_one` is the same call with the copies that the incumbent makes.
//! Neither side may allocate.
#![expect(clippy::unwrap_used, reason = "a benchmark")]

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

    let one = consumer(&side, |_| 0);
    group.bench_function("libbpf_consume_raw_n_1", |bencher| {
        bencher.iter_custom(|records| {
            by_batches(&side, records, || while one.consume_raw_n(1) == 1 {})
        })
    });

    let all = consumer(&side, look_at_bytes);
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
        timed += support::without_allocation(|| {
            let start = Instant::now();
            take();
            start.elapsed()
        });
        left -= batch;
    }
    timed
}

fn look_at(pid: i32, exec_runtime: u64) {
    black_box(pid);
    black_box(exec_runtime);
}

fn look_at_bytes(record: &[u8]) -> i32 {
    let read = |at: usize| {
        let word = record.get(at..at + 8).and_then(|word| word.try_into().ok());
        u64::from_ne_bytes(word.unwrap_or_default())
    };
    // Where `pid` and `exec_runtime` are in `struct queued_task`.
    look_at(read(8) as i32, read(64));
    0
}

fn consumer(side: &BpfSide, callback: fn(&[u8]) -> i32) -> RingBuffer<'_> {
    let mut builder = RingBufferBuilder::new();
    builder.add(&side.skel.maps.queued, callback).unwrap();
    builder.build().unwrap()
}

criterion_group!(benches, ring);
criterion_main!(benches);
