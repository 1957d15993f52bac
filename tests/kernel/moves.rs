//! Tasks and CPUs that move while the scheduler decides about them.

use super::fair::hog;
use super::inject::{
    Pauses, Random, Workers, allow, change_classes, change_cpusets, move_threads, saturate,
    set_class, set_online, write_online,
};
use super::*;

const TIME: Duration = Duration::from_millis(1500);

/// Workers are moved about on a busy machine: all reach the end, and no decision about them is
/// lost.
fn assert_all_arrive(name: &str, move_about: impl FnOnce(&[i32], &mut Random) -> u64) {
    let mut scheduler = Scheduler::start("scx_metronome", &["--stats", "0.1"]);
    let mut load = saturate();
    let workers = Workers::start(4);
    let mut moves = 0;
    let pause = Pauses::during(|| moves = move_about(workers.tids(), &mut Random::new(1)));
    let passed = workers.finish();
    scheduler.assert_enabled(name);
    load.assert_running();
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    let count = |counter| total(&ended.stdout, counter);
    println!(
        "{name}: {moves} moves, {passed} numbers passed: {pause}, bounced {}, stale {}, rescued {}",
        count("bounced"),
        count("stale"),
        count("rescued")
    );
    assert!(moves > 20, "{name}: {moves} moves");
    // Strangers have fewer CPUs meanwhile, or real-time tasks ahead of them: nothing is promised to
    // them.
    pause.assert_heartbeat_short(name);
}

#[test]
fn tasks_whose_affinity_changes_all_the_time_all_arrive() {
    assert_all_arrive("affinity", |tids, random| move_threads(tids, random, TIME));
}

#[test]
fn tasks_that_go_to_other_scheduling_classes_and_come_back_all_arrive() {
    assert_all_arrive("classes", |tids, random| change_classes(tids, random, TIME));
}

#[test]
fn tasks_that_go_from_cpuset_to_cpuset_all_arrive() {
    assert_all_arrive("cpusets", |_, random| change_cpusets(random, TIME));
}

#[test]
fn tasks_that_are_born_run_another_program_and_exit_hold_no_task_up() {
    let births = || {
        let stat = read("/proc/stat");
        let count = stat
            .lines()
            .find_map(|line| line.strip_prefix("processes "));
        count.unwrap().parse::<u64>().unwrap()
    };
    assert_all_arrive("births", |_, _| {
        let before = births();
        let load = "stress-ng --exec 2 --fork 2 --vfork 2 -t 2s";
        Load::start(&[load]).assert_ends_well();
        births() - before
    });
}

/// Takes CPUs away, that of the scheduler too, and gives them back. The scheduler is stopped when
/// they go, so that what it decided last stays in their mailboxes.
#[test]
fn cpu_hotplug_restarts_the_scheduler_under_load_and_takes_no_task_along() {
    let mut load = Load::start(&[&format!("stress-ng --cpu {} --pipe 1 -t 3600s", cpus())]);
    let mut scheduler = Scheduler::start("scx_metronome", &[]);
    let pid = scheduler.pid();
    let workers = Workers::start(2);
    // Until 6.19 (no server for the class) the kernel deadlocks if a CPU hog for each CPU is forked
    // while it unloads a scheduler: they run in the fair class, above the RCU thread that the
    // unloading waits for.
    thread::sleep(Duration::from_secs(1));
    let pause = Pauses::of_heartbeat(|| {
        for cpu in [1, cpus() - 1] {
            let seq = read(&format!("{SCHED_EXT}/enable_seq"));
            scheduler.signal(libc::SIGSTOP);
            write_online(cpu, false);
            scheduler.signal(libc::SIGCONT);
            scheduler.wait_until_enabled("a CPU went while it was stopped", || {
                read(&format!("{SCHED_EXT}/enable_seq")) != seq
            });
            set_online(&mut scheduler, cpu, true);
        }
    });
    assert_eq!(scheduler.pid(), pid);
    let passed = workers.finish();
    load.assert_running();
    // The signal handling survived four restarts.
    let ended = scheduler.stop(libc::SIGTERM);
    ended.assert_clean();
    println!(
        "CPU hotplug: {passed} numbers passed: {pause}\n{}",
        ended.stderr
    );
    for (what, times) in [("restarting", 4), ("accounting balances", 5)] {
        let found = ended.stderr.matches(what).count();
        assert_eq!(found, times, "{}", ended.stderr);
    }
    // The CPU that went second was its own: it went to another and came back.
    let own = |stderr: &str| -> Vec<String> {
        let lines = stderr.lines();
        let place = |line: &str| {
            line.split("its own thread on CPU ")
                .nth(1)?
                .split(' ')
                .next()
                .map(str::to_owned)
        };
        lines.filter_map(place).collect()
    };
    let (last, other) = (cpus() - 1, cpus() - 2);
    let expected = [last, last, last, other, last].map(|cpu| cpu.to_string());
    assert_eq!(own(&ended.stderr), expected, "{}", ended.stderr);
    // All tasks change the class twice for each restart, and a CPU that goes stops all others.
    pause.assert_heartbeat_within(Duration::from_millis(200), "CPU hotplug");
}

/// In the same process. Some CPUs are free: how a full machine takes it is what the test above
/// shows.
#[test]
fn cpu_hotplug_restarts_a_scheduler_in_the_verbs_of_the_seed() {
    let mut load = Load::start(&[&format!("stress-ng --cpu {} --pipe 1 -t 3600s", cpus() / 2)]);
    let mut scheduler = Scheduler::start("fifo", &[]);
    let pid = scheduler.pid();
    // As above: the hogs are forked before a scheduler is unloaded.
    thread::sleep(Duration::from_secs(1));
    for online in [false, true] {
        set_online(&mut scheduler, 1, online);
    }
    assert_eq!(scheduler.pid(), pid);
    load.assert_running();
    let ended = scheduler.stop(libc::SIGTERM);
    ended.assert_clean();
    assert_eq!(ended.lines_of_accounting().count(), 3, "{}", ended.stderr);
}

/// A real-time task on each CPU that runs for 50 µs each 2 ms, as sound and input have them.
fn with_brief_real_time_tasks<T>(run: impl FnOnce() -> T) -> (T, u64) {
    let (over, wakes) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _stop = Stop(&over);
        for cpu in 0..cpus() {
            let (over, wakes) = (&over, &wakes);
            scope.spawn(move || {
                set_class(0, libc::SCHED_FIFO, 50);
                allow(0, [cpu]);
                while !over.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(2));
                    let start = Instant::now();
                    while start.elapsed() < Duration::from_micros(50) {}
                    wakes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let result = run();
        (result, wakes.load(Ordering::Relaxed))
    })
}

/// What it interrupts is enqueued anew, and mostly goes on where it was.
#[test]
fn a_real_time_task_that_runs_briefly_moves_no_hog() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let begin = Instant::now() + Duration::from_millis(500);
    let end = begin + Duration::from_secs(2);
    let moved = || {
        hog(0, begin, end);
        let text = read("/proc/thread-self/sched");
        let line = text
            .lines()
            .find(|line| line.starts_with("se.nr_migrations"));
        line.unwrap()
            .rsplit(':')
            .next()
            .unwrap()
            .trim()
            .parse::<u64>()
            .unwrap()
    };
    let (moves, wakes) = with_brief_real_time_tasks(|| {
        thread::scope(|scope| {
            let hogs: Vec<_> = (0..cpus()).map(|_| scope.spawn(moved)).collect();
            hogs.into_iter().map(|hog| hog.join().unwrap()).sum::<u64>()
        })
    });
    scheduler.stop(libc::SIGINT).assert_clean();
    println!(
        "{moves} migrations of {} hogs, {wakes} times a real-time task",
        cpus()
    );
    // As many hogs as CPUs, of which one is the scheduler's now and then.
    figure(
        "migrations for each time",
        moves as f64 / wakes as f64,
        "",
        Bound::AtMost(0.25),
    );
}
