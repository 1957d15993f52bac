//! What the process may do.
//!
//! It starts as root and gives up all but the capabilities that loading a scheduler takes, before
//! it loads one: so each load, the first as those after a CPU came or went, shows that they are
//! enough.

use anyhow::{Context, Result, bail};
use caps::{CapSet, Capability, CapsHashSet};

/// Loading BPF programs, letting them read kernel memory, locking memory.
const NEEDED: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_IPC_LOCK,
];

/// Gives the others up, for this thread and all that it starts. Nothing that it executes gets them
/// back.
///
/// # Errors
/// When the kernel does not let go of them.
pub(crate) fn give_up_others() -> Result<()> {
    // Instead of CAP_SYS_NICE, which is power over others. Without it loading takes longer on a
    // full machine.
    let any = libc::rlimit {
        rlim_cur: 40,
        rlim_max: 40,
    };
    // SAFETY: `any` is live.
    unsafe { libc::setrlimit(libc::RLIMIT_NICE, &any) };
    keep().context("cannot give up capabilities")?;
    // SAFETY: a plain system call.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        bail!(
            "cannot forbid new privileges: {}",
            std::io::Error::last_os_error()
        );
    }
    // What is created from here on, the socket above all, is root's alone.
    // SAFETY: a plain system call.
    unsafe { libc::umask(0o077) };
    Ok(())
}

fn keep() -> Result<(), caps::errors::CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, CapSet::Bounding)? {
            if !NEEDED.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
    }
    let kept: CapsHashSet = NEEDED
        .into_iter()
        .filter(|capability| permitted.contains(capability))
        .collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}
