//! Weighted virtual runtime with deadlines: fair shares by weight, and quick answers for tasks that run briefly.
//!
//! Each task has a virtual runtime: the CPU time it used, scaled by 100 / weight. Virtual time is the largest that has got
//! a CPU. A task that slept comes back at most a lag behind it, so that sleep cannot be saved up. Its deadline is its
//! virtual runtime plus the CPU time it used since it last slept, at most a lag of it, scaled likewise: of two tasks with the
//! same share, the one that runs in short bursts is served before the one that would keep the CPU. One that has not slept
//! may be behind by as much as that puts its deadline off: a light one is due late, and must not lose its share by it.
//!
//! # Nobody starves
//! A waiting task is overtaken only by tasks with earlier deadlines, and those are at most two lags behind (at weight 100: one
//! of the two is scaled by its own). But virtual time slows down with the number of tasks, and hundreds that sleep and wake all the
//! time could make two lags last for many seconds. So virtual time never runs slower than a sixteenth of real time: under that
//! much load the order comes ever closer to first come, first served, and a task is overtaken for 32 lags at most.
//!
//! `docs/POLICY.md` has the whole of it, with plots.

use crate::abi::MAX_TASKS;
use crate::orders::Order;
use crate::policy::Policy;
use crate::task::{Kind, QueuedTask};

/// What is known about the task of one id. All zero: nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    birth: u32,
    /// Mean CPU time from wake-up to sleep, ns.
    burst: u32,
    vruntime: u64,
    /// `sum_exec_runtime` up to which `vruntime` has been charged.
    charged: u64,
    /// `sum_exec_runtime` and `nvcsw` at the last sleep that was seen.
    slept_at: u64,
    sleeps: u64,
    /// Sleeps seen, up to [`NEWBORN`].
    seen: u32,
}

/// A task whose bursts are longer in the mean is batch work.
const URGENT_BURST: u32 = 4_000_000;

/// A task is batch work until it has slept this often: a compiler job is short, too.
const NEWBORN: u32 = 4;

/// Deadlines of urgent tasks, from the wake-up on, are their mean burst, within these bounds.
const LATENCY: core::ops::RangeInclusive<u64> = 250_000..=8_000_000;

/// The policy, for task ids below `TASKS`: about 3 MB for all of them, so build it where it shall stay.
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
    without_orders: bool,
}

/// Real time passes at most this much faster than virtual time.
const SLOWEST: u64 = 16;

impl<const TASKS: usize> Deadline<TASKS> {
    /// A policy that gives slices of `slice_ns`, shortened under load to no less than `slice_min_ns`.
    pub const fn new(slice_ns: u64, slice_min_ns: u64) -> Self {
        Self {
            accounts: [Account {
                birth: 0,
                burst: 0,
                vruntime: 0,
                charged: 0,
                slept_at: 0,
                sleeps: 0,
                seen: 0,
            }; TASKS],
            now: 0,
            looked_at: 0,
            then: 0,
            slice_ns,
            slice_min_ns,
            without_orders: false,
        }
    }

    /// Whether tasks get standing orders; otherwise each wake-up is a question. At the start they do.
    pub fn set_orders(&mut self, orders: bool) {
        self.without_orders = !orders;
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

impl Account {
    /// The first time that a task is seen.
    fn open(task: &QueuedTask, now: u64) -> Self {
        Self {
            birth: task.birth(),
            vruntime: now,
            charged: task.sum_exec_runtime,
            slept_at: task.sum_exec_runtime,
            sleeps: task.nvcsw,
            ..Self::default()
        }
    }

    /// Takes in what a record says. Returns whether the task has slept since the one before.
    fn update(&mut self, task: &QueuedTask) -> bool {
        let used = task.sum_exec_runtime.saturating_sub(self.charged);
        self.charged = task.sum_exec_runtime;
        self.vruntime = self.vruntime.wrapping_add(scale(used, task.weight));

        let slept = task.nvcsw.wrapping_sub(self.sleeps);
        if slept == 0 || slept > u64::from(u32::MAX) {
            return false;
        }
        let ran = self.charged.saturating_sub(self.slept_at);
        let burst = (ran / slept).min(u64::from(u32::MAX)) as u32;
        // A mean over the last few bursts; the first one counts whole.
        self.burst = match self.seen {
            0 => burst,
            _ => self.burst - self.burst / 4 + burst / 4,
        };
        self.seen = self.seen.saturating_add(slept.min(64) as u32).min(NEWBORN);
        self.slept_at = self.charged;
        self.sleeps = task.nvcsw;
        true
    }

    fn is_urgent(&self) -> bool {
        self.seen >= NEWBORN && self.burst < URGENT_BURST
    }
}

/// CPU time as virtual time.
fn scale(runtime: u64, weight: u64) -> u64 {
    runtime.saturating_mul(100) / weight.max(1)
}

impl<const TASKS: usize> Deadline<TASKS> {
    /// Brings the account of a task up to date.
    fn account(&mut self, task: &QueuedTask) -> Option<&mut Account> {
        self.look_at_clock(task.enqueued_at);
        let (now, lag) = (self.now, self.lag());
        let account = self.accounts.get_mut(task.id as usize)?;
        if account.birth != task.birth() {
            *account = Account::open(task, now);
        }
        // Whoever sleeps saves nothing up. Who waits all the time falls behind by as much as its bursts put its deadline off.
        let may_be_behind = match account.update(task) {
            true => lag,
            false => lag.max(scale(lag, task.weight)),
        };
        let earliest = now.wrapping_sub(may_be_behind);
        if before(account.vruntime, earliest) {
            account.vruntime = earliest;
        }
        Some(account)
    }
}

impl<const TASKS: usize> Policy for Deadline<TASKS> {
    fn deadline(&mut self, task: &QueuedTask) -> u64 {
        let (now, lag) = (self.now, self.lag());
        self.account(task).map_or(now, |account| {
            let burst = scale(task.exec_runtime.min(lag), task.weight);
            account.vruntime.wrapping_add(burst)
        })
    }

    fn slice_ns(&mut self, id: u32, waiting: usize) -> u64 {
        if let Some(account) = self.accounts.get(id as usize)
            && before(self.now, account.vruntime)
        {
            self.now = account.vruntime;
        }
        (self.slice_ns / (waiting as u64 + 1)).max(self.slice_min_ns)
    }

    fn order(&mut self, task: &QueuedTask) -> Option<Order> {
        let account = self.accounts.get(task.id as usize)?;
        let burst = u64::from(account.burst);
        (account.is_urgent() && !self.without_orders).then(|| Order {
            latency_ns: burst.clamp(*LATENCY.start(), *LATENCY.end()),
            slice_ns: self.slice_min_ns.max(2 * burst),
            budget_ns: self.slice_min_ns.max(4 * burst),
            preempts: true,
            hand_off: true,
            cpu: None,
            inherit: false,
        })
    }

    fn event(&mut self, task: &QueuedTask) {
        self.account(task);
    }

    fn events(&self) -> u32 {
        // An idle machine is where to learn who is urgent before it is busy.
        Kind::Ordered.bit() | Kind::Direct.bit() | Kind::Gone.bit()
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
            ..QueuedTask::example(id, 1 << crate::abi::BIRTH_SHIFT, 0, 4)
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
    fn a_light_task_that_has_not_slept_keeps_what_its_late_deadline_made_it_wait_for() {
        let mut policy = policy();
        let light = |nvcsw, used| QueuedTask {
            nvcsw,
            ..task(1, 10, used, used)
        };
        let behind = |policy: &mut Deadline<8>, task: QueuedTask| {
            policy.event(&task);
            policy.now.wrapping_sub(policy.accounts[1].vruntime)
        };
        policy.event(&light(0, 0));
        policy.now = 60_000_000;
        assert_eq!(behind(&mut policy, light(0, 1_000_000)), 50_000_000);
        assert_eq!(behind(&mut policy, light(1, 1_000_000)), 5_000_000);
    }

    #[test]
    fn an_id_that_passes_to_another_task_starts_afresh() {
        let mut policy = policy();
        policy.deadline(&task(1, 100, 0, 0));
        policy.deadline(&task(1, 100, 500_000_000, 0));
        let heir = QueuedTask {
            generation: 2 << crate::abi::BIRTH_SHIFT,
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
