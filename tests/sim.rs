//! A whole turn against the simulated kernel: whatever happens in whatever order, no task is lost, none is decided twice,
//! none goes where it may not run, and the books balance.
#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::collection::vec;
use proptest::prelude::*;
#[cfg(feature = "kernel")]
use scx_metronome::memory::{self, CountingAllocator};
use scx_metronome::policy::deadline::Deadline;
use scx_metronome::sim::{Config, Event, Sim, TASKS};

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
fn run(config: Config, events: impl IntoIterator<Item = Event>) -> Result<Machine, String> {
    let mut sim = machine(config);
    for (nr, event) in events.into_iter().enumerate() {
        sim.apply(event);
        sim.check()
            .map_err(|violation| format!("event {nr}, {event:?}: {violation}"))?;
    }
    sim.settle()?;
    Ok(sim)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_doubled_or_misplaced(
        config in configs(),
        events in vec(any::<[u8; 4]>().prop_map(Event::decode), 0..600),
    ) {
        let healthy = events.into_iter().filter(|event| !event.is_fault());
        let sim = run(config, healthy).map_err(TestCaseError::fail)?;
        let books = sim.books();
        prop_assert!(books.balance(), "{books}");
        prop_assert_eq!(books.counts.takeover, 0);
    }

    #[test]
    fn corrupt_memory_loses_no_task(
        config in configs(),
        events in vec(any::<[u8; 4]>().prop_map(Event::decode), 0..600),
    ) {
        run(config, events).map_err(TestCaseError::fail)?;
    }
}

#[test]
fn a_full_ring_sends_tasks_on_in_deadline_order_and_loses_none() {
    let config = Config {
        ring_bytes: 4096,
        nr_tasks: 200,
        builtin_idle: false,
        ..Config::default()
    };
    let sim = run(config, (0..200).map(Event::Wake)).unwrap();
    let counts = sim.books().counts;
    assert_eq!((counts.queued, counts.ring_full), (31, 169));
    assert_eq!(counts.takeover, 0);
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
    let counts = sim.books().counts;
    assert_eq!((counts.queued, counts.stale, counts.dispatched), (2, 1, 1));
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
    assert_eq!(left, 20_000_000, "nobody else waits");
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
