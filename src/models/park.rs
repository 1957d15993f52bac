//! A scheduler thread that sleeps hears of a task.

use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use loom::thread;

use super::machine::Machine;
use super::{LOST_WAKEUP, breaks_without, explore};
use crate::sync::Guard;

/// The thread parks whenever there is nothing in the ring. Each CPU enqueues the tasks of its list.
fn park_while_cpus_enqueue(preemptions: usize, cpus: &'static [&'static [u32]]) {
    explore(preemptions, move || {
        let (machine, mut shared) = Machine::new();
        let start = |ids: &'static [u32]| {
            let kernel = Arc::clone(&machine);
            thread::spawn(move || ids.iter().for_each(|id| kernel.enqueue(*id)))
        };
        let threads: Vec<_> = cpus.iter().copied().map(start).collect();
        let tasks: usize = cpus.iter().map(|ids| ids.len()).sum();
        let mut received = vec![];
        while received.len() < tasks {
            if shared.drain(usize::MAX, |task| received.push(task.id)) == 0
                && !shared.park(|| machine.poll())
            {
                // A record is not committed yet.
                thread::yield_now();
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(shared.drain(usize::MAX, |_| ()), 0, "doubled");
        received.sort();
        let sent: Vec<u32> = cpus.concat();
        assert_eq!(received, sent, "lost or doubled");
    });
}

#[test]
fn a_parked_thread_is_woken_by_one_cpu_again_and_again() {
    park_while_cpus_enqueue(3, &[&[1, 2, 3]]);
}

#[test]
fn a_parked_thread_is_woken_by_either_of_two_cpus() {
    park_while_cpus_enqueue(2, &[&[1], &[2]]);
}

#[test]
fn parking_needs_its_barriers() {
    for guard in [Guard::Park, Guard::Kernel("wakeup_flags")] {
        breaks_without(guard, &[LOST_WAKEUP], || {
            park_while_cpus_enqueue(3, &[&[1, 2, 3]])
        });
    }
}
