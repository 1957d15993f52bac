//! A main thread that, at each frame start, works, releases two workers, works beside them, waits
//! for both and works again.
//!
//! A frame uses three wake-ups that follow one another (the timer's, the workers', the last
//! worker's), so it notices a scheduler that is slow anywhere.

use super::{Game, thread};
use crate::clock::{SECOND, now, sleep_until};
use crate::frames::Frames;
use crate::pace::Pace;
use crate::plan::Plan;
use crate::semaphore::Semaphore;
use crate::work::{Rate, spin};
use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// What is done for a frame, in ms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    /// By the main thread before the workers are released.
    simulate: f64,
    /// By the main thread while they work.
    beside: f64,
    /// By each worker.
    render: f64,
    /// By the main thread after both are done.
    present: f64,
}

const fn frame(simulate: f64, beside: f64, render: f64, present: f64) -> Frame {
    Frame {
        simulate,
        beside,
        render,
        present,
    }
}

/// On an idle machine a frame is complete about 5.5 ms after its start.
pub(super) const LIGHT: Frame = frame(2.0, 0.0, 2.5, 1.0);
/// 12 ms.
pub(super) const HEAVY: Frame = frame(4.0, 5.0, 5.0, 3.0);
/// 4 ms.
pub(super) const FAST: Frame = frame(2.0, 0.0, 1.0, 1.0);
/// 20 ms.
pub(super) const SLOW: Frame = frame(8.0, 6.0, 6.0, 6.0);

const WORKERS: usize = 2;

/// What the main thread and its workers share.
struct Stage {
    release: [Semaphore; WORKERS],
    done: Semaphore,
    over: AtomicBool,
}

pub(super) fn start(frame: Frame, plan: &Arc<Plan>, rate: Rate, hz: u32) -> Result<Game> {
    let stage = Arc::new(Stage {
        release: [Semaphore::new()?, Semaphore::new()?],
        done: Semaphore::new()?,
        over: AtomicBool::new(false),
    });
    let render = rate.iterations(frame.render);
    let mut others = Vec::with_capacity(WORKERS);
    for index in 0..WORKERS {
        let stage = Arc::clone(&stage);
        let worker = move || work(&stage, &stage.release[index], render);
        others.push(thread(format!("worker-{index}"), worker)?);
    }
    let (plan, frames) = (Arc::clone(plan), Frames::new()?);
    // Rounded up, so that a second never begins one frame more than `hz`.
    let pace = Pace::new(plan.epoch, SECOND.div_ceil(u64::from(hz.max(1))));
    let main = move || play(&plan, &stage, pace, frames, frame, rate);
    let frames = thread("game".to_owned(), main)?;
    Ok(Game { frames, others })
}

fn play(
    plan: &Plan,
    stage: &Stage,
    mut pace: Pace,
    mut frames: Frames,
    frame: Frame,
    rate: Rate,
) -> Frames {
    let [simulate, beside, present] =
        [frame.simulate, frame.beside, frame.present].map(|ms| rate.iterations(ms));
    while !plan.is_over(pace.due()) {
        let due = pace.due();
        sleep_until(due);
        spin(simulate);
        stage.release.iter().for_each(Semaphore::post);
        spin(beside);
        stage.release.iter().for_each(|_| stage.done.wait());
        spin(present);
        let end = now();
        let completion = pace.complete(end);
        frames.note(plan, &pace, due, end, completion);
    }
    // ORDERING: the post that follows publishes it to the worker that waits.
    stage.over.store(true, Relaxed);
    stage.release.iter().for_each(Semaphore::post);
    frames
}

fn work(stage: &Stage, release: &Semaphore, iterations: u64) {
    loop {
        release.wait();
        if stage.over.load(Relaxed) {
            return;
        }
        spin(iterations);
        stage.done.post();
    }
}
