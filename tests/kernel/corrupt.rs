//! Rings and mailboxes with bytes that a stranger wrote. The kernel lets only BPF programs write
//! into a ring, so one of our own does:
//! `testbed/bpf/spoil.bpf.c`, which is given the scheduler's.

use std::mem::MaybeUninit;

use libbpf_rs::ProgramInput;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use scx_metronome_core::abi::MAX_TASKS;
use scx_metronome_core::task::QueuedTask;
use testbed::spoil::SpoilSkelBuilder;

use super::inject::{Mailboxes, Pauses, Words, map_of_scheduler, saturate};
use super::*;

const BYTES: usize = size_of::<QueuedTask>();

/// What stands for a task that runs on any CPU.
fn record(id: u32, generation: u32) -> [u8; BYTES] {
    let task = QueuedTask::example(id, generation, 0, cpus() as u16);
    let mut bytes = [0; BYTES];
    for (to, word) in bytes.chunks_mut(8).zip(task.as_record()) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Writes records into the ring of the scheduler that is loaded, each of this length or the next
/// shorter one.
fn write_records(records: &mut [[u8; BYTES]], is_short: bool) {
    let (ring, _) = map_of_scheduler("ring");
    let mut object = MaybeUninit::uninit();
    let mut open = SpoilSkelBuilder::default().open(&mut object).unwrap();
    open.maps.ring.reuse_fd(ring.as_fd()).unwrap();
    let skel = open.load().unwrap();
    let program = if is_short {
        &skel.progs.write_short_record
    } else {
        &skel.progs.write_record
    };
    for bytes in records {
        let input = ProgramInput {
            context_in: Some(bytes),
            ..ProgramInput::default()
        };
        assert_eq!(program.test_run(input).unwrap().return_value, 0);
    }
}

/// A well-formed record with other bytes at one place.
fn with_bytes(at: usize, bytes: &[u8]) -> impl FnOnce() {
    let mut record = record(1, 1 << 20);
    record[at..at + bytes.len()].copy_from_slice(bytes);
    move || write_records(&mut [record], false)
}

/// The kernel then takes the ring for full: a scheduler that did not look would never hear of a
/// task again.
fn move_position() {
    let (ring, _) = map_of_scheduler("ring");
    Words::map(&ring, 4096)[0].fetch_add(0x1234_5678_9abc_def0, Ordering::Relaxed);
}

/// The scheduler is told of something that cannot be; it ends by itself and says what it was.
fn assert_it_ends(what: &str, spoil: impl FnOnce(), says: &str) {
    let ended = end_by(what, spoil, says);
    assert!(
        ended.stderr.contains("accounting balances"),
        "{}",
        ended.stderr
    );
}

/// The same, whatever has become of its accounting.
fn end_by(what: &str, spoil: impl FnOnce(), says: &str) -> Ended {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let pause = Pauses::of_heartbeat(|| {
        spoil();
        wait_for(what, Duration::from_secs(30), || state() == "disabled");
    });
    let ended = scheduler.wait();
    println!("{what}: {pause}: {}", ended.stderr.lines().last().unwrap());
    assert_eq!(ended.status.code(), Some(1), "{what}: {}", ended.stderr);
    let complaints = ended.stderr.lines().filter(|line| line.contains(says));
    assert_eq!(complaints.count(), 1, "{what}: {}", ended.stderr);
    pause.assert_heartbeat_short(what);
    ended
}

/// What else may be wrong with one is refused by the same check, whose tests are in `src/task.rs`.
#[test]
fn a_record_that_cannot_be_ends_the_scheduler_and_no_task_waits() {
    let mut load = saturate();
    let id = (MAX_TASKS as u32).to_ne_bytes();
    assert_it_ends("a bad id", with_bytes(0, &id), "1 refused (Id)");
    let short = || write_records(&mut [record(1, 1 << 20)], true);
    assert_it_ends("a bad length", short, "1 refused (Length)");
    load.assert_running();
}

#[test]
fn a_position_that_another_process_wrote_ends_the_scheduler_and_no_task_waits() {
    let mut load = saturate();
    assert_it_ends("a wrong position", move_position, "1 positions moved");
    load.assert_running();
}

/// The kernel side would take nothing more from it, or the scheduler find it full for ever.
#[test]
fn a_mailbox_that_another_process_wrote_into_ends_the_scheduler_and_no_task_waits() {
    let mut load = saturate();
    let says = "the mailbox of CPU 1 holds a position that neither side wrote";
    let move_head = || {
        Mailboxes::of_scheduler().of(1)[0].fetch_add(1 << 40, Ordering::Relaxed);
    };
    end_by("a head too far", move_head, says);
    let fill = || {
        for slot in Mailboxes::of_scheduler().of(1)[8..].chunks(8) {
            slot[0].store(1 << 50, Ordering::Relaxed);
        }
    };
    end_by("slots of no position", fill, says);
    let shared = || {
        let (map, size) = map_of_scheduler("shared_mailbox");
        Words::map(&map, size)[0].fetch_add(1 << 40, Ordering::Relaxed);
    };
    end_by("the shared one", shared, "the mailbox of all CPUs holds");
    load.assert_running();
}

#[test]
fn records_that_name_no_task_or_an_enqueue_that_is_over_are_harmless_and_counted() {
    let scheduler = Scheduler::start("scx_metronome", &["--stats", "0.1"]);
    let mut load = saturate();
    // Those who live have the lowest ids. No enqueue has the number 0.
    let mut records: Vec<_> = (0..100)
        .chain(MAX_TASKS as u32 - 100..MAX_TASKS as u32)
        .map(|id| record(id, 1 << 20))
        .collect();
    let pause = Pauses::of_heartbeat(|| {
        write_records(&mut records, false);
        thread::sleep(Duration::from_millis(500));
    });
    assert_eq!(state(), "enabled");
    load.assert_running();
    let ended = scheduler.stop(libc::SIGINT);
    assert!(ended.status.success(), "{}", ended.stderr);
    let (stale, late) = (
        total(&ended.stdout, "stale"),
        total(&ended.stdout, "too-late"),
    );
    println!("records of no task: {pause}, stale {stale}, too late {late}");
    // The kernel side counted those that it wrote itself, and no others are missing.
    let accounting = ended.accounting();
    assert_eq!(
        accounted(&accounting),
        accounting["queued"] + records.len() as u64,
        "{accounting:?}"
    );
    assert!(late >= 100 && stale > 10, "{}", ended.stdout);
    pause.assert_heartbeat_short("records of no task");
}
