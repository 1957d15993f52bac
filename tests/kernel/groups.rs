//! What control groups get of a machine that is full.

use std::sync::mpsc;

use super::bounds::frames_of;
use super::fair::{cpu_time, napper};
use super::inject::Cgroup;
use super::*;

const WINDOW: Duration = Duration::from_secs(4);

/// What part of what all these groups get is each one's.
fn shares(groups: &[&Cgroup]) -> Vec<f64> {
    thread::sleep(Duration::from_secs(1));
    let used = || -> Vec<_> { groups.iter().map(|group| group.cpu_time()).collect() };
    let before = used();
    thread::sleep(WINDOW);
    let got = used();
    let got: Vec<_> = got
        .iter()
        .zip(before)
        .map(|(got, before)| (*got - before).as_secs_f64())
        .collect();
    let whole: f64 = got.iter().sum();
    got.iter().map(|got| got / whole).collect()
}

fn hogs(group: &Cgroup, count: u32) -> Load {
    group.start(&format!("stress-ng -q --cpu {count} -t 3600s"))
}

/// What the groups get, next to what their weights say and what the default scheduler gives them,
/// which is less exact.
fn assert_shared(what: &str, groups: &[&Cgroup], ideal: &[f64], default: &[f64]) {
    let ours = shares(groups);
    println!("{what}: ideal {ideal:.3?}, ours {ours:.3?}, default {default:.3?}");
    let errors = ours
        .iter()
        .zip(ideal)
        .map(|(ours, ideal)| (ours / ideal - 1.0).abs());
    let error = 100.0 * errors.fold(0.0, f64::max);
    figure(
        &format!("{what}: from the ideal"),
        error,
        "%",
        Bound::AtMost(5.0),
    );
}

fn new(name: &str) -> Cgroup {
    Cgroup::new(name, &["cpu"])
}

#[test]
fn groups_get_what_their_weights_say() {
    let (light, heavy) = (new("light"), new("heavy"));
    let both = [&light, &heavy];
    heavy.write("cpu.weight", "1000");
    let loads = both.map(|group| hogs(group, 2 * cpus() as u32));
    let default = shares(&both);
    drop(loads);
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let _loads = both.map(|group| hogs(group, 2 * cpus() as u32));
    assert_shared("100 and 1000", &both, &[1. / 11., 10. / 11.], &default);
    heavy.write("cpu.weight", "300");
    assert_shared("100 and 300", &both, &[0.25, 0.75], &[]);
    scheduler.stop(libc::SIGINT).assert_clean();
}

#[test]
fn groups_in_groups_share_what_the_group_gets() {
    let (a, b) = (new("a"), new("b"));
    let (aa, ab) = (a.part("aa"), a.part("ab"));
    let (aba, abb) = (ab.part("aba"), ab.part("abb"));
    a.write("cpu.weight", "200");
    aa.write("cpu.weight", "50");
    abb.write("cpu.weight", "300");
    let leaves = [&aa, &aba, &abb, &b];
    let loads = leaves.map(|group| hogs(group, cpus() as u32));
    let default = shares(&leaves);
    drop(loads);
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let _loads = leaves.map(|group| hogs(group, cpus() as u32));
    let ideal = [2. / 9., 1. / 9., 3. / 9., 3. / 9.];
    assert_shared("three deep", &leaves, &ideal, &default);
    scheduler.stop(libc::SIGINT).assert_clean();
}

/// A group of which a single task runs gets no more than a CPU.
#[test]
fn a_group_of_many_gets_no_more_than_a_group_of_few() {
    let (few, many) = (new("few"), new("many"));
    let both = [&few, &many];
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let _many = hogs(&many, 8 * cpus() as u32);
    let few_hogs = hogs(&few, 1);
    let alone = shares(&both)[0] * cpus() as f64;
    // Of each switch and tick the others have the time, too: 3 % where an instruction takes 1 ns,
    // 12 % with 4 ns.
    figure(
        "CPU time of one hog beside eight for each CPU",
        100. * alone,
        "%",
        Bound::AtLeast(75.0),
    );
    drop(few_hogs);
    let _few = hogs(&few, cpus() as u32);
    assert_shared("a hog for each CPU, and eight", &both, &[0.5, 0.5], &[]);
    scheduler.stop(libc::SIGINT).assert_clean();
}

/// A process that may make groups in its own wins nothing by how deep it nests them, nor by what
/// these weigh.
#[test]
fn a_group_gets_no_more_by_nesting_others_deeply() {
    let (deep, other) = (new("deep"), new("other"));
    let mut parts = vec![];
    for level in 0..20 {
        let part = parts.last().unwrap_or(&deep).part(&level.to_string());
        part.write("cpu.weight", "10000");
        parts.push(part);
    }
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let _deep = hogs(parts.last().unwrap(), cpus() as u32);
    let _other = hogs(&other, cpus() as u32);
    assert_shared("20 deep", &[&deep, &other], &[0.5, 0.5], &[]);
    scheduler.stop(libc::SIGINT).assert_clean();
    // A group goes when those in it have gone.
    while let Some(part) = parts.pop() {
        drop(part);
    }
}

/// With `--flat` tasks have what their nice levels say, as if there were no groups.
#[test]
fn a_flat_machine_knows_no_groups() {
    let (light, heavy) = (new("light"), new("heavy"));
    heavy.write("cpu.weight", "1000");
    let scheduler = Scheduler::start("scx_metronome", &["--flat"]);
    let _loads = [&light, &heavy].map(|group| hogs(group, cpus() as u32));
    assert_shared("flat", &[&light, &heavy], &[0.5, 0.5], &[]);
    scheduler.stop(libc::SIGINT).assert_clean();
}

/// What is counted of a group is exact, whatever has come and gone: nothing stays behind of tasks
/// that move and exit, of weights that change while they run, and of groups that are removed and
/// made anew.
#[test]
fn nothing_stays_behind_of_tasks_that_move_and_groups_that_go() {
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let (one, other) = (new("one"), new("other"));
    let movers = Load::start(&["stress-ng -q --cpu 3 --fork 1 --pipe 1 -t 3600s"]);
    let processes = || -> Vec<i32> {
        let list = Command::new("pidof").arg("stress-ng").output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        list.split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect()
    };
    for round in 0..10 {
        let passing = new("passing");
        let part = passing.part("part");
        for (nth, pid) in processes().into_iter().enumerate() {
            let to = [&one, &other, &part][(nth + round) % 3];
            // Some have ended.
            let _ = fs::write(format!("{}/cgroup.procs", to.0), pid.to_string());
        }
        for weight in ["1", "10000", "100"] {
            thread::sleep(Duration::from_millis(20));
            for group in [&one, &other, &passing, &part] {
                group.write("cpu.weight", weight);
            }
        }
        for pid in processes() {
            let _ = fs::write("/sys/fs/cgroup/cgroup.procs", pid.to_string());
        }
    }
    drop(movers);
    let _loads = [&one, &other].map(|group| hogs(group, cpus() as u32));
    assert_shared("afterwards", &[&one, &other], &[0.5, 0.5], &[]);
    scheduler.stop(libc::SIGINT).assert_clean();
}

/// A game in one group and a build in another have half of the machine each, however many jobs the
/// build runs.
#[test]
fn a_game_does_not_feel_how_many_jobs_run_in_another_group() {
    let (game, build) = (new("game"), new("build"));
    let me = std::process::id() as i32;
    game.enter(me);
    let beside = |jobs| {
        let _jobs = hogs(&build, jobs);
        let frames = || frames_of(Duration::from_millis(10));
        thread::scope(|scope| scope.spawn(frames).join().unwrap())
    };
    let default = beside(32);
    let scheduler = Scheduler::start("scx_metronome", &[]);
    let ours = [4, 32].map(beside);
    scheduler.stop(libc::SIGINT).assert_clean();
    inject::leave_group(me);
    println!("beside 4 and 32 jobs {ours:?}; by the default scheduler beside 32 {default:?}");
    figure(
        "late frames beside 32 jobs",
        ours[1].late,
        "%",
        Bound::AtMost(5.0),
    );
    figure(
        "p99 of a frame, to that beside 4",
        ours[1].p99 / ours[0].p99,
        "",
        Bound::AtMost(1.25),
    );
}

const RUN: Duration = Duration::from_millis(1);

/// A thread runs for [`RUN`] and sleeps for 30 times as long.
fn rests(begin: Instant, end: Instant) -> Duration {
    napper(0, (RUN, 30 * RUN), begin, end)
}

/// A thread runs for [`RUN`] when it is its turn, and wakes the next.
fn passes_on(
    turn: mpsc::Receiver<()>,
    next: mpsc::Sender<()>,
    begin: Instant,
    end: Instant,
) -> Duration {
    let mut used = cpu_time();
    while turn.recv().is_ok() && Instant::now() < end {
        let now = cpu_time();
        if Instant::now() < begin {
            used = now;
        }
        while cpu_time() - now < RUN {}
        let _ = next.send(());
    }
    let used = cpu_time() - used;
    let _ = next.send(());
    used
}

/// What part of a CPU threads have together, beside hogs in another group that come a second after
/// them, so that all are known.
fn beside_hogs(
    other: &Cgroup,
    threads: Vec<Box<dyn FnOnce(Instant, Instant) -> Duration + Send>>,
) -> f64 {
    let begin = Instant::now() + Duration::from_secs(2);
    let end = begin + WINDOW;
    let got: Duration = thread::scope(|scope| {
        let threads: Vec<_> = threads
            .into_iter()
            .map(|thread| scope.spawn(move || thread(begin, end)))
            .collect();
        thread::sleep(Duration::from_secs(1));
        let _hogs = hogs(other, 2 * cpus() as u32);
        threads.into_iter().map(|one| one.join().unwrap()).sum()
    });
    got.as_secs_f64() / WINDOW.as_secs_f64()
}

/// A task that divides its work among threads that each rest has more than the group's share times
/// the boost, for each of them is forgiven a lag when it wakes; but far from as many times more as
/// there are threads.
#[test]
fn a_group_has_not_the_boost_for_each_of_its_threads() {
    const THREADS: usize = 32;
    const BOOST: f64 = 2.0;
    let (light, other) = (new("light"), new("other"));
    let me = std::process::id() as i32;
    light.write("cpu.weight", "10");
    other.write("cpu.weight", "1000");
    let share = cpus() as f64 * 10. / 1010.;
    let scheduler = Scheduler::start("scx_metronome", &["--boost", "2"]);
    light.enter(me);
    let resting = (0..THREADS).map(|_| Box::new(rests) as _).collect();
    let resting = beside_hogs(&other, resting);
    let (next, turns): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel()).unzip();
    next[0].send(()).unwrap();
    let next = next.into_iter().cycle().skip(1);
    let relay = turns
        .into_iter()
        .zip(next)
        .map(|(turn, next)| Box::new(move |begin, end| passes_on(turn, next, begin, end)) as _);
    let relay = beside_hogs(&other, relay.collect());
    inject::leave_group(me);
    scheduler.stop(libc::SIGINT).assert_clean();
    println!("by weight {:.1} % of a CPU", 100. * share);
    for (what, got) in [("by timers", resting), ("by waking each other", relay)] {
        // 1.4 to 1.9, and 1.9 to 2.6; would each thread have the boost for itself, 16.
        figure(
            &format!("{what}, to the boost"),
            got / share / BOOST,
            "",
            Bound::AtMost(4.0),
        );
    }
}
