//! Fail open: whatever happens to the scheduler, the machine goes on. `docs/RELIABILITY.md` has what these print.

use std::sync::atomic::AtomicU32;

use super::*;

/// How late the scheduler thread may be, by default.
const BUDGET: Duration = Duration::from_millis(10);

/// By so much more than the budget nobody pauses while the scheduler thread does not answer.
const MARGIN: Duration = Duration::from_millis(50);

/// Whatever its weight and the load, a runnable task that nothing is known of runs within this.
const STARVED: Duration = Duration::from_millis(100);

/// The longest times between two beats of threads that sleep a millisecond between them.
#[derive(Clone, Copy)]
struct Pauses {
    /// Of one that has beaten for a while, so that it is known to be urgent.
    heartbeat: Duration,
    /// Of ones that are gone after 20 beats.
    strangers: Duration,
}

impl Pauses {
    fn during(run: impl FnOnce()) -> Self {
        Self::measure(true, run)
    }

    /// Without strangers: none is born.
    fn of_heartbeat(run: impl FnOnce()) -> Self {
        Self::measure(false, run)
    }

    fn measure(with_strangers: bool, run: impl FnOnce()) -> Self {
        let longest = [const { AtomicU64::new(0) }; 2];
        let over = AtomicBool::new(false);
        let beat = |longest: &AtomicU64, times: u32| {
            let mut last = Instant::now();
            for _ in 0..times {
                thread::sleep(Duration::from_millis(1));
                longest.fetch_max(last.elapsed().as_nanos() as u64, Ordering::Relaxed);
                last = Instant::now();
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    beat(&longest[0], 10);
                }
            });
            scope.spawn(|| {
                while with_strangers && !over.load(Ordering::Relaxed) {
                    let _ = thread::scope(|inner| inner.spawn(|| beat(&longest[1], 20)).join());
                }
            });
            thread::sleep(Duration::from_millis(300));
            longest
                .iter()
                .for_each(|longest| longest.store(0, Ordering::Relaxed));
            let _stop = Stop(&over);
            run();
        });
        let [heartbeat, strangers] =
            longest.map(|longest| Duration::from_nanos(longest.into_inner()));
        Self {
            heartbeat,
            strangers,
        }
    }

    fn assert_short(self, name: &str) {
        assert!(self.heartbeat <= BUDGET + MARGIN, "{name}: {self}");
        assert!(self.strangers <= BUDGET + STARVED, "{name}: {self}");
    }
}

impl std::fmt::Display for Pauses {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |pause: Duration| pause.as_secs_f64() * 1e3;
        let (heartbeat, strangers) = (ms(self.heartbeat), ms(self.strangers));
        write!(
            out,
            "longest pause of a heartbeat {heartbeat:.1} ms, of strangers {strangers:.1} ms"
        )
    }
}

/// A load that saturates the machine, as long as it is there.
fn saturate() -> Load {
    let load = Load::start(&[&format!(
        "stress-ng -q --cpu {} --pipe 2 -t 3600s",
        2 * cpus()
    )]);
    thread::sleep(Duration::from_millis(500));
    load
}

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
                scheduler.signal(libc::SIGSTOP);
                thread::sleep(Duration::from_millis(500));
                scheduler.signal(libc::SIGCONT);
                thread::sleep(Duration::from_millis(200));
            }
        });
    });
}

#[test]
fn a_scheduler_that_is_frozen_holds_nobody_up() {
    let group = Cgroup::new("frozen", &[]);
    assert_the_machine_goes_on("cgroup freezer", |scheduler| {
        group.write("cgroup.procs", &scheduler.pid().to_string());
        group.write("cgroup.freeze", "1");
        thread::sleep(Duration::from_millis(1000));
        group.write("cgroup.freeze", "0");
        thread::sleep(Duration::from_millis(200));
    });
}

/// Spins in the class SCHED_FIFO on one CPU.
fn hold_cpu(cpu: usize, time: Duration) {
    let hog = thread::spawn(move || {
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0);
            let parameters = libc::sched_param { sched_priority: 50 };
            assert_eq!(
                libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters),
                0
            );
        }
        let start = Instant::now();
        while start.elapsed() < time {}
    });
    hog.join().unwrap();
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

#[test]
fn a_scheduler_that_is_killed_leaves_the_default_one_and_nothing_else() {
    let mut load = saturate();
    let scheduler = Scheduler::start("scx_metronome", &[]);
    // Until 6.19 the kernel may not get on with unloading a scheduler while threads are born on a busy machine.
    let pause = Pauses::of_heartbeat(|| {
        let start = Instant::now();
        scheduler.signal(libc::SIGKILL);
        wait_for(
            "the default scheduler is back",
            Duration::from_secs(30),
            || state() == "disabled",
        );
        println!("SIGKILL: gone after {:?}", start.elapsed());
    });
    println!("SIGKILL: {pause}");
    assert!(!scheduler.wait().status.success());
    pause.assert_short("SIGKILL");
    assert_eq!(leftovers(), "");
    load.assert_running();
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

/// Processes that fork and exit without end, as many as the group allows.
#[test]
fn a_fork_bomb_is_over_when_it_is_over() {
    let scheduler = Scheduler::start("scx_metronome", &["--stats", "0.2"]);
    let group = Cgroup::new("bomb", &["pids"]);
    group.write("pids.max", "400");
    let during = Pauses::during(|| {
        let mut bomb = Command::new("sh");
        let procs = format!("{}/cgroup.procs", group.0);
        let script = format!("echo $$ > {procs}; b() {{ b & b & b & while :; do :; done; }}; b");
        bomb.args(["-c", &script])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut bomb = bomb.spawn().unwrap();
        thread::sleep(Duration::from_secs(3));
        group.write("cgroup.kill", "1");
        bomb.wait().unwrap();
    });
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

/// A control group of its own, removed when dropped.
struct Cgroup(String);

impl Cgroup {
    fn new(name: &str, controllers: &[&str]) -> Self {
        for controller in controllers {
            fs::write(
                "/sys/fs/cgroup/cgroup.subtree_control",
                format!("+{controller}"),
            )
            .unwrap();
        }
        let path = format!("/sys/fs/cgroup/{name}");
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(format!("{}/{file}", self.0), text).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(format!("{}/cgroup.kill", self.0), "1");
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}
