//! An idle CPU hears of a decision.

use std::sync::Arc;

use loom::thread;

use super::machine::{CPUS, Machine, WORKER};
use super::{LOST_WAKEUP, breaks_without, explore};
use crate::sync::Guard;
use crate::task::{DispatchedTask, QueuedTask, RL_CPU_ANY};

/// Two decisions in two turns, with `flags`, for a CPU that goes idle, takes them, and goes idle
/// again.
fn a_cpu_goes_idle(flags: u64) {
    explore(5, move || {
        let (machine, mut shared) = Machine::new();
        let kernel = Arc::clone(&machine);
        let cpu = thread::spawn(move || kernel.look_for(2));
        for id in 1..=2 {
            let task = QueuedTask::example(id, id + 1, WORKER as i32, CPUS as u16);
            let mut decision = DispatchedTask::new(&task);
            decision.flags = flags;
            shared.dispatch(&decision).unwrap();
            machine.kick_cpus(shared.flush());
        }
        assert_eq!(cpu.join().unwrap(), [1, 2]);
    });
}

#[test]
fn an_idle_cpu_is_kicked_for_its_mail() {
    a_cpu_goes_idle(0);
}

#[test]
fn an_idle_cpu_is_kicked_for_the_mail_of_all() {
    a_cpu_goes_idle(RL_CPU_ANY);
}

#[test]
fn a_kick_needs_its_barriers() {
    for guard in [Guard::PendingKick, Guard::Kernel("publish_idle")] {
        breaks_without(guard, &[LOST_WAKEUP], || a_cpu_goes_idle(0));
        breaks_without(guard, &[LOST_WAKEUP], || a_cpu_goes_idle(RL_CPU_ANY));
    }
}
