//! The ring's reader against the kernel's writer, byte for byte: any sequence of what producers do
//! (`bpf_ringbuf_reserve`, `_submit`, `_discard` in `kernel/bpf/ringbuf.c`), in any interleaving,
//! with readings of any length in between.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;
use scx_metronome_core::QueuedTask;
use scx_metronome_core::ring::{Ring, RingMemory};

const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;
const NR_CPUS: u32 = 4;

/// The kernel's half: positions and data as the kernel lays them out. Words are atomic, as both
/// sides touch them; the second half of the data is kept equal to the first, as the same pages show
/// there.
struct Kernel {
    consumer: AtomicU64,
    producer: AtomicU64,
    data: Box<[AtomicU64]>,
}

impl Kernel {
    fn new(size: u64, start: u64) -> Self {
        Self {
            consumer: AtomicU64::new(start),
            producer: AtomicU64::new(start),
            data: (0..2 * size / 8).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn ring(&self) -> Ring {
        let memory = RingMemory {
            consumer: NonNull::from(&self.consumer),
            producer: NonNull::from(&self.producer),
            data: NonNull::from(&*self.data).cast(),
            size: self.size(),
        };
        // SAFETY: each test drops the ring before the kernel, and makes one only.
        unsafe { Ring::new(memory, NR_CPUS) }
    }

    fn size(&self) -> u64 {
        self.data.len() as u64 * 4
    }

    /// The word at a position, in both places where it shows.
    fn words(&self, position: u64) -> [&AtomicU64; 2] {
        let at = (position % self.size() / 8) as usize;
        [&self.data[at], &self.data[at + self.data.len() / 2]]
    }

    /// `__bpf_ringbuf_reserve()`: a busy header, then the producer's position. `None` if there is
    /// no room.
    fn reserve(&self, length: u32) -> Option<u64> {
        // ORDERING: acquire, with the ring's release of what it has read.
        let consumer = self.consumer.load(Ordering::Acquire);
        let at = self.producer.load(Ordering::Relaxed);
        let next = at.wrapping_add((u64::from(length) + 8).next_multiple_of(8));
        if next.wrapping_sub(consumer) > self.size() - 1 {
            return None;
        }
        self.write_header(at, length | BUSY);
        // ORDERING: release, with the ring's acquire of the position: the busy bit comes first.
        self.producer.store(next, Ordering::Release);
        Some(at)
    }

    fn fill(&self, at: u64, words: &[u64]) {
        for (i, word) in words.iter().enumerate() {
            for place in self.words(at.wrapping_add(8 + 8 * i as u64)) {
                place.store(*word, Ordering::Relaxed);
            }
        }
    }

    /// `bpf_ringbuf_commit()`, and the writing of the header by `__bpf_ringbuf_reserve()`.
    fn write_header(&self, at: u64, header: u32) {
        for word in self.words(at) {
            // ORDERING: release, with the ring's acquire of the header: the payload comes first.
            word.store(u64::from(header), Ordering::Release);
        }
    }
}

/// What happens next to the ring.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A producer gets room for this many bytes.
    Reserve(u32),
    /// The n-th of those that are still filling submits a task of this weight.
    Submit(usize, u32),
    /// The n-th of those gives up.
    Discard(usize),
    /// The reader takes so many.
    Drain(usize),
    Dequeue,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let length = prop_oneof![12 => Just(120_u32), 1 => 0..300_u32];
    let weight = prop_oneof![12 => 1..=10_000_u32, 1 => Just(0), 1 => Just(10_001)];
    let limit = prop_oneof![0..4_usize, Just(usize::MAX)];
    let step = prop_oneof![
        6 => length.prop_map(Step::Reserve),
        5 => (any::<usize>(), weight).prop_map(|(nth, weight)| Step::Submit(nth, weight)),
        1 => any::<usize>().prop_map(Step::Discard),
        2 => limit.prop_map(Step::Drain),
        1 => Just(Step::Dequeue),
    ];
    vec(step, 0..400)
}

fn starts() -> impl Strategy<Value = u64> {
    let anywhere = any::<u64>().prop_map(|start| start & !7);
    prop_oneof![Just(0), Just(u64::MAX - 255), Just(u64::MAX - 7), anywhere]
}

/// What a record became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Filling,
    Task,
    Refused,
    Discarded,
}

/// A record that the reader has not passed.
#[derive(Clone, Copy, Debug)]
struct Reserved {
    /// Counts up; the id and generation of the task.
    number: u32,
    at: u64,
    length: u32,
    state: State,
}

/// The ring, its kernel, and what the reader should find.
struct Model<'a> {
    kernel: &'a Kernel,
    ring: Ring,
    /// From the reader's position to the producer's.
    records: VecDeque<Reserved>,
    /// Records ever reserved.
    reserved: u32,
    discarded: u64,
    refused: u64,
}

impl Model<'_> {
    fn step(&mut self, step: Step) {
        match step {
            Step::Reserve(length) => self.reserve(length),
            Step::Submit(nth, weight) => self.submit(nth, weight),
            Step::Discard(nth) => self.discard(nth),
            Step::Drain(limit) => {
                let mut numbers = vec![];
                let taken = self.ring.drain(limit, |task| numbers.push(number_of(task)));
                assert_eq!(taken, numbers.len());
                assert_eq!(numbers, self.expect(limit));
            }
            Step::Dequeue => {
                let number = self.ring.dequeue().as_ref().map(number_of);
                assert_eq!(Vec::from_iter(number), self.expect(1));
            }
        }
        self.check();
    }

    fn reserve(&mut self, length: u32) {
        let room = self.kernel.size() - 1 - self.waiting() - self.untold();
        let whole = (u64::from(length) + 8).next_multiple_of(8);
        let at = self.kernel.reserve(length);
        assert_eq!(at.is_some(), whole <= room, "{length} bytes in {room}");
        if let Some(at) = at {
            self.records.push_back(Reserved {
                number: self.reserved,
                at,
                length,
                state: State::Filling,
            });
            self.reserved += 1;
        }
    }

    fn filling(&mut self, nth: usize) -> Option<&mut Reserved> {
        let filling = |record: &&mut Reserved| record.state == State::Filling;
        let number = self.records.iter_mut().filter(filling).count();
        let nth = nth.checked_rem(number)?;
        self.records.iter_mut().filter(filling).nth(nth)
    }

    fn submit(&mut self, nth: usize, weight: u32) {
        let kernel = self.kernel;
        let Some(record) = self.filling(nth) else {
            return;
        };
        let mut task = task(record.number);
        task.weight = weight;
        let words = (record.length as usize / 8).min(15);
        kernel.fill(record.at, &task.as_record()[..words]);
        kernel.write_header(record.at, record.length);
        let legal = record.length == 120 && (1..=10_000).contains(&weight);
        record.state = if legal { State::Task } else { State::Refused };
    }

    fn discard(&mut self, nth: usize) {
        let kernel = self.kernel;
        if let Some(record) = self.filling(nth) {
            kernel.write_header(record.at, record.length | DISCARD);
            record.state = State::Discarded;
        }
    }

    /// What the reader gets: up to `limit` tasks, but nothing from the first record on that is
    /// being filled.
    fn expect(&mut self, limit: usize) -> Vec<u32> {
        let mut numbers = vec![];
        while numbers.len() < limit {
            let Some(first) = self.records.front() else {
                break;
            };
            match first.state {
                State::Filling => break,
                State::Task => numbers.push(first.number),
                State::Refused => self.refused += 1,
                State::Discarded => self.discarded += 1,
            }
            self.records.pop_front();
        }
        numbers
    }

    /// Bytes between the reader and the producers.
    fn waiting(&self) -> u64 {
        let whole = |record: &Reserved| (u64::from(record.length) + 8).next_multiple_of(8);
        self.records.iter().map(whole).sum()
    }

    /// Bytes that have been read without the producers' having been told.
    fn untold(&self) -> u64 {
        let producer = self.kernel.producer.load(Ordering::Relaxed);
        let consumer = self.kernel.consumer.load(Ordering::Relaxed);
        producer.wrapping_sub(consumer) - self.waiting()
    }

    fn check(&self) {
        assert_eq!(self.ring.backlog_bytes(), self.waiting());
        assert!(self.untold() < self.kernel.size() / 8);
        let counts = self.ring.counts();
        assert_eq!(
            (counts.discarded, counts.refused, counts.resyncs),
            (self.discarded, self.refused, 0)
        );
    }
}

fn task(number: u32) -> QueuedTask {
    let cpu = (number % NR_CPUS) as i32;
    let mut task = QueuedTask::example(number % 65_536, number, cpu, 4);
    task.vtime = u64::from(number) << 32;
    task.nvcsw = !u64::from(number);
    task
}

/// Which of the tasks it is, by all of its bytes.
fn number_of(found: &QueuedTask) -> u32 {
    let mut expected = task(found.generation);
    expected.weight = found.weight;
    assert_eq!(found.as_record(), expected.as_record());
    found.generation
}

proptest! {
    #[test]
    fn whatever_producers_do_the_reader_gets_their_tasks_in_order(
        size in 6..=12_u32,
        start in starts(),
        steps in steps(),
    ) {
        let kernel = Kernel::new(1 << size, start);
        let mut model = Model {
            ring: kernel.ring(),
            kernel: &kernel,
            records: VecDeque::new(),
            reserved: 0,
            discarded: 0,
            refused: 0,
        };
        for step in steps {
            model.step(step);
        }
        // All producers come to an end, and all is read.
        while model.filling(0).is_some() {
            model.step(Step::Submit(0, 1));
        }
        model.step(Step::Drain(usize::MAX));
        prop_assert_eq!(model.waiting(), 0);
    }
}

/// Reader and writer at the same time. A word that is read too early or overwritten too early shows
/// in the record, and as a data race in the thread sanitizer.
#[test]
fn a_reader_beside_a_writer_gets_every_task_whole() {
    const TASKS: u32 = 20_000;
    let kernel = Kernel::new(1024, u64::MAX - 1023);
    let mut ring = kernel.ring();
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..TASKS {
                let at = loop {
                    match kernel.reserve(120) {
                        Some(at) => break at,
                        None => thread::yield_now(),
                    }
                };
                kernel.fill(at, task(number).as_record());
                kernel.write_header(at, if number % 7 == 6 { 120 | DISCARD } else { 120 });
            }
        });
        let mut expected = (0..TASKS).filter(|number| number % 7 != 6);
        let mut left = expected.clone().count();
        while left > 0 {
            let taken = ring.drain(3, |task| assert_eq!(Some(number_of(task)), expected.next()));
            left -= taken;
            if taken == 0 {
                thread::yield_now();
            }
        }
    });
    assert_eq!(ring.counts().refused, 0);
    assert_eq!(ring.counts().resyncs, 0);
}
