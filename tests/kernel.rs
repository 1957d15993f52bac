//! What must hold on a real kernel. Runs where `/sys/kernel/sched_ext` is, as root, one test at a time, with
//! `scx_metronome`, `fifo`, `stress-ng`, `hackbench` and `perf` in the path: `vm/test` boots such machines.
//!
//! `LOAD_SECONDS` says how long the heavy loads last (default 30).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "tests"
)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libbpf_rs::MapHandle;
use libbpf_rs::query::MapInfoIter;

#[path = "kernel/corrupt.rs"]
mod corrupt;
#[path = "kernel/fair.rs"]
mod fair;
#[path = "kernel/faults.rs"]
mod faults;
#[path = "kernel/inject.rs"]
mod inject;
#[path = "kernel/life.rs"]
mod life;
#[path = "kernel/moves.rs"]
mod moves;
#[path = "kernel/place.rs"]
mod place;
#[path = "kernel/soak.rs"]
mod soak;
#[path = "kernel/wait.rs"]
mod wait;

const SCHED_EXT: &str = "/sys/kernel/sched_ext";

fn seconds() -> u64 {
    std::env::var("LOAD_SECONDS").map_or(30, |text| text.parse().expect("LOAD_SECONDS is a number"))
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

fn state() -> String {
    read(&format!("{SCHED_EXT}/state"))
}

fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < limit,
            "{what}: not within {limit:?}; state is {}",
            state()
        );
        thread::sleep(Duration::from_millis(20));
    }
}

fn cpus() -> usize {
    thread::available_parallelism().unwrap().get()
}

/// A scheduler process. Killed when dropped, so that a failing test does not spoil the next.
struct Scheduler {
    child: Child,
}

/// How a scheduler ended, and what it printed.
struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl Scheduler {
    /// Starts it and waits until it schedules.
    fn start(command: &str, args: &[&str]) -> Self {
        wait_for(
            "no scheduler is loaded before the test",
            Duration::from_secs(10),
            || state() == "disabled",
        );
        let child = Command::new(command)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command}: {error}"));
        // What it prints is read when it has ended.
        let stdout = child.stdout.as_ref().unwrap().as_raw_fd();
        assert!(unsafe { libc::fcntl(stdout, libc::F_SETPIPE_SZ, 1 << 20) } > 0);
        let mut scheduler = Self { child };
        scheduler.wait_until_enabled("started", || true);
        scheduler
    }

    /// Waits until it schedules and `condition` holds too; fails with what it said if it ends instead.
    fn wait_until_enabled(&mut self, when: &str, mut condition: impl FnMut() -> bool) {
        wait_for(when, Duration::from_secs(30), || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{when}: it ended with {status}: {}", self.take_stderr());
            }
            state() == "enabled" && condition()
        });
    }

    /// Fails with what the scheduler said if the kernel has ended it.
    fn assert_enabled(&mut self, when: &str) {
        let state = state();
        if state != "enabled" {
            wait_for("the scheduler ends", Duration::from_secs(60), || {
                self.child.try_wait().unwrap().is_some()
            });
            panic!("{when}: state is {state}: {}", self.take_stderr());
        }
    }

    fn take_stderr(&mut self) -> String {
        let mut text = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn signal(&self, signal: i32) {
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    fn wait(mut self) -> Ended {
        wait_for("the scheduler ends", Duration::from_secs(60), || {
            self.child.try_wait().unwrap().is_some()
        });
        let status = self.child.wait().unwrap();
        let mut stdout = String::new();
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut stdout)
            .unwrap();
        let stderr = self.take_stderr();
        Ended {
            status,
            stdout,
            stderr,
        }
    }

    fn stop(self, signal: i32) -> Ended {
        self.signal(signal);
        self.wait()
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// Ended as asked, by itself, without complaint, and with balanced books.
    fn assert_clean(&self) {
        assert!(self.status.success(), "{}: {}", self.status, self.stderr);
        self.assert_books_balance();
        wait_for_default_scheduler();
    }

    /// Each time it was detached every task is accounted for, and it did not end with a crowd in its hands.
    fn assert_books_balance(&self) {
        let mut lines = self.lines_of_books().peekable();
        assert!(lines.peek().is_some(), "no books: {}", self.stderr);
        for line in lines {
            assert!(line.starts_with("books balance: "), "{line}");
            let books = numbers(line);
            assert_eq!(accounted(&books), books["queued"], "{line}");
            assert!(books["left"] <= LEFT_AT_THE_END, "{line}");
        }
    }

    fn lines_of_books(&self) -> impl Iterator<Item = &str> {
        self.stderr
            .lines()
            .filter(|line| line.starts_with("books "))
    }

    /// The numbers of the last line of the books, by name.
    fn books(&self) -> HashMap<String, u64> {
        numbers(self.lines_of_books().last().expect("a line of books"))
    }
}

/// As many tasks may be on their way when a scheduler is detached: those that are runnable at that moment.
const LEFT_AT_THE_END: u64 = 50;

/// Of how many tasks the books say what became of them.
fn accounted(books: &HashMap<String, u64>) -> u64 {
    let fates = [
        "dispatched",
        "stale",
        "gone",
        "rescued",
        "superseded",
        "left",
    ];
    fates.iter().map(|fate| books[*fate]).sum()
}

fn wait_for_default_scheduler() {
    wait_for(
        "the default scheduler is back",
        Duration::from_secs(10),
        || state() == "disabled",
    );
}

/// "a 1 b-c 2" as a map.
fn numbers(line: &str) -> HashMap<String, u64> {
    let words: Vec<&str> = line
        .split([' ', ',', '(', ')'])
        .filter(|word| !word.is_empty())
        .collect();
    words
        .windows(2)
        .filter_map(|pair| Some((pair[0].to_owned(), pair[1].parse().ok()?)))
        .collect()
}

/// Processes that must all end with status 0.
struct Load(Vec<(String, Child)>);

impl Load {
    fn start(commands: &[&str]) -> Self {
        Self(
            commands
                .iter()
                .map(|command| {
                    let mut words = command.split_whitespace();
                    let child = Command::new(words.next().unwrap())
                        .args(words)
                        .stdout(Stdio::null())
                        .stderr(Stdio::null())
                        .spawn()
                        .unwrap_or_else(|error| panic!("{command}: {error}"));
                    ((*command).to_owned(), child)
                })
                .collect(),
        )
    }

    fn assert_running(&mut self) {
        for (command, child) in &mut self.0 {
            assert!(child.try_wait().unwrap().is_none(), "{command} has ended");
        }
    }

    fn assert_ends_well(&mut self) {
        for (command, child) in &mut self.0 {
            let status = child.wait().unwrap();
            assert!(status.success(), "{command}: {status}");
        }
        self.0.clear();
    }
}

/// Processes that a load has forked and that stay: they are there from the first to the last, and get on.
struct Crew(Vec<(i32, String)>);

impl Crew {
    /// Those of a load's first command, once there are so many.
    fn of(load: &Load, number: usize) -> Self {
        let parent = load.0[0].1.id() as i32;
        let mut crew = Vec::new();
        wait_for("the workers are there", Duration::from_secs(30), || {
            crew = children(parent);
            let is_named = |(_, name): &(i32, String)| name.starts_with("stress-ng-");
            crew.len() == number && crew.iter().all(is_named)
        });
        Self(crew)
    }

    /// All are there, no other has taken the place of one, and each CPU hog has used CPU time since this began to look.
    fn assert_get_on(&self, load: &Load, when: &str) {
        assert_eq!(children(load.0[0].1.id() as i32), self.0, "{when}");
        let hogs = self.0.iter().filter(|(_, name)| name.contains("cpu"));
        let used = hogs.map(|(pid, _)| (*pid, cpu_ticks(*pid)));
        let used: Vec<_> = used.collect();
        assert!(used.len() >= 2 * cpus(), "{when}: {used:?}");
        let mut waiting = used.clone();
        wait_for(when, Duration::from_secs(2), || {
            waiting.retain(|(pid, before)| cpu_ticks(*pid) == *before);
            waiting.is_empty()
        });
    }
}

/// The children of a process whose first thread has forked them, and their names.
fn children(parent: i32) -> Vec<(i32, String)> {
    let children = read(&format!("/proc/{parent}/task/{parent}/children"));
    let pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
    pids.map(|pid: i32| (pid, read(&format!("/proc/{pid}/comm"))))
        .collect()
}

impl Drop for Load {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Tells threads to end, also when what they were for panics: their scope waits for them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Threads of this process that do `work` over and over for as long as `run` takes.
fn with_threads<T>(number: usize, work: fn(), run: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        for _ in 0..number {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    work();
                }
            });
        }
        run()
    })
}

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
fn the_seed_program_schedules_a_load() {
    let scheduler = Scheduler::start("seed_fifo", &[]);
    let n = 2 * cpus();
    let mut load = Load::start(&[&format!("stress-ng --cpu {n} --fork 1 --pipe 1 -t 3s")]);
    load.assert_ends_well();
    assert_eq!(state(), "enabled");
    let ended = scheduler.stop(libc::SIGINT);
    assert!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    wait_for_default_scheduler();
}

#[test]
fn any_end_leaves_the_default_scheduler_and_a_running_load() {
    let mut load = Load::start(&[&format!("stress-ng --cpu {} --pipe 2 -t 3600s", 2 * cpus())]);
    let crew = Crew::of(&load, 2 * cpus() + 2);
    for scheduler in ["scx_metronome", "fifo"] {
        for signal in [libc::SIGINT, libc::SIGTERM] {
            let ended = Scheduler::start(scheduler, &[]).stop(signal);
            ended.assert_clean();
            crew.assert_get_on(&load, &format!("{scheduler} after signal {signal}"));
            assert!(!ended.stderr.contains("restarting"), "{}", ended.stderr);
            let reports = ended
                .stderr
                .lines()
                .filter(|line| line.starts_with("EXIT: "));
            let expected = usize::from(scheduler == "scx_metronome");
            assert_eq!(reports.count(), expected, "{}", ended.stderr);
        }
        let ended = Scheduler::start(scheduler, &[]).stop(libc::SIGKILL);
        assert_eq!(ended.status.signal(), Some(libc::SIGKILL));
        wait_for_default_scheduler();
        crew.assert_get_on(&load, &format!("{scheduler} after SIGKILL"));
    }
    load.assert_running();
}

/// The sum of a counter over the statistics lines.
fn total(stdout: &str, counter: &str) -> u64 {
    stdout
        .lines()
        .map(|line| numbers(line).get(counter).copied().unwrap_or(0))
        .sum()
}

/// SCHED_EXT of the kernel's include/uapi/linux/sched.h.
const POLICY_EXT: i32 = 7;

/// A load whose processes have all asked to be scheduled by us.
fn start_as_sched_ext(command: &str) -> Load {
    let mut words = command.split_whitespace();
    let mut process = Command::new(words.next().unwrap());
    process
        .args(words)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    unsafe {
        process.pre_exec(|| {
            let parameters = libc::sched_param { sched_priority: 0 };
            match libc::sched_setscheduler(0, POLICY_EXT, &parameters) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    Load(vec![(command.to_owned(), process.spawn().unwrap())])
}

/// Whether the kernel has a task in the class of our scheduler.
fn is_in_our_class(pid: i32) -> bool {
    let text = read(&format!("/proc/{pid}/sched"));
    let line = text.lines().find(|line| line.starts_with("ext.enabled"));
    let line = line.unwrap_or_else(|| panic!("no ext.enabled: {text}"));
    line.rsplit(':').next().unwrap().trim() == "1"
}

/// Ways of a task through the kernel side when it becomes runnable.
const ENQUEUES: [&str; 7] = [
    "queued",
    "direct",
    "ordered",
    "kernel",
    "no-id",
    "alone",
    "ring-full",
];

/// How often a task became runnable under a partial scheduler while a load ran whose workers are, or are not, in our class.
fn enqueues_of_partial_mode(start: impl FnOnce(&str) -> Load, is_ours: bool) -> u64 {
    let scheduler = Scheduler::start("scx_metronome", &["--partial", "--stats", "0.2"]);
    assert_eq!(read(&format!("{SCHED_EXT}/switch_all")), "0");
    let mut load = start(&format!("stress-ng --cpu {} --pipe 2 -t 2s", 2 * cpus()));
    let parent = load.0[0].1.id() as i32;
    let crew = Crew::of(&load, 2 * cpus() + 2);
    for pid in crew.0.iter().map(|(pid, _)| *pid).chain([parent]) {
        assert_eq!(is_in_our_class(pid), is_ours, "{pid}");
        let policy = unsafe { libc::sched_getscheduler(pid) };
        assert_eq!(policy == POLICY_EXT, is_ours, "{pid}");
    }
    load.assert_ends_well();
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    let counts = ENQUEUES.map(|way| total(&ended.stdout, way));
    println!("{ENQUEUES:?} {counts:?}, {}", ended.stderr);
    counts.iter().sum()
}

#[test]
fn partial_mode_schedules_only_sched_ext_tasks() {
    // What remains are the threads of the scheduler's own process: they are in our class, too.
    let own = enqueues_of_partial_mode(|command| Load::start(&[command]), false);
    assert!(own < 50, "ordinary tasks were scheduled by us: {own}");
    let all = enqueues_of_partial_mode(start_as_sched_ext, true);
    assert!(all > 1000, "tasks were not scheduled by us: {all}");
}

/// The table of the hops, by name: how many were measured, and mean, p50, p99, p99.9 and max in µs.
fn hops(stderr: &str) -> HashMap<String, Vec<f64>> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.len() == 9 && words[1] == "->").then(|| {
            let figures = words[3..].iter().map(|word| word.parse().unwrap());
            (format!("{} -> {}", words[0], words[2]), figures.collect())
        })
    };
    stderr.lines().filter_map(line).collect()
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

/// System calls that a thread makes in `seconds`, as the kernel counts them.
fn system_calls(tid: i32, seconds: u64) -> u64 {
    let output = Command::new("perf")
        .args([
            "stat",
            "-x",
            ",",
            "-e",
            "raw_syscalls:sys_enter",
            "-t",
            &tid.to_string(),
            "--",
        ])
        .args(["sleep", &seconds.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let count = text
        .lines()
        .find(|line| line.contains("raw_syscalls"))
        .and_then(|line| line.split(',').next());
    count
        .and_then(|count| count.parse().ok())
        .unwrap_or_else(|| panic!("perf stat: {text}"))
}

#[test]
fn the_scheduler_thread_of_a_saturated_machine_neither_faults_nor_allocates_and_hardly_calls_the_kernel()
 {
    let scheduler = Scheduler::start("scx_metronome", &["--stats", "1"]);
    let n = 2 * cpus();
    let mut load = Load::start(&[&format!("stress-ng --cpu {n} --pipe 4 --fork 1 -t 3600s")]);
    thread::sleep(Duration::from_secs(2));
    let mut yes = Command::new("yes").stdout(Stdio::null()).spawn().unwrap();
    let counted = system_calls(yes.id() as i32, 1);
    yes.kill().unwrap();
    yes.wait().unwrap();
    assert!(counted > 10, "calls are counted: {counted}");
    let calls = system_calls(scheduler.pid(), 10);
    load.assert_running();
    assert_eq!(state(), "enabled");
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    let lines: Vec<_> = ended.stdout.lines().map(numbers).collect();
    let last = lines.last().unwrap();
    assert_eq!(
        (last["faults"], last["allocations"]),
        (0, 0),
        "{}",
        ended.stdout
    );
    let busy = &lines[3..lines.len().min(13)];
    let sum = |counter: &str| busy.iter().map(|line| line[counter]).sum::<u64>();
    let (queued, ordered) = (sum("queued"), sum("ordered"));
    println!(
        "in 10 s: {queued} questions, {ordered} orders carried out, {calls} system calls, 0 faults, 0 allocations"
    );
    assert!(
        queued + ordered > 1000,
        "the machine was saturated: {}",
        ended.stdout
    );
    // Of those alone about which it was asked.
    assert!(
        5 * calls <= queued,
        "{calls} system calls for {queued} questions"
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

/// Time that each CPU has been idle, in ticks of 10 ms.
fn idle_ticks() -> Vec<u64> {
    read("/proc/stat")
        .lines()
        .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "))
        .map(|line| {
            line.split_whitespace()
                .skip(4)
                .take(2)
                .map(|field| field.parse::<u64>().unwrap())
                .sum()
        })
        .collect()
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
        // The last CPU is the scheduler's.
        let allowed = window.as_millis() as u64 / 10 / 100;
        assert!(
            idle[..idle.len() - 1].iter().all(|idle| *idle <= allowed),
            "{idle:?}"
        );
    }
}

/// Runs a command that must fail and returns its status and its one line of complaint.
fn complaint(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
    (output.status.code(), stderr)
}

#[test]
fn wrong_use_is_told_in_one_line_and_leaves_nothing_attached() {
    let metronome = || Command::new("scx_metronome");

    let (status, line) = complaint(metronome().uid(65534).gid(65534));
    assert!(
        status == Some(1) && line.contains("root") && line.contains("sudo"),
        "{line}"
    );

    let (status, line) = complaint(metronome().args(["--cpu", "999"]));
    assert!(
        status == Some(1) && line.contains("CPU 999 does not exist") && line.contains("online are"),
        "{line}"
    );

    let (status, line) = complaint(without_memlock(&mut metronome()));
    assert!(
        status == Some(1) && line.contains("lock") && line.contains("ulimit -l unlimited"),
        "{line}"
    );

    let (status, line) = complaint(without_sched_ext(&mut metronome()));
    assert!(
        status == Some(1)
            && line.contains("no sched_ext")
            && line.contains("CONFIG_SCHED_CLASS_EXT"),
        "{line}"
    );

    assert_eq!(
        metronome()
            .arg("--slice-us=0")
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .code(),
        Some(2)
    );
    assert_eq!(
        metronome()
            .arg("--nonsense")
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .code(),
        Some(2)
    );
    assert_eq!(state(), "disabled");

    let first = Scheduler::start("fifo", &[]);
    let (status, line) = complaint(&mut metronome());
    assert!(
        status == Some(1) && line.contains("another scheduler is loaded: metronome"),
        "{line}"
    );
    assert_eq!(state(), "enabled");
    first.stop(libc::SIGINT).assert_clean();
    assert_eq!(leftovers(), "");
}

/// Names of what a scheduler leaves behind in the kernel if it does not clean up.
fn leftovers() -> String {
    fs::read_dir("/sys/fs/bpf")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Takes away the right to lock memory, and all but 64 KiB of the limit.
fn without_memlock(command: &mut Command) -> &mut Command {
    const CAP_IPC_LOCK: libc::c_ulong = 14;
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit {
                rlim_cur: 65536,
                rlim_max: 65536,
            };
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit);
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0);
            Ok(())
        })
    }
}

/// Hides /sys/kernel/sched_ext, as on a kernel that was built without.
fn without_sched_ext(command: &mut Command) -> &mut Command {
    unsafe {
        command.pre_exec(|| {
            let none = std::ptr::null();
            libc::unshare(libc::CLONE_NEWNS);
            libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                none,
                libc::MS_REC | libc::MS_PRIVATE,
                none.cast(),
            );
            match libc::mount(
                c"none".as_ptr(),
                c"/sys/kernel".as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                none.cast(),
            ) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    }
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
fn policies_are_swapped_a_hundred_times_under_load_and_lose_no_task() {
    let mut scheduler = Scheduler::start("swap", &[]);
    let n = 2 * cpus();
    let load = &format!("stress-ng --cpu {n} --fork 1 --pipe 2 -t 11s");
    Load::start(&[load]).assert_ends_well();
    assert_eq!(state(), "enabled");
    let mut line = String::new();
    let stdout = scheduler.child.stdout.as_mut().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    assert_eq!(line, "100 swaps\n");
    scheduler.stop(libc::SIGINT).assert_clean();
}

/// How much later than asked for a thread that sleeps `period` runs again: p50 and p99, in µs.
fn lateness(nice: i32, period: Duration, samples: usize) -> (u64, u64) {
    let sleeper = thread::spawn(move || {
        assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }, 0);
        let mut late: Vec<_> = (0..samples)
            .map(|_| {
                let start = Instant::now();
                thread::sleep(period);
                (start.elapsed() - period).as_micros() as u64
            })
            .collect();
        late.sort_unstable();
        (late[samples / 2], late[samples * 99 / 100])
    });
    sleeper.join().unwrap()
}

/// p50 and p99 of the lateness of a thread beside four hogs for each CPU, in µs, under a scheduler and under the default one:
/// medians of three rounds in turn.
fn lateness_under(scheduler: &str, nice: i32) -> ((u64, u64), (u64, u64)) {
    let measure = || {
        with_threads(
            4 * cpus(),
            || {},
            || {
                // Until a policy knows what kind of task it is.
                lateness(nice, Duration::from_millis(3), 50);
                lateness(nice, Duration::from_millis(3), 300)
            },
        )
    };
    let median = |mut rounds: Vec<u64>| {
        rounds.sort_unstable();
        rounds[rounds.len() / 2]
    };
    let (mut ours, mut default) = (vec![], vec![]);
    for _ in 0..3 {
        default.push(measure());
        let scheduler = Scheduler::start(scheduler, &[]);
        ours.push(measure());
        scheduler.stop(libc::SIGINT).assert_clean();
    }
    println!("p50 and p99 of lateness in µs: {ours:?}, default scheduler {default:?}");
    let medians = |rounds: Vec<(u64, u64)>| {
        let (p50, p99) = rounds.into_iter().unzip();
        (median(p50), median(p99))
    };
    (medians(ours), medians(default))
}

#[test]
fn a_task_that_preempts_is_sooner_there_than_under_the_default_scheduler() {
    let (ours, default) = lateness_under("priority", -1);
    assert!(ours.1 < default.1, "{ours:?} {default:?}");
}

#[test]
fn a_task_with_a_standing_order_is_sooner_there_than_under_the_default_scheduler() {
    let (ours, default) = lateness_under("scx_metronome", 0);
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

/// CPU time that a process has used, in ticks of 10 ms.
fn cpu_ticks(pid: i32) -> u64 {
    let stat = read(&format!("/proc/{pid}/stat"));
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
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
fn the_cpu_of_a_parked_scheduler_thread_is_everybodys() {
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

const SOCKET: &str = "/var/run/scx/root/stats";

/// Runs the command to its end: status, stdout, stderr.
fn metronome(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new("scx_metronome").args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn wait_for_socket() {
    wait_for("the socket answers", Duration::from_secs(10), || {
        std::os::unix::net::UnixStream::connect(SOCKET).is_ok()
    });
}

/// The first object of `--monitor --json` after `seconds`.
fn monitored(seconds: &str) -> serde_json::Value {
    let mut child = Command::new("scx_metronome")
        .args(["--monitor", seconds, "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    serde_json::from_str(&line).unwrap()
}

#[test]
fn the_socket_is_roots_alone_and_that_of_a_dead_scheduler_is_replaced() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    wait_for_socket();
    for path in [SOCKET, "/var/run/scx/root"] {
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{path}: {mode:o}");
    }
    let mut stranger = Command::new("scx_metronome");
    let (status, line) = complaint(
        stranger
            .args(["set", "slice-us=2000"])
            .uid(65534)
            .gid(65534),
    );
    assert!(status == Some(1) && line.contains("needs root"), "{line}");

    scheduler.stop(libc::SIGKILL);
    assert!(fs::exists(SOCKET).unwrap());
    let (status, _, stderr) = metronome(&["set", "slice-us=2000"]);
    assert!(
        status == Some(1) && stderr.contains("no scx_metronome runs here"),
        "{stderr}"
    );

    let scheduler = Scheduler::start("scx_metronome", &[]);
    wait_for_socket();
    assert_eq!(metronome(&["set", "slice-us=2000"]).0, Some(0));
    scheduler.stop(libc::SIGINT).assert_clean();
    assert!(!fs::exists(SOCKET).unwrap());
}

#[test]
fn set_changes_the_slices_of_running_tasks_and_refuses_what_it_does_not_know() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    wait_for_socket();
    let seq = read(&format!("{SCHED_EXT}/enable_seq"));
    with_threads(
        2 * cpus(),
        || {},
        || {
            for us in [40_000, 3_000] {
                let (status, now, stderr) = metronome(&[
                    "set",
                    &format!("slice-us={us}"),
                    &format!("slice-us-min={us}"),
                ]);
                assert_eq!(status, Some(0), "{stderr}");
                assert_eq!(
                    now,
                    format!("slice-us={us} slice-us-min={us} wait=adaptive")
                );
                // Slices given before are used up by then.
                thread::sleep(Duration::from_secs(1));
                let seen = monitored("0.5");
                assert_eq!(seen["slice_us"], us);
                let cpus = seen["cpus"].as_object().unwrap().values();
                let slices: Vec<_> = cpus
                    .filter(|cpu| cpu["state"] == "decided")
                    .map(|cpu| cpu["slice_us"].as_u64().unwrap())
                    .collect();
                println!("slice-us={us}: running tasks have {slices:?}");
                assert!(slices.contains(&us), "{us}: {seen}");
                assert!(
                    us > 3_000 || slices.iter().all(|slice| *slice <= us),
                    "{us}: {seen}"
                );
            }
        },
    );
    let (status, _, stderr) = metronome(&["set", "slice=1"]);
    assert!(
        status == Some(2) && stderr.contains("no parameter"),
        "{stderr}"
    );
    // Nor is anything taken from who does not check first.
    let mut socket = std::os::unix::net::UnixStream::connect(SOCKET).unwrap();
    for args in [
        r#"{"target":"set","slice-us":"0"}"#,
        r#"{"target":"set","nonsense":"1"}"#,
    ] {
        writeln!(socket, r#"{{"req":"stats","args":{args}}}"#).unwrap();
        let mut answer = String::new();
        BufReader::new(&socket).read_line(&mut answer).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["errno"], libc::EINVAL, "{answer}");
    }
    assert_eq!(monitored("0.1")["slice_us"], 3_000);
    assert_eq!(
        read(&format!("{SCHED_EXT}/enable_seq")),
        seq,
        "it was not loaded anew"
    );
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
}

#[test]
fn monitor_prints_lines_and_ends_with_the_scheduler() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    wait_for_socket();
    let mut monitor = Command::new("scx_metronome")
        .args(["--monitor", "0.2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(monitor.stdout.take().unwrap()).lines();
    let mut direct = 0;
    for _ in 0..5 {
        let line = numbers(&lines.next().unwrap().unwrap());
        direct += line["direct"];
        assert_eq!((line["faults"], line["allocations"]), (0, 0));
    }
    assert!(direct > 0, "nothing woke up in a second");
    scheduler.stop(libc::SIGINT).assert_clean();
    let mut stderr = String::new();
    monitor
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert_eq!(monitor.wait().unwrap().code(), Some(1));
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("no scx_metronome runs here"), "{stderr}");
}

#[test]
fn doctor_finds_nothing_fatal_where_the_scheduler_runs() {
    let (status, table, _) = metronome(&["doctor"]);
    println!("{table}");
    assert_eq!(status, Some(0));
    for check in ["BTF", "memory lock", "isolated CPU", "compaction"] {
        assert!(table.contains(check), "{table}");
    }
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let (status, json, _) = metronome(&["doctor", "--json"]);
    assert_eq!(status, Some(0));
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    let loaded = |row: &&serde_json::Value| row["check"] == "loaded scheduler";
    let loaded = rows.as_array().unwrap().iter().find(loaded).unwrap();
    assert!(
        loaded["found"].as_str().unwrap().contains("metronome"),
        "{loaded}"
    );
    scheduler.stop(libc::SIGINT).assert_clean();
}

/// A number in a text like that of /proc/PID/status.
fn field(text: &str, name: &str, radix: u32) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|line| line.split_whitespace().next());
    let word = word.unwrap_or_else(|| panic!("no {name} in {text}"));
    u64::from_str_radix(word, radix).unwrap()
}

/// CAP_IPC_LOCK, CAP_PERFMON, CAP_BPF.
const CAPABILITIES: u64 = 1 << 14 | 1 << 38 | 1 << 39;

fn assert_it_may_little_and_takes_little(scheduler: &Scheduler) {
    let pid = scheduler.pid();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut threads = 0;
    for task in tasks {
        let status = format!("{}/status", task.unwrap().path().display());
        let status = read(&status);
        if status.is_empty() {
            // Of the server before, it has ended meanwhile.
            continue;
        }
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(field(&status, set, 16), CAPABILITIES, "{set}");
        }
        assert_eq!(field(&status, "NoNewPrivs:", 10), 1);
        threads += 1;
    }
    let status = read(&format!("/proc/{pid}/status"));
    let kib = |name| field(&status, name, 10);
    let (resident, locked) = (kib("VmHWM:"), kib("VmLck:"));
    println!("{threads} threads, resident at most {resident} KiB, locked {locked} KiB");
    assert!(resident <= 32 * 1024 && locked <= 32 * 1024);
}

/// Loads it, and loads it again after a CPU went and came, with the same few capabilities.
#[test]
fn the_scheduler_keeps_three_capabilities_and_at_most_32_mib() {
    let mut scheduler = Scheduler::start("scx_metronome", &["--stats", "1"]);
    wait_for_socket();
    let _others: Vec<_> = (0..4)
        .map(|_| std::os::unix::net::UnixStream::connect(SOCKET).unwrap())
        .collect();
    assert_it_may_little_and_takes_little(&scheduler);
    for online in [false, true] {
        inject::set_online(&mut scheduler, 1, online);
    }
    wait_for_socket();
    assert_it_may_little_and_takes_little(&scheduler);
    scheduler.stop(libc::SIGINT).assert_clean();
}

/// Each thread's system calls are filtered, and it answers through its socket.
fn assert_it_is_confined_and_answers(scheduler: &Scheduler, slice_us: u64) {
    wait_for_socket();
    let (status, now, stderr) = metronome(&["set", &format!("slice-us={slice_us}")]);
    assert_eq!(status, Some(0), "{stderr}");
    assert!(now.contains(&format!("slice-us={slice_us} ")), "{now}");
    assert_eq!(monitored("0.2")["slice_us"], slice_us);
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{}/task", scheduler.pid())).unwrap() {
        let status = format!("{}/status", task.unwrap().path().display());
        // One that served a socket may have ended meanwhile.
        let status = read(&status);
        if !status.is_empty() {
            assert_eq!(field(&status, "Seccomp:", 10), 2);
            threads += 1;
        }
    }
    println!("{threads} threads are confined");
    assert!(threads >= 4);
}

/// The calls of its whole life: loading, a load, its socket, being loaded again, the end.
#[test]
fn a_scheduler_with_filtered_system_calls_lacks_none() {
    let mut scheduler = Scheduler::start("scx_metronome", &["--seccomp", "--stats", "1"]);
    let (n, seconds) = (2 * cpus(), seconds());
    let mut load = Load::start(&[&format!(
        "stress-ng --cpu {n} --fork 1 --pipe 1 -t {seconds}s"
    )]);
    assert_it_is_confined_and_answers(&scheduler, 2_000);
    load.assert_ends_well();
    assert_eq!(state(), "enabled");
    for (online, slice_us) in [("0", 3_000), ("1", 4_000)] {
        let seq = read(&format!("{SCHED_EXT}/enable_seq"));
        fs::write("/sys/devices/system/cpu/cpu1/online", online).unwrap();
        scheduler.wait_until_enabled("after hotplug", || {
            read(&format!("{SCHED_EXT}/enable_seq")) != seq
        });
        assert_it_is_confined_and_answers(&scheduler, slice_us);
    }
    let ended = scheduler.stop(libc::SIGTERM);
    ended.assert_clean();
    println!("{}", ended.stderr);
    assert!(ended.stdout.lines().count() > 0, "no statistics");
    assert_eq!(ended.stderr.matches("restarting").count(), 2);
    assert!(!fs::exists(SOCKET).unwrap());
}

/// Puts an empty directory over /sys/firmware, for one process.
fn without_firmware(command: &mut Command) -> &mut Command {
    unsafe {
        command.pre_exec(|| {
            let none = std::ptr::null();
            libc::unshare(libc::CLONE_NEWNS);
            let private = libc::MS_REC | libc::MS_PRIVATE;
            libc::mount(c"none".as_ptr(), c"/".as_ptr(), none, private, none.cast());
            let (place, kind) = (c"/sys/firmware".as_ptr(), c"tmpfs".as_ptr());
            match libc::mount(c"none".as_ptr(), place, kind, 0, none.cast()) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    }
}

#[test]
fn an_automatic_profile_follows_the_power_profile() {
    let mut command = Command::new("scx_metronome");
    command.args(["--profile", "auto"]).stderr(Stdio::piped());
    let child = without_firmware(&mut command)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut scheduler = Scheduler { child };
    scheduler.wait_until_enabled("started", || true);
    wait_for_socket();
    assert_eq!(monitored("0.1")["wait"], "adaptive");
    let acpi = format!("/proc/{}/root/sys/firmware/acpi", scheduler.pid());
    fs::create_dir(&acpi).unwrap();
    fs::write(format!("{acpi}/platform_profile"), "low-power\n").unwrap();
    wait_for("it parks", Duration::from_secs(10), || {
        monitored("0.1")["wait"] == "park"
    });
    scheduler.stop(libc::SIGINT).assert_clean();
}
