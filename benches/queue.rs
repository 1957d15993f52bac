//! What a deadline queue costs: push, pop, remove, update, and push with pop, at 16 to 65,536
//! entries, beside the standard library's structures as far as they can do it. `BinaryHeap` finds
//! no entry, so it can neither remove nor update one. `BTreeSet` finds it if told its deadline, so
//! it comes with a table of them.
//!
//! `push` begins with a quarter of the entries (at least 16) missing and ends at the number told,
//! `pop` the other way round; what leaves first comes back later by a random time. A batch of 16
//! has a sixteenth of reading the clock twice in it.
#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use scx_metronome_core::queue::DeadlineQueue;

mod support;

const SIZES: [usize; 5] = [16, 64, 1_024, 4_096, 65_536];

/// Deadlines as they come in: close behind the present, in no order.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A deadline behind `now`.
    fn after(&mut self, now: u64) -> u64 {
        now + self.next() % 10_000_000
    }
}

/// What each structure can do.
trait Queue {
    const NAME: &str;
    /// Whether it allocates while in use.
    const ALLOCATES: bool;
    fn empty() -> Self;
    fn push(&mut self, id: u32, deadline: u64);
    fn pop(&mut self) -> (u32, u64);
}

/// What some can do besides.
trait Indexed: Queue {
    fn remove(&mut self, id: u32) -> u64;
    fn update(&mut self, id: u32, deadline: u64);
}

impl Queue for Box<DeadlineQueue<65_536>> {
    const NAME: &str = "metronome";
    const ALLOCATES: bool = false;

    fn empty() -> Self {
        Self::default()
    }

    fn push(&mut self, id: u32, deadline: u64) {
        DeadlineQueue::push(self, id, deadline).unwrap();
    }

    fn pop(&mut self) -> (u32, u64) {
        let first = DeadlineQueue::pop(self).unwrap();
        (first.id, first.deadline)
    }
}

impl Indexed for Box<DeadlineQueue<65_536>> {
    fn remove(&mut self, id: u32) -> u64 {
        DeadlineQueue::remove(self, id).unwrap().deadline
    }

    fn update(&mut self, id: u32, deadline: u64) {
        assert!(DeadlineQueue::update(self, id, deadline));
    }
}

impl Queue for BinaryHeap<Reverse<(u64, u32)>> {
    const NAME: &str = "binary_heap";
    const ALLOCATES: bool = false;

    fn empty() -> Self {
        Self::with_capacity(65_536)
    }

    fn push(&mut self, id: u32, deadline: u64) {
        BinaryHeap::push(self, Reverse((deadline, id)));
    }

    fn pop(&mut self) -> (u32, u64) {
        let Reverse((deadline, id)) = BinaryHeap::pop(self).unwrap();
        (id, deadline)
    }
}

/// With the deadlines by id.
struct Set(BTreeSet<(u64, u32)>, Vec<u64>);

impl Queue for Set {
    const NAME: &str = "btree_set";
    const ALLOCATES: bool = true;

    fn empty() -> Self {
        Self(BTreeSet::new(), vec![0; 65_536])
    }

    fn push(&mut self, id: u32, deadline: u64) {
        self.1[id as usize] = deadline;
        self.0.insert((deadline, id));
    }

    fn pop(&mut self) -> (u32, u64) {
        let (deadline, id) = self.0.pop_first().unwrap();
        (id, deadline)
    }
}

impl Indexed for Set {
    fn remove(&mut self, id: u32) -> u64 {
        let deadline = self.1[id as usize];
        assert!(self.0.remove(&(deadline, id)));
        deadline
    }

    fn update(&mut self, id: u32, deadline: u64) {
        self.remove(id);
        self.push(id, deadline);
    }
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// A queue of a size, with what is needed to keep it busy.
struct Load<Q> {
    queue: Q,
    size: usize,
    random: Random,
    /// Deadlines are later than this.
    now: u64,
    /// Taken out, and to be put back.
    out: Vec<u32>,
}

impl<Q: Queue> Load<Q> {
    fn of(size: usize) -> Self {
        let mut load = Self {
            queue: Q::empty(),
            size,
            random: Random(0x9e37_79b9_7f4a_7c15),
            now: 0,
            out: (0..size as u32).collect(),
        };
        load.put_back();
        // As it is after having been in use.
        for _ in 0..4 * size {
            load.push_pop();
        }
        load
    }

    fn put_back(&mut self) {
        for id in self.out.drain(..) {
            self.queue.push(id, self.random.after(self.now));
        }
    }

    fn take_out(&mut self, nr: u64) {
        for _ in 0..nr {
            let (id, deadline) = self.queue.pop();
            self.now = deadline;
            self.out.push(id);
        }
    }

    fn push_pop(&mut self) {
        let (id, deadline) = self.queue.pop();
        self.now = deadline;
        self.queue.push(id, self.random.after(deadline));
    }

    /// An entry that is in the queue.
    fn any(&mut self) -> u32 {
        (self.random.next() % self.size as u64) as u32
    }

    /// Runs `step` for so many operations in batches, and adds up what it says they took.
    fn by_batches(
        &mut self,
        operations: u64,
        mut step: impl FnMut(&mut Self, u64) -> Duration,
    ) -> Duration {
        let batch = (self.size as u64 / 4).max(16);
        let mut timed = Duration::ZERO;
        let mut left = operations;
        while left > 0 {
            let nr = left.min(batch);
            timed += self.watched(|load| step(load, nr));
            left -= nr;
        }
        timed
    }

    /// Time of so many operations in a row.
    fn in_a_row(&mut self, operations: u64, mut operation: impl FnMut(&mut Self)) -> Duration {
        self.watched(|load| {
            let start = Instant::now();
            (0..operations).for_each(|_| operation(load));
            start.elapsed()
        })
    }

    fn watched(&mut self, run: impl FnOnce(&mut Self) -> Duration) -> Duration {
        if Q::ALLOCATES {
            return run(self);
        }
        support::without_allocation(|| run(self))
    }

    fn bench_ends(&mut self, group: &mut Group<'_>) {
        let id = |operation: &str, size| BenchmarkId::new(format!("{}_{operation}", Q::NAME), size);
        group.bench_function(id("push", self.size), |bencher| {
            bencher.iter_custom(|operations| {
                self.by_batches(operations, |load, nr| {
                    load.take_out(nr);
                    let start = Instant::now();
                    load.put_back();
                    start.elapsed()
                })
            });
        });
        group.bench_function(id("pop", self.size), |bencher| {
            bencher.iter_custom(|operations| {
                self.by_batches(operations, |load, nr| {
                    let start = Instant::now();
                    load.take_out(nr);
                    let elapsed = start.elapsed();
                    load.put_back();
                    elapsed
                })
            });
        });
        group.bench_function(id("push_pop", self.size), |bencher| {
            bencher.iter_custom(|operations| self.in_a_row(operations, Self::push_pop));
        });
    }

    fn bench_middle(&mut self, group: &mut Group<'_>)
    where
        Q: Indexed,
    {
        let id = |operation: &str, size| BenchmarkId::new(format!("{}_{operation}", Q::NAME), size);
        group.bench_function(id("remove", self.size), |bencher| {
            bencher.iter_custom(|operations| {
                self.by_batches(operations, |load, nr| {
                    // Every third or so, so that none comes twice.
                    let step = load.size as u32 / nr as u32;
                    let first = load.any();
                    let ids = (0..nr as u32).map(|i| (first + i * step) % load.size as u32);
                    load.out.extend(ids);
                    let start = Instant::now();
                    for &id in &load.out {
                        black_box(load.queue.remove(id));
                    }
                    let elapsed = start.elapsed();
                    load.put_back();
                    elapsed
                })
            });
        });
        group.bench_function(id("update", self.size), |bencher| {
            bencher.iter_custom(|operations| {
                self.in_a_row(operations, |load| {
                    let id = load.any();
                    load.queue.update(id, load.random.after(load.now));
                })
            });
        });
    }
}

fn queue(criterion: &mut Criterion) {
    support::pin(1);
    let mut group = criterion.benchmark_group("queue");
    group.warm_up_time(Duration::from_millis(100));
    group.measurement_time(Duration::from_millis(400));
    group.sample_size(50);
    group.nresamples(10_000);
    for size in SIZES {
        let mut ours = Load::<Box<DeadlineQueue<65_536>>>::of(size);
        ours.bench_ends(&mut group);
        ours.bench_middle(&mut group);
        Load::<BinaryHeap<_>>::of(size).bench_ends(&mut group);
        let mut set = Load::<Set>::of(size);
        set.bench_ends(&mut group);
        set.bench_middle(&mut group);
    }
    group.finish();
}

criterion_group!(benches, queue);
criterion_main!(benches);
