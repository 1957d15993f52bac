//! Weighted virtual runtime with deadlines: fair shares by weight, and quick answers for tasks that run briefly.
//!
//! Each task has a virtual runtime: the CPU time it used, scaled by 100 / weight. Virtual time is the largest that has got
//! a CPU. A task that slept comes back at most a lag behind it, so that sleep cannot be saved up. Its deadline is its
//! virtual runtime plus the CPU time it used since it last slept, scaled likewise and at most a lag: of two tasks with the
//! same share, the one that runs in short bursts is served before the one that would keep the CPU.
//!
//! # Nobody starves
//! A waiting task is overtaken only by tasks with earlier deadlines, and those are at most two lags behind. But virtual time
//! slows down with the number of tasks, and hundreds that sleep and wake all the time could make two lags last for many
//! seconds. So virtual time never runs slower than a sixteenth of real time: under that much load the order comes ever
//! closer to first come, first served, and a task is overtaken for 32 lags at most.

use crate::abi::MAX_TASKS;
use crate::policy::Policy;
use crate::task::QueuedTask;

/// What is known about the task of one id. All zero: nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    pid: i32,
    vruntime: u64,
    /// `sum_exec_runtime` up to which `vruntime` has been charged.
    charged: u64,
}

/// The policy, for task ids below `TASKS`: about 1.5 MB for all of them, so build it where it shall stay.
#[derive(Debug)]
pub struct Deadline<const TASKS: usize = MAX_TASKS> {
    accounts: [Account; TASKS],
    /// The largest virtual runtime that has got a CPU.
    now: u64,
    /// Real time when `now` was looked at last, and what it was then.
    looked_at: u64,
    then: u64,
    slice_ns: u64,
    slice_min_ns: u64,
}

/// Real time passes at most this much faster than virtual time.
const SLOWEST: u64 = 16;

impl<const TASKS: usize> Deadline<TASKS> {
    /// A policy that gives slices of `slice_ns`, shortened under load to no less than `slice_min_ns`.
    pub const fn new(slice_ns: u64, slice_min_ns: u64) -> Self {
        Self {
            accounts: [Account {
                pid: 0,
                vruntime: 0,
                charged: 0,
            }; TASKS],
            now: 0,
            looked_at: 0,
            then: 0,
            slice_ns,
            slice_min_ns,
        }
    }

    /// A quarter of the longest slice.
    fn lag(&self) -> u64 {
        self.slice_ns / 4
    }

    /// Keeps virtual time going.
    fn look_at_clock(&mut self, real: u64) {
        // The clocks of two CPUs may differ by a little; half an hour without a single record is a start, not a delay.
        let passed = real.saturating_sub(self.looked_at);
        if passed < 1 << 41 {
            let least = self.then.wrapping_add(passed / SLOWEST);
            if before(self.now, least) {
                self.now = least;
            }
        }
        self.looked_at = real.max(self.looked_at);
        self.then = self.now;
    }

    /// Sets the slices of a policy that was made of zeroed memory.
    pub fn set_slices(&mut self, slice_ns: u64, slice_min_ns: u64) {
        self.slice_ns = slice_ns;
        self.slice_min_ns = slice_min_ns;
    }
}

fn before(a: u64, b: u64) -> bool {
    (a.wrapping_sub(b) as i64) < 0
}

impl<const TASKS: usize> Policy for Deadline<TASKS> {
    fn deadline(&mut self, task: &QueuedTask) -> u64 {
        self.look_at_clock(task.enqueued_at);
        let lag = self.lag();
        let Some(account) = self.accounts.get_mut(task.id as usize) else {
            return self.now;
        };
        if account.pid != task.pid {
            *account = Account {
                pid: task.pid,
                vruntime: self.now,
                charged: task.sum_exec_runtime,
            };
        }
        let scale = |runtime: u64| runtime.saturating_mul(100) / task.weight.max(1);

        let used = task.sum_exec_runtime.saturating_sub(account.charged);
        account.charged = task.sum_exec_runtime;
        account.vruntime = account.vruntime.wrapping_add(scale(used));
        let earliest = self.now.wrapping_sub(lag);
        if before(account.vruntime, earliest) {
            account.vruntime = earliest;
        }
        account
            .vruntime
            .wrapping_add(scale(task.exec_runtime.min(lag)))
    }

    fn slice_ns(&mut self, id: u32, waiting: usize) -> u64 {
        if let Some(account) = self.accounts.get(id as usize)
            && before(self.now, account.vruntime)
        {
            self.now = account.vruntime;
        }
        (self.slice_ns / (waiting as u64 + 1)).max(self.slice_min_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Deadline<8> {
        Deadline::new(20_000_000, 1_000_000)
    }

    fn task(id: u32, weight: u64, sum_exec_runtime: u64, exec_runtime: u64) -> QueuedTask {
        QueuedTask {
            weight,
            sum_exec_runtime,
            exec_runtime,
            ..QueuedTask::example(id, 0, 0, 4)
        }
    }

    #[test]
    fn who_used_more_cpu_waits_longer_and_weight_scales_it() {
        let mut policy = policy();
        for (id, weight) in [(1, 100), (2, 100), (3, 200)] {
            policy.deadline(&task(id, weight, 0, 0));
        }
        let light = policy.deadline(&task(1, 100, 1_000_000, 0));
        let heavy = policy.deadline(&task(2, 100, 8_000_000, 0));
        let heavy_but_important = policy.deadline(&task(3, 200, 8_000_000, 0));
        assert!(before(light, heavy_but_important) && before(heavy_but_important, heavy));
        assert_eq!(heavy.wrapping_sub(light), 7_000_000);
    }

    #[test]
    fn of_equal_shares_the_short_burst_comes_first() {
        let mut policy = policy();
        let hog = policy.deadline(&task(1, 100, 0, 15_000_000));
        let sleeper = policy.deadline(&task(2, 100, 0, 100_000));
        assert!(before(sleeper, hog));
    }

    #[test]
    fn a_long_sleep_earns_one_lag_of_credit_and_no_more() {
        let mut policy = policy();
        policy.deadline(&task(1, 100, 0, 0));
        policy.deadline(&task(2, 100, 0, 0));
        policy.deadline(&task(2, 100, 900_000_000, 0));
        policy.slice_ns(2, 0);
        assert_eq!(
            policy.deadline(&task(1, 100, 0, 0)),
            900_000_000 - 5_000_000
        );
    }

    #[test]
    fn an_id_that_passes_to_another_task_starts_afresh() {
        let mut policy = policy();
        policy.deadline(&task(1, 100, 0, 0));
        policy.deadline(&task(1, 100, 500_000_000, 0));
        let heir = QueuedTask {
            pid: 4711,
            ..task(1, 100, 7_000_000_000, 0)
        };
        assert_eq!(policy.deadline(&heir), 0);
    }

    #[test]
    fn a_waiting_hog_is_overtaken_for_a_bounded_time_by_hundreds_of_sleepers() {
        let mut policy = policy();
        let hog = policy.deadline(&task(1, 100, 50_000_000, 50_000_000));
        // Sleepers that never use any CPU time: virtual time stands still but for the clock.
        let wakes_at = |real| QueuedTask {
            enqueued_at: real,
            ..task(2, 100, 0, 0)
        };
        let overtakes =
            |policy: &mut Deadline<8>, real| before(policy.deadline(&wakes_at(real)), hog);
        assert!(overtakes(&mut policy, 0));
        assert!(overtakes(&mut policy, 10_000_000));
        for ms in 11..32 * 5 {
            policy.deadline(&wakes_at(ms * 1_000_000));
        }
        assert!(!overtakes(&mut policy, 32 * 5_000_000));
    }

    #[test]
    fn slices_shrink_with_the_number_of_waiting_tasks_to_a_minimum() {
        let mut policy = policy();
        assert_eq!(policy.slice_ns(1, 0), 20_000_000);
        assert_eq!(policy.slice_ns(1, 3), 5_000_000);
        assert_eq!(policy.slice_ns(1, 1000), 1_000_000);
    }
}
