//! The statistics as others see them: with a name and a description each, as numbers that only grow
//! unless they are said to be levels.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use anyhow::Result;
use scx_metronome_core::policy::RunningKind;
use scx_metronome_core::policy::deadline::{Chain, Chains};
use scx_metronome_core::stats::Snapshot;
use scx_metronome_core::{Watch, kernel_counters};
use scx_stats::{Meta, StatsServerData};
use scx_stats_derive::Stats;
use serde::{Deserialize, Serialize};

use super::parameters::Parameters;

/// The counters of a [`Snapshot`], by name, beside what the other fields are.
macro_rules! metrics {
    ($($variant:ident $name:ident $description:literal,)*) => {
        /// All there is to know at one moment.
        #[derive(Clone, Debug, Serialize, Deserialize, Stats)]
        #[stat(top, desc = "Metronome", _om_prefix = "metronome_")]
        pub(crate) struct Metrics {
            $(#[stat(desc = $description)] pub(crate) $name: u64,)*
            #[stat(desc = "longest slice, us (level)")]
            pub(crate) slice_us: u64,
            #[stat(desc = "shortest slice, us (level)")]
            pub(crate) slice_us_min: u64,
            #[stat(desc = "resident memory of the scheduler's process, KiB (level)")]
            pub(crate) rss_kib: u64,
            #[stat(desc = "what the scheduler thread does when nothing is to do: spin, adaptive or park", _om_skip)]
            pub(crate) wait: String,
            #[stat(desc = "each CPU (level)", _om_skip)]
            pub(crate) cpus: BTreeMap<usize, CpuMetrics>,
            #[stat(desc = "tasks that work for a frame together (level)", _om_skip)]
            pub(crate) chains: BTreeMap<usize, ChainMetrics>,
        }

        impl Metrics {
            pub(crate) fn read(watch: &Watch, parameters: &Parameters, chains: &Chains) -> Self {
                let counts = watch.snapshot();
                Self {
                    $($name: counts.$name,)*
                    slice_us: parameters.slice_us,
                    slice_us_min: parameters.slice_us_min,
                    rss_kib: rss_kib(),
                    wait: parameters.wait.to_string(),
                    cpus: cpus(watch),
                    chains: chains.iter().map(ChainMetrics::new).enumerate().collect(),
                }
            }

            fn counts(&self) -> Snapshot {
                Snapshot { $($name: self.$name,)* }
            }

            /// What happened between `earlier` and now; levels stay as they are.
            pub(crate) fn since(&self, earlier: &Self) -> Self {
                let counts = self.counts().since(&earlier.counts());
                Self { $($name: counts.$name,)* ..self.clone() }
            }
        }
    };
}

kernel_counters!(metrics
    Taken taken "enqueue records that user space took",
    Sent sent "decisions of user space",
    Superseded superseded "enqueue records that a newer one of the same task replaced",
    Waiting waiting "tasks in user space's queue (level)",
    Syscalls syscalls "system calls of the scheduler thread",
    Faults faults "page faults of the scheduler thread since it began to run the policy (level)",
    Allocations allocations "allocations of the scheduler thread while it ran a policy (level)",
);

/// A CPU at one moment.
#[derive(Clone, Debug, Serialize, Deserialize, Stats)]
#[stat(desc = "a CPU", _om_prefix = "metronome_cpu_", _om_label = "cpu")]
pub(crate) struct CpuMetrics {
    #[stat(
        desc = "idle; or what it runs: decided (as user space said), ordered (by a standing order), other"
    )]
    pub(crate) state: String,
    #[stat(desc = "thread that it runs, or ran last")]
    pub(crate) pid: i64,
    #[stat(desc = "deadline of that, on the policy's clock")]
    pub(crate) deadline: u64,
    #[stat(desc = "what it had of its slice when it got the CPU, us")]
    pub(crate) slice_us: u64,
}

fn cpus(watch: &Watch) -> BTreeMap<usize, CpuMetrics> {
    let cpu = |(is_idle, running): (bool, scx_metronome_core::policy::Running)| {
        let state = match running.kind {
            _ if is_idle => "idle",
            RunningKind::Ordered => "ordered",
            RunningKind::Decided => "decided",
            RunningKind::Other => "other",
        };
        CpuMetrics {
            state: state.to_owned(),
            pid: running.pid.into(),
            deadline: running.deadline,
            slice_us: running.slice / 1000,
        }
    };
    watch.cpus().map(cpu).enumerate().collect()
}

/// A chain, and how its frames went since it was found.
#[derive(Clone, Debug, Serialize, Deserialize, Stats)]
#[stat(
    desc = "tasks that work for a frame together, by whom they wake",
    _om_prefix = "metronome_chain_",
    _om_label = "chain"
)]
pub(crate) struct ChainMetrics {
    #[stat(
        desc = "threads that worked for the last frame, the one that begins it first",
        _om_skip
    )]
    pub(crate) members: Vec<i64>,
    #[stat(desc = "from a frame to the next, us: the shortest of late")]
    pub(crate) period_us: u64,
    #[stat(
        desc = "critical path: from the beginning of a frame until the last of them sleeps, us: the mean of late"
    )]
    pub(crate) path_us: u64,
    #[stat(desc = "frames")]
    pub(crate) frames: u64,
    #[stat(desc = "frames that were not done when the next one was due")]
    pub(crate) late: u64,
    #[stat(desc = "what the one with the least has left by its orders, us of virtual time")]
    pub(crate) credit_us: i64,
}

impl ChainMetrics {
    fn new(chain: &Chain) -> Self {
        Self {
            members: chain.members().iter().map(|pid| i64::from(*pid)).collect(),
            period_us: chain.period_ns() / 1000,
            path_us: chain.path_ns() / 1000,
            frames: chain.frames(),
            late: chain.late(),
            credit_us: chain.credit_ns() / 1000,
        }
    }
}

/// Of this process; 0 without /proc.
fn rss_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

impl Metrics {
    /// As text or as JSON.
    pub(crate) fn line(&self, json: bool) -> String {
        match json {
            true => serde_json::to_string(self).unwrap_or_default(),
            false => self.counts().to_string(),
        }
    }
}

/// The descriptions, for programs that know none of it.
pub(crate) fn metadata() -> StatsServerData<(), ()> {
    StatsServerData::new()
        .add_meta(Metrics::meta())
        .add_meta(CpuMetrics::meta())
        .add_meta(ChainMetrics::meta())
}

/// Prints them.
pub(crate) fn describe() -> Result<()> {
    metadata().describe_meta(&mut io::stdout(), None)
}
