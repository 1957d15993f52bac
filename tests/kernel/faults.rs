//! Fail open: whatever happens to the scheduler, the machine goes on. `docs/RELIABILITY.md` has
//! what these print.

use std::mem::MaybeUninit;
use std::sync::atomic::AtomicU32;

use libbpf_rs::{MapCore, MapFlags};
use scx_metronome_core::policy::fifo::Fifo;
use scx_metronome_core::policy::{Due, Machine, Place, Policy};
use scx_metronome_core::task::{RL_CPU_ANY, RL_PREEMPT};
use scx_metronome_core::wait::Wait;
use scx_metronome_core::{BpfScheduler, Builder, DispatchedTask, Limits, QueuedTask};

use super::inject::{
    self, BUDGET, MARGIN, Mailboxes, Pauses, Random, Workers, allow, hold_cpu, map_of_scheduler,
    saturate, set_class, with_scribbles,
};
use super::*;

/// What the same does to another scheduler, by the name of its program: `SCHEDULER=scx_rustland`.
/// Nothing is asserted of it.
fn measure_peer(name: &str, peer: &str, fault: impl FnOnce(&Scheduler)) {
    let scheduler = Scheduler::start(peer, &[]);
    let _load = saturate();
    let pause = Pauses::during(|| fault(&scheduler));
    println!("{name}: {peer}: {pause}, then {}", state());
}

/// Beats go on while `fault` happens to the scheduler: while it is asked about ordinary tasks, and
/// found late, and while it is not.
fn assert_the_machine_goes_on(name: &str, fault: impl Fn(&Scheduler)) {
    assert_it_goes_on_with(&ASKED, name, &fault);
    assert_it_goes_on_with(&[], name, &fault);
}

/// The scheduler is asked about all tasks that are not urgent.
pub(super) const ASKED: [&str; 2] = ["--orders", "urgent"];

pub(super) fn assert_it_goes_on_with(args: &[&str], name: &str, fault: impl FnOnce(&Scheduler)) {
    if let Ok(peer) = std::env::var("SCHEDULER") {
        return measure_peer(name, &peer, fault);
    }
    let args: Vec<_> = ["--stats", "0.1"].iter().chain(args).copied().collect();
    let scheduler = Scheduler::start("scx_metronome", &args);
    let mut load = saturate();
    let workers = Workers::start(1);
    let pause = Pauses::during(|| fault(&scheduler));
    thread::sleep(Duration::from_millis(500));
    assert_eq!(state(), "enabled", "{name}");
    load.assert_running();
    let passed = workers.finish();
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    let count = |counter| total(&ended.stdout, counter);
    println!(
        "{name}: {pause}, {passed} numbers passed, late {}, without it {} + {}",
        count("late"),
        count("fallback"),
        count("taken-back"),
    );
    pause.assert_short(name);
    assert!(count("late") >= 1, "{name}: {}", ended.stdout);
    // Where all is decided ahead, user space is asked about no task, late or not.
    if !args.contains(&"--orders") {
        return;
    }
    assert!(count("fallback") >= 20, "{name}: {}", ended.stdout);
    assert!(count("taken-back") >= 1, "{name}: {}", ended.stdout);
    // Nothing more is counted while it is unloaded, which takes an old kernel seconds.
    let lines: Vec<_> = ended.stdout.lines().map(numbers).collect();
    let last = lines.iter().rposition(|line| line["fallback"] > 0).unwrap();
    assert!(
        lines[last + 1..].iter().any(|line| line["dispatched"] > 0),
        "{name}: it schedules again: {}",
        ended.stdout
    );
}

#[test]
fn a_scheduler_that_is_stopped_holds_no_task_up() {
    assert_the_machine_goes_on("SIGSTOP", |scheduler| {
        // By their virtual time they come before all others.
        let wake_from_long_sleep = || {
            thread::sleep(Duration::from_millis(100));
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(3) {}
        };
        with_threads(4, wake_from_long_sleep, || {
            for _ in 0..3 {
                inject::stop(scheduler, Duration::from_millis(500));
                thread::sleep(Duration::from_millis(200));
            }
        });
    });
}

/// A task without an order waits for the scheduler, or until the kernel side finds it late.
#[test]
fn a_scheduler_without_orders_that_is_stopped_holds_no_task_up() {
    assert_it_goes_on_with(
        &["--orders", "none"],
        "SIGSTOP without orders",
        |scheduler| {
            inject::stop(scheduler, Duration::from_millis(500));
            thread::sleep(Duration::from_millis(200));
        },
    );
}

#[test]
fn a_scheduler_that_is_frozen_holds_no_task_up() {
    assert_the_machine_goes_on("cgroup freezer", |scheduler| {
        inject::freeze(scheduler, Duration::from_secs(1));
        thread::sleep(Duration::from_millis(200));
    });
}

#[test]
fn a_scheduler_that_is_traced_holds_no_task_up() {
    assert_the_machine_goes_on("ptrace", |scheduler| {
        inject::trace(scheduler, Duration::from_millis(500));
        thread::sleep(Duration::from_millis(200));
    });
}

#[test]
fn a_scheduler_whose_cpu_a_real_time_task_holds_holds_no_task_up() {
    assert_the_machine_goes_on("SCHED_FIFO hog on its CPU", |_| {
        hold_cpu(cpus() - 1, Duration::from_secs(1));
        thread::sleep(Duration::from_millis(200));
    });
}

#[test]
fn a_cpu_that_is_held_by_a_real_time_task_costs_no_more_than_that_cpu() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let mut load = saturate();
    let pause = Pauses::during(|| hold_cpu(0, Duration::from_secs(1)));
    println!("SCHED_FIFO hog on another CPU: {pause}");
    pause.assert_short("another CPU");
    load.assert_running();
    scheduler.stop(libc::SIGINT).assert_clean();
}

/// What the kernel has been told: a scheduler leaves it as it was.
fn sysctls() -> Vec<(String, String)> {
    let of = |directory: &str, prefix: &str| {
        let entries = fs::read_dir(directory).unwrap().flatten();
        let paths = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        let path = |entry: fs::DirEntry| entry.path().to_str().unwrap().to_owned();
        paths
            .map(path)
            .map(|path| (path.clone(), read(&path)))
            .collect::<Vec<_>>()
    };
    let mut all = of("/proc/sys/vm", "");
    all.extend(of("/proc/sys/kernel", "sched"));
    assert!(all.len() > 20, "{all:?}");
    all
}

/// Whatever kills a scheduler, the default one takes over, nothing is left behind, and the next
/// scheduler starts.
fn assert_it_dies_cleanly(name: &str, kill: impl FnOnce(&Scheduler)) {
    let before = sysctls();
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let mut load = saturate();
    wait_for_socket();
    // Until 6.19 the kernel may not get on with unloading a scheduler while threads are born on a
    // busy machine.
    let pause = Pauses::of_heartbeat(|| {
        let start = Instant::now();
        kill(&scheduler);
        wait_for(
            "the default scheduler is back",
            Duration::from_secs(30),
            || state() == "disabled",
        );
        println!("{name}: gone after {:?}", start.elapsed());
    });
    println!("{name}: {pause}");
    assert!(scheduler.wait().status.signal().is_some(), "{name}");
    pause.assert_heartbeat_short(name);
    assert_eq!(leftovers(), "");
    assert_eq!(sysctls(), before);
    load.assert_running();
    drop(load);
    let next = Scheduler::start("scx_metronome", &[]);
    wait_for_socket();
    next.stop(libc::SIGINT).assert_clean();
    assert!(!fs::exists(SOCKET).unwrap());
}

#[test]
fn a_scheduler_that_is_killed_leaves_the_default_one_and_nothing_else() {
    assert_it_dies_cleanly("SIGKILL", |scheduler| scheduler.signal(libc::SIGKILL));
}

#[test]
fn a_scheduler_that_aborts_leaves_the_default_one_and_nothing_else() {
    assert_it_dies_cleanly("SIGABRT", |scheduler| scheduler.signal(libc::SIGABRT));
}

#[test]
fn a_scheduler_that_the_kernel_kills_for_want_of_memory_leaves_the_default_one_and_nothing_else() {
    assert_it_dies_cleanly("out of memory", inject::starve_of_memory);
}

/// The kernel side takes no task from a scheduler that is stopped within its budget, and none for
/// `Limits::longest_wait`. The kernel's watchdog is less patient.
#[test]
fn a_scheduler_that_the_kernel_throws_out_says_why_and_leaves_a_running_load() {
    // Until 6.19 a kernel that unloads a scheduler may not get on while hogs are forked: these are
    // there before.
    let mut load = Load::start(&[&format!("stress-ng --cpu {} --pipe 2 -t 3600s", 2 * cpus())]);
    let crew = Crew::of(&load, 2 * cpus() + 2);
    let args = ["--budget-ms", "10000", "--timeout-ms", "300"];
    let scheduler = Scheduler::start("scx_metronome", &[&args[..], &ASKED].concat());
    as_real_time(|| {
        scheduler.signal(libc::SIGSTOP);
        wait_for("it is thrown out", Duration::from_secs(30), || {
            state() == "disabled"
        });
        scheduler.signal(libc::SIGCONT);
    });
    crew.assert_get_on(&load, "after the watchdog");
    load.assert_running();
    let ended = scheduler.wait();
    assert_eq!(state(), "disabled");
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    let last = ended.stderr.lines().last().unwrap();
    println!("{last}");
    // SCX_EXIT_ERROR_STALL.
    assert!(last.contains("runnable task stall ("), "{last}");
    assert!(last.contains(" failed to run for "), "{last}");
    assert!(last.ends_with(", kind 1026"), "{last}");
    for dumped in ["metronome: scheduler thread ", "metronome: idle_seq "] {
        assert!(ended.stderr.contains(dumped), "{dumped}: {}", ended.stderr);
    }
    ended.assert_accounting_balances();
    assert_eq!(leftovers(), "");
}

#[test]
fn any_bytes_in_the_mailboxes_and_the_control_page_are_harmless() {
    for map in ["mailboxes", "shared_mailbox", "control"] {
        let scheduler = Scheduler::start("scx_metronome", &[]);
        let n = 2 * cpus();
        let pause = with_scribbles(map, || {
            let load = &format!("stress-ng -q --cpu {n} --fork 2 --pipe 2 --affinity 1 -t 3s");
            Pauses::during(|| Load::start(&[load]).assert_ends_well())
        });
        println!("random bytes in {map}: {pause}, state {}", state());
        pause.assert_short(map);
        // It may have found out and ended; if not, a signal ends it.
        let ended = scheduler.stop(libc::SIGINT);
        println!("{}", ended.stderr);
        wait_for(
            "the default scheduler is back",
            Duration::from_secs(10),
            || state() == "disabled",
        );
    }
}

/// Whatever comes in floods has left no trace so long after it is over.
const RECOVERY: Duration = Duration::from_millis(100);

#[test]
fn a_fork_bomb_is_over_when_it_is_over() {
    let scheduler = Scheduler::start("scx_metronome", &["--stats", "0.2"]);
    let workers = Workers::start(1);
    let mut during = None;
    let after = Pauses::in_parts(|meter| {
        inject::fork_bomb(400, Duration::from_secs(3));
        thread::sleep(RECOVERY);
        during = Some(meter.next_part());
        thread::sleep(Duration::from_millis(400));
    });
    let during = during.unwrap();
    let passed = workers.finish();
    println!("fork bomb: {during}, afterwards {after}, {passed} numbers passed");
    assert_eq!(state(), "enabled");
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    println!("{}", ended.stdout.lines().last().unwrap());
    during.assert_heartbeat_short("fork bomb");
    after.assert_over("after a fork bomb");
}

/// A task that waits is asked about anew whenever something about it changes: here that is its nice
/// level, all the time. The scheduler does not answer meanwhile, and is not found late: the ring
/// fills.
#[test]
fn a_storm_of_enqueue_records_that_fills_the_ring_costs_no_urgent_task_anything_and_passes() {
    let waiting = hogs(16);
    let mut others = Load::start(&["stress-ng -q --pipe 2 --yield 8 -t 3600s"]);
    let args = ["--stats", "0.1", "--budget-ms", "10000"];
    let scheduler = Scheduler::start("scx_metronome", &[&args[..], &ASKED].concat());
    let storm = || {
        // User space is not asked about this one.
        set_class(0, libc::SCHED_FIFO, 1);
        scheduler.signal(libc::SIGSTOP);
        let start = Instant::now();
        for nice in [1, 0].iter().cycle() {
            for (_, child) in &waiting.0 {
                let id = child.id();
                assert_eq!(
                    unsafe { libc::setpriority(libc::PRIO_PROCESS, id, *nice) },
                    0
                );
            }
            if start.elapsed() > Duration::from_millis(500) {
                break;
            }
        }
        scheduler.signal(libc::SIGCONT);
    };
    let mut during = None;
    let after = Pauses::in_parts(|meter| {
        thread::scope(|scope| scope.spawn(storm).join().unwrap());
        thread::sleep(RECOVERY);
        during = Some(meter.next_part());
        thread::sleep(Duration::from_millis(400));
    });
    let during = during.unwrap();
    assert_eq!(state(), "enabled");
    others.assert_running();
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    let count = |counter| total(&ended.stdout, counter);
    println!(
        "storm: {during}, afterwards {after}, queued {}, ring-full {}, events {}, events-lost {}",
        count("queued"),
        count("ring-full"),
        count("events"),
        count("events-lost"),
    );
    during.assert_heartbeat_short("storm");
    after.assert_over("after a storm");
    assert!(
        count("ring-full") > 0 && count("events-lost") > 0,
        "{}",
        ended.stdout
    );
    let last = numbers(ended.stdout.lines().last().unwrap());
    assert_eq!((last["ring-full"], last["events-lost"]), (0, 0), "{last:?}");
}

/// Sleeps until the gate is open.
fn wait_at(gate: &AtomicU32) {
    while gate.load(Ordering::Relaxed) == 0 {
        unsafe { libc::syscall(libc::SYS_futex, gate, libc::FUTEX_WAIT, 0, 0) };
    }
}

/// Wakes all that wait there.
fn open(gate: &AtomicU32) {
    gate.store(1, Ordering::Relaxed);
    unsafe { libc::syscall(libc::SYS_futex, gate, libc::FUTEX_WAKE, i32::MAX) };
}

/// Lets the caller get on whatever becomes of others.
fn as_real_time<T>(run: impl FnOnce() -> T) -> T {
    let priority = |policy, sched_priority| unsafe {
        let parameters = libc::sched_param { sched_priority };
        assert_eq!(libc::sched_setscheduler(0, policy, &parameters), 0);
    };
    priority(libc::SCHED_FIFO, 1);
    let result = run();
    priority(libc::SCHED_OTHER, 0);
    result
}

/// Runs `meanwhile` while so many threads wait at a gate. Each works for 50 µs once it is open.
/// Returns when all have.
fn with_crowd<T>(size: u64, meanwhile: impl FnOnce(&AtomicU32, &AtomicU64) -> T) -> T {
    let (gate, served) = (AtomicU32::new(0), AtomicU64::new(0));
    let member = || {
        wait_at(&gate);
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(50) {}
        served.fetch_add(1, Ordering::Relaxed);
    };
    let result = thread::scope(|scope| {
        for _ in 0..size {
            let builder = thread::Builder::new().stack_size(16384);
            builder.spawn_scoped(scope, member).unwrap();
        }
        meanwhile(&gate, &served)
    });
    assert_eq!(served.into_inner(), size);
    result
}

fn wait_until_served(served: &AtomicU64, size: u64) {
    wait_for("all are served", Duration::from_secs(60), || {
        served.load(Ordering::Relaxed) == size
    });
}

/// A ring holds 8,192 records. A quarter of it is for tasks with an order, which these have not.
/// The kernel side is patient, so that it goes on asking all the time.
#[test]
fn a_task_that_finds_the_ring_full_is_served_without_user_space() {
    const CROWD: u64 = 9_000;
    const FOUND_IT_FULL: u64 = 1_000;
    let args = [
        "--budget-ms",
        "10000",
        "--timeout-ms",
        "30000",
        "--stats",
        "0.1",
    ];
    let scheduler = Scheduler::start("scx_metronome", &[&args[..], &ASKED].concat());
    let meanwhile = with_crowd(CROWD, |gate, served| {
        let meanwhile = as_real_time(|| {
            scheduler.signal(libc::SIGSTOP);
            wait_for("it is stopped", Duration::from_secs(10), || {
                read(&format!("/proc/{}/status", scheduler.pid())).contains("State:\tT")
            });
            open(gate);
            wait_for("some are served", Duration::from_secs(10), || {
                served.load(Ordering::Relaxed) >= FOUND_IT_FULL
            });
            thread::sleep(Duration::from_millis(200));
            scheduler.signal(libc::SIGCONT);
            served.load(Ordering::Relaxed)
        });
        wait_until_served(served, CROWD);
        meanwhile
    });
    assert_eq!(state(), "enabled");
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    let count = |counter| total(&ended.stdout, counter);
    let (full, late) = (count("ring-full"), count("late"));
    println!(
        "{CROWD} woken, ring-full {full}, served meanwhile {meanwhile}, late {late}\n{}",
        ended.stderr
    );
    assert!(full >= FOUND_IT_FULL, "{full}");
    assert_eq!(late, 0, "it was asked all the time");
    // The others wait for an answer.
    assert!(meanwhile < CROWD, "{meanwhile}");
}

/// As many threads as a scheduler may meet, all runnable.
#[test]
fn fifty_thousand_runnable_tasks_are_all_served_and_no_urgent_task_waits_for_them() {
    const CROWD: u64 = 50_000;
    for (limit, value) in [
        ("kernel/pid_max", "131072"),
        ("kernel/threads-max", "131072"),
        ("vm/max_map_count", "262144"),
    ] {
        fs::write(format!("/proc/sys/{limit}"), value).unwrap();
    }
    // So many take longer than the kernel's watchdog has patience by default.
    let scheduler = Scheduler::start("scx_metronome", &["--timeout-ms", "30000"]);
    let waiting = AtomicU64::new(0);
    let pause = with_crowd(CROWD, |gate, served| {
        Pauses::during(|| {
            // Before any of them can get in the way.
            as_real_time(|| {
                open(gate);
                let woken = CROWD - served.load(Ordering::Relaxed);
                waiting.store(woken, Ordering::Relaxed);
            });
            while served.load(Ordering::Relaxed) < CROWD {
                thread::sleep(Duration::from_millis(10));
            }
        })
    });
    let still_there = state() == "enabled";
    let ended = scheduler.stop(libc::SIGINT);
    assert!(still_there, "{}", ended.stderr);
    ended.assert_clean();
    let waiting = waiting.into_inner();
    println!("{CROWD} woken, of which {waiting} were still waiting then: {pause}");
    assert!(waiting > CROWD / 3, "a crowd: {waiting}");
    // Strangers are of the crowd's kind: they wait for their turn.
    assert!(pause.heartbeat <= BUDGET + MARGIN, "{pause}");
}

// Schedulers that run in this process, so that they can be told to do what none of ours does. Its
// own threads are the kernel side's business: what they schedule are other processes.

/// So many processes that use CPU time.
fn hogs(number: usize) -> Load {
    Load::start(&vec!["yes"; number])
}

/// CPU time that each of them has used, in ticks of 10 ms.
fn ticks(load: &Load) -> Vec<u64> {
    let ids = load.0.iter().map(|(_, child)| child.id() as i32);
    ids.map(cpu_ticks).collect()
}

/// Whatever it uses from here on.
fn ticks_since(load: &Load, before: &[u64]) -> Vec<u64> {
    let now = ticks(load);
    now.iter()
        .zip(before)
        .map(|(now, then)| now - then)
        .collect()
}

/// Decides without a deadline, and without a limit; notes the longest slice that a CPU shows.
struct Endless {
    longest: u64,
}

impl Policy for Endless {
    fn deadline(&mut self, _: &QueuedTask) -> u64 {
        0
    }

    fn slice_ns(&mut self, _: u32, _: usize) -> u64 {
        u64::MAX
    }

    fn place(&mut self, _: &Due, machine: &Machine<'_>) -> Place {
        for cpu in (0..machine.nr_cpus()).filter(|cpu| machine.is_worker(*cpu)) {
            let slice = machine.running(cpu).map_or(0, |running| running.slice);
            self.longest = self.longest.max(slice);
        }
        Place::First
    }
}

#[test]
fn no_decision_gives_a_task_more_than_a_second_at_a_time() {
    let load = hogs(cpus() + 1);
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
    let (before, end) = (ticks(&load), Instant::now() + Duration::from_secs(3));
    let mut policy = Endless { longest: 0 };
    scheduler.run_until(&mut policy, |_, _| Instant::now() >= end);
    assert!(!scheduler.exited());
    let used = ticks_since(&load, &before);
    println!("slices of up to {} ns, ticks {used:?}", policy.longest);
    assert!(policy.longest <= 1_000_000_000, "{}", policy.longest);
    assert!(used.iter().all(|ticks| *ticks > 0), "{used:?}");
    scheduler.shutdown_and_report().unwrap();
}

/// Has everything that waits run on the next CPU that becomes available.
fn serve(scheduler: &mut BpfScheduler<'_>) {
    let mut decisions = Vec::new();
    let decide = |task: &QueuedTask| {
        let mut decision = DispatchedTask::new(task);
        decision.flags |= RL_CPU_ANY;
        decisions.push(decision);
    };
    scheduler.drain(256, decide).unwrap();
    scheduler.dispatch_batch(&decisions);
    scheduler.notify_complete(0);
}

#[test]
fn a_search_for_an_idle_cpu_that_starts_from_none_of_this_machine_fails_and_ends_nothing() {
    // The scheduler thread has one.
    let all = cpus() as i32;
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
    for cpu in [-1, i32::MIN, all, i32::MAX] {
        let limit = Instant::now() + Duration::from_secs(2);
        let mut found = -libc::EBUSY;
        // While no CPU is idle, the kernel is not asked.
        while found == -libc::EBUSY && Instant::now() < limit {
            serve(&mut scheduler);
            // No record has told of it, so the kernel knows best where it may run.
            found = scheduler.select_cpu(1, cpu, 0);
        }
        assert_eq!(found, -libc::EINVAL, "from CPU {cpu}");
    }
    let end = Instant::now() + Duration::from_millis(100);
    while Instant::now() < end {
        serve(&mut scheduler);
    }
    assert!(!scheduler.exited());
    scheduler.shutdown_and_report().unwrap();
}

/// When a yielding task is asked about for the first time, lets it have been asked about a million
/// times.
struct Ageing {
    fifo: Fifo,
    slots: MapHandle,
    /// By thread: what its id tells of its life, and how many enqueue records came since.
    lives: HashMap<i32, (u32, u32)>,
    changed: u32,
}

impl Policy for Ageing {
    fn deadline(&mut self, task: &QueuedTask) -> u64 {
        if task.comm_str() == "stress-ng-yield" {
            let (epoch, records) = self.lives.entry(task.pid).or_insert_with(|| {
                let slot = [task.pid as u32, task.generation | 0xffff0];
                let bytes: Vec<u8> = slot.iter().flat_map(|word| word.to_ne_bytes()).collect();
                self.slots
                    .update(&task.id.to_ne_bytes(), &bytes, MapFlags::ANY)
                    .unwrap();
                (task.epoch(), 0)
            });
            *records += 1;
            self.changed += u32::from(task.epoch() != *epoch);
        }
        self.fifo.deadline(task)
    }

    fn slice_ns(&mut self, id: u32, waiting: usize) -> u64 {
        self.fifo.slice_ns(id, waiting)
    }
}

#[test]
fn a_task_that_is_asked_about_more_than_a_million_times_still_has_one_life() {
    let _load = Load::start(&[&format!("stress-ng --yield {} -t 3600s", 2 * cpus())]);
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
    let mut policy = Ageing {
        fifo: Fifo::new(3_000_000),
        slots: map_of_scheduler("id_slots").0,
        lives: HashMap::new(),
        changed: 0,
    };
    let end = Instant::now() + Duration::from_secs(2);
    scheduler.run_until(&mut policy, |_, _| Instant::now() >= end);
    assert!(!scheduler.exited());
    scheduler.shutdown_and_report().unwrap();
    // 16 enqueue records before the number is full.
    let beyond = policy.lives.values().filter(|life| life.1 > 40).count();
    println!("{beyond} lives of {}", policy.lives.len());
    assert!(beyond > 0);
    assert_eq!(policy.changed, 0, "records of another life");
}

#[test]
fn a_decision_in_the_mailbox_of_the_schedulers_own_cpu_is_carried_out_anywhere() {
    let last = cpus() - 1;
    let _hogs = hogs(2 * cpus());
    // They take turns on its CPU, first come, first served.
    let guests = hogs(3);
    for (_, child) in &guests.0 {
        allow(child.id() as i32, [last]);
    }
    let mut object = MaybeUninit::uninit();
    let builder = Builder::new().wait(Wait::Park);
    let mut scheduler = builder.attach(&mut object).unwrap();
    let mailboxes = Mailboxes::of_scheduler();
    let (mut posted, end) = (0, Instant::now() + Duration::from_secs(2));
    while Instant::now() < end && !scheduler.exited() {
        let mut decisions = Vec::new();
        let drained = scheduler.drain(256, |task| {
            let name = u64::from(task.id) | u64::from(task.generation) << 32;
            if mailboxes.post(last, [name, 1_000_000, 1, 0]) {
                posted += 1;
            } else {
                decisions.push(DispatchedTask::new(task));
            }
        });
        drained.unwrap();
        scheduler.dispatch_batch(&decisions);
        scheduler.notify_complete(0);
    }
    let report = scheduler.shutdown_and_report();
    let counts = scheduler.snapshot();
    println!("{posted} decisions, {counts}");
    report.unwrap();
    assert!(posted > 20 && counts.dispatched > 20, "{counts}");
}

/// Has all tasks run on the first CPU.
struct AllOnOne(Fifo);

impl Policy for AllOnOne {
    fn deadline(&mut self, task: &QueuedTask) -> u64 {
        self.0.deadline(task)
    }

    fn slice_ns(&mut self, id: u32, waiting: usize) -> u64 {
        self.0.slice_ns(id, waiting)
    }

    fn place(&mut self, _: &Due, _: &Machine<'_>) -> Place {
        Place::On(0)
    }
}

/// Runs a policy in a thread of its own for as long as `run` takes.
fn with_policy<T>(
    builder: Builder,
    policy: &mut (impl Policy + Send),
    run: impl FnOnce() -> T,
) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = Stop(&over);
        let scheduler = scope.spawn(|| {
            let mut object = MaybeUninit::uninit();
            let mut scheduler = builder.attach(&mut object).unwrap();
            scheduler.run_until(policy, |_, _| over.load(Ordering::Relaxed));
            scheduler.shutdown_and_report().unwrap();
        });
        wait_for("it schedules", Duration::from_secs(30), || {
            assert!(!scheduler.is_finished(), "it has ended");
            state() == "enabled"
        });
        let result = run();
        drop(stop);
        scheduler.join().unwrap();
        result
    })
}

#[test]
fn a_task_that_waits_for_a_cpu_that_a_real_time_task_takes_runs_elsewhere() {
    let load = hogs(4);
    let used = with_policy(Builder::new(), &mut AllOnOne(Fifo::new(3_000_000)), || {
        thread::sleep(Duration::from_millis(300));
        let taken = thread::spawn(|| hold_cpu(0, Duration::from_millis(900)));
        thread::sleep(Duration::from_millis(100));
        let before = ticks(&load);
        thread::sleep(Duration::from_millis(700));
        let used = ticks_since(&load, &before);
        taken.join().unwrap();
        used
    });
    println!("beside a SCHED_FIFO hog on the only CPU that a policy knows: ticks {used:?} of 70");
    assert!(used.iter().all(|ticks| *ticks >= 3), "{used:?}");
}

/// With other work in the way on all CPUs.
#[test]
fn it_runs_elsewhere_on_a_full_machine_too() {
    let load = hogs(4);
    // Where these may run, the policy's word counts for nothing.
    let bound = hogs(3);
    for (nr, (_, child)) in bound.0.iter().enumerate() {
        allow(child.id() as i32, [1 + nr % (cpus() - 2)]);
    }
    let used = with_policy(Builder::new(), &mut AllOnOne(Fifo::new(3_000_000)), || {
        thread::sleep(Duration::from_millis(300));
        let taken = thread::spawn(|| hold_cpu(0, Duration::from_millis(900)));
        thread::sleep(Duration::from_millis(100));
        let before = ticks(&load);
        thread::sleep(Duration::from_millis(700));
        let used = ticks_since(&load, &before);
        taken.join().unwrap();
        used
    });
    println!("the same on a full machine: ticks {used:?} of 70");
    assert!(used.iter().all(|ticks| *ticks >= 3), "{used:?}");
}

/// How often each second three hogs that want the same CPU lose it to each other, while a policy
/// gives slices of 300 ms.
fn turns_of_long_slices(builder: Builder) -> f64 {
    let load = hogs(3);
    for (_, child) in &load.0 {
        allow(child.id() as i32, [0]);
    }
    let lost = || {
        let lost = load.0.iter().map(|(_, child)| {
            let status = read(&format!("/proc/{}/status", child.id()));
            numbers(&status.replace([':', '\n'], " ").replace('\t', " "))["nonvoluntary_ctxt_switches"]
        });
        lost.sum::<u64>()
    };
    let turns = with_policy(builder, &mut Fifo::new(300_000_000), || {
        let before = lost();
        thread::sleep(Duration::from_secs(1));
        lost() - before
    });
    turns as f64
}

#[test]
fn a_slice_is_as_long_as_the_policy_says_and_no_longer_than_the_limit() {
    let turns = turns_of_long_slices(Builder::new());
    // 3, and those after what else displaces them.
    figure("turns by the policy", turns, "", Bound::AtMost(60.0));
    let limits = Limits {
        longest_slice: Duration::from_millis(5),
        ..Limits::default()
    };
    let turns = turns_of_long_slices(Builder::new().limits(limits));
    // 200, less what the ticks are late by.
    figure("turns by the limit", turns, "", Bound::AtLeast(60.0));
}

/// Panics after a while.
struct Panics(Fifo, Instant);

impl Policy for Panics {
    fn deadline(&mut self, task: &QueuedTask) -> u64 {
        assert!(Instant::now() < self.1, "on purpose");
        self.0.deadline(task)
    }

    fn slice_ns(&mut self, id: u32, waiting: usize) -> u64 {
        self.0.slice_ns(id, waiting)
    }
}

/// Not a test, but what one runs as a process of its own.
#[test]
#[ignore = "panics on purpose"]
fn a_program_whose_policy_panics() {
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
    let end = Instant::now() + Duration::from_secs(1);
    scheduler
        .run(&mut Panics(Fifo::new(3_000_000), end))
        .unwrap();
}

#[test]
fn a_policy_that_panics_leaves_the_default_scheduler_and_no_task_waits() {
    let mut load = saturate();
    let program = std::env::current_exe().unwrap();
    let args = [
        "--ignored",
        "--exact",
        "faults::a_program_whose_policy_panics",
    ];
    let scheduler = Scheduler::start(program.to_str().unwrap(), &args);
    let pause = Pauses::of_heartbeat(|| {
        wait_for("it panics", Duration::from_secs(30), || {
            state() == "disabled"
        });
    });
    println!("a policy that panics: {pause}");
    assert_eq!(scheduler.wait().status.code(), Some(101));
    pause.assert_heartbeat_short("a policy that panics");
    assert_eq!(leftovers(), "");
    load.assert_running();
}

/// Any decision: about a task that waits for one, or about any, or about none.
fn any_decision(random: &mut Random, asked: &[QueuedTask]) -> DispatchedTask {
    let stranger = QueuedTask::example(
        random.below(300) as u32,
        random.word() as u32,
        0,
        1 + random.below(4) as u16,
    );
    let about = match random.below(2) {
        0 if !asked.is_empty() => asked[random.below(asked.len())],
        _ => stranger,
    };
    let flags = [0, RL_CPU_ANY, RL_PREEMPT, RL_PREEMPT | RL_CPU_ANY, !0];
    let mut decision = DispatchedTask::new(&about);
    decision.cpu = random.below(6) as i32 - 1;
    decision.flags = random.pick(&flags);
    decision.slice_ns = random.word() >> random.below(64);
    decision.vtime = random.word() >> random.below(64);
    decision
}

#[test]
fn any_decisions_are_carried_out_or_dropped_and_end_nothing() {
    let load = hogs(2 * cpus());
    let mut others = Load::start(&["stress-ng -q --pipe 2 --fork 1 --affinity 2 -t 3600s"]);
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false).unwrap();
    let (mut random, mut asked) = (Random::new(1), Vec::new());
    let (before, end) = (ticks(&load), Instant::now() + Duration::from_secs(3));
    while Instant::now() < end && !scheduler.exited() {
        scheduler.drain(256, |task| asked.push(*task)).unwrap();
        for _ in 0..asked.len() + 1 {
            // Full mailboxes are a fault of ours, too.
            let _ = scheduler.dispatch_task(&any_decision(&mut random, &asked));
        }
        asked.drain(..asked.len().saturating_sub(20));
        scheduler.notify_complete(0);
    }
    let used = ticks_since(&load, &before);
    let is_there = !scheduler.exited();
    let report = scheduler.shutdown_and_report();
    let counts = scheduler.snapshot();
    println!("any decisions: hogs' ticks {used:?}, {counts}");
    report.unwrap();
    assert!(is_there);
    others.assert_running();
    let fates = [
        counts.dispatched,
        counts.stale,
        counts.too_late,
        counts.bounced,
    ];
    assert!(fates.iter().all(|count| *count > 10), "{counts}");
}

/// A load runs on under the default scheduler after each of these signals to a scheduler.
pub(super) fn assert_any_end_is_clean(scheduler: &str, signals: &[i32]) {
    let mut first = Some(Scheduler::start(scheduler, &[]));
    let mut load = Load::start(&[&format!("stress-ng --cpu {} --pipe 2 -t 3600s", 2 * cpus())]);
    let crew = Crew::of(&load, 2 * cpus() + 2);
    for signal in signals {
        let loaded = first.take();
        let ended = loaded
            .unwrap_or_else(|| Scheduler::start(scheduler, &[]))
            .stop(*signal);
        if *signal == libc::SIGKILL {
            assert_eq!(ended.status.signal(), Some(libc::SIGKILL));
            wait_for_default_scheduler();
        } else {
            ended.assert_clean();
            assert!(!ended.stderr.contains("restarting"), "{}", ended.stderr);
        }
        assert_eq!(leftovers(), "");
        crew.assert_get_on(&load, &format!("{scheduler} after signal {signal}"));
    }
    load.assert_running();
}

#[test]
fn any_signal_leaves_the_default_scheduler_and_a_running_load() {
    assert_any_end_is_clean("scx_metronome", &[libc::SIGINT, libc::SIGTERM]);
    assert_any_end_is_clean("fifo", &[libc::SIGINT, libc::SIGTERM, libc::SIGKILL]);
}
