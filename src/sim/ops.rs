//! The ops of `bpf/metronome.bpf.c`, a function for each.

use std::collections::BTreeSet;
use std::format;

use core::sync::atomic::Ordering;

use super::kernel::{DsqId, DsqKey, Kernel, Place, first_vtime};
use super::memory::{RECORD, first_mail_vtime, has_mail, take, words_of};
use crate::abi::{
    Counter, CpuState, DECISION_ANY_CPU, DECISION_PREEMPT, DRAIN_BATCH, MAILBOX_SLOTS,
    SHARED_MAILBOX_SLOTS, UNDECIDED_SLICE,
};
use crate::mailbox::Decision;
use crate::task::QueuedTask;

/// The default slice, ns.
pub(super) const SLICE_NS: u64 = 20_000_000;

/// The ops, as in `bpf/metronome.bpf.c`.
impl Kernel {
    pub(super) fn enqueue(&mut self, id: u32, flags: u64) {
        let task = &mut self.tasks[id as usize];
        task.generation += 1;
        task.slice = SLICE_NS / UNDECIDED_SLICE;
        if self.in_fallback() {
            return self.enqueue_fallback(id, Counter::Fallback);
        }
        let Some((ring, at)) = self.reserve(id) else {
            return self.enqueue_fallback(id, Counter::RingFull);
        };
        self.tasks[id as usize].enqueued_at = self.now;
        let record = self.record(id, flags);
        for (word, value) in words_of(record).into_iter().enumerate() {
            self.write(ring, at + 8 + 8 * word as u64, value);
        }
        // All keys are equal: first come, first served.
        self.insert(id, DsqId::Pending, 0);
        self.count(Counter::Queued);
        if core::mem::take(&mut self.hold) {
            self.held = Some((ring, at));
        } else {
            self.write(ring, at, RECORD - 8);
        }
    }

    /// User space cannot be asked.
    pub(super) fn enqueue_fallback(&mut self, id: u32, counter: Counter) {
        self.tasks[id as usize].has_deadline = false;
        self.insert(id, DsqId::Fallback, 0);
        self.count(counter);
        if let Some(cpu) = self.idle_cpu_for(id) {
            self.look(cpu);
        }
    }

    pub(super) fn record(&self, id: u32, flags: u64) -> QueuedTask {
        let task = &self.tasks[id as usize];
        let workers = 0..self.agent_cpu();
        let allowed = workers.clone().filter(|cpu| self.allows(id, *cpu)).count() as u32;
        let cpu = workers
            .clone()
            .find(|cpu| self.allows(id, *cpu))
            .unwrap_or_default();
        let everywhere = allowed > 1 && allowed == self.agent_cpu();
        let nr_cpus_allowed = if everywhere {
            self.config.nr_cpus
        } else {
            allowed
        };
        QueuedTask {
            pid: task.pid,
            tgid: task.pid,
            flags,
            weight: task.weight as u32,
            enqueued_at: task.enqueued_at,
            exec_runtime: task.exec_runtime,
            sum_exec_runtime: task.sum_exec_runtime,
            nvcsw: task.nvcsw,
            vtime: task.vtime,
            ..QueuedTask::example(id, task.generation, cpu as i32, nr_cpus_allowed as u16)
        }
    }

    pub(super) fn dispatch(&mut self, cpu: u32) {
        let mut displaces = false;
        for (mailbox, slots) in [
            (self.mailbox(cpu), MAILBOX_SLOTS),
            (self.shared_mailbox.start(), SHARED_MAILBOX_SLOTS),
        ] {
            for _ in 0..DRAIN_BATCH {
                let Some(decision) = take(mailbox, slots) else {
                    break;
                };
                let any = slots == SHARED_MAILBOX_SLOTS || decision.flags & DECISION_ANY_CPU != 0;
                self.carry_out(decision, (!any).then_some(cpu));
                displaces |= decision.flags & DECISION_PREEMPT != 0;
            }
        }
        self.turns[cpu as usize] += 1;
        let next = self.dsqs_of(cpu, displaces).find_map(|dsq| {
            let id = self.first(dsq, cpu)?;
            Some((dsq, id))
        });
        let Some((dsq, id)) = next else {
            return self.publish_idle(cpu, true);
        };
        if dsq == DsqId::Pending {
            self.count(Counter::TakenBack);
        }
        self.take_off(id);
        self.run(cpu, id);
        self.pass_on_shared();
    }

    /// Where a CPU looks for a task, in this order.
    pub(super) fn dsqs_of(&self, cpu: u32, displaces: bool) -> impl Iterator<Item = DsqId> + use<> {
        let turn = self.turns[cpu as usize];
        let (rest, in_fallback) = (turn / 2, self.in_fallback());
        let own = DsqId::Cpu(cpu);
        let mut decided = [own, DsqId::Shared];
        if rest & 1 == 1 {
            decided.reverse();
        }
        let displacing = displaces.then_some(own);
        let unasked = (turn & 1 == 1).then_some(DsqId::Fallback);
        let asked = (in_fallback && rest & 3 != 0).then_some(DsqId::Pending);
        let left = in_fallback.then_some(DsqId::Pending);
        let first = displacing.into_iter().chain(unasked).chain(asked);
        first.chain(decided).chain(left).chain([DsqId::Fallback])
    }

    pub(super) fn tick(&mut self, cpu: u32) {
        if let Some(id) = self.running[cpu as usize]
            && self.is_overtaken(id, cpu)
        {
            self.stop(cpu, true);
        }
    }

    pub(super) fn is_overtaken(&self, id: u32, cpu: u32) -> bool {
        let task = &self.tasks[id as usize];
        let ran = self.now - task.started_at;
        let deadline = task.vtime.wrapping_add(ran * 100 / task.weight);
        let is_first = |dsq: &BTreeSet<(DsqKey, u32)>| {
            let first = dsq.first();
            first.is_some_and(|(_, id)| self.allows(*id, cpu))
        };
        if ran >= SLICE_NS / UNDECIDED_SLICE && is_first(&self.fallback) {
            return true;
        }
        let first_of = |dsq: &BTreeSet<(DsqKey, u32)>| {
            let (_, id) = *dsq.first()?;
            first_vtime(dsq).filter(|_| self.allows(id, cpu))
        };
        let firsts = [
            first_of(&self.own[cpu as usize]),
            first_of(&self.shared),
            first_mail_vtime(self.mailbox(cpu), MAILBOX_SLOTS),
            first_mail_vtime(self.shared_mailbox.start(), SHARED_MAILBOX_SLOTS),
        ];
        let is_before = |first: &u64| (first.wrapping_sub(deadline) as i64) < 0;
        task.has_deadline && firsts.iter().flatten().any(is_before)
    }

    pub(super) fn carry_out(&mut self, decision: Decision, cpu: Option<u32>) {
        let id = decision.id;
        let faults = self.faults;
        let Some(task) = self.tasks.get_mut(id as usize).filter(|task| task.pid != 0) else {
            return self.count(Counter::TooLate);
        };
        if task.generation != decision.generation {
            return self.count(Counter::Stale);
        }
        if task.decided == decision.generation && !faults {
            self.violate(format!("two decisions about one enqueue of {id}"));
        }
        let task = &mut self.tasks[id as usize];
        task.decided = decision.generation;
        task.has_deadline = decision.vtime != 0;
        if !matches!(task.place, Place::On(DsqId::Pending, _)) {
            return self.count(Counter::Rescued);
        }
        let vtime = match decision.vtime {
            0 => self.vtime_now,
            vtime => vtime,
        };
        task.vtime = vtime;
        task.slice = match decision.slice_ns {
            0 => SLICE_NS,
            slice => slice,
        };
        let mut workers = (0..self.agent_cpu()).filter(|cpu| self.allows(id, *cpu));
        let only = workers.next().filter(|_| workers.next().is_none());
        let cpu = cpu.or(only);
        let here = cpu.filter(|cpu| self.allows(id, *cpu));
        if cpu.is_some() && here.is_none() {
            self.count(Counter::Bounced);
        }
        self.count(Counter::Dispatched);
        self.take_off(id);
        let displaces = here.filter(|_| decision.flags & DECISION_PREEMPT != 0);
        // Before all that wait there. Only this CPU takes it off, and then its own deadline counts.
        let first = displaces.and_then(|cpu| first_vtime(&self.own[cpu as usize]));
        let at = first.map_or(vtime, |first| first.wrapping_sub(1));
        self.insert(id, here.map_or(DsqId::Shared, DsqId::Cpu), at);
        if here.is_none()
            && let Some(cpu) = self.idle_cpu_for(id)
        {
            self.kicked[cpu as usize] = true;
        }
    }

    pub(super) fn run(&mut self, cpu: u32, id: u32) {
        if !self.allows(id, cpu) {
            self.violate(format!("{id} runs on CPU {cpu}, which it may not use"));
        }
        self.publish_idle(cpu, false);
        let task = &mut self.tasks[id as usize];
        task.place = Place::Running(cpu);
        task.started_at = self.now;
        let vtime = task.vtime;
        self.running[cpu as usize] = Some(id);
        self.advance_vtime_now(vtime);
    }

    pub(super) fn pass_on_shared(&mut self) {
        if self.shared.is_empty() && self.fallback.is_empty() {
            return;
        }
        let idle = |cpu: &u32| self.running[*cpu as usize].is_none() && !self.kicked[*cpu as usize];
        if let Some(cpu) = (0..self.agent_cpu()).find(idle) {
            self.kicked[cpu as usize] = true;
        }
    }

    pub(super) fn publish_idle(&mut self, cpu: u32, is_idle: bool) {
        // SAFETY: within the array of `nr_cpus` states.
        let at = unsafe { self.cpus.start().cast::<CpuState>().add(cpu as usize) };
        // SAFETY: zeroed memory of the right size, and atomics only.
        let state = unsafe { at.as_ref() };
        let machine = self.machine_state();
        let was_idle = state.idle_seq.load(Ordering::Relaxed) & 1 == 1;
        if !is_idle && !was_idle {
            return;
        }
        let (word, bit) = (&machine.idle[cpu as usize / 64], 1 << (cpu % 64));
        if is_idle {
            word.fetch_or(bit, Ordering::Relaxed);
        } else {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
        let by = if was_idle == is_idle { 2 } else { 1 };
        state.idle_seq.fetch_add(by, Ordering::Relaxed);
        if is_idle && (has_mail(self.mailbox(cpu), MAILBOX_SLOTS) || self.has_shared_mail()) {
            self.kicked[cpu as usize] = true;
        }
    }

    pub(super) fn has_shared_mail(&self) -> bool {
        has_mail(self.shared_mailbox.start(), SHARED_MAILBOX_SLOTS)
    }
}
