//! Fail open: whatever happens to the scheduler, the machine goes on. `docs/RELIABILITY.md` has what these print.

use std::sync::atomic::AtomicU32;

use super::inject::{self, BUDGET, MARGIN, Pauses, hold_cpu, saturate, with_scribbles};
use super::*;

/// What the same does to another scheduler, by the name of its program: `SCHEDULER=scx_rustland`. Nothing is asserted of it.
fn measure_peer(name: &str, peer: &str, fault: impl FnOnce(&Scheduler)) {
    let scheduler = Scheduler::start(peer, &[]);
    let pause = Pauses::during(|| fault(&scheduler));
    println!("{name}: {peer}: {pause}, then {}", state());
}

/// Beats go on while `fault` happens to the scheduler, which is found late, and schedules again afterwards.
fn assert_the_machine_goes_on(name: &str, fault: impl FnOnce(&Scheduler)) {
    let mut load = saturate();
    if let Ok(peer) = std::env::var("SCHEDULER") {
        return measure_peer(name, &peer, fault);
    }
    let scheduler = Scheduler::start("scx_metronome", &["--stats", "0.1"]);
    let pause = Pauses::during(|| fault(&scheduler));
    thread::sleep(Duration::from_millis(500));
    assert_eq!(state(), "enabled", "{name}");
    load.assert_running();
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    let count = |counter| total(&ended.stdout, counter);
    println!(
        "{name}: {pause}, late {}, without it {} + {}",
        count("late"),
        count("alone"),
        count("takeover"),
    );
    pause.assert_short(name);
    assert!(count("late") >= 1, "{name}: {}", ended.stdout);
    assert!(count("alone") >= 20, "{name}: {}", ended.stdout);
    let last: Vec<_> = ended.stdout.lines().rev().take(3).map(numbers).collect();
    assert!(
        last.iter()
            .any(|line| line["dispatched"] > 0 && line["alone"] == 0),
        "{name}: it schedules again: {}",
        ended.stdout
    );
}

#[test]
fn a_scheduler_that_is_stopped_holds_nobody_up() {
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

#[test]
fn a_scheduler_that_is_frozen_holds_nobody_up() {
    assert_the_machine_goes_on("cgroup freezer", |scheduler| {
        inject::freeze(scheduler, Duration::from_secs(1));
        thread::sleep(Duration::from_millis(200));
    });
}

#[test]
fn a_scheduler_that_is_traced_holds_nobody_up() {
    assert_the_machine_goes_on("ptrace", |scheduler| {
        inject::trace(scheduler, Duration::from_millis(500));
        thread::sleep(Duration::from_millis(200));
    });
}

#[test]
fn a_scheduler_whose_cpu_is_held_by_a_real_time_task_holds_nobody_up() {
    assert_the_machine_goes_on("SCHED_FIFO hog on its CPU", |_| {
        hold_cpu(cpus() - 1, Duration::from_secs(1));
        thread::sleep(Duration::from_millis(200));
    });
}

#[test]
fn a_cpu_that_is_held_by_a_real_time_task_costs_no_more_than_that_cpu() {
    let mut load = saturate();
    let scheduler = Scheduler::start("scx_metronome", &[]);
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

/// Whatever kills a scheduler, the default one takes over, nothing is left behind, and the next scheduler starts.
fn assert_it_dies_cleanly(name: &str, kill: impl FnOnce(&Scheduler)) {
    let before = sysctls();
    let mut load = saturate();
    let scheduler = Scheduler::start("scx_metronome", &[]);
    wait_for_socket();
    // Until 6.19 the kernel may not get on with unloading a scheduler while threads are born on a busy machine.
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

#[test]
fn a_fork_bomb_is_over_when_it_is_over() {
    let scheduler = Scheduler::start("scx_metronome", &["--stats", "0.2"]);
    let during = Pauses::during(|| inject::fork_bomb(400, Duration::from_secs(3)));
    let after = Pauses::during(|| thread::sleep(Duration::from_millis(500)));
    println!("fork bomb: {during}, afterwards {after}");
    assert_eq!(state(), "enabled");
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    println!("{}", ended.stdout.lines().last().unwrap());
    assert!(after.heartbeat <= Duration::from_millis(20), "{after}");
}

/// Sleeps until the gate is open.
fn wait_at(gate: &AtomicU32) {
    while gate.load(Ordering::Relaxed) == 0 {
        unsafe { libc::syscall(libc::SYS_futex, gate, libc::FUTEX_WAIT, 0, 0) };
    }
}

/// Wakes all that wait there, before any of them can get in the way.
fn open(gate: &AtomicU32) {
    gate.store(1, Ordering::Relaxed);
    let priority = |policy, sched_priority| unsafe {
        let parameters = libc::sched_param { sched_priority };
        assert_eq!(libc::sched_setscheduler(0, policy, &parameters), 0);
    };
    priority(libc::SCHED_FIFO, 1);
    unsafe { libc::syscall(libc::SYS_futex, gate, libc::FUTEX_WAKE, i32::MAX) };
    priority(libc::SCHED_OTHER, 0);
}

/// As many threads as a scheduler may meet, all runnable.
#[test]
fn fifty_thousand_runnable_tasks_are_all_served_and_nobody_urgent_waits_for_them() {
    const CROWD: u64 = 50_000;
    for (limit, value) in [
        ("kernel/pid_max", "131072"),
        ("kernel/threads-max", "131072"),
        ("vm/max_map_count", "262144"),
    ] {
        fs::write(format!("/proc/sys/{limit}"), value).unwrap();
    }
    // So many take longer than the kernel's watchdog has patience by default.
    let args = ["--stats", "0.1", "--timeout-ms", "30000"];
    let scheduler = Scheduler::start("scx_metronome", &args);
    let (gate, served) = (AtomicU32::new(0), AtomicU64::new(0));
    let crowd = || {
        wait_at(&gate);
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(50) {}
        served.fetch_add(1, Ordering::Relaxed);
    };
    let pause = thread::scope(|scope| {
        for _ in 0..CROWD {
            let builder = thread::Builder::new().stack_size(16384);
            builder.spawn_scoped(scope, crowd).unwrap();
        }
        Pauses::during(|| {
            open(&gate);
            while served.load(Ordering::Relaxed) < CROWD {
                thread::sleep(Duration::from_millis(10));
            }
        })
    });
    assert_eq!(served.into_inner(), CROWD);
    let still_there = state() == "enabled";
    let ended = scheduler.stop(libc::SIGINT);
    assert!(still_there, "{}", ended.stderr);
    ended.assert_clean();
    let lines: Vec<_> = ended.stdout.lines().map(numbers).collect();
    let most = lines.iter().map(|line| line["waiting"]).max().unwrap();
    println!(
        "{CROWD} woken, {most} in the queue at once: {pause}, late {}, ring-full {}, without it {}",
        total(&ended.stdout, "late"),
        total(&ended.stdout, "ring-full"),
        total(&ended.stdout, "alone") + total(&ended.stdout, "takeover"),
    );
    assert!(most > CROWD / 3, "a crowd: {most}");
    // Of strangers there are as many as of everybody: they wait for their turn.
    assert!(pause.heartbeat <= BUDGET + MARGIN, "{pause}");
}
