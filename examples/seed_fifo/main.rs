//! The FIFO scheduler from the documentation of `scx_rustland_core`, to be run; see
//! `tests/seed.rs`.
#![expect(clippy::unwrap_used, reason = "the program is not ours")]

include!("fifo.rs");
