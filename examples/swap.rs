//! Another policy every tenth of a second, or every so many milliseconds, a hundred times, without
//! detaching and without losing a task: `swap [MILLISECONDS]`.

use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use anyhow::Result;
use scx_metronome_core::policy::Policy;
use scx_metronome_core::policy::deadline::Deadline;
use scx_metronome_core::policy::fifo::Fifo;
use scx_metronome_core::{BpfScheduler, memory};

fn main() -> Result<()> {
    let millis = std::env::args()
        .nth(1)
        .map_or(Ok(100), |text| text.parse())?;
    let mut fair = memory::zeroed::<Deadline>();
    fair.set_slices(20_000_000, 1_000_000);
    let mut policies: [Box<dyn Policy>; 2] = [fair, Box::new(Fifo::new(5_000_000))];
    let mut object = MaybeUninit::uninit();
    let mut scheduler = BpfScheduler::init(&mut object, 0, false, false)?;
    for swap in 0..100 {
        let end = Instant::now() + Duration::from_millis(millis);
        let over = |_: &mut _, _: &mut _| Instant::now() >= end;
        scheduler.run_until(&mut policies[swap % 2], over);
    }
    println!("100 swaps");
    let info = scheduler.run(&mut policies[0])?;
    eprintln!("{}\n{info}", scheduler.accounting());
    Ok(())
}
