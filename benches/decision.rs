//! A whole decision: take a record, order it, choose a CPU, hand it over. At a constant number of
//! waiting tasks.
//!
//! # Ours
//! The real [`Turn`], [`Deadline`] and [`Shared`](scx_metronome_core::shared::Shared), over the
//! real maps. 16 CPUs, all of them busy: one task for each wakes, and one turn with its flush
//! decides about 16 tasks, though not the same. The kernel side then takes the decisions, and their
//! tasks are the next to wake. Timed are the turn and the flush, so a sixteenth of reading the
//! clock twice is in each figure.
//!
//! The scheduler thread makes no system calls while all CPUs are busy, but here two play the
//! kernel's part before each turn, and leave caches and branch predictors to the kernel. So there
//! are two machines, and between the system calls and the turn that is timed the other machine
//! takes one that is not. That is to our advantage: without it, a decision with 64 waiting
//! took 61 ns instead of 51. The incumbent gets no such turn, for it makes two system calls per
//! decision itself.
//!
//! # The incumbent's
//! See [`support::incumbent`]. It decides about one task per turn, and yields after each.
//!
//! # What this leaves out
//! An idle CPU: it costs us a system call per turn, here as in the scheduler. Cache lines that
//! other CPUs have written: the kernel side runs on the same CPU here. And the tasks that the
//! incumbent's yield lets run before it comes back.
#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use scx_metronome_core::memory;
use scx_metronome_core::policy::deadline::Deadline;
use scx_metronome_core::shared::Shared;
use scx_metronome_core::turn::Turn;

mod support;
use support::bpf::{BpfSide, CPUS, now};
use support::incumbent::{self, Waiting};

const SLICE_NS: u64 = 20_000_000;

fn decision(criterion: &mut Criterion) {
    support::pin(1);
    let mut group = criterion.benchmark_group("decision");
    group.measurement_time(Duration::from_secs(2));
    group.warm_up_time(Duration::from_millis(500));
    let sampled = |backlog| ("metronome", backlog, true);
    let unsampled = ("metronome_unsampled", 64, false);
    for (name, backlog, is_sampled) in [sampled(64), unsampled, sampled(4_096), sampled(65_536)] {
        let Some(mut ours) = Ours::with(backlog, is_sampled) else {
            return;
        };
        group.bench_function(BenchmarkId::new(name, backlog), |bencher| {
            bencher.iter_custom(|decisions| ours.decide(decisions));
        });
    }
    for backlog in [64, 4_096] {
        let Some(side) = BpfSide::load("decision") else {
            return;
        };
        let mut theirs = Theirs::with(&side, backlog);
        group.bench_function(BenchmarkId::new("incumbent", backlog), |bencher| {
            bencher.iter_custom(|decisions| theirs.decide(decisions));
        });
    }
    group.finish();
}

/// Two machines in step, of which the second is timed. The first is small, so that it does not fill
/// the caches.
struct Ours([Machine; 2]);

impl Ours {
    fn with(tasks: usize, is_sampled: bool) -> Option<Self> {
        Some(Self([
            Machine::with(64, is_sampled)?,
            Machine::with(tasks, is_sampled)?,
        ]))
    }

    fn decide(&mut self, decisions: u64) -> Duration {
        // All CPUs take part in each turn; what is over in the last is not charged.
        let turns = decisions.div_ceil(u64::from(CPUS));
        let mut timed = Duration::ZERO;
        for _ in 0..turns {
            self.0
                .iter()
                .for_each(|machine| machine.side.fill(CPUS as usize));
            let [_, elapsed] = self.0.each_mut().map(Machine::take_turn);
            let drain = |machine: &Machine| machine.side.drain_mailboxes(CPUS as usize);
            self.0.iter().for_each(drain);
            timed += elapsed;
        }
        timed.mul_f64(decisions as f64 / (turns * u64::from(CPUS)) as f64)
    }
}

struct Machine {
    side: BpfSide,
    shared: Box<Shared>,
    turn: Box<Turn>,
    policy: Box<Deadline>,
}

impl Machine {
    /// With so many tasks, of which those wait that do not run. `is_sampled`: the stages of one in
    /// 256 are measured, as in a scheduler.
    fn with(tasks: usize, is_sampled: bool) -> Option<Self> {
        let side = BpfSide::load("decision")?;
        let mut machine = Self {
            shared: Box::new(side.shared()),
            side,
            turn: memory::zeroed(),
            policy: memory::zeroed(),
        };
        if is_sampled {
            machine.shared.set_clock(now);
        }
        machine.policy.set_slices(SLICE_NS, SLICE_NS / 20);
        machine.side.reset(tasks as u32);
        let mut woken = 0;
        while woken < tasks {
            let batch = (tasks - woken).min(256);
            machine.side.fill(batch);
            machine.turn.turn(&mut machine.shared, &mut *machine.policy);
            woken += batch;
        }
        machine.shared.flush();
        machine.side.drain_mailboxes(CPUS as usize);
        assert_eq!(machine.turn.waiting(), tasks - CPUS as usize);
        Some(machine)
    }

    fn take_turn(&mut self) -> Duration {
        let (turned, kicks, elapsed) = support::without_allocation(|| {
            let start = Instant::now();
            let turned = self.turn.turn(&mut self.shared, &mut *self.policy);
            let kicks = self.shared.flush();
            (turned, kicks, start.elapsed())
        });
        assert_eq!((turned.handed_out, turned.superseded), (CPUS as usize, 0));
        assert_eq!(kicks, 0);
        elapsed
    }
}

struct Theirs<'a> {
    side: &'a BpfSide,
    queued: incumbent::Queued<'a>,
    dispatched: incumbent::Dispatched,
    tasks: BTreeSet<Waiting>,
    /// Of a task that exists, for the kernel to find.
    pid: i32,
}

impl<'a> Theirs<'a> {
    /// With so many waiting tasks right after one has come.
    fn with(side: &'a BpfSide, tasks: usize) -> Self {
        let mut theirs = Self {
            side,
            queued: incumbent::Queued::new(side),
            dispatched: incumbent::Dispatched::new(side),
            tasks: BTreeSet::new(),
            pid: std::process::id() as i32,
        };
        // They decide about one at a time, but this many records are written at once.
        let at_once = 16;
        side.reset((tasks - 1 + at_once) as u32);
        for _ in 1..tasks {
            side.fill(1);
            theirs.take();
        }
        theirs
    }

    fn decide(&mut self, decisions: u64) -> Duration {
        let mut timed = Duration::ZERO;
        let mut left = decisions;
        while left > 0 {
            let batch = left.min(16);
            self.side.fill(batch as usize);
            let start = Instant::now();
            for _ in 0..batch {
                self.take();
                self.hand_out();
                thread::yield_now();
            }
            timed += start.elapsed();
            self.side.drain_user_ring(batch as usize);
            left -= batch;
        }
        timed
    }

    fn take(&mut self) {
        let task = self.queued.dequeue_task().unwrap();
        let deadline = task.vtime + task.exec_runtime.min(SLICE_NS) * 100 / task.weight;
        let timestamp = task.stop_ts;
        self.tasks.insert(Waiting {
            task,
            deadline,
            timestamp,
        });
    }

    fn hand_out(&mut self) {
        let Waiting { task, deadline, .. } = self.tasks.pop_first().unwrap();
        let cpu = incumbent::select_cpu(self.side, self.pid, task.cpu, task.flags);
        let slice_ns = SLICE_NS / (self.tasks.len() as u64 + 1);
        self.dispatched.dispatch_task(&incumbent::Decision {
            pid: task.pid,
            cpu,
            flags: task.flags,
            slice_ns: slice_ns.max(SLICE_NS / 20),
            vtime: deadline,
            enq_cnt: task.enq_cnt,
        });
    }
}

criterion_group!(benches, decision);
criterion_main!(benches);
