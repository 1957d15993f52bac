//! Heavy loads, under the command and the examples.

use super::faults::ASKED;
use super::*;

#[test]
fn fifo_schedules_a_heavy_load_and_its_accounting_balances() {
    schedules_a_heavy_load("fifo", &[]);
}

#[test]
fn all_stages_of_a_busy_machine_are_measured_and_add_up() {
    // Short slices, for many enqueue records: one of 256 is measured.
    let args = ["--stats", "1", "--slice-us", "500", "--slice-us-min", "500"];
    let scheduler = Scheduler::start("scx_metronome", &[&args[..], &ASKED].concat());
    let n = 2 * cpus();
    let load = &format!("stress-ng --cpu {n} --pipe 1 --yield 2 -t 8s");
    Load::start(&[load]).assert_ends_well();
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    println!("{}", ended.stderr);
    let stages = stages(&ended.stderr);
    assert_eq!(stages.len(), 6, "{}", ended.stderr);
    for (stage, figures) in &stages {
        assert!(figures[0] > 20.0, "{stage}: {figures:?}");
        assert!(figures[2..].is_sorted(), "{stage}: {figures:?}");
    }
    let of = |stage: &str, figure: usize| stages[stage][figure];
    let way = [
        "enqueued -> seen",
        "seen -> decided",
        "decided -> drained",
        "drained -> running",
    ];
    let whole = "enqueued -> running";
    let ordered = "ordered -> running";
    assert!(of(ordered, 2) < of(whole, 2), "no way at all: {stages:?}");
    // All are of the same tasks.
    assert!(
        way.iter().all(|stage| of(stage, 0) == of(whole, 0)),
        "{stages:?}"
    );
    let sum: f64 = way.iter().map(|stage| of(stage, 1)).sum();
    // A figure is up to an eighth too large.
    let ratio = sum / of(whole, 1);
    assert!(
        (0.87..1.14).contains(&ratio),
        "means add up to {sum}: {stages:?}"
    );
    // No stage is longer than the whole, give or take a bucket.
    assert!(
        way.iter().all(|stage| of(stage, 5) <= 1.13 * of(whole, 5)),
        "{stages:?}"
    );
    // The line of each second has them, too.
    assert!(
        ended
            .stdout
            .lines()
            .all(|line| line.contains("p50/p99 us: Seen "))
    );
}

/// Every call of sched_yield() is an enqueue record.
#[test]
fn a_million_decisions_cost_the_scheduler_thread_neither_a_fault_nor_an_allocation() {
    const DECISIONS: u64 = 1_000_000;
    let args = ["--stats", "1"];
    let mut scheduler = Scheduler::start("scx_metronome", &[&args[..], &ASKED].concat());
    let mut lines = BufReader::new(scheduler.child.stdout.take().unwrap()).lines();
    let start = Instant::now();
    let mut decided = 0;
    let mut last = HashMap::new();
    with_threads(2 * cpus(), thread::yield_now, || {
        while decided < DECISIONS {
            last = numbers(&lines.next().unwrap().unwrap());
            decided += last["dispatched"];
            assert!(
                start.elapsed() < Duration::from_secs(600),
                "{decided} decisions"
            );
        }
    });
    let seconds = start.elapsed().as_secs();
    println!(
        "{decided} decisions in {seconds} s, {} faults, {} allocations",
        last["faults"], last["allocations"]
    );
    assert_eq!((last["faults"], last["allocations"]), (0, 0));
    scheduler.signal(libc::SIGINT);
    assert!(scheduler.child.wait().unwrap().success());
}

#[test]
fn each_example_schedules_a_load_and_its_accounting_balances() {
    for example in ["vruntime", "priority", "llc"] {
        let scheduler = Scheduler::start(example, &[]);
        let n = 2 * cpus();
        let load = &format!("stress-ng --cpu {n} --fork 2 --pipe 2 --affinity 1 -t 3s");
        Load::start(&[load]).assert_ends_well();
        assert_eq!(state(), "enabled");
        let ended = scheduler.stop(libc::SIGINT);
        ended.assert_clean();
        println!("{example}: {}", ended.stderr);
        assert!(ended.accounting()["dispatched"] > 100, "{}", ended.stderr);
    }
}

#[test]
fn a_task_that_preempts_is_sooner_there_than_under_the_default_scheduler() {
    assert_sooner_than_under_the_default_scheduler("priority", -1);
}

#[test]
fn a_task_with_a_standing_order_is_sooner_there_than_under_the_default_scheduler() {
    assert_sooner_than_under_the_default_scheduler("scx_metronome", 0);
}

/// p99 of the lateness of a thread on a full machine; medians of three rounds in turn.
fn assert_sooner_than_under_the_default_scheduler(scheduler: &str, nice: i32) {
    let (mut ours, mut default) = (vec![], vec![]);
    for _ in 0..3 {
        default.push(lateness_beside(4 * cpus(), nice, 300).p99);
        let scheduler = Scheduler::start(scheduler, &[]);
        ours.push(lateness_beside(4 * cpus(), nice, 300).p99);
        scheduler.stop(libc::SIGINT).assert_clean();
    }
    println!("p99 of lateness in µs: {ours:?}, default scheduler {default:?}");
    ours.sort_unstable();
    default.sort_unstable();
    assert!(ours[1] < default[1], "{ours:?} {default:?}");
}

#[test]
fn no_cpu_is_idle_while_tasks_wait() {
    for (scheduler, args) in [
        ("scx_metronome", &[][..]),
        ("fifo", &[]),
        ("scx_metronome", &["--no-builtin-idle"]),
    ] {
        let scheduler = Scheduler::start(scheduler, args);
        let window = Duration::from_secs(4);
        let idle: Vec<u64> = with_threads(
            2 * cpus(),
            || {},
            || {
                thread::sleep(Duration::from_millis(500));
                let before = idle_ticks();
                thread::sleep(window);
                idle_ticks()
                    .iter()
                    .zip(before)
                    .map(|(after, before)| after - before)
                    .collect()
            },
        );
        scheduler.stop(libc::SIGINT).assert_clean();
        println!("idle ticks of 10 ms in {window:?}: {idle:?}");
        let allowed = window.as_millis() as u64 / 10 / 100;
        assert!(idle.iter().all(|idle| *idle <= allowed), "{idle:?}");
    }
}

#[test]
fn any_bytes_in_the_standing_orders_are_harmless() {
    // That they are orders, and for which life of the id.
    const VALID: u64 = 1 << 58;
    const EPOCH: u64 = 0xfff;
    let any_order = |random: u64| random & !EPOCH | VALID | (random >> 32 & 3);
    let scheduler = Scheduler::start("scx_metronome", &["--stats", "1"]);
    let n = 2 * cpus();
    let load = &format!("stress-ng --cpu {n} --fork 2 --pipe 2 --affinity 1 -t 2s");
    for word in [|random| random, any_order] {
        inject::with_words_in("orders", word, || Load::start(&[load]).assert_ends_well());
    }
    assert_eq!(state(), "enabled");
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    assert!(total(&ended.stdout, "ordered") > 0, "{}", ended.stdout);
    assert!(total(&ended.stdout, "bad-orders") > 0, "{}", ended.stdout);
}
