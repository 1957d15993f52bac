//! Weighted virtual runtime with deadlines: fair shares by weight, and quick answers for tasks that
//! run briefly.
//!
//! Each task has a virtual runtime: the CPU time it used, scaled by 100 / share: its weight, or
//! what that is worth beside those of other control groups ([`QueuedTask::share`]). Virtual time
//! follows the largest that is handed out, by a lag at a time, so that a light task, which may be
//! far ahead, does not take it along. A task that slept comes back at most a lag behind it, so that
//! sleep cannot be saved up. Its deadline is its virtual runtime plus the CPU time it used since it
//! last slept, at most a lag of it, scaled likewise: of two tasks with the same share, the one that
//! runs in short bursts is served before the one that would keep the CPU. One that has not slept
//! may be behind by as much as that puts its deadline off: a light one is due late, and must not
//! lose its share by it.
//!
//! # What is not charged
//! CPU time that no other task wanted: a task that an idle CPU took is level with virtual time
//! ([`QueuedTask::found_idle`]), and of a run that was longer than any slice, so that no task can
//! have waited there unless it was by an order, a lag is charged. And no task is further ahead of
//! virtual time than 32 lags: a light one would be due only after the kernel's watchdog has lost
//! its patience.
//!
//! # Which tasks are urgent
//! A task that sleeps regularly gets a standing order, which is served before everything in the
//! queue: after short bursts, or after longer ones if it really rests in between, as a game does
//! until its next frame. That is a privilege that a task could take by sleeping on purpose, so
//! it is served as if it were so many times heavier than its weight says (the boost), and never
//! more. That is kept as a leaky bucket: its CPU time by weight flows in, virtual time times the
//! boost flows out, and a task whose bucket runs over takes turns, as all others, until the bucket
//! is half empty. A task whose order's budget is used up is late, and goes on for a while before
//! those without an order. An order that may cost more than the bucket holds is not given. A task
//! that only naps has no boost, nor has one that works for no frame. Tasks of SCHED_BATCH and
//! SCHED_IDLE are never urgent.
//!
//! A frame begins with a timer or a device, and the tasks that work for it wake each other from
//! there on: they are *rooted*. Threads that wake each other and are woken by nothing else, as
//! those of an encoder are, look the same one by one. With long bursts they are batch work, and
//! with short ones they come last of all that is urgent, and have their fair share by their orders.
//!
//! Urgency goes along wake-up chains, from the mouse to the game and on to its workers: a task that
//! is mostly woken by tasks with orders is as urgent as its caller. It goes the other way, too, to
//! the loop of a game that never sleeps, if urgent threads of its process wait for it: each time
//! that it wakes one ([`Kind::Caller`]) a frame ends. The bound is the same.
//!
//! # No task starves
//! A waiting task is overtaken only by tasks with earlier deadlines, and those are at most two lags
//! behind (at weight 100: one of the two is scaled by its own). But virtual time slows down with
//! the number of tasks, and hundreds that sleep and wake all the time could make two lags last for
//! many seconds. So virtual time never runs slower than a sixteenth of real time: under that
//! much load the order comes ever closer to first come, first served, and a task is overtaken for
//! 32 lags at most.
//!
//! `docs/POLICY.md` has the whole of it, with plots.

use core::fmt;
use core::mem;
use core::str::FromStr;

use crate::abi::{EPOCHS, LATE_BUDGETS, LEAD_LAGS, MAX_TASKS, ORDER_UNIT_NS, SHARE, SLOWEST};
use crate::orders::Order;
use crate::policy::{Machine, Policy};
use crate::prefetch::prefetch;
use crate::task::{Kind, Kinds, QueuedTask};

mod clock;
use clock::{KernelClock, before};
mod chains;
pub use chains::{Chain, Chains, MAX_CHAINS, MAX_MEMBERS};

/// What is known about the task of one id: a cache line. All zero: nothing.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Account {
    vruntime: u64,
    /// `sum_exec_runtime` up to which `vruntime` has been charged.
    charged: u64,
    /// Virtual time of the last record.
    heard_at: u64,
    /// CPU time since the last sleep that was seen, ns, and `nvcsw` then, which wraps.
    ran: u32,
    sleeps: u32,
    /// Mean CPU time from wake-up to sleep, ns, and mean time asleep.
    burst: u32,
    asleep: u32,
    /// What is in its bucket, ns of virtual time, up to [`DEEPEST`].
    spent: u32,
    pid: i32,
    /// When it last woke an urgent thread of its process, µs, which wraps.
    called_at: u32,
    epoch: u16,
    /// The mean burst of the last task with an order that woke it, in units of an order's times.
    caller: u16,
    /// How much of its wake-ups comes from the world outside, of [`ROOTED`].
    rooted: u16,
    /// Sleeps seen, up to [`NEWBORN`].
    seen: u8,
    /// How many of its wake-ups come from tasks with orders, of [`ALWAYS`]: a mean over the last
    /// few.
    called: u8,
    /// How often it has woken one, each time soon enough after the time before, up to [`NEWBORN`].
    calls: u8,
    /// The longest burst of late, in [`LONGEST_UNIT`]s.
    longest: u8,
    /// [`HAS_SLEPT`], [`IS_ORDERED`].
    flags: u8,
    /// Which of the [`Chains`] it works for.
    chain: u8,
}

/// [`Account::flags`]: it has slept since it last woke an urgent thread of its process.
const HAS_SLEPT: u8 = 1;

/// [`Account::flags`]: it has an order.
const IS_ORDERED: u8 = 2;

const _: () = assert!(size_of::<Account>() == 64 && EPOCHS <= 1 << 16);
const _: () = assert!(DEEPEST <= u32::MAX as u64);

impl Account {
    const NONE: Self = Self {
        vruntime: 0,
        charged: 0,
        heard_at: 0,
        ran: 0,
        sleeps: 0,
        burst: 0,
        asleep: 0,
        spent: 0,
        caller: 0,
        rooted: 0,
        pid: 0,
        called_at: 0,
        epoch: 0,
        seen: 0,
        called: 0,
        calls: 0,
        longest: 0,
        flags: 0,
        chain: 0,
    };

    fn is_ordered(&self) -> bool {
        self.flags & IS_ORDERED != 0
    }
}

/// A task whose bursts are longer in the mean is batch work, ns: two frames.
const LONGEST_BURST: u32 = 33_000_000;

/// ns, of [`Account::longest`].
const LONGEST_UNIT: u32 = 250_000;

/// A longer burst counts as this, ns: one time that a game is late makes no batch work of it, and
/// bursts of which every second is so long do.
const LONGEST_COUNTED: u32 = 90_000_000;

/// A thread that wakes an urgent one of its process is the loop of a game, if there are at most so
/// many µs between two times, and no more CPU time than [`LONGEST_BURST`]. One that is late on a
/// full machine has a tenth of a CPU.
const SELDOM: u32 = 300_000;

/// Longer bursts than this, ns, are those of a whole frame, or of batch work that waits for a file
/// now and then.
const SHORT_BURST: u32 = 4_000_000;

/// A task that sleeps for less than a quarter of its burst, in the mean, and for less than this,
/// ns, just naps: it would have the CPU. By its orders it may have its fair share, and no order
/// with long bursts. It may also be one that is late and catches up.
const REST: u32 = 500_000;

/// [`Account::called`] of a task that is woken by none but tasks with orders.
const ALWAYS: u8 = 128;

/// [`Account::rooted`] of a task that is woken by none but timers and devices. One that it wakes
/// has a sixteenth less, and so on along the chain.
const ROOTED: u16 = 1 << 14;

/// A task is batch work until it has slept this often: a compiler job is short, too.
const NEWBORN: u8 = 4;

/// The least CPU time since its sleep for which the order of a task holds, ns. An interrupted task
/// pays for it, and a flood of tasks that end brings work of the kernel that it did not ask for: it
/// calls RCU's callbacks for 3 ms at a time (`rcu_resched_ns` in kernel/rcu/tree.c), and other
/// deferred work for 2 ms (`MAX_SOFTIRQ_TIME` in kernel/softirq.c).
const LEAST_BUDGET: u64 = 8_000_000;

/// An order holds for four bursts, and for no more than a burst and this, ns.
const OVERTIME: u64 = 30_000_000;

/// Deadlines of urgent tasks, from the wake-up on, are their mean burst, within these bounds. Those
/// of late ones are no sooner than the last of these (`LATE_NS` in bpf/orders.h).
const LATENCY: core::ops::RangeInclusive<u64> = 250_000..=LONGEST_BURST as u64;

/// By its orders a task may have so many fair shares, if nothing else is said.
pub const BOOST: u32 = 8;

/// More than this in its bucket, ns of virtual time, and a task has overdrawn its allowance: some
/// of a game's frames are long.
const OVERDRAWN: u64 = 20_000_000;

/// The bucket holds no more: no task is an outlaw for ever.
const DEEPEST: u64 = 4_000_000_000;

/// What woke a task.
#[derive(Clone, Copy, Debug)]
struct Waker {
    /// The mean burst of a task with an order, ns.
    ordered: Option<u32>,
    /// Of [`ROOTED`].
    rooted: u16,
    /// Its [`Account::chain`]; `None` is the world outside.
    chain: Option<u8>,
}

impl Waker {
    const OUTSIDE: Self = Self {
        ordered: None,
        rooted: ROOTED,
        chain: None,
    };
}

/// Which tasks get standing orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Ordered {
    /// All: those that are not urgent take turns ([`Order::in_turn`]), and hardly any is asked
    /// about.
    #[default]
    All,
    /// Urgent ones. All others are asked about, each time that no CPU is idle for them.
    Urgent,
    /// None.
    None,
}

impl fmt::Display for Ordered {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::All => "all",
            Self::Urgent => "urgent",
            Self::None => "none",
        })
    }
}

impl FromStr for Ordered {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::All),
            "urgent" => Ok(Self::Urgent),
            "none" => Ok(Self::None),
            _ => Err("must be all, urgent or none"),
        }
    }
}

/// The policy, for task ids below `TASKS`: 4.25 MiB for all of them, so build it where it shall
/// stay.
#[derive(Debug)]
pub struct Deadline<const TASKS: usize = MAX_TASKS> {
    accounts: [Account; TASKS],
    /// Ids by the remainder of the thread id, to find a waker by; the account says whether it is
    /// meant.
    by_pid: [u32; TASKS],
    chains: Chains,
    /// Virtual time.
    now: u64,
    /// Real time when `now` was looked at last, and what it was then.
    looked_at: u64,
    then: u64,
    /// Whether virtual time is that of the kernel side.
    follows: bool,
    kernel: KernelClock,
    slice_ns: u64,
    slice_min_ns: u64,
    boost: u32,
    ordered: Ordered,
}

impl<const TASKS: usize> Deadline<TASKS> {
    /// A policy that gives slices of `slice_ns`, shortened under load to no less than
    /// `slice_min_ns`.
    pub const fn new(slice_ns: u64, slice_min_ns: u64) -> Self {
        Self {
            accounts: [Account::NONE; TASKS],
            by_pid: [0; TASKS],
            chains: Chains::NONE,
            now: 0,
            looked_at: 0,
            then: 0,
            follows: false,
            kernel: KernelClock::standing(0, 0),
            slice_ns,
            slice_min_ns,
            boost: BOOST,
            ordered: Ordered::All,
        }
    }

    /// How many fair shares a task may have by its orders, at least 1.
    pub fn set_boost(&mut self, boost: u32) {
        self.boost = boost;
    }

    /// Which tasks get standing orders. At the start all do.
    pub fn set_ordered(&mut self, ordered: Ordered) {
        self.ordered = ordered;
    }

    /// The chains of tasks that work for a frame together, for those who look on: no decision
    /// depends on them.
    pub fn chains(&self) -> &Chains {
        &self.chains
    }

    /// A quarter of the longest slice.
    fn lag(&self) -> u64 {
        self.slice_ns / 4
    }

    /// Brings virtual time up to that of a record.
    fn look_at_clock(&mut self, real: u64) {
        if self.follows {
            let now = self.kernel.at(real);
            if before(self.now, now) {
                self.now = now;
            }
            return;
        }
        // The clocks of two CPUs may differ by a little; half an hour without a single record is a
        // start, not a delay.
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

    /// Where tasks take turns without us, theirs is the clock, which stands at `clock` at the real
    /// time `real`. 0: they have none.
    fn follow(&mut self, clock: u64, real: u64) {
        let did_follow = mem::replace(
            &mut self.follows,
            self.ordered == Ordered::All && clock != 0,
        );
        if !self.follows {
            return;
        }
        // Of another clock before, or of one that began anew.
        if !did_follow || before(clock, self.now) {
            self.now = clock;
            self.kernel = KernelClock::standing(clock, real);
        }
        self.kernel = self.kernel.read(clock, real);
    }

    /// Sets the slices of a policy that was made of zeroed memory.
    pub fn set_slices(&mut self, slice_ns: u64, slice_min_ns: u64) {
        self.slice_ns = slice_ns;
        self.slice_min_ns = slice_min_ns;
    }
}

impl Account {
    /// The first time that a task is seen.
    fn open(task: &QueuedTask, now: u64) -> Self {
        Self {
            epoch: task.epoch() as u16,
            pid: task.pid,
            vruntime: now,
            charged: task.sum_exec_runtime,
            sleeps: task.nvcsw as u32,
            heard_at: now,
            ..Self::NONE
        }
    }

    /// Charges the CPU time that it had since the record before.
    fn charge(&mut self, task: &QueuedTask, slice_ns: u64, now: u64, boost: u32) {
        let used = task.sum_exec_runtime.saturating_sub(self.charged);
        self.charged = task.sum_exec_runtime;
        self.ran = at_most_u32(u64::from(self.ran).saturating_add(used));
        // By an order it may have run for longer though others waited.
        let opposed = match used > 2 * slice_ns && !self.is_ordered() {
            true => slice_ns / 4,
            false => used,
        };
        let used = by_share(opposed, task);
        self.vruntime = self.vruntime.wrapping_add(used);

        // Virtual time is what a task of its weight that always waits gets meanwhile.
        let passed = (now.wrapping_sub(self.heard_at) as i64).max(0) as u64;
        self.heard_at = now;
        let boost = if self.may_be_boosted() { boost } else { 1 };
        let earned = passed.saturating_mul(boost.into());
        let left = u64::from(self.spent).saturating_sub(earned);
        let spent = match task.found_idle() {
            true => 0,
            false => left.saturating_add(used),
        };
        self.spent = spent.min(DEEPEST) as u32;
    }

    /// Takes in whether it has slept since the record before, and who woke it.
    fn note_sleep(&mut self, task: &QueuedTask, waker: Waker) -> bool {
        let slept = (task.nvcsw as u32).wrapping_sub(self.sleeps);
        if slept == 0 || slept > i32::MAX as u32 {
            return false;
        }
        self.note_longest(task, self.ran / slept);
        self.end_burst(self.ran / slept);
        self.flags |= HAS_SLEPT;
        if task.is_wakeup() && task.stop_ts != 0 {
            // The last of its sleeps.
            let asleep = at_most_u32(task.enqueued_at.saturating_sub(task.stop_ts));
            self.asleep = match self.asleep {
                0 => asleep,
                _ => self.asleep - self.asleep / 4 + asleep / 4,
            };
        }
        self.seen = slept.saturating_add(self.seen.into()).min(NEWBORN.into()) as u8;
        self.sleeps = task.nvcsw as u32;
        self.note_waker(waker);
        true
    }

    /// A mean over the last few bursts; the first one counts whole.
    fn end_burst(&mut self, burst: u32) {
        let burst = burst.min(LONGEST_COUNTED);
        self.burst = match self.seen {
            0 => burst,
            _ => self.burst - self.burst / 4 + burst / 4,
        };
        self.ran = 0;
    }

    /// Takes in the longest of its bursts since the record before, which were so long in the mean.
    /// The last one was no shorter than its last run.
    fn note_longest(&mut self, task: &QueuedTask, mean: u32) {
        let last = at_most_u32(task.stop_ts.saturating_sub(task.start_ts)).min(self.ran);
        let longest = mean.max(last).min(LONGEST_BURST);
        let units = longest.div_ceil(LONGEST_UNIT) as u8;
        self.longest = units.max(self.longest - self.longest.div_ceil(16));
    }

    /// Takes in whether it has woken an urgent thread of its process. If it has not slept since the
    /// time before, that ends a burst as a sleep would. Returns whether a frame of a loop has ended
    /// so.
    fn note_call(&mut self, task: &QueuedTask) -> bool {
        let at = (task.enqueued_at / 1000) as u32;
        if at.wrapping_sub(self.called_at) > SELDOM || self.ran > LONGEST_BURST {
            self.calls = 0;
        }
        if task.kind() != Kind::Caller {
            return false;
        }
        let is_loop = self.flags & HAS_SLEPT == 0;
        self.flags &= !HAS_SLEPT;
        if is_loop {
            match self.calls {
                0 => self.ran = 0,
                _ => self.end_burst(self.ran),
            }
        }
        self.called_at = at;
        self.calls = (self.calls + 1).min(NEWBORN);
        is_loop && self.leads()
    }

    /// Whether it is the loop of a game: threads that are urgent wait for it.
    fn leads(&self) -> bool {
        self.calls == NEWBORN
    }

    /// It has been woken.
    fn note_waker(&mut self, waker: Waker) {
        self.rooted = self.rooted - self.rooted / 4 + waker.rooted / 4;
        self.called -= self.called / 4;
        if let Some(burst) = waker.ordered {
            self.called += ALWAYS / 4;
            let units = burst.div_ceil(ORDER_UNIT_NS as u32);
            self.caller = units.min(u16::MAX.into()) as u16;
        }
    }

    /// Whether it is on a chain that begins with a timer or a device.
    fn is_rooted(&self) -> bool {
        self.rooted > ROOTED / 8
    }

    fn is_called(&self) -> bool {
        self.called > ALWAYS / 2
    }

    fn is_urgent(&self) -> bool {
        (self.seen >= NEWBORN || self.leads())
            && self.burst <= LONGEST_BURST
            && (self.burst <= SHORT_BURST || self.leads() || (self.rests() && self.is_rooted()))
    }

    /// Whether it sleeps for more than a nap, as one does that waits for the next frame, or ends
    /// its frames in another way.
    fn rests(&self) -> bool {
        self.leads() || self.asleep >= (self.burst / 4).min(REST)
    }

    /// Whether it may have more than its fair share by its orders, for a frame's sake.
    fn may_be_boosted(&self) -> bool {
        self.leads() || (self.rests() && self.is_rooted())
    }

    /// How soon after its wake-up it should run, in ns.
    fn latency(&self, weight: u32) -> u64 {
        if !self.is_rooted() {
            return *LATENCY.end();
        }
        let burst = match self.is_called() {
            true => self
                .burst
                .min(u32::from(self.caller) * ORDER_UNIT_NS as u32),
            false => self.burst,
        };
        let scaled = u64::from(burst) * 100 / u64::from(weight.max(1));
        scaled.clamp(*LATENCY.start(), *LATENCY.end())
    }

    /// How long the next burst may well be, ns. A game that looks at the clock each ms until its
    /// next frame is due has short bursts in the mean, and a long one for the frame.
    fn long_burst(&self) -> u64 {
        (u32::from(self.longest) * LONGEST_UNIT)
            .max(self.burst)
            .into()
    }

    /// CPU time since its sleep for which an order of its holds, ns.
    fn budget(&self) -> u64 {
        let burst = self.long_burst();
        LEAST_BUDGET.max((4 * burst).min(burst + OVERTIME))
    }

    /// Whether it keeps within its allowance, or else within its fair share: then it is not far
    /// ahead of virtual time. And only if what it may run for by one more order can be held against
    /// it: of a light task that may be seconds of virtual time.
    fn may_be_ordered(&self, now: u64, task: &QueuedTask) -> bool {
        let spare = if self.is_ordered() {
            OVERDRAWN
        } else {
            OVERDRAWN / 2
        };
        // The last burst has just been charged. What a long one is longer than the mean is not
        // scaled: threads whose share is small may be many.
        let longer = self.long_burst() - u64::from(self.burst);
        let limit = spare + longer + by_share(self.burst.into(), task);
        // What is past the budget grows with the share.
        let next = by_share(self.budget(), task) + LATE_BUDGETS * self.budget();
        let is_allowed = u64::from(self.spent) <= limit && limit + next <= DEEPEST;
        let is_fair = !before(now.wrapping_add(spare), self.vruntime);
        is_allowed || is_fair
    }
}

fn at_most_u32(ns: u64) -> u32 {
    ns.min(u32::MAX.into()) as u32
}

/// CPU time as virtual time: scaled by the task's share.
fn by_share(runtime: u64, task: &QueuedTask) -> u64 {
    runtime.saturating_mul(100 * SHARE) / task.share()
}

impl<const TASKS: usize> Deadline<TASKS> {
    /// What is known of the task's waker. Of a kernel thread of one CPU nothing is, nor of a task
    /// that never slept: to the woken one they are the world outside, as interrupts are.
    fn waker_of(&self, task: &QueuedTask) -> Waker {
        let id = self.by_pid.get(task.waker as usize % TASKS);
        let waker = id.and_then(|id| self.accounts.get(*id as usize));
        match waker.filter(|waker| task.waker != 0 && waker.pid == task.waker) {
            None => Waker::OUTSIDE,
            Some(waker) => Waker {
                ordered: waker.is_ordered().then_some(waker.burst),
                rooted: waker.rooted - waker.rooted / 16,
                chain: Some(waker.chain),
            },
        }
    }

    /// Brings the account of a task up to date.
    fn account(&mut self, task: &QueuedTask) -> Option<&mut Account> {
        self.look_at_clock(task.enqueued_at);
        let waker = self.waker_of(task);
        if let Some(id) = self.by_pid.get_mut(task.pid as usize % TASKS) {
            *id = task.id;
        }
        let (slice_ns, lag) = (self.slice_ns, self.lag());
        let (now, boost) = (self.now, self.boost.max(1));
        let account = self.accounts.get_mut(task.id as usize)?;
        if u32::from(account.epoch) != task.epoch() {
            *account = Account::open(task, self.now);
        }
        account.charge(task, slice_ns, now, boost);
        // Virtual time is not taken along: those that wait meanwhile have their deadlines, and
        // would all be early.
        if task.found_idle() && before(self.now, account.vruntime) {
            account.vruntime = self.now;
        }
        // A task that sleeps saves nothing up. One that waits all the time falls behind by as much
        // as its bursts put its deadline off.
        let may_be_behind = match account.note_sleep(task, waker) {
            true => lag,
            false => lag.max(by_share(lag, task)),
        };
        if account.note_call(task) {
            self.chains.note(account, task, None);
        } else if task.is_wakeup() {
            self.chains.note(account, task, waker.chain);
        }
        let earliest = self.now.wrapping_sub(may_be_behind);
        let latest = self.now.wrapping_add(LEAD_LAGS * lag);
        if before(account.vruntime, earliest) {
            account.vruntime = earliest;
        } else if before(latest, account.vruntime) {
            account.vruntime = latest;
        }
        Some(account)
    }
}

impl<const TASKS: usize> Policy for Deadline<TASKS> {
    fn look(&mut self, machine: &Machine<'_>) {
        self.follow(machine.virtual_now(), machine.now());
    }

    fn prefetch(&self, id: u32) {
        prefetch(self.accounts.get(id as usize));
    }

    fn deadline(&mut self, task: &QueuedTask) -> u64 {
        let lag = self.lag();
        let burst = by_share(task.exec_runtime.min(lag), task);
        let vruntime = self.account(task).map(|account| account.vruntime);
        let deadline = vruntime.unwrap_or(self.now).wrapping_add(burst);
        let latest = self.now.wrapping_add(LEAD_LAGS * lag);
        if before(latest, deadline) {
            latest
        } else {
            deadline
        }
    }

    fn slice_ns(&mut self, id: u32, waiting: usize) -> u64 {
        // It is handed out, but has no CPU yet: with a few tasks waiting all are handed out at
        // once, and a light one, far ahead, must not take virtual time along.
        let furthest = self.now.wrapping_add(self.lag());
        if let Some(account) = self.accounts.get(id as usize)
            && before(self.now, account.vruntime)
        {
            self.now = match before(account.vruntime, furthest) {
                true => account.vruntime,
                false => furthest,
            };
        }
        (self.slice_ns / (waiting as u64 + 1)).max(self.slice_min_ns)
    }

    fn order(&mut self, task: &QueuedTask) -> Option<Order> {
        let now = self.now;
        let account = self.accounts.get_mut(task.id as usize)?;
        let in_turn = self.ordered == Ordered::All;
        let is_ordered = account.is_urgent()
            && !task.is_batch()
            && account.may_be_ordered(now, task)
            && self.ordered != Ordered::None;
        account.flags &= !IS_ORDERED;
        account.flags |= if is_ordered { IS_ORDERED } else { 0 };
        if !is_ordered {
            return in_turn.then_some(Order::IN_TURN);
        }
        Some(Order {
            latency_ns: account.latency(task.weight),
            slice_ns: self.slice_min_ns.max(2 * account.long_burst()),
            budget_ns: account.budget(),
            preempts: true,
            hand_off: true,
            in_turn,
            ..Order::default()
        })
    }

    fn newborn(&self) -> Option<Order> {
        (self.ordered == Ordered::All).then_some(Order::IN_TURN)
    }

    fn event(&mut self, task: &QueuedTask) {
        self.account(task);
    }

    fn events(&self) -> Kinds {
        // On an idle machine it learns which tasks are urgent, before it is busy.
        Kind::Ordered | Kind::Direct | Kind::Exited | Kind::Caller
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
