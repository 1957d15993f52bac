//! Loads a scheduler without ops until it is interrupted: what the scheduling class itself costs,
//! for `vm/price`. Arguments are ignored.

use std::error::Error;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use signal_hook::consts::SIGINT;
use signal_hook::flag;
use testbed::bare::BareSkelBuilder;

fn main() -> Result<(), Box<dyn Error>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    flag::register(SIGINT, Arc::clone(&interrupted))?;
    let mut object = MaybeUninit::uninit();
    let mut skeleton = BareSkelBuilder::default().open(&mut object)?.load()?;
    let _attached = skeleton.maps.bare.attach_struct_ops()?;
    // Ordering: the flag alone is told.
    while !interrupted.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
