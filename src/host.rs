//! What needs std and libbpf: the machine, the memory, the BPF object, and the scheduler made of
//! them.
//!
//! The only user of libbpf-rs. Order at the start: check, open, load, map, lock, touch, and only
//! then attach, so that the scheduler never owns the machine while it can still fault (Invariant
//! 2).

mod builder;
mod counts;
mod error;
mod exit;
mod mappings;
pub mod memory;
mod object;
pub mod preflight;
mod scheduler;
mod thread;
pub mod topology;
mod watch;

pub use builder::Builder;
pub use error::{BadMailbox, BadRing, MailboxesFull};
pub use exit::UserExitInfo;
pub use scheduler::{BpfScheduler, Tuning};
pub use watch::Watch;
