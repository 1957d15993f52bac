//! The scheduler itself.

use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use scx_metronome_core::memory;
use scx_metronome_core::policy::deadline::Deadline;
use scx_metronome_core::{BpfScheduler, Tuning, UserExitInfo};

use super::chains::Slot;
use super::cli::Options;
use super::limited::limited_groups;
use super::parameters::{News, Parameters, Shared};
use super::serve::Helper;
use super::{power, privileges, seccomp, serve};

/// Schedules until a signal asks for the end; through restarts, which the kernel asks for when a
/// CPU comes or goes.
pub(crate) fn run(options: &Options) -> Result<()> {
    serve::keep_small();
    privileges::give_up_others()?;
    if options.seccomp {
        seccomp::confine()?;
    }
    let parameters = Arc::new(Shared::new(options.request(), power::profile));
    let chains = Arc::default();
    let mut policy = memory::zeroed::<Deadline>();
    policy.set_ordered(options.orders);
    loop {
        let info = attach(options, &parameters, &chains, &mut policy)?;
        if !info.should_restart() {
            return Ok(());
        }
        log::info!("restarting: {info}");
    }
}

/// From attaching to detaching.
fn attach(
    options: &Options,
    parameters: &Arc<Shared>,
    chains: &Arc<Slot>,
    policy: &mut Deadline,
) -> Result<UserExitInfo> {
    let mut object = MaybeUninit::uninit();
    let (mut news, first) = News::new(parameters);
    let mut scheduler = options
        .builder()
        .slice(Duration::from_micros(first.slice_us))
        .slice_min(Duration::from_micros(first.slice_us_min))
        .wait(first.wait)
        .attach(&mut object)?;
    set(policy, &first);
    greet(&scheduler, &first);

    let helper = Helper {
        watch: scheduler.watch(),
        parameters: Arc::clone(parameters),
        chains: Arc::clone(chains),
        stats: options.stats,
        json: options.json,
    };
    let (stop, stopped) = mpsc::channel();
    let info = thread::scope(|scope| {
        thread::Builder::new()
            .name("metronome_help".into())
            .spawn_scoped(scope, || helper.run(stopped))
            .context("cannot start a thread")?;
        scheduler.run_until(policy, |scheduler, policy| {
            chains.answer(policy);
            if let Some(parameters) = news.get() {
                set(policy, &parameters);
                scheduler.tune(Tuning {
                    wait: parameters.wait,
                    slice: Duration::from_micros(parameters.slice_us),
                    slice_min: Duration::from_micros(parameters.slice_us_min),
                });
            }
            false
        });
        let info = scheduler.shutdown_and_report();
        drop(stop);
        info
    });
    if options.stats.is_some() {
        log::info!("{}", scheduler.watch().latency());
    }
    log::info!("{}", scheduler.accounting());
    if let Ok(info) = &info {
        log::info!("EXIT: {info}");
    }
    info
}

fn set(policy: &mut Deadline, parameters: &Parameters) {
    policy.set_slices(parameters.slice_us * 1000, parameters.slice_us_min * 1000);
    policy.set_boost(parameters.boost);
}

fn greet(scheduler: &BpfScheduler<'_>, parameters: &Parameters) {
    if let Some(warning) = &scheduler.topology().warning {
        log::warn!("{warning}");
    }
    if let Some(group) = limited_groups(Path::new("/")).first() {
        log::warn!("cpu.max is not kept, of {group} for one: `scx_metronome doctor` has the rest");
    }
    log::info!(
        "scx_metronome {}: scheduling, its own thread on {}",
        env!("CARGO_PKG_VERSION"),
        scheduler.agent_cpu()
    );
    log::debug!("{parameters}");
}
