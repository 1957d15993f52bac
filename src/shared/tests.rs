#![expect(
    clippy::unwrap_used,
    clippy::multiple_unsafe_ops_per_block,
    reason = "tests"
)]

extern crate std;
use super::*;
use crate::ring::RingMemory;
use std::alloc::{Layout, alloc_zeroed};
use std::vec::Vec as StdVec;

use crate::abi::MAX_TASKS;

const CPUS: u32 = 4;
const AGENT: u32 = 3;

/// Zeroed memory, never freed: the tests are few and short.
fn memory(bytes: usize) -> NonNull<u8> {
    let layout = Layout::from_size_align(bytes, 4096).unwrap();
    // SAFETY: the size is not zero.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap()
}

/// The kernel side, as far as these tests need it.
struct KernelSide {
    memory: SharedMemory,
    ring: RingMemory,
}

impl KernelSide {
    fn new() -> (Self, Shared) {
        let memory = SharedMemory {
            mailboxes: memory(CPUS as usize * 64 * (1 + MAILBOX_SLOTS)),
            shared_mailbox: memory(64 * (1 + SHARED_MAILBOX_SLOTS)),
            cpus: memory(CPUS as usize * size_of::<CpuState>()).cast(),
            machine: memory(size_of::<MachineState>()).cast(),
            orders: memory(MAX_TASKS * 8).cast(),
            control: memory(size_of::<Control>()).cast(),
            nr_cpus: CPUS,
            agent_cpu: AGENT,
        };
        let ring = RingMemory {
            consumer: memory_word(),
            producer: memory_word(),
            data: self::memory(8192),
            size: 4096,
        };
        // SAFETY: fresh memory of the sizes told, never freed.
        let shared = unsafe { Shared::new(memory, [Ring::new(ring, CPUS)]) };
        (Self { memory, ring }, shared)
    }

    /// Publishes a record. The ring has room for 32 in all.
    fn tell(&self) {
        let task = QueuedTask::example(1, 1, 0, 4);
        // SAFETY: live.
        let producer = unsafe { self.ring.producer.as_ref() };
        let position = producer.load(Ordering::Relaxed);
        // SAFETY: within the data.
        let record: NonNull<[u64; 16]> = unsafe { self.ring.data.add(position as usize) }.cast();
        let mut words = [120; 16];
        words[1..].copy_from_slice(task.as_record());
        // SAFETY: within the data, and aligned.
        unsafe { record.write(words) };
        producer.store(position + 128, Ordering::Release);
    }

    /// What publish_idle() does.
    fn set_idle(&self, cpu: u32, idle: bool) {
        // SAFETY: within the array.
        let seq = unsafe { &self.memory.cpus.add(cpu as usize).as_ref().idle_seq };
        let odd = seq.load(Ordering::Relaxed) & 1 == 1;
        // SAFETY: live.
        let word = unsafe { &self.memory.machine.as_ref().idle[0] };
        match idle {
            true => word.fetch_or(1 << cpu, Ordering::Relaxed),
            false => word.fetch_and(!(1 << cpu), Ordering::Relaxed),
        };
        seq.fetch_add(if odd == idle { 2 } else { 1 }, Ordering::Relaxed);
    }

    fn kicks(&self, nr: u32) -> StdVec<u32> {
        // SAFETY: live.
        let control = unsafe { self.memory.control.as_ref() };
        assert_eq!(control.nr_kicks.load(Ordering::Relaxed), nr);
        control
            .kicks
            .iter()
            .take(nr as usize)
            .map(|kick| kick.load(Ordering::Relaxed))
            .collect()
    }
}

fn memory_word() -> NonNull<AtomicU64> {
    memory(4096).cast()
}

fn to(cpu: i32) -> DispatchedTask {
    DispatchedTask::new(&QueuedTask::example(1, 1, cpu, 4))
}

fn to_any() -> DispatchedTask {
    DispatchedTask {
        flags: RL_CPU_ANY,
        ..to(0)
    }
}

#[test]
fn a_busy_cpu_is_not_kicked_and_an_idle_one_once_per_idle_period() {
    let (kernel, mut shared) = KernelSide::new();
    shared.dispatch(&to(1)).unwrap();
    assert_eq!(shared.flush(), 0);
    kernel.set_idle(1, true);
    shared.dispatch(&to(1)).unwrap();
    let nr = shared.flush();
    assert_eq!(kernel.kicks(nr), [1]);
    shared.dispatch(&to(1)).unwrap();
    assert_eq!(shared.flush(), 0, "one is pending");
    // It looked, found nothing that it could run, and is idle still.
    kernel.set_idle(1, true);
    shared.dispatch(&to(1)).unwrap();
    let nr = shared.flush();
    assert_eq!(kernel.kicks(nr), [1]);
}

#[test]
fn a_cpu_that_goes_idle_between_dispatch_and_flush_is_kicked() {
    let (kernel, mut shared) = KernelSide::new();
    shared.dispatch(&to(2)).unwrap();
    kernel.set_idle(2, true);
    let nr = shared.flush();
    assert_eq!(kernel.kicks(nr), [2]);
}

#[test]
fn decisions_for_any_cpu_wake_as_many_idle_cpus_as_there_are_decisions() {
    let (kernel, mut shared) = KernelSide::new();
    for cpu in 0..3 {
        kernel.set_idle(cpu, true);
    }
    shared.dispatch(&to_any()).unwrap();
    shared.dispatch(&to_any()).unwrap();
    let nr = shared.flush();
    assert_eq!(kernel.kicks(nr).len(), 2);
    shared.dispatch(&to_any()).unwrap();
    shared.dispatch(&to_any()).unwrap();
    assert_eq!(shared.flush(), 1, "one was left");
    assert_eq!(shared.shared_backlog(), 4);
}

#[test]
fn an_idle_cpu_with_unread_mail_is_not_chosen() {
    let (kernel, mut shared) = KernelSide::new();
    kernel.set_idle(0, true);
    assert_eq!(shared.idle_cpu(0), Some(0));
    shared.dispatch(&to(0)).unwrap();
    shared.flush();
    // Idle anew, without having read: it is being taken offline.
    kernel.set_idle(0, false);
    kernel.set_idle(0, true);
    assert_eq!(shared.idle_cpu(0), None);
}

#[test]
fn claims_go_to_different_cpus_and_cores_and_none_to_the_schedulers_own() {
    let (kernel, mut shared) = KernelSide::new();
    // CPUs 0 and 1 are a core, 2 shares one with the scheduler thread.
    let places = [0, 0, 1, 1].map(|core| CpuPlace {
        core,
        ..CpuPlace::default()
    });
    shared.set_places(&places);
    for cpu in 0..CPUS {
        kernel.set_idle(cpu, true);
    }
    assert_eq!(shared.claim_idle_cpu(2), Some(2));
    assert_eq!(shared.claim_idle_cpu(2), Some(0), "a whole core");
    assert_eq!(shared.claim_idle_cpu(2), Some(1));
    assert_eq!(shared.claim_idle_cpu(2), None);
    // Mail for a claimed CPU needs no second kick.
    shared.dispatch(&to(0)).unwrap();
    let nr = shared.flush();
    assert_eq!(kernel.kicks(nr), [2, 0, 1]);
    // It found nothing to do.
    kernel.set_idle(2, true);
    assert_eq!(shared.claim_idle_cpu(-1), Some(2));
}

#[test]
fn a_cpu_struck_out_that_is_idle_anew_is_kicked_at_the_end_of_the_turn() {
    let (kernel, mut shared) = KernelSide::new();
    kernel.set_idle(0, true);
    assert_eq!(shared.claim_idle_cpu(0), Some(0));
    shared.flush();
    assert_eq!(shared.idle_cpu(0), None);
    kernel.set_idle(0, false);
    kernel.set_idle(0, true);
    shared.dispatch(&to_any()).unwrap();
    let nr = shared.flush();
    assert_eq!(kernel.kicks(nr), [0]);
}

#[test]
fn what_is_sent_to_the_schedulers_own_cpu_or_overflows_a_mailbox_goes_to_any() {
    let (_, mut shared) = KernelSide::new();
    shared.dispatch(&to(AGENT as i32)).unwrap();
    assert_eq!(shared.shared_backlog(), 1);
    for _ in 0..MAILBOX_SLOTS {
        shared.dispatch(&to(0)).unwrap();
    }
    assert_eq!(shared.shared_backlog(), 1);
    shared.dispatch(&to(0)).unwrap();
    shared.dispatch(&to(99)).unwrap();
    assert_eq!(shared.shared_backlog(), 3);
    assert_eq!(shared.backlog(), MAILBOX_SLOTS as u64 + 3);
}

/// The kernel side is in fallback, and its rings are never empty, for it tells of events.
#[test]
fn a_scheduler_that_has_read_what_a_takeover_left_has_caught_up() {
    let (kernel, mut shared) = KernelSide::new();
    let caught_up = || {
        // SAFETY: live.
        let control = unsafe { kernel.memory.control.as_ref() };
        control.caught_up.load(Ordering::Relaxed)
    };
    // SAFETY: live.
    let fallback = unsafe { &kernel.memory.machine.as_ref().fallback };
    kernel.tell();
    kernel.tell();
    for number in [1, 3] {
        fallback.store(number, Ordering::Relaxed);
        for _ in 0..2 {
            shared.flush();
            assert!(caught_up() < number);
            kernel.tell();
            assert_eq!(shared.drain(1, |_| ()), 1);
        }
        shared.flush();
        assert_eq!(caught_up(), number);
        fallback.store(number + 1, Ordering::Relaxed);
        shared.flush();
    }
}

#[test]
fn a_mailbox_that_another_process_wrote_into_is_found_within_so_many_turns() {
    for of in [MailboxOf::Cpu(1), MailboxOf::All] {
        let (kernel, mut shared) = KernelSide::new();
        let turns = u64::from(CPUS + 1) * TURNS_PER_CHECK;
        for _ in 0..turns {
            shared.dispatch(&to(1)).ok();
            shared.flush();
        }
        assert_eq!(shared.bad_mailbox(), None);
        let head: NonNull<AtomicU64> = match of {
            // SAFETY: within the mailboxes.
            MailboxOf::Cpu(cpu) => unsafe {
                let bytes = cpu as usize * 64 * (1 + MAILBOX_SLOTS);
                kernel.memory.mailboxes.add(bytes).cast()
            },
            MailboxOf::All => kernel.memory.shared_mailbox.cast(),
        };
        // SAFETY: live.
        unsafe { head.as_ref() }.store(1 << 40, Ordering::Relaxed);
        for _ in 0..turns {
            shared.flush();
        }
        assert_eq!(shared.bad_mailbox(), Some(of));
    }
}

/// Published, it must not come back as refused, though the lists of CPUs to kick have no more
/// room: the caller would send it twice.
#[test]
fn a_decision_is_published_once_though_no_kick_can_be_noted() {
    let (_, mut shared) = KernelSide::new();
    while shared.mailed.push(1).is_ok() {}
    while shared.kicks.push(1).is_ok() {}
    shared.dispatch(&to(1)).unwrap();
    shared
        .dispatch(&DispatchedTask {
            flags: RL_PREEMPT,
            ..to(1)
        })
        .unwrap();
    assert_eq!((shared.backlog_of(1), shared.shared_backlog()), (2, 0));
}

#[test]
fn full_mailboxes_give_the_decision_back() {
    let (_, mut shared) = KernelSide::new();
    let sent = [(); SHARED_MAILBOX_SLOTS]
        .iter()
        .filter(|()| shared.dispatch(&to_any()).is_ok())
        .count();
    assert_eq!(sent, SHARED_MAILBOX_SLOTS);
    assert!(shared.dispatch(&to_any()).is_err());
}
