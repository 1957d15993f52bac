//! A thread that renders without ever sleeping, one that it wakes to present each frame, and a
//! simulation at its own pace.
//!
//! A frame takes 5.5 ms of CPU time, and is complete when it is presented. None is missed, for none
//! is due: what counts is how many there are, and how long each takes.

use super::{Game, thread};
use crate::clock::{SECOND, now, sleep_until};
use crate::frames::Frames;
use crate::pace::Pace;
use crate::plan::Plan;
use crate::work::{Rate, spin};
use anyhow::Result;
use std::sync::{Arc, mpsc};

/// ms.
const RENDER: f64 = 5.0;
const PRESENT: f64 = 0.5;
const SIMULATE: f64 = 2.0;

/// So many frames may wait to be presented; then the thread that renders waits, too.
const AHEAD: usize = 2;

pub(super) fn start(plan: &Arc<Plan>, rate: Rate, hz: u32) -> Result<Game> {
    let (rendered, frames) = mpsc::sync_channel(AHEAD);
    let [render, present, simulate] = [RENDER, PRESENT, SIMULATE].map(|ms| rate.iterations(ms));
    let mut others = Vec::new();

    let presents = Arc::clone(plan);
    let shown = Frames::new()?;
    let presenter = thread("present".to_owned(), move || {
        show(&presents, &frames, shown, present)
    })?;

    let renders = Arc::clone(plan);
    others.push(thread("render".to_owned(), move || {
        sleep_until(renders.epoch);
        let mut begin = now();
        while !renders.is_over(begin) {
            spin(render);
            if rendered.send(begin).is_err() {
                return;
            }
            begin = now();
        }
    })?);

    let simulates = Arc::clone(plan);
    let mut pace = Pace::new(plan.epoch, SECOND.div_ceil(u64::from(hz.max(1))));
    others.push(thread("simulate".to_owned(), move || {
        while !simulates.is_over(pace.due()) {
            sleep_until(pace.due());
            spin(simulate);
            pace.complete(now());
        }
    })?);
    Ok(Game {
        frames: presenter,
        others,
    })
}

/// Presents each frame, named by when it was begun, until there are no more.
fn show(
    plan: &Plan,
    rendered: &mpsc::Receiver<u64>,
    mut frames: Frames,
    iterations: u64,
) -> Frames {
    for begin in rendered {
        spin(iterations);
        frames.show(plan, begin, now());
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MS;

    #[test]
    fn frames_follow_one_another_without_a_pause() -> Result<()> {
        let rate = Rate {
            iterations_per_ms: 1_000,
            scale: 1.0,
        };
        let plan = Arc::new(Plan::new(now() + 10 * MS, 0, 50 * MS));
        let frames = start(&plan, rate, 60)?.finish()?;
        // 60 Hz would be three.
        assert!(frames.done > 10, "{}", frames.done);
        assert_eq!(frames.missed, 0);
        Ok(())
    }
}
