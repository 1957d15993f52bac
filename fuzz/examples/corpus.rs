//! Writes the corpus of both decoders from records, a line of hex each on stdin: as they are, and
//! in rings in every state that the kernel leaves them in. And that of a turn: what happens on a
//! busy machine, of several kinds.

use std::fs;
use std::io;
use std::path::Path;

use scx_metronome_fuzz::ring_decoder::Input;
use scx_metronome_fuzz::task_decode::BYTES;

const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;
/// With its header a record takes 128 bytes.
const WHOLE: usize = BYTES + 8;

type Record = [u8; BYTES];

fn main() -> io::Result<()> {
    let records: Vec<Record> = io::stdin()
        .lines()
        .map(|line| parse(&line?))
        .collect::<io::Result<_>>()?;
    for (i, record) in records.iter().enumerate() {
        write("task_decode", "kernel", i, record)?;
    }
    for (i, ring) in rings(&records).iter().enumerate() {
        write("ring_decoder", "kernel", i, &ring.encode())?;
    }
    for (i, events) in turns().iter().enumerate() {
        write("turn", "machine", i, events)?;
    }
    Ok(())
}

fn parse(line: &str) -> io::Result<Record> {
    let byte = |at: usize| u8::from_str_radix(line.get(2 * at..2 * at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..BYTES).map(byte).collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| io::Error::other(format!("not {BYTES} bytes in hex: {line}")))
}

fn write(target: &str, kind: &str, number: usize, bytes: &[u8]) -> io::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&directory)?;
    fs::write(directory.join(format!("{kind}-{number:02}")), bytes)
}

fn rings(records: &[Record]) -> Vec<Input> {
    let published = |record: &Record| (BYTES as u32, *record);
    let mut rings = vec![];
    // Published, from the start of the ring, from its last record on, and where positions wrap.
    for (some, start) in records
        .chunks(4)
        .zip([0, 896, u64::MAX - 127].into_iter().cycle())
    {
        let some: Vec<_> = some.iter().map(published).collect();
        rings.push(ring(start, 7, &some));
    }
    let Some(&[a, b, c]) = records.first_chunk() else {
        return rings;
    };
    let [a, b, c] = [a, b, c].map(|record| published(&record));
    let given_up = (BYTES as u32 | DISCARD, b.1);
    let busy = (BYTES as u32 | BUSY, b.1);
    let shorter = (BYTES as u32 - 8, b.1);
    let longer = (4096, b.1);
    for second in [given_up, busy, shorter, longer] {
        rings.push(ring(0, 7, &[a, second, c]));
    }
    // As full as can be, and as much again in a second reading.
    let mut full = ring(256, 6, &[a, b, c]);
    full.further = full.ahead;
    rings.push(full.clone());
    // What a broken position looks like: not a multiple of 8, further than the ring is long, behind
    // the reader.
    for ahead in [full.ahead - 4, full.ahead + 128, 0_u64.wrapping_sub(128)] {
        rings.push(Input {
            ahead,
            ..full.clone()
        });
    }
    rings
}

/// A ring of `8 << size` bytes with these records, each with its header's first word, as the kernel
/// would lay them.
fn ring(start: u64, size: u8, records: &[(u32, Record)]) -> Input {
    let mut data = vec![0; 8 << size];
    for (i, (header, record)) in records.iter().enumerate() {
        let whole = header
            .to_le_bytes()
            .into_iter()
            .chain([0; 4])
            .chain(*record);
        let at = start.wrapping_add((i * WHOLE) as u64) as usize;
        for (j, byte) in whole.enumerate() {
            let length = data.len();
            data[at.wrapping_add(j) % length] = byte;
        }
    }
    Input {
        consumer: start,
        ahead: (records.len() * WHOLE) as u64,
        further: 0,
        size,
        nr_cpus: 8,
        limit: 2,
        data,
    }
}

/// The first byte of the four that stand for an event.
mod kind {
    pub const WAKE: u8 = 0;
    pub const BACK: u8 = 6;
    pub const LATE: u8 = 7;
    pub const SLEEP: u8 = 8;
    pub const SLICE_ENDS: u8 = 11;
    pub const TICK: u8 = 14;
    pub const EXIT: u8 = 16;
    pub const SET_AFFINITY: u8 = 17;
    pub const SET_WEIGHT: u8 = 18;
    pub const TURN: u8 = 19;
    pub const PASS: u8 = 26;
    pub const HOLD: u8 = 27;
    pub const RELEASE: u8 = 28;
    pub const DISCARD: u8 = 29;
    pub const SCRIBBLE: u8 = 30;
    pub const MISPLACE: u8 = 31;
}

/// Machines with 3 and 71 CPUs, and the usual policy or one that puts tasks in every place, in
/// which twice as many tasks as CPUs wake, run, and change in one way or another.
fn turns() -> Vec<Vec<u8>> {
    use kind::*;
    let changes = [
        (SLEEP, 0, 0),
        (EXIT, 0, 0),
        (SET_AFFINITY, 0b10, 0),
        (SET_WEIGHT, 0x10, 0x27),
        (HOLD, 0, 0),
        (DISCARD, 0, 0),
        (SCRIBBLE, 0x1c, 0),
        (MISPLACE, 0x10, 0),
        (TICK, 0, 0),
        (LATE, 0, 0),
    ];
    let mut turns = vec![];
    for (cpus, every_place, change) in [(3_u8, 0), (71, 0), (3, 2), (71, 2)]
        .iter()
        .flat_map(|(cpus, policy)| changes.map(|change| (*cpus, *policy, change)))
    {
        let tasks = 2 * cpus;
        let faults = u8::from(matches!(change.0, SCRIBBLE | MISPLACE));
        let mut bytes = vec![cpus - 2, tasks - 1, cpus & 4, every_place | faults];
        let mut happens = |kind, a, b, c| bytes.extend([kind, a, b, c]);
        for task in 0..tasks {
            happens(WAKE, task, 0, 0);
        }
        for round in 0..4 {
            happens(TURN, 0, 0, 0);
            happens(PASS, 0, 0, 4);
            happens(change.0, round, change.1, change.2);
            happens(SLICE_ENDS, round, 0, 0);
            happens(SLEEP, round + 1, 0, 0);
            happens(WAKE, round, 0, 0);
            happens(RELEASE, 0, 0, 0);
            happens(BACK, 0, 0, 0);
        }
        turns.push(bytes);
    }
    turns
}
