//! A whole turn against the simulated kernel: whatever happens in whatever order, no task is lost,
//! none is decided twice, none goes where it may not run, and the accounting balances.
#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::collection::vec;
use proptest::prelude::*;
#[cfg(feature = "kernel")]
use scx_metronome_core::memory::{self, CountingAllocator};
use scx_metronome_core::policy::deadline::Deadline;
use scx_metronome_core::policy::{self, Due, Place, Policy};
use scx_metronome_core::sim::{Config, Event, EveryPlace, Sim, TASKS};
use scx_metronome_core::stats::Snapshot;
use scx_metronome_core::task::QueuedTask;

#[cfg(feature = "kernel")]
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

type Machine = Sim<Deadline<TASKS>>;

fn machine(config: Config) -> Machine {
    Sim::new(config, Deadline::new(20_000_000, 1_000_000))
}

fn configs() -> impl Strategy<Value = Config> {
    (2..80u32, 0..3u32, 1..200u32, any::<bool>(), any::<bool>()).prop_map(
        |(nr_cpus, rings, nr_tasks, builtin_idle, small)| Config {
            nr_cpus,
            nr_rings: 1 << rings,
            ring_bytes: if small { 4096 } else { 65_536 },
            nr_tasks,
            builtin_idle,
        },
    )
}

/// Applies the events, checking after each; then all that is runnable must get a CPU.
fn run<P: Policy>(sim: &mut Sim<P>, events: impl IntoIterator<Item = Event>) -> Result<(), String> {
    for (nr, event) in events.into_iter().enumerate() {
        sim.apply(event);
        sim.check()
            .map_err(|violation| format!("event {nr}, {event:?}: {violation}"))?;
    }
    sim.settle()
}

/// The same without faults: the accounting balances, and no task is taken over from a scheduler
/// thread that was not late.
fn run_healthy<P: Policy>(
    sim: &mut Sim<P>,
    events: impl IntoIterator<Item = Event>,
) -> Result<Snapshot, String> {
    run(sim, events.into_iter().filter(|event| !event.is_fault()))?;
    let accounting = sim.accounting();
    let counts = accounting.counts;
    if !accounting.balance() {
        return Err(format!("{accounting}"));
    }
    if counts.late == 0 && counts.taken_back + counts.fallback != 0 {
        return Err(format!("a takeover without a reason: {counts}"));
    }
    Ok(counts)
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    vec(any::<[u8; 4]>().prop_map(Event::decode), 0..600)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_doubled_or_misplaced(config in configs(), events in events()) {
        let counts = run_healthy(&mut machine(config), events).map_err(TestCaseError::fail)?;
        prop_assert_eq!(counts.bounced, 0);
    }

    #[test]
    fn wherever_the_policy_puts_them_none_is_lost_doubled_or_misplaced(
        config in configs(),
        events in events(),
    ) {
        let mut sim = Sim::new(config, EveryPlace::default());
        run_healthy(&mut sim, events).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn corrupt_memory_loses_no_task(config in configs(), events in events()) {
        run(&mut machine(config), events.iter().copied()).map_err(TestCaseError::fail)?;
        let mut sim = Sim::new(config, EveryPlace::default());
        run(&mut sim, events).map_err(TestCaseError::fail)?;
    }
}

#[test]
fn all_that_can_happen_happens_in_a_long_run_and_the_same_twice() {
    let long_run = |seed| {
        let config = Config {
            nr_cpus: 9,
            nr_tasks: 150,
            nr_rings: 2,
            ..Config::default()
        };
        let events = Event::stream(seed).take(20_000);
        run_healthy(&mut Sim::new(config, EveryPlace::default()), events).unwrap()
    };
    for seed in 0..4 {
        let counts = long_run(seed);
        let happened = [
            counts.direct,
            counts.dispatched,
            counts.stale,
            counts.too_late,
            counts.rescued,
            counts.bounced,
            counts.superseded,
            counts.late,
            counts.fallback,
            counts.taken_back,
        ];
        assert!(happened.iter().all(|nr| *nr > 0), "seed {seed}: {counts}");
        assert_eq!(long_run(seed), counts, "seed {seed}");
    }
}

#[test]
fn while_user_space_is_late_tasks_run_without_it_and_once_it_has_caught_up_it_is_asked() {
    let config = Config {
        builtin_idle: false,
        ..Config::default()
    };
    let mut sim = machine(config);
    sim.apply(Event::Late);
    assert_eq!(sim.accounting().counts.late, 0, "no task waits");
    sim.apply(Event::Wake(1));
    sim.apply(Event::Late);
    assert_eq!(sim.running().collect::<Vec<_>>(), [(0, 1)]);
    sim.apply(Event::Wake(2));
    assert_eq!(sim.running().count(), 2);
    sim.apply(Event::Back);
    sim.apply(Event::Wake(3));
    let counts = sim.accounting().counts;
    assert_eq!((counts.late, counts.taken_back, counts.fallback), (1, 1, 2));
    // Its decision comes too late.
    sim.apply(Event::Turn);
    sim.apply(Event::Back);
    sim.apply(Event::Sleep(2));
    sim.apply(Event::Wake(3));
    let counts = sim.accounting().counts;
    assert_eq!((counts.fallback, counts.queued), (2, 2));
    sim.settle().unwrap();
    let counts = sim.accounting().counts;
    assert_eq!((counts.rescued, counts.dispatched), (1, 1));
}

#[test]
fn a_full_ring_sends_tasks_on_and_loses_none() {
    let config = Config {
        ring_bytes: 4096,
        nr_tasks: 200,
        builtin_idle: false,
        ..Config::default()
    };
    let mut sim = machine(config);
    run(&mut sim, (0..200).map(Event::Wake)).unwrap();
    let counts = sim.accounting().counts;
    assert_eq!((counts.queued, counts.ring_full), (31, 169));
    assert_eq!(counts.taken_back, 0);
}

#[test]
fn a_decision_that_affinity_has_overtaken_is_carried_out_elsewhere_or_dropped() {
    let config = Config {
        builtin_idle: false,
        ..Config::default()
    };
    // Decided for CPU 0 while it is idle, but forbidden there before CPU 0 looks.
    let mut sim = machine(config);
    sim.apply(Event::Wake(1));
    sim.turn();
    sim.apply(Event::SetAffinity(1, 0b10));
    sim.answer_kicks();
    sim.settle().unwrap();
    let counts = sim.accounting().counts;
    assert_eq!((counts.queued, counts.stale, counts.dispatched), (2, 1, 1));
}

/// Sends all tasks to one CPU, and counts the decisions for which there was no room.
struct Crowd {
    refused: Vec<Due>,
}

impl Policy for Crowd {
    fn deadline(&mut self, _task: &QueuedTask) -> u64 {
        1
    }

    fn slice_ns(&mut self, _id: u32, _waiting: usize) -> u64 {
        1_000_000
    }

    fn place(&mut self, _task: &Due, machine: &policy::Machine<'_>) -> Place {
        // 256 lie ahead there soon: what is too much goes to any CPU.
        assert!(machine.backlog(0) <= 256);
        Place::On(0)
    }

    fn refused(&mut self, task: &Due) {
        self.refused.push(*task);
    }
}

#[test]
fn a_decision_without_room_is_refused_and_its_task_is_due_again_once_there_is_some() {
    let config = Config {
        nr_tasks: 200,
        builtin_idle: false,
        ..Config::default()
    };
    let mut sim = Sim::new(config, Crowd { refused: vec![] });
    // No CPU looks into its mailbox meanwhile, and a task that is enqueued anew is decided about
    // anew.
    (0..200).for_each(|id| sim.apply(Event::Wake(id)));
    sim.turn();
    for _ in 0..100 {
        (0..200).for_each(|id| sim.apply(Event::SetAffinity(id, !0)));
        sim.turn();
    }
    let accounting = sim.accounting();
    assert_eq!(accounting.left_in_mailboxes, 256 + 16_384);
    let refused = &sim.policy().refused;
    assert!(!refused.is_empty());
    assert!(refused.iter().all(|due| due.deadline == 1 && due.id < 200));
    sim.check().unwrap();
    // The CPUs empty the mailboxes.
    sim.apply(Event::Turn);
    assert_eq!(sim.accounting().left_in_mailboxes, 0);
    sim.settle().unwrap();
    let accounting = sim.accounting();
    assert!(
        accounting.balance() && accounting.counts.dispatched >= 200,
        "{accounting}"
    );
    assert_eq!(accounting.counts.taken_back, 0);
}

#[test]
fn an_idle_machine_is_never_left_idle_while_a_task_waits() {
    let config = Config {
        nr_cpus: 200,
        nr_tasks: 400,
        builtin_idle: false,
        ..Config::default()
    };
    let mut sim = machine(config);
    for id in 0..150 {
        sim.apply(Event::Wake(id));
    }
    sim.apply(Event::Turn);
    assert_eq!((sim.running().count(), sim.waiting()), (150, 0));
    for id in 150..400 {
        sim.apply(Event::Wake(id));
    }
    sim.apply(Event::Turn);
    assert_eq!((sim.running().count(), sim.waiting()), (199, 201));
}

#[cfg(feature = "kernel")]
#[test]
fn turns_do_not_allocate() {
    let mut sim = machine(Config {
        nr_tasks: 200,
        builtin_idle: false,
        ..Config::default()
    });
    let allocations_of = |run: &mut dyn FnMut()| {
        let before = memory::sealed_allocations();
        let seal = memory::seal();
        run();
        drop(seal);
        memory::sealed_allocations() - before
    };
    assert_eq!(
        allocations_of(&mut || drop(std::hint::black_box(Box::new(1)))),
        1,
        "they are counted"
    );
    let mut decided = 0;
    for round in 0..2_000 {
        sim.apply(Event::Wake(round));
        sim.apply(Event::SliceEnds(round));
        let allocated = allocations_of(&mut || decided += sim.turn().handed_out);
        assert_eq!(allocated, 0, "turn {round}");
        sim.answer_kicks();
    }
    assert!(decided > 1_000, "{decided}");
}

#[test]
fn at_a_tick_the_task_with_the_earliest_deadline_runs() {
    let config = Config {
        nr_cpus: 2,
        builtin_idle: false,
        ..Config::default()
    };
    let mut sim = machine(config);
    let pass_ms = |sim: &mut Machine, ms: u16| sim.apply(Event::Pass(ms * 1000));
    sim.apply(Event::Wake(1));
    sim.apply(Event::Turn);
    assert_eq!(sim.running().collect::<Vec<_>>(), [(0, 1)]);
    assert_eq!(sim.slice_ends_at(1), None);
    let left = sim.slice_ends_at(0).unwrap() - sim.now();
    assert_eq!(left, 20_000_000, "no other task waits");
    pass_ms(&mut sim, 1);
    // A deadline of 0 is none: the next one is at its 1 ms of CPU time and 1 ms of burst.
    sim.apply(Event::SliceEnds(0));
    sim.apply(Event::Turn);
    sim.apply(Event::Wake(2));
    sim.apply(Event::Turn);
    sim.apply(Event::Tick(0));
    let running = |sim: &Machine| sim.running().collect::<Vec<_>>();
    assert_eq!(running(&sim), [(0, 2)], "it comes in at virtual time");
    sim.apply(Event::Turn);
    sim.apply(Event::Tick(0));
    assert_eq!(running(&sim), [(0, 2)]);
    pass_ms(&mut sim, 3);
    sim.apply(Event::Tick(0));
    assert_eq!(running(&sim), [(0, 1)]);
    sim.settle().unwrap();
}

/// Tasks of an odd id displace what runs on CPU 0, others queue up there. In the order of their
/// ids.
struct Displaces;

impl Policy for Displaces {
    fn deadline(&mut self, task: &QueuedTask) -> u64 {
        1_000 + u64::from(task.id)
    }

    fn slice_ns(&mut self, _id: u32, _waiting: usize) -> u64 {
        0
    }

    fn place(&mut self, task: &Due, _machine: &policy::Machine<'_>) -> Place {
        match task.id % 2 {
            0 => Place::On(0),
            _ => Place::Preempt(0),
        }
    }
}

#[test]
fn a_preempting_decision_displaces_what_runs_and_goes_before_what_waits() {
    let config = Config {
        builtin_idle: false,
        ..Config::default()
    };
    let mut sim = Sim::new(config, Displaces);
    let running = |sim: &Sim<Displaces>| sim.running().collect::<Vec<_>>();
    for id in [2, 4] {
        sim.apply(Event::Wake(id));
        sim.apply(Event::Turn);
        sim.check().unwrap();
    }
    assert_eq!(running(&sim), [(0, 2)], "the other queues up");
    sim.apply(Event::Wake(5));
    sim.apply(Event::Turn);
    sim.check().unwrap();
    assert_eq!(running(&sim), [(0, 5)]);
    sim.settle().unwrap();
    let counts = sim.accounting().counts;
    assert_eq!((counts.queued, counts.dispatched), (4, 4), "2 twice");
}
