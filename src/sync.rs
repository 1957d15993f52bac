//! The atomics of the core, and names for the orderings that matter.
//!
//! Under `--cfg loom` they are those of the model checker, and a model can weaken one named
//! ordering, to see that it is needed (`src/models.rs`). Otherwise they are the processor's, and a
//! name costs nothing.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, fence};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, fence};

pub(crate) use core::sync::atomic::Ordering;

/// What an ordering guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// The decision is in its slot before the slot is full.
    MailboxPublish,
    /// The slot has been read before it is filled again.
    MailboxReuse,
    /// The header of a record is there, busy bit and all, once the producer position is past it.
    RingProducer,
    /// The payload of a record is there once the busy bit is clear.
    RingHeader,
    /// The record has been read before the consumer position is past it.
    RingConsumer,
    /// Mail is published before `idle_seq` is read.
    PendingKick,
    /// `parked` is published before the producer position is read.
    Park,
    /// An ordering of the kernel side, by the name that it has in the models.
    #[cfg(loom)]
    Kernel(&'static str),
}

/// `strong`, unless a model weakens this guard.
#[cfg(not(loom))]
#[inline(always)]
pub(crate) const fn order(_guard: Guard, strong: Ordering) -> Ordering {
    strong
}

/// A word that the protocol gives to one side at a time. It is atomic because the other side need
/// not keep the protocol.
#[cfg(not(loom))]
pub(crate) type OwnedU32 = AtomicU32;
/// As [`OwnedU32`].
#[cfg(not(loom))]
pub(crate) type OwnedU64 = AtomicU64;

#[cfg(loom)]
pub(crate) use modelled::{OwnedU32, OwnedU64, Weakened, order};

#[cfg(loom)]
mod modelled {
    extern crate std;
    use super::{Guard, Ordering};
    use core::cell::Cell;
    use loom::cell::UnsafeCell;

    std::thread_local! {
        static WEAKENED: Cell<Option<Guard>> = const { Cell::new(None) };
    }

    /// While it lives, one guard has an ordering that is too weak, on this thread and in the models
    /// that run on it.
    pub(crate) struct Weakened(());

    impl Weakened {
        pub(crate) fn new(guard: Guard) -> Self {
            WEAKENED.set(Some(guard));
            Self(())
        }
    }

    impl Drop for Weakened {
        fn drop(&mut self) {
            WEAKENED.set(None);
        }
    }

    pub(crate) fn order(guard: Guard, strong: Ordering) -> Ordering {
        match strong {
            _ if WEAKENED.get() != Some(guard) => strong,
            Ordering::SeqCst => Ordering::AcqRel,
            _ => Ordering::Relaxed,
        }
    }

    /// Not atomic here: loom finds two accesses of which neither happens before the other.
    #[derive(Debug)]
    pub(crate) struct Owned<T>(UnsafeCell<T>);
    pub(crate) type OwnedU32 = Owned<u32>;
    pub(crate) type OwnedU64 = Owned<u64>;

    impl<T: Copy> Owned<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(UnsafeCell::new(value))
        }

        pub(crate) fn load(&self, _: Ordering) -> T {
            // SAFETY: the pointer is to a live value, and loom has found no concurrent write.
            self.0.with(|at| unsafe { *at })
        }

        pub(crate) fn store(&self, value: T, _: Ordering) {
            // SAFETY: the pointer is to a live value, and loom has found no concurrent access.
            self.0.with_mut(|at| unsafe { *at = value });
        }
    }
}
