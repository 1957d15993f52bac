//! A counting semaphore: what a game releases its workers with.
//!
//! The one of the C library, because its wake-up is the futex wake that real programs do.

use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;

/// A semaphore for the threads of this process. Boxed inside: the C library identifies it by its
/// address.
pub struct Semaphore(Box<UnsafeCell<libc::sem_t>>);

// SAFETY: sem_wait and sem_post may be called from any thread at any time, and nothing else touches
// the cell.
unsafe impl Sync for Semaphore {}

impl Semaphore {
    /// A semaphore of count 0.
    ///
    /// # Errors
    /// None in practice: 0 is a count that every system accepts.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a sem_t is bytes and numbers, for which zero is valid.
        let empty = unsafe { MaybeUninit::<libc::sem_t>::zeroed().assume_init() };
        let cell = Box::new(UnsafeCell::new(empty));
        // SAFETY: the pointer is valid for a sem_t, which no other thread knows yet.
        if unsafe { libc::sem_init(cell.get(), 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(cell))
    }

    /// Adds one, and wakes a waiter if there is one.
    pub fn post(&self) {
        // SAFETY: initialised in `new`, destroyed only in `drop`. It fails only beyond 2^31 - 1
        // posts.
        unsafe { libc::sem_post(self.0.get()) };
    }

    /// Takes one; sleeps until there is one.
    pub fn wait(&self) {
        // SAFETY: as in `post`. The only failure is an interruption by a signal.
        while unsafe { libc::sem_wait(self.0.get()) } != 0 {}
    }
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        // SAFETY: `&mut self`: no thread waits on it any more.
        unsafe { libc::sem_destroy(self.0.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_post_lets_a_waiter_through() -> io::Result<()> {
        let (go, done) = (Semaphore::new()?, Semaphore::new()?);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                go.wait();
                done.post();
            });
            go.post();
            done.wait();
        });
        Ok(())
    }
}
