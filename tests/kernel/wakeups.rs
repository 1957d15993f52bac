//! Races of a wake-up with a CPU that goes idle, is told to give way, or looks for work: whichever
//! wins, the task that woke does not wait for a tick or a timer longer than a slice.

use super::bounds::{beat, waited};
use super::*;

/// Runs `work` on each of `number` threads for so long, and gives their longest waits, sorted, µs.
fn waits_of(
    number: u64,
    run: Duration,
    each: impl Fn(u64, Instant) -> Vec<u64> + Sync,
) -> Vec<u64> {
    let end = Instant::now() + run;
    let mut waits: Vec<u64> = thread::scope(|scope| {
        let start = |nr| {
            let each = &each;
            scope.spawn(move || each(nr, end))
        };
        let threads: Vec<_> = (0..number).map(start).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    waits.sort_unstable();
    waits
}

/// Runs for `busy` and sleeps for `idle`, until `end`. The waits after each sleep, µs.
fn comes_and_goes(busy: Duration, idle: Duration, end: Instant) -> Vec<u64> {
    let mut schedstat = fs::File::open("/proc/thread-self/schedstat").unwrap();
    let mut waits = vec![];
    while Instant::now() < end {
        let before = waited(&mut schedstat);
        thread::sleep(idle);
        waits.push(waited(&mut schedstat) - before);
        let start = Instant::now();
        while start.elapsed() < busy {}
    }
    waits
}

fn percentile(waits: &[u64], of_thousand: usize) -> f64 {
    waits[(waits.len() - 1) * of_thousand / 1000] as f64 / 1e3
}

/// There are as many tasks as CPUs, and each sleeps for a quarter of the time, so that CPUs go idle
/// all the time. A task that wakes in that moment is seen by the CPU, or sees that it is idle.
#[test]
fn a_task_that_wakes_while_a_cpu_goes_idle_is_not_left_to_wait() {
    for args in [
        &["--orders", "none"][..],
        &["--orders", "none", "--no-builtin-idle"],
    ] {
        let scheduler = Scheduler::start("scx_metronome", args);
        let waits = waits_of(cpus() as u64, Duration::from_secs(3), |nr, end| {
            // No two of the same period: all phases come up.
            let busy = Duration::from_micros(900 + 70 * nr);
            comes_and_goes(busy, Duration::from_micros(300), end)
        });
        scheduler.stop(libc::SIGINT).assert_clean();
        println!(
            "{args:?}: {} waits, max {} µs",
            waits.len(),
            waits[waits.len() - 1]
        );
        // Others run for 1 ms at a time. A tick is 4 ms, the watch's timer 2.5 ms.
        let what = format!("p99.9 of waits with {}", args.join(" "));
        figure(&what, percentile(&waits, 999), "ms", Bound::AtMost(4.0));
    }
}

/// Several urgent threads wake at the same time, and a CPU that was told to give way to one may
/// find that another has taken it. It can be told again the next time.
#[test]
fn cpus_that_were_told_to_give_way_in_vain_give_way_again() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let [early, late] = with_threads(
        2 * cpus(),
        || {},
        || {
            let all = || {
                waits_of(6, Duration::ZERO, |nr, _| {
                    beat(Duration::from_micros(1900 + 40 * nr), 400)
                })
            };
            all();
            [(); 2].map(|()| percentile(&all(), 990))
        },
    );
    scheduler.stop(libc::SIGINT).assert_clean();
    println!("p99 of waits: first {early} ms, then {late} ms");
    // Left to the ticks, each waits for up to 4 ms.
    figure(
        "p99 of waits of six threads",
        late,
        "ms",
        Bound::AtMost(4.0),
    );
}

/// The tasks that are due first may run on CPUs 0 and 1 alone, and are more than a CPU looks at.
/// The others still come in turn on the other CPUs.
#[test]
fn tasks_bound_elsewhere_do_not_hide_the_task_that_is_due_here() {
    let scheduler = Scheduler::start("scx_metronome", &["--orders", "none"]);
    let over = AtomicBool::new(false);
    let waits = thread::scope(|scope| {
        let _stop = Stop(&over);
        let spin = |cpus: &'static [usize]| {
            let over = &over;
            scope.spawn(move || {
                inject::allow(0, cpus.iter().copied());
                while !over.load(Ordering::Relaxed) {}
            })
        };
        for _ in 0..16 {
            spin(&[0, 1]);
        }
        spin(&[2]);
        thread::sleep(Duration::from_millis(500));
        waits_of(1, Duration::from_secs(3), |_, end| {
            inject::allow(0, [2, 3]);
            comes_and_goes(Duration::from_millis(1), Duration::from_millis(5), end)
        })
    });
    scheduler.stop(libc::SIGINT).assert_clean();
    println!("{} waits, max {} µs", waits.len(), waits[waits.len() - 1]);
    // A slice is 20 ms.
    figure(
        "longest wait",
        percentile(&waits, 1000),
        "ms",
        Bound::AtMost(40.0),
    );
}
