//! How the latency-sensitive threads are scheduled.

use anyhow::{Context, Result};
use std::io;

/// The SCHED_FIFO priority of `--rt`.
const FIFO_PRIORITY: libc::c_int = 10;

/// The scheduling policy of the latency-sensitive threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// SCHED_OTHER, nice 0: what the scheduler under test schedules.
    Other,
    /// SCHED_FIFO: what one could get by asking for privileges instead.
    Fifo,
}

/// Runs `start` such that the threads that it starts have `policy` and timers without slack.
///
/// New threads inherit both from the one that starts them, so that one, the caller, takes them on
/// meanwhile. The slack (by default 50 µs, for SCHED_OTHER only) would be counted as the
/// scheduler's.
///
/// # Errors
/// SCHED_FIFO is not allowed, or what `start` returns.
pub fn with_policy<T>(policy: Policy, start: impl FnOnce() -> Result<T>) -> Result<T> {
    timer_slack(1)?;
    if policy == Policy::Fifo {
        set_scheduler(libc::SCHED_FIFO, FIFO_PRIORITY)
            .context("SCHED_FIFO refused (run as root, or without --rt)")?;
    }
    let result = start();
    if policy == Policy::Fifo {
        set_scheduler(libc::SCHED_OTHER, 0).context("cannot return to SCHED_OTHER")?;
    }
    // 0 is the default.
    timer_slack(0)?;
    result
}

fn timer_slack(ns: libc::c_ulong) -> Result<()> {
    // SAFETY: plain numbers.
    let result = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, ns) };
    check(result).context("cannot set the timer slack")
}

fn set_scheduler(policy: libc::c_int, priority: libc::c_int) -> Result<()> {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: 0 is the calling thread; the parameters outlive the call.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    check(result)
}

fn check(result: libc::c_int) -> Result<()> {
    if result != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}
