//! The input thread: woken at random, 3 to 17 ms apart, for next to no work.
//!
//! The events come whether the thread is ready or not, as a mouse's do: one that falls due while the thread is still
//! late for the one before is measured from its own due time.

use crate::clock::{MS, now, sleep_until};
use crate::latency::Latency;
use crate::plan::Plan;
use crate::work::{Rate, spin};
use anyhow::Result;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// Shortest time between two events, ns.
const SHORTEST: u64 = 3 * MS;
/// Longest time between two events, ns.
const LONGEST: u64 = 17 * MS;
/// ms.
const WORK: f64 = 0.03;

/// Starts the input thread; it returns the times from each event to the thread running.
///
/// # Errors
/// The thread could not be started.
pub fn start(plan: &Arc<Plan>, rate: Rate, seed: u64) -> Result<JoinHandle<Latency>> {
    let (plan, latency, iterations) = (Arc::clone(plan), Latency::new()?, rate.iterations(WORK));
    let thread = Builder::new().name("input".to_owned());
    Ok(thread.spawn(move || listen(&plan, iterations, Random(seed), latency))?)
}

fn listen(plan: &Plan, iterations: u64, mut random: Random, mut latency: Latency) -> Latency {
    let mut due = plan.epoch;
    loop {
        due += SHORTEST + random.below(LONGEST - SHORTEST);
        if plan.is_over(due) {
            return latency;
        }
        sleep_until(due);
        let woken = now();
        if plan.records(due) {
            latency.record(woken - due);
        }
        spin(iterations);
    }
}

/// SplitMix64 (Steele, Lea, Flood, 2014): any seed will do.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_events() {
        let (mut a, mut b, mut c) = (Random(7), Random(7), Random(8));
        let events = |random: &mut Random| [(); 8].map(|()| random.below(1000));
        let first = events(&mut a);
        assert_eq!(first, events(&mut b));
        assert_ne!(first, events(&mut c));
        assert!(first.iter().all(|&x| x < 1000));
    }
}
