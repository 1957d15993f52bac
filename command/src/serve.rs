//! What goes on beside the scheduler thread: statistics on stdout, the socket, and the power
//! profile.
//!
//! None of it touches the scheduler thread. Counters are read where they are written ([`Watch`]);
//! parameters are left in one word ([`Shared`]). These threads are ordinary tasks on the other
//! CPUs: if they starve or die, the scheduler goes on.
//!
//! # Socket
//! That of all sched_ext schedulers, with the protocol of the crate `scx_stats`, so their tools
//! read it. It is made under a umask that leaves it to root. A process that dies without removing
//! it leaves a name without a listener: the next one replaces it.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use scx_metronome_core::Watch;
use scx_stats::{StatsServer, ToJson};
use serde_json::{Value, json};

use super::chains::Slot;
use super::output;
use super::parameters::{Change, Shared};
use super::stats::{self, Metrics};

/// Where `scx_stats` has it.
pub(crate) const SOCKET: &str = "/var/run/scx/root/stats";

/// How often the power profile is looked at.
const POWER: Duration = Duration::from_secs(2);

/// Bytes of stack for each thread but the first: all memory is locked, so what is not used counts,
/// too.
const STACK: &str = "262144";

/// Keeps the memory of threads that are still to come small. To be called before there are any.
pub(crate) fn keep_small() {
    // SAFETY: there is no other thread yet that could read the environment.
    unsafe { env::set_var("RUST_MIN_STACK", STACK) };
    // One heap for all: the threads that share it are idle but for a few requests a second, and the
    // scheduler thread never allocates.
    #[cfg(target_env = "gnu")]
    // SAFETY: a plain library call.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// The thread beside the scheduler thread.
pub(crate) struct Helper {
    pub(crate) watch: Watch,
    pub(crate) parameters: Arc<Shared>,
    pub(crate) chains: Arc<Slot>,
    /// How often to print statistics.
    pub(crate) stats: Option<Duration>,
    pub(crate) json: bool,
}

impl Helper {
    /// Until the other end of `stopped` is dropped.
    pub(crate) fn run(self, stopped: Receiver<()>) {
        // First of all: the threads of the server inherit it.
        self.watch.leave_scheduler_cpu();
        let server = self.launch();
        if let Err(error) = &server {
            log::warn!("no statistics to be had from {SOCKET}: {error:#}");
        }
        self.tick(&stopped);
        if let Ok(server) = server {
            drop(server);
            let _ = fs::remove_file(SOCKET);
        }
    }

    fn tick(&self, stopped: &Receiver<()>) {
        let (mut earlier, mut earlier_stages) = (self.metrics(), self.watch.latency());
        let mut printed = Instant::now();
        let mut looked = Instant::now();
        let left = |since: Instant, interval: Duration| interval.saturating_sub(since.elapsed());
        loop {
            let print = self.stats.map(|interval| left(printed, interval));
            let next = left(looked, POWER).min(print.unwrap_or(POWER));
            if stopped.recv_timeout(next) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            if left(looked, POWER).is_zero() {
                looked = Instant::now();
                self.follow_power();
            }
            if let Some(interval) = self.stats
                && left(printed, interval).is_zero()
            {
                printed = Instant::now();
                let (now, stages) = (self.metrics(), self.watch.latency());
                let counts = now.since(&earlier).line(self.json);
                // The reader has closed our output: no reason to stop scheduling.
                if self.json {
                    output::line(counts);
                } else {
                    output::line(format!("{counts} {}", stages.since(&earlier_stages).line()));
                }
                (earlier, earlier_stages) = (now, stages);
            }
        }
    }

    fn follow_power(&self) {
        let before = self.parameters.current();
        let now = self.parameters.follow_power();
        if now != before {
            log::info!("the power profile has changed: {now}");
        }
    }

    fn metrics(&self) -> Metrics {
        Metrics::read(&self.watch, &self.parameters.current(), &self.chains.ask())
    }

    fn launch(&self) -> Result<StatsServer<(), ()>> {
        let (watch, parameters) = (self.watch.clone(), Arc::clone(&self.parameters));
        let chains = Arc::clone(&self.chains);
        let shared = Arc::clone(&self.parameters);
        StatsServer::new(
            stats::metadata()
                .add_stats(
                    "top",
                    Box::new(move |_, _| {
                        Metrics::read(&watch, &parameters.current(), &chains.ask()).to_json()
                    }),
                )
                .add_stats("set", Box::new(move |args, _| change(&shared, args))),
        )
        .set_path(SOCKET)
        .launch()
    }
}

/// What `scx_metronome set` asks for.
fn change(parameters: &Shared, args: &BTreeMap<String, String>) -> Result<Value> {
    let changes: Result<Vec<_>, _> = args
        .iter()
        .filter(|(key, _)| *key != "target")
        .map(|(key, value)| Change::new(key, value))
        .collect();
    let now = parameters.change(&changes.map_err(|error| anyhow!(error))?);
    log::info!("set: {now}");
    Ok(json!(now.to_string()))
}
