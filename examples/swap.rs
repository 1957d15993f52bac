//! Another policy every tenth of a second, a hundred times, without detaching and without losing a task.

use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use anyhow::Result;
use scx_metronome::policy::deadline::Deadline;
use scx_metronome::policy::fifo::Fifo;
use scx_metronome::{BpfScheduler, memory};

fn main() -> Result<()> {
    let mut fair = memory::zeroed::<Deadline>();
    fair.set_slices(20_000_000, 1_000_000);
    let mut fifo = Fifo::new(5_000_000);
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false)?;
    for swap in 0..100 {
        let end = Instant::now() + Duration::from_millis(100);
        let over = || Instant::now() >= end;
        if swap % 2 == 0 {
            scheduler.run_until(fair.as_mut(), over);
        } else {
            scheduler.run_until(&mut fifo, over);
        }
    }
    println!("100 swaps");
    let info = scheduler.run(fair.as_mut())?;
    eprintln!("{}\n{info}", scheduler.books());
    Ok(())
}
