//! Games: what their threads do for each frame, and who waits for whom.

mod chain;
mod paced;
mod polled;
mod uncapped;

use crate::frames::Frames;
use crate::plan::Plan;
use crate::work::Rate;
use anyhow::{Result, anyhow};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// The games. Each is a shape that a scheduler may serve badly though it serves the others well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Kind {
    /// 60 Hz, short bursts: 2 ms, two workers of 2.5 ms, 1 ms
    #[default]
    Light,
    /// 60 Hz, a main thread of 12 ms, and two workers of 5 ms beside it: most of a CPU in one
    /// thread, which few schedulers tell from batch work
    Heavy,
    /// 144 Hz, a main thread of 3 ms: there are 6.9 ms for a frame, so a single wait is too long
    #[value(name = "144")]
    Fast,
    /// 30 Hz, a main thread of 20 ms: bursts longer than a slice
    #[value(name = "30")]
    Slow,
    /// 60 Hz, twelve threads that wake each other one after the other, and a server that all ask
    /// through a pipe: as from input to the compositor, with Wine's server in between. Each delay
    /// adds up
    Chain,
    /// 35 Hz, one thread of 12 ms that looks at the clock each millisecond until its next frame is
    /// due, as old games and SDL's loops do; each fortieth frame takes thrice as long
    Polled,
    /// As many frames as there can be: a thread that renders and never sleeps, one that it wakes to
    /// present them, and a simulation at 60 Hz
    Uncapped,
}

impl Kind {
    /// Its frames a second; of the one that has no limit, the simulation's.
    #[must_use]
    pub fn hz(self) -> u32 {
        match self {
            Self::Fast => 144,
            Self::Slow => 30,
            Self::Polled => 35,
            Self::Light | Self::Heavy | Self::Chain | Self::Uncapped => 60,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        out.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// The game's threads.
pub struct Game {
    /// The thread that sees each frame complete.
    frames: JoinHandle<Frames>,
    others: Vec<JoinHandle<()>>,
}

/// Starts a game at `hz` frames a second.
///
/// # Errors
/// A thread could not be started.
pub fn start(kind: Kind, plan: &Arc<Plan>, rate: Rate, hz: u32) -> Result<Game> {
    match kind {
        Kind::Light => paced::start(paced::LIGHT, plan, rate, hz),
        Kind::Heavy => paced::start(paced::HEAVY, plan, rate, hz),
        Kind::Fast => paced::start(paced::FAST, plan, rate, hz),
        Kind::Slow => paced::start(paced::SLOW, plan, rate, hz),
        Kind::Chain => chain::start(plan, rate, hz),
        Kind::Polled => polled::start(plan, rate, hz),
        Kind::Uncapped => uncapped::start(plan, rate, hz),
    }
}

impl Game {
    /// Waits for the end of the run.
    ///
    /// # Errors
    /// A thread panicked.
    pub fn finish(self) -> Result<Frames> {
        let frames = self.frames.join();
        let frames = frames.map_err(|_| anyhow!("the game's main thread panicked"))?;
        for thread in self.others {
            let ended = thread.join();
            ended.map_err(|_| anyhow!("a thread of the game panicked"))?;
        }
        Ok(frames)
    }
}

fn thread<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name).spawn(body)
}
