//! Anything that can happen, in any order, to a whole machine: after each event all invariants
//! hold, and in the end every runnable task gets a CPU.
//!
//! As bytes:
//!
//! | bytes | |
//! |-------|-----------------------------------------------------------------------------------|
//! | 0     | CPUs less 2                                                                       |
//! | 1     | tasks less 1                                                                      |
//! | 2     | bit 0: no built-in idle selection; bit 1: rings of 64 KiB, not 4; bits 2, 3: rings, as a power of two |
//! | 3     | bit 0: faults happen; bit 1: a policy that puts tasks in every place, not the usual one |
//! | 4..   | an [`Event`] in every 4, at most 2,048 of them                                    |

use scx_metronome_core::policy::Policy;
use scx_metronome_core::policy::deadline::Deadline;
use scx_metronome_core::sim::{Config, Event, EveryPlace, Sim, TASKS};

/// Longer inputs find nothing that shorter ones do not, and take longer.
const EVENTS: usize = 2048;

/// Lets it all happen. Without faults the accounting must balance besides, and no task be taken
/// back from user space that is not late.
pub fn run(bytes: &[u8]) {
    let Some((&[cpus, tasks, flags, kinds], events)) = bytes.split_first_chunk() else {
        return;
    };
    let config = Config {
        nr_cpus: 2 + u32::from(cpus),
        nr_rings: 1 << (flags >> 2 & 3),
        ring_bytes: if flags & 2 == 0 { 4096 } else { 65_536 },
        nr_tasks: 1 + u32::from(tasks),
        builtin_idle: flags & 1 == 0,
    };
    let faults = kinds & 1 == 1;
    let events = events
        .as_chunks()
        .0
        .iter()
        .map(|bytes| Event::decode(*bytes))
        .filter(|event| faults || !event.is_fault())
        .take(EVENTS);
    if kinds & 2 == 0 {
        let policy = Deadline::<TASKS>::new(20_000_000, 1_000_000);
        let mut sim = Sim::new(config, policy);
        let_happen(&mut sim, events, faults);
        // It names no CPU that the task may not use.
        assert!(faults || sim.accounting().counts.bounced == 0);
    } else {
        let_happen(&mut Sim::new(config, EveryPlace::default()), events, faults);
    }
}

fn let_happen<P: Policy>(sim: &mut Sim<P>, events: impl Iterator<Item = Event>, faults: bool) {
    for event in events {
        sim.apply(event);
        sim.check()
            .unwrap_or_else(|violation| panic!("{event:?}: {violation}"));
    }
    sim.settle()
        .unwrap_or_else(|violation| panic!("{violation}"));
    if !faults {
        let accounting = sim.accounting();
        let counts = accounting.counts;
        assert!(accounting.balance(), "{accounting}");
        assert!(counts.late != 0 || counts.taken_back + counts.fallback == 0);
    }
}
