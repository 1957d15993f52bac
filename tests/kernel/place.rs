//! Machines and places that are not plain: several caches, CPUs without a tick, a cpuset, a pid
//! namespace. `vm/test` runs these on a machine with two caches and a CPU without a tick as well as
//! with the others; what is expected follows from the machine, and a machine that was booted with
//! either must have it.

use std::collections::HashSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::faults::ASKED;
use super::inject::Cgroup;
use super::{Load, Scheduler, cpus, numbers, read, state, wait_for};

/// CPU numbers of a list as in sysfs: "0-2,5".
fn list(text: &str) -> Vec<usize> {
    let ranges = text.split(',').filter(|range| !range.is_empty());
    let ends = ranges.map(|range| range.split_once('-').unwrap_or((range, range)));
    ends.flat_map(|(first, last)| first.parse().unwrap()..=last.parse().unwrap())
        .collect()
}

/// The groups of CPUs that share a last-level cache.
fn caches() -> HashSet<String> {
    let shared = |cpu| format!("/sys/devices/system/cpu/cpu{cpu}/cache/index3/shared_cpu_list");
    list(&read("/sys/devices/system/cpu/online"))
        .into_iter()
        .map(|cpu| read(&shared(cpu)))
        .collect()
}

/// The sockets that are there: each has a cache of its own.
fn sockets() -> usize {
    let socket = |cpu| format!("/sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id");
    let online = list(&read("/sys/devices/system/cpu/online"));
    let sockets: HashSet<_> = online.into_iter().map(|cpu| read(&socket(cpu))).collect();
    sockets.len()
}

#[test]
fn the_llc_example_keeps_most_tasks_under_their_cache() {
    let scheduler = Scheduler::start("llc", &[]);
    let load = &format!("stress-ng --cpu {} --pipe 2 -t 4s", 2 * cpus());
    Load::start(&[load]).assert_ends_well();
    assert_eq!(state(), "enabled");
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    let counts = numbers(
        ended
            .stderr
            .lines()
            .find(|line| line.starts_with("kept"))
            .unwrap(),
    );
    println!("{} caches: {counts:?}", caches().len());
    assert_eq!(
        caches().len(),
        sockets(),
        "this machine has its cache files"
    );
    assert_eq!(counts["caches"], caches().len() as u64, "{counts:?}");
    assert!(counts["kept"] > counts["left"], "{counts:?}");
    assert!(counts["kept"] > 200, "{counts:?}");
}

#[test]
fn the_scheduler_thread_takes_a_cpu_without_a_tick_if_there_is_one_and_says_so() {
    // "(null)" on kernels that can, but were not told to.
    let tickless = read("/sys/devices/system/cpu/nohz_full").replace("(null)", "");
    let asked_for = read("/proc/cmdline").contains("nohz_full=");
    assert_eq!(!tickless.is_empty(), asked_for, "the kernel does as told");
    let expected = match list(&tickless).last() {
        Some(cpu) => format!("CPU {cpu} (a CPU without a tick)"),
        None => format!("CPU {} (the last CPU)", cpus() - 1),
    };
    let scheduler = Scheduler::start("scx_metronome", &ASKED);
    let load = &format!("stress-ng --cpu {} --pipe 2 --fork 1 -t 3s", 2 * cpus());
    Load::start(&[load]).assert_ends_well();
    assert_eq!(state(), "enabled");
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    println!("{}", ended.stderr);
    assert!(
        ended.stderr.contains(&expected),
        "{expected}: {}",
        ended.stderr
    );
    assert!(ended.accounting()["dispatched"] > 50, "{}", ended.stderr);
}

#[test]
fn a_scheduler_thread_takes_the_cpu_asked_for_and_says_so() {
    let scheduler = Scheduler::start("scx_metronome", &[&["--cpu", "1"], &ASKED[..]].concat());
    let pid = scheduler.pid();
    let n = 2 * cpus();
    let mut load = Load::start(&[&format!("stress-ng --cpu {n} --pipe 2 --fork 1 -t 3s")]);
    let status = read(&format!("/proc/{pid}/task/{pid}/status"));
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    assert_eq!(allowed.map(str::trim), Some("1"), "{status}");
    load.assert_ends_well();
    assert_eq!(state(), "enabled");
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    println!("{}", ended.stderr);
    assert!(
        ended.stderr.contains("CPU 1 (as asked)"),
        "{}",
        ended.stderr
    );
    assert!(ended.accounting()["dispatched"] > 50, "{}", ended.stderr);
}

/// A group of processes that may use some CPUs only.
fn cpuset(name: &str, cpus: &str) -> Cgroup {
    let group = Cgroup::new(name, &["cpuset"]);
    group.write("cpuset.cpus", cpus);
    group
}

fn sh(line: &str) -> Child {
    Command::new("sh")
        .args(["-c", line])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_scheduler_in_a_cpuset_keeps_to_it_and_schedules_tasks_of_any_cpuset() {
    let own = cpuset("scheduler", "1-2");
    let others = cpuset("others", "0-1");
    let shell = own.shell("scx_metronome --orders urgent --stats 0.5");
    let scheduler = Scheduler::start("sh", &["-c", &shell]);
    let n = 2 * cpus();
    let mut bound = sh(&others.shell(&format!("stress-ng --cpu {n} --pipe 1 --fork 1 -t 4s")));
    let mut free = sh(&format!("exec stress-ng --cpu {n} --pipe 1 -t 4s"));
    assert!(bound.wait().unwrap().success() && free.wait().unwrap().success());
    assert_eq!(state(), "enabled");
    let ended = scheduler.stop(libc::SIGINT);
    ended.assert_clean();
    println!("{}", ended.stderr);
    let place = "CPU 2 (the last CPU that this process may use)";
    assert!(ended.stderr.contains(place), "{}", ended.stderr);
    assert!(ended.accounting()["dispatched"] > 100, "{}", ended.stderr);
}

#[test]
fn a_scheduler_in_a_pid_namespace_of_its_own_schedules_all_tasks() {
    let namespace = [
        "--pid",
        "--fork",
        "--mount-proc",
        "scx_metronome",
        "--orders",
        "urgent",
        "--stats",
        "0.5",
    ];
    let scheduler = Scheduler::start("unshare", &namespace);
    let unshare = scheduler.pid();
    let children = read(&format!("/proc/{unshare}/task/{unshare}/children"));
    let inner: i32 = children.parse().expect("one child");
    let status = read(&format!("/proc/{inner}/status"));
    assert!(
        status
            .lines()
            .any(|line| line.starts_with("NSpid") && line.ends_with("\t1")),
        "in a namespace of its own: {status}"
    );
    let load = &format!("stress-ng --cpu {} --pipe 2 --fork 1 -t 4s", 2 * cpus());
    Load::start(&[load]).assert_ends_well();
    assert_eq!(state(), "enabled");
    assert_eq!(unsafe { libc::kill(inner, libc::SIGINT) }, 0);
    let ended = scheduler.wait();
    ended.assert_clean();
    println!("{}", ended.stderr);
    assert!(ended.accounting()["dispatched"] > 100, "{}", ended.stderr);
    let last = numbers(ended.stdout.lines().last().unwrap());
    assert_eq!(
        (last["faults"], last["taken-back"]),
        (0, 0),
        "{}",
        ended.stdout
    );
    wait_for("nothing is left", Duration::from_secs(5), || {
        fs::metadata(format!("/proc/{inner}")).is_err()
    });
}
