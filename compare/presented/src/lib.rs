//! Preloaded into a game that draws by SDL 2, it notes when each frame was presented.
//!
//! The file that `PRESENTED` names is mapped, and holds 64-bit words: how many frames there were,
//! and of each the time when `SDL_RenderPresent()` returned, ns of `CLOCK_MONOTONIC`. So the frames
//! can be read while the game runs, and after it was killed. Without the variable, or where the
//! file cannot be mapped, the game runs as without this.
//!
//! It also makes a program print line by line where it would print in blocks, for those that tell
//! of their frames in words.
//!
//! # Cost
//! For each frame a reading of the clock and two stores. All pages are there from the first frame
//! on.

use std::env;
use std::ffi::c_void;
use std::fs::OpenOptions;
use std::mem;
use std::os::fd::AsRawFd;
use std::ptr::{self, null_mut};
use std::slice;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Frames after these are not noted: more than a game has in minutes.
const WORDS: usize = 1 << 16;
const BYTES: usize = WORDS * size_of::<AtomicU64>();

type Present = unsafe extern "C" fn(*mut c_void);

/// SDL's function, if there is one, and the words of the file.
struct Presented {
    next: Option<Present>,
    words: &'static [AtomicU64],
}

static PRESENTED: OnceLock<Presented> = OnceLock::new();

/// The words; none if there is no file.
fn map() -> Option<&'static [AtomicU64]> {
    let path = env::var_os("PRESENTED")?;
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(true);
    let file = options.open(path).ok()?;
    file.set_len(BYTES as u64).ok()?;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let words = unsafe {
        libc::mmap(
            null_mut(),
            BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            file.as_raw_fd(),
            0,
        )
    };
    if ptr::eq(words, libc::MAP_FAILED) {
        return None;
    }
    // SAFETY: the mapping holds so many words, is aligned to a page and never unmapped, and all
    // bytes are a valid word.
    Some(unsafe { slice::from_raw_parts(words.cast(), WORDS) })
}

fn open() -> Presented {
    // SAFETY: a valid C string; the handle means whatever comes after this library.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, c"SDL_RenderPresent".as_ptr()) };
    // SAFETY: dlsym() gives functions as pointers to data, which have the same size; null is None. A
    // function of this name in a program that calls it is SDL's.
    let next = unsafe { mem::transmute::<*mut c_void, Option<Present>>(next) };
    Presented {
        next,
        words: map().unwrap_or_default(),
    }
}

fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is valid for a timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// SDL's function, and a note of when it returned. One thread of a program presents.
///
/// # Safety
/// As SDL's: `renderer` is one that SDL has made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn SDL_RenderPresent(renderer: *mut c_void) {
    let presented = PRESENTED.get_or_init(open);
    if let Some(next) = presented.next {
        // SAFETY: as the caller promises.
        unsafe { next(renderer) };
    }
    if let [count, frames @ ..] = presented.words {
        // ORDERING: the count is this thread's own.
        let nr = count.load(Ordering::Relaxed);
        if let Some(frame) = frames.get(nr as usize) {
            // ORDERING: the time goes before the count, which the reader looks at first: a file
            // is read after its mapping was written.
            frame.store(now(), Ordering::Relaxed);
            count.store(nr + 1, Ordering::Release);
        }
    }
}

unsafe extern "C" {
    static stdout: *mut libc::FILE;
    fn setvbuf(
        stream: *mut libc::FILE,
        buffer: *mut libc::c_char,
        mode: libc::c_int,
        size: libc::size_t,
    ) -> libc::c_int;
}

/// `_IOLBF` of glibc.
const LINE_BUFFERED: libc::c_int = 1;

extern "C" fn print_lines() {
    // SAFETY: libc has initialised its streams before it calls constructors.
    let stream = unsafe { stdout };
    // SAFETY: nothing has been printed yet, and no buffer means one of libc's own.
    unsafe { setvbuf(stream, null_mut(), LINE_BUFFERED, 0) };
}

// SAFETY: the section holds functions that libc calls when it has loaded this library.
#[unsafe(link_section = ".init_array")]
#[used]
static AT_START: extern "C" fn() = print_lines;
