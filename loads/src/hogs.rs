//! CPU hogs: processes that never sleep and count what they have done.

use crate::board::Counter;
use crate::clock::sleep_until;
use crate::process::Children;
use crate::work::spin;
use anyhow::Result;

/// Iterations of the work loop in one unit, the same on every machine: units of two runs compare
/// even if their calibrations do not.
pub const UNIT: u64 = 10_000;

/// Forks one hog per counter; they start at `epoch`.
///
/// # Errors
/// A process could not be forked.
pub fn fork(children: &mut Children, counters: &[Counter], epoch: u64) -> Result<()> {
    for (index, counter) in counters.iter().enumerate() {
        children.fork(format!("hog-{index}"), || {
            sleep_until(epoch);
            loop {
                spin(UNIT);
                counter.increment();
            }
        })?;
    }
    Ok(())
}
