//! The load that schedulers are compared with: a game among compilers.
//!
//! A desktop scheduler is judged by what a person notices: frames that come late, sound that breaks
//! up, a pointer that lags; and by what that costs the work behind it. Benchmarks of one kind of
//! task miss the trade between them, and those that run until the clock says so (`while now() <
//! end`) use less CPU the worse they are scheduled. So this load has all kinds at once, and every
//! piece of work is a fixed number of iterations ([`work`]).
//!
//! A run, in the order in which it happens ([`run`]):
//!
//! 1. The arithmetic loop is calibrated on the idle machine ([`work`]).
//! 2. The background is forked: CPU hogs, short jobs or a build ([`batch`]) and pipe ping-pong
//!    pairs ([`pingpong`]), processes ([`process`]) that count on a shared page ([`board`]).
//! 3. The latency-sensitive threads start half a second later: [`game`], [`audio`], [`input`]. All
//!    of them wait for one common instant, the epoch of the [`plan`].
//! 4. Nothing is recorded during the warm-up. After the last second the threads hand back their
//!    histograms ([`latency`]), which become a [`report`]; several reports become a [`table`] or a
//!    [`picture`].
//!
//! Four smaller loads stand beside it, each for something that the game does not show: [`barrier`]
//! (threads that wait for each other), [`requests`] (a server's workers),
//! [`tree`] (a build's short jobs), [`weights`] (nice levels). `compare` runs all of them under one
//! scheduler after the other.
//!
//! All times are nanoseconds of `CLOCK_MONOTONIC` unless a name says otherwise.

pub mod audio;
pub mod barrier;
pub mod batch;
pub mod board;
pub mod clock;
pub mod frames;
pub mod game;
pub mod input;
pub mod kernel;
pub mod latency;
pub mod pace;
pub mod picture;
pub mod pingpong;
pub mod plan;
pub mod priority;
pub mod process;
pub mod random;
pub mod report;
pub mod requests;
pub mod run;
pub mod semaphore;
pub mod signals;
pub mod table;
pub mod tree;
pub mod weights;
pub mod work;
