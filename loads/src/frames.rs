//! What becomes of a game's frames.

use crate::latency::Latency;
use crate::pace::{Completion, Pace};
use crate::plan::Plan;
use anyhow::Result;
use std::sync::atomic::Ordering::Relaxed;

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
    /// When each frame was due or begun and when it was complete, ns since the game's start,
    /// warm-up included: the first [`LISTED`].
    pub each: Vec<(u64, u64)>,
    last: Option<u64>,
}

/// So many frames are listed: a minute of 144 Hz.
const LISTED: usize = 8_640;

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
            each: Vec::with_capacity(LISTED),
            last: None,
        })
    }

    /// The frame due at `due` was complete at `end`, which `pace` judged to be `completion`.
    pub(crate) fn note(
        &mut self,
        plan: &Plan,
        pace: &Pace,
        due: u64,
        end: u64,
        completion: Completion,
    ) {
        if plan.records(due) {
            self.missed += u64::from(completion.missed);
        }
        let skipped = completion.skipped;
        let skipped = skipped.filter(|&k| plan.records(pace.due_of(k))).count() as u64;
        self.skipped += skipped;
        self.missed += skipped;
        plan.missed.store(self.missed, Relaxed);
        self.show(plan, due, end);
    }

    /// The frame begun at `begin` was complete at `end`, and none is due.
    pub(crate) fn show(&mut self, plan: &Plan, begin: u64, end: u64) {
        let before = self.last.replace(end);
        // Not beyond the capacity: nothing is allocated while it plays.
        if self.each.len() < LISTED {
            let since = |at: u64| at.saturating_sub(plan.epoch);
            self.each.push((since(begin), since(end)));
        }
        if plan.records(begin) {
            self.completion.record(end - begin);
            if let Some(before) = before {
                self.interval.record(end - before);
            }
            self.done += 1;
        }
        plan.frames.store(self.done, Relaxed);
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
        assert_eq!(frames.each[..2], [(0, 41), (40, 46)]);
        Ok(())
    }

    #[test]
    fn frames_skipped_beyond_the_end_are_not_counted() -> Result<()> {
        let frames = frames(|k| if k == 8 { 1000 } else { 6 })?;
        assert_eq!((frames.done, frames.missed, frames.skipped), (7, 2, 1));
        Ok(())
    }
}
