//! What a deadline queue costs: one pop and one push, at a constant number of entries, beside the standard library's.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use scx_metronome::queue::DeadlineQueue;

const SIZES: [usize; 3] = [64, 4_096, 65_536];

/// Deadlines as they come in: close behind the present, in no order.
struct Deadlines(u64);

impl Deadlines {
    /// One behind `now`.
    fn after(&mut self, now: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        now + self.0 % 10_000_000
    }
}

fn push_pop(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue");
    for size in SIZES {
        let mut deadlines = Deadlines(0x9e37_79b9_7f4a_7c15);
        let ids = 0..size as u32;

        let mut ours = Box::<DeadlineQueue<65_536>>::default();
        for id in ids.clone() {
            ours.push(id, deadlines.after(0)).unwrap();
        }
        group.bench_function(BenchmarkId::new("metronome", size), |bencher| {
            bencher.iter(|| {
                let first = ours.pop().unwrap();
                ours.push(first.id, deadlines.after(first.deadline))
                    .unwrap();
            });
        });

        let mut heap: BinaryHeap<_> = ids
            .clone()
            .map(|id| Reverse((deadlines.after(0), id)))
            .collect();
        group.bench_function(BenchmarkId::new("binary_heap", size), |bencher| {
            bencher.iter(|| {
                let Reverse((deadline, id)) = black_box(heap.pop().unwrap());
                heap.push(Reverse((deadlines.after(deadline), id)));
            });
        });

        let mut set: BTreeSet<_> = ids.map(|id| (deadlines.after(0), id)).collect();
        group.bench_function(BenchmarkId::new("btree_set", size), |bencher| {
            bencher.iter(|| {
                let (deadline, id) = black_box(set.pop_first().unwrap());
                set.insert((deadlines.after(deadline), id));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, push_pop);
criterion_main!(benches);
