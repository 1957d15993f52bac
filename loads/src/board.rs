//! Counters that the background processes share with the program that reads them.

use anyhow::{Result, bail};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter of one process, alone on its cache lines (two, because CPUs fetch them in pairs).
#[repr(align(128))]
pub struct Counter(AtomicU64);

// ORDERING: relaxed. A count stands for itself; the reader needs no more than a recent one.
impl Counter {
    /// Adds one. Only one process may call this on a counter: it is a load and a store, not an
    /// atomic addition.
    pub fn increment(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_add(1), Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counters in memory that stays shared across `fork`.
pub struct Board {
    counters: NonNull<Counter>,
    len: usize,
}

impl Board {
    /// `len` counters, all 0.
    ///
    /// # Errors
    /// The memory could not be mapped.
    pub fn new(len: usize) -> Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::size(len),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        match NonNull::new(address.cast::<Counter>()) {
            Some(counters) if address != libc::MAP_FAILED => Ok(Self { counters, len }),
            _ => bail!(
                "cannot map {len} shared counters: {}",
                io::Error::last_os_error()
            ),
        }
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> &[Counter] {
        // SAFETY: the mapping holds `len` counters, is zeroed (a valid counter), page-aligned, and
        // lives as long as `self`; other processes change it only through atomics.
        unsafe { std::slice::from_raw_parts(self.counters.as_ptr(), self.len) }
    }

    /// All counts.
    #[must_use]
    pub fn counts(&self) -> Vec<u64> {
        self.counters().iter().map(Counter::get).collect()
    }

    /// Bytes to map: never none, which the kernel refuses.
    fn size(len: usize) -> usize {
        len.max(1) * size_of::<Counter>()
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; no reference to it outlives `self`.
        unsafe { libc::munmap(self.counters.as_ptr().cast(), Self::size(self.len)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_was_incremented() -> Result<()> {
        let board = Board::new(3)?;
        board.counters()[1].increment();
        board.counters()[1].increment();
        assert_eq!(board.counts(), [0, 2, 0]);
        assert!(Board::new(0)?.counts().is_empty());
        Ok(())
    }
}
