//! The BPF object and libbpf: what it said, what outlives a load, and how a program is run.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};
use libbpf_rs::{PrintLevel, libbpf_sys};

use crate::bpf::{MetronomeSkel, OpenMetronomeSkel};

/// The map of the epochs of task ids, which all loads of this process have in common. A policy may
/// outlive a load, as it does when a CPU comes or goes. If epochs began anew, it would take what it
/// keeps by id and epoch for what it knows of another task.
static EPOCHS: OnceLock<OwnedFd> = OnceLock::new();

pub(super) fn go_on_with_births(open: &mut OpenMetronomeSkel<'_>) -> Result<()> {
    let Some(epochs) = EPOCHS.get() else {
        return Ok(());
    };
    with_libbpf("cannot go on with the epochs of task ids", || {
        open.maps.id_slots.reuse_fd(epochs.as_fd())
    })
}

pub(super) fn keep_births(skel: &MetronomeSkel<'_>) -> Result<()> {
    let epochs = skel.maps.id_slots.as_fd();
    let epochs = epochs
        .try_clone_to_owned()
        .context("cannot keep the epochs of task ids")?;
    // From the second load on it is the map that is there already.
    let _ = EPOCHS.set(epochs);
    Ok(())
}

/// The last line that libbpf printed, for the error that follows.
static LIBBPF_SAID: Mutex<String> = Mutex::new(String::new());

pub(super) fn listen_to_libbpf(debug: bool) {
    fn keep(_: PrintLevel, line: String) {
        let mut said = LIBBPF_SAID.lock().unwrap_or_else(PoisonError::into_inner);
        // The first complaint is the cause, what follows is fallout.
        if said.is_empty() {
            *said = line.trim().replace('\n', " | ");
        }
    }
    fn show(_: PrintLevel, line: String) {
        eprint!("{line}");
    }
    libbpf_rs::set_print(Some(if debug {
        (PrintLevel::Debug, show)
    } else {
        (PrintLevel::Warn, keep)
    }));
}

/// Runs a step of libbpf; if it fails, the error has what libbpf said.
pub(super) fn with_libbpf<T>(step: &str, run: impl FnOnce() -> libbpf_rs::Result<T>) -> Result<T> {
    LIBBPF_SAID
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clear();
    run().map_err(|error| {
        let said = LIBBPF_SAID
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let said = if said.is_empty() {
            String::new()
        } else {
            format!(" ({said})")
        };
        anyhow::anyhow!("{step}: {error:#}{said}")
    })
}

/// Runs a SYSCALL program and returns what it returned.
///
/// # Cost
/// One system call; no allocation.
pub(super) fn run_program<T>(fd: i32, context: Option<&mut T>) -> Result<i32> {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        ..Default::default()
    };
    if let Some(context) = context {
        options.ctx_size_in = size_of::<T>() as u32;
        options.ctx_in = std::ptr::from_mut(context).cast();
    }
    // SAFETY: the options are live, and their context is of the size told.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(fd, &mut options) };
    if result != 0 {
        bail!(
            "the kernel did not run it: {}",
            std::io::Error::from_raw_os_error(-result)
        );
    }
    Ok(options.retval as i32)
}
