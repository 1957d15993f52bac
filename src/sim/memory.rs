//! The memory that both sides share: rings, as in the kernel's `kernel/bpf/ringbuf.c`, and
//! mailboxes.

use std::boxed::Box;

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use super::kernel::Kernel;
use crate::abi::{MAILBOX_SLOTS, MailboxHead, Slot};
use crate::mailbox::Decision;
use crate::task::QueuedTask;

pub(super) const RECORD: u64 = 128;
pub(super) const BUSY: u64 = 1 << 31;
pub(super) const DISCARD: u64 = 1 << 30;

/// Zeroed memory in pages, as the kernel maps it.
#[derive(Debug)]
pub(super) struct Pages(Box<[Page]>);

#[derive(Debug)]
#[repr(C, align(4096))]
pub(super) struct Page(core::cell::UnsafeCell<[u8; 4096]>);

impl Pages {
    pub(super) fn new(bytes: usize) -> Self {
        let pages = Box::new_zeroed_slice(bytes.div_ceil(4096));
        // SAFETY: all bytes zero are a page.
        Self(unsafe { pages.assume_init() })
    }

    /// Both sides write through pointers made of this, so it points into the cells.
    pub(super) fn start(&self) -> NonNull<u8> {
        NonNull::from(&*self.0).cast()
    }
}

#[derive(Debug)]
pub(super) struct RingPages {
    pub(super) consumer: Pages,
    pub(super) producer: Pages,
    pub(super) data: Pages,
}

/// The rings, as in the kernel's `kernel/bpf/ringbuf.c`.
impl Kernel {
    pub(super) fn producer(&self, ring: usize) -> &AtomicU64 {
        // SAFETY: a page of its own, zeroed, and an atomic only.
        unsafe { self.rings[ring].producer.start().cast().as_ref() }
    }

    pub(super) fn consumer(&self, ring: usize) -> &AtomicU64 {
        // SAFETY: a page of its own, zeroed, an atomic only.
        unsafe { self.rings[ring].consumer.start().cast().as_ref() }
    }

    /// Reserves a record, which is busy, in the ring of a task.
    pub(super) fn reserve(&mut self, id: u32) -> Option<(usize, u64)> {
        let ring = id as usize & (self.rings.len() - 1);
        let at = self.producer(ring).load(Ordering::Relaxed);
        let used = at.wrapping_sub(self.consumer(ring).load(Ordering::Relaxed));
        if used.checked_add(RECORD)? >= self.config.ring_bytes {
            return None;
        }
        self.write(ring, at, BUSY | (RECORD - 8));
        self.producer(ring).store(at + RECORD, Ordering::Relaxed);
        Some((ring, at))
    }

    /// Both mappings of the same memory.
    pub(super) fn words(&self, ring: usize, at: u64) -> [&AtomicU64; 2] {
        let size = self.config.ring_bytes;
        let offset = at % size;
        [offset, offset + size].map(|offset| {
            // SAFETY: below twice the size, for which there is memory.
            let word = unsafe { self.rings[ring].data.start().add(offset as usize) };
            // SAFETY: aligned, as positions are multiples of 8, and only ever written through such
            // references. No reference to a record is held at this time: there is one
            // thread, and the other side lends them out only while it drains.
            unsafe { word.cast().as_ref() }
        })
    }

    pub(super) fn write(&self, ring: usize, at: u64, value: u64) {
        for word in self.words(ring, at) {
            word.store(value, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self, ring: usize, at: u64) -> u64 {
        self.words(ring, at)[0].load(Ordering::Relaxed)
    }

    /// How many tasks lie in the rings.
    pub(super) fn left_in_rings(&self) -> u64 {
        let tasks = |ring| {
            let position = |word: &AtomicU64| word.load(Ordering::Relaxed);
            let records = position(self.consumer(ring))..position(self.producer(ring));
            let is_task = |at: &u64| self.read(ring, *at) & DISCARD == 0;
            records.step_by(RECORD as usize).filter(is_task).count() as u64
        };
        (0..self.rings.len()).map(tasks).sum()
    }

    pub(super) fn mailbox(&self, cpu: u32) -> NonNull<u8> {
        let offset = cpu as usize * 64 * (1 + MAILBOX_SLOTS);
        // SAFETY: within the array of `nr_cpus` mailboxes.
        unsafe { self.mailboxes.start().add(offset) }
    }
}

pub(super) fn words_of(record: QueuedTask) -> [u64; 15] {
    // SAFETY: 120 bytes of integers without padding.
    unsafe { core::mem::transmute(record) }
}

/// The head of a mailbox and the slot at its front.
pub(super) fn front<'a>(mailbox: NonNull<u8>, slots: usize) -> (&'a MailboxHead, &'a Slot, u64) {
    // SAFETY: zeroed memory that the simulation keeps, and atomics only.
    let head = unsafe { mailbox.cast::<MailboxHead>().as_ref() };
    let position = head.head.load(Ordering::Relaxed);
    let index = 1 + (position as usize & (slots - 1));
    // SAFETY: masked, so within the slots behind the head, which is as large as one.
    let at = unsafe { mailbox.cast::<Slot>().add(index) };
    // SAFETY: as before.
    (head, unsafe { at.as_ref() }, position)
}

pub(super) fn has_mail(mailbox: NonNull<u8>, slots: usize) -> bool {
    let (_, slot, position) = front(mailbox, slots);
    slot.seq.load(Ordering::Acquire) == position + 1
}

pub(super) fn first_mail_vtime(mailbox: NonNull<u8>, slots: usize) -> Option<u64> {
    let (_, slot, _) = front(mailbox, slots);
    has_mail(mailbox, slots).then(|| slot.vtime.load(Ordering::Relaxed))
}

pub(super) fn take(mailbox: NonNull<u8>, slots: usize) -> Option<Decision> {
    if !has_mail(mailbox, slots) {
        return None;
    }
    let (head, slot, position) = front(mailbox, slots);
    head.head.store(position + 1, Ordering::Relaxed);
    let decision = Decision {
        id: slot.id.load(Ordering::Relaxed),
        generation: slot.generation.load(Ordering::Relaxed),
        slice_ns: slot.slice_ns.load(Ordering::Relaxed),
        vtime: slot.vtime.load(Ordering::Relaxed),
        flags: slot.flags.load(Ordering::Relaxed),
    };
    slot.seq.store(0, Ordering::Release);
    Some(decision)
}
