//! What goes wrong, on purpose, and what is watched meanwhile. The tests of single faults and the
//! soak test share this.

use std::sync::Arc;
use std::sync::mpsc;

use scx_metronome_core::abi::MAILBOX_SLOTS;

use super::*;

/// How late the scheduler thread may be, by default.
pub(super) const BUDGET: Duration = Duration::from_millis(10);

/// By so much more than the budget no task pauses while the scheduler thread does not answer.
pub(super) const MARGIN: Duration = Duration::from_millis(50);

/// Whatever its weight and the load, a runnable task that nothing is known of runs within this.
const STARVED: Duration = Duration::from_millis(100);

/// The longest times between two beats of threads that sleep a millisecond between them.
#[derive(Clone, Copy)]
pub(super) struct Pauses {
    /// Of one that has beaten for a while, so that it is known to be urgent.
    pub(super) heartbeat: Duration,
    /// Of ones that are gone after 20 beats.
    strangers: Duration,
}

/// The longest pauses so far, ns.
#[derive(Default)]
pub(super) struct Meter([AtomicU64; 2]);

impl Meter {
    /// The pauses that have ended since the last call. One that goes on counts in the part in which
    /// it ends.
    pub(super) fn next_part(&self) -> Pauses {
        let take = |longest: &AtomicU64| Duration::from_nanos(longest.swap(0, Ordering::Relaxed));
        let [heartbeat, strangers] = self.0.each_ref().map(take);
        Pauses {
            heartbeat,
            strangers,
        }
    }
}

impl Pauses {
    pub(super) fn during(run: impl FnOnce()) -> Self {
        Self::measure(true, |_| run())
    }

    /// Without strangers: none is born.
    pub(super) fn of_heartbeat(run: impl FnOnce()) -> Self {
        Self::measure(false, |_| run())
    }

    /// While `run` goes on, which may ask in between what there has been so far, and have the rest
    /// measured by itself.
    pub(super) fn in_parts(run: impl FnOnce(&Meter)) -> Self {
        Self::measure(true, run)
    }

    fn measure(with_strangers: bool, run: impl FnOnce(&Meter)) -> Self {
        let meter = Meter::default();
        let Meter(longest) = &meter;
        let over = AtomicBool::new(false);
        let beat = |longest: &AtomicU64, times: u32| {
            let mut last = Instant::now();
            for _ in 0..times {
                thread::sleep(Duration::from_millis(1));
                let took = last.elapsed().as_nanos() as u64;
                longest.fetch_max(took, Ordering::Relaxed);
                last = Instant::now();
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    beat(&longest[0], 10);
                }
            });
            scope.spawn(|| {
                while with_strangers && !over.load(Ordering::Relaxed) {
                    let _ = thread::scope(|inner| inner.spawn(|| beat(&longest[1], 20)).join());
                }
            });
            let _stop = Stop(&over);
            thread::sleep(Duration::from_millis(300));
            meter.next_part();
            run(&meter);
        });
        meter.next_part()
    }

    pub(super) fn assert_short(self, name: &str) {
        self.assert_heartbeat_short(name);
        let most = (BUDGET + STARVED).as_millis() as f64;
        let pause = ms(self.strangers);
        figure(
            &format!("{name}: pause of strangers"),
            pause,
            "ms",
            Bound::AtMost(most),
        );
    }

    /// What was has left no trace.
    pub(super) fn assert_over(self, name: &str) {
        assert!(
            self.heartbeat <= Duration::from_millis(20),
            "{name}: {self}"
        );
    }

    pub(super) fn assert_heartbeat_short(self, name: &str) {
        self.assert_heartbeat_within(BUDGET + MARGIN, name);
    }

    pub(super) fn assert_heartbeat_within(self, most: Duration, name: &str) {
        let what = format!("{name}: pause of a heartbeat");
        figure(&what, ms(self.heartbeat), "ms", Bound::AtMost(ms(most)));
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl std::fmt::Display for Pauses {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (heartbeat, strangers) = (ms(self.heartbeat), ms(self.strangers));
        write!(
            out,
            "longest pause of a heartbeat {heartbeat:.1} ms, of strangers {strangers:.1} ms"
        )
    }
}

/// A load that saturates the machine, as long as it is there.
pub(super) fn saturate() -> Load {
    let load = Load::start(&[&format!(
        "stress-ng -q --cpu {} --pipe 2 -t 3600s",
        2 * cpus()
    )]);
    thread::sleep(Duration::from_millis(500));
    load
}

/// Xorshift (Marsaglia, 2003): the same numbers for the same seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.word() >> 16) as usize % bound
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Pairs of threads that pass numbers to and fro and work in between: a thread that is lost is
/// missing in their counts.
pub(super) struct Workers {
    stop: Arc<AtomicBool>,
    tids: Vec<i32>,
    threads: Vec<thread::JoinHandle<u64>>,
}

impl Workers {
    pub(super) fn start(pairs: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (tid, tids) = mpsc::channel();
        let mut threads = Vec::new();
        for _ in 0..pairs {
            let (there, from_there) = mpsc::channel();
            let (back, from_back) = mpsc::channel();
            let (over, tid_there, tid_back) = (Arc::clone(&stop), tid.clone(), tid.clone());
            threads.push(thread::spawn(move || {
                tid_there.send(unsafe { libc::gettid() }).unwrap();
                let mut number = 0;
                while !over.load(Ordering::Relaxed) {
                    number += 1;
                    there.send(number).unwrap();
                    assert_eq!(from_back.recv(), Ok(number), "what was sent comes back");
                }
                number
            }));
            threads.push(thread::spawn(move || {
                tid_back.send(unsafe { libc::gettid() }).unwrap();
                let mut received = 0;
                for number in from_there {
                    work(Duration::from_micros(number % 8 * 50));
                    received += 1;
                    back.send(number).unwrap();
                }
                received
            }));
        }
        let tids = tids.iter().take(2 * pairs).collect();
        Self {
            stop,
            tids,
            threads,
        }
    }

    pub(super) fn tids(&self) -> &[i32] {
        &self.tids
    }

    /// Tells them to end. All do, with the right counts; returns how many numbers went to and fro.
    pub(super) fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        wait_for("the workers end", Duration::from_secs(10), || {
            self.threads.iter().all(thread::JoinHandle::is_finished)
        });
        let join = |thread: thread::JoinHandle<u64>| thread.join().unwrap();
        let counts: Vec<u64> = self.threads.into_iter().map(join).collect();
        for pair in counts.chunks(2) {
            assert!(pair[0] == pair[1] && pair[0] > 0, "{counts:?}");
        }
        counts.iter().sum::<u64>() / 2
    }
}

fn work(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// A control group of its own, removed when dropped, with all tasks in it.
pub(super) struct Cgroup(pub(super) String);

impl Cgroup {
    pub(super) fn new(name: &str, controllers: &[&str]) -> Self {
        for controller in controllers {
            fs::write(
                "/sys/fs/cgroup/cgroup.subtree_control",
                format!("+{controller}"),
            )
            .unwrap();
        }
        let path = format!("/sys/fs/cgroup/{name}");
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// One in this, whose parts of the CPUs count.
    pub(super) fn part(&self, name: &str) -> Self {
        self.write("cgroup.subtree_control", "+cpu");
        let path = format!("{}/{name}", self.0);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// The CPU time that its tasks and those of its parts have had.
    pub(super) fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("{}/cpu.stat", self.0)).unwrap();
        let usage = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        Duration::from_micros(usage.unwrap().parse().unwrap())
    }

    pub(super) fn write(&self, file: &str, text: &str) {
        fs::write(format!("{}/{file}", self.0), text).unwrap();
    }

    /// Moves a process in. It leaves by [`leave_group`].
    pub(super) fn enter(&self, pid: i32) {
        self.write("cgroup.procs", &pid.to_string());
    }

    /// A command line that joins the group and goes on as `command`.
    pub(super) fn shell(&self, command: &str) -> String {
        format!("echo $$ >{}/cgroup.procs && exec {command}", self.0)
    }

    /// A load in the group.
    pub(super) fn start(&self, command: &str) -> Load {
        let mut shell = Command::new("sh");
        let child = shell.args(["-c", &self.shell(command)]).spawn().unwrap();
        Load(vec![(command.to_owned(), child)])
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(format!("{}/cgroup.kill", self.0), "1");
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Back to where all are that are in no group.
pub(super) fn leave_group(pid: i32) {
    fs::write("/sys/fs/cgroup/cgroup.procs", pid.to_string()).unwrap();
}

// What keeps the scheduler from its work.

pub(super) fn stop(scheduler: &Scheduler, time: Duration) {
    scheduler.signal(libc::SIGSTOP);
    thread::sleep(time);
    scheduler.signal(libc::SIGCONT);
}

pub(super) fn freeze(scheduler: &Scheduler, time: Duration) {
    let group = Cgroup::new("frozen", &[]);
    group.enter(scheduler.pid());
    group.write("cgroup.freeze", "1");
    thread::sleep(time);
    group.write("cgroup.freeze", "0");
    leave_group(scheduler.pid());
}

/// Stops the scheduler thread as a debugger does.
pub(super) fn trace(scheduler: &Scheduler, time: Duration) {
    let none = std::ptr::null_mut::<libc::c_void>();
    let request = |what| {
        assert_eq!(
            unsafe { libc::ptrace(what, scheduler.pid(), none, none) },
            0,
            "{what}"
        )
    };
    request(libc::PTRACE_SEIZE);
    request(libc::PTRACE_INTERRUPT);
    let mut status = 0;
    let stopped = unsafe { libc::waitpid(scheduler.pid(), &mut status, libc::__WALL) };
    assert!(stopped == scheduler.pid() && libc::WIFSTOPPED(status));
    thread::sleep(time);
    request(libc::PTRACE_DETACH);
}

pub(super) fn set_class(tid: i32, class: i32, sched_priority: i32) {
    let parameters = libc::sched_param { sched_priority };
    assert_eq!(
        unsafe { libc::sched_setscheduler(tid, class, &parameters) },
        0
    );
}

/// The thread may run on these CPUs; 0 is the caller.
pub(super) fn allow(tid: i32, cpus: impl IntoIterator<Item = usize>) {
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus {
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    assert_eq!(
        unsafe { libc::sched_setaffinity(tid, size_of_val(&set), &set) },
        0
    );
}

/// Spins in the class SCHED_FIFO on one CPU.
pub(super) fn hold_cpu(cpu: usize, time: Duration) {
    let hog = thread::spawn(move || {
        allow(0, [cpu]);
        set_class(0, libc::SCHED_FIFO, 50);
        work(time);
    });
    hog.join().unwrap();
}

// What others do to it.

/// Processes that fork and exit without end, up to so many at once.
pub(super) fn fork_bomb(processes: u32, time: Duration) {
    let group = Cgroup::new("bomb", &["pids"]);
    group.write("pids.max", &processes.to_string());
    let procs = format!("{}/cgroup.procs", group.0);
    let script = format!("echo $$ > {procs}; b() {{ b & b & b & while :; do :; done; }}; b");
    let mut bomb = Command::new("sh")
        .args(["-c", &script])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    thread::sleep(time);
    group.write("cgroup.kill", "1");
    bomb.wait().unwrap();
}

/// Lets each thread run on other CPUs all the time: on one, on that of the scheduler alone, on any
/// set of them.
pub(super) fn move_threads(tids: &[i32], random: &mut Random, time: Duration) -> u64 {
    let (start, all) = (Instant::now(), cpus());
    let mut moves = 0;
    while start.elapsed() < time {
        for tid in tids {
            match random.below(4) {
                0 => allow(*tid, [random.below(all)]),
                1 => allow(*tid, [all - 1]),
                _ => {
                    let one = random.below(all);
                    let set = (0..all).filter(|cpu| *cpu == one || random.below(2) == 1);
                    allow(*tid, set);
                }
            }
            moves += 1;
        }
        thread::sleep(Duration::from_millis(1));
    }
    tids.iter().for_each(|tid| allow(*tid, 0..all));
    moves
}

/// Moves threads to other scheduling classes and policies and back, no more than one at a time to
/// SCHED_FIFO.
pub(super) fn change_classes(tids: &[i32], random: &mut Random, time: Duration) -> u64 {
    let start = Instant::now();
    let mut changes = 0;
    while start.elapsed() < time {
        let tid = random.pick(tids);
        match random.pick(&[libc::SCHED_FIFO, libc::SCHED_BATCH, libc::SCHED_IDLE]) {
            libc::SCHED_FIFO => {
                set_class(tid, libc::SCHED_FIFO, 1);
                thread::sleep(Duration::from_millis(1));
                set_class(tid, libc::SCHED_OTHER, 0);
            }
            class => set_class(tid, class, 0),
        }
        thread::sleep(Duration::from_micros(500));
        changes += 1;
    }
    tids.iter()
        .for_each(|tid| set_class(*tid, libc::SCHED_OTHER, 0));
    changes
}

/// Moves this process, with all its threads, between groups of other CPUs.
pub(super) fn change_cpusets(random: &mut Random, time: Duration) -> u64 {
    let (start, last, own) = (Instant::now(), cpus() - 1, std::process::id() as i32);
    let groups = [(0, 1), (1, last), (0, last - 1)].map(|(first, last)| {
        let group = Cgroup::new(&format!("cpus-{first}-{last}"), &["cpuset"]);
        group.write("cpuset.cpus", &format!("{first}-{last}"));
        group
    });
    let mut moves = 0;
    while start.elapsed() < time {
        groups[random.below(groups.len())].enter(own);
        thread::sleep(Duration::from_millis(5));
        moves += 1;
    }
    leave_group(own);
    moves
}

/// Takes a CPU away or gives it back, and waits until the scheduler, which ends with it, schedules
/// again.
pub(super) fn set_online(scheduler: &mut Scheduler, cpu: usize, online: bool) {
    let seq = read(&format!("{SCHED_EXT}/enable_seq"));
    write_online(cpu, online);
    scheduler.wait_until_enabled(&format!("CPU {cpu} went to {online}"), || {
        read(&format!("{SCHED_EXT}/enable_seq")) != seq
    });
}

pub(super) fn write_online(cpu: usize, online: bool) {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    fs::write(path, if online { "1" } else { "0" }).unwrap();
}

/// A map of the scheduler that is loaded: the youngest of this name.
pub(super) fn map_of_scheduler(name: &str) -> (MapHandle, usize) {
    let found = MapInfoIter::default()
        .filter(|info| info.name.to_str() == Some(name))
        .max_by_key(|info| info.id)
        .unwrap();
    let size = found.max_entries as usize * found.value_size as usize;
    (MapHandle::from_map_id(found.id).unwrap(), size)
}

/// Memory that the scheduler shares with the kernel, mapped once more, as words.
pub(super) struct Words(&'static [AtomicU64]);

impl Words {
    pub(super) fn map(map: &MapHandle, size: usize) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = map.as_fd().as_raw_fd();
        let none = std::ptr::null_mut();
        let memory = unsafe { libc::mmap(none, size, protection, libc::MAP_SHARED, fd, 0) };
        assert_ne!(memory, libc::MAP_FAILED);
        Self(unsafe { std::slice::from_raw_parts(memory.cast(), size / 8) })
    }
}

impl std::ops::Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        self.0
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        let start = self.0.as_ptr().cast_mut().cast();
        assert_eq!(unsafe { libc::munmap(start, size_of_val(self.0)) }, 0);
    }
}

/// The mailboxes of the CPUs, of the scheduler that is loaded.
pub(super) struct Mailboxes(Words);

impl Mailboxes {
    /// Words of a mailbox: its head and its slots, a cache line each.
    const WORDS: usize = 8 * (1 + MAILBOX_SLOTS);

    pub(super) fn of_scheduler() -> Self {
        let (map, size) = map_of_scheduler("mailboxes");
        Self(Words::map(&map, size))
    }

    /// The words of the mailbox of a CPU.
    pub(super) fn of(&self, cpu: usize) -> &[AtomicU64] {
        &self.0[cpu * Self::WORDS..][..Self::WORDS]
    }

    /// Puts a decision where the kernel side takes the next one, as if its scheduler had: id and
    /// generation in one word, slice, vtime, flags. Returns whether there was room.
    pub(super) fn post(&self, cpu: usize, decision: [u64; 4]) -> bool {
        let (head, slots) = self.of(cpu).split_at(8);
        let head = head[0].load(Ordering::Acquire);
        let slot = &slots[8 * (head as usize % MAILBOX_SLOTS)..][..8];
        if slot[0].load(Ordering::Acquire) != 0 {
            return false;
        }
        for (to, word) in slot[1..].iter().zip(decision) {
            to.store(word, Ordering::Relaxed);
        }
        slot[0].store(head + 1, Ordering::Release);
        true
    }
}

/// Overwrites a map of the scheduler that is loaded with random bytes for as long as `run` takes.
pub(super) fn with_scribbles<T>(map: &str, run: impl FnOnce() -> T) -> T {
    with_words_in(map, |random| random, run)
}

/// Puts what `word` makes of a random number over each word of a map, again and again.
pub(super) fn with_words_in<T>(map: &str, word: fn(u64) -> u64, run: impl FnOnce() -> T) -> T {
    let (map, size) = map_of_scheduler(map);
    let words = Words::map(&map, size);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Stop(&over);
        scope.spawn(|| {
            let mut random = Random::new(1);
            while !over.load(Ordering::Relaxed) {
                for at in words.iter() {
                    at.store(word(random.word()), Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        run()
    })
}

// What ends it.

/// Makes the kernel kill the scheduler for want of memory, in a group with a process that takes
/// more and more.
pub(super) fn starve_of_memory(scheduler: &Scheduler) {
    fs::write(format!("/proc/{}/oom_score_adj", scheduler.pid()), "1000").unwrap();
    let group = Cgroup::new("poor", &["memory"]);
    group.write("memory.max", "16M");
    group.enter(scheduler.pid());
    let glutton = group.shell("tail /dev/zero");
    let mut glutton = Command::new("sh").args(["-c", &glutton]).spawn().unwrap();
    wait_for("a task is killed", Duration::from_secs(30), || {
        field(&read(&format!("{}/memory.events", group.0)), "oom_kill", 10) > 0
    });
    glutton.kill().unwrap();
    glutton.wait().unwrap();
}
