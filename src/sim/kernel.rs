//! What the kernel's side keeps: tasks, DSQs, CPUs.

use std::collections::BTreeSet;
use std::string::String;
use std::vec::Vec;

use core::sync::atomic::Ordering;

use super::Config;
use super::memory::{Pages, RingPages};
use crate::abi::{
    Control, CpuState, KICK_PREEMPT, MAILBOX_SLOTS, MAX_TASKS, MachineState, SHARED_MAILBOX_SLOTS,
};
use crate::ring::{Ring, RingMemory};
use crate::shared::{Shared, SharedMemory};

/// Makes deadlines around 0 comparable as numbers.
const VTIME_BIAS: u64 = 1 << 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Exited,
    Asleep,
    /// On a DSQ, with its key there.
    On(DsqId, DsqKey),
    Running(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DsqId {
    Pending,
    Shared,
    Fallback,
    Cpu(u32),
}

/// Deadline, as an offset from one far in the past, and order of arrival.
pub(super) type DsqKey = (u64, u64);

#[derive(Debug)]
pub(super) struct Task {
    pub(super) pid: i32,
    pub(super) generation: u32,
    pub(super) place: Place,
    pub(super) affinity: u16,
    /// The last enqueue that a decision came for.
    pub(super) decided: u32,
    pub(super) weight: u64,
    pub(super) vtime: u64,
    /// The last decision gave it a deadline.
    pub(super) has_deadline: bool,
    pub(super) slice: u64,
    pub(super) enqueued_at: u64,
    pub(super) started_at: u64,
    pub(super) exec_runtime: u64,
    pub(super) sum_exec_runtime: u64,
    pub(super) nvcsw: u64,
}

impl Task {
    /// One that has never lived.
    pub(super) const NEVER: Self = Self {
        pid: 0,
        generation: 0,
        place: Place::Exited,
        affinity: u16::MAX,
        decided: 0,
        weight: 100,
        vtime: 0,
        has_deadline: false,
        slice: 0,
        enqueued_at: 0,
        started_at: 0,
        exec_runtime: 0,
        sum_exec_runtime: 0,
        nvcsw: 0,
    };
}

/// The kernel's side.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) config: Config,
    pub(super) now: u64,
    pub(super) arrivals: u64,
    pub(super) vtime_now: u64,
    pub(super) next_pid: i32,
    pub(super) tasks: Vec<Task>,
    pub(super) pending: BTreeSet<(DsqKey, u32)>,
    pub(super) shared: BTreeSet<(DsqKey, u32)>,
    pub(super) fallback: BTreeSet<(DsqKey, u32)>,
    pub(super) own: Vec<BTreeSet<(DsqKey, u32)>>,
    pub(super) running: Vec<Option<u32>>,
    pub(super) kicked: Vec<bool>,
    /// Of the CPUs that are kicked, those that what runs there shall leave.
    pub(super) preempted: Vec<bool>,
    pub(super) turns: Vec<u64>,
    pub(super) rings: Vec<RingPages>,
    pub(super) mailboxes: Pages,
    pub(super) shared_mailbox: Pages,
    pub(super) cpus: Pages,
    pub(super) machine: Pages,
    pub(super) orders: Pages,
    pub(super) control: Pages,
    /// The next record stays busy.
    pub(super) hold: bool,
    /// A record that is busy: its ring and position.
    pub(super) held: Option<(usize, u64)>,
    /// There has been a fault: what lies in the rings may be anything.
    pub(super) faults: bool,
    /// What must not happen and has.
    pub(super) violation: Option<String>,
}

/// Setting up.
impl Kernel {
    pub(super) fn new(config: Config) -> Self {
        let cpus = config.nr_cpus as usize;
        let ring = |_| RingPages {
            consumer: Pages::new(8),
            producer: Pages::new(8),
            data: Pages::new(2 * config.ring_bytes as usize),
        };
        let mut kernel = Self {
            config,
            now: 1_000_000,
            arrivals: 0,
            vtime_now: 0,
            next_pid: 1,
            tasks: (0..config.nr_tasks).map(|_| Task::NEVER).collect(),
            pending: BTreeSet::new(),
            shared: BTreeSet::new(),
            fallback: BTreeSet::new(),
            own: (0..cpus).map(|_| BTreeSet::new()).collect(),
            running: (0..cpus).map(|_| None).collect(),
            kicked: (0..cpus).map(|_| false).collect(),
            preempted: (0..cpus).map(|_| false).collect(),
            turns: (0..cpus).map(|_| 0).collect(),
            rings: (0..config.nr_rings).map(ring).collect(),
            mailboxes: Pages::new(cpus * 64 * (1 + MAILBOX_SLOTS)),
            shared_mailbox: Pages::new(64 * (1 + SHARED_MAILBOX_SLOTS)),
            cpus: Pages::new(cpus * size_of::<CpuState>()),
            machine: Pages::new(size_of::<MachineState>()),
            orders: Pages::new(MAX_TASKS * size_of::<u64>()),
            control: Pages::new(size_of::<Control>()),
            hold: false,
            held: None,
            faults: false,
            violation: None,
        };
        for cpu in 0..kernel.agent_cpu() {
            kernel.publish_idle(cpu, true);
        }
        kernel
    }

    pub(super) fn other_side(&self) -> Shared {
        let memory = SharedMemory {
            mailboxes: self.mailboxes.start(),
            shared_mailbox: self.shared_mailbox.start(),
            cpus: self.cpus.start().cast(),
            machine: self.machine.start().cast(),
            orders: self.orders.start().cast(),
            control: self.control.start().cast(),
            nr_cpus: self.config.nr_cpus,
            agent_cpu: self.agent_cpu(),
        };
        let rings = self.rings.iter().map(|ring| {
            let memory = RingMemory {
                consumer: ring.consumer.start().cast(),
                producer: ring.producer.start().cast(),
                data: ring.data.start(),
                size: self.config.ring_bytes,
            };
            // SAFETY: memory of the right sizes, which `Sim` keeps for longer than `Shared`.
            unsafe { Ring::new(memory, self.config.nr_cpus) }
        });
        // SAFETY: zeroed memory of the sizes for `nr_cpus`, which `Sim` keeps for longer.
        unsafe { Shared::new(memory, rings) }
    }

    pub(super) fn agent_cpu(&self) -> u32 {
        self.config.nr_cpus - 1
    }
}

/// DSQs, CPUs, counters.
impl Kernel {
    pub(super) fn allows(&self, id: u32, cpu: u32) -> bool {
        cpu < self.agent_cpu() && self.tasks[id as usize].affinity >> (cpu % 16) & 1 == 1
    }

    pub(super) fn idle_cpu_for(&self, id: u32) -> Option<u32> {
        let idle = |cpu: &u32| self.running[*cpu as usize].is_none() && self.allows(id, *cpu);
        (0..self.agent_cpu()).find(idle)
    }

    pub(super) fn dsq(&mut self, dsq: DsqId) -> &mut BTreeSet<(DsqKey, u32)> {
        match dsq {
            DsqId::Pending => &mut self.pending,
            DsqId::Shared => &mut self.shared,
            DsqId::Fallback => &mut self.fallback,
            DsqId::Cpu(cpu) => &mut self.own[cpu as usize],
        }
    }

    pub(super) fn insert(&mut self, id: u32, dsq: DsqId, vtime: u64) {
        let key = (vtime.wrapping_add(VTIME_BIAS), self.arrivals);
        self.arrivals += 1;
        self.dsq(dsq).insert((key, id));
        self.tasks[id as usize].place = Place::On(dsq, key);
    }

    pub(super) fn take_off(&mut self, id: u32) {
        if let Place::On(dsq, key) = self.tasks[id as usize].place {
            self.dsq(dsq).remove(&(key, id));
            self.tasks[id as usize].place = Place::Asleep;
        }
    }

    pub(super) fn first(&self, dsq: DsqId, cpu: u32) -> Option<u32> {
        let tasks = match dsq {
            DsqId::Pending => &self.pending,
            DsqId::Shared => &self.shared,
            DsqId::Fallback => &self.fallback,
            DsqId::Cpu(cpu) => &self.own[cpu as usize],
        };
        let allowed = tasks.iter().find(|(_, id)| self.allows(*id, cpu));
        allowed.map(|(_, id)| *id)
    }

    pub(super) fn advance_vtime_now(&mut self, vtime: u64) {
        if (self.vtime_now.wrapping_sub(vtime) as i64) < 0 {
            self.vtime_now = vtime;
        }
    }

    pub(super) fn note_kicks(&mut self, nr: u32) {
        for at in 0..nr as usize {
            let kick = self.control().kicks[at].load(Ordering::Relaxed);
            let cpu = kick & !KICK_PREEMPT;
            if cpu < self.agent_cpu() {
                self.kicked[cpu as usize] = true;
                self.preempted[cpu as usize] |= kick & KICK_PREEMPT != 0;
            }
        }
    }

    pub(super) fn answer_kicks(&mut self) {
        while let Some(cpu) = self.kicked.iter().position(|kicked| *kicked) {
            self.kicked[cpu] = false;
            if core::mem::take(&mut self.preempted[cpu]) && self.running[cpu].is_some() {
                self.stop(cpu as u32, true);
            } else {
                self.look(cpu as u32);
            }
        }
    }
}

/// The deadline by which the first task of a DSQ waits there.
pub(super) fn first_vtime(dsq: &BTreeSet<(DsqKey, u32)>) -> Option<u64> {
    let ((biased, _), _) = dsq.first()?;
    Some(biased.wrapping_sub(VTIME_BIAS))
}
