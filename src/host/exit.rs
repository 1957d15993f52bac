//! Why a scheduler ended.

use std::ffi::CStr;
use std::fmt;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::abi::ExitRecord;

/// `SCX_EXIT_ERROR` of the kernel's `enum scx_exit_kind`: this and all above are errors.
const EXIT_ERROR: u32 = 1024;
/// `SCX_ECODE_ACT_RESTART` of the kernel's `enum scx_exit_code`.
const ACT_RESTART: u64 = 1 << 48;

/// How a scheduler ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserExitInfo {
    /// `SCX_EXIT_*` of the kernel's `enum scx_exit_kind`: below 1024 it was asked for.
    pub kind: u32,
    /// `SCX_ECODE_*` of the kernel's `enum scx_exit_code`, or the scheduler's own.
    pub exit_code: u64,
    /// In a few words; from the kernel.
    pub reason: String,
    /// In detail; from the kernel, empty if there is none.
    pub message: String,
    /// The state of the scheduler and of all CPUs at that moment; only after an error.
    pub dump: String,
    /// Whether the user asked to stop (SIGINT or SIGTERM), in which case nothing is restarted.
    pub stopped: bool,
}

impl UserExitInfo {
    pub(super) fn read(record: &ExitRecord, dump: &[u8], stopped: bool) -> Self {
        Self {
            // ORDERING: acquire, with the swap at the end of metronome_exit() in
            // bpf/metronome.bpf.c, which comes after the rest.
            kind: record.kind.load(Ordering::Acquire),
            exit_code: record.exit_code.load(Ordering::Relaxed),
            reason: text(&record.reason),
            message: text(&record.msg),
            dump: text(dump),
            stopped,
        }
    }

    /// Whether the kernel asks for a restart, as it does when a CPU came or went, and the user did
    /// not ask to stop.
    pub fn should_restart(&self) -> bool {
        self.exit_code & ACT_RESTART != 0 && !self.stopped
    }

    /// Whether the scheduler was thrown out rather than asked to go.
    pub fn is_error(&self) -> bool {
        self.kind >= EXIT_ERROR
    }
}

fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes)
        .map(|text| text.to_string_lossy().trim_end().to_string())
        .unwrap_or_default()
}

impl fmt::Display for UserExitInfo {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = if self.reason.is_empty() {
            "unknown"
        } else {
            &self.reason
        };
        write!(out, "{reason}")?;
        if !self.message.is_empty() {
            write!(out, " ({})", self.message)?;
        }
        write!(out, ", kind {}", self.kind)?;
        if self.exit_code != 0 {
            write!(out, ", code {:#x}", self.exit_code)?;
        }
        Ok(())
    }
}

impl std::error::Error for UserExitInfo {}

/// Set by SIGINT and SIGTERM. The handlers stay for the life of the process, so that a signal
/// between the end of one scheduler and the start of the next is not lost.
static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| Arc::new(AtomicBool::new(false)));
static HANDLED: AtomicBool = AtomicBool::new(false);

/// Makes SIGINT and SIGTERM end the scheduler.
pub(super) fn handle_signals() -> Result<()> {
    if !HANDLED.load(Ordering::Relaxed) {
        for signal in [SIGINT, SIGTERM] {
            flag::register(signal, Arc::clone(&STOP))
                .with_context(|| format!("cannot handle signal {signal}"))?;
        }
        HANDLED.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// Whether SIGINT or SIGTERM has come.
pub(super) fn stop_requested() -> &'static AtomicBool {
    &STOP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hotplug_exit_asks_for_a_restart_unless_the_user_stopped_it() {
        let hotplug = UserExitInfo {
            kind: 66,
            exit_code: ACT_RESTART | 1 << 32,
            ..UserExitInfo::default()
        };
        assert!(hotplug.should_restart() && !hotplug.is_error());
        assert!(
            !UserExitInfo {
                stopped: true,
                ..hotplug
            }
            .should_restart()
        );
    }

    #[test]
    fn an_error_is_told_with_reason_message_and_kind() {
        let stall = UserExitInfo {
            kind: 1026,
            reason: "runnable task stall".into(),
            message: "hog[42] failed to run for 5.1s".into(),
            ..UserExitInfo::default()
        };
        assert!(stall.is_error());
        assert_eq!(
            stall.to_string(),
            "runnable task stall (hog[42] failed to run for 5.1s), kind 1026"
        );
    }

    #[test]
    fn text_without_a_nul_is_no_text() {
        assert_eq!(text(b"abc\n\0def"), "abc");
        assert_eq!(text(b"abc"), "");
    }
}
