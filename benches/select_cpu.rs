//! What it costs to choose and claim an idle CPU: by our search, and by asking the kernel.
//!
//! # Ours
//! [`Shared::claim_idle_cpu`], which is what
//! [`BpfScheduler::select_cpu`](scx_metronome_core::BpfScheduler::select_cpu) does for tasks that
//! may run anywhere, on machines of cores of two threads, eight cores to a cache and 64 to a node.
//! Eight tasks are given a CPU in one turn. Then, untimed, the turn ends and these CPUs go idle
//! anew.
//!
//! # By asking the kernel
//! `BPF_PROG_RUN` of a program that finds the task, as
//! [`BpfScheduler`](scx_metronome_core::BpfScheduler) runs one for other tasks. The search itself
//! is left out, since only a kernel with `sched_ext` has it.
#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::alloc::{Layout, alloc_zeroed};
use std::hint::black_box;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use scx_metronome_core::abi::{
    Control, CpuState, MAILBOX_SLOTS, MAX_TASKS, MachineState, PickArgs, SHARED_MAILBOX_SLOTS,
};
use scx_metronome_core::idle::CpuPlace;
use scx_metronome_core::shared::{Shared, SharedMemory};

mod support;
use support::bpf::{BpfSide, Program};

fn select_cpu(criterion: &mut Criterion) {
    support::pin(1);
    let mut group = criterion.benchmark_group("select_cpu");
    for cpus in [16, 1_024] {
        for (what, idle, step) in [
            ("previous", 0..cpus - 1, 1),
            ("nearest", 1..cpus - 1, 0),
            ("farthest", cpus - 9..cpus - 1, 0),
            ("none", 0..0, 0),
        ] {
            let mut machine = Machine::of(cpus, idle);
            let name = format!("metronome_{what}");
            group.bench_function(BenchmarkId::new(name, cpus), |bencher| {
                bencher.iter_custom(|claims| machine.claim(claims, step));
            });
        }
    }
    if let Some(side) = BpfSide::load("select_cpu") {
        let program = Program::new(&side.skel.progs.select_cpu);
        let pid = std::process::id() as i32;
        group.bench_function("bpf_prog_run", |bencher| {
            bencher.iter(|| {
                let mut arguments = PickArgs {
                    pid,
                    prev_cpu: black_box(0),
                    wake_flags: 0,
                };
                assert_eq!(program.run(Some(&mut arguments)), 0);
            });
        });
    }
    group.finish();
}

/// Claims in a turn.
const BATCH: usize = 8;

/// CPUs, of which the last is the scheduler thread's.
struct Machine {
    memory: SharedMemory,
    shared: Box<Shared>,
}

impl Machine {
    fn of(nr_cpus: u32, idle: Range<u32>) -> Self {
        let cpus = nr_cpus as usize;
        let memory = SharedMemory {
            mailboxes: zeroed(cpus * 64 * (1 + MAILBOX_SLOTS)),
            shared_mailbox: zeroed(64 * (1 + SHARED_MAILBOX_SLOTS)),
            cpus: zeroed(cpus * size_of::<CpuState>()).cast(),
            machine: zeroed(size_of::<MachineState>()).cast(),
            orders: zeroed(MAX_TASKS * size_of::<u64>()).cast(),
            control: zeroed(size_of::<Control>()).cast(),
            nr_cpus,
            agent_cpu: nr_cpus - 1,
        };
        // SAFETY: arrays of `nr_cpus` elements, never freed.
        let mut shared = unsafe { Box::new(Shared::new(memory, [])) };
        let places: Vec<_> = (0..nr_cpus as u16)
            .map(|cpu| {
                let core = cpu % (nr_cpus as u16 / 2);
                CpuPlace {
                    node: core / 64,
                    llc: core / 8,
                    core,
                    rank: 0,
                }
            })
            .collect();
        shared.set_places(&places);
        let machine = Self { memory, shared };
        for cpu in idle {
            // SAFETY: within the mask, which comes first.
            let word = unsafe {
                machine
                    .memory
                    .machine
                    .cast::<AtomicU64>()
                    .add(cpu as usize / 64)
            };
            // SAFETY: a live, aligned word.
            unsafe { word.as_ref() }.fetch_or(1 << (cpu % 64), Ordering::Relaxed);
            machine.idle_seq(cpu).store(1, Ordering::Relaxed);
        }
        machine
    }

    /// How long so many claims take, each for a task whose last CPU is `step` after that of the one
    /// before.
    fn claim(&mut self, claims: u64, step: i32) -> Duration {
        let turns = claims.div_ceil(BATCH as u64);
        let mut timed = Duration::ZERO;
        for _ in 0..turns {
            let mut claimed = [None; BATCH];
            let start = Instant::now();
            for (task, claimed) in (0..).zip(&mut claimed) {
                *claimed = self.shared.claim_idle_cpu(black_box(task * step));
            }
            timed += start.elapsed();
            self.shared.flush();
            // They look, and find nothing to do.
            for cpu in claimed.into_iter().flatten() {
                let seq = self.idle_seq(cpu);
                seq.store(seq.load(Ordering::Relaxed) + 2, Ordering::Relaxed);
            }
        }
        // Those in the last turn that were not asked for.
        timed.mul_f64(claims as f64 / (turns * BATCH as u64) as f64)
    }

    /// The first word of its state.
    fn idle_seq(&self, cpu: u32) -> &AtomicU64 {
        // SAFETY: within the array.
        let state = unsafe { self.memory.cpus.add(cpu as usize) };
        // SAFETY: a live, aligned word.
        unsafe { state.cast().as_ref() }
    }
}

/// Never freed.
fn zeroed(bytes: usize) -> NonNull<u8> {
    let layout = Layout::from_size_align(bytes, 4_096).unwrap();
    // SAFETY: the size is not zero.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap()
}

criterion_group!(benches, select_cpu);
criterion_main!(benches);
