//! [`Watch`]: counters and latencies of a scheduler, read from any thread.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

use super::counts::UserCounts;
use super::memory::{self, Mapping};
use super::thread;
use crate::abi::{Counter, CpuLatency, CpuState};
use crate::latency::Latency;
use crate::running::Running;
use crate::stats::Snapshot;

/// Reads the counters and latencies of a [`BpfScheduler`](super::BpfScheduler) from any thread.
#[derive(Clone)]
pub struct Watch {
    pub(super) cpus: Arc<Mapping>,
    pub(super) latencies: Arc<Mapping>,
    pub(super) nr_cpus: u32,
    pub(super) counts: Arc<CachePadded<UserCounts>>,
    pub(super) tid: i32,
    pub(super) affinity: Option<libc::cpu_set_t>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Watch").field(&self.snapshot()).finish()
    }
}

impl Watch {
    /// A thread started by the scheduler thread is bound to its CPU: this sets the calling thread
    /// free.
    pub fn leave_scheduler_cpu(&self) {
        if let Some(affinity) = &self.affinity {
            // Failing costs only this thread: the two take turns there.
            let _ = thread::set_affinity(affinity);
        }
    }

    /// All counters.
    pub fn snapshot(&self) -> Snapshot {
        let user = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            taken: user(&self.counts.taken),
            sent: user(&self.counts.sent),
            superseded: user(&self.counts.superseded),
            waiting: user(&self.counts.waiting),
            syscalls: user(&self.counts.syscalls),
            allocations: memory::sealed_allocations(),
            faults: memory::faults(self.tid).map_or(0, |faults| {
                faults.saturating_sub(user(&self.counts.faults_at_start))
            }),
            ..Snapshot::of_kernel_side(|counter| self.count(counter))
        }
    }

    /// How long each stage has taken so far. Reading it holds up no CPU.
    pub fn latency(&self) -> Latency {
        let mut latency = Latency::default();
        let first: NonNull<CpuLatency> = self.latencies.start().cast();
        for cpu in 0..self.nr_cpus as usize {
            // SAFETY: within the mapped array of `nr_cpus` elements.
            let at = unsafe { first.add(cpu) };
            // SAFETY: mapped and aligned; all its fields are atomics.
            latency.add(unsafe { at.as_ref() });
        }
        latency
    }

    /// Whether each CPU is idle, and what it runs, or ran last.
    pub fn cpus(&self) -> impl Iterator<Item = (bool, Running)> {
        self.states().map(|state| {
            // ORDERING: relaxed, with the addition in publish_idle() in bpf/metronome.bpf.c: a
            // guess, like what it runs.
            let is_idle = state.idle_seq.load(Ordering::Relaxed) & 1 != 0;
            (is_idle, Running::read(&state.running))
        })
    }

    fn states(&self) -> impl Iterator<Item = &CpuState> {
        let first: NonNull<CpuState> = self.cpus.start().cast();
        (0..self.nr_cpus as usize).map(move |cpu| {
            // SAFETY: within the mapped array of `nr_cpus` states.
            let at = unsafe { first.add(cpu) };
            // SAFETY: mapped and aligned; all its fields are atomics.
            unsafe { at.as_ref() }
        })
    }

    fn count(&self, counter: Counter) -> u64 {
        // ORDERING: relaxed, with count() and add_and_order() in bpf/state.h: each counter stands
        // for itself.
        self.states()
            .filter_map(|state| state.counters.get(counter as usize))
            .map(|counter| counter.load(Ordering::Relaxed))
            .fold(0, u64::wrapping_add)
    }
}
