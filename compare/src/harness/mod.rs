//! Side by side: the same work under one scheduler after the other, in one run.
//!
//! 1. The [`driver`] works through rounds. In each it boots a guest for every scheduler in turn
//!    ([`scheduler`]: A B C … A B C …), so that whatever drifts on the host drifts for all. A round
//!    of one scheduler is one boot: nothing that a scheduler leaves behind meets another.
//! 2. In the guest the [`agent`] attaches the scheduler, runs the cells of the plan ([`cell`]) and
//!    prints a line for each.
//! 3. Each line is stored as it comes ([`sample`]). What is stored is not run again: a run can be
//!    stopped, and goes on.
//! 4. The [`result`] makes medians and spreads of them ([`stats`]), the [`markdown`] page, and its
//!    [`plot`]s. The [`gate`] compares a few of them with figures that were committed.
//!
//! Running all in real time on an idle machine would measure that machine; most have another
//! kernel, and none is idle. In the guest, time is instructions executed, so the same run on a busy
//! laptop says the same. Its limit: an instruction is not a nanosecond. Caches, frequencies and the
//! memory bus do not exist there, so work that moves between CPUs costs nothing.

pub mod agent;
pub mod cell;
pub mod cost;
pub mod driver;
pub mod gate;
pub mod markdown;
pub mod peers;
pub mod plot;
pub mod result;
pub mod sample;
pub mod scheduler;
pub mod stats;
