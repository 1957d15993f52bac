//! What must hold on a real kernel. Runs where `/sys/kernel/sched_ext` is, as root, one test at a
//! time, with `scx_metronome`, `fifo`, `stress-ng`, `hackbench` and `perf` in the path: `vm/test`
//! boots such machines.
//!
//! `LOAD_SECONDS` says how long the heavy loads last (default 30).
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "tests"
)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libbpf_rs::MapHandle;
use libbpf_rs::query::{MapInfoIter, ProgInfoIter};

mod bounds;
mod clock;
mod command;
mod corrupt;
mod fair;
mod faults;
mod gate;
mod groups;
mod harness;
mod inject;
mod life;
mod loads;
mod moves;
mod place;
mod soak;
mod wait;
mod wakeups;

use harness::*;
