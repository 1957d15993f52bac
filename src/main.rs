//! `scx_metronome`: the scheduler for gaming desktops.

use std::io::Write;
use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use scx_metronome::memory::{self, CountingAllocator};
use scx_metronome::policy::deadline::Deadline;
use scx_metronome::wait::Wait;
use scx_metronome::{Builder, UserExitInfo, Watch};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// A CPU scheduler for desktops that must not stutter: the order of tasks is decided in user space, on a CPU of its own.
#[derive(Debug, Parser)]
#[command(name = "scx_metronome", version)]
struct Options {
    /// Longest time slice, in µs
    #[arg(short = 's', long, value_name = "US", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    slice_us: u64,

    /// Shortest time slice, in µs: slices shrink towards it as tasks wait
    #[arg(short = 'S', long, value_name = "US", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    slice_us_min: u64,

    /// CPU of the scheduler thread [default: an isolated CPU, else an efficiency core, else the last]
    #[arg(long, value_name = "CPU")]
    cpu: Option<u32>,

    /// Schedule only the tasks that asked for it by sched_setscheduler(SCHED_EXT)
    #[arg(short = 'p', long)]
    partial: bool,

    /// Decide about every wake-up, also when a CPU is idle
    #[arg(long)]
    no_builtin_idle: bool,

    /// Rings that carry tasks to user space: 1, 2, 4, 8 or 16 [default: one for each 16 CPUs]
    #[arg(long, value_name = "RINGS")]
    rings: Option<u32>,

    /// What the scheduler thread does when nothing is to do: spin, park, or adaptive (spin while all CPUs are busy)
    #[arg(long, value_name = "MODE", default_value = "adaptive")]
    wait: Wait,

    /// How late the scheduler thread may be before the kernel side goes on alone until it is back, in ms
    #[arg(long, value_name = "MS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    budget_ms: u64,

    /// Have the kernel throw the scheduler out when a runnable task has waited this long, in ms
    #[arg(long, value_name = "MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=30_000))]
    timeout_ms: u64,

    /// Bytes of the dump that the kernel makes when it throws the scheduler out (0 = 32768)
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=16_777_216))]
    exit_dump_len: u32,

    /// Print a line of statistics every so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    stats: Option<Duration>,

    /// Show what libbpf and the kernel's verifier say
    #[arg(short = 'v', long)]
    verbose: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(interval) if (0.01..=86_400.0).contains(&seconds) => Ok(interval),
        _ => Err("must be between 0.01 and 86400".to_owned()),
    }
}

impl Options {
    fn builder(&self) -> Builder {
        let mut builder = Builder::new()
            .partial(self.partial)
            .wait(self.wait)
            .debug(self.verbose)
            .builtin_idle(!self.no_builtin_idle)
            .exit_dump_len(self.exit_dump_len)
            .slice(Duration::from_micros(self.slice_us))
            .timeout(Duration::from_millis(self.timeout_ms))
            .budget(Duration::from_millis(self.budget_ms));
        if let Some(cpu) = self.cpu {
            builder = builder.cpu(cpu);
        }
        if let Some(rings) = self.rings {
            builder = builder.rings(rings);
        }
        builder
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut policy = memory::zeroed::<Deadline>();
    policy.set_slices(
        options.slice_us * 1000,
        options.slice_us_min.min(options.slice_us) * 1000,
    );
    loop {
        match run(&options, &mut policy) {
            Ok(info) if info.should_restart() => eprintln!("restarting: {info}"),
            Ok(_) => return ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("scx_metronome: {error:#}");
                if let Some(info) = error.downcast_ref::<UserExitInfo>() {
                    eprintln!("{}", info.dump);
                }
                return ExitCode::FAILURE;
            }
        }
    }
}

/// From attaching to detaching.
fn run(options: &Options, policy: &mut Deadline) -> Result<UserExitInfo> {
    let mut object = MaybeUninit::uninit();
    let mut scheduler = options.builder().attach(&mut object)?;
    if let Some(warning) = &scheduler.topology().warning {
        eprintln!("scx_metronome: {warning}");
    }
    eprintln!(
        "scx_metronome {}: scheduling, its own thread on {}",
        env!("CARGO_PKG_VERSION"),
        scheduler.agent_cpu()
    );

    let watch = scheduler.watch();
    let (stop, stopped) = mpsc::channel::<()>();
    let info = thread::scope(|scope| {
        if let Some(interval) = options.stats {
            scope.spawn(move || print_stats(&watch, interval, &stopped));
        }
        let info = scheduler.run(policy);
        drop(stop);
        info
    });
    eprintln!("{}", scheduler.books());
    if let Ok(info) = &info {
        eprintln!("EXIT: {info}");
    }
    info
}

/// A line each `interval`, until the other end of `stopped` is dropped.
fn print_stats(watch: &Watch, interval: Duration, stopped: &mpsc::Receiver<()>) {
    watch.leave_scheduler_cpu();
    let mut earlier = watch.snapshot();
    while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        let now = watch.snapshot();
        // Who closes our output does not want to read it: no reason to stop scheduling.
        let _ = writeln!(std::io::stdout(), "{}", now.since(&earlier));
        earlier = now;
    }
}
