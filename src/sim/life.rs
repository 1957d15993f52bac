//! What happens to tasks and to the scheduler thread: each [`Event`], after the kernel's core.

use std::vec::Vec;

use core::sync::atomic::Ordering;

use super::Event;
use super::kernel::{Kernel, Place};
use super::memory::{DISCARD, RECORD};
use super::ops::SLICE_NS;
use crate::abi::{Control, Counter, EPOCH_SHIFT, EPOCHS, MachineState};

/// SCX_ENQ_WAKEUP.
const WAKEUP: u64 = 1;

impl Kernel {
    pub(super) fn apply(&mut self, event: Event) {
        let workers = self.agent_cpu();
        let task = |id: u32| id % self.config.nr_tasks;
        match event {
            Event::Wake(id) => self.wake(task(id)),
            Event::Sleep(cpu) => self.stop(cpu % workers, false),
            Event::SliceEnds(cpu) => self.stop(cpu % workers, true),
            Event::Look(cpu) => self.look(cpu % workers),
            Event::Tick(cpu) => self.tick(cpu % workers),
            Event::Exit(id) => self.exit(task(id)),
            Event::SetAffinity(id, mask) => self.set_affinity(task(id), mask),
            Event::SetWeight(id, weight) => {
                self.tasks[task(id) as usize].weight = u64::from(weight).clamp(1, 10_000);
            }
            Event::Late => self.begin_fallback(),
            Event::Back => self.end_fallback(),
            Event::Pass(us) => self.now += u64::from(us) * 1000,
            Event::Hold => self.hold = self.held.is_none(),
            Event::Release => self.release(),
            Event::Discard(id) => {
                if let Some((ring, at)) = self.reserve(task(id)) {
                    self.write(ring, at, DISCARD | (RECORD - 8));
                }
            }
            Event::Scribble(at, byte) => self.scribble(at, byte),
            Event::Turn | Event::Misplace(_) => {}
        }
        self.now += 1_000;
    }

    pub(super) fn wake(&mut self, id: u32) {
        let task = &mut self.tasks[id as usize];
        match task.place {
            Place::Asleep => {}
            Place::Exited => {
                let epoch = (task.generation >> EPOCH_SHIFT) % (EPOCHS - 1) + 1;
                task.generation = epoch << EPOCH_SHIFT;
                task.pid = self.next_pid;
                task.vtime = self.vtime_now;
                task.has_deadline = false;
                task.sum_exec_runtime = 0;
                task.affinity = u16::MAX;
                self.next_pid += 1;
            }
            Place::On(..) | Place::Running(_) => return,
        }
        task.exec_runtime = 0;
        task.nvcsw += 1;
        let idle = self.idle_cpu_for(id);
        match idle.filter(|_| self.config.builtin_idle) {
            Some(cpu) => {
                self.tasks[id as usize].slice = SLICE_NS;
                self.count(Counter::Direct);
                self.run(cpu, id);
            }
            None => self.enqueue(id, WAKEUP),
        }
    }

    /// The task that runs on `cpu` leaves it, and the CPU looks for work.
    pub(super) fn stop(&mut self, cpu: u32, runnable: bool) {
        let Some(id) = self.running[cpu as usize] else {
            return;
        };
        let task = &mut self.tasks[id as usize];
        let ran = self.now - task.started_at;
        task.exec_runtime += ran;
        task.sum_exec_runtime += ran;
        task.vtime = task.vtime.wrapping_add(ran * 100 / task.weight);
        task.place = Place::Asleep;
        let vtime = task.vtime;
        self.advance_vtime_now(vtime);
        // Not idle until it has found no other.
        if runnable {
            self.enqueue(id, 0);
        }
        self.running[cpu as usize] = None;
        self.dispatch(cpu);
    }

    pub(super) fn look(&mut self, cpu: u32) {
        if self.running[cpu as usize].is_none() {
            self.dispatch(cpu);
        }
    }

    pub(super) fn exit(&mut self, id: u32) {
        if matches!(self.tasks[id as usize].place, Place::Running(_)) {
            return;
        }
        self.take_off(id);
        let task = &mut self.tasks[id as usize];
        task.place = Place::Exited;
        task.pid = 0;
        task.generation += 1;
    }

    /// As the kernel does it: off its DSQ and enqueued again.
    pub(super) fn set_affinity(&mut self, id: u32, mask: u16) {
        let place = self.tasks[id as usize].place;
        if place == Place::Exited {
            return;
        }
        self.tasks[id as usize].affinity = mask;
        if !(0..self.agent_cpu()).any(|cpu| self.allows(id, cpu)) {
            self.tasks[id as usize].affinity = u16::MAX;
        }
        match place {
            Place::On(..) => {
                self.take_off(id);
                self.enqueue(id, 0);
            }
            Place::Running(cpu) if !self.allows(id, cpu) => self.stop(cpu, true),
            _ => {}
        }
    }

    pub(super) fn release(&mut self) {
        self.hold = false;
        if let Some((ring, at)) = self.held.take() {
            self.write(ring, at, RECORD - 8);
        }
    }

    pub(super) fn scribble(&mut self, at: u32, byte: u8) {
        let ring = at as usize % self.rings.len();
        let offset = u64::from(at) % self.config.ring_bytes;
        let shift = offset % 8 * 8;
        let word = self.read(ring, offset & !7) & !(0xff << shift) | u64::from(byte) << shift;
        self.write(ring, offset & !7, word);
    }

    pub(super) fn misplace(&mut self, by: i32) {
        let producer = self.producer(0);
        let wrong = producer
            .load(Ordering::Relaxed)
            .wrapping_add_signed(by.into());
        producer.store(wrong, Ordering::Relaxed);
    }

    pub(super) fn machine_state(&self) -> &MachineState {
        // SAFETY: zeroed memory of the right size, and atomics only.
        unsafe { self.machine.start().cast().as_ref() }
    }

    pub(super) fn control(&self) -> &Control {
        // SAFETY: as in machine_state().
        unsafe { self.control.start().cast().as_ref() }
    }

    pub(super) fn in_fallback(&self) -> bool {
        self.machine_state().fallback.load(Ordering::Relaxed) & 1 == 1
    }

    /// User space is late while tasks wait for it: from now on it is not asked.
    pub(super) fn begin_fallback(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        if !self.in_fallback() {
            let fallback = &self.machine_state().fallback;
            fallback.fetch_add(1, Ordering::Relaxed);
            self.count(Counter::Late);
        }
        let is_idle = |cpu: &usize| self.running[*cpu].is_none();
        let idle: Vec<usize> = (0..self.agent_cpu() as usize).filter(is_idle).collect();
        for cpu in idle.into_iter().take(self.pending.len()) {
            self.look(cpu as u32);
        }
    }

    /// User space that is back and has read all that was asked of it is asked again.
    pub(super) fn end_fallback(&mut self) {
        let fallback = &self.machine_state().fallback;
        let caught_up = self.control().caught_up.load(Ordering::Relaxed);
        if self.in_fallback() && fallback.load(Ordering::Relaxed) == caught_up {
            fallback.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// No decision comes about what lies in a ring that is corrupt: a CPU runs what has waited
    /// longest.
    pub(super) fn run_pending(&mut self) {
        for cpu in 0..self.agent_cpu() {
            let first = self
                .pending
                .iter()
                .find(|(_, id)| self.allows(*id, cpu))
                .map(|(_, id)| *id);
            if let (Some(id), None) = (first, self.running[cpu as usize]) {
                self.count(Counter::TakenBack);
                self.take_off(id);
                self.run(cpu, id);
            }
        }
    }
}
