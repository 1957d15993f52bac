//! The gate set: what must hold on every kernel before a change lands. Few seconds each.

use super::*;

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

#[test]
fn a_task_with_a_standing_order_is_sooner_there_than_under_the_default_scheduler() {
    let (ours, default) = lateness_under("scx_metronome", 0);
    assert!(ours.1 < default.1, "{ours:?} {default:?}");
}
