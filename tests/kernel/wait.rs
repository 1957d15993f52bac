//! What each wait mode costs: the table in `src/wait.rs`.

use super::*;

/// In ticks of 10 ms, and µs.
struct Cost {
    wait: &'static str,
    /// Of the scheduler process on an idle machine in [`WINDOW`].
    idle: u64,
    /// From the enqueue until the scheduler thread took the record, p50 and p99: four threads that
    /// sleep a ms.
    seen: (f64, f64),
    /// Of two hogs for each CPU, and of the scheduler, in [`WINDOW`].
    hogs: u64,
    busy: u64,
}

const WINDOW: Duration = Duration::from_secs(2);

fn self_ticks() -> u64 {
    cpu_ticks(std::process::id() as i32)
}

fn cost(wait: &'static str) -> Cost {
    let scheduler = Scheduler::start("scx_metronome", &["--wait", wait]);
    thread::sleep(Duration::from_secs(1));
    let before = cpu_ticks(scheduler.pid());
    thread::sleep(WINDOW);
    let idle = cpu_ticks(scheduler.pid()) - before;
    let hog = || {};
    let (hogs, busy) = with_threads(2 * cpus(), hog, || {
        thread::sleep(Duration::from_millis(500));
        let (ours, its) = (self_ticks(), cpu_ticks(scheduler.pid()));
        thread::sleep(WINDOW);
        (self_ticks() - ours, cpu_ticks(scheduler.pid()) - its)
    });
    scheduler.stop(libc::SIGINT).assert_clean();

    // Each wake-up has an enqueue record, and CPUs are idle.
    let options = [
        "--wait",
        wait,
        "--no-builtin-idle",
        "--orders",
        "none",
        "--stats",
        "60",
    ];
    let scheduler = Scheduler::start("scx_metronome", &options);
    let sleeper = || thread::sleep(Duration::from_millis(1));
    with_threads(4, sleeper, || thread::sleep(3 * WINDOW));
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    let seen = &stages(&ended.stderr)["enqueued -> seen"];
    assert!(seen[0] > 50.0, "{}", ended.stderr);
    Cost {
        wait,
        idle,
        seen: (seen[2], seen[3]),
        hogs,
        busy,
    }
}

#[test]
fn what_each_wait_mode_costs() {
    let costs = ["adaptive", "park", "spin"].map(cost);
    let ticks = WINDOW.as_millis() as u64 / 10;
    println!("{} CPUs, ticks of 10 ms in {WINDOW:?}", cpus());
    println!(
        "mode      idle: scheduler  p50 us  p99 us  busy: hogs (of {})  scheduler",
        ticks * cpus() as u64
    );
    for Cost {
        wait,
        idle,
        seen: (p50, p99),
        hogs,
        busy,
    } in &costs
    {
        println!("{wait:<9} {idle:>15} {p50:>7.1} {p99:>7.1} {hogs:>19} {busy:>10}");
    }
    let [adaptive, park, spin] = costs;
    // 1 %.
    assert!(adaptive.idle <= ticks / 100 && park.idle <= ticks / 100);
    assert!(spin.idle > ticks * 3 / 4, "it spins");
    assert!(
        spin.seen.0 < park.seen.0,
        "a thread that sleeps must be woken"
    );
    assert!(
        park.hogs > spin.hogs,
        "a thread that sleeps leaves its CPU to others"
    );
}

#[test]
fn a_scheduler_thread_that_may_park_leaves_an_idle_machine_idle() {
    for (wait, most) in [("adaptive", 4), ("park", 4), ("spin", 1000)] {
        let scheduler = Scheduler::start("scx_metronome", &["--wait", wait]);
        thread::sleep(Duration::from_secs(1));
        let before = cpu_ticks(scheduler.pid());
        thread::sleep(Duration::from_secs(4));
        let used = cpu_ticks(scheduler.pid()) - before;
        println!("--wait {wait}: {used} ticks of 10 ms in 4 s");
        // 1 %, or all of it.
        assert!(used <= most, "--wait {wait}: {used} ticks");
        assert!(wait != "spin" || used > 300, "--wait spin: {used} ticks");
        scheduler.stop(libc::SIGINT).assert_clean();
    }
}

#[test]
fn the_cpu_of_a_parked_scheduler_thread_takes_any_task() {
    let scheduler = Scheduler::start("scx_metronome", &["--wait", "park"]);
    let window = Duration::from_secs(3);
    let (idle, used): (Vec<u64>, u64) = with_threads(
        2 * cpus(),
        || {},
        || {
            thread::sleep(Duration::from_millis(500));
            let (before, used_before) = (idle_ticks(), cpu_ticks(scheduler.pid()));
            thread::sleep(window);
            let idle = idle_ticks()
                .iter()
                .zip(before)
                .map(|(a, b)| a - b)
                .collect();
            (idle, cpu_ticks(scheduler.pid()) - used_before)
        },
    );
    scheduler.stop(libc::SIGINT).assert_clean();
    println!("--wait park: idle ticks {idle:?}, scheduler {used}");
    let allowed = window.as_millis() as u64 / 10 / 10;
    assert!(idle.iter().all(|idle| *idle <= allowed), "{idle:?}");
    assert!(used <= 150, "the scheduler took {used} ticks of 300");
}
