//! `scx_metronome`: the scheduler for gaming desktops.

use std::process::ExitCode;

use scx_metronome::memory::CountingAllocator;

mod command;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    command::main()
}
