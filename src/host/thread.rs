//! The scheduler thread's place: its CPU and its scheduling class, given back when it ends.

use std::fs;
use std::io;
use std::mem;

use anyhow::{Context, Result, bail};
use core_affinity::CoreId;

use super::topology::{Reach, parse_list};

use crate::abi::MAX_RINGS;

/// `SCHED_EXT` of `include/uapi/linux/sched.h`.
const SCHED_EXT: i32 = 7;

/// While it lives, the thread that made it runs on one CPU, in the class SCHED_EXT.
#[derive(Debug)]
pub(super) struct Place {
    affinity: libc::cpu_set_t,
    policy: i32,
    parameters: libc::sched_param,
    _not_send: std::marker::PhantomData<*mut ()>,
}

impl Place {
    /// Moves the calling thread to `cpu`.
    pub(super) fn take(cpu: u32) -> Result<Self> {
        let place = Self::current()?;
        if !core_affinity::set_for_current(CoreId { id: cpu as usize }) {
            bail!(
                "cannot move the scheduler thread to CPU {cpu}: {}",
                io::Error::last_os_error()
            );
        }
        set_policy(SCHED_EXT, &libc::sched_param { sched_priority: 0 })
            .context("cannot put the scheduler thread into the class SCHED_EXT (a systemd unit must not set RestrictRealtime=)")?;
        Ok(place)
    }

    fn current() -> Result<Self> {
        let affinity = affinity()?;
        let mut parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: `parameters` is live.
        unsafe { libc::sched_getparam(0, &mut parameters) };
        // SAFETY: a plain system call.
        let policy = unsafe { libc::sched_getscheduler(0) };
        Ok(Self {
            affinity,
            policy,
            parameters,
            _not_send: std::marker::PhantomData,
        })
    }

    /// The CPUs that the thread was allowed before: for threads it has started meanwhile.
    pub(super) fn former_affinity(&self) -> libc::cpu_set_t {
        self.affinity
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Failing leaves the thread where it is, which is no worse than before.
        let _ = set_affinity(&self.affinity);
        let _ = set_policy(self.policy, &self.parameters);
    }
}

/// While it lives, the thread that made it has nice level -20, if it may: loading a scheduler is a
/// second of work for the verifier, and a machine that is full waits for it.
#[derive(Debug)]
pub(super) struct Haste {
    nice: i32,
    _not_send: std::marker::PhantomData<*mut ()>,
}

impl Haste {
    pub(super) fn make() -> Self {
        // SAFETY: a plain system call. It returns -1 for that level as for an error, of which there
        // is none for oneself.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        set_nice(-20);
        Self {
            nice,
            _not_send: std::marker::PhantomData,
        }
    }
}

impl Drop for Haste {
    fn drop(&mut self) {
        set_nice(self.nice);
    }
}

/// Of the calling thread. Upwards always works, and where downwards does not, it is only slower.
fn set_nice(nice: i32) {
    // SAFETY: a plain system call.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

/// ns on the clock `CLOCK_MONOTONIC`. No system call.
pub(super) fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is live. The clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Whether the CPU is one of a hypervisor's. Where it does not say so, it is taken for a real one.
pub(super) fn is_virtual() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        // CPUID_EXT_HYPERVISOR, which processors keep clear.
        core::arch::x86_64::__cpuid(1).ecx >> 31 & 1 == 1
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Sleeps until one of the files can be read, a signal comes, or a tenth of a second has passed:
/// some of what ends the scheduler wakes no thread.
pub(super) fn sleep_until_readable(fds: impl Iterator<Item = i32>) {
    const TIMEOUT_MS: i32 = 100;
    let mut polled = heapless::Vec::<libc::pollfd, MAX_RINGS>::new();
    polled.extend(fds.take(MAX_RINGS).map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    }));
    // SAFETY: the array is live and as long as told. Whatever comes back, the caller looks.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as _, TIMEOUT_MS) };
}

/// Where the calling thread may go.
pub(super) fn reach() -> Result<Reach> {
    let own = affinity()?;
    // A cpuset shows in no file at a fixed place. But a thread that asks for all CPUs gets those of
    // it.
    set_affinity(&set_of(0..libc::CPU_SETSIZE as u32))
        .context("cannot find out which CPUs this process may use")?;
    let widest = current_affinity();
    set_affinity(&own).context("cannot take the scheduler thread's affinity back")?;
    Ok(Reach {
        affinity: cpus_of(&own),
        cpuset: cpus_of(&widest?),
    })
}

fn cpus_of(set: &libc::cpu_set_t) -> Vec<u32> {
    let is_set = |cpu: &u32| {
        // SAFETY: the number is below the size of the set.
        unsafe { libc::CPU_ISSET(*cpu as usize, set) }
    };
    (0..libc::CPU_SETSIZE as u32).filter(is_set).collect()
}

/// The CPUs that the calling thread is allowed, those that are offline too, so that it gets all
/// back when they return. sched_getaffinity() leaves those out, and serves only where there is no
/// /proc.
fn affinity() -> Result<libc::cpu_set_t> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .and_then(parse_list);
    match list {
        Some(cpus) if !cpus.is_empty() => Ok(set_of(cpus)),
        _ => current_affinity(),
    }
}

fn set_of(cpus: impl IntoIterator<Item = u32>) -> libc::cpu_set_t {
    // SAFETY: a cpu_set_t is a bit array.
    let mut set = unsafe { mem::zeroed::<libc::cpu_set_t>() };
    for cpu in cpus {
        if cpu < libc::CPU_SETSIZE as u32 {
            // SAFETY: the number is below the size of the set.
            unsafe { libc::CPU_SET(cpu as usize, &mut set) };
        }
    }
    set
}

/// The CPUs where the calling thread may run at this moment.
fn current_affinity() -> Result<libc::cpu_set_t> {
    let mut cpus = set_of([]);
    // SAFETY: `cpus` is live and of the size told.
    match unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut cpus) } {
        0 => Ok(cpus),
        _ => Err(io::Error::last_os_error()).context("cannot read the scheduler thread's affinity"),
    }
}

/// Allows the calling thread these CPUs.
pub(super) fn set_affinity(cpus: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: `cpus` is live and of the size told.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), cpus) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_policy(policy: i32, parameters: &libc::sched_param) -> io::Result<()> {
    // SAFETY: `parameters` is live.
    match unsafe { libc::sched_setscheduler(0, policy, parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The id of the calling thread, as this process sees it.
pub(super) fn id() -> i32 {
    // SAFETY: a plain system call.
    unsafe { libc::gettid() }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn haste_is_over_when_it_is_over() {
        // SAFETY: a plain system call.
        let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = nice();
        let haste = Haste::make();
        assert!(nice() <= before);
        drop(haste);
        assert_eq!(nice(), before);
    }

    #[test]
    fn the_affinity_is_narrower_than_the_cpuset_and_stays_as_it_was() {
        let before = cpus_of(&current_affinity().unwrap());
        let one = before.last().copied().unwrap();
        set_affinity(&set_of([one])).unwrap();
        let reach = reach().unwrap();
        assert_eq!(reach.affinity, [one]);
        assert!(before.iter().all(|cpu| reach.cpuset.contains(cpu)));
        assert_eq!(cpus_of(&affinity().unwrap()), [one]);
    }
}
