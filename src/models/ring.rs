//! Records on their way to user space.

use core::ptr::NonNull;
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::thread;

use super::{RACE, breaks_without, explore, thorough};
use crate::ring::{ModelRecord, Ring, RingMemory};
use crate::sync::{AtomicU32, AtomicU64, Guard, Ordering, order};
use crate::task::QueuedTask;

const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;
const PAYLOAD: u32 = 120;
const RECORD: u64 = 128;

/// `struct bpf_ringbuf`, with room for RECORDS less one.
pub(super) struct RingBuf<const RECORDS: usize> {
    pub(super) consumer: AtomicU64,
    pub(super) producer: AtomicU64,
    /// rb->spinlock and rb->pending_pos.
    pending: Mutex<u64>,
    data: [ModelRecord; RECORDS],
}

unsafe impl<const RECORDS: usize> Sync for RingBuf<RECORDS> {}
unsafe impl<const RECORDS: usize> Send for RingBuf<RECORDS> {}

impl<const RECORDS: usize> RingBuf<RECORDS> {
    const SIZE: u64 = RECORDS as u64 * RECORD;

    pub(super) fn new(position: u64) -> Self {
        Self {
            consumer: AtomicU64::new(position),
            producer: AtomicU64::new(position),
            pending: Mutex::new(position),
            data: core::array::from_fn(|_| ModelRecord {
                header: AtomicU32::new(0),
                payload: UnsafeCell::new([0; _]),
            }),
        }
    }

    pub(super) fn ring(&self) -> Ring {
        let memory = RingMemory {
            consumer: NonNull::from(&self.consumer),
            producer: NonNull::from(&self.producer),
            data: NonNull::from(&self.data).cast(),
            size: Self::SIZE,
        };
        unsafe { Ring::new(memory, 1) }
    }

    fn at(&self, position: u64) -> &ModelRecord {
        &self.data[(position % Self::SIZE / RECORD) as usize]
    }

    /// `__bpf_ringbuf_reserve()`, after which its caller writes the payload.
    pub(super) fn reserve(&self, id: u32) -> Option<&ModelRecord> {
        let acquire = order(Guard::Kernel("reserve, consumer_pos"), Ordering::Acquire);
        let consumer = self.consumer.load(acquire);
        let mut pending = self.pending.lock().unwrap();
        let at = self.producer.load(Ordering::Relaxed);
        while *pending < at && self.at(*pending).header.load(Ordering::Relaxed) & BUSY == 0 {
            *pending += RECORD;
        }
        let next = at + RECORD;
        if next - consumer >= Self::SIZE || next - *pending >= Self::SIZE {
            return None;
        }
        let record = self.at(at);
        record.header.store(BUSY | PAYLOAD, Ordering::Relaxed);
        let release = order(Guard::Kernel("reserve, producer_pos"), Ordering::Release);
        self.producer.store(next, release);
        drop(pending);
        let task = *QueuedTask::example(id, id + 1, 0, 1).as_record();
        record.payload.with_mut(|at| unsafe { *at = task });
        Some(record)
    }

    /// `bpf_ringbuf_commit()`, without its wake-up.
    pub(super) fn commit(&self, record: &ModelRecord, discard: bool) {
        let header = if discard { DISCARD | PAYLOAD } else { PAYLOAD };
        let release = order(Guard::Kernel("commit"), Ordering::Release);
        record.header.swap(header, release);
    }

    /// Reserves and submits. Returns whether there was room.
    fn send(&self, id: u32) -> bool {
        let record = self.reserve(id);
        record
            .inspect(|record| self.commit(record, false))
            .is_some()
    }

    /// Reserves and discards. Returns whether there was room.
    fn give_up(&self, id: u32) -> bool {
        let record = self.reserve(id);
        record.inspect(|record| self.commit(record, true)).is_some()
    }
}

/// Takes what is there, letting others run while a record is read. The producers are told even if
/// that was nothing: with a bound on preemptions, loom looks at too few interleavings around the
/// first look otherwise.
fn receive(ring: &mut Ring, received: &mut Vec<u32>) {
    ring.drain(usize::MAX, |task| {
        let id = task.id;
        thread::yield_now();
        assert_eq!((task.id, task.generation), (id, id + 1), "torn");
        received.push(id);
    });
    ring.release();
    let counts = ring.counts();
    assert_eq!((counts.refused, counts.resyncs), (0, 0), "misread");
}

/// Two CPUs with two records each, one of them given up, for a ring with room for three; the
/// consumer looks twice while they write, and once in the end.
fn two_cpus_write_to_the_ring() {
    explore(2, || {
        let ring_buf = Arc::new(RingBuf::<4>::new(3 * RECORD));
        let mut ring = ring_buf.ring();
        let other = Arc::clone(&ring_buf);
        let first = thread::spawn(move || [other.send(10), other.send(11)]);
        let other = Arc::clone(&ring_buf);
        let second = thread::spawn(move || [other.give_up(20), other.send(21)]);
        let mut received = vec![];
        receive(&mut ring, &mut received);
        receive(&mut ring, &mut received);
        let sent_first = first.join().unwrap();
        let sent_second = second.join().unwrap();
        receive(&mut ring, &mut received);

        let of = |ids: core::ops::Range<u32>| {
            received.iter().copied().filter(move |id| ids.contains(id))
        };
        let expected = [
            (10, sent_first[0]),
            (11, sent_first[1]),
            (21, sent_second[1]),
        ];
        let expected = expected
            .into_iter()
            .filter(|(_, sent)| *sent)
            .map(|(id, _)| id);
        let (low, high): (Vec<u32>, Vec<u32>) = expected.partition(|id| *id < 20);
        assert_eq!(
            of(0..20).collect::<Vec<_>>(),
            low,
            "lost, doubled or out of order"
        );
        assert_eq!(of(20..99).collect::<Vec<_>>(), high, "lost or doubled");
        assert_eq!(ring.counts().discarded, u64::from(sent_second[0]));
        assert_eq!(ring.backlog_bytes(), 0);
    });
}

/// One CPU with three records for a ring of two, with room for one: the third overwrites the first.
fn a_cpu_follows_the_consumer_round() {
    explore(if thorough() { 3 } else { 2 }, || {
        let ring_buf = Arc::new(RingBuf::<2>::new(0));
        let mut ring = ring_buf.ring();
        let other = Arc::clone(&ring_buf);
        let cpu = thread::spawn(move || {
            for id in 1..=3 {
                while !other.send(id) {
                    thread::yield_now();
                }
            }
        });
        let mut received = vec![];
        while received.len() < 3 {
            receive(&mut ring, &mut received);
            thread::yield_now();
        }
        cpu.join().unwrap();
        receive(&mut ring, &mut received);
        assert_eq!(received, [1, 2, 3], "lost, doubled or out of order");
    });
}

#[test]
fn no_record_is_lost_doubled_torn_or_out_of_order() {
    two_cpus_write_to_the_ring();
}

#[test]
fn no_record_is_overwritten_while_it_is_read() {
    a_cpu_follows_the_consumer_round();
}

#[test]
fn a_ring_needs_its_orderings() {
    for guard in [
        Guard::RingProducer,
        Guard::RingHeader,
        Guard::Kernel("reserve, producer_pos"),
        Guard::Kernel("commit"),
    ] {
        breaks_without(guard, &[RACE, "misread"], two_cpus_write_to_the_ring);
    }
    for guard in [Guard::RingConsumer, Guard::Kernel("reserve, consumer_pos")] {
        breaks_without(guard, &[RACE], a_cpu_follows_the_consumer_round);
    }
}
