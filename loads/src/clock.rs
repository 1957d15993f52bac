//! `CLOCK_MONOTONIC` in nanoseconds, read and slept by.

use std::mem::MaybeUninit;

/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;
/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;

/// The time now, in ns. Only differences mean anything.
#[must_use]
pub fn now() -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the pointer is valid for a timespec. The clock exists on every Linux, so the call
    // cannot fail; if it did, the zeroed value would stand.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, time.as_mut_ptr()) };
    // SAFETY: zeroed above, and a timespec of zeroes is valid.
    let time = unsafe { time.assume_init() };
    // Neither part is ever negative on this clock.
    time.tv_sec.unsigned_abs() * SECOND + time.tv_nsec.unsigned_abs()
}

/// Sleeps until `due` (ns); returns at once if that has passed.
pub fn sleep_until(due: u64) {
    let until = timespec(due);
    while now() < due {
        // SAFETY: `until` outlives the call, and an absolute sleep accepts a null remainder.
        unsafe {
            libc::clock_nanosleep(
                libc::CLOCK_MONOTONIC,
                libc::TIMER_ABSTIME,
                &raw const until,
                std::ptr::null_mut(),
            )
        };
    }
}

/// `ns` as the kernel takes it.
#[must_use]
pub fn timespec(ns: u64) -> libc::timespec {
    libc::timespec {
        tv_sec: (ns / SECOND).cast_signed(),
        tv_nsec: (ns % SECOND).cast_signed(),
    }
}

/// `ns` in seconds.
#[must_use]
pub fn seconds(ns: u64) -> f64 {
    ns as f64 / SECOND as f64
}

/// `seconds` in ns; negative or NaN is 0.
#[must_use]
pub fn nanoseconds(seconds: f64) -> u64 {
    (seconds * SECOND as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_ends_no_earlier_than_due() {
        let due = now() + 2 * MS;
        sleep_until(due);
        assert!(now() >= due);
    }

    #[test]
    fn a_time_that_has_passed_is_not_slept_for() {
        sleep_until(0);
    }

    #[test]
    fn timespec_splits_at_the_second() {
        let time = timespec(3 * SECOND + 5);
        assert_eq!((time.tv_sec, time.tv_nsec), (3, 5));
    }
}
