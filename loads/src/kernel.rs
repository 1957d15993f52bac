//! The machine and the scheduler that a run met.

use crate::clock::{MS, now};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::fs;

/// What /sys/kernel/sched_ext says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduler {
    /// `enabled`, `disabled` and so on; None on a kernel without sched_ext.
    pub state: Option<String>,
    /// The loaded scheduler's name; None if none is loaded.
    pub ops: Option<String>,
}

impl Scheduler {
    /// Reads it.
    #[must_use]
    pub fn read() -> Self {
        Self {
            state: line("/sys/kernel/sched_ext/state"),
            ops: line("/sys/kernel/sched_ext/root/ops"),
        }
    }

    /// A name for people.
    #[must_use]
    pub fn name(&self) -> &str {
        self.ops.as_deref().unwrap_or("default")
    }
}

/// The kernel's release.
#[must_use]
pub fn release() -> String {
    line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned())
}

/// CPUs online, at least 1.
#[must_use]
pub fn online_cpus() -> usize {
    // SAFETY: a plain number.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(count).unwrap_or(1).max(1)
}

/// Waits until hardly anything runs on this machine, for at most `limit` ns; false if that did not
/// come.
///
/// A guest that has just booted is busy for seconds with what the kernel put off. A scheduler that
/// is loaded may keep one CPU busy: that of its own thread.
///
/// # Errors
/// What `pause`, which sleeps until the time given to it (ns), returns.
pub fn wait_for_idle(limit: u64, mut pause: impl FnMut(u64) -> Result<()>) -> Result<bool> {
    let end = now() + limit;
    let cpus = online_cpus() as u64;
    let spared = u64::from(Scheduler::read().ops.is_some() && cpus > 1);
    let mut before = cpu_times();
    while now() < end {
        pause(now() + 100 * MS)?;
        let after = cpu_times();
        if is_idle(before, after, (cpus - spared, cpus)) {
            return Ok(true);
        }
        before = after;
    }
    Ok(false)
}

/// Time that all CPUs together have spent idle, and in all, in ticks; None if /proc/stat does not
/// say.
fn cpu_times() -> Option<[u64; 2]> {
    parse_cpu_times(&fs::read_to_string("/proc/stat").ok()?)
}

/// The first line of /proc/stat is `cpu user nice system idle iowait irq softirq steal ...`
/// (proc_stat(5)).
fn parse_cpu_times(stat: &str) -> Option<[u64; 2]> {
    let words = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace();
    // Guest time, after steal, is part of user time.
    let ticks: Vec<u64> = words.take(8).map_while(|word| word.parse().ok()).collect();
    Some([ticks.get(3)? + ticks.get(4)?, ticks.iter().sum()])
}

/// Of the time between the two, nine tenths were idle on so many of so many CPUs.
fn is_idle(before: Option<[u64; 2]>, after: Option<[u64; 2]>, (some, cpus): (u64, u64)) -> bool {
    let (Some(before), Some(after)) = (before, after) else {
        return false;
    };
    let [idle, all] = [0, 1].map(|index| after[index].saturating_sub(before[index]));
    all > 0 && idle * 10 * cpus >= all * 9 * some
}

/// The file's text without white space around it; None if there is no such file or nothing in it.
fn line(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_nine_tenths() {
        let before = parse_cpu_times("cpu  10 0 5 100 5 0 0 0 9 9\ncpu0 1 2 3\n");
        assert_eq!(before, Some([105, 120]));
        assert!(is_idle(before, Some([114, 130]), (1, 1)));
        assert!(!is_idle(before, Some([113, 130]), (1, 1)));
        assert!(!is_idle(before, before, (1, 1)) && !is_idle(None, before, (1, 1)));
    }

    #[test]
    fn a_schedulers_own_cpu_need_not_be_idle() {
        let before = Some([0, 0]);
        assert!(!is_idle(before, Some([70, 100]), (4, 4)));
        assert!(is_idle(before, Some([70, 100]), (3, 4)));
        assert!(!is_idle(before, Some([66, 100]), (3, 4)));
    }

    #[test]
    fn a_broken_proc_stat_says_nothing() {
        assert_eq!(parse_cpu_times("cpu  10"), None);
        assert_eq!(parse_cpu_times(""), None);
    }
}
