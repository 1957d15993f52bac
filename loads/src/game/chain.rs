//! Twelve threads, of which each works, asks a server, and wakes the next; the last one completes
//! the frame.
//!
//! So it is on the way from input through a game, its renderer and the window system to the
//! compositor. A frame uses 36 wake-ups that follow one another, and nearly 12 of its 16.7 ms: a
//! delay of 0.15 ms for each is too much.

use super::{Game, thread};
use crate::clock::{SECOND, now, sleep_until};
use crate::frames::Frames;
use crate::pace::Pace;
use crate::plan::Plan;
use crate::semaphore::Semaphore;
use crate::work::{Rate, spin};
use anyhow::{Context, Result};
use std::io::{self, PipeReader, PipeWriter, Read, Write, pipe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};

/// What each thread does for a frame, in ms.
const STAGES: [f64; 12] = [0.5, 2.0, 1.0, 0.5, 1.5, 1.0, 0.5, 1.0, 0.5, 1.0, 0.5, 1.0];
/// And the server for each question.
const ANSWER: f64 = 0.05;

/// What wakes a thread: every second is woken through a semaphore, the others through a channel,
/// whose futexes the standard library makes.
enum Bell {
    Semaphore(Arc<Semaphore>),
    Channel(mpsc::SyncSender<()>),
}

/// Where a thread waits for it.
enum Door {
    Semaphore(Arc<Semaphore>),
    Channel(mpsc::Receiver<()>),
}

impl Bell {
    fn new(index: usize) -> io::Result<(Self, Door)> {
        if index.is_multiple_of(2) {
            let semaphore = Arc::new(Semaphore::new()?);
            return Ok((
                Self::Semaphore(Arc::clone(&semaphore)),
                Door::Semaphore(semaphore),
            ));
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        Ok((Self::Channel(sender), Door::Channel(receiver)))
    }

    fn ring(&self) {
        match self {
            Self::Semaphore(semaphore) => semaphore.post(),
            // The other end hangs up only at the end of the run.
            Self::Channel(sender) => drop(sender.send(())),
        }
    }
}

impl Door {
    fn wait(&self) {
        match self {
            Self::Semaphore(semaphore) => semaphore.wait(),
            Self::Channel(receiver) => drop(receiver.recv()),
        }
    }
}

/// A thread's line to the server.
struct Line {
    number: u8,
    question: PipeWriter,
    answer: PipeReader,
}

impl Line {
    fn ask(&mut self) -> io::Result<()> {
        self.question.write_all(&[self.number])?;
        self.answer.read_exact(&mut [0])
    }
}

/// A line for each stage, and what the server does.
fn connect(iterations: u64) -> io::Result<(Vec<Line>, impl FnOnce() + Send + 'static)> {
    let (questions, question) = pipe()?;
    let (mut lines, mut answers) = (Vec::new(), Vec::new());
    for number in 0..STAGES.len() as u8 {
        let (answer, to_answer) = pipe()?;
        let question = question.try_clone()?;
        answers.push(to_answer);
        lines.push(Line {
            number,
            question,
            answer,
        });
    }
    Ok((lines, move || serve(questions, answers, iterations)))
}

/// Answers until all that may ask have gone.
fn serve(mut questions: PipeReader, mut answers: Vec<PipeWriter>, iterations: u64) {
    let mut number = [0];
    while questions.read_exact(&mut number).is_ok() {
        spin(iterations);
        let answer = answers.get_mut(usize::from(number[0]));
        if answer.is_none_or(|answer| answer.write_all(&[0]).is_err()) {
            return;
        }
    }
}

/// What the threads of the chain share.
#[derive(Default)]
struct Shared {
    /// When the last one that worked was done.
    reached: AtomicU64,
    over: AtomicBool,
}

/// A thread of the chain.
struct Stage {
    shared: Arc<Shared>,
    line: Line,
    iterations: u64,
    next: Bell,
}

impl Stage {
    fn work(&mut self) {
        spin(self.iterations);
        // The server ends after all who may ask.
        let _ = self.line.ask();
        // ORDERING: the bell publishes it to whom it wakes.
        self.shared.reached.store(now(), Relaxed);
        self.next.ring();
    }

    /// Works each time that it is woken, until the run is over.
    fn follow(mut self, door: &Door) {
        loop {
            door.wait();
            // ORDERING: the bell that has been heard published it.
            if self.shared.over.load(Relaxed) {
                return self.next.ring();
            }
            self.work();
        }
    }

    /// Begins each frame when it is due.
    fn lead(mut self, plan: &Plan, mut pace: Pace, mut frames: Frames, last: &Door) -> Frames {
        while !plan.is_over(pace.due()) {
            let due = pace.due();
            sleep_until(due);
            self.work();
            last.wait();
            let end = self.shared.reached.load(Relaxed);
            let completion = pace.complete(end);
            frames.note(plan, &pace, due, end, completion);
        }
        self.shared.over.store(true, Relaxed);
        self.next.ring();
        last.wait();
        frames
    }
}

pub(super) fn start(plan: &Arc<Plan>, rate: Rate, hz: u32) -> Result<Game> {
    let (lines, server) = connect(rate.iterations(ANSWER))?;
    let mut others = vec![thread("server".to_owned(), server)?];
    let shared = Arc::new(Shared::default());
    let mut stages = lines.into_iter().zip(STAGES).map(|(line, ms)| {
        let (shared, iterations) = (Arc::clone(&shared), rate.iterations(ms));
        move |next| Stage {
            shared,
            line,
            iterations,
            next,
        }
    });
    let leader = stages.next().context("a chain has a first stage")?;
    let (first, mut door) = Bell::new(0)?;
    for (index, stage) in stages.enumerate() {
        let (next, its_door) = Bell::new(index + 1)?;
        let stage = stage(next);
        others.push(thread(format!("stage-{}", index + 1), move || {
            stage.follow(&door);
        })?);
        door = its_door;
    }
    let (leader, plan, frames) = (leader(first), Arc::clone(plan), Frames::new()?);
    let pace = Pace::new(plan.epoch, SECOND.div_ceil(u64::from(hz.max(1))));
    let lead = move || leader.lead(&plan, pace, frames, &door);
    let frames = thread("input".to_owned(), lead)?;
    Ok(Game { frames, others })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MS;

    #[test]
    fn each_frame_goes_through_all_stages() -> Result<()> {
        let rate = Rate {
            iterations_per_ms: 1000,
            scale: 0.01,
        };
        let plan = Arc::new(Plan::new(now() + 10 * MS, 0, 200 * MS));
        let frames = start(&plan, rate, 20)?.finish()?;
        assert_eq!(frames.done + frames.skipped, 4);
        Ok(())
    }
}
