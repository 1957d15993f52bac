//! A server: one thread hands requests to workers that sleep in between.
//!
//! The manner is schbench's: each request costs two wake-ups (the worker's, and the dispatcher's
//! when the worker is done), and there are as many requests under way as there are workers, so a
//! slow scheduler gets fewer requests, not a longer queue. Wake-up latency tells how soon a worker
//! runs; request latency adds what preemption does to its work.

use crate::clock::{SECOND, now, seconds, sleep_until};
use crate::latency::{Latency, Percentiles};
use crate::plan::Plan;
use crate::priority::{Policy, with_policy};
use crate::random::Random;
use crate::semaphore::Semaphore;
use crate::work::{Rate, spin};
use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

/// A request's work is between these, in ms.
const WORK: (f64, f64) = (0.2, 0.8);
/// Until all threads are there, ns.
const LEAD: u64 = SECOND / 20;
/// Started but not recorded, ns.
const WARMUP: u64 = SECOND / 5;

/// What the requests came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// From a request being handed over to its worker running.
    pub wakeup_ms: Percentiles,
    /// From a request being handed over to its end.
    pub request_ms: Percentiles,
    /// Requests completed a second.
    pub per_second: f64,
}

/// A worker's place: where its request is put.
struct Desk {
    go: Semaphore,
    /// When the request was handed over (ns).
    // ORDERING: relaxed, here and below: the semaphore orders what is written before `post` and
    // read after `wait`.
    handed_over: AtomicU64,
}

struct Server {
    plan: Plan,
    desks: Vec<Desk>,
    over: AtomicBool,
}

struct Tally {
    wakeup: Latency,
    request: Latency,
}

/// Runs `workers` workers for `length` ns.
///
/// # Errors
/// A thread could not be started, or panicked.
pub fn run(workers: usize, rate: Rate, length: u64, seed: u64) -> Result<Requests> {
    let desks: Result<Vec<_>> = (0..workers).map(|_| Desk::new()).collect();
    let server = Arc::new(Server {
        plan: Plan::new(now() + LEAD, WARMUP, length),
        desks: desks?,
        over: AtomicBool::new(false),
    });
    let (idle, at_desk) = channel();
    let threads = with_policy(Policy::Other, || {
        (0..workers)
            .map(|index| employ(&server, index, rate, seed, idle.clone()))
            .collect::<Result<Vec<_>>>()
    })?;
    drop(idle);
    sleep_until(server.plan.epoch);
    while !server.plan.is_over(now()) {
        match at_desk.recv() {
            Ok(index) => server.desks[index].hand_over(),
            Err(_) => break,
        }
    }
    server.over.store(true, Relaxed);
    server.desks.iter().for_each(|desk| desk.go.post());
    total(threads, length)
}

fn total(threads: Vec<JoinHandle<Tally>>, length: u64) -> Result<Requests> {
    let mut sum = Tally::new()?;
    for thread in threads {
        let tally = thread.join().map_err(|_| anyhow!("a worker panicked"))?;
        sum.wakeup.add(&tally.wakeup);
        sum.request.add(&tally.request);
    }
    let request_ms = sum.request.percentiles();
    Ok(Requests {
        wakeup_ms: sum.wakeup.percentiles(),
        per_second: request_ms.samples as f64 / seconds(length),
        request_ms,
    })
}

impl Desk {
    fn new() -> Result<Self> {
        Ok(Self {
            go: Semaphore::new()?,
            handed_over: AtomicU64::new(0),
        })
    }

    fn hand_over(&self) {
        self.handed_over.store(now(), Relaxed);
        self.go.post();
    }
}

impl Tally {
    fn new() -> Result<Self> {
        Ok(Self {
            wakeup: Latency::new()?,
            request: Latency::new()?,
        })
    }
}

fn employ(
    server: &Arc<Server>,
    index: usize,
    rate: Rate,
    seed: u64,
    idle: Sender<usize>,
) -> Result<JoinHandle<Tally>> {
    let (server, tally) = (Arc::clone(server), Tally::new()?);
    let random = Random(seed.wrapping_mul(1000) + index as u64);
    let thread = Builder::new().name(format!("serve-{index}"));
    Ok(thread.spawn(move || serve(&server, index, rate, random, &idle, tally))?)
}

fn serve(
    server: &Server,
    index: usize,
    rate: Rate,
    mut random: Random,
    idle: &Sender<usize>,
    mut tally: Tally,
) -> Tally {
    let desk = &server.desks[index];
    let (least, most) = (rate.iterations(WORK.0), rate.iterations(WORK.1));
    // The dispatcher may be gone already; then `over` is about to be set.
    while idle.send(index).is_ok() {
        desk.go.wait();
        let (woken, handed_over) = (now(), desk.handed_over.load(Relaxed));
        if server.over.load(Relaxed) {
            break;
        }
        spin(least + random.below((most - least).max(1)));
        let end = now();
        if server.plan.records(handed_over) {
            tally.wakeup.record(woken - handed_over);
            tally.request.record(end - handed_over);
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_takes_no_less_than_its_wake_up() -> Result<()> {
        let rate = Rate {
            iterations_per_ms: 10_000,
            scale: 1.0,
        };
        let requests = run(2, rate, SECOND / 10, 1)?;
        assert!(requests.per_second > 0.0);
        // On a machine that is busy otherwise all of a request may be waiting for the CPU.
        assert!(
            requests.request_ms.p50 >= requests.wakeup_ms.p50,
            "{requests:?}"
        );
        Ok(())
    }
}
