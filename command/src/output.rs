//! What the command prints: messages on stderr, results on stdout.

use std::fmt::Display;
use std::io::{self, Write};

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // The reader closed our stderr and does not want it.
        let _ = match record.level() {
            Level::Info => writeln!(io::stderr(), "{}", record.args()),
            _ => writeln!(io::stderr(), "scx_metronome: {}", record.args()),
        };
    }

    fn flush(&self) {}
}

/// From now on messages up to `level` are shown.
pub(crate) fn log_to_stderr(level: LevelFilter) {
    // It fails only if there is a logger already.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(level);
}

/// A line of result. Returns whether there is a reader.
pub(crate) fn line(text: impl Display) -> bool {
    writeln!(io::stdout(), "{text}").is_ok()
}
