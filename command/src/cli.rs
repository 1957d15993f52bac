//! What can be said on the command line. Manual page and completions are made of it, too.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use scx_metronome_core::Builder;
use scx_metronome_core::policy::deadline::Ordered;
use scx_metronome_core::topology::parse_list;
use scx_metronome_core::wait::Wait;

use super::parameters::{Change, Profile, Request};

/// A CPU scheduler for desktops that must not stutter: the order of tasks is decided in user space,
/// on a CPU of its own.
#[derive(Debug, Parser)]
#[command(
    name = "scx_metronome",
    version,
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) action: Option<Action>,

    /// Slices, wait mode and boost for a purpose: gaming, balanced, powersave, throughput, or auto
    /// (as the desktop's power profile)
    #[arg(long, value_name = "PROFILE", default_value = "gaming")]
    profile: Profile,

    /// Longest time slice, in µs [default: the profile's]
    #[arg(short = 's', long, value_name = "US", value_parser = slice_us())]
    slice_us: Option<u64>,

    /// Shortest time slice, in µs: slices shrink towards it as tasks wait [default: the profile's]
    #[arg(short = 'S', long, value_name = "US", value_parser = slice_us())]
    slice_us_min: Option<u64>,

    /// What the scheduler thread does when nothing is to do: spin, park, or adaptive (spin while
    /// enqueue records come quickly) [default: the profile's]
    #[arg(long, value_name = "MODE")]
    wait: Option<Wait>,

    /// How many fair shares of the machine a task may have while it sleeps regularly and runs
    /// before all others, 1 to 16 [default: the profile's]
    #[arg(long, value_name = "K", value_parser = boost())]
    boost: Option<u32>,

    /// CPU of the scheduler thread [default: an isolated CPU, else one without a tick, else an
    /// efficiency core, else the last]
    #[arg(long, value_name = "CPU")]
    cpu: Option<u32>,

    /// CPUs to prefer while they are idle, such as 0-7,16
    #[arg(short = 'm', long, value_name = "CPUS", value_parser = cpus)]
    primary_domain: Option<Cpus>,

    /// Schedule only the tasks that asked for it by sched_setscheduler(SCHED_EXT)
    #[arg(short = 'p', long)]
    partial: bool,

    /// Decide about every wake-up, also when a CPU is idle
    #[arg(long)]
    no_builtin_idle: bool,

    /// Which tasks get standing orders: all, urgent ones, or none. About others the policy is
    /// asked each time that no CPU is idle
    #[arg(long, value_name = "TASKS", default_value_t)]
    pub(crate) orders: Ordered,

    /// Share the machine among tasks by their nice levels alone, whatever the cpu.weight of their
    /// control groups
    #[arg(long)]
    flat: bool,

    /// Rings that carry tasks to user space: 1, 2, 4, 8 or 16 [default: one for each 16 CPUs]
    #[arg(long, value_name = "RINGS")]
    rings: Option<u32>,

    /// How late the scheduler thread may be before the kernel side goes on alone until it is back,
    /// in ms
    #[arg(long, value_name = "MS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    budget_ms: u64,

    /// Have the kernel throw the scheduler out when a runnable task has waited this long, in ms
    #[arg(long, value_name = "MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=30_000))]
    timeout_ms: u64,

    /// Bytes of the dump that the kernel makes when it throws the scheduler out (0 = 32768)
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=16_777_216))]
    exit_dump_len: u32,

    /// Have the kernel refuse this process all system calls but those that it needs
    #[arg(long)]
    pub(crate) seccomp: bool,

    /// Print a line of statistics every so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) stats: Option<Duration>,

    /// Watch the scheduler that runs: a view every so many seconds, lines if the output is no
    /// terminal
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with = "stats")]
    pub(crate) monitor: Option<Duration>,

    /// Say what each statistic is
    #[arg(long)]
    pub(crate) help_stats: bool,

    /// Print JSON: an object for each interval of --stats or --monitor, or for the whole of doctor
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// What to tell on stderr: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: log::LevelFilter,

    /// Show what libbpf and the kernel's verifier say
    #[arg(short = 'v', long)]
    verbose: bool,

    #[command(flatten)]
    libbpf: Libbpf,
}

/// What libbpf is told.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Libbpf options")]
struct Libbpf {
    /// How much the verifier writes down of each program, 0 to 7; -v shows it
    #[arg(long, value_name = "LEVEL", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=7))]
    kernel_log_level: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Say what of this machine is in the scheduler's way, and how to change it
    Doctor {
        /// Watch for a second, too, whether threads of sound programs run behind all others
        #[arg(long)]
        live: bool,
    },
    /// Change parameters of the scheduler that runs: slice-us, slice-us-min, wait, boost, profile
    Set {
        /// Such as slice-us=2000
        #[arg(required = true, value_name = "KEY=VALUE")]
        changes: Vec<Change>,
    },
    /// Write manual page and completions
    #[command(hide = true)]
    Generate { directory: PathBuf },
}

/// A list of CPUs.
#[derive(Clone, Debug)]
struct Cpus(Vec<u32>);

fn cpus(text: &str) -> Result<Cpus, String> {
    match parse_list(text) {
        Some(cpus) if !cpus.is_empty() => Ok(Cpus(cpus)),
        _ => Err("must be a list of CPUs, such as 0-7,16".to_owned()),
    }
}

fn slice_us() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(super::parameters::SLICE_US)
}

fn boost() -> clap::builder::RangedI64ValueParser<u32> {
    let range = super::parameters::BOOST;
    clap::value_parser!(u32).range(i64::from(*range.start())..=i64::from(*range.end()))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(interval) if (0.01..=86_400.0).contains(&seconds) => Ok(interval),
        _ => Err("must be between 0.01 and 86400".to_owned()),
    }
}

impl Options {
    pub(crate) fn log_level(&self) -> log::LevelFilter {
        match self.verbose {
            true => self.log_level.max(log::LevelFilter::Debug),
            false => self.log_level,
        }
    }

    /// What of it can be changed later.
    pub(crate) fn request(&self) -> Request {
        Request {
            profile: self.profile,
            slice_us: self.slice_us,
            slice_us_min: self.slice_us_min,
            wait: self.wait,
            boost: self.boost,
        }
    }

    /// What cannot.
    pub(crate) fn builder(&self) -> Builder {
        let mut builder = Builder::new()
            .partial(self.partial)
            .debug(self.verbose)
            .builtin_idle(!self.no_builtin_idle)
            .flat(self.flat)
            .exit_dump_len(self.exit_dump_len)
            .kernel_log_level(self.libbpf.kernel_log_level)
            .timeout(Duration::from_millis(self.timeout_ms))
            .budget(Duration::from_millis(self.budget_ms));
        if let Some(cpu) = self.cpu {
            builder = builder.cpu(cpu);
        }
        if let Some(rings) = self.rings {
            builder = builder.rings(rings);
        }
        if let Some(Cpus(cpus)) = &self.primary_domain {
            builder = builder.prefer(cpus);
        }
        builder
    }
}
