//! One thread that works for a frame, and sleeps for a millisecond at a time until the next is due.
//!
//! Its bursts are short in the mean, and long when it counts. A frame that is late leaves no time to
//! sleep at all: until it has caught up the thread looks like batch work.

use super::{Game, thread};
use crate::clock::{MS, SECOND, now, sleep_until};
use crate::frames::Frames;
use crate::pace::Pace;
use crate::plan::Plan;
use crate::work::{Rate, spin};
use anyhow::Result;
use std::sync::Arc;

/// ms.
const FRAME: f64 = 12.0;
/// Each so many frames one takes thrice as long, as when a level is begun.
const LONG: u64 = 40;

pub(super) fn start(plan: &Arc<Plan>, rate: Rate, hz: u32) -> Result<Game> {
    let (plan, mut frames) = (Arc::clone(plan), Frames::new()?);
    let mut pace = Pace::new(plan.epoch, SECOND.div_ceil(u64::from(hz.max(1))));
    let work = rate.iterations(FRAME);
    let frames = thread("game".to_owned(), move || {
        let mut nr = 0;
        while !plan.is_over(pace.due()) {
            let due = pace.due();
            while now() < due {
                sleep_until(now() + MS);
            }
            nr += 1;
            spin(if nr % LONG == 0 { 3 * work } else { work });
            let end = now();
            let completion = pace.complete(end);
            frames.note(&plan, &pace, due, end, completion);
        }
        frames
    })?;
    Ok(Game {
        frames,
        others: Vec::new(),
    })
}
