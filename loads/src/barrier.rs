//! Threads that work and then spin until the last of them is there, as numerical programs and some
//! game engines do. A scheduler that keeps a CPU for itself, or displaces one of them, holds all of
//! them up.

use crate::clock::{SECOND, now, seconds};
use crate::work::{Rate, spin};
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::scope;

/// Work of a thread in a round, ms.
const WORK: f64 = 0.5;

/// What was done.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rounds {
    /// Rounds a second.
    pub rounds: f64,
}

/// Runs `threads` threads for `length` ns.
#[must_use]
pub fn run(threads: u64, rate: Rate, length: u64) -> Rounds {
    let arrived = AtomicU64::new(0);
    let work = rate.iterations(WORK);
    let end = now() + SECOND / 4 + length;
    let member = || {
        let (mut rounds, mut begin) = (0, 0);
        while now() < end {
            spin(work);
            let round = arrived.fetch_add(1, Ordering::AcqRel) / threads;
            // Without a pause: emulators would let others run faster for it. One that has stopped
            // is not waited for.
            while arrived.load(Ordering::Acquire) / threads <= round && now() < end {}
            // The first quarter of a second is for learning.
            if now() + length < end {
                begin = rounds;
            }
            rounds += 1;
        }
        rounds - begin
    };
    let rounds = scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(member)).collect();
        let own = member();
        others.into_iter().for_each(|other| drop(other.join()));
        own
    });
    Rounds {
        rounds: f64::from(rounds) / seconds(length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_counted_and_end() {
        let rate = Rate {
            iterations_per_ms: 10_000,
            scale: 1.0,
        };
        assert!(run(1, rate, SECOND / 20).rounds > 20.0);
        assert!(run(2, rate, SECOND / 20).rounds > 1.0);
    }
}
