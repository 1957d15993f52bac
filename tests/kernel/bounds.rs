//! Bounds that hold for every task beside any load: how long it may wait, and for which others.

use std::io::Seek;
use std::sync::{Mutex, mpsc};

use super::fair::{Got, cpu_time, hog, napper, sleep_until};
use super::faults::ASKED;
use super::inject::{Cgroup, Pauses, Workers, allow, hold_cpu, saturate, set_class};
use super::*;

/// Of a frame.
const PERIOD: Duration = Duration::from_millis(16);

/// SCHED_IDLE of the kernel's include/uapi/linux/sched.h.
const SCHED_IDLE: i32 = 5;

fn longest(got: &[Got]) -> f64 {
    let waits = got.iter().map(|got| got.wait);
    waits.max().unwrap().as_secs_f64() * 1e3
}

/// By their weights they are due long after the kernel's watchdog has lost its patience.
#[test]
fn every_task_of_a_machine_with_16_hogs_for_each_cpu_runs_within_a_second() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let begin = Instant::now() + Duration::from_millis(500);
    let end = begin + Duration::from_secs(5);
    let light: Vec<_> = thread::scope(|scope| {
        for _ in 0..16 * cpus() {
            scope.spawn(move || hog(0, begin, end));
        }
        let nice = [10, 19, 19].map(|nice| scope.spawn(move || hog(nice, begin, end)));
        let idle = scope.spawn(|| {
            set_class(0, SCHED_IDLE, 0);
            hog(0, begin, end)
        });
        let all = nice.into_iter().chain([idle]);
        all.map(|hog| hog.join().unwrap()).collect()
    });
    println!("{light:?}");
    scheduler.stop(libc::SIGINT).assert_clean();
    // A fifth of what the watchdog allows.
    figure("longest wait", longest(&light), "ms", Bound::AtMost(1000.0));
}

/// For how long the calling thread has been runnable and had no CPU, µs.
pub(super) fn waited(schedstat: &mut fs::File) -> u64 {
    let mut text = String::new();
    schedstat.rewind().unwrap();
    schedstat.read_to_string(&mut text).unwrap();
    let ns = text.split_whitespace().nth(1).unwrap();
    ns.parse::<u64>().unwrap() / 1000
}

/// For how long a thread waits for a CPU that wakes once a period and then runs for 100 µs, as
/// sound does, µs. The interrupt that wakes it is late itself, by as long as the emulator is busy
/// with other CPUs.
pub(super) fn beat(period: Duration, samples: usize) -> Vec<u64> {
    let mut waits = Vec::with_capacity(samples);
    let mut schedstat = fs::File::open("/proc/thread-self/schedstat").unwrap();
    let mut due = Instant::now();
    while waits.len() < samples {
        due += period;
        let before = waited(&mut schedstat);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        waits.push(waited(&mut schedstat) - before);
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(100) {}
        // One that is behind does not catch up.
        due = due.max(Instant::now() - period);
    }
    waits
}

/// p50, p99 and max in µs of a period of 2 ms.
fn beat_of_sound(samples: usize) -> [u64; 3] {
    let mut waits = beat(Duration::from_millis(2), samples);
    waits.sort_unstable();
    [
        waits[samples / 2],
        waits[samples * 99 / 100],
        waits[samples - 1],
    ]
}

fn p99_of_beat(period: Duration, samples: usize) -> u64 {
    let mut waits = beat(period, samples);
    waits.sort_unstable();
    waits[samples * 99 / 100]
}

/// A SCHED_FIFO task that runs for half of the time, each millisecond on another CPU.
fn rove(over: &AtomicBool) {
    set_class(0, libc::SCHED_FIFO, 50);
    for cpu in (0..cpus()).cycle() {
        if over.load(Ordering::Relaxed) {
            return;
        }
        allow(0, [cpu]);
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(1) {}
        thread::sleep(Duration::from_millis(1));
    }
}

const LOADS: [&str; 3] = [
    "a hog for each worker, messages",
    "the same, SCHED_FIFO",
    "3 hogs for each worker",
];

fn beat_beside(load: usize) -> [u64; 3] {
    let hogs = (cpus() - 1) * if load == 2 { 3 } else { 1 };
    let _messages = (load < 2).then(|| Load::start(&["stress-ng -q --pipe 1 -t 3600s"]));
    let over = AtomicBool::new(false);
    with_threads(
        hogs,
        || {},
        || {
            thread::scope(|scope| {
                let _stop = Stop(&over);
                if load == 1 {
                    scope.spawn(|| rove(&over));
                }
                let beats = scope.spawn(|| {
                    beat_of_sound(100);
                    beat_of_sound(500)
                });
                beats.join().unwrap()
            })
        },
    )
}

/// Medians of three rounds.
#[test]
fn a_thread_with_a_short_period_is_sooner_than_under_the_default_scheduler() {
    let all = || [0, 1, 2].map(|load| [(); 3].map(|()| beat_beside(load)));
    let default = all();
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let ours = all();
    scheduler.stop(libc::SIGINT).assert_clean();
    for (load, name) in LOADS.iter().enumerate() {
        let rounds = [0, 1, 2].map(|round| [default[load][round], ours[load][round]]);
        let median = |of: usize, figure: usize| {
            let mut values = rounds.map(|round| round[of][figure]);
            values.sort_unstable();
            values[1] as f64
        };
        let row = |of| [0, 1, 2].map(|figure| median(of, figure));
        println!(
            "{name}: p50, p99, max in µs: default {:?}, ours {:?}; rounds {rounds:?}",
            row(0),
            row(1)
        );
        let ratio = |figure| median(1, figure) / median(0, figure);
        // A kick of another CPU takes up to a ms of guest time, in which the emulator runs others,
        // and the default scheduler needs fewer.
        figure(
            &format!("{name}: p99 to default"),
            ratio(1),
            "",
            Bound::AtMost(1.0),
        );
        figure(
            &format!("{name}: max to default"),
            ratio(2),
            "",
            Bound::AtMost(1.0),
        );
    }
}

/// The pairs have more than their share, so that the hogs fall behind virtual time. A thread that
/// wakes beside them is before them nevertheless, also one that has no order yet.
#[test]
fn a_thread_that_is_not_known_yet_does_not_wait_for_all_others() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let pairs = Workers::start(cpus() / 2);
    let mut waits = with_threads(
        2 * cpus(),
        || {},
        || {
            thread::sleep(Duration::from_secs(1));
            // With its fourth sleep it is urgent.
            let new = || thread::spawn(|| beat(PERIOD, 3)).join().unwrap();
            (0..20).flat_map(|_| new()).collect::<Vec<_>>()
        },
    );
    pairs.finish();
    scheduler.stop(libc::SIGINT).assert_clean();
    waits.sort_unstable();
    let ms = |wait: u64| wait as f64 / 1e3;
    println!(
        "waits of {:.1} to {:.1} ms",
        ms(waits[0]),
        ms(waits[waits.len() - 1])
    );
    // A tick and a kick of another CPU, with room. Behind all others it is 33 ms.
    figure(
        "p50 of its waits",
        ms(waits[waits.len() / 2]),
        "ms",
        Bound::AtMost(5.0),
    );
}

/// The memory of processes that are killed together is given back beside the others, not before
/// them.
#[test]
fn hogs_go_on_while_many_processes_exit() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let group = Cgroup::new("exit", &[]);
    let fill = "stress-ng -q --vm 24 --vm-bytes 1200m --vm-keep --vm-populate --vm-hang 0 -t 3600s";
    let _victims = group.start(fill);
    thread::sleep(Duration::from_secs(2));
    let begin = Instant::now() + Duration::from_millis(500);
    let end = begin + Duration::from_secs(2);
    let got = Mutex::new(vec![]);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mine = hog(0, begin, end);
                got.lock().unwrap().push(mine);
            });
        }
        thread::sleep(Duration::from_millis(700));
        group.write("cgroup.kill", "1");
    });
    let got = got.into_inner().unwrap();
    println!("{got:?}");
    scheduler.stop(libc::SIGINT).assert_clean();
    // They take turns of 2.5 ms. The default scheduler: some 40 ms.
    figure("longest wait", longest(&got), "ms", Bound::AtMost(200.0));
}

/// What waits for a CPU that a real-time task holds runs on any other.
#[test]
fn an_unbound_task_does_not_wait_for_a_cpu_that_a_real_time_task_holds() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let begin = Instant::now() + Duration::from_millis(500);
    let end = begin + Duration::from_secs(3);
    let got: Vec<_> = thread::scope(|scope| {
        let bound = scope.spawn(|| {
            allow(0, [1]);
            hog(0, begin, end)
        });
        let free = [(); 4].map(|()| scope.spawn(|| hog(0, begin, end)));
        thread::sleep(Duration::from_millis(1000));
        hold_cpu(1, Duration::from_millis(1500));
        bound.join().unwrap();
        free.into_iter().map(|hog| hog.join().unwrap()).collect()
    });
    println!("{got:?}");
    scheduler.stop(libc::SIGINT).assert_clean();
    // Four hogs on three CPUs, of which one is the scheduler's.
    figure("longest wait", longest(&got), "ms", Bound::AtMost(60.0));
}

/// More decisions wait for that CPU than its mailbox has room for.
#[test]
fn two_thousand_tasks_bound_to_a_cpu_that_a_real_time_task_holds_hold_up_no_other() {
    let mut scheduler = Scheduler::start("scx_metronome", &ASKED);
    let over = AtomicBool::new(false);
    let rounds: Vec<_> = (0..2000).map(|_| AtomicU64::new(0)).collect();
    let counts = || -> Vec<u64> { rounds.iter().map(|of| of.load(Ordering::Relaxed)).collect() };
    let mut load = saturate();
    thread::scope(|scope| {
        let _stop = Stop(&over);
        for round in &rounds {
            let sleeper = || {
                allow(0, [0]);
                while !over.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(500));
                    round.fetch_add(1, Ordering::Relaxed);
                }
            };
            let builder = thread::Builder::new().stack_size(64 << 10);
            builder.spawn_scoped(scope, sleeper).unwrap();
        }
        wait_for("all have begun", Duration::from_secs(10), || {
            counts().iter().all(|&count| count > 0)
        });
        let pause = Pauses::during(|| hold_cpu(0, Duration::from_millis(1000)));
        println!("2,000 bound tasks: {pause}");
        pause.assert_short("2,000 bound tasks");
        scheduler.assert_enabled("the CPU is free again");
        let before = counts();
        wait_for("all go on", Duration::from_secs(5), || {
            counts()
                .iter()
                .zip(&before)
                .all(|(now, before)| now > before)
        });
    });
    load.assert_running();
    scheduler.stop(libc::SIGINT).assert_clean();
}

/// Processes in a group of their own that run for 0.5 ms and sleep for 20 ms, over and over.
fn crowd(group: &Cgroup, processes: usize) {
    for _ in 0..processes {
        match unsafe { libc::fork() } {
            0 => loop {
                let begin = cpu_time();
                while cpu_time() - begin < Duration::from_micros(500) {}
                unsafe { libc::usleep(20_000) };
            },
            pid => group.enter(pid),
        }
    }
}

/// How late the frames of a game are done that takes 2 ms of each 16.7: the longest between two
/// points of time, ms.
fn latest_frame(begin: Instant, end: Instant) -> f64 {
    let (mut due, mut latest) = (begin, Duration::ZERO);
    while due < end {
        sleep_until(due);
        let used = cpu_time();
        while cpu_time() - used < Duration::from_millis(2) {}
        latest = latest.max(due.elapsed());
        due += Duration::from_micros(16_700);
    }
    latest.as_secs_f64() * 1e3
}

/// What all of them would have had in the time in which they were frozen is not made up for.
#[test]
fn a_crowd_that_thaws_has_no_more_of_the_machine_than_before_it_froze() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let group = Cgroup::new("crowd", &[]);
    crowd(&group, 60);
    let begin = Instant::now() + Duration::from_millis(1500);
    let after = |ms| begin + Duration::from_millis(ms);
    let (frames, hogs) = thread::scope(|scope| {
        let game = scope.spawn(move || {
            latest_frame(after(0) - Duration::from_millis(1000), after(0));
            [
                latest_frame(after(0), after(1500)),
                latest_frame(after(2600), after(4100)),
            ]
        });
        let hogs = [(); 4].map(|()| {
            scope.spawn(move || {
                [
                    hog(0, after(0), after(1500)),
                    hog(0, after(2600), after(4100)),
                ]
            })
        });
        sleep_until(after(1500));
        group.write("cgroup.freeze", "1");
        sleep_until(after(2500));
        group.write("cgroup.freeze", "0");
        (game.join().unwrap(), hogs.map(|hog| hog.join().unwrap()))
    });
    drop(group);
    scheduler.stop(libc::SIGINT).assert_clean();
    let of_hogs = |part: usize| {
        hogs.iter()
            .map(|got| got[part].cpu.as_secs_f64())
            .sum::<f64>()
    };
    println!(
        "latest frame {frames:?} ms, hogs {:?} s",
        [of_hogs(0), of_hogs(1)]
    );
    figure(
        "latest frame, to before",
        frames[1] / frames[0],
        "",
        Bound::AtMost(1.5),
    );
    figure(
        "CPU time of the hogs, to before",
        of_hogs(1) / of_hogs(0),
        "",
        Bound::AtLeast(0.7),
    );
}

/// What came of 2.5 s of a game, from its eleventh frame on.
#[derive(Debug)]
pub(super) struct Frames {
    /// How many were late, %.
    pub(super) late: f64,
    /// Of the time from the beginning of a frame to its end, ms.
    pub(super) p99: f64,
}

/// A game at 60 frames a second, of which each takes `work`. A late one does not put the next off.
pub(super) fn frames_of(work: Duration) -> Frames {
    let period = Duration::from_micros(16_667);
    let (begin, mut times) = (Instant::now(), vec![]);
    let mut due = begin + period;
    while begin.elapsed() < Duration::from_millis(2500) {
        let used = cpu_time();
        while cpu_time() - used < work {}
        let now = Instant::now();
        times.push(now + period - due);
        while due < now {
            due += period;
        }
        sleep_until(due);
        due += period;
    }
    let mut times = times.split_off(10);
    times.sort_unstable();
    let on_time = times.partition_point(|time| *time <= period);
    Frames {
        late: 100.0 - 100.0 * on_time as f64 / times.len() as f64,
        p99: times[times.len() * 99 / 100].as_secs_f64() * 1e3,
    }
}

/// A thread that needs most of a CPU for each frame has it, up to so many fair shares as the
/// profile says, and no longer burst than two frames makes it batch work.
#[test]
fn a_heavy_game_keeps_its_frames_beside_any_number_of_hogs() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let beside = |hogs: usize, work: u64, is_real_time: bool| {
        let game = || {
            if is_real_time {
                set_class(0, libc::SCHED_FIFO, 50);
            }
            frames_of(Duration::from_millis(work)).late
        };
        let game = || thread::scope(|scope| scope.spawn(game).join().unwrap());
        with_threads(hogs, || {}, game)
    };
    // The timer's interrupt is late, too, more often than the emulator leaves room for with 14 ms of
    // 16.7: a real-time task, for which no task is in the way, has up to a fifth of its frames late.
    for (work, hogs) in [(8, 24), (12, 24), (14, 6)] {
        let (ours, real_time) = (beside(hogs, work, false), beside(hogs, work, true));
        println!("{work} ms beside {hogs} hogs: {ours} %, of a real-time task {real_time} %");
        // Of 14 ms that is a report: 0 to 15 % in several boots.
        if work < 14 {
            let what = format!("late frames of {work} ms, beyond those of a real-time task");
            figure(&what, ours - real_time, "%", Bound::AtMost(15.0));
        }
    }
    scheduler.stop(libc::SIGINT).assert_clean();
}

/// A thread that works for a frame runs as soon as it is woken, by whomever of the frame: hogs that
/// have had their CPUs for more than a moment give way.
#[test]
fn a_worker_of_a_frame_waits_for_no_hog() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let use_cpu = |work: Duration| {
        let used = cpu_time();
        while cpu_time() - used < work {}
    };
    // The main thread goes on beside the worker, which so needs a CPU of a hog's.
    let waits = || {
        let (sender, receiver) = mpsc::sync_channel::<Instant>(1);
        let worker = thread::spawn(move || {
            let waits = receiver.into_iter().map(|woken| {
                let wait = woken.elapsed();
                use_cpu(Duration::from_millis(2));
                wait
            });
            waits.collect::<Vec<_>>()
        });
        let main = thread::spawn(move || {
            let mut due = Instant::now();
            for _ in 0..280 {
                due += Duration::from_millis(10);
                sleep_until(due);
                use_cpu(Duration::from_millis(2));
                sender.send(Instant::now()).unwrap();
                use_cpu(Duration::from_millis(2));
            }
        });
        main.join().unwrap();
        worker.join().unwrap()
    };
    let waits = with_threads(3 * cpus(), || {}, waits);
    scheduler.stop(libc::SIGINT).assert_clean();
    let mut waits: Vec<_> = waits.into_iter().skip(80).collect();
    waits.sort_unstable();
    let ms = |at: usize| waits[at].as_secs_f64() * 1e3;
    println!(
        "p50 {:.2}, p90 {:.2}, max {:.2} ms",
        ms(100),
        ms(180),
        ms(199)
    );
    figure("wait of the worker, p99", ms(197), "ms", Bound::AtMost(0.4));
}

/// How often the calling thread had to give its CPU to another.
fn interrupted() -> i64 {
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    assert_eq!(
        unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut used) },
        0
    );
    used.ru_nivcsw
}

/// Two processes that pass messages hand each other their CPU. One that is on its way to a CPU
/// which a frame's thread takes first would displace that at the next tick.
#[test]
fn messages_interrupt_no_frame() {
    const FRAMES: i64 = 600;
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let _messages = Load::start(&["perf bench sched pipe -l 100000000"]);
    let play = || {
        let mut due = Instant::now();
        let mut before = 0;
        for frame in 0..100 + FRAMES {
            if frame == 100 {
                before = interrupted();
            }
            due += Duration::from_millis(7);
            sleep_until(due);
            burn(Duration::from_millis(3));
        }
        interrupted() - before
    };
    let interrupted = with_threads(3 * cpus() / 2, || {}, play);
    scheduler.stop(libc::SIGINT).assert_clean();
    figure(
        "frames interrupted",
        interrupted as f64 * 100.0 / FRAMES as f64,
        "%",
        Bound::AtMost(2.5),
    );
}

/// A game that sleeps for a millisecond at a time until its next frame is due has short bursts in
/// the mean, and one that is late does not sleep at all until it has caught up. It is urgent all
/// the same, as long as it does not overdo it.
#[test]
fn a_game_that_polls_the_clock_catches_up_after_a_long_frame() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let period = Duration::from_millis(29);
    let begin = Instant::now() + Duration::from_secs(1);
    let end = begin + Duration::from_secs(3);
    let game = || {
        let (mut frames, mut late, mut due) = (0, 0, Instant::now());
        while Instant::now() < end {
            while Instant::now() < due {
                thread::sleep(Duration::from_millis(1));
            }
            frames += 1;
            let work = if frames % 30 == 0 { 45 } else { 15 };
            let used = cpu_time();
            while cpu_time() - used < Duration::from_millis(work) {}
            late += u32::from(due >= begin && due.elapsed() > period);
            due += period;
        }
        late
    };
    let late = thread::scope(|scope| {
        let game = scope.spawn(game);
        sleep_until(begin);
        (0..2 * cpus()).for_each(|_| drop(scope.spawn(|| hog(0, begin, end))));
        game.join().unwrap()
    });
    scheduler.stop(libc::SIGINT).assert_clean();
    // Half of a CPU is left to catch up with. By turns it would never do so.
    let late = 100.0 * f64::from(late) * period.as_secs_f64() / 3.0;
    figure("late frames", late, "%", Bound::AtMost(30.0));
}

/// A game without a limit of frames never sleeps, nor does one that is late from its first frame.
/// What tells such a loop from a hog is that urgent threads of its process wait for it.
#[test]
fn a_loop_that_never_sleeps_is_urgent_if_it_wakes_urgent_threads() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let hogs = 3 * cpus();
    let share = 100.0 * cpus() as f64 / (hogs + 1) as f64;
    // Renders for 5 ms, and wakes a thread that presents the frame if there is one.
    let render = |present: Option<mpsc::SyncSender<()>>| {
        let begin = Instant::now() + Duration::from_millis(500);
        let end = begin + Duration::from_secs(2);
        let mut before = Duration::ZERO;
        while Instant::now() < end {
            let used = cpu_time();
            if Instant::now() < begin {
                before = used;
            }
            while cpu_time() - used < Duration::from_millis(5) {}
            if let Some(present) = &present {
                present.send(()).unwrap();
            }
        }
        100.0 * (cpu_time() - before).as_secs_f64() / 2.0
    };
    let present = |rendered: mpsc::Receiver<()>| {
        for () in rendered {
            let used = cpu_time();
            while cpu_time() - used < Duration::from_micros(500) {}
        }
    };
    let game = || {
        let (sender, receiver) = mpsc::sync_channel(2);
        thread::scope(|scope| {
            scope.spawn(|| present(receiver));
            scope.spawn(|| render(Some(sender))).join().unwrap()
        })
    };
    let game = with_threads(hogs, || {}, game);
    let hog = || thread::scope(|scope| scope.spawn(|| render(None)).join().unwrap());
    let hog = with_threads(hogs, || {}, hog);
    scheduler.stop(libc::SIGINT).assert_clean();
    println!("by weight {share:.1} % of a CPU");
    // 95 %: all that there is beside its thread.
    figure("CPU time of the loop", game, "%", Bound::AtLeast(60.0));
    figure("of one without others", hog, "%", Bound::AtMost(40.0));
}

/// Sleep buys no more than so many fair shares, and a game and its sound do not feel who buys it.
#[test]
fn light_tasks_that_sleep_on_purpose_take_little_from_others() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let beside = |sleepers: usize| {
        let begin = Instant::now() + Duration::from_millis(500);
        let end = begin + Duration::from_secs(2);
        let rhythm = (Duration::from_millis(3), Duration::from_millis(1));
        thread::scope(|scope| {
            (0..6).for_each(|_| drop(scope.spawn(|| hog(0, begin, end))));
            let sleepers: Vec<_> = (0..sleepers)
                .map(|_| scope.spawn(|| napper(19, rhythm, begin, end)))
                .collect();
            let game = scope.spawn(|| frames_of(Duration::from_millis(6)));
            let sound = scope.spawn(|| p99_of_beat(Duration::from_millis(5), 500));
            let used: Duration = sleepers
                .into_iter()
                .map(|sleeper| sleeper.join().unwrap())
                .sum();
            (game.join().unwrap(), sound.join().unwrap(), used)
        })
    };
    let (game_before, sound_before, _) = beside(0);
    let (game, sound, used) = beside(12);
    scheduler.stop(libc::SIGINT).assert_clean();
    println!("without them {game_before:?}, sound {sound_before} us; with {game:?}, {sound} us");
    let percent = used.as_secs_f64() / 2.0 * 100.0;
    // Beside six hogs of weight 100, twelve tasks of weight 1.5 are worth 11 % of a CPU. Four
    // shares, where the profile allows eight.
    figure(
        "CPU time of the sleepers",
        percent,
        "%",
        Bound::AtMost(45.0),
    );
    let late = game.late - game_before.late;
    figure("late frames more", late, "%", Bound::AtMost(3.0));
}
