//! Kernel to user: the consumer of the BPF ring buffer that carries waiting tasks.
//!
//! # Problem
//! Each task that waits for a CPU is announced by one record of `BPF_MAP_TYPE_RINGBUF`. The
//! scheduler thread must see it within a cache-line transfer of its being published and must not
//! pay for anything but the record itself.
//!
//! Two ways that fail: `ring_buffer__consume()` calls back through C for each record and copies on
//! the way; epoll adds a system call, and a wake-up by inter-processor interrupt in the producer.
//!
//! # Mechanism
//! The ring is three pieces of memory: the consumer position (a page we may write), the producer
//! position (a page we may read), and the data, mapped twice in a row so that a record is
//! contiguous wherever it begins. Positions are byte counts that only grow. A record is a header of
//! 8 bytes and its payload, padded to 8:
//!
//! | header, first word        | meaning                                                            |
//! |---------------------------|--------------------------------------------------------------------|
//! | `BUSY \| length`           | reserved, being filled: it and all behind it are not ours yet        |
//! | `DISCARD \| length`        | given up by its producer: skip                                      |
//! | `length`                  | published                                                          |
//!
//! Between publication and the moment our position passes it, the kernel does not touch a record:
//! it is read in place.
//!
//! # Orderings
//! We own the consumer position; its store is a release, for `__bpf_ringbuf_reserve()` reads it by
//! acquire before it overwrites what we have read. The producer position and the header are
//! foreign. Loading the position by acquire pairs with the `smp_store_release()` in
//! `__bpf_ringbuf_reserve()`: the header behind it is seen with its busy bit set. Loading
//! the header by acquire pairs with the `xchg()` in `bpf_ringbuf_commit()`: once the bit is clear,
//! the payload is there. (Kernel file: `kernel/bpf/ringbuf.c`.)
//!
//! `make loom` runs this against a model of reserve and commit, and shows that none of the three
//! can be weaker (`src/models.rs`: two CPUs with four records between them and up to two
//! preemptions; one CPU that goes round a ring of two records, and up to three).
//!
//! # Cost
//! Three cache lines come over from the producer: its position, once for all records that are taken
//! in one call, and for each of them the two that it fills with its header. We write one line, the
//! consumer position, and only for each eighth of the ring. What a record costs: `cargo bench
//! --bench ring`, and the way between two CPUs `cargo bench --bench hop`.
//!
//! # Trust
//! None (Invariant 5). A record with impossible contents is refused and counted. Positions or
//! lengths that cannot be make the ring unreadable: the rest is skipped, and counted as a
//! resynchronisation. A consumer position that is not ours makes the ring full in the kernel's
//! eyes, until it is put right: it shows in the counts. The tasks behind either are
//! still on a DSQ of the kernel (Invariant 3), but the policy will not hear of them: the caller
//! should end the scheduler.
#![deny(clippy::indexing_slicing)]

use core::fmt;
use core::mem::size_of;
use core::ptr::NonNull;

use crate::sync::{AtomicU32, AtomicU64, Guard, Ordering, order};
use crate::task::{BadRecord, QueuedTask, Record};

const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;
const HEADER: u64 = 8;

/// So much of the ring may have been read without the producers' being told.
const RELEASE_PART: u64 = 8;

/// Where the three pieces of a mapped ring are.
#[derive(Clone, Copy, Debug)]
pub struct RingMemory {
    /// The consumer position, which we write.
    pub consumer: NonNull<AtomicU64>,
    /// The producer position, which the kernel writes.
    pub producer: NonNull<AtomicU64>,
    /// `2 * size` bytes, the second half a mirror of the first; aligned to 8.
    pub data: NonNull<u8>,
    /// Bytes, a power of two.
    pub size: u64,
}

/// What `data` consists of in the models, whose records have all the same length. There is no
/// second mapping.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct ModelRecord {
    pub(crate) header: AtomicU32,
    pub(crate) payload: loom::cell::UnsafeCell<Record>,
}

#[cfg(loom)]
impl ModelRecord {
    /// Tells loom that the payload is read.
    fn read(&self) -> NonNull<Record> {
        // SAFETY: live.
        self.payload.with(|at| NonNull::from(unsafe { &*at }))
    }
}

/// What a ring has seen that was no task. All zero in a healthy system, `discarded` aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounts {
    /// Records that their producer gave up.
    pub discarded: u64,
    /// Records with impossible contents.
    pub refused: u64,
    /// What was wrong with the last of them.
    pub last_refused: Option<BadRecord>,
    /// Times that the ring was unreadable and all in it was skipped.
    pub resyncs: u64,
    /// Whether the consumer position, which is ours, is not where we left it; in a sum, of how
    /// many rings.
    pub moved: u64,
}

impl RingCounts {
    /// The sum of two rings' counts.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            discarded: self.discarded + other.discarded,
            refused: self.refused + other.refused,
            last_refused: other.last_refused.or(self.last_refused),
            resyncs: self.resyncs + other.resyncs,
            moved: self.moved + other.moved,
        }
    }

    /// Whether anything was seen that no kernel side of ours and no consumer of ours does.
    pub fn are_bad(&self) -> bool {
        self.refused != 0 || self.resyncs != 0 || self.moved != 0
    }
}

impl fmt::Display for RingCounts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} refused", self.refused)?;
        if let Some(bad) = self.last_refused {
            write!(out, " ({bad:?})")?;
        }
        write!(
            out,
            ", {} unreadable, {} positions moved",
            self.resyncs, self.moved
        )
    }
}

/// The consumer side of one ring. There must be no other.
#[derive(Debug)]
pub struct Ring {
    memory: RingMemory,
    /// Where the next record begins. The shared consumer position is at most this.
    position: u64,
    /// How far the producers have been told that we have read.
    released: u64,
    nr_cpus: u32,
    counts: RingCounts,
}

// SAFETY: the pointers are to shared memory that any thread may access, and `&mut self` keeps
// consumers one at a time.
unsafe impl Send for Ring {}

/// The record behind one, if there is any: published or not, well formed or not.
#[derive(Clone, Copy, Debug)]
pub struct Next<'a>(Option<&'a AtomicU32>);

impl Next<'_> {
    /// Which task it is about, probably: any number. Memory may be fetched for it, no more.
    ///
    /// # Cost
    /// A load of a line that is needed soon.
    #[inline(always)]
    pub fn id(self) -> Option<u32> {
        // ORDERING: relaxed: a guess. The partner is fill_record() in bpf/records.h.
        Some(self.0?.load(Ordering::Relaxed))
    }
}

/// What is at the read position.
enum Item<'a> {
    Busy,
    Task(&'a QueuedTask),
    Discarded,
    Bad(BadRecord),
    Unreadable,
}

impl Ring {
    /// Takes over a mapped ring at its current consumer position.
    ///
    /// `nr_cpus` is the bound of CPU numbers in records.
    ///
    /// # Safety
    /// Until the ring is dropped, `memory` must describe live mappings of one BPF ring buffer (or
    /// of memory that is written by its protocol), readable for `2 * size` bytes from `data`,
    /// whose consumer position no other code writes.
    pub unsafe fn new(memory: RingMemory, nr_cpus: u32) -> Self {
        // SAFETY: live and aligned by the caller's word.
        // ORDERING: relaxed: no other thread writes it, and what __bpf_ringbuf_reserve() reads of
        // it says nothing yet.
        let position = unsafe { memory.consumer.as_ref() }.load(Ordering::Relaxed);
        Self {
            memory,
            position,
            released: position,
            nr_cpus,
            counts: RingCounts::default(),
        }
    }

    /// What was seen besides tasks.
    ///
    /// # Cost
    /// A load of the consumer position.
    pub fn counts(&self) -> RingCounts {
        // SAFETY: live and aligned by the contract of `new`.
        let consumer = unsafe { self.memory.consumer.as_ref() };
        // ORDERING: relaxed: we alone write it, and a stranger that does keeps no order.
        // __bpf_ringbuf_reserve() only reads it.
        let is_moved = consumer.load(Ordering::Relaxed) != self.released;
        RingCounts {
            moved: u64::from(is_moved),
            ..self.counts
        }
    }

    /// Bytes between the read position and the producer's: 0 means empty. May be outdated at once.
    ///
    /// # Cost
    /// A load of the producer position: a miss if anything was written since the last.
    pub fn backlog_bytes(&self) -> u64 {
        self.producer().wrapping_sub(self.position)
    }

    /// The position behind what is there.
    pub(crate) fn end(&self) -> u64 {
        self.producer()
    }

    /// Whether all before a position has been read.
    pub(crate) fn has_passed(&self, position: u64) -> bool {
        self.position.wrapping_sub(position) <= u64::MAX / 2
    }

    /// Hands each waiting record to `each`, in place, at most `limit` of them; returns how many.
    ///
    /// # Cost
    /// One load of the producer position in all; per record one atomic load and the check; a store
    /// of the consumer position for each eighth of the ring. No copy, no allocation, no system
    /// call.
    #[inline]
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(&QueuedTask)) -> usize {
        self.drain_ahead(limit, |task, _| each(task))
    }

    /// The same, with a look at the record behind each.
    #[inline]
    pub fn drain_ahead(
        &mut self,
        limit: usize,
        mut each: impl FnMut(&QueuedTask, Next<'_>),
    ) -> usize {
        let producer = self.producer();
        if self.position != producer && !self.is_possible(producer) {
            self.counts.resyncs += 1;
            self.position = producer;
        }
        let mut taken = 0;
        while taken < limit && self.position != producer {
            let (item, length) = self.look(producer.wrapping_sub(self.position));
            match item {
                Item::Busy => break,
                Item::Task(task) => {
                    let behind = producer.wrapping_sub(self.position) - length;
                    each(task, Next((behind != 0).then(|| self.next(length))));
                    taken += 1;
                }
                Item::Discarded => self.counts.discarded += 1,
                Item::Bad(bad) => {
                    self.counts.refused += 1;
                    self.counts.last_refused = Some(bad);
                }
                Item::Unreadable => self.counts.resyncs += 1,
            }
            self.position = self.position.wrapping_add(length);
        }
        if self.position.wrapping_sub(self.released) >= self.memory.size / RELEASE_PART {
            self.release();
        }
        taken
    }

    /// Gives all that was read back to the producers. Only a caller needs this that asks the kernel
    /// about the ring, as by `poll()`.
    ///
    /// # Cost
    /// A store, in a line that every producer reads: it costs them a miss each.
    pub fn release(&mut self) {
        self.released = self.position;
        // SAFETY: live and aligned by the contract of `new`.
        let consumer = unsafe { self.memory.consumer.as_ref() };
        // ORDERING: release, with the acquire load in __bpf_ringbuf_reserve(): our reads come
        // before its overwriting.
        consumer.store(self.position, order(Guard::RingConsumer, Ordering::Release));
    }

    /// Takes one record by value; `None` when there is none.
    ///
    /// # Cost
    /// As [`drain`](Self::drain) with one record, and a copy of 120 bytes.
    pub fn dequeue(&mut self) -> Option<QueuedTask> {
        let mut dequeued = None;
        self.drain(1, |task| dequeued = Some(*task));
        dequeued
    }

    /// Whether a producer position can be right. __bpf_ringbuf_reserve() never fills the last byte.
    #[inline(always)]
    fn is_possible(&self, producer: u64) -> bool {
        let waiting = producer.wrapping_sub(self.position);
        let is_aligned = (producer | self.position).is_multiple_of(HEADER);
        waiting < self.memory.size && is_aligned
    }

    /// The item at the read position, of which `waiting` bytes are there, and by how many to go on
    /// behind it.
    #[inline(always)]
    fn look(&self, waiting: u64) -> (Item<'_>, u64) {
        let header = self.header();
        if header & BUSY != 0 {
            return (Item::Busy, 0);
        }
        let payload = u64::from(header & !DISCARD);
        let total = (payload + HEADER).next_multiple_of(HEADER);
        if total > waiting {
            return (Item::Unreadable, waiting);
        }
        if header & DISCARD != 0 {
            return (Item::Discarded, total);
        }
        if payload != size_of::<QueuedTask>() as u64 {
            return (Item::Bad(BadRecord::Length), total);
        }
        match QueuedTask::from_record(self.payload(), self.nr_cpus) {
            Ok(task) => (Item::Task(task), total),
            Err(bad) => (Item::Bad(bad), total),
        }
    }

    #[inline(always)]
    fn producer(&self) -> u64 {
        // SAFETY: live and aligned by the contract of `new`.
        // ORDERING: acquire, with __bpf_ringbuf_reserve(); see the module.
        unsafe { self.memory.producer.as_ref() }.load(order(Guard::RingProducer, Ordering::Acquire))
    }

    #[inline(always)]
    fn offset(&self) -> usize {
        (self.position & (self.memory.size - 1)) as usize
    }

    #[inline(always)]
    fn header(&self) -> u32 {
        #[cfg(not(loom))]
        // SAFETY: the offset is below `size`, and `2 * size` bytes are mapped.
        let at = unsafe { self.memory.data.add(self.offset()) }.cast::<AtomicU32>();
        #[cfg(loom)]
        let at = NonNull::from(&self.record().header);
        // SAFETY: mapped, and aligned because data and position are, to 8.
        // ORDERING: acquire, with bpf_ringbuf_commit(); see the module.
        unsafe { at.as_ref() }.load(order(Guard::RingHeader, Ordering::Acquire))
    }

    /// The payload behind the header; only once that was found published, with the length of a
    /// task.
    #[inline(always)]
    fn payload(&self) -> &Record {
        #[cfg(not(loom))]
        // SAFETY: the offset is below `size`, so that header and payload end within the `2 * size`
        // bytes mapped.
        let at = unsafe { self.memory.data.add(self.offset() + HEADER as usize) }.cast::<Record>();
        #[cfg(loom)]
        let at = self.record().read();
        // SAFETY: mapped and aligned to 8; the kernel does not write a published record until our
        // position has passed it, for which `&mut self` is needed.
        unsafe { at.as_ref() }
    }

    /// The first word of what the payload of the record would be that begins after `length` bytes.
    #[inline(always)]
    fn next(&self, length: u64) -> &AtomicU32 {
        #[cfg(not(loom))]
        let offset = self.position.wrapping_add(length) & (self.memory.size - 1);
        #[cfg(not(loom))]
        // SAFETY: the offset is below `size`, so that the header ends within the `2 * size` bytes
        // mapped, before the last of them.
        let at = unsafe { self.memory.data.add((offset + HEADER) as usize) }.cast();
        // In the models the header: nothing is fetched.
        #[cfg(loom)]
        let _ = length;
        #[cfg(loom)]
        let at = NonNull::from(&self.record().header);
        // SAFETY: mapped, and aligned because data, position and length are, to 8.
        unsafe { at.as_ref() }
    }

    #[cfg(loom)]
    fn record(&self) -> &ModelRecord {
        let index = self.offset() / (HEADER as usize + size_of::<QueuedTask>());
        // SAFETY: the models have as many of them as the ring has room for.
        let at = unsafe { self.memory.data.cast::<ModelRecord>().add(index) };
        // SAFETY: live and aligned; loom watches over the payload.
        unsafe { at.as_ref() }
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    extern crate std;
    use super::*;
    use std::boxed::Box;
    use std::vec;
    use std::vec::Vec;

    const SIZE: usize = 4096;

    /// The kernel's half of the protocol, on ordinary memory.
    struct Producer {
        consumer: Box<AtomicU64>,
        producer: Box<AtomicU64>,
        data: Box<[u64]>,
    }

    impl Producer {
        fn at(position: u64) -> Self {
            Self {
                consumer: Box::new(AtomicU64::new(position)),
                producer: Box::new(AtomicU64::new(position)),
                data: vec![0; 2 * SIZE / 8].into_boxed_slice(),
            }
        }

        fn ring(&mut self) -> Ring {
            let memory = RingMemory {
                consumer: NonNull::from(&*self.consumer),
                producer: NonNull::from(&*self.producer),
                data: NonNull::new(self.data.as_mut_ptr()).unwrap().cast(),
                size: SIZE as u64,
            };
            // SAFETY: the test keeps the producer alive for as long as the ring.
            unsafe { Ring::new(memory, 8) }
        }

        fn write(&mut self, offset: usize, word: u64) {
            self.data[offset % SIZE / 8] = word;
            self.data[offset % SIZE / 8 + SIZE / 8] = word;
        }

        fn reserve(&mut self, header: u32, words: &[u64]) -> u64 {
            let at = self.producer.load(Ordering::Relaxed);
            self.write(at as usize, u64::from(header));
            for (i, word) in words.iter().enumerate() {
                self.write((at as usize).wrapping_add(8 + 8 * i), *word);
            }
            let length = u64::from(header & !(BUSY | DISCARD));
            let next = at.wrapping_add((length + 8).next_multiple_of(8));
            self.producer.store(next, Ordering::Release);
            at
        }

        fn push(&mut self, task: &QueuedTask) {
            self.reserve(120, task.as_record());
        }
    }

    fn task(id: u32) -> QueuedTask {
        QueuedTask::example(id, id + 1, 3, 8)
    }

    fn ids(ring: &mut Ring) -> Vec<u32> {
        let mut ids = vec![];
        ring.drain(usize::MAX, |task| ids.push(task.id));
        ids
    }

    #[test]
    fn each_record_comes_with_the_id_behind_it() {
        let mut producer = Producer::at(SIZE as u64 - 128);
        let mut ring = producer.ring();
        for id in [4, 2, 9] {
            producer.push(&task(id));
        }
        let mut seen = vec![];
        ring.drain_ahead(usize::MAX, |task, next| seen.push((task.id, next.id())));
        assert_eq!(seen, [(4, Some(2)), (2, Some(9)), (9, None)]);
    }

    #[test]
    fn records_come_in_order_across_the_end_of_the_ring() {
        for start in [
            0,
            SIZE as u64 - 128,
            SIZE as u64 - 64,
            SIZE as u64 - 8,
            (u64::MAX - 1023) & !7,
        ] {
            let mut producer = Producer::at(start);
            let mut ring = producer.ring();
            for id in 0..20 {
                producer.push(&task(id));
            }
            assert_eq!(ids(&mut ring), (0..20).collect::<Vec<_>>());
            assert_eq!(ring.backlog_bytes(), 0);
            ring.release();
            assert_eq!(
                producer.consumer.load(Ordering::Relaxed),
                producer.producer.load(Ordering::Relaxed)
            );
        }
    }

    #[test]
    fn a_busy_record_hides_itself_and_all_behind_it_until_it_is_committed() {
        let mut producer = Producer::at(0);
        let mut ring = producer.ring();
        producer.push(&task(0));
        let at = producer.reserve(BUSY | 120, &[0; 15]);
        producer.push(&task(2));
        assert_eq!(ids(&mut ring), [0]);
        assert!(ids(&mut ring).is_empty());
        producer.write(at as usize, u64::from(DISCARD | 120));
        assert_eq!(ids(&mut ring), [2]);
        assert_eq!(
            ring.counts(),
            RingCounts {
                discarded: 1,
                ..RingCounts::default()
            }
        );
    }

    #[test]
    fn a_limit_leaves_the_rest_for_the_next_time() {
        let mut producer = Producer::at(0);
        let mut ring = producer.ring();
        (0..5).for_each(|id| producer.push(&task(id)));
        assert_eq!(ring.drain(2, |_| ()), 2);
        assert_eq!(ring.dequeue().map(|task| task.id), Some(2));
        assert_eq!(ids(&mut ring), [3, 4]);
        assert!(ring.dequeue().is_none());
    }

    #[test]
    fn records_of_another_length_or_with_impossible_contents_are_refused_and_passed() {
        let mut producer = Producer::at(0);
        let mut ring = producer.ring();
        producer.reserve(112, &[0; 14]);
        producer.reserve(0, &[]);
        producer.push(&QueuedTask {
            weight: 0,
            ..task(1)
        });
        producer.push(&task(2));
        assert_eq!(ids(&mut ring), [2]);
        assert_eq!(
            ring.counts(),
            RingCounts {
                refused: 3,
                last_refused: Some(BadRecord::Weight),
                ..RingCounts::default()
            }
        );
    }

    #[test]
    fn a_consumer_position_that_another_process_wrote_shows_in_the_counts() {
        let mut producer = Producer::at(0);
        let mut ring = producer.ring();
        producer.push(&task(0));
        assert_eq!(ids(&mut ring), [0]);
        assert!(!ring.counts().are_bad());
        for garbage in [64, 128, u64::MAX] {
            producer.consumer.store(garbage, Ordering::Relaxed);
            assert_eq!(ring.counts().moved, 1, "{garbage}");
            assert!(ring.counts().are_bad());
        }
        ring.release();
        assert!(!ring.counts().are_bad());
    }

    #[test]
    fn impossible_positions_and_lengths_skip_everything_once() {
        for (position, header) in [
            (SIZE as u64 + 128, 120),
            (132, 120),
            (128, 4000),
            (u64::MAX - 127, 120),
        ] {
            let mut producer = Producer::at(0);
            let mut ring = producer.ring();
            producer.write(0, header);
            producer.producer.store(position, Ordering::Release);
            assert!(ids(&mut ring).is_empty());
            assert_eq!(
                ring.counts().resyncs,
                1,
                "position {position} header {header}"
            );
            assert!(ids(&mut ring).is_empty());
            assert_eq!(ring.counts().resyncs, 1);
        }
    }
}
