//! SIGINT and SIGTERM, waited for instead of handled.

use crate::clock::{now, timespec};
use anyhow::{Result, bail};
use std::mem::MaybeUninit;

/// SIGINT and SIGTERM, blocked in this thread and in all threads and processes that it starts from
/// then on.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them.
    ///
    /// # Errors
    /// None in practice.
    pub fn block() -> Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: valid for a sigset_t.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        for signal in [libc::SIGINT, libc::SIGTERM] {
            // SAFETY: emptied above, and the signal exists.
            unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
        }
        // SAFETY: initialised by sigemptyset.
        let set = unsafe { set.assume_init() };
        // SAFETY: the set is valid, and the old one may be null.
        let result =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if result != 0 {
            bail!("cannot block SIGINT and SIGTERM (error {result})");
        }
        Ok(Self(set))
    }

    /// Sleeps until `due` (ns); true, and earlier, if a signal has come.
    #[must_use]
    pub fn wait_until(&self, due: u64) -> bool {
        loop {
            let left = timespec(due.saturating_sub(now()));
            // SAFETY: set and time are valid; the information about the signal may be null.
            let signal = unsafe {
                libc::sigtimedwait(&raw const self.0, std::ptr::null_mut(), &raw const left)
            };
            if signal > 0 || now() >= due {
                return signal > 0;
            }
        }
    }
}
