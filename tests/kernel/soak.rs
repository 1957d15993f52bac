//! Random faults under random loads, one period after the other: `make soak HOURS=2`.
//! `SOAK_SECONDS` says for how long (default 1, which is one period), `SOAK_SEED` replays a run
//! that has printed that seed, or begins with the period that has.

use super::inject::{self, Pauses, Random, Workers, set_online, with_scribbles};
use super::*;

/// Besides a CPU hog for each CPU.
const LOADS: [&str; 6] = [
    "--pipe 2",
    "--fork 2 --pipe 1",
    "--switch 2 --yield 2",
    "--cpu 4 --affinity 1",
    "--exec 1 --vfork 1",
    "--sem 2 --switch 1",
];

#[derive(Clone, Copy, Debug)]
enum Fault {
    Stopped,
    Frozen,
    Traced,
    ItsCpuHeld,
    CpuHeld,
    ForkBomb,
    Affinity,
    Classes,
    Cpusets,
    RandomOrders,
    Hotplug,
}

const FAULTS: [Fault; 11] = [
    Fault::Stopped,
    Fault::Frozen,
    Fault::Traced,
    Fault::ItsCpuHeld,
    Fault::CpuHeld,
    Fault::ForkBomb,
    Fault::Affinity,
    Fault::Classes,
    Fault::Cpusets,
    Fault::RandomOrders,
    Fault::Hotplug,
];

/// A fault, and all that was left to chance about it.
#[derive(Clone, Copy, Debug)]
struct Plan {
    fault: Fault,
    time: Duration,
    /// One of all but the last.
    worker: usize,
    /// Whether it is the scheduler's CPU that goes, if one does.
    takes_last: bool,
    /// Of what is drawn for as long as the fault lasts, so that how often that is changes nothing
    /// else.
    seed: u64,
}

impl Plan {
    fn draw(random: &mut Random) -> Self {
        Self {
            fault: random.pick(&FAULTS),
            time: Duration::from_millis(200 + random.below(600) as u64),
            worker: random.below(cpus() - 1),
            takes_last: random.below(2) == 1,
            seed: random.word(),
        }
    }

    fn inject(self, scheduler: &mut Scheduler, tids: &[i32]) {
        let Self { time, worker, .. } = self;
        let (last, random) = (cpus() - 1, &mut Random::new(self.seed));
        match self.fault {
            Fault::Stopped => inject::stop(scheduler, time),
            Fault::Frozen => inject::freeze(scheduler, time),
            Fault::Traced => inject::trace(scheduler, time),
            Fault::ItsCpuHeld => inject::hold_cpu(last, time),
            Fault::CpuHeld => inject::hold_cpu(worker, time),
            Fault::ForkBomb => inject::fork_bomb(100, time),
            Fault::Affinity => drop(inject::move_threads(tids, random, time)),
            Fault::Classes => drop(inject::change_classes(tids, random, time)),
            Fault::Cpusets => drop(inject::change_cpusets(random, time)),
            Fault::RandomOrders => with_scribbles("orders", || thread::sleep(time)),
            Fault::Hotplug => {
                // CPU 0 stays.
                let cpu = if self.takes_last { last } else { 1 };
                set_online(scheduler, cpu, false);
                set_online(scheduler, cpu, true);
            }
        }
    }
}

/// One scheduler's life: a load, one to three faults, and an end; one time in four it is killed.
fn live_through_a_period(random: &mut Random) -> String {
    let load = random.pick(&LOADS);
    let plans: Vec<_> = (0..1 + random.below(3))
        .map(|_| Plan::draw(random))
        .collect();
    let is_killed = random.below(4) == 0;
    let name = format!("{load}, {plans:?}, killed {is_killed}");
    println!("{name}");

    let hogs = cpus();
    let mut load = Load::start(&[&format!("stress-ng -q --cpu {hogs} {load} -t 3600s")]);
    let mut scheduler = Scheduler::start("scx_metronome", &["--stats", "1"]);
    let workers = Workers::start(3);
    let pause = Pauses::of_heartbeat(|| {
        for plan in plans {
            plan.inject(&mut scheduler, workers.tids());
            thread::sleep(Duration::from_millis(200));
        }
    });
    let passed = workers.finish();
    load.assert_running();
    drop(load);
    if state() != "enabled" {
        panic!("{name}: {}", scheduler.wait().stderr);
    }
    if is_killed {
        scheduler.stop(libc::SIGKILL);
        let limit = Duration::from_secs(10);
        wait_for("the default scheduler is back", limit, || {
            state() == "disabled"
        });
    } else {
        let ended = scheduler.stop(libc::SIGINT);
        ended.assert_clean();
        assert!(!ended.stderr.contains("DO NOT BALANCE"), "{}", ended.stderr);
    }
    assert_eq!(leftovers(), "");
    pause.assert_heartbeat_short(&name);
    format!("{passed} numbers passed, {pause}")
}

#[test]
fn random_faults_under_random_loads_are_lived_through() {
    let number = |name, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (seconds, seed) = (number("SOAK_SECONDS", 1), number("SOAK_SEED", 1));
    println!("SOAK_SECONDS={seconds} SOAK_SEED={seed}");
    let start = Instant::now();
    for period in 0.. {
        // Each from a seed of its own: how long the one before took, and what was drawn meanwhile,
        // changes nothing.
        let own: u64 = seed ^ period;
        println!("period {period}, SOAK_SEED={own}");
        let result = live_through_a_period(&mut Random::new(own));
        let passed = start.elapsed();
        println!("period {period}, {} s: {result}", passed.as_secs());
        if passed >= Duration::from_secs(seconds) {
            break;
        }
    }
}
