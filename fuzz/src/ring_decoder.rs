//! Any bytes and any positions as a ring: what comes out, what is counted and where the reader
//! stands agree with a model that walks the same bytes.
//!
//! The ring is allocated with not a byte to spare, so that the address sanitizer sees every read
//! outside.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use scx_metronome_core::ring::{Ring, RingCounts, RingMemory};

use super::task_decode::{BYTES, bytes_of, is_legal};

/// A ring and what happens to it. As bytes, little-endian:
///
/// | bytes  | |
/// |--------|-----------------------------------------------------------------|
/// | 0..8   | the consumer's position                                         |
/// | 8..16  | how far the producer is ahead of it; anything, even "behind"    |
/// | 16..24 | how far the producer goes on after the first reading            |
/// | 24     | the ring's size: `8 << (n % 10)`, 8 to 4,096 bytes               |
/// | 25     | CPUs of the machine                                             |
/// | 26     | how many tasks the first reading takes at most                  |
/// | 27..32 | nothing                                                         |
/// | 32..   | the ring from its offset 0; cut to its size, or filled with 0    |
#[derive(Clone, Debug)]
pub struct Input {
    pub consumer: u64,
    pub ahead: u64,
    pub further: u64,
    pub size: u8,
    pub nr_cpus: u8,
    pub limit: u8,
    pub data: Vec<u8>,
}

const HEAD: usize = 32;

impl Input {
    /// `None` if the bytes are too few.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, data) = bytes.split_first_chunk::<HEAD>()?;
        let [consumer, ahead, further] =
            [0, 1, 2].map(|i| u64::from_le_bytes(head.as_chunks().0[i]));
        let mut input = Self {
            consumer,
            ahead,
            further,
            size: head[24] % 10,
            nr_cpus: head[25],
            limit: head[26],
            data: data.to_vec(),
        };
        input.data.resize(8 << input.size, 0);
        Some(input)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = [self.consumer, self.ahead, self.further]
            .into_iter()
            .flat_map(u64::to_le_bytes)
            .collect();
        bytes.extend([self.size, self.nr_cpus, self.limit]);
        bytes.resize(HEAD, 0);
        bytes.extend(&self.data);
        bytes
    }
}

/// Reads such a ring twice.
pub fn run(bytes: &[u8]) {
    let Some(input) = Input::decode(bytes) else {
        return;
    };
    let words = || input.data.as_chunks().0.iter().copied();
    let data: Box<[u64]> = words().chain(words()).map(u64::from_ne_bytes).collect();
    let consumer = AtomicU64::new(input.consumer);
    let producer = AtomicU64::new(input.consumer.wrapping_add(input.ahead));
    let memory = RingMemory {
        consumer: NonNull::from(&consumer),
        producer: NonNull::from(&producer),
        data: NonNull::from(&*data).cast(),
        size: input.data.len() as u64,
    };
    // SAFETY: all of it outlives the ring and is written by this thread only, when the ring is not
    // reading.
    let mut ring = unsafe { Ring::new(memory, u32::from(input.nr_cpus)) };
    let mut model = Model::new(&input);

    for limit in [usize::from(input.limit), usize::MAX] {
        let end = producer.load(Ordering::Relaxed);
        assert_eq!(ring.backlog_bytes(), end.wrapping_sub(model.position));
        let mut tasks = vec![];
        let taken = ring.drain(limit, |task| tasks.push(bytes_of(task)));
        assert_eq!(taken, tasks.len());
        assert_eq!(tasks, model.drain(end, limit));
        // The producers are told now and then, and when asked for.
        let untold = model
            .position
            .wrapping_sub(consumer.load(Ordering::Relaxed));
        assert!(untold < input.data.len() as u64 / 8);
        ring.release();
        assert_eq!(consumer.load(Ordering::Relaxed), model.position);
        model.assert_counts(ring.counts());
        producer.store(end.wrapping_add(input.further), Ordering::Relaxed);
    }
}

/// The reader, byte by byte.
struct Model<'a> {
    data: &'a [u8],
    nr_cpus: u32,
    position: u64,
    discarded: u64,
    refused: u64,
    resyncs: u64,
}

enum Found {
    Nothing,
    Task([u8; BYTES]),
    Discarded,
    Bad,
    Unreadable,
}

impl<'a> Model<'a> {
    fn new(input: &'a Input) -> Self {
        Self {
            data: &input.data,
            nr_cpus: u32::from(input.nr_cpus),
            position: input.consumer,
            discarded: 0,
            refused: 0,
            resyncs: 0,
        }
    }

    fn drain(&mut self, producer: u64, limit: usize) -> Vec<[u8; BYTES]> {
        let mut tasks = vec![];
        // Impossible positions are seen even by a reader that wants no task.
        if !self.is_possible(producer) {
            self.resyncs += 1;
            self.position = producer;
        }
        while tasks.len() < limit {
            let (found, next) = self.find(producer);
            match found {
                Found::Nothing => break,
                Found::Task(task) => tasks.push(task),
                Found::Discarded => self.discarded += 1,
                Found::Bad => self.refused += 1,
                Found::Unreadable => self.resyncs += 1,
            }
            self.position = next;
        }
        tasks
    }

    /// A producer never fills the last byte.
    fn is_possible(&self, producer: u64) -> bool {
        let waiting = producer.wrapping_sub(self.position);
        let is_aligned = producer.is_multiple_of(8) && self.position.is_multiple_of(8);
        waiting == 0 || (waiting < self.data.len() as u64 && is_aligned)
    }

    /// What is at the position, and the position behind it.
    fn find(&self, producer: u64) -> (Found, u64) {
        let waiting = producer.wrapping_sub(self.position);
        if waiting == 0 {
            return (Found::Nothing, self.position);
        }
        let header = u32::from_le_bytes(self.bytes(0));
        if header >> 31 == 1 {
            return (Found::Nothing, self.position);
        }
        let discarded = header >> 30 == 1;
        let length = u64::from(header & 0x3fff_ffff);
        let whole = 8 + length.div_ceil(8) * 8;
        let next = self.position.wrapping_add(whole);
        if whole > waiting {
            (Found::Unreadable, producer)
        } else if discarded {
            (Found::Discarded, next)
        } else if length == BYTES as u64 && is_legal(&self.bytes(8), self.nr_cpus) {
            (Found::Task(self.bytes(8)), next)
        } else {
            (Found::Bad, next)
        }
    }

    /// The bytes from there on, around the ring's end.
    fn bytes<const N: usize>(&self, offset: u64) -> [u8; N] {
        let start = self.position.wrapping_add(offset) as usize;
        std::array::from_fn(|i| self.data[start.wrapping_add(i) % self.data.len()])
    }

    fn assert_counts(&self, counts: RingCounts) {
        assert_eq!(
            (counts.discarded, counts.refused, counts.resyncs),
            (self.discarded, self.refused, self.resyncs)
        );
        assert_eq!(counts.last_refused.is_some(), self.refused > 0);
    }
}
