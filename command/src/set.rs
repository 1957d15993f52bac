//! `scx_metronome set`: parameters of the scheduler that runs.

use std::io;

use anyhow::{Error, Result, anyhow};
use scx_stats::StatsClient;

use super::output;
use super::parameters::Change;
use super::serve::SOCKET;

/// Prints what is in force from then on.
pub(crate) fn set(changes: &[Change]) -> Result<()> {
    let mut args = vec![("target".to_owned(), "set".to_owned())];
    args.extend(changes.iter().map(Change::pair));
    let now: String = connect()?.request("stats", args).map_err(|error| {
        let said = error.root_cause().to_string();
        anyhow!(
            "the scheduler that runs refuses: {}",
            said.trim_matches('"')
        )
    })?;
    output::line(now);
    Ok(())
}

/// To the scheduler that runs.
pub(crate) fn connect() -> Result<StatsClient> {
    StatsClient::new()
        .set_path(SOCKET)
        .connect(Some(5_000))
        .map_err(explain)
}

fn explain(error: Error) -> Error {
    match error.downcast_ref().map(io::Error::kind) {
        Some(io::ErrorKind::PermissionDenied) => {
            anyhow!("talking to the scheduler needs root: run it with sudo")
        }
        Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            anyhow!("no scx_metronome runs here: start it first")
        }
        _ => error.context(format!("cannot talk to the scheduler at {SOCKET}")),
    }
}
