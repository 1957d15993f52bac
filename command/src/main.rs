//! `scx_metronome`: the scheduler for gaming desktops.
//!
//! Without another word on the command line it is the scheduler ([`run`]). The scheduler thread
//! only schedules: statistics, changes of parameters and the power profile are the work of other
//! threads ([`serve`]), from which it takes one word of memory ([`parameters`]). All else is
//! another process, which talks to those threads through a socket: [`monitor`] shows,
//! [`set`] changes. [`doctor`] looks at the machine and loads nothing.

use std::process::ExitCode;

use clap::Parser;
use scx_metronome_core::UserExitInfo;
use scx_metronome_core::memory::CountingAllocator;

use cli::{Action, Options};

mod chains;
mod cli;
mod doctor;
mod generate;
mod limited;
mod monitor;
mod output;
mod parameters;
mod power;
mod privileges;
mod run;
mod seccomp;
mod serve;
mod set;
mod stats;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    let options = Options::parse();
    output::log_to_stderr(options.log_level());
    match act(&options) {
        Ok(status) => status,
        Err(error) => {
            // The reason comes last, where people look for it: at the end of a terminal, in
            // `systemctl status`.
            if let Some(info) = error.downcast_ref::<UserExitInfo>() {
                eprintln!("{}", info.dump);
            }
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(options: &Options) -> anyhow::Result<ExitCode> {
    match &options.action {
        Some(Action::Doctor { live }) => return Ok(doctor::examine(*live, options.json)),
        Some(Action::Set { changes }) => set::set(changes)?,
        Some(Action::Generate { directory }) => generate::generate(directory)?,
        None if options.help_stats => stats::describe()?,
        None => match options.monitor {
            Some(interval) => monitor::monitor(interval, options.json)?,
            None => run::run(options)?,
        },
    }
    Ok(ExitCode::SUCCESS)
}
