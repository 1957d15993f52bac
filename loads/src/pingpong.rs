//! Ping-pong pairs: two processes that pass one byte to and fro through two pipes, and do nothing
//! else.
//!
//! They are the load that a scheduler's own cost per wake-up shows on.

use crate::board::Counter;
use crate::clock::sleep_until;
use crate::process::Children;
use anyhow::{Context, Result};
use std::io::{self, PipeReader, PipeWriter, Read, Write, pipe};

/// Forks one pair per counter; they start at `epoch` and count round trips.
///
/// # Errors
/// A pipe or a process could not be made.
pub fn fork(children: &mut Children, counters: &[Counter], epoch: u64) -> Result<()> {
    for (index, counter) in counters.iter().enumerate() {
        let (from_ping, to_pong) = pipe().context("cannot make a pipe")?;
        let (from_pong, to_ping) = pipe().context("cannot make a pipe")?;
        children.fork(format!("ping-{index}"), || {
            sleep_until(epoch);
            while serve(&to_pong).and_then(|()| receive(&from_pong)).is_ok() {
                counter.increment();
            }
        })?;
        children.fork(format!("pong-{index}"), || {
            while receive(&from_ping).and_then(|()| serve(&to_ping)).is_ok() {}
        })?;
    }
    Ok(())
}

fn serve(mut to: &PipeWriter) -> io::Result<()> {
    to.write_all(&[0])
}

fn receive(mut from: &PipeReader) -> io::Result<()> {
    from.read_exact(&mut [0])
}
