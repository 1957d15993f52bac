//! Heavy loads, under the command and the examples.

use super::*;

fn schedules_a_heavy_load(scheduler: &str, args: &[&str]) {
    let rejected = read(&format!("{SCHED_EXT}/nr_rejected"));
    let scheduler = Scheduler::start(scheduler, args);
    let (n, seconds) = (2 * cpus(), seconds());
    let started = Instant::now();
    let mut load = Load::start(&[
        &format!("stress-ng --cpu {n} --fork 2 --pipe 2 --affinity 1 -t {seconds}s"),
        &format!("hackbench -g 2 -l {}", 20 * seconds),
    ]);
    while started.elapsed() < Duration::from_secs(seconds) {
        assert_eq!(state(), "enabled");
        thread::sleep(Duration::from_millis(200));
    }
    load.assert_ends_well();
    assert_eq!(state(), "enabled");
    assert_eq!(read(&format!("{SCHED_EXT}/nr_rejected")), rejected);
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    println!("{}", ended.stderr);
    let books = ended.books();
    assert!(
        books["queued"] > 20 * seconds,
        "user space was asked: {books:?}"
    );
}

#[test]
fn fifo_schedules_a_heavy_load_and_its_books_balance() {
    schedules_a_heavy_load("fifo", &[]);
}

#[test]
fn metronome_schedules_a_heavy_load_and_its_books_balance() {
    schedules_a_heavy_load("scx_metronome", &[]);
}

#[test]
fn all_hops_of_a_busy_machine_are_measured_and_add_up() {
    // Short slices, for many questions: one of 256 is measured.
    let args = ["--stats", "1", "--slice-us", "500", "--slice-us-min", "500"];
    let scheduler = Scheduler::start("scx_metronome", &args);
    let n = 2 * cpus();
    let load = &format!("stress-ng --cpu {n} --pipe 1 --yield 2 -t 8s");
    Load::start(&[load]).assert_ends_well();
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    println!("{}", ended.stderr);
    let hops = hops(&ended.stderr);
    assert_eq!(hops.len(), 6, "{}", ended.stderr);
    for (hop, figures) in &hops {
        assert!(figures[0] > 20.0, "{hop}: {figures:?}");
        assert!(figures[2..].is_sorted(), "{hop}: {figures:?}");
    }
    let of = |hop: &str, figure: usize| hops[hop][figure];
    let way = [
        "enqueued -> seen",
        "seen -> decided",
        "decided -> drained",
        "drained -> running",
    ];
    let whole = "enqueued -> running";
    let ordered = "ordered -> running";
    assert!(of(ordered, 2) < of(whole, 2), "no way at all: {hops:?}");
    // All are of the same tasks.
    assert!(way.iter().all(|hop| of(hop, 0) == of(whole, 0)), "{hops:?}");
    let sum: f64 = way.iter().map(|hop| of(hop, 1)).sum();
    // A figure is up to an eighth too large.
    let ratio = sum / of(whole, 1);
    assert!(
        (0.87..1.14).contains(&ratio),
        "means add up to {sum}: {hops:?}"
    );
    // No hop is longer than the whole, give or take a bucket.
    assert!(
        way.iter().all(|hop| of(hop, 5) <= 1.13 * of(whole, 5)),
        "{hops:?}"
    );
    // The line of each second has them, too.
    assert!(
        ended
            .stdout
            .lines()
            .all(|line| line.contains("p50/p99 us: Seen "))
    );
}

/// Every call of sched_yield() is a question to user space.
#[test]
fn a_million_decisions_cost_the_scheduler_thread_neither_a_fault_nor_an_allocation() {
    const DECISIONS: u64 = 1_000_000;
    let mut scheduler = Scheduler::start("scx_metronome", &["--stats", "1"]);
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
fn each_example_schedules_a_load_and_its_books_balance() {
    for example in ["vruntime", "priority", "llc"] {
        let scheduler = Scheduler::start(example, &[]);
        let n = 2 * cpus();
        let load = &format!("stress-ng --cpu {n} --fork 2 --pipe 2 --affinity 1 -t 3s");
        Load::start(&[load]).assert_ends_well();
        assert_eq!(state(), "enabled");
        let ended = scheduler.stop(libc::SIGINT);
        ended.assert_clean();
        println!("{example}: {}", ended.stderr);
        assert!(ended.books()["dispatched"] > 100, "{}", ended.stderr);
    }
}

#[test]
fn a_task_that_preempts_is_sooner_there_than_under_the_default_scheduler() {
    let (ours, default) = lateness_under("priority", -1);
    assert!(ours.1 < default.1, "{ours:?} {default:?}");
}

#[test]
fn any_bytes_in_the_standing_orders_are_harmless() {
    // That they are orders, and for which life of the id.
    const VALID: u64 = 1 << 58;
    const BIRTH: u64 = 0xfff;
    let any_order = |random: u64| random & !BIRTH | VALID | (random >> 32 & 3);
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
