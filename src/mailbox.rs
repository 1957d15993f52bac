//! User to kernel: decisions on their way to the CPU that carries them out.
//!
//! # Problem
//! A decision must reach a CPU without a system call and without any CPU waiting for another.
//! `BPF_MAP_TYPE_USER_RINGBUF` gives one ring that one CPU drains at a time, for all, while
//! the others get `-EBUSY`.
//!
//! # Mechanism
//! A mailbox is an array of slots in an mmapped BPF array, each a cache line. Every CPU has one,
//! and there is one for all. We are the only writer; the kernel side takes from the front, possibly
//! on several CPUs at once. A slot knows its state:
//!
//! | `seq`          | state | owner  | next                                                         |
//! |----------------|-------|--------|--------------------------------------------------------------|
//! | 0              | free  | us     | we fill it, then store position + 1                           |
//! | position + 1   | full  | kernel | the CPU that advances `head` past it reads it, then stores 0  |
//!
//! Positions only grow, so a `seq` left over from an earlier round is never mistaken for a new one.
//!
//! # Orderings
//! Our store of `seq` is a release: a CPU that sees it sees the rest of the slot; the partner is
//! `take()` in `bpf/mailbox.h`, whose compare-and-swap on `head` separates its two reads. Our load
//! of `seq` is an acquire: its partner is the swap by which `take()` frees the slot, after it has
//! read it.
//!
//! `make loom` runs this against two CPUs that take, and shows that none of the four can be weaker
//! (`src/models.rs`: two slots, three decisions, up to four preemptions).
//!
//! # Trust
//! The kernel side reads what we wrote as an allegation. Nor do we trust it (Invariant 5): a head
//! that is not within the last so many positions as there are slots, or a slot that holds another
//! position than its own, was written by neither side. Either stops the mailbox, one side or both
//! for ever: it is noted, and the caller should end the scheduler. The tasks whose decisions
//! lie there are still on a DSQ of the kernel (Invariant 3).
//!
//! # Cost
//! A decision is one cache line: it travels to the CPU that takes it, and back when the slot comes
//! round again. `head` is a line of its own, which we read only to say how full the mailbox is,
//! never to push. 256 slots are 16 KiB for each CPU, 1 MiB for all. What handing over costs: `cargo
//! bench --bench dispatch`.
//!
//! # Limits
//! A full mailbox hands the decision back.
#![deny(clippy::indexing_slicing)]

use core::ptr::NonNull;

use crate::abi::{MailboxHead, Slot};
use crate::sync::{Guard, Ordering, order};

/// What the kernel side shall do with one enqueue of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Of the task.
    pub id: u32,
    /// Of the enqueue.
    pub generation: u32,
    /// ns; 0 is the default slice.
    pub slice_ns: u64,
    /// Position in the DSQ.
    pub vtime: u64,
    /// `DECISION_ANY_CPU`, `DECISION_PREEMPT` or 0.
    pub flags: u64,
}

/// When a record was taken, and when the decision about it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamps {
    /// 0: not known.
    pub(crate) seen_at: u64,
    pub(crate) decided_at: u64,
}

/// The mailbox is full; here is the decision back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full(pub Decision);

/// The writing side of one mailbox. There must be no other.
#[derive(Debug)]
pub struct Mailbox {
    head: NonNull<MailboxHead>,
    slots: NonNull<Slot>,
    /// Number of slots less one; the number is a power of two.
    mask: u32,
    /// The position that is written next.
    tail: u64,
    /// Whether it was seen to hold a position that neither side wrote.
    is_bad: bool,
}

// SAFETY: the pointers are to shared memory that any thread may access, and `&mut self` keeps
// writers one at a time.
unsafe impl Send for Mailbox {}

impl Mailbox {
    /// Takes over a mailbox that starts at `memory`, has `slots` slots (a power of two), and has
    /// never been used.
    ///
    /// # Safety
    /// Until the mailbox is dropped, `memory` must point to a live, writable [`MailboxHead`] with
    /// that many [`Slot`]s right behind it, to which only the kernel side has access besides.
    pub unsafe fn new(memory: NonNull<u8>, slots: usize) -> Self {
        debug_assert!(slots.is_power_of_two());
        let head = memory.cast::<MailboxHead>();
        // SAFETY: the slots lie right behind the head, by the caller's word.
        let first = unsafe { head.add(1) }.cast::<Slot>();
        Self {
            head,
            slots: first,
            mask: slots as u32 - 1,
            tail: 0,
            is_bad: false,
        }
    }

    /// Puts a decision at the end.
    ///
    /// # Errors
    /// [`Full`] gives it back.
    ///
    /// # Cost
    /// One load and six stores in one cache line. No system call: a CPU that is idle must be kicked
    /// besides.
    pub fn push(&mut self, decision: Decision) -> Result<(), Full> {
        let slot = self.slot(self.tail);
        // ORDERING: acquire, with the freeing swap in take(): its reads of the slot come before our
        // writes.
        let seq = slot.seq.load(order(Guard::MailboxReuse, Ordering::Acquire));
        if seq != 0 {
            // Full is a mailbox whose next slot holds the oldest position.
            self.is_bad |= seq != self.tail.wrapping_sub(self.mask.into());
            return Err(Full(decision));
        }
        slot.id.store(decision.id, Ordering::Relaxed);
        slot.generation
            .store(decision.generation, Ordering::Relaxed);
        slot.slice_ns.store(decision.slice_ns, Ordering::Relaxed);
        slot.vtime.store(decision.vtime, Ordering::Relaxed);
        slot.flags.store(decision.flags, Ordering::Relaxed);
        // ORDERING: release, with take(): the rest of the slot comes first.
        slot.seq.store(
            self.tail + 1,
            order(Guard::MailboxPublish, Ordering::Release),
        );
        self.tail += 1;
        Ok(())
    }

    /// Stamps the decision that is pushed next, which must be one whose [`latency`](crate::latency)
    /// is measured: of others the kernel side does not look at the stamps.
    ///
    /// # Cost
    /// A load and two stores in the cache line that is about to be written.
    pub(crate) fn stamp(&mut self, stamps: Stamps) {
        let slot = self.slot(self.tail);
        // ORDERING: acquire, as in push(), which finds the same or finds it free meanwhile, with
        // stamps of long ago.
        if slot.seq.load(order(Guard::MailboxReuse, Ordering::Acquire)) == 0 {
            slot.seen_at.store(stamps.seen_at, Ordering::Relaxed);
            slot.decided_at.store(stamps.decided_at, Ordering::Relaxed);
        }
    }

    /// How many decisions wait in it. May be outdated at once, and is at most the number of slots.
    ///
    /// # Cost
    /// One load of a line that the CPUs write.
    pub fn len(&self) -> u64 {
        // SAFETY: live and aligned by the contract of `new`.
        // ORDERING: relaxed, with the compare-and-swap in take(): a hint. Whether a slot is free is
        // asked of its `seq`.
        let head = unsafe { self.head.as_ref() }.head.load(Ordering::Relaxed);
        self.tail.wrapping_sub(head).min(self.nr_slots())
    }

    /// Whether all decisions have been taken. May be outdated at once.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks whether the mailbox holds what the two sides put there: its head, and the slot there.
    /// [`is_bad`](Self::is_bad) tells.
    ///
    /// # Cost
    /// Three loads, in two lines that the CPUs write.
    pub(crate) fn check(&mut self) {
        // SAFETY: live and aligned by the contract of `new`.
        let head = unsafe { self.head.as_ref() };
        let position = head.head.load(Ordering::Relaxed);
        let waiting = self.tail.wrapping_sub(position);
        // ORDERING: acquire, with the freeing swap in take(): a writer that sees the slot free sees
        // the head beyond it.
        let seq = self.slot(position).seq.load(Ordering::Acquire);
        let is_possible = match waiting {
            // A CPU may be slow to free a slot that it took a round ago.
            0 => seq == 0 || seq == position.wrapping_sub(self.mask.into()),
            _ => Some(seq) == position.checked_add(1),
        };
        let has_moved = head.head.load(Ordering::Relaxed) != position;
        self.is_bad |= waiting > self.nr_slots() || (!is_possible && !has_moved);
    }

    /// Whether it has been seen to hold what neither side wrote.
    pub(crate) fn is_bad(&self) -> bool {
        self.is_bad
    }

    fn nr_slots(&self) -> u64 {
        u64::from(self.mask) + 1
    }

    fn slot(&self, position: u64) -> &Slot {
        // SAFETY: masked, so within the slots.
        let at = unsafe { self.slots.add((position & u64::from(self.mask)) as usize) };
        // SAFETY: live and aligned by the contract of `new`; all its fields are atomics.
        unsafe { at.as_ref() }
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    extern crate std;
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::vec;
    use std::vec::Vec;

    const SLOTS: usize = 4;

    #[repr(C, align(64))]
    struct Memory([AtomicU64; 8 * (SLOTS + 1)]);

    impl Memory {
        fn new() -> Self {
            Self(core::array::from_fn(|_| AtomicU64::new(0)))
        }

        fn mailbox(&self) -> Mailbox {
            // SAFETY: of the right size and alignment, and the tests keep it alive.
            unsafe { Mailbox::new(NonNull::from(self).cast(), SLOTS) }
        }

        /// The kernel side's take(), for one CPU.
        fn take(&self) -> Option<(u32, u64)> {
            let position = self.0[0].load(Ordering::Relaxed);
            let slot = &self.0[8 + 8 * (position as usize % SLOTS)..][..8];
            if slot[0].load(Ordering::Acquire) != position + 1 {
                return None;
            }
            self.0[0].store(position + 1, Ordering::Relaxed);
            let taken = (
                slot[1].load(Ordering::Relaxed) as u32,
                slot[3].load(Ordering::Relaxed),
            );
            slot[0].store(0, Ordering::Release);
            Some(taken)
        }
    }

    fn decision(id: u32) -> Decision {
        Decision {
            id,
            generation: 9,
            slice_ns: 1,
            vtime: u64::from(id) * 10,
            flags: 0,
        }
    }

    #[test]
    fn decisions_leave_in_the_order_they_came_round_after_round() {
        let memory = Memory::new();
        let mut mailbox = memory.mailbox();
        let mut taken: Vec<u32> = vec![];
        for id in 0..40 {
            mailbox.push(decision(id)).unwrap();
            if id % 3 == 2 {
                while let Some((id, vtime)) = memory.take() {
                    assert_eq!(vtime, u64::from(id) * 10);
                    taken.push(id);
                }
            }
        }
        while let Some((id, _)) = memory.take() {
            taken.push(id);
        }
        assert_eq!(taken, (0..40).collect::<Vec<_>>());
        assert!(mailbox.is_empty());
    }

    #[test]
    fn a_full_mailbox_gives_the_decision_back_and_takes_it_once_there_is_room() {
        let memory = Memory::new();
        let mut mailbox = memory.mailbox();
        for id in 0..SLOTS as u32 {
            mailbox.push(decision(id)).unwrap();
        }
        assert_eq!(mailbox.push(decision(9)), Err(Full(decision(9))));
        assert_eq!(mailbox.len(), SLOTS as u64);
        assert_eq!(memory.take().unwrap().0, 0);
        assert_eq!(mailbox.push(decision(9)), Ok(()));
        assert_eq!(mailbox.len(), SLOTS as u64);
    }

    #[test]
    fn a_mailbox_is_good_whatever_the_two_sides_do() {
        let memory = Memory::new();
        let mut mailbox = memory.mailbox();
        for id in 0..40 {
            // Full, empty, and in between.
            while mailbox.push(decision(id)).is_ok() {
                mailbox.check();
            }
            for _ in 0..=id % 5 {
                mailbox.check();
                memory.take();
            }
            mailbox.check();
            assert!(!mailbox.is_bad(), "{id}");
        }
    }

    #[test]
    fn positions_that_neither_side_wrote_are_noticed() {
        // A head ahead of us, and one too far behind.
        for head in [3, 0_u64.wrapping_sub(3), u64::MAX, 1 << 63] {
            let memory = Memory::new();
            let mut mailbox = memory.mailbox();
            mailbox.push(decision(1)).unwrap();
            memory.0[0].store(head, Ordering::Relaxed);
            mailbox.check();
            assert!(mailbox.is_bad(), "head {head}");
        }
        // A slot that will never be taken, where the next decision is taken from and where it is
        // put.
        for seq in [1, 7, u64::MAX] {
            let memory = Memory::new();
            let mut mailbox = memory.mailbox();
            memory.0[8].store(seq, Ordering::Relaxed);
            mailbox.check();
            assert!(mailbox.is_bad(), "seq {seq}");
            let mut mailbox = memory.mailbox();
            assert_eq!(mailbox.push(decision(1)), Err(Full(decision(1))));
            assert!(mailbox.is_bad(), "seq {seq}");
        }
    }
}
