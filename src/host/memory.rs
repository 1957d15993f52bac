//! Memory of the process: locked, touched and counted, so that the scheduler thread never waits for
//! any.
//!
//! A scheduler thread that takes a page fault can wait for a kernel thread that waits for the
//! scheduler. So all memory is locked and touched before the scheduler is attached (Invariant 2).
//! From then on each fault of the thread is counted, and each allocation while it is sealed
//! ([`seal`]), as it is while it runs a policy: both must stay 0 (Invariant 1). A loop of one's own
//! around `dequeue_task()` may allocate in a policy of its own, as the seed's does, so it is not
//! sealed unless it asks for it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::hint;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use crossbeam_utils::CachePadded;

use crate::policy::deadline::Deadline;
use crate::turn::Turn;

/// How much of the scheduler thread's stack is touched ahead, in bytes.
const STACK: usize = 512 * 1024;

thread_local! {
    static SEALED: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATIONS: CachePadded<AtomicU64> = CachePadded::new(AtomicU64::new(0));

/// The system's allocator, counting what sealed threads allocate. For use as `#[global_allocator]`.
#[derive(Debug, Default)]
pub struct CountingAllocator;

impl CountingAllocator {
    fn note(&self) {
        // A thread that is being torn down has no thread-locals any more, and is no scheduler
        // thread.
        if SEALED.try_with(Cell::get).unwrap_or(false) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: each method hands its arguments to the system's allocator as they came.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.note();
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.note();
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        self.note();
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.realloc(at, layout, new_size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Allocations of sealed threads since the process began. Always 0 unless [`CountingAllocator`] is
/// installed.
pub fn sealed_allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Page faults of a thread of this process, minor and major, since it began.
pub fn faults(tid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/self/task/{tid}/stat"))?;
    faults_of_stat(&stat)
        .ok_or_else(|| io::Error::other(format!("/proc/self/task/{tid}/stat: {stat}")))
}

/// Fields 10 and 12 of proc_pid_stat(5). The second field, the name, may contain blanks and
/// brackets.
fn faults_of_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let minor: u64 = fields.nth(10 - 3)?.parse().ok()?;
    let major: u64 = fields.nth(12 - 10 - 1)?.parse().ok()?;
    Some(minor + major)
}

/// Locks all memory of the process, present and future, keeps the kernel from moving it, and
/// touches the stack of the calling thread.
///
/// # Errors
/// When the process may not lock as much as it needs.
pub(crate) fn lock() -> Result<()> {
    // SAFETY: a plain system call.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } != 0 {
        let error = io::Error::last_os_error();
        bail!(
            "cannot lock the scheduler's memory: {error}; the limit is {}: raise it (ulimit -l unlimited, in a systemd unit \
             LimitMEMLOCK=infinity) or grant CAP_IPC_LOCK",
            memlock_limit()
        );
    }
    // Locked pages may be moved nonetheless: khugepaged gathers small ones into a huge one, and
    // a thread that touches them then faults. An old kernel that cannot be told so is no obstacle.
    allow_huge_pages(false);
    touch_stack();
    Ok(())
}

fn allow_huge_pages(allow: bool) {
    // SAFETY: a plain system call.
    unsafe {
        libc::prctl(
            libc::PR_SET_THP_DISABLE,
            libc::c_ulong::from(!allow),
            0,
            0,
            0,
        )
    };
}

/// Takes the lock on future memory back, so that the rest of the process may live an ordinary life.
pub(crate) fn unlock() {
    // SAFETY: a plain system call. It fails only where mlockall() does not exist.
    unsafe { libc::munlockall() };
    allow_huge_pages(true);
}

fn memlock_limit() -> String {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a live rlimit.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    match limit.rlim_cur {
        libc::RLIM_INFINITY => String::from("unlimited"),
        bytes => format!("{} KiB", bytes / 1024),
    }
}

#[inline(never)]
fn touch_stack() {
    let mut stack = [MaybeUninit::<u8>::uninit(); STACK];
    for byte in stack.iter_mut().step_by(4096) {
        byte.write(0);
    }
    hint::black_box(&stack);
}

/// From here on the calling thread's allocations are counted, until the guard is dropped.
pub fn seal() -> Seal {
    SEALED.set(true);
    Seal {
        _not_send: std::marker::PhantomData,
    }
}

/// While it lives, the thread that made it counts its allocations.
#[derive(Debug)]
pub struct Seal {
    _not_send: std::marker::PhantomData<*mut ()>,
}

impl Drop for Seal {
    fn drop(&mut self) {
        SEALED.set(false);
    }
}

/// Types for which memory full of zeros is a value.
///
/// # Safety
/// It must be.
pub unsafe trait Zeroed {}

// SAFETY: see `DeadlineQueue`: all zero is the empty queue; `Waiting` is integers.
unsafe impl Zeroed for Turn {}
// SAFETY: integers.
unsafe impl Zeroed for Deadline {}

/// A large value made of zeroed memory, without passing through the stack.
pub fn zeroed<T: Zeroed>() -> Box<T> {
    let memory = Box::<T>::new_zeroed();
    // SAFETY: by the contract of `Zeroed`.
    unsafe { memory.assume_init() }
}

/// A piece of memory shared with the kernel, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    at: NonNull<u8>,
    length: usize,
}

// SAFETY: it only owns the mapping; access is through raw pointers, under the rules of the code
// that makes them.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes of `fd` from `offset` on, rounded up to pages. `what` is for the
    /// message.
    pub(crate) fn new(
        fd: BorrowedFd<'_>,
        offset: i64,
        length: usize,
        protection: i32,
        what: &str,
    ) -> Result<Self> {
        let length = length.next_multiple_of(page_size());
        let fd = fd.as_raw_fd();
        // SAFETY: a new mapping, at an address of the kernel's choosing.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                protection,
                libc::MAP_SHARED,
                fd,
                offset,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("cannot map {what} ({length} bytes)"));
        }
        let at =
            NonNull::new(at.cast()).with_context(|| format!("{what} was mapped at address 0"))?;
        Ok(Self { at, length })
    }

    /// Where it begins.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.at
    }

    /// Reads a byte of every page, so that each is present.
    pub(crate) fn touch(&self) {
        for offset in (0..self.length).step_by(page_size()) {
            // SAFETY: within the mapping.
            let at = unsafe { self.at.add(offset) };
            // SAFETY: mapped, readable, and a byte cannot be torn.
            hint::black_box(unsafe { at.read_volatile() });
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and by our owner's word no code uses it any
        // more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.length) };
    }
}

/// The size of a page, in bytes.
pub(crate) fn page_size() -> usize {
    // SAFETY: a plain library call.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_behind_a_name_with_brackets() {
        let stat = "42 (a) b) R 1 2 3 4 5 6 700 8 90 10 11";
        assert_eq!(faults_of_stat(stat), Some(700 + 90));
        assert_eq!(faults_of_stat("42 (short) R"), None);
    }

    #[test]
    fn zeroed_values_are_empty() {
        assert_eq!(zeroed::<Turn>().waiting(), 0);
    }
}
