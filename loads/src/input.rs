//! The input thread: woken at random, 3 to 17 ms apart, for next to no work.
//!
//! The events come whether the thread is ready or not, as a mouse's do: one that falls due while
//! the thread is still late for the one before is measured from its own due time.

use crate::clock::{MS, now, sleep_until};
use crate::latency::Latency;
use crate::plan::Plan;
use crate::random::Random;
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
