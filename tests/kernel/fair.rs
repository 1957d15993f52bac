//! What a task gets of a machine that is full, from `scx_metronome`.

use std::net::UdpSocket;
use std::os::fd::{FromRawFd, OwnedFd};

use super::inject::allow;
use super::*;

/// What a thread got between two points of time.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) cpu: Duration,
    /// The longest time that it wanted to run and did not.
    pub(super) wait: Duration,
}

/// CPU time that the calling thread has used.
pub(super) fn cpu_time() -> Duration {
    let mut used = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut used) };
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

fn set_nice(nice: i32) {
    assert_eq!(
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) },
        0,
        "this thread's own"
    );
}

pub(super) fn sleep_until(when: Instant) {
    thread::sleep(when.saturating_duration_since(Instant::now()));
}

/// Computes until `end`; counts from `begin` on.
pub(super) fn hog(nice: i32, begin: Instant, end: Instant) -> Got {
    set_nice(nice);
    while Instant::now() < begin {
        std::hint::spin_loop();
    }
    let (used, mut last, mut wait) = (cpu_time(), begin, Duration::ZERO);
    while last < end {
        let now = Instant::now();
        wait = wait.max(now - last);
        last = now;
    }
    let cpu = cpu_time() - used;
    Got { cpu, wait }
}

/// The machine is four times full. It was so before; then one of the hogs had it for itself for
/// three seconds, and nothing of that is held against it.
#[test]
fn at_four_hogs_for_each_cpu_none_waits_for_long_and_all_get_the_same() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let alone = Instant::now() + Duration::from_secs(1);
    let begin = alone + Duration::from_secs(3);
    let end = begin + Duration::from_secs(3);
    let got: Vec<_> = thread::scope(|scope| {
        let old = scope.spawn(|| hog(0, begin, end));
        let others = (1..4 * cpus()).map(|_| {
            scope.spawn(move || {
                hog(0, alone, alone);
                sleep_until(begin);
                hog(0, begin, end)
            })
        });
        let all: Vec<_> = std::iter::once(old).chain(others).collect();
        all.into_iter().map(|hog| hog.join().unwrap()).collect()
    });
    let longest = got.iter().map(|got| got.wait).max().unwrap();
    let most = got.iter().map(|got| got.cpu).max().unwrap();
    let least = got.iter().map(|got| got.cpu).min().unwrap();
    println!(
        "{} hogs: {least:?} to {most:?} of CPU time, the first {:?}; longest wait {longest:?}, of the first {:?}",
        got.len(),
        got[0].cpu,
        got[0].wait
    );
    assert!(longest <= Duration::from_millis(100), "{got:?}");
    assert!(least.as_secs_f64() >= 0.9 * most.as_secs_f64(), "{got:?}");
    scheduler.stop(libc::SIGINT).assert_clean();
}

#[test]
fn each_nice_level_gets_its_share() {
    /// The weights of sched_ext: `sched_weight_to_cgroup()`.
    const LEVELS: [(i32, f64); 4] = [(-5, 305.), (0, 100.), (5, 33.), (10, 11.)];
    // Even the heaviest are due less than a CPU each.
    const EACH: usize = 4;
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let begin = Instant::now() + Duration::from_secs(1);
    let end = begin + Duration::from_secs(5);
    let got: Vec<f64> = thread::scope(|scope| {
        let levels =
            LEVELS.map(|(nice, _)| [(); EACH].map(|()| scope.spawn(move || hog(nice, begin, end))));
        let cpu = |hogs: [thread::ScopedJoinHandle<'_, Got>; EACH]| {
            let got = hogs.into_iter().map(|hog| hog.join().unwrap().cpu);
            got.sum::<Duration>().as_secs_f64()
        };
        levels.into_iter().map(cpu).collect()
    });
    let whole: f64 = got.iter().sum();
    let weights: f64 = LEVELS.iter().map(|(_, weight)| weight).sum();
    for ((nice, weight), got) in LEVELS.iter().zip(&got) {
        let (share, ideal) = (got / whole, weight / weights);
        println!(
            "nice {nice}: {:.1} %, by weight {:.1} %",
            100. * share,
            100. * ideal
        );
        assert!(
            (0.9..=1.1).contains(&(share / ideal)),
            "nice {nice}: {got:?}"
        );
    }
    scheduler.stop(libc::SIGINT).assert_clean();
}

/// Computes for `run` and sleeps for `nap`, over and over until `end`. Returns the CPU time that it
/// had from `begin` on.
pub(super) fn napper(
    nice: i32,
    (run, nap): (Duration, Duration),
    begin: Instant,
    end: Instant,
) -> Duration {
    set_nice(nice);
    let work = || {
        let used = cpu_time();
        while cpu_time() - used < run {}
        thread::sleep(nap);
    };
    while Instant::now() < begin {
        work();
    }
    let used = cpu_time();
    while Instant::now() < end {
        work();
    }
    cpu_time() - used
}

/// A task that only naps has its share and no boost, however often it sleeps. The naps are as short
/// as can be asked for: an emulator's timer may make them half a millisecond, from where on they
/// are rest.
#[test]
fn a_task_that_sleeps_on_purpose_gets_no_more_than_its_share() {
    let hogs = 2 * cpus();
    let share = cpus() as f64 / (hogs + 1) as f64;
    let (run, nap) = (Duration::from_millis(3), Duration::from_micros(1));
    for (nice, most) in [(0, 1.1 * share), (19, 0.05)] {
        let scheduler = Scheduler::start("scx_metronome", &[]);
        let begin = Instant::now() + Duration::from_millis(500);
        let end = begin + Duration::from_secs(2);
        let got = thread::scope(|scope| {
            for _ in 0..hogs {
                scope.spawn(|| hog(0, begin, end));
            }
            let napper = scope.spawn(|| {
                let slack: libc::c_ulong = 1;
                assert_eq!(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, slack) }, 0);
                napper(nice, (run, nap), begin, end)
            });
            napper.join().unwrap().as_secs_f64() / 2.
        });
        println!(
            "nice {nice}: {:.1} % of a CPU, {:.1} % at most",
            100. * got,
            100. * most
        );
        assert!(got <= most, "nice {nice}: {got}");
        scheduler.stop(libc::SIGINT).assert_clean();
    }
}

/// Real rest earns a boost by the profile: with that for throughput, none.
#[test]
fn with_the_profile_throughput_rest_wins_nothing() {
    let (hogs, nappers) = (2 * cpus(), 4);
    let share = cpus() as f64 * nappers as f64 / (hogs + nappers) as f64;
    let rhythm = (Duration::from_millis(3), Duration::from_millis(1));
    let scheduler = Scheduler::start("scx_metronome", &["--profile", "throughput"]);
    let begin = Instant::now() + Duration::from_secs(1);
    let end = begin + Duration::from_secs(3);
    let got: f64 = thread::scope(|scope| {
        for _ in 0..hogs {
            scope.spawn(|| hog(0, begin, end));
        }
        let nap = || scope.spawn(|| napper(0, rhythm, begin, end));
        let nappers: Vec<_> = (0..nappers).map(|_| nap()).collect();
        let got = nappers.into_iter().map(|one| one.join().unwrap());
        got.sum::<Duration>().as_secs_f64() / 3.
    });
    scheduler.stop(libc::SIGINT).assert_clean();
    figure("to their share", got / share, "", Bound::AtMost(1.1));
}

/// A hog for each CPU, bound to it, the scheduler thread's own among them: it takes next to
/// nothing.
#[test]
fn the_scheduler_takes_no_cpu_from_those_that_are_bound_to_its_own() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let begin = Instant::now() + Duration::from_millis(500);
    let end = begin + Duration::from_secs(2);
    let got: Vec<f64> = thread::scope(|scope| {
        let bound = |cpu| {
            scope.spawn(move || {
                allow(0, [cpu]);
                hog(0, begin, end).cpu.as_secs_f64() / 2.0
            })
        };
        let hogs: Vec<_> = (0..cpus()).map(bound).collect();
        hogs.into_iter().map(|hog| hog.join().unwrap()).collect()
    });
    println!("CPU time of each: {got:?}");
    scheduler.stop(libc::SIGINT).assert_clean();
    // 1 % for the scheduler, 1 % for ticks and interrupts; and twice the room.
    let least = got.iter().copied().fold(1.0, f64::min);
    figure(
        "least CPU time of a hog",
        100.0 * least,
        "%",
        Bound::AtLeast(96.0),
    );
}

/// By its weight it is due long after the kernel's watchdog has lost its patience.
#[test]
fn the_lightest_task_of_a_full_machine_runs_in_time() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let begin = Instant::now() + Duration::from_millis(500);
    let end = begin + Duration::from_secs(5);
    let got = thread::scope(|scope| {
        for _ in 0..6 * cpus() {
            scope.spawn(move || {
                sleep_until(begin);
                hog(0, begin, end)
            });
        }
        let light = scope.spawn(|| hog(19, begin - Duration::from_millis(300), end));
        light.join().unwrap()
    });
    println!("{got:?}");
    scheduler.stop(libc::SIGINT).assert_clean();
    // A task that is overdue is looked for after 400 ms, now and then.
    let wait = got.wait.as_secs_f64() * 1e3;
    figure("longest wait", wait, "ms", Bound::AtMost(1000.0));
}

/// A task that an urgent one wakes is as urgent, though it computes for longer: the mouse's thread
/// wakes the game's.
#[test]
fn urgency_goes_along_a_chain() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let begin = Instant::now() + Duration::from_secs(1);
    let end = begin + Duration::from_secs(2);
    let work = |time: Duration| {
        let used = cpu_time();
        while cpu_time() - used < time {}
    };
    let (sender, receiver) = std::sync::mpsc::channel::<Instant>();
    let mut delays = thread::scope(|scope| {
        for _ in 0..2 * cpus() {
            scope.spawn(|| hog(0, begin, end));
        }
        let game = scope.spawn(move || {
            let mut delays = Vec::new();
            for called in receiver {
                if called > begin {
                    delays.push(called.elapsed());
                }
                work(Duration::from_millis(6));
            }
            delays
        });
        let mut due = Instant::now();
        while due < end {
            sleep_until(due);
            work(Duration::from_micros(200));
            sender.send(Instant::now()).unwrap();
            due += Duration::from_millis(37);
        }
        drop(sender);
        game.join().unwrap()
    });
    delays.sort();
    let (p50, p90) = (delays[delays.len() / 2], delays[delays.len() * 9 / 10]);
    println!("{} calls: p50 {p50:?}, p90 {p90:?}", delays.len());
    assert!(delays.len() > 40, "{delays:?}");
    assert!(p90 <= Duration::from_millis(1), "{delays:?}");
    scheduler.stop(libc::SIGINT).assert_clean();
}

const PORT: u16 = 4242;

/// A socket for broadcast packets to [`PORT`], one of any number.
fn broadcast_receiver() -> OwnedFd {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: PORT.to_be(),
        sin_addr: libc::in_addr { s_addr: 0 },
        sin_zero: [0; 8],
    };
    let (yes, level) = (1i32, libc::SOL_SOCKET);
    unsafe {
        let socket = OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0));
        let fd = socket.as_raw_fd();
        let shared = libc::setsockopt(fd, level, libc::SO_REUSEADDR, (&raw const yes).cast(), 4);
        let bound = libc::bind(
            fd,
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        );
        assert_eq!((shared, bound), (0, 0));
        socket
    }
}

/// What is sent to this machine itself is received by CPU 1, in interrupts and in a kernel thread
/// that is bound to it (ksoftirqd) and busy all the time.
#[test]
fn a_bound_kernel_thread_that_is_always_busy_takes_turns() {
    const TIME: Duration = Duration::from_secs(2);
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    assert!(up.unwrap().success());
    let received_by = |cpus| fs::write("/sys/class/net/lo/queues/rx-0/rps_cpus", cpus).unwrap();
    received_by("2");
    let ksoftirqd = fs::read_dir("/proc").unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        let comm = fs::read_to_string(path.join("comm")).unwrap_or_default();
        (comm.trim() == "ksoftirqd/1").then(|| path.file_name()?.to_str()?.parse().ok())?
    });
    let ksoftirqd: i32 = ksoftirqd.unwrap();
    // Each packet goes to all of them. Their buffers are soon full, and what comes then is dropped.
    let _receivers = [(); 100].map(|()| broadcast_receiver());

    let scheduler = Scheduler::start("scx_metronome", &[]);
    let over = AtomicBool::new(false);
    let (got, its) = thread::scope(|scope| {
        let _stop = Stop(&over);
        for cpu in 2..cpus() {
            scope.spawn({
                let over = &over;
                move || {
                    allow(0, [cpu]);
                    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
                    sender.set_broadcast(true).unwrap();
                    while !over.load(Ordering::Relaxed) {
                        let _ = sender.send_to(&[0; 64], ("127.255.255.255", PORT));
                    }
                }
            });
        }
        let bound = scope.spawn(|| {
            allow(0, [1]);
            let begin = Instant::now() + Duration::from_millis(500);
            let before = cpu_ticks(ksoftirqd);
            (hog(0, begin, begin + TIME), cpu_ticks(ksoftirqd) - before)
        });
        bound.join().unwrap()
    });
    assert_eq!(state(), "enabled");
    scheduler.stop(libc::SIGINT).assert_clean();
    received_by("0");
    println!("beside ksoftirqd, which had {its} ticks: {got:?}");
    assert!(its > 20, "{its} ticks in {TIME:?}");
    // The thread is as heavy as the hog, and interrupts are charged to both.
    assert!(got.cpu >= TIME / 5, "{got:?}");
    // Serving the packets takes long under any scheduler. The bound is twice the worst of 18 runs.
    assert!(got.wait <= Duration::from_millis(500), "{got:?}");
}
