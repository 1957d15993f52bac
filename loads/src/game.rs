//! The game: a main thread that, at each frame start, works, releases two workers, waits for both
//! and works again.
//!
//! On an idle machine a frame is complete about 5.5 ms after its start. It uses three wake-ups that
//! follow one another (the timer's, the workers', the last worker's), so it notices a scheduler
//! that is slow anywhere.

use crate::clock::{SECOND, now, sleep_until};
use crate::latency::Latency;
use crate::pace::{Completion, Pace};
use crate::plan::Plan;
use crate::semaphore::Semaphore;
use crate::work::{Rate, spin};
use anyhow::{Result, anyhow};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{Builder, JoinHandle};

/// Before the workers are released, in ms.
const SIMULATE: f64 = 2.0;
/// Each worker, in ms.
const RENDER: f64 = 2.5;
/// After both workers are done, in ms.
const PRESENT: f64 = 1.0;
const WORKERS: usize = 2;

/// What the game's frames came to.
#[derive(Debug)]
pub struct Frames {
    /// From each frame's due time to its completion.
    pub completion: Latency,
    /// From one completion to the next: what a viewer sees.
    pub interval: Latency,
    /// Frames completed, late ones included.
    pub done: u64,
    /// Frames completed after the next one's due time, and those skipped.
    pub missed: u64,
    /// Frames never started because their time went by in whole.
    pub skipped: u64,
    last: Option<u64>,
}

impl Frames {
    /// No frames yet.
    ///
    /// # Errors
    /// As [`Latency::new`].
    pub fn new() -> Result<Self> {
        let (completion, interval) = (Latency::new()?, Latency::new()?);
        Ok(Self {
            completion,
            interval,
            done: 0,
            missed: 0,
            skipped: 0,
            last: None,
        })
    }

    /// The frame due at `due` was complete at `end`, which `pace` judged to be `completion`.
    fn note(&mut self, plan: &Plan, pace: &Pace, due: u64, end: u64, completion: Completion) {
        let before = self.last.replace(end);
        if plan.records(due) {
            self.completion.record(end - due);
            if let Some(before) = before {
                self.interval.record(end - before);
            }
            self.done += 1;
            self.missed += u64::from(completion.missed);
        }
        let skipped = completion
            .skipped
            .filter(|&k| plan.records(pace.due_of(k)))
            .count() as u64;
        self.skipped += skipped;
        self.missed += skipped;
        plan.frames.store(self.done, Relaxed);
        plan.missed.store(self.missed, Relaxed);
    }
}

/// What the main thread and its workers share.
struct Stage {
    release: [Semaphore; WORKERS],
    done: Semaphore,
    over: AtomicBool,
}

/// The game's threads.
pub struct Game {
    main: JoinHandle<Frames>,
    workers: Vec<JoinHandle<()>>,
}

/// Starts the game at `hz` frames a second.
///
/// # Errors
/// A thread could not be started.
pub fn start(plan: &Arc<Plan>, rate: Rate, hz: u32) -> Result<Game> {
    let stage = Arc::new(Stage {
        release: [Semaphore::new()?, Semaphore::new()?],
        done: Semaphore::new()?,
        over: AtomicBool::new(false),
    });
    let render = rate.iterations(RENDER);
    let mut workers = Vec::with_capacity(WORKERS);
    for index in 0..WORKERS {
        let stage = Arc::clone(&stage);
        let thread = Builder::new().name(format!("worker-{index}"));
        workers.push(thread.spawn(move || work(&stage, &stage.release[index], render))?);
    }
    let (plan, frames) = (Arc::clone(plan), Frames::new()?);
    // Rounded up, so that a second never begins one frame more than `hz`.
    let pace = Pace::new(plan.epoch, SECOND.div_ceil(u64::from(hz.max(1))));
    let thread = Builder::new().name("game".to_owned());
    let main = thread.spawn(move || play(&plan, &stage, pace, frames, rate))?;
    Ok(Game { main, workers })
}

impl Game {
    /// Waits for the end of the run.
    ///
    /// # Errors
    /// A thread panicked.
    pub fn finish(self) -> Result<Frames> {
        let frames = self
            .main
            .join()
            .map_err(|_| anyhow!("the game's main thread panicked"))?;
        for worker in self.workers {
            worker
                .join()
                .map_err(|_| anyhow!("a worker of the game panicked"))?;
        }
        Ok(frames)
    }
}

fn play(plan: &Plan, stage: &Stage, mut pace: Pace, mut frames: Frames, rate: Rate) -> Frames {
    let (simulate, present) = (rate.iterations(SIMULATE), rate.iterations(PRESENT));
    while !plan.is_over(pace.due()) {
        let due = pace.due();
        sleep_until(due);
        spin(simulate);
        stage.release.iter().for_each(Semaphore::post);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// 10 frames of 10 ns from 100; the first two are warm-up. Each completes `lateness` after its
    /// due time.
    fn frames(lateness: impl Fn(u64) -> u64) -> Result<Frames> {
        let plan = Plan::new(100, 20, 80);
        let (mut pace, mut frames) = (Pace::new(100, 10), Frames::new()?);
        while !plan.is_over(pace.due()) {
            let due = pace.due();
            let end = due + lateness((due - 100) / 10);
            let completion = pace.complete(end);
            frames.note(&plan, &pace, due, end, completion);
        }
        Ok(frames)
    }

    #[test]
    fn all_in_time() -> Result<()> {
        let frames = frames(|_| 6)?;
        assert_eq!((frames.done, frames.missed, frames.skipped), (8, 0, 0));
        Ok(())
    }

    #[test]
    fn late_and_skipped_frames_are_missed() -> Result<()> {
        // Frame 4 completes within period 7: it is late, 5 and 6 are skipped, 7 starts late but is
        // in time.
        let frames = frames(|k| if k == 4 { 31 } else { 6 })?;
        assert_eq!((frames.done, frames.missed, frames.skipped), (6, 3, 2));
        Ok(())
    }

    #[test]
    fn warm_up_is_not_counted() -> Result<()> {
        // Frame 0 completes within period 4: 1 is skipped in the warm-up, 2 and 3 in the recorded
        // part.
        let frames = frames(|k| if k == 0 { 41 } else { 6 })?;
        assert_eq!((frames.done, frames.missed, frames.skipped), (6, 2, 2));
        Ok(())
    }

    #[test]
    fn frames_skipped_beyond_the_end_are_not_counted() -> Result<()> {
        let frames = frames(|k| if k == 8 { 1000 } else { 6 })?;
        assert_eq!((frames.done, frames.missed, frames.skipped), (7, 2, 1));
        Ok(())
    }
}
