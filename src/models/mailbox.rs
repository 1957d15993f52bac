//! Decisions on their way to a CPU.

use core::ptr::NonNull;
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use loom::thread;

use super::{RACE, barrier, breaks_without, explore};
use crate::abi::{MAILBOX_SLOTS, MailboxHead, Slot};
use crate::mailbox::{Decision, Mailbox, Stamps};
use crate::sync::{AtomicU64, Guard, Ordering, OwnedU32, OwnedU64, order};

/// `struct mailbox`, and as small `struct shared_mailbox`.
#[repr(C)]
pub(super) struct Boxed {
    head: MailboxHead,
    slots: [Slot; MAILBOX_SLOTS],
}

unsafe impl Sync for Boxed {}
unsafe impl Send for Boxed {}

impl Boxed {
    pub(super) fn new() -> Self {
        Self {
            head: MailboxHead {
                head: AtomicU64::new(0),
                pad: [0; 7],
            },
            slots: core::array::from_fn(|_| Slot {
                seq: AtomicU64::new(0),
                id: OwnedU32::new(0),
                generation: OwnedU32::new(0),
                slice_ns: OwnedU64::new(0),
                vtime: OwnedU64::new(0),
                flags: OwnedU64::new(0),
                seen_at: OwnedU64::new(0),
                decided_at: OwnedU64::new(0),
                pad: 0,
            }),
        }
    }

    pub(super) fn mailbox(&self) -> Mailbox {
        unsafe { Mailbox::new(NonNull::from(self).cast(), MAILBOX_SLOTS) }
    }

    /// take(): the id of the decision.
    pub(super) fn take(&self) -> Option<u32> {
        let position = self.head.head.load(Ordering::Relaxed);
        let slot = &self.slots[position as usize % MAILBOX_SLOTS];
        if slot.seq.load(Ordering::Relaxed) != position + 1 {
            return None;
        }
        let relaxed = Ordering::Relaxed;
        self.head
            .head
            .compare_exchange(position, position + 1, relaxed, relaxed)
            .ok()?;
        // Of the compare-and-swap; it need not be more than this.
        barrier("take, claim", Ordering::Acquire);
        let taken = Decision {
            id: slot.id.load(relaxed),
            generation: slot.generation.load(relaxed),
            slice_ns: slot.slice_ns.load(relaxed),
            vtime: slot.vtime.load(relaxed),
            flags: slot.flags.load(relaxed),
        };
        let stamped = Stamps {
            seen_at: slot.seen_at.load(relaxed),
            decided_at: slot.decided_at.load(relaxed),
        };
        slot.seq
            .swap(0, order(Guard::Kernel("take, free"), Ordering::Release));
        let flags = taken.flags;
        assert_eq!(
            taken,
            Decision {
                flags,
                ..decision(taken.id)
            },
            "torn"
        );
        // A slot that becomes free between stamp() and push() has those of an earlier decision, or
        // none.
        let of = stamped.seen_at as u32;
        assert!(of <= taken.id, "stamps of a later decision");
        assert!(of == 0 || stamped == stamps(of), "torn");
        Some(taken.id)
    }

    /// Half of has_mail().
    pub(super) fn has_mail(&self) -> bool {
        let position = self.head.head.load(Ordering::Relaxed);
        let slot = &self.slots[position as usize % MAILBOX_SLOTS];
        slot.seq.load(Ordering::Relaxed) == position + 1
    }
}

fn decision(id: u32) -> Decision {
    Decision {
        id,
        generation: id + 1,
        slice_ns: 0,
        vtime: 0,
        flags: 0,
    }
}

fn stamps(id: u32) -> Stamps {
    Stamps {
        seen_at: u64::from(id),
        decided_at: u64::from(id) + 100,
    }
}

/// Three decisions with stamps for two slots; two CPUs try twice each.
fn two_cpus_take_from_one_mailbox() {
    explore(4, || {
        let boxed = Arc::new(Boxed::new());
        let cpus: [_; 2] = core::array::from_fn(|_| {
            let boxed = Arc::clone(&boxed);
            thread::spawn(move || [boxed.take(), boxed.take()])
        });
        let mut mailbox = boxed.mailbox();
        let mut sent = vec![];
        for id in 1..=3 {
            mailbox.stamp(stamps(id));
            match mailbox.push(decision(id)) {
                Ok(()) => sent.push(id),
                Err(full) => assert_eq!((full.0, sent.len()), (decision(id), 2), "not full"),
            }
        }
        let mut taken: Vec<u32> = vec![];
        for cpu in cpus {
            let took: Vec<u32> = cpu.join().unwrap().into_iter().flatten().collect();
            assert!(took.is_sorted(), "out of order");
            taken.extend(took);
        }
        assert_eq!(mailbox.len(), (sent.len() - taken.len()) as u64);
        while let Some(id) = boxed.take() {
            taken.push(id);
        }
        taken.sort();
        assert_eq!(taken, sent, "lost or doubled");
    });
}

#[test]
fn no_decision_is_lost_doubled_or_torn() {
    two_cpus_take_from_one_mailbox();
}

#[test]
fn a_mailbox_needs_its_orderings() {
    for guard in [
        Guard::MailboxPublish,
        Guard::MailboxReuse,
        Guard::Kernel("take, claim"),
        Guard::Kernel("take, free"),
    ] {
        breaks_without(guard, &[RACE], two_cpus_take_from_one_mailbox);
    }
}
