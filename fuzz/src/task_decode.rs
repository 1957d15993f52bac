//! Any 120 bytes as a record: they are a task if and only if each field is in its documented range,
//! and then the task says what the bytes say.

use scx_metronome_core::task::Record;
use scx_metronome_core::{DispatchedTask, QueuedTask};

/// Bytes of a record.
pub const BYTES: usize = size_of::<Record>();

/// The machine that the record is said to come from.
const NR_CPUS: u32 = 64;

/// Decodes the first 120 bytes, those that are missing being 0.
pub fn run(input: &[u8]) {
    let mut bytes = [0; BYTES];
    let length = input.len().min(BYTES);
    bytes[..length].copy_from_slice(&input[..length]);
    let record = words(&bytes);

    for nr_cpus in [0, 1, NR_CPUS, u32::MAX] {
        let task = QueuedTask::from_record(&record, nr_cpus);
        assert_eq!(
            task.is_ok(),
            is_legal(&bytes, nr_cpus),
            "{nr_cpus} CPUs: {task:?}"
        );
        if let Ok(task) = task {
            says_what_the_bytes_say(task, &bytes);
        }
    }
}

/// Whether `bpf/abi.h` allows these values.
pub fn is_legal(bytes: &[u8; BYTES], nr_cpus: u32) -> bool {
    let cpu = field::<4>(bytes, 16);
    let weight = field::<4>(bytes, 32);
    field::<4>(bytes, 0) < 65_536
        && cpu < 1 << 31
        && cpu < u64::from(nr_cpus)
        && (1..=13).contains(&field::<2>(bytes, 20))
        && field::<2>(bytes, 22) >= 1
        && (1..=10_000).contains(&weight)
}

fn says_what_the_bytes_say(task: &QueuedTask, bytes: &[u8; BYTES]) {
    assert_eq!(&bytes_of(task), bytes);

    assert_eq!(u64::from(task.id), field::<4>(bytes, 0));
    assert_eq!(u64::from(task.generation), field::<4>(bytes, 4));
    assert_eq!(u64::from(task.pid as u32), field::<4>(bytes, 8));
    assert_eq!(u64::from(task.tgid as u32), field::<4>(bytes, 12));
    assert_eq!(u64::from(task.cpu as u32), field::<4>(bytes, 16));
    assert_eq!(u64::from(task.nr_cpus_allowed), field::<2>(bytes, 22));
    assert_eq!(u64::from(task.weight), field::<4>(bytes, 32));
    let share = match field::<4>(bytes, 36) {
        0 => 1024 * u64::from(task.weight),
        share => share,
    };
    assert_eq!(task.share(), share);
    let words = [
        task.flags,
        field::<8>(bytes, 32),
        task.enqueued_at,
        task.start_ts,
        task.stop_ts,
        task.exec_runtime,
        task.sum_exec_runtime,
        task.nvcsw,
        u64::from(task.slice) | u64::from(task.waker as u32) << 32,
        task.vtime,
    ];
    for (i, word) in words.into_iter().enumerate() {
        assert_eq!(word, field::<8>(bytes, 24 + 8 * i));
    }

    let comm = &bytes[104..];
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(16);
    assert_eq!(
        task.comm_str(),
        core::str::from_utf8(&comm[..end]).unwrap_or("")
    );
    assert_eq!(task.is_wakeup(), bytes[24] & 1 == 1);
    assert_eq!(task.kind() as u64, field::<2>(bytes, 20));
    assert_eq!(u64::from(task.epoch()), field::<4>(bytes, 4) >> 20);
    assert_eq!(task.wake_flags(), u64::from(bytes[30]));

    let decision = DispatchedTask::new(task);
    assert_eq!(
        (decision.pid, decision.cpu, decision.flags),
        (task.pid, task.cpu, 0)
    );
}

/// The record as the ring has it.
pub fn words(bytes: &[u8; BYTES]) -> Record {
    let mut record = Record::default();
    for (word, bytes) in record.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    record
}

/// The bytes that a task was made of.
pub fn bytes_of(task: &QueuedTask) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(task.as_record()) {
        *bytes = word.to_ne_bytes();
    }
    bytes
}

/// An unsigned integer of `N` bytes at an offset. Little-endian, as every machine that sched_ext
/// runs on.
fn field<const N: usize>(bytes: &[u8; BYTES], offset: usize) -> u64 {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(&bytes[offset..offset + N]);
    u64::from_le_bytes(wide)
}
