//! What a task gets of a machine that is full, from `scx_metronome`.

use super::*;

/// What a thread got between two points of time.
#[derive(Debug)]
struct Got {
    cpu: Duration,
    /// The longest time that it wanted to run and did not.
    wait: Duration,
}

fn cpu_time() -> Duration {
    let mut used = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut used) };
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

fn set_nice(nice: i32) {
    assert_eq!(
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) },
        0,
        "this thread's own"
    );
}

fn sleep_until(when: Instant) {
    thread::sleep(when.saturating_duration_since(Instant::now()));
}

/// Computes until `end`; counts from `begin` on.
fn hog(nice: i32, begin: Instant, end: Instant) -> Got {
    set_nice(nice);
    while Instant::now() < begin {
        std::hint::spin_loop();
    }
    let (used, mut last, mut wait) = (cpu_time(), begin, Duration::ZERO);
    while last < end {
        let now = Instant::now();
        wait = wait.max(now - last);
        last = now;
    }
    let cpu = cpu_time() - used;
    Got { cpu, wait }
}

/// The machine is four times full. It was so before; then one of the hogs had it for itself for three seconds, and nothing of
/// that is held against it.
#[test]
fn at_four_hogs_for_each_cpu_nobody_waits_for_long_and_all_get_the_same() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let alone = Instant::now() + Duration::from_secs(1);
    let begin = alone + Duration::from_secs(3);
    let end = begin + Duration::from_secs(3);
    let got: Vec<_> = thread::scope(|scope| {
        let old = scope.spawn(|| hog(0, begin, end));
        let others = (1..4 * cpus()).map(|_| {
            scope.spawn(move || {
                hog(0, alone, alone);
                sleep_until(begin);
                hog(0, begin, end)
            })
        });
        let all: Vec<_> = std::iter::once(old).chain(others).collect();
        all.into_iter().map(|hog| hog.join().unwrap()).collect()
    });
    let longest = got.iter().map(|got| got.wait).max().unwrap();
    let most = got.iter().map(|got| got.cpu).max().unwrap();
    let least = got.iter().map(|got| got.cpu).min().unwrap();
    println!(
        "{} hogs: {least:?} to {most:?} of CPU time, the first {:?}; longest wait {longest:?}, of the first {:?}",
        got.len(),
        got[0].cpu,
        got[0].wait
    );
    assert!(longest <= Duration::from_millis(100), "{got:?}");
    assert!(least.as_secs_f64() >= 0.9 * most.as_secs_f64(), "{got:?}");
    scheduler.stop(libc::SIGINT).assert_clean();
}

#[test]
fn each_nice_level_gets_its_share() {
    /// The weights of sched_ext: `sched_weight_to_cgroup()`.
    const LEVELS: [(i32, f64); 4] = [(-5, 305.), (0, 100.), (5, 33.), (10, 11.)];
    const EACH: usize = 3;
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let begin = Instant::now() + Duration::from_secs(1);
    let end = begin + Duration::from_secs(5);
    let got: Vec<f64> = thread::scope(|scope| {
        let levels =
            LEVELS.map(|(nice, _)| [(); EACH].map(|()| scope.spawn(move || hog(nice, begin, end))));
        let cpu = |hogs: [thread::ScopedJoinHandle<'_, Got>; EACH]| {
            let got = hogs.into_iter().map(|hog| hog.join().unwrap().cpu);
            got.sum::<Duration>().as_secs_f64()
        };
        levels.into_iter().map(cpu).collect()
    });
    let whole: f64 = got.iter().sum();
    let weights: f64 = LEVELS.iter().map(|(_, weight)| weight).sum();
    for ((nice, weight), got) in LEVELS.iter().zip(&got) {
        let (share, ideal) = (got / whole, weight / weights);
        println!(
            "nice {nice}: {:.1} %, by weight {:.1} %",
            100. * share,
            100. * ideal
        );
        assert!(
            (0.9..=1.1).contains(&(share / ideal)),
            "nice {nice}: {got:?}"
        );
    }
    scheduler.stop(libc::SIGINT).assert_clean();
}
