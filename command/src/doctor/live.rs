//! What threads do that must not wait, watched for a second: sound that runs behind all else.

use std::path::Path;
use std::thread;
use std::time::Duration;

use super::{Finding, Machine};

/// A thread that sleeps this often in a second works to a beat.
const BEAT: u64 = 20;

/// From this nice level on a thread is behind all others on a full machine.
const LATE_NICE: i64 = 10;

/// A process that has one of these mapped plays or records sound.
const LIBRARIES: [&str; 4] = ["libpipewire-", "libasound.so", "libjack.so", "libpulse.so"];

/// SCHED_BATCH and SCHED_IDLE of the kernel's include/uapi/linux/sched.h.
const BATCH: i64 = 3;
const IDLE: i64 = 5;

/// A thread of a program that plays or records sound, and that was told to run behind others.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Thread {
    pid: i64,
    name: String,
    nice: i64,
    policy: i64,
    /// How often it has gone to sleep.
    sleeps: u64,
}

/// Takes a second.
pub(super) fn sound(machine: &Machine) -> Finding {
    let before = threads(machine);
    thread::sleep(Duration::from_secs(1));
    judge(&before, &threads(machine))
}

/// What happened between two looks that are a second apart.
fn judge(before: &[Thread], after: &[Thread]) -> Finding {
    let has_beat = |thread: &&Thread| {
        let earlier = before.iter().find(|earlier| earlier.pid == thread.pid);
        earlier.is_some_and(|earlier| thread.sleeps >= earlier.sleeps + BEAT)
    };
    let late: Vec<_> = after.iter().filter(has_beat).collect();
    let [first, ..] = late[..] else {
        return Finding::ok("no thread of a sound program runs behind the others");
    };
    let how = |thread: &Thread| match thread.policy {
        IDLE => "SCHED_IDLE".to_owned(),
        BATCH => "SCHED_BATCH".to_owned(),
        _ => format!("nice {}", thread.nice),
    };
    let each = late
        .iter()
        .map(|thread| format!("{} ({}, {})", thread.pid, thread.name, how(thread)));
    let fix = match first.policy {
        BATCH | IDLE => format!("chrt --other --pid 0 {}", first.pid),
        _ => format!("renice -n 0 -p {}", first.pid),
    };
    let found = each.collect::<Vec<_>>().join(", ");
    Finding::advice(format!("runs behind all others: {found}"), fix)
}

fn threads(machine: &Machine) -> Vec<Thread> {
    let processes = machine
        .list("proc")
        .into_iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    processes
        .flat_map(|process| threads_of(machine, &process))
        .collect()
}

fn threads_of(machine: &Machine, process: &str) -> Vec<Thread> {
    let directory = format!("proc/{process}/task");
    let late = machine.list(&directory).into_iter().filter_map(|thread| {
        let path = Path::new(&directory).join(thread);
        read(machine, &path)
            .filter(|thread| thread.nice >= LATE_NICE || [BATCH, IDLE].contains(&thread.policy))
    });
    let late: Vec<_> = late.collect();
    match late.is_empty() || plays_sound(machine, process) {
        true => late,
        false => Vec::new(),
    }
}

fn plays_sound(machine: &Machine, process: &str) -> bool {
    let maps = machine
        .read(format!("proc/{process}/maps"))
        .unwrap_or_default();
    LIBRARIES.iter().any(|library| maps.contains(library))
}

/// Of the fields of `stat`, counted from the one after the name: man 5 proc_pid_stat.
fn read(machine: &Machine, path: &Path) -> Option<Thread> {
    let stat = machine.read(path.join("stat"))?;
    let (head, tail) = stat.rsplit_once(") ")?;
    let (pid, name) = head.split_once(" (")?;
    let field = |number: usize| tail.split(' ').nth(number - 3)?.parse().ok();
    let sleeps = machine.field(path.join("status").to_str()?, "voluntary_ctxt_switches:")?;
    Some(Thread {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        nice: field(19)?,
        policy: field(41)?,
        sleeps: sleeps.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::super::tree::Tree;
    use super::*;

    fn write(
        tree: &Tree,
        pid: u32,
        name: &str,
        (nice, policy): (i64, i64),
        library: &str,
        sleeps: u64,
    ) {
        let rest = "0 ".repeat(14);
        let gap = "0 ".repeat(21);
        let stat = format!("{pid} ({name}) S {rest}39 {nice} {gap}{policy} 0");
        tree.write(&format!("proc/{pid}/task/{pid}/stat"), &stat);
        let status = format!(
            "Name:\t{name}\nvoluntary_ctxt_switches:\t{sleeps}\nnonvoluntary_ctxt_switches:\t0\n"
        );
        tree.write(&format!("proc/{pid}/task/{pid}/status"), &status);
        tree.write(
            &format!("proc/{pid}/maps"),
            &format!("7f00-7f01 r-xp 0 08:01 1 /usr/lib/{library}\n"),
        );
    }

    /// What is said of threads that have slept so often in the second.
    fn finding(name: &str, threads: &[(&str, (i64, i64), &str, u64)]) -> Finding {
        let tree = Tree::new(name);
        let look = |share: u64| {
            for (pid, (name, how, library, sleeps)) in (100..).zip(threads) {
                write(&tree, pid, name, *how, library, 1000 + sleeps * share);
            }
            super::threads(&Machine::new(tree.root()))
        };
        let before = look(0);
        judge(&before, &look(1))
    }

    const SOUND: &str = "libpipewire-0.3.so.0";

    #[test]
    fn a_sound_thread_behind_all_others_is_named_with_the_fix() {
        let found = finding(
            "late",
            &[
                ("data loop)x", (0, IDLE), SOUND, 100),
                ("beat", (19, 0), "libasound.so.2", 50),
            ],
        );
        assert_eq!(found.verdict, Verdict::Advice);
        assert!(
            found
                .found
                .contains("100 (data loop)x, SCHED_IDLE), 101 (beat, nice 19)"),
            "{}",
            found.found
        );
        assert_eq!(found.fix, "chrt --other --pid 0 100");
        assert_eq!(
            finding("nice", &[("a", (15, 0), SOUND, 30)]).fix,
            "renice -n 0 -p 100"
        );
    }

    #[test]
    fn others_are_left_alone() {
        let others = [
            ("player", (0, 0), SOUND, 100),
            ("indexer", (19, 0), "libz.so.1", 1000),
            ("asleep", (19, 0), SOUND, 3),
        ];
        assert_eq!(finding("others", &others).verdict, Verdict::Ok);
    }
}
