//! What a decision costs our side on larger machines than this: on a simulated kernel, by the
//! number of CPUs and of rings.
//!
//! All CPUs are busy. In each round 16 of them, or all if there are fewer, are at the end of a
//! slice: their tasks wait again and others are run. Then the scheduler thread takes its turn,
//! which alone is timed. About as many tasks wait in our queue whatever the number of CPUs.
//!
//! One thread plays all CPUs here, so cache lines do not travel. What it shows is whether our work
//! grows with the machine.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use scx_metronome_core::policy::deadline::Deadline;
use scx_metronome_core::sim::{Config, Event, Sim, TASKS};

mod support;

const WAITING: u32 = 1_024;

fn scale(criterion: &mut Criterion) {
    support::pin(1);
    let mut group = criterion.benchmark_group("scale");
    group.measurement_time(Duration::from_secs(1));
    group.warm_up_time(Duration::from_millis(300));
    group.sample_size(50);
    group.nresamples(10_000);
    for cpus in [1, 16, 64, 256, 1_024] {
        let mut machine = Machine::of(cpus, 1);
        group.bench_function(BenchmarkId::new("cpus", cpus), |bencher| {
            bencher.iter_custom(|decisions| machine.decide(decisions));
        });
    }
    for rings in [1, 2, 4, 16] {
        let mut machine = Machine::of(64, rings);
        group.bench_function(BenchmarkId::new("rings", rings), |bencher| {
            bencher.iter_custom(|decisions| machine.decide(decisions));
        });
    }
    group.finish();
}

struct Machine {
    sim: Sim<Deadline<TASKS>>,
    /// CPUs that take tasks.
    workers: u32,
    /// The CPU whose slice ends next.
    next: u32,
}

impl Machine {
    /// With so many CPUs, of which the last is the scheduler thread's; one CPU has a second for
    /// that.
    fn of(cpus: u32, nr_rings: u32) -> Self {
        let nr_cpus = cpus.max(2);
        let config = Config {
            nr_cpus,
            nr_rings,
            ring_bytes: 1 << 20,
            // One runs on each CPU, and for each CPU but no more than 128 one is decided about.
            nr_tasks: nr_cpus + nr_cpus.min(128) + WAITING,
            builtin_idle: true,
        };
        let mut sim = Sim::new(config, Deadline::new(20_000_000, 1_000_000));
        for task in 0..config.nr_tasks {
            sim.apply(Event::Wake(task));
        }
        let mut machine = Self {
            sim,
            workers: nr_cpus - 1,
            next: 0,
        };
        while machine.turn().0 > 0 {}
        machine
    }

    /// Takes a turn; how many tasks it decided about, and how long it took.
    fn turn(&mut self) -> (u64, Duration) {
        let (turned, elapsed) = support::without_allocation(|| {
            let start = Instant::now();
            let turned = self.sim.turn();
            (turned, start.elapsed())
        });
        self.sim.answer_kicks();
        (turned.handed_out as u64, elapsed)
    }

    fn decide(&mut self, decisions: u64) -> Duration {
        let mut timed = Duration::ZERO;
        let mut decided = 0;
        while decided < decisions {
            for _ in 0..16.min(self.workers) {
                self.sim.apply(Event::SliceEnds(self.next));
                self.next = (self.next + 1) % self.workers;
            }
            let (handed_out, elapsed) = self.turn();
            assert_ne!(handed_out, 0);
            timed += elapsed;
            decided += handed_out;
        }
        // The last turn may have decided about more than was asked for.
        timed.mul_f64(decisions as f64 / decided as f64)
    }
}

criterion_group!(benches, scale);
criterion_main!(benches);
