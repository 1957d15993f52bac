//! What several benchmarks need: the kernel's half ([`bpf`]), pinning, and the files in which
//! figures are left for `table`.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "shared by several benchmarks, of which none uses all"
)]

use std::fs;
use std::path::PathBuf;

#[cfg(feature = "kernel")]
use scx_metronome_core::memory::{self, CountingAllocator};
use serde_json::Value;

#[cfg(feature = "kernel")]
pub mod bpf;
#[cfg(feature = "kernel")]
pub mod incumbent;

#[cfg(feature = "kernel")]
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Runs what must not allocate (Invariant 1).
#[cfg(feature = "kernel")]
pub fn without_allocation<T>(run: impl FnOnce() -> T) -> T {
    let before = memory::sealed_allocations();
    let seal = memory::seal();
    let result = run();
    drop(seal);
    assert_eq!(memory::sealed_allocations(), before, "allocations");
    result
}

/// Nothing is counted here.
#[cfg(not(feature = "kernel"))]
pub fn without_allocation<T>(run: impl FnOnce() -> T) -> T {
    run()
}

/// Whether to measure; otherwise this is `cargo test`, and one pass shows that it works.
pub fn is_measuring() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// Binds the calling thread to a CPU, and if it may, makes it a real-time thread, so that what else
/// runs on the machine is not measured along. A yield then comes straight back. A test needs none
/// of it.
pub fn pin(cpu: usize) {
    if !is_measuring() {
        return;
    }
    #[cfg(feature = "kernel")]
    become_real_time_on(cpu);
    let _ = cpu;
}

#[cfg(feature = "kernel")]
fn become_real_time_on(cpu: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: a plain system call. It fails without permission, and then the figures are as noisy
    // as the machine.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &lowest) };
}

/// Cargo's directory for what is made.
pub fn target() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/target").into();
    std::env::var_os("CARGO_TARGET_DIR").map_or(default, PathBuf::from)
}

/// Leaves the figures of a benchmark that is not criterion's for `table`.
pub fn leave(name: &str, figures: &Value) {
    let directory = target().join("bench");
    fs::create_dir_all(&directory).expect("target/bench can be made");
    fs::write(directory.join(name), format!("{figures:#}\n")).expect("target/bench can be written");
}
