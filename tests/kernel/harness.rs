//! What the tests of a booted kernel share: schedulers, loads, and what is read of them.

use super::*;

pub(super) const SCHED_EXT: &str = "/sys/kernel/sched_ext";

pub(super) fn seconds() -> u64 {
    std::env::var("LOAD_SECONDS").map_or(30, |text| text.parse().expect("LOAD_SECONDS is a number"))
}

pub(super) fn read(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

pub(super) fn state() -> String {
    read(&format!("{SCHED_EXT}/state"))
}

pub(super) fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
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

pub(super) fn cpus() -> usize {
    thread::available_parallelism().unwrap().get()
}

/// A scheduler process. Killed when dropped, so that a failing test does not spoil the next.
pub(super) struct Scheduler {
    pub(super) child: Child,
}

/// How a scheduler ended, and what it printed.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Scheduler {
    /// Starts it and waits until it schedules.
    pub(super) fn start(command: &str, args: &[&str]) -> Self {
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

    /// Waits until it schedules and `condition` holds too; fails with what it said if it ends
    /// instead.
    pub(super) fn wait_until_enabled(&mut self, when: &str, mut condition: impl FnMut() -> bool) {
        wait_for(when, Duration::from_secs(30), || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{when}: it ended with {status}: {}", self.take_stderr());
            }
            state() == "enabled" && condition()
        });
    }

    /// Fails with what the scheduler said if the kernel has ended it.
    pub(super) fn assert_enabled(&mut self, when: &str) {
        let state = state();
        if state != "enabled" {
            wait_for("the scheduler ends", Duration::from_secs(60), || {
                self.child.try_wait().unwrap().is_some()
            });
            panic!("{when}: state is {state}: {}", self.take_stderr());
        }
    }

    /// What it has printed and was not yet read. It does not wait for more.
    pub(super) fn stdout_so_far(&mut self) -> String {
        let stdout = self.child.stdout.as_mut().unwrap();
        let mut ready: libc::c_int = 0;
        let fd = stdout.as_raw_fd();
        assert_eq!(unsafe { libc::ioctl(fd, libc::FIONREAD, &mut ready) }, 0);
        let mut text = vec![0; ready as usize];
        stdout.read_exact(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    pub(super) fn take_stderr(&mut self) -> String {
        let mut text = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    pub(super) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(super) fn signal(&self, signal: i32) {
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    pub(super) fn wait(mut self) -> Ended {
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

    pub(super) fn stop(self, signal: i32) -> Ended {
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
    /// Ended as asked, by itself, without complaint, and with an accounting that balances.
    pub(super) fn assert_clean(&self) {
        assert!(self.status.success(), "{}: {}", self.status, self.stderr);
        self.assert_accounting_balances();
        wait_for_default_scheduler();
    }

    /// Each time it was detached every task is accounted for, and it did not end with a crowd in
    /// its hands.
    pub(super) fn assert_accounting_balances(&self) {
        let mut lines = self.lines_of_accounting().peekable();
        assert!(lines.peek().is_some(), "no accounting: {}", self.stderr);
        for line in lines {
            assert!(line.starts_with("accounting balances: "), "{line}");
            let accounting = numbers(line);
            assert_eq!(accounted(&accounting), accounting["queued"], "{line}");
            assert!(accounting["left"] <= LEFT_AT_THE_END, "{line}");
        }
    }

    pub(super) fn lines_of_accounting(&self) -> impl Iterator<Item = &str> {
        self.stderr
            .lines()
            .filter(|line| line.starts_with("accounting "))
    }

    /// The numbers of the last line of the accounting, by name.
    pub(super) fn accounting(&self) -> HashMap<String, u64> {
        numbers(
            self.lines_of_accounting()
                .last()
                .expect("a line of accounting"),
        )
    }
}

/// As many tasks may be on their way when a scheduler is detached: those that are runnable at that
/// moment.
pub(super) const LEFT_AT_THE_END: u64 = 50;

/// Of how many tasks the accounting says what became of them.
pub(super) fn accounted(accounting: &HashMap<String, u64>) -> u64 {
    let fates = [
        "dispatched",
        "stale",
        "too-late",
        "rescued",
        "superseded",
        "left",
    ];
    fates.iter().map(|fate| accounting[*fate]).sum()
}

pub(super) fn wait_for_default_scheduler() {
    wait_for(
        "the default scheduler is back",
        Duration::from_secs(10),
        || state() == "disabled",
    );
}

/// "a 1 b-c 2" as a map.
pub(super) fn numbers(line: &str) -> HashMap<String, u64> {
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
pub(super) struct Load(pub(super) Vec<(String, Child)>);

impl Load {
    pub(super) fn start(commands: &[&str]) -> Self {
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

    pub(super) fn assert_running(&mut self) {
        for (command, child) in &mut self.0 {
            assert!(child.try_wait().unwrap().is_none(), "{command} has ended");
        }
    }

    pub(super) fn assert_ends_well(&mut self) {
        for (command, child) in &mut self.0 {
            let status = child.wait().unwrap();
            assert!(status.success(), "{command}: {status}");
        }
        self.0.clear();
    }
}

/// Processes that a load has forked and that stay: they are there from the first to the last, and
/// get on.
pub(super) struct Crew(pub(super) Vec<(i32, String)>);

impl Crew {
    /// Those of a load's first command, once there are so many.
    pub(super) fn of(load: &Load, number: usize) -> Self {
        let parent = load.0[0].1.id() as i32;
        let mut crew = Vec::new();
        wait_for("the workers are there", Duration::from_secs(30), || {
            crew = children(parent);
            let is_named = |(_, name): &(i32, String)| name.starts_with("stress-ng-");
            crew.len() == number && crew.iter().all(is_named)
        });
        Self(crew)
    }

    /// All are there, no other has taken the place of one, and each CPU hog has used CPU time since
    /// this began to look.
    pub(super) fn assert_get_on(&self, load: &Load, when: &str) {
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
pub(super) fn children(parent: i32) -> Vec<(i32, String)> {
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
pub(super) struct Stop<'a>(pub(super) &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Threads of this process that do `work` over and over for as long as `run` takes.
pub(super) fn with_threads<T>(number: usize, work: fn(), run: impl FnOnce() -> T) -> T {
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

/// The sum of a counter over the statistics lines.
pub(super) fn total(stdout: &str, counter: &str) -> u64 {
    stdout
        .lines()
        .map(|line| numbers(line).get(counter).copied().unwrap_or(0))
        .sum()
}

/// Time that each CPU has been idle, in ticks of 10 ms.
pub(super) fn idle_ticks() -> Vec<u64> {
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

/// Runs a command that must fail and returns its status and its one line of complaint.
pub(super) fn complaint(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
    (output.status.code(), stderr)
}

/// Names of what a scheduler leaves behind in the kernel if it does not clean up.
pub(super) fn leftovers() -> String {
    fs::read_dir("/sys/fs/bpf")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// CPU time that a process has used, in ticks of 10 ms.
pub(super) fn cpu_ticks(pid: i32) -> u64 {
    let stat = read(&format!("/proc/{pid}/stat"));
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// The table of the stages, by name: how many were measured, and mean, p50, p99, p99.9 and max in
/// µs.
pub(super) fn stages(stderr: &str) -> HashMap<String, Vec<f64>> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.len() == 9 && words[1] == "->").then(|| {
            let figures = words[3..].iter().map(|word| word.parse().unwrap());
            (format!("{} -> {}", words[0], words[2]), figures.collect())
        })
    };
    stderr.lines().filter_map(line).collect()
}

pub(super) const SOCKET: &str = "/var/run/scx/root/stats";

pub(super) fn wait_for_socket() {
    wait_for("the socket answers", Duration::from_secs(10), || {
        std::os::unix::net::UnixStream::connect(SOCKET).is_ok()
    });
}

/// A number in a text like that of /proc/PID/status.
pub(super) fn field(text: &str, name: &str, radix: u32) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|line| line.split_whitespace().next());
    let word = word.unwrap_or_else(|| panic!("no {name} in {text}"));
    u64::from_str_radix(word, radix).unwrap()
}

/// How much later than asked for a thread runs again, µs.
#[derive(Debug)]
pub(super) struct Lateness {
    pub(super) p50: u64,
    pub(super) p99: u64,
}

impl Lateness {
    /// Of one that sleeps `period`, so often, once the policy knows what kind of task it is.
    fn of(nice: i32, period: Duration, samples: usize) -> Self {
        let sleeper = thread::spawn(move || {
            assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }, 0);
            let late = (0..50 + samples).map(|_| {
                let start = Instant::now();
                thread::sleep(period);
                (start.elapsed() - period).as_micros() as u64
            });
            let mut late: Vec<_> = late.skip(50).collect();
            late.sort_unstable();
            Self {
                p50: late[samples / 2],
                p99: late[samples * 99 / 100],
            }
        });
        sleeper.join().unwrap()
    }
}

/// Of a thread beside so many hogs.
pub(super) fn lateness_beside(hogs: usize, nice: i32, samples: usize) -> Lateness {
    let period = Duration::from_millis(3);
    with_threads(hogs, || {}, || Lateness::of(nice, period, samples))
}

pub(super) fn schedules_a_heavy_load(name: &str, args: &[&str]) {
    let rejected = read(&format!("{SCHED_EXT}/nr_rejected"));
    let scheduler = Scheduler::start(name, args);
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
    let ended = scheduler.stop(libc::SIGTERM);
    ended.assert_clean();
    println!("{}", ended.stderr);
    if args.contains(&"--orders") || name != "scx_metronome" {
        let accounting = ended.accounting();
        assert!(
            accounting["queued"] > 20 * seconds,
            "it was asked: {accounting:?}"
        );
    }
}

/// What a figure may be.
#[derive(Clone, Copy)]
pub(super) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// Prints a figure, for `vm/flaky`, and fails if it is out of its bound.
pub(super) fn figure(what: &str, value: f64, unit: &str, bound: Bound) {
    let test = thread::current().name().unwrap_or("?").to_owned();
    let (holds, word, limit) = match bound {
        Bound::AtMost(limit) => (value <= limit, "at most", limit),
        Bound::AtLeast(limit) => (value >= limit, "at least", limit),
    };
    println!("\nfigure|{test}|{what}|{value:.2}|{unit}|{word} {limit}");
    assert!(holds, "{what}: {value:.2} {unit}, must be {word} {limit}");
}

/// Uses CPU time.
pub(super) fn burn(time: Duration) {
    let used = || {
        let mut used = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut used) };
        Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
    };
    let end = used() + time;
    while used() < end {
        std::hint::spin_loop();
    }
}
