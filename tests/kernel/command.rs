//! The command: its socket, `set`, `--monitor`, the doctor, and what it may do.

use std::sync::mpsc;

use serde_json::json;

use super::*;

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
                    format!("slice-us={us} slice-us-min={us} wait=adaptive boost=8")
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
    // Nor is anything taken from a caller that does not check first.
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

/// Three threads that work for a frame of 16 ms, one after the other, 120 times. Returns their
/// thread ids, in this order, and what the scheduler says meanwhile.
fn frames_of_three() -> ([i64; 3], serde_json::Value) {
    let (say, tids) = mpsc::channel();
    let (first, second) = (mpsc::channel(), mpsc::channel());
    let work = |place: usize, say: &mpsc::Sender<(usize, i64)>| {
        say.send((place, unsafe { libc::gettid() }.into())).unwrap();
        burn(Duration::from_millis(1));
    };
    thread::scope(|scope| {
        let begins = say.clone();
        scope.spawn(move || {
            let begin = Instant::now();
            for frame in 1..=120 {
                let next = begin + frame * Duration::from_millis(16);
                thread::sleep(next.saturating_duration_since(Instant::now()));
                work(0, &begins);
                let _ = first.0.send(());
            }
        });
        let goes_on = say.clone();
        scope.spawn(move || {
            while first.1.recv().is_ok() {
                work(1, &goes_on);
                let _ = second.0.send(());
            }
        });
        scope.spawn(move || {
            while second.1.recv().is_ok() {
                work(2, &say);
            }
        });
        let seen = monitored("1.5");
        let mut threads = [0; 3];
        for (place, tid) in tids {
            threads[place] = tid;
        }
        (threads, seen)
    })
}

#[test]
fn the_threads_that_work_for_a_frame_are_told_as_a_chain() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    wait_for_socket();
    let (threads, seen) = frames_of_three();
    scheduler.stop(libc::SIGINT).assert_clean();
    let chains = seen["chains"].as_object().unwrap();
    let chain = chains
        .values()
        .find(|chain| chain["members"] == json!(threads));
    let number = |name: &str| chain.map_or(0, |chain| chain[name].as_u64().unwrap());
    println!("{chains:?}");
    assert!(number("frames") > 40, "{threads:?} is none of {chains:?}");
    assert!(
        (14_000..=18_000).contains(&number("period_us")),
        "{chains:?}"
    );
    assert!((2_000..=10_000).contains(&number("path_us")), "{chains:?}");
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
