//! The audio thread: every 10 ms, 0.4 ms of work that must be complete before the next period is
//! due.

use crate::clock::{MS, now, sleep_until};
use crate::latency::Latency;
use crate::pace::Pace;
use crate::plan::Plan;
use crate::work::{Rate, spin};
use anyhow::Result;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// ns.
const PERIOD: u64 = 10 * MS;
/// ms.
const WORK: f64 = 0.4;

/// What the audio periods came to.
#[derive(Debug)]
pub struct Periods {
    /// From each period's due time to the thread running. A skipped period is recorded with the
    /// time at which it was given up: leaving the worst out would flatter.
    pub wakeup: Latency,
    /// From each period's due time to its work's end.
    pub completion: Latency,
    /// Periods that were due.
    pub periods: u64,
    /// Periods completed after the next one's due time, and those skipped.
    pub missed: u64,
}

/// Starts the audio thread.
///
/// # Errors
/// The thread could not be started.
pub fn start(plan: &Arc<Plan>, rate: Rate) -> Result<JoinHandle<Periods>> {
    let (wakeup, completion) = (Latency::new()?, Latency::new()?);
    let periods = Periods {
        wakeup,
        completion,
        periods: 0,
        missed: 0,
    };
    let (plan, iterations) = (Arc::clone(plan), rate.iterations(WORK));
    let thread = Builder::new().name("audio".to_owned());
    Ok(thread.spawn(move || play(&plan, iterations, periods))?)
}

fn play(plan: &Plan, iterations: u64, mut tally: Periods) -> Periods {
    let mut pace = Pace::new(plan.epoch, PERIOD);
    while !plan.is_over(pace.due()) {
        let due = pace.due();
        sleep_until(due);
        let woken = now();
        spin(iterations);
        let end = now();
        let completion = pace.complete(end);
        if plan.records(due) {
            tally.wakeup.record(woken - due);
            tally.completion.record(end - due);
            tally.periods += 1;
            tally.missed += u64::from(completion.missed);
        }
        for skipped in completion
            .skipped
            .map(|k| pace.due_of(k))
            .filter(|&due| plan.records(due))
        {
            tally.wakeup.record(end - skipped);
            tally.periods += 1;
            tally.missed += 1;
        }
    }
    tally
}
