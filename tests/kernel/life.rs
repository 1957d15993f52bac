//! What a policy hears of tasks, and what it may say about their first moment. The policy runs in this process, so what it
//! schedules are other processes: the threads of its own are the kernel side's business.

use std::collections::{HashMap, HashSet};
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use scx_metronome::BpfScheduler;
use scx_metronome::orders::Order;
use scx_metronome::policy::fifo::Fifo;
use scx_metronome::policy::{Due, Machine, Place, Policy};
use scx_metronome::stats::Snapshot;
use scx_metronome::task::{Kind, QueuedTask};

use super::{Load, cpus, state};

/// Keeps every record, and otherwise serves first come, first served.
struct Recorder {
    fifo: Fifo,
    records: Vec<QueuedTask>,
    newborn: Option<Order>,
    order: fn(&QueuedTask) -> Option<Order>,
    place: fn(&Due) -> Place,
    events: u32,
}

impl Recorder {
    fn new() -> Self {
        Self {
            fifo: Fifo::new(3_000_000),
            records: Vec::with_capacity(1 << 18),
            newborn: None,
            order: |_| None,
            place: |_| Place::First,
            events: !0,
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

    fn place(&mut self, due: &Due, _machine: &Machine<'_>) -> Place {
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

    fn events(&self) -> u32 {
        self.events
    }
}

/// Runs a policy for so long, on a machine that hogs keep busy.
fn schedule(policy: &mut Recorder, time: Duration) -> Snapshot {
    let _hogs = Load::start(&[&format!("stress-ng --cpu {} -t 3600s", 2 * cpus())]);
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
    let end = Instant::now() + time;
    scheduler.run_until(policy, || Instant::now() >= end);
    assert!(!scheduler.exited());
    scheduler.shutdown_and_report().unwrap();
    let books = scheduler.books();
    assert!(books.balance(), "{books}");
    books.counts
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

/// Uses CPU time.
fn burn(time: Duration) {
    let used = || {
        let mut used = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut used) };
        Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
    };
    let end = used() + time;
    while used() < end {
        std::hint::spin_loop();
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
};

/// What came first about each child of a process.
fn schedule_births(policy: &mut Recorder) -> Vec<Kind> {
    // The weight is told of right after the fork, and whoever answers that with an order has spoken.
    policy.events = Kind::Ordered.bit() | Kind::Blocked.bit() | Kind::Gone.bit();
    let parent = Actor::start(c"births", breed);
    schedule(policy, Duration::from_secs(3));
    let words = policy.first_words("births", parent.0);
    println!("{} births", words.len());
    assert!(words.len() > 20, "{words:?}");
    words
}

#[test]
fn a_new_task_without_an_order_is_asked_about_and_one_born_with_an_order_is_not() {
    let words = schedule_births(&mut Recorder::new());
    assert!(!words.contains(&Kind::Ordered), "{words:?}");

    let mut policy = Recorder::new();
    policy.newborn = Some(ORDER);
    // Who has said something about a task has the word from then on.
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
    // Each began with a question, although its predecessor had an order to the end.
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
    allow(&[0, 1]);
    nap();
    unsafe { libc::_exit(0) }
}

/// The calling thread may run on these CPUs.
fn allow(cpus: &[usize]) {
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    cpus.iter()
        .for_each(|cpu| unsafe { libc::CPU_SET(*cpu, &mut set) });
    assert_eq!(
        unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) },
        0
    );
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
    let (affinity, gone) = (one(Kind::Affinity), one(Kind::Gone));
    // The first is that of its birth.
    let weight = kinds
        .iter()
        .rposition(|kind| *kind == Kind::Weight)
        .unwrap();
    assert!(weight < affinity && affinity < gone);
    assert_eq!(gone, life.len() - 1, "nothing is heard of who is gone");
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

    // A nap, each after some 10 ms of work. A change is no nap.
    let blocked = life.iter().filter(|task| task.kind() == Kind::Blocked);
    // The last is its end, which may take as long.
    let naps = blocked.rev().skip(1);
    let worked = naps.filter(|task| task.exec_runtime >= 9_500_000);
    assert_eq!(worked.count(), 3, "{life:?}");

    // A fate follows its question, once, before the next question.
    let mut open = None;
    for task in &life {
        match task.kind() {
            Kind::Queued => open = Some(task.generation),
            Kind::Dispatched | Kind::Bounced => {
                assert_eq!(open.take(), Some(task.generation), "{kinds:?}");
            }
            _ => {}
        }
    }
    assert!(kinds.contains(&Kind::Dispatched));
}

#[test]
fn the_fates_that_a_policy_hears_of_are_those_that_are_counted() {
    let mut policy = Recorder::new();
    // Of those that may not run there, too.
    policy.place = |due| match due.id % 2 {
        0 => Place::On(1),
        _ => Place::First,
    };
    let _bound = [(); 4].map(|()| {
        Actor::start(c"bound", || {
            allow(&[0, 2]);
            breed();
        })
    });
    let _load = Load::start(&["stress-ng --fork 2 --pipe 2 --affinity 2 -t 3600s"]);
    let counts = schedule(&mut policy, Duration::from_secs(4));
    assert_eq!(counts.events_lost, 0);
    assert!(policy.records.len() < policy.records.capacity());
    let mut heard: HashMap<Kind, u64> = HashMap::new();
    for task in &policy.records {
        *heard.entry(task.kind()).or_default() += 1;
    }
    println!("{heard:?} {counts}");
    for (kind, counted) in [
        (Kind::Queued, counts.taken),
        (Kind::Dispatched, counts.dispatched - counts.bounced),
        (Kind::Bounced, counts.bounced),
        (Kind::Stale, counts.stale),
        (Kind::Rescued, counts.rescued),
    ] {
        let heard = heard.get(&kind).copied().unwrap_or(0);
        // The last ones came when nobody listened any more.
        assert!(
            heard <= counted && counted - heard <= 300,
            "{kind:?}: {heard} of {counted}"
        );
    }
    assert!(counts.bounced > 10 && counts.dispatched > 1000, "{counts}");
}
