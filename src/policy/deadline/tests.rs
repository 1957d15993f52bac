use std::vec::Vec;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

pub(super) fn policy() -> Deadline<8> {
    Deadline::new(20_000_000, 1_000_000)
}

pub(super) fn task(id: u32, weight: u32, sum_exec_runtime: u64, exec_runtime: u64) -> QueuedTask {
    QueuedTask {
        weight,
        sum_exec_runtime,
        exec_runtime,
        ..QueuedTask::example(id, 1 << crate::abi::EPOCH_SHIFT, 0, 4)
    }
}

/// The order that it gets if that is more than to take turns.
fn urgent(policy: &mut Deadline<8>, task: &QueuedTask) -> Option<Order> {
    policy.order(task).filter(|order| order.budget_ns > 0)
}

#[test]
fn a_task_that_sleeps_seldom_takes_turns_or_has_enqueue_records() {
    let mut policy = policy();
    let newborn = task(1, 100, 0, 0);
    assert_eq!(policy.order(&newborn), Some(Order::IN_TURN));
    assert_eq!(policy.newborn(), Some(Order::IN_TURN));
    for ordered in [Ordered::Urgent, Ordered::None] {
        policy.set_ordered(ordered);
        assert_eq!((policy.order(&newborn), policy.newborn()), (None, None));
    }
}

#[test]
fn a_task_that_used_more_cpu_waits_longer_and_weight_scales_it() {
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
    for ms in 0..=900 {
        policy.deadline(&task(2, 100, ms * 1_000_000, 0));
        policy.slice_ns(2, 0);
    }
    assert_eq!(
        policy.deadline(&task(1, 100, 0, 0)),
        900_000_000 - 5_000_000
    );
}

#[test]
fn a_light_task_is_late_though_it_is_handed_out_early() {
    let mut policy = policy();
    let hog = |policy: &mut Deadline<8>| policy.deadline(&task(1, 100, 0, 0));
    let before_it = hog(&mut policy);
    for used in [0, 1_000_000] {
        policy.deadline(&task(2, 1, used, 0));
        policy.slice_ns(2, 0);
    }
    assert!(hog(&mut policy).wrapping_sub(before_it) <= policy.lag());
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
        generation: 2 << crate::abi::EPOCH_SHIFT,
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
    let overtakes = |policy: &mut Deadline<8>, real| before(policy.deadline(&wakes_at(real)), hog);
    assert!(overtakes(&mut policy, 0));
    assert!(overtakes(&mut policy, 10_000_000));
    for ms in 11..32 * 5 {
        policy.deadline(&wakes_at(ms * 1_000_000));
    }
    assert!(!overtakes(&mut policy, 32 * 5_000_000));
}

#[test]
fn virtual_time_is_that_of_the_kernel_side_however_long_the_machine_has_been_up() {
    let mut policy = policy();
    let second = 1_000_000_000;
    for (real, clock) in [(500, 0), (501, 1), (600, 2), (601, 3)] {
        policy.follow(clock * 1_000_000, real * second);
        policy.event(&QueuedTask {
            enqueued_at: real * second,
            ..task(1, 100, 0, 0)
        });
        // As far as its pace is known.
        let behind = (clock * 1_000_000).abs_diff(policy.now);
        assert!(clock == 0 || behind < 20_000, "{behind} ns");
    }
}

#[test]
fn a_game_keeps_its_order_however_many_of_its_records_are_read_together() {
    let mut policy = policy();
    let (frame, mut ordered) = (16_666_667, 0);
    for number in 0..60 {
        // Three at a time. Virtual time moves by 16 % of real time.
        if number % 3 == 0 {
            let real = (number + 2) * frame;
            policy.follow(1 + real / 100 * 16, real);
        }
        let record = QueuedTask {
            nvcsw: number,
            enqueued_at: number * frame,
            ..task(1, 100, number * 12_000_000, 0)
        };
        let record = woken(record, 4_000_000);
        policy.event(&record);
        ordered += u64::from(urgent(&mut policy, &record).is_some() && number >= 10);
    }
    assert_eq!(ordered, 50);
}

proptest! {
    #[test]
    fn the_moment_of_a_record_lies_between_two_looks(
        looks in vec((0..1_u64 << 32, 0..1_u64 << 32), 2..6),
        record in 0..1_u64 << 40,
    ) {
        let (mut real, mut now) = (1, 1);
        let mut clock = KernelClock::standing(now, real);
        for (passed, moved) in looks {
            let before_it = now;
            real += passed >> (passed % 32);
            now += moved >> (moved % 32);
            clock = clock.read(now, real);
            prop_assert!((before_it..=now).contains(&clock.at(record)));
            prop_assert!(now - clock.at(real) <= (now - before_it) / 1000 + 20_000);
        }
    }
}

#[test]
fn an_order_outlasts_the_work_of_the_kernel_that_interrupts_its_task() {
    let mut policy = policy();
    let sleeps = |nvcsw| QueuedTask {
        nvcsw,
        ..woken(task(1, 100, nvcsw * 100_000, 0), 1_000_000)
    };
    for nvcsw in 0..=u64::from(NEWBORN) {
        assert_eq!(urgent(&mut policy, &sleeps(nvcsw)), None);
        policy.event(&sleeps(nvcsw));
    }
    let (own, softirqs, rcu) = (100_000, 2_000_000, 3_000_000);
    let order = urgent(&mut policy, &sleeps(u64::from(NEWBORN)));
    assert!(order.is_some_and(|order| order.budget_ns > own + softirqs + rcu));
}

/// Woken after so long a sleep.
pub(super) fn woken(task: QueuedTask, asleep: u64) -> QueuedTask {
    let enqueued_at = task.enqueued_at.max(asleep + 1);
    QueuedTask {
        flags: task.flags | 1,
        stop_ts: enqueued_at - asleep,
        enqueued_at,
        ..task
    }
}

/// A second of a task that has run for `runs` of each `period` (us), hears of itself every 4
/// ms, and competes with such that virtual time moves by `pace` % of real time. Returns for
/// how much of it the task had an order, in %.
fn ordered_for(weight: u32, runs: u64, period: u64, pace: u64, found_idle: bool) -> u64 {
    let mut policy = policy();
    let mut ordered = 0;
    for ms in (0..1_200).step_by(4) {
        let real = ms * 1_000_000;
        policy.now = policy.now.max(real / 100 * pace);
        let record = QueuedTask {
            nvcsw: ms * 1000 / period,
            enqueued_at: real,
            flags: u64::from(found_idle) * crate::abi::FOUND_IDLE,
            ..task(1, weight, ms * 1000 / period * runs * 1000, 0)
        };
        let record = woken(record, (period - runs) * 1000);
        policy.event(&record);
        ordered += u64::from(urgent(&mut policy, &record).is_some() && ms >= 200);
    }
    ordered * 100 / 250
}

#[test]
fn a_task_that_says_that_it_can_wait_is_never_urgent() {
    let mut policy = policy();
    for flags in [0, crate::abi::IS_BATCH, 0] {
        let sleeps = |nvcsw| {
            let record = QueuedTask {
                nvcsw,
                flags,
                ..task(1, 100, nvcsw * 100_000, 0)
            };
            woken(record, 1_000_000)
        };
        (1..10).for_each(|nvcsw| policy.event(&sleeps(nvcsw)));
        assert_eq!(urgent(&mut policy, &sleeps(10)).is_some(), flags == 0);
    }
}

#[test]
fn a_game_s_thread_keeps_its_order_on_a_full_machine() {
    // 3 ms of each frame, beside so many hogs that its share is a tenth of a CPU; or 12, where
    // it is a sixth.
    assert_eq!(ordered_for(100, 3_000, 16_667, 10, false), 100);
    assert_eq!(ordered_for(100, 12_000, 16_667, 16, false), 100);
}

#[test]
fn a_task_within_its_share_keeps_its_order() {
    assert_eq!(ordered_for(100, 3_000, 6_000, 60, false), 100);
}

#[test]
fn a_task_that_sleeps_on_purpose_has_no_order_for_more_than_its_share() {
    let percent = ordered_for(100, 3_000, 3_100, 43, false);
    assert!(percent <= 5, "{percent} %");
    // Eight shares of a hundredth.
    let percent = ordered_for(1, 3_000, 6_000, 43, false);
    assert!(percent <= 20, "{percent} %");
}

/// The loop of a game that is late: it never sleeps, and wakes its workers once a frame.
fn frame(number: u64, used: u64) -> QueuedTask {
    QueuedTask {
        kind: Kind::Caller as u16,
        enqueued_at: number * 16_666_667,
        ..task(1, 100, used, 0)
    }
}

#[test]
fn a_loop_that_never_sleeps_is_urgent_while_urgent_threads_wait_for_it() {
    let mut policy = policy();
    let mut order = None;
    for number in 0..10 {
        policy.now = number * 5_000_000;
        let frame = frame(number, number * 12_000_000);
        policy.event(&frame);
        order = urgent(&mut policy, &frame);
        assert_eq!(order.is_some(), number >= 4, "frame {number}");
    }
    // No timer wakes it, so it is due last.
    let latency = order.map(|order| order.latency_ns);
    assert_eq!(latency, Some(*LATENCY.end()));
    // It goes on, and wakes none.
    let record = QueuedTask {
        kind: Kind::Ordered as u16,
        ..frame(14, 180_000_000)
    };
    policy.now += 20_000_000;
    policy.event(&record);
    assert_eq!(urgent(&mut policy, &record), None);
}

#[test]
fn the_loop_of_a_game_has_no_more_than_the_boost() {
    let mut policy = policy();
    let (mut used, mut ordered) = (0, 0);
    for number in 0..600 {
        // Eight of its shares are half of a frame.
        policy.now = number * 1_500_000;
        let frame = frame(number, used);
        policy.event(&frame);
        let is_ordered = urgent(&mut policy, &frame).is_some();
        used += if is_ordered { 24_000_000 } else { 1_500_000 };
        ordered += u64::from(is_ordered);
    }
    assert!((240..320).contains(&ordered), "{ordered} of 600 frames");
}

/// One of the tasks of a mix.
#[derive(Default)]
struct Member {
    weight: u32,
    is_batch: bool,
    epoch: u32,
    used: u64,
    nvcsw: u64,
    order: Option<Order>,
    /// Its record when its weight was worth the least.
    lightest: Option<QueuedTask>,
    /// CPU time by its orders, and virtual time, at each of its records; both ns of virtual
    /// time.
    account: Vec<(u64, u64)>,
}

#[test]
fn a_game_that_polls_the_clock_has_a_budget_for_its_frames_and_one_late_time_does_not_end_it() {
    let mut policy = policy();
    let (mut used, mut nvcsw, mut real) = (0, 0, 1_000_000_000);
    let mut sleep_after = |policy: &mut Deadline<8>, run: u64| {
        used += run;
        nvcsw += 1;
        real += run + 1_000_000;
        policy.now += (run + 1_000_000) / 2;
        let record = QueuedTask {
            nvcsw,
            enqueued_at: real,
            start_ts: real - 1_000_000 - run,
            ..task(1, 100, used, run)
        };
        let record = woken(record, 1_000_000);
        policy.event(&record);
        urgent(policy, &record)
    };
    let frame = 15_000_000;
    let mut budget = 0;
    for _ in 0..10 {
        sleep_after(&mut policy, frame);
        for _ in 0..8 {
            budget = sleep_after(&mut policy, 20_000).map_or(0, |order| order.budget_ns);
        }
    }
    assert!(budget >= 2 * frame, "{budget}");
    // It is late, and takes half a second to catch up.
    sleep_after(&mut policy, 500_000_000);
    policy.now += 500_000_000;
    assert!(sleep_after(&mut policy, 20_000).is_some());
}

/// What some tasks of a mix do for a while.
#[derive(Clone, Debug)]
struct Phase {
    /// Which tasks, a bit each.
    members: u8,
    /// Each exits first, and a new task has its id.
    forks: bool,
    /// ns.
    run: u64,
    /// ns; 0: it wakes an urgent thread of its process instead.
    asleep: u64,
    /// Each is woken by the one so many places on; 0: by a timer.
    woken_by: u32,
    /// How fast virtual time is, % of real time.
    pace: u64,
    /// How many share the weight of each.
    group: u32,
    times: usize,
}

impl Phase {
    fn any() -> impl Strategy<Value = Self> {
        let asleep = prop_oneof![Just(0), 1..200_000_u64];
        let woken_by = prop_oneof![Just(0), 1..8_u32];
        let rhythm = (1..50_000_u64, asleep, woken_by, 0..100_u64, 1..200_usize);
        (1..128_u8, prop::bool::weighted(0.1), rhythm, 1..2_000_u32).prop_map(
            |(members, forks, (run, asleep, woken_by, pace, times), group)| Self {
                members: members << 1,
                forks,
                run: run * 1000,
                asleep: asleep * 1000,
                woken_by,
                pace,
                group: group.saturating_sub(1_000).max(1),
                times,
            },
        )
    }
}

impl Member {
    /// A burst, and the record at its end; both sides of what may be said of the task are
    /// checked.
    fn run(
        &mut self,
        id: u32,
        phase: &Phase,
        policy: &mut Deadline<8>,
        real: u64,
    ) -> Result<(), TestCaseError> {
        self.used += phase.run;
        self.nvcsw += u64::from(phase.asleep > 0);
        let record = QueuedTask {
            generation: self.epoch << crate::abi::EPOCH_SHIFT,
            flags: u64::from(self.is_batch) * crate::abi::IS_BATCH,
            share: (self.weight * SHARE as u32 / phase.group).max(1),
            nvcsw: self.nvcsw,
            enqueued_at: real,
            waker: match phase.woken_by {
                0 => 0,
                places => ((id + places) % 8) as i32 + 1,
            },
            ..task(id, self.weight, self.used, phase.run)
        };
        let is_lighter = |lightest: QueuedTask| record.share() < lightest.share();
        if self.lightest.is_none_or(is_lighter) {
            self.lightest = Some(record);
        }
        let had = self.account.last().map_or(0, |(had, _)| *had);
        let budget = self.order.map_or(0, |order| order.budget_ns);
        let late = LATE_BUDGETS * budget * record.share().min(100 * SHARE) / (100 * SHARE);
        let has = had + by_share(phase.run.min(budget + late), &record);
        match phase.asleep {
            0 => policy.event(&QueuedTask {
                kind: Kind::Caller as u16,
                ..record
            }),
            _ => self.wait(&woken(record, phase.asleep), policy)?,
        }
        self.order = urgent(policy, &record);
        prop_assert!(self.order.is_none() || !self.is_batch);
        self.account.push((has, policy.now));
        Ok(())
    }

    /// A task waits: for so long that others cannot overtake it for ever, and not so far ahead
    /// of them that they wait for it.
    fn wait(&self, task: &QueuedTask, policy: &mut Deadline<8>) -> Result<(), TestCaseError> {
        let deadline = policy.deadline(task);
        let late = deadline.wrapping_sub(policy.now) as i64;
        let lag = policy.lag() as i64;
        prop_assert!(
            (-lag..=LEAD_LAGS as i64 * lag).contains(&late),
            "due in {late} ns"
        );
        Ok(())
    }

    /// Between any two of its records it has no more than the boost, and what the bucket, one
    /// budget and those of a late task hold.
    fn check(&self) -> Result<(), TestCaseError> {
        let Some(lightest) = &self.lightest else {
            return Ok(());
        };
        let budget = u64::from(LONGEST_BURST) + OVERTIME;
        let once = by_share(u64::from(LONGEST_BURST) + budget, lightest);
        let once = once + LATE_BUDGETS * budget + OVERDRAWN;
        let mut least = i64::MAX;
        for &(has, now) in &self.account {
            let beyond = has as i64 - i64::from(BOOST) * now as i64;
            least = least.min(beyond);
            prop_assert!(
                beyond - least <= once as i64,
                "{} of {once} ns",
                beyond - least
            );
        }
        Ok(())
    }
}

proptest! {
    /// Whatever tasks of any weight and class, in groups of any size, do: run, sleep, wake
    /// others, exit and come anew.
    #[test]
    fn no_mix_earns_more_than_the_boost_or_starves_a_task(
        kinds in vec((prop_oneof![1..10_u32, 10..1_000_u32, 1_000..10_000_u32], prop::bool::weighted(0.2)), 8),
        phases in vec(Phase::any(), 1..12),
    ) {
        let mut policy = policy();
        let mut members: Vec<_> = kinds.iter().map(|&(weight, is_batch)| Member {
            weight,
            is_batch,
            epoch: 1,
            ..Member::default()
        }).collect();
        let (mut real, mut records) = (0, 0);
        for phase in phases {
            let takes_part = |id: &usize| phase.members >> id & 1 == 1;
            for nr in 0..phase.times {
                real += phase.run + phase.asleep;
                policy.now += (phase.run + phase.asleep) / 100 * phase.pace;
                for id in (0..8).filter(takes_part) {
                    let member = &mut members[id];
                    if phase.forks && nr == 0 {
                        member.check()?;
                        *member = Member {
                            weight: member.weight,
                            is_batch: member.is_batch,
                            epoch: member.epoch + 1,
                            ..Member::default()
                        };
                    }
                    member.run(id as u32, &phase, &mut policy, real)?;
                    records += 1;
                }
            }
        }
        members.iter().try_for_each(Member::check)?;
        // Rounded down at each record.
        prop_assert!(policy.now + records >= real / SLOWEST);
    }
}

proptest! {
    /// What the kernel side writes is checked for what is indexed with, and for nothing else.
    #[test]
    fn no_numbers_in_records_make_it_panic(
        records in vec((0..8_u32, prop::sample::select(ALL_KINDS), any::<[u64; 7]>(), 0..16_i32), 1..200),
    ) {
        let mut policy = policy();
        for (id, kind, [at, start, stop, exec, sum, nvcsw, flags], waker) in records {
            let record = QueuedTask {
                kind: kind as u16,
                flags,
                enqueued_at: at,
                start_ts: start,
                stop_ts: stop,
                exec_runtime: exec,
                sum_exec_runtime: sum,
                nvcsw,
                waker,
                ..task(id, 1 + at as u32 % 10_000, 0, 0)
            };
            policy.deadline(&record);
            policy.order(&record);
            policy.slice_ns(id, 3);
            policy.event(&record);
            prop_assert!(policy.chains().iter().count() <= MAX_CHAINS);
        }
    }
}

/// Kinds of which the policy hears.
const ALL_KINDS: &[Kind] = &[
    Kind::Queued,
    Kind::Ordered,
    Kind::Direct,
    Kind::Exited,
    Kind::Caller,
];

/// A task that runs for 6 ms each time that task 1 has woken it; that one runs for 1 ms, or for
/// 40. Returns its order.
fn order_of_the_called(caller_runs: u64) -> Option<Order> {
    let mut policy = policy();
    let (caller, called) = (task(1, 100, 0, 0), task(2, 100, 0, 0));
    for n in 0..10 {
        let at = |task, used, waker| QueuedTask {
            nvcsw: n,
            enqueued_at: n * 50_000_000,
            sum_exec_runtime: n * used,
            waker,
            ..task
        };
        for record in [
            at(caller, caller_runs, 0),
            at(called, 6_000_000, caller.pid),
        ] {
            let record = woken(record, 10_000_000);
            policy.now = record.enqueued_at;
            policy.event(&record);
            policy.order(&record);
        }
    }
    urgent(&mut policy, &called)
}

#[test]
fn urgency_goes_along_a_chain() {
    let order = order_of_the_called(1_000_000);
    // In steps of 16 us.
    assert_eq!(order.map(|order| order.latency_ns), Some(1_008_000));
    let order = order_of_the_called(40_000_000);
    assert_eq!(order.map(|order| order.latency_ns), Some(6_000_000));
}

/// The orders of tasks that run for `burst` (ns) in turn, 100 times: `first` wakes the first, and
/// each the next. Real and virtual time pass by so many ns each time.
fn orders_along(burst: u64, tasks: u32, first: i32, passed: (u64, u64)) -> Vec<Option<Order>> {
    let mut policy = policy();
    let mut orders = vec![None; tasks as usize];
    for round in 1..=100 {
        policy.now += passed.1;
        for id in 0..tasks {
            let record = QueuedTask {
                nvcsw: round,
                enqueued_at: round * passed.0,
                waker: if id == 0 { first } else { id as i32 },
                ..task(id, 100, round * burst, burst)
            };
            let record = woken(record, 10_000_000);
            policy.event(&record);
            orders[id as usize] = urgent(&mut policy, &record);
        }
    }
    orders
}

#[test]
fn a_frame_begins_with_a_timer_however_many_tasks_work_for_it() {
    // Pids are ids plus 1, and the last one wakes the first.
    const LONG: (u64, u64) = (100_000_000, 100_000_000);
    let [frame, pool] = [0, 8].map(|first| orders_along(6_000_000, 8, first, LONG));
    assert!(frame.iter().all(Option::is_some), "{frame:?}");
    assert!(pool.iter().all(Option::is_none), "{pool:?}");
    let latest = |orders: Vec<Option<Order>>| {
        let latencies = orders.into_iter().flatten().map(|order| order.latency_ns);
        latencies.max()
    };
    let [frame, pair] = [0, 2].map(|first| orders_along(1_000_000, 2, first, LONG));
    assert_eq!(latest(frame), Some(1_000_000));
    assert_eq!(latest(pair), Some(*LATENCY.end()));
}

#[test]
fn only_a_frame_may_have_more_than_its_fair_share_by_orders() {
    // Five shares.
    let [frame, pair] = [0, 2].map(|first| orders_along(1_000_000, 2, first, (2_000_000, 200_000)));
    assert!(frame.iter().all(Option::is_some), "{frame:?}");
    assert!(pair.iter().all(Option::is_none), "{pair:?}");
}

#[test]
fn on_idle_cpus_no_task_loses_an_order() {
    assert!(ordered_for(100, 3_000, 4_000, 0, true) >= 99);
}

#[test]
fn a_task_that_ran_while_none_waited_is_not_late_when_one_does() {
    let alone = |found_idle: u64, seconds: u64| {
        let mut policy = policy();
        for record in 0..=seconds * 60 {
            policy.event(&QueuedTask {
                nvcsw: record,
                enqueued_at: record * 16_666_667,
                flags: found_idle * crate::abi::FOUND_IDLE,
                ..task(1, 100, record * 8_000_000, 0)
            });
        }
        policy
    };
    let at = 600_000_000_000;
    let late = |mut policy: Deadline<8>, used: u64| {
        let waits = |id, used| QueuedTask {
            enqueued_at: at,
            ..task(id, 100, used, 0)
        };
        let hog = policy.deadline(&waits(2, 0));
        policy.deadline(&waits(1, used)).wrapping_sub(hog) as i64
    };
    let lag = policy().lag() as i64;
    // Half a CPU for ten minutes, asleep and awake.
    let used = 600 * 60 * 8_000_000;
    assert!(late(alone(1, 600), used) <= lag);
    // And without ever sleeping, so that nothing was heard of it.
    assert!(late(alone(0, 0), 600_000_000_000) <= lag);
}

#[test]
fn no_task_is_due_after_the_watchdog_has_lost_its_patience() {
    let mut policy = policy();
    for used in 0..100 {
        policy.deadline(&task(1, 1, used * 20_000_000, 20_000_000));
    }
    let late = policy.deadline(&task(1, 1, 2_000_000_000, 20_000_000));
    assert!(late.wrapping_sub(policy.now) <= LEAD_LAGS * policy.lag());
}

#[test]
fn slices_shrink_with_the_number_of_waiting_tasks_to_a_minimum() {
    let mut policy = policy();
    assert_eq!(policy.slice_ns(1, 0), 20_000_000);
    assert_eq!(policy.slice_ns(1, 3), 5_000_000);
    assert_eq!(policy.slice_ns(1, 1000), 1_000_000);
}
