//! The gate set: what must hold on the newest and on the oldest kernel before a change lands.

use super::faults::{ASKED, assert_any_end_is_clean, assert_it_goes_on_with};
use super::inject::{self, allow, set_online};
use super::*;

#[test]
fn a_heavy_load_is_scheduled_and_its_accounting_balances() {
    schedules_a_heavy_load("scx_metronome", &ASKED);
}

#[test]
fn the_seed_program_schedules_a_load_and_is_the_only_scheduler() {
    let scheduler = Scheduler::start("seed_fifo", &[]);
    let n = 2 * cpus();
    let mut load = Load::start(&[&format!("stress-ng --cpu {n} --fork 1 --pipe 1 -t 1s")]);
    let (status, line) = complaint(&mut Command::new("scx_metronome"));
    assert!(
        status == Some(1) && line.contains("another scheduler is loaded"),
        "{line}"
    );
    load.assert_ends_well();
    assert_eq!(state(), "enabled");
    let ended = scheduler.stop(libc::SIGINT);
    assert!(ended.status.success(), "{}: {}", ended.status, ended.stderr);
    wait_for_default_scheduler();
}

/// While the kernel verifies them a user waits for the scheduler to start, and after each CPU that
/// comes or goes is without it. A rule more, or another compiler, may multiply what is to be done:
/// with 70,000 instructions it takes seconds.
#[test]
fn the_kernel_verifies_each_program_soon() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let most = ProgInfoIter::default()
        .filter(|program| program.name.to_string_lossy().starts_with("metronome_"))
        .max_by_key(|program| program.verified_insns)
        .expect("the scheduler has loaded its programs");
    println!("{:?} takes most", most.name);
    figure(
        "instructions verified",
        most.verified_insns.into(),
        "",
        Bound::AtMost(20_000.0),
    );
    scheduler.stop(libc::SIGINT).assert_clean();
}

/// The tests beside this one end theirs by SIGINT or SIGTERM.
#[test]
fn a_kill_leaves_the_default_scheduler_and_a_running_load() {
    assert_any_end_is_clean("scx_metronome", &[libc::SIGKILL]);
}

#[test]
fn a_scheduler_that_is_stopped_or_frozen_holds_no_task_up() {
    assert_it_goes_on_with(&ASKED, "stopped, then frozen", |scheduler| {
        inject::stop(scheduler, Duration::from_millis(200));
        thread::sleep(Duration::from_millis(200));
        inject::freeze(scheduler, Duration::from_millis(200));
        thread::sleep(Duration::from_millis(200));
    });
}

#[test]
fn a_cpu_that_goes_and_comes_restarts_the_scheduler_and_takes_no_task_along() {
    let mut scheduler = Scheduler::start("scx_metronome", &[]);
    let pid = scheduler.pid();
    // No more: loading again takes its share of what the guest's CPUs get from the host.
    let mut load = Load::start(&["yes"]);
    let hog = load.0[0].1.id() as i32;
    for online in [false, true] {
        set_online(&mut scheduler, 1, online);
        let before = cpu_ticks(hog);
        wait_for("the load goes on", Duration::from_secs(5), || {
            cpu_ticks(hog) > before
        });
    }
    assert_eq!(scheduler.pid(), pid);
    load.assert_running();
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    assert_eq!(ended.stderr.matches("restarting").count(), 2);
    assert_eq!(ended.lines_of_accounting().count(), 3, "{}", ended.stderr);
}

#[test]
fn policies_are_swapped_a_hundred_times_under_load_and_lose_no_task() {
    let mut scheduler = Scheduler::start("swap", &["20"]);
    let n = 2 * cpus();
    let load = &format!("stress-ng --cpu {n} --fork 1 --pipe 2 -t 2s");
    Load::start(&[load]).assert_ends_well();
    let mut line = String::new();
    let stdout = scheduler.child.stdout.as_mut().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    assert_eq!(line, "100 swaps\n");
    assert_eq!(state(), "enabled");
    scheduler.stop(libc::SIGINT).assert_clean();
}

/// How late a thread runs after its sleep beside four hogs on one CPU, with an order and without.
/// The other CPUs are idle: what the emulator gives them is no part of it.
#[test]
fn an_order_is_sooner_than_a_decision() {
    let measure = || {
        allow(0, [0]);
        lateness_beside(4, 0, 150)
    };
    let [order, decision] = [&[][..], &["--orders", "none"]].map(|args| {
        let scheduler = Scheduler::start("scx_metronome", args);
        let lateness = thread::scope(|scope| scope.spawn(measure).join().unwrap());
        scheduler.stop(libc::SIGINT).assert_clean();
        println!("{args:?}: {lateness:?}");
        lateness.p50 as f64
    });
    // A decision waits for a tick, every 1 to 4 ms. An order displaces a hog at once.
    figure(
        "median with an order to median without",
        order / decision,
        "",
        Bound::AtMost(0.5),
    );
}

#[test]
fn partial_mode_schedules_only_sched_ext_tasks() {
    let mut scheduler = Scheduler::start("scx_metronome", &["--partial", "--stats", "0.2"]);
    assert_eq!(read(&format!("{SCHED_EXT}/switch_all")), "0");
    // What remains are the threads of the scheduler's own process: they are in our class, too.
    run_in_class(|command| Load::start(&[command]), false);
    thread::sleep(Duration::from_millis(400));
    let own = enqueues(&scheduler.stdout_so_far());
    figure(
        "enqueues of ordinary tasks",
        own as f64,
        "",
        Bound::AtMost(50.0),
    );
    run_in_class(start_as_sched_ext, true);
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    figure(
        "enqueues of SCHED_EXT tasks",
        enqueues(&ended.stdout) as f64,
        "",
        Bound::AtLeast(500.0),
    );
}

/// The load has hogs, tasks that sleep, and births: the machine is full, and there is always
/// something to decide.
#[test]
fn a_full_machine_idles_on_no_cpu_and_its_scheduler_neither_faults_nor_allocates() {
    let scheduler = Scheduler::start("scx_metronome", &["--stats", "0.5"]);
    let n = 2 * cpus();
    let mut load = Load::start(&[&format!("stress-ng --cpu {n} --pipe 4 --fork 1 -t 3600s")]);
    thread::sleep(Duration::from_millis(1000));
    let (before, used) = (idle_ticks(), cpu_ms(scheduler.pid()));
    let calls = system_calls(scheduler.pid(), seconds());
    let used = cpu_ms(scheduler.pid()) - used;
    let idle: Vec<u64> = idle_ticks()
        .iter()
        .zip(before)
        .map(|(after, before)| after - before)
        .collect();
    load.assert_running();
    assert_eq!(state(), "enabled");
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    let last = numbers(ended.stdout.lines().last().unwrap());
    assert_eq!(
        (last["faults"], last["allocations"]),
        (0, 0),
        "{}",
        ended.stdout
    );
    println!(
        "{} enqueue records, {calls} system calls, {used} ms of the scheduler, in {} s, idle ticks {idle:?}",
        total(&ended.stdout, "queued"),
        seconds()
    );
    // It is woken to read events each 20 ms, or for each 512 of them.
    figure(
        "system calls a second",
        calls as f64 / seconds() as f64,
        "",
        Bound::AtMost(300.0),
    );
    figure(
        "CPU time of the scheduler",
        used as f64 / (10 * seconds()) as f64,
        "%",
        Bound::AtMost(20.0),
    );
    // 1 % is what an accounting by ticks may get wrong.
    let most = idle.iter().max().unwrap();
    figure(
        "idle time of a CPU",
        *most as f64 / seconds() as f64,
        "%",
        Bound::AtMost(1.0),
    );
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

    let (status, line) = complaint(with_few_files(&mut metronome()));
    assert!(
        status == Some(1) && line.contains("may open 16 files") && line.contains("ulimit -n 1024"),
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
    assert_eq!(leftovers(), "");
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
const ENQUEUES: [&str; 8] = [
    "queued",
    "in-turn",
    "direct",
    "ordered",
    "kernel-side",
    "no-id",
    "fallback",
    "ring-full",
];

/// How often a task became runnable, by the lines of statistics.
fn enqueues(stdout: &str) -> u64 {
    let counts = ENQUEUES.map(|way| total(stdout, way));
    println!("{ENQUEUES:?} {counts:?}");
    counts.iter().sum()
}

/// Runs a load whose workers are, or are not, in our class.
fn run_in_class(start: impl FnOnce(&str) -> Load, is_ours: bool) {
    let mut load = start(&format!("stress-ng --cpu {} --pipe 2 -t 1s", 2 * cpus()));
    let parent = load.0[0].1.id() as i32;
    let crew = Crew::of(&load, 2 * cpus() + 2);
    for pid in crew.0.iter().map(|(pid, _)| *pid).chain([parent]) {
        assert_eq!(is_in_our_class(pid), is_ours, "{pid}");
        let policy = unsafe { libc::sched_getscheduler(pid) };
        assert_eq!(policy == POLICY_EXT, is_ours, "{pid}");
    }
    load.assert_ends_well();
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

/// CPU time that a thread has used, as the kernel counts it. By ticks it would be wrong of one that
/// runs briefly after each.
fn cpu_ms(tid: i32) -> u64 {
    let text = read(&format!("/proc/{tid}/schedstat"));
    let ns = text.split_whitespace().next().unwrap();
    ns.parse::<u64>().unwrap() / 1_000_000
}

fn with_few_files(command: &mut Command) -> &mut Command {
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit {
                rlim_cur: 16,
                rlim_max: 16,
            };
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
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
