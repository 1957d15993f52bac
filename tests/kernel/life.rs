//! What a policy hears of tasks, and what it may say about their first moment. The policy runs in
//! this process, so what it schedules are other processes: the threads of its own are the kernel
//! side's business.

use std::collections::{HashMap, HashSet};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use scx_metronome_core::BpfScheduler;
use scx_metronome_core::orders::Order;
use scx_metronome_core::policy::fifo::Fifo;
use scx_metronome_core::policy::{Due, Machine, Place, Policy, Running, RunningKind};
use scx_metronome_core::stats::Snapshot;
use scx_metronome_core::task::{DispatchedTask, Kind, Kinds, QueuedTask, RL_CPU_ANY};

use super::inject::{Pauses, allow};
use super::{Load, Scheduler, burn, cpu_ticks, cpus, read, state, wait_for};

/// Keeps every record, and otherwise serves first come, first served.
struct Recorder {
    fifo: Fifo,
    records: Vec<QueuedTask>,
    newborn: Option<Order>,
    order: fn(&QueuedTask) -> Option<Order>,
    place: fn(&Due) -> Place,
    events: Kinds,
    every_us: u32,
    /// What the CPUs looked like with each decision, and which of them took tasks when the policy
    /// began.
    seen: Vec<Seen>,
    workers: Vec<Vec<u32>>,
}

/// A CPU as the policy saw it.
struct Seen {
    cpu: u32,
    running: Running,
    slice_left: u64,
    backlog: u64,
}

impl Recorder {
    fn new() -> Self {
        Self {
            fifo: Fifo::new(3_000_000),
            records: Vec::with_capacity(1 << 18),
            newborn: None,
            order: |_| None,
            place: |_| Place::First,
            events: Kinds::ALL,
            every_us: 4_000,
            seen: Vec::with_capacity(1 << 18),
            workers: Vec::with_capacity(16),
        }
    }

    fn keep(&mut self, task: &QueuedTask) {
        if self.records.len() < self.records.capacity() {
            self.records.push(*task);
        }
    }

    /// What came first about each thread of this name but one.
    fn first_words(&self, name: &str, but: i32) -> Vec<Kind> {
        let mut met = HashSet::from([but]);
        let of_name = |task: &&QueuedTask| task.comm_str() == name;
        let words = self.records.iter().filter(of_name);
        words
            .filter(|task| met.insert(task.pid))
            .map(QueuedTask::kind)
            .collect()
    }
}

impl Policy for Recorder {
    fn deadline(&mut self, task: &QueuedTask) -> u64 {
        self.keep(task);
        self.fifo.deadline(task)
    }

    fn slice_ns(&mut self, id: u32, waiting: usize) -> u64 {
        self.fifo.slice_ns(id, waiting)
    }

    fn begin(&mut self, machine: &Machine<'_>) {
        let workers = (0..machine.nr_cpus()).filter(|cpu| machine.is_worker(*cpu));
        self.workers.push(workers.collect());
    }

    fn place(&mut self, due: &Due, machine: &Machine<'_>) -> Place {
        for cpu in 0..machine.nr_cpus() {
            if let Some(running) = machine.running(cpu)
                && self.seen.len() < self.seen.capacity()
            {
                self.seen.push(Seen {
                    cpu,
                    running,
                    slice_left: machine.slice_left(cpu),
                    backlog: machine.backlog(cpu),
                });
            }
        }
        (self.place)(due)
    }

    fn order(&mut self, task: &QueuedTask) -> Option<Order> {
        (self.order)(task)
    }

    fn newborn(&self) -> Option<Order> {
        self.newborn
    }

    fn event(&mut self, task: &QueuedTask) {
        self.keep(task);
    }

    fn events(&self) -> Kinds {
        self.events
    }

    fn tell_us(&self) -> u32 {
        self.every_us
    }
}

/// Runs a policy for so long, on a machine that hogs keep busy.
fn schedule(policy: &mut Recorder, time: Duration) -> Snapshot {
    let _hogs = Load::start(&[&format!("stress-ng --cpu {} -t 3600s", 2 * cpus())]);
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
    let end = Instant::now() + time;
    scheduler.run_until(policy, |_, _| Instant::now() >= end);
    assert!(!scheduler.exited());
    scheduler.shutdown_and_report().unwrap();
    let accounting = scheduler.accounting();
    assert!(accounting.balance(), "{accounting}");
    accounting.counts
}

/// A process of this name that does `work` once something schedules. Killed when dropped.
struct Actor(i32);

impl Actor {
    fn start(name: &'static std::ffi::CStr, work: impl FnOnce()) -> Self {
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid != 0 {
            return Self(pid);
        }
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
        while state() != "enabled" {
            std::thread::sleep(Duration::from_millis(5));
        }
        work();
        unsafe { libc::_exit(0) }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
    }
}

/// Starts a child that runs twice, again and again.
fn breed() {
    loop {
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            burn(Duration::from_micros(500));
            std::thread::sleep(Duration::from_millis(1));
            burn(Duration::from_micros(500));
            unsafe { libc::_exit(0) };
        }
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    }
}

const ORDER: Order = Order {
    latency_ns: 1_000_000,
    slice_ns: 2_000_000,
    budget_ns: 50_000_000,
    preempts: true,
    hand_off: false,
    cpu: None,
    inherit: false,
    in_turn: false,
};

/// What came first about each child of a process.
fn schedule_births(policy: &mut Recorder) -> Vec<Kind> {
    // The weight is told of right after the fork, and a policy that answers that with an order has
    // spoken.
    policy.events = Kind::Ordered | Kind::Blocked | Kind::Exited;
    let parent = Actor::start(c"births", breed);
    schedule(policy, Duration::from_secs(3));
    let words = policy.first_words("births", parent.0);
    println!("{} births", words.len());
    assert!(words.len() > 5, "enough to go by: {words:?}");
    words
}

#[test]
fn a_new_task_without_an_order_is_asked_about_and_one_born_with_an_order_is_not() {
    let words = schedule_births(&mut Recorder::new());
    assert!(!words.contains(&Kind::Ordered), "{words:?}");

    let mut policy = Recorder::new();
    policy.newborn = Some(ORDER);
    // A policy that has said something about a task has the word from then on.
    policy.order = |_| Some(ORDER);
    let words = schedule_births(&mut policy);
    assert!(words.iter().all(|kind| *kind == Kind::Ordered), "{words:?}");
}

#[test]
fn a_new_task_has_its_parents_order_if_that_is_inherited() {
    let mut policy = Recorder::new();
    policy.order = |task| {
        (task.comm_str() == "births").then_some(Order {
            inherit: true,
            ..ORDER
        })
    };
    let words = schedule_births(&mut policy);
    // The first few may come before the parent has one.
    let others = words.iter().filter(|kind| **kind != Kind::Ordered).count();
    assert!(10 * others < words.len(), "{words:?}");

    let mut policy = Recorder::new();
    policy.order = |task| (task.comm_str() == "births").then_some(ORDER);
    let words = schedule_births(&mut policy);
    assert!(!words.contains(&Kind::Ordered), "{words:?}");
}

#[test]
fn an_order_does_not_outlive_its_task() {
    let mut policy = Recorder::new();
    policy.order = |_| Some(ORDER);
    let words = schedule_births(&mut policy);
    let of_kind = |kind| {
        policy
            .records
            .iter()
            .filter(move |task| task.kind() == kind)
    };
    assert!(
        of_kind(Kind::Ordered).count() > 20,
        "orders were carried out"
    );
    let born = |task: &&QueuedTask| task.comm_str() == "births";
    let ids: HashSet<_> = of_kind(Kind::Queued).filter(born).map(|t| t.id).collect();
    let pids: HashSet<_> = of_kind(Kind::Queued).filter(born).map(|t| t.pid).collect();
    assert!(2 * ids.len() < pids.len(), "ids passed from task to task");
    // Each began with an enqueue record, although its predecessor had an order to the end.
    assert!(!words.contains(&Kind::Ordered), "{words:?}");
}

/// Starts a child that works, sleeps, and changes; then it ends, and is taken note of.
fn live() {
    let child = unsafe { libc::fork() };
    if child != 0 {
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        return;
    }
    unsafe { libc::prctl(libc::PR_SET_NAME, c"actor".as_ptr()) };
    let nap = || {
        burn(Duration::from_millis(10));
        std::thread::sleep(Duration::from_millis(20));
    };
    nap();
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
    nap();
    allow(0, [0, 1]);
    nap();
    unsafe { libc::_exit(0) }
}

/// A fate follows its enqueue record, once, before the next.
fn assert_fates_follow(life: &[&QueuedTask]) {
    let mut open = None;
    for task in life {
        match task.kind() {
            Kind::Queued => open = Some(task.generation),
            Kind::Dispatched | Kind::Bounced => {
                assert_eq!(open.take(), Some(task.generation), "{life:?}");
            }
            _ => {}
        }
    }
}

#[test]
fn a_policy_hears_of_a_life_in_order() {
    let mut policy = Recorder::new();
    let _parent = Actor::start(c"parent", live);
    let counts = schedule(&mut policy, Duration::from_secs(4));
    assert_eq!(counts.events_lost, 0);
    let named = policy
        .records
        .iter()
        .find(|task| task.comm_str() == "actor");
    let pid = named.expect("records of the actor").pid;
    let life: Vec<_> = policy
        .records
        .iter()
        .filter(|task| task.pid == pid)
        .collect();
    let kinds: Vec<_> = life.iter().map(|task| task.kind()).collect();
    println!("{kinds:?}");
    let one = |kind| {
        assert_eq!(kinds.iter().filter(|k| **k == kind).count(), 1, "{kind:?}");
        kinds.iter().position(|k| *k == kind).unwrap()
    };
    let (affinity, exited) = (one(Kind::Affinity), one(Kind::Exited));
    // The first is that of its birth.
    let weight = kinds
        .iter()
        .rposition(|kind| *kind == Kind::Weight)
        .unwrap();
    assert!(weight < affinity && affinity < exited);
    assert_eq!(exited, life.len() - 1, "nothing is heard after an exit");
    assert!(life.is_sorted_by_key(|task| task.generation));

    // Each change shows in the record that tells of it, and stays.
    let weights = life.iter().map(|task| task.weight);
    let expected = |at| {
        if at < weight {
            100
        } else {
            life[weight].weight
        }
    };
    assert!(life[weight].weight < 100);
    assert!(
        weights
            .enumerate()
            .all(|(at, weight)| weight == expected(at))
    );
    assert!(
        life[..affinity]
            .iter()
            .all(|task| task.nr_cpus_allowed == cpus() as u16)
    );
    assert!(
        life[affinity..]
            .iter()
            .all(|task| task.nr_cpus_allowed == 2)
    );

    // A nap, each after 10 ms of work, less what the kernel takes to switch to it, which is not in
    // exec_runtime. Other sleeps come after next to none. A change is no nap.
    let blocked = life.iter().filter(|task| task.kind() == Kind::Blocked);
    // The last is its end, which may take as long.
    let naps = blocked.rev().skip(1);
    let worked = naps.filter(|task| task.exec_runtime >= 5_000_000);
    assert_eq!(worked.count(), 3, "{life:?}");

    assert_fates_follow(&life);
    assert!(kinds.contains(&Kind::Dispatched));
}

fn assert_heard_as_counted(records: &[QueuedTask], counts: &Snapshot) {
    let mut heard: HashMap<Kind, u64> = HashMap::new();
    for task in records {
        *heard.entry(task.kind()).or_default() += 1;
    }
    println!("{heard:?} {counts}");
    let heard = |kind| heard.get(&kind).copied().unwrap_or(0);
    for (kind, counted) in [
        (Kind::Queued, counts.taken),
        (Kind::Dispatched, counts.dispatched - counts.bounced),
        (Kind::Bounced, counts.bounced),
        (Kind::Stale, counts.stale),
        (Kind::Rescued, counts.rescued),
        (Kind::TooLate, counts.too_late),
    ] {
        assert_eq!(heard(kind), counted, "{kind:?}");
    }
}

#[test]
fn the_fates_that_a_policy_hears_of_are_those_that_are_counted() {
    let mut policy = Recorder::new();
    // Of those that may not run there, too.
    static LATER: AtomicBool = AtomicBool::new(false);
    policy.place = |due| match due.id % 3 {
        _ if LATER.load(Ordering::Relaxed) => Place::Later,
        0 => Place::On(1),
        // A guess, often wrong: that of the scheduler thread, and ones that are not there.
        1 => Place::Preempt(due.id / 3 % 6),
        _ => Place::First,
    };
    let bound = [(); 4].map(|()| {
        Actor::start(c"bound", || {
            allow(0, [0, 2]);
            breed();
        })
    });
    let hogs = &format!("stress-ng --cpu {} -t 3600s", 2 * cpus());
    let load = Load::start(&[hogs, "stress-ng --fork 2 --pipe 2 --affinity 2 -t 3600s"]);
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
    let watch = scheduler.watch();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(2));
            drop((bound, load));
            is_over.store(true, Ordering::Relaxed);
        });
        // A turn takes 256 records, of which the ring holds 8,192: after so many turns without a
        // new decision all fates of the earlier ones have been heard of.
        let (mut sent, mut calm) = (0, 0);
        let start = Instant::now();
        scheduler.run_until(&mut policy, |_, _| {
            let is_over = is_over.load(Ordering::Relaxed);
            // In the second half, decisions wait until the kernel side has run tasks without, of
            // which some are gone by then.
            let half = start.elapsed().as_millis().checked_sub(1_000);
            let is_late = half.is_some_and(|ms| ms % 80 >= 40);
            LATER.store(is_late && !is_over, Ordering::Relaxed);
            if !is_over {
                return false;
            }
            let counts = watch.snapshot();
            let is_calm = counts.sent == sent && counts.answered() == sent;
            (sent, calm) = (counts.sent, if is_calm { calm + 1 } else { 0 });
            calm > 40
        });
    });
    assert!(!scheduler.exited());
    scheduler.shutdown_and_report().unwrap();
    let accounting = scheduler.accounting();
    assert!(accounting.balance(), "{accounting}");
    let counts = accounting.counts;
    assert_eq!(counts.events_lost, 0);
    assert!(policy.records.len() < policy.records.capacity());
    assert_heard_as_counted(&policy.records, &counts);
    assert!(counts.bounced > 10 && counts.dispatched > 1000, "{counts}");
    assert!(counts.too_late > 0 && counts.rescued > 0, "{counts}");
}

/// A process whose child of another name works and naps, and was born while the scheduler was
/// there.
fn napper(work: Duration) -> Actor {
    Actor::start(c"parent", move || {
        if unsafe { libc::fork() } != 0 {
            loop {
                std::thread::sleep(Duration::from_secs(3600));
            }
        }
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        unsafe { libc::prctl(libc::PR_SET_NAME, c"napper".as_ptr()) };
        loop {
            burn(work);
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

fn of_name<'a>(policy: &'a Recorder, name: &'a str) -> impl Iterator<Item = &'a QueuedTask> {
    let has_name = move |task: &&QueuedTask| task.comm_str() == name;
    policy.records.iter().filter(has_name)
}

#[test]
fn a_policy_hears_what_it_asked_for_and_its_orders_end_with_it() {
    let mut first = Recorder::new();
    first.newborn = Some(ORDER);
    first.order = |_| Some(ORDER);
    let mut second = Recorder::new();
    second.events = Kind::Ordered.into();

    let _napper = napper(Duration::from_micros(500));
    let _load = Load::start(&[&format!("stress-ng --cpu {} --fork 1 -t 3600s", 2 * cpus())]);
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
    for policy in [&mut first, &mut second] {
        let end = Instant::now() + Duration::from_secs(2);
        scheduler.run_until(policy, |_, _| Instant::now() >= end);
    }
    scheduler.shutdown_and_report().unwrap();
    let count = |policy, kind| {
        let is = |task: &&QueuedTask| task.kind() == kind;
        of_name(policy, "napper").filter(is).count()
    };
    assert!(count(&first, Kind::Ordered) > 100);
    assert!(count(&second, Kind::Queued) > 50);
    // The first few may have been on their way.
    assert!(count(&second, Kind::Ordered) < 5);
    let asked_for = |task: &QueuedTask| matches!(task.kind(), Kind::Queued | Kind::Ordered);
    assert!(second.records.iter().all(asked_for));
}

#[test]
fn an_order_that_is_used_up_is_asked_about() {
    let mut policy = Recorder::new();
    policy.order = |task| (task.comm_str() == "napper").then_some(ORDER);
    let _napper = napper(Duration::from_millis(80));
    let counts = schedule(&mut policy, Duration::from_secs(3));
    let asked = of_name(&policy, "napper").filter(|task| task.kind() == Kind::Queued);
    let used: Vec<_> = asked.map(|task| task.exec_runtime).collect();
    println!("{used:?} {counts}");
    assert!(counts.used_up > 5 && used.len() > 5, "{counts}");
    // The first enqueue record is older than the order.
    let beyond = used.iter().filter(|used| **used >= ORDER.budget_ns).count();
    assert!(10 * beyond > 8 * used.len(), "{used:?}");
}

#[test]
fn an_order_that_prefers_a_cpu_has_its_task_run_there_while_it_is_idle() {
    let _napper = napper(Duration::from_micros(300));
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
    static PREFERRED: AtomicUsize = AtomicUsize::new(0);
    for cpu in [2, 0, 1, 0] {
        PREFERRED.store(cpu, Ordering::Relaxed);
        let mut policy = Recorder::new();
        policy.every_us = 0;
        policy.order = |task| {
            (task.comm_str() == "napper").then(|| Order {
                cpu: Some(PREFERRED.load(Ordering::Relaxed) as u32),
                ..ORDER
            })
        };
        let end = Instant::now() + Duration::from_secs(1);
        scheduler.run_until(&mut policy, |_, _| Instant::now() >= end);
        let ordered = of_name(&policy, "napper").filter(|task| task.kind() == Kind::Ordered);
        // The first ones are of the policy before: a thread that sleeps is woken by enqueue records
        // only.
        let ordered: Vec<_> = ordered.collect();
        let begun = ordered.first().map_or(0, |first| first.enqueued_at) + 200_000_000;
        let later = ordered.iter().filter(|task| task.enqueued_at > begun);
        // Where it ran last.
        let ran: Vec<_> = later.map(|task| task.cpu).collect();
        let there = ran.iter().filter(|ran| **ran == cpu as i32).count();
        println!("{there} of {} times on CPU {cpu}", ran.len());
        assert!(ran.len() > 100, "each wake-up is told of: {}", ran.len());
        assert!(20 * there > 19 * ran.len(), "CPU {cpu}: {ran:?}");
    }
    assert!(!scheduler.exited());
    scheduler.shutdown_and_report().unwrap();
    let accounting = scheduler.accounting();
    assert!(
        accounting.balance() && accounting.counts.bad_orders == 0,
        "{accounting}"
    );
}

/// Two processes that wake each other through pipes, both bound to these CPUs.
fn ping_pong(on: &'static [usize]) -> Actor {
    Actor::start(c"ping", || {
        let mut there = [0; 2];
        let mut back = [0; 2];
        assert_eq!(unsafe { libc::pipe(there.as_mut_ptr()) }, 0);
        assert_eq!(unsafe { libc::pipe(back.as_mut_ptr()) }, 0);
        allow(0, on.iter().copied());
        let (from, to) = if unsafe { libc::fork() } == 0 {
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            unsafe { libc::prctl(libc::PR_SET_NAME, c"pong".as_ptr()) };
            (there[0], back[1])
        } else {
            unsafe { libc::write(there[1], c"x".as_ptr().cast(), 1) };
            (back[0], there[1])
        };
        let mut byte = 0_u8;
        while unsafe { libc::read(from, (&raw mut byte).cast(), 1) } == 1 {
            burn(Duration::from_micros(20));
            unsafe { libc::write(to, (&raw const byte).cast(), 1) };
        }
    })
}

#[test]
fn a_chain_of_wake_ups_is_handed_its_wakers_cpu_and_those_that_wait_get_their_turn() {
    let mut policy = Recorder::new();
    policy.order = |task| {
        matches!(task.comm_str(), "ping" | "pong" | "napper").then_some(Order {
            hand_off: true,
            ..ORDER
        })
    };
    let _pairs = [(); 3].map(|()| ping_pong(&[0, 1, 2, 3]));
    // Urgent, and all the time: two for each CPU.
    let _nappers = [(); 6].map(|()| napper(Duration::from_millis(40)));
    let hog = Actor::start(c"hog", || burn(Duration::from_secs(3600)));
    let counts = schedule(&mut policy, Duration::from_secs(3));
    let ticks = cpu_ticks(hog.0);
    println!("hog: {ticks} ticks; {counts}");
    assert!(counts.handed_off > 100, "{counts}");
    assert!(counts.preempted > 10, "{counts}");
    // One of 9 hogs on 3 CPUs, of which a 21st part is kept for those without an order.
    assert!(ticks >= 1, "the hog ran {ticks} ticks");
}

#[test]
fn each_wake_up_names_its_waker() {
    for on in [&[0, 1, 2, 3][..], &[1][..]] {
        let on: &'static [usize] = on.to_vec().leak();
        let mut policy = Recorder::new();
        let pair = ping_pong(on);
        schedule(&mut policy, Duration::from_secs(2));
        let pong = of_name(&policy, "pong").map(|task| task.pid).next();
        for (wakee, waker) in [("ping", pong.unwrap()), ("pong", pair.0)] {
            let wakeups: Vec<_> = of_name(&policy, wakee)
                .filter(|task| task.kind() == Kind::Queued && task.is_wakeup())
                .collect();
            let named = wakeups.iter().filter(|task| task.waker == waker).count();
            println!("{on:?}: {wakee}: {named} of {}", wakeups.len());
            assert!(wakeups.len() > 20);
            assert!(10 * named > 9 * wakeups.len());
            // SCX_WAKE_SYNC. The kernel has no such flags for those that it gives no choice.
            let sync = wakeups.iter().filter(|task| task.wake_flags() & 16 != 0);
            let expected = if on.len() > 1 { wakeups.len() } else { 0 };
            assert!(sync.count().abs_diff(expected) < wakeups.len() / 10 + 1);
        }
    }
}

/// The task that a timer's interrupt finds on its CPU has woken no task.
#[test]
fn a_wake_up_by_a_timer_names_no_waker() {
    let mut policy = Recorder::new();
    let _napper = napper(Duration::from_millis(1));
    schedule(&mut policy, Duration::from_secs(1));
    let is_wakeup = |task: &&QueuedTask| task.kind() == Kind::Queued && task.is_wakeup();
    let wakeups: Vec<_> = of_name(&policy, "napper").filter(is_wakeup).collect();
    let named = wakeups.iter().filter(|task| task.waker != 0).count();
    println!("{named} of {} name a waker", wakeups.len());
    assert!(wakeups.len() > 20);
    assert_eq!(named, 0);
}

/// Writes to a terminal are passed on by a kernel thread that is bound to no CPU,
/// `flush_to_ldisc()` of drivers/tty/tty_buffer.c.
fn write_to_a_terminal(over: &AtomicBool) {
    const TIOCGPTPEER: libc::c_ulong = 0x5441;
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let master = unsafe { libc::posix_openpt(flags) };
    assert!(master >= 0 && unsafe { libc::unlockpt(master) } == 0);
    let other = unsafe { libc::ioctl(master, TIOCGPTPEER, flags) };
    assert!(other >= 0);
    while !over.load(Ordering::Relaxed) {
        assert!(unsafe { libc::write(master, c"x\n".as_ptr().cast(), 2) } > 0);
        let mut byte = [0; 64];
        unsafe { libc::read(other, byte.as_mut_ptr().cast(), byte.len()) };
        std::thread::sleep(Duration::from_millis(2));
    }
    unsafe { libc::close(other) };
    unsafe { libc::close(master) };
}

/// What user space hears of a kernel thread does not end the order that it was born with.
#[test]
fn a_kernel_thread_keeps_its_order_under_a_policy_that_gives_none() {
    let mut policy = Recorder::new();
    let over = AtomicBool::new(false);
    let counts = std::thread::scope(|scope| {
        let _stop = super::Stop(&over);
        scope.spawn(|| write_to_a_terminal(&over));
        schedule(&mut policy, Duration::from_secs(2))
    });
    let asked = |task: &&QueuedTask| task.kind() == Kind::Queued;
    let is_unbound = |task: &&QueuedTask| task.comm_str().starts_with("kworker/u");
    let asked = policy
        .records
        .iter()
        .filter(is_unbound)
        .filter(asked)
        .count();
    println!("asked {asked} times about unbound kernel threads; {counts}");
    assert!(counts.ordered > 300, "{counts}");
    assert!(asked < 30, "{asked}");
}

#[test]
fn what_runs_and_what_waits_on_each_cpu_is_told() {
    let mut policy = Recorder::new();
    policy.place = |_| Place::On(1);
    schedule(&mut policy, Duration::from_secs(2));
    let pids: HashSet<_> = policy.records.iter().map(|t| (t.id, t.pid)).collect();
    // From the second half: they have all been told to run there.
    let half = &policy.seen[policy.seen.len() / 2..];
    let there: Vec<_> = half.iter().filter(|seen| seen.cpu == 1).collect();
    let decided = |seen: &&&Seen| seen.running.kind == RunningKind::Decided;
    let running: Vec<_> = there.iter().filter(decided).collect();
    assert!(running.len() > 50, "{}", running.len());
    let known = |seen: &&&&Seen| pids.contains(&(seen.running.id, seen.running.pid));
    assert!(10 * running.iter().filter(known).count() > 9 * running.len());
    let slice = |seen: &&&&Seen| seen.slice_left <= seen.running.slice;
    assert!(running.iter().all(|seen| slice(&seen)));
    let within = |seen: &&&&Seen| (1..3_000_000).contains(&seen.slice_left);
    let partly = running.iter().filter(within).count();
    let mut backlogs: Vec<_> = there.iter().map(|seen| seen.backlog).collect();
    backlogs.sort_unstable();
    let median = backlogs[backlogs.len() / 2];
    println!(
        "{} seen, {partly} in the middle of their slice, median backlog {median}",
        running.len()
    );
    assert!(2 * partly > running.len(), "{partly}");
    // Two hogs for each CPU, of which one runs and one may just have been asked about.
    assert!(
        (cpus() as u64..4 * cpus() as u64).contains(&median),
        "{median}"
    );
}

/// How many CPUs a process may run on.
fn allowed(pid: i32) -> i32 {
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(pid, size_of_val(&set), &mut set), 0);
        libc::CPU_COUNT(&set)
    }
}

#[test]
fn the_batch_verbs_schedule_a_load_and_no_cpu_is_claimed_that_is_forbidden() {
    let bound = Actor::start(c"bound", || {
        allow(0, [0, 2]);
        loop {
            burn(Duration::from_micros(300));
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    // Busy for the first two seconds, idle afterwards.
    let _hogs = [(); 6].map(|()| Actor::start(c"hog", || burn(Duration::from_secs(1))));
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
    let (mut batch, mut claims) = (Vec::with_capacity(256), Vec::new());
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end && !scheduler.exited() {
        let decide = |task: &QueuedTask| {
            let mut decision = DispatchedTask::new(task);
            decision.flags |= RL_CPU_ANY;
            batch.push(decision);
        };
        scheduler.drain(256, decide).unwrap();
        // Asked about it without its having been seen before.
        let claimed = scheduler.select_cpu(bound.0, 1, 0);
        if claimed >= 0 && allowed(bound.0) == 2 {
            claims.push(claimed);
        }
        let sent = scheduler.dispatch_batch(&batch);
        batch.drain(..sent);
        scheduler.notify_complete(batch.len() as u64);
    }
    scheduler.shutdown_and_report().unwrap();
    let accounting = scheduler.accounting();
    println!(
        "{accounting}; {}; {} claims",
        accounting.counts,
        claims.len()
    );
    assert!(
        accounting.balance() && accounting.counts.dispatched > 100,
        "{accounting}"
    );
    assert!(claims.len() > 10);
    assert!(claims.iter().all(|cpu| [0, 2].contains(cpu)), "{claims:?}");
}

#[test]
fn the_verbs_go_on_after_a_policy_with_the_tasks_that_it_left_and_without_its_events() {
    let _hogs = Load::start(&[&format!("stress-ng --cpu {} --fork 1 -t 3600s", 4 * cpus())]);
    let _napper = napper(Duration::from_micros(500));
    let mut policy = Recorder::new();
    policy.order = |task| (task.comm_str() == "napper").then_some(ORDER);
    static LATER: AtomicBool = AtomicBool::new(false);
    policy.place = |_| match LATER.load(Ordering::Relaxed) {
        true => Place::Later,
        false => Place::First,
    };
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
    let end = Instant::now() + Duration::from_secs(2);
    scheduler.run_until(&mut policy, |_, _| {
        let left = end.saturating_duration_since(Instant::now());
        // Less than half of what the kernel side waits for.
        LATER.store(left < Duration::from_millis(4), Ordering::Relaxed);
        left.is_zero()
    });
    let before = scheduler.snapshot();
    let ends = [3, 6].map(|half| end + half * Duration::from_millis(500));
    let decide = |task: &QueuedTask| {
        assert_eq!(task.kind(), Kind::Queued);
        let mut decision = DispatchedTask::new(task);
        decision.flags |= RL_CPU_ANY;
        decision
    };
    while Instant::now() < ends[0] && !scheduler.exited() {
        while let Some(task) = scheduler.dequeue_task().unwrap() {
            scheduler.dispatch_task(&decide(&task)).unwrap();
        }
        scheduler.notify_complete(0);
    }
    let mut batch = Vec::with_capacity(256);
    while Instant::now() < ends[1] && !scheduler.exited() {
        scheduler
            .drain(256, |task| batch.push(decide(task)))
            .unwrap();
        assert_eq!(scheduler.dispatch_batch(&batch), batch.len());
        batch.clear();
        scheduler.notify_complete(0);
    }
    scheduler.shutdown_and_report().unwrap();
    let accounting = scheduler.accounting();
    println!("{before}; then {accounting}; {}", accounting.counts);
    assert!(before.events > 100 && before.ordered > 100, "{before}");
    assert!(before.waiting > 0, "it leaves tasks: {before}");
    assert!(accounting.balance(), "{accounting}");
    let counts = accounting.counts;
    // Some CPU may have been about to tell of something.
    assert!(counts.events < before.events + 10, "no policy listens");
    // What is left are kernel threads, which keep theirs: half as often in 3 s as all before in 2.
    let later = counts.ordered - before.ordered;
    assert!(
        later < before.ordered * 3 / 4,
        "orders end: {later} of {}",
        before.ordered
    );
    assert!(counts.dispatched > before.dispatched + 100, "{counts}");
    assert_eq!(counts.taken_back, before.taken_back, "no task is forgotten");
}

#[test]
fn a_policy_is_told_which_cpus_there_are_whenever_that_changes() {
    let mut policy = Recorder::new();
    // While there is a scheduler, this thread has but one.
    let all: Vec<u32> = (0..cpus() as u32 - 1).collect();
    let set_online = |online: bool| {
        std::fs::write(
            "/sys/devices/system/cpu/cpu1/online",
            u8::from(online).to_string(),
        )
        .unwrap();
    };
    for online in [false, true] {
        let mut object = MaybeUninit::uninit();
        let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
        let changer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            set_online(online);
        });
        let info = scheduler.run(&mut policy).unwrap();
        changer.join().unwrap();
        assert!(info.should_restart(), "{info}");
    }
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
    scheduler.run_until(&mut policy, |_, _| true);
    let but_one: Vec<u32> = all.iter().copied().filter(|cpu| *cpu != 1).collect();
    assert_eq!(policy.workers, [all.clone(), but_one, all]);
}

#[test]
fn what_a_policy_keeps_of_a_task_is_void_after_the_scheduler_was_loaded_anew() {
    let mut policy = Recorder::new();
    let lives = [(), ()].map(|()| {
        policy.records.clear();
        schedule(&mut policy, Duration::from_secs(1));
        let life = |task: &QueuedTask| (task.id, task.epoch());
        policy.records.iter().map(life).collect::<HashSet<_>>()
    });
    let ids = lives
        .each_ref()
        .map(|lives| lives.iter().map(|(id, _)| *id).collect::<HashSet<_>>());
    let again = ids[0].intersection(&ids[1]).count();
    println!("{again} ids are used in both");
    assert!(again >= 5, "{again}");
    let both: Vec<_> = lives[0].intersection(&lives[1]).collect();
    assert!(both.is_empty(), "one epoch in two loads: {both:?}");
}

/// CPU time of hogs by nice value, in ticks.
#[test]
fn the_vruntime_example_gives_each_its_share() {
    let scheduler = Scheduler::start("vruntime", &[]);
    let hog = |nice| {
        Actor::start(c"hog", move || {
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
            burn(Duration::from_secs(3600));
        })
    };
    let hogs = [0, 5].map(|nice| [(); 6].map(|()| hog(nice)));
    wait_for("it schedules", Duration::from_secs(5), || {
        !read("/sys/kernel/sched_ext/root/ops").is_empty()
    });
    std::thread::sleep(Duration::from_secs(4));
    let [normal, nicer] = hogs
        .each_ref()
        .map(|hogs| hogs.iter().map(|hog| cpu_ticks(hog.0)).sum::<u64>());
    println!("nice 0: {normal} ticks, nice 5: {nicer}");
    // Weights 100 and 33.
    assert!(
        (20 * nicer..40 * nicer).contains(&(10 * normal)),
        "{normal} and {nicer}"
    );
    drop(hogs);
    scheduler.stop(libc::SIGINT);
}

/// First come, first served, with deadlines from so much on.
struct From(u64);

impl Policy for From {
    fn deadline(&mut self, _: &QueuedTask) -> u64 {
        self.0 += 1;
        self.0
    }

    fn slice_ns(&mut self, _: u32, _: usize) -> u64 {
        3_000_000
    }
}

#[test]
fn a_task_that_the_kernel_side_serves_waits_for_no_policys_deadlines() {
    let _hogs = Load::start(&[&format!("stress-ng --cpu {} -t 3600s", 2 * cpus())]);
    let step = AtomicUsize::new(0);
    let pause = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut object = MaybeUninit::uninit();
            let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
            for (done, first) in [(1, 1 << 62), (2, 0)] {
                let mut policy = From(first);
                scheduler.run_until(&mut policy, |_, _| step.load(Ordering::Relaxed) >= done);
            }
            assert!(!scheduler.exited());
        });
        wait_for("it schedules", Duration::from_secs(30), || {
            state() == "enabled"
        });
        std::thread::sleep(Duration::from_secs(1));
        // The heartbeat is a thread of this process, so user space is not asked about it.
        let pause = Pauses::of_heartbeat(|| {
            step.store(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_secs(1));
        });
        step.store(2, Ordering::Relaxed);
        pause
    });
    println!("later deadlines are smaller by far: {pause}");
    pause.assert_heartbeat_short("later deadlines are smaller by far");
}

#[test]
fn decisions_that_come_again_later_change_nothing() {
    let _breeders = [(); 3].map(|()| Actor::start(c"births", breed));
    let _nappers = [(); 3].map(|()| napper(Duration::from_millis(3)));
    let _hogs = [(); 3].map(|()| Actor::start(c"hog", || burn(Duration::from_secs(3600))));
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
    let mut old = std::collections::VecDeque::new();
    let end = Instant::now() + Duration::from_secs(20);
    let is_enough = |counts: &Snapshot| {
        counts.dispatched > 100 && counts.stale.min(counts.too_late).min(counts.rescued) > 20
    };
    while !is_enough(&scheduler.snapshot()) && Instant::now() < end {
        let mut decisions = Vec::new();
        let decide = |task: &QueuedTask| {
            let mut decision = DispatchedTask::new(task);
            decision.flags |= RL_CPU_ANY;
            decisions.push(decision);
        };
        scheduler.drain(256, decide).unwrap();
        // At once, when the task has just been moved; and when it has long been asked about anew,
        // or has exited.
        let again: Vec<_> = decisions.iter().flat_map(|one| [*one, *one]).collect();
        assert_eq!(scheduler.dispatch_batch(&again), again.len());
        old.extend(decisions);
        while old.len() > 100 {
            scheduler.dispatch_task(&old.pop_front().unwrap()).unwrap();
        }
        scheduler.notify_complete(0);
    }
    assert!(!scheduler.exited());
    scheduler.shutdown_and_report().unwrap();
    let counts = scheduler.snapshot();
    println!("{counts}");
    assert!(is_enough(&counts), "{counts}");
}
