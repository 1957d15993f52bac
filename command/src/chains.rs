//! What the policy knows of chains, for the threads that want to show it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use scx_metronome_core::policy::deadline::{Chains, Deadline};

/// Where the scheduler thread leaves a copy, when one is asked for. It never waits for it.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    is_wanted: AtomicBool,
    copy: Mutex<Chains>,
}

impl Slot {
    /// What is known now. If the scheduler thread does nothing for 50 ms, because nothing happens
    /// on the machine, what was known before.
    pub(crate) fn ask(&self) -> Chains {
        // ORDERING: relaxed, with the load in `answer`: it carries nothing.
        self.is_wanted.store(true, Ordering::Relaxed);
        for _ in 0..10 {
            // ORDERING: relaxed, with the store in `answer`: the lock orders the copy.
            if !self.is_wanted.load(Ordering::Relaxed) {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        *self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The scheduler thread's end.
    ///
    /// # Cost
    /// A load; if a copy is wanted, 5 KiB.
    pub(crate) fn answer(&self, policy: &Deadline) {
        // ORDERING: relaxed, with the store in `ask`.
        if self.is_wanted.load(Ordering::Relaxed)
            && let Ok(mut copy) = self.copy.try_lock()
        {
            *copy = *policy.chains();
            drop(copy);
            // ORDERING: relaxed, with the load in `ask`.
            self.is_wanted.store(false, Ordering::Relaxed);
        }
    }
}
