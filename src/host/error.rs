//! What the verbs of [`BpfScheduler`](super::BpfScheduler) may say.

use std::fmt;

use crate::ring::RingCounts;
use crate::shared::MailboxOf;

/// A ring has a record that no kernel side of ours wrote, or a position that neither side did. The
/// scheduler is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRing {
    /// Of all rings together.
    pub counts: RingCounts,
}

impl fmt::Display for BadRing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "the ring holds bytes that are no record or no position of ours: {}",
            self.counts
        )
    }
}

impl std::error::Error for BadRing {}

/// A mailbox has a position that neither side wrote: some decisions never leave it. The scheduler
/// is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMailbox(
    /// Which it is.
    pub MailboxOf,
);

impl fmt::Display for BadMailbox {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} holds a position that neither side wrote", self.0)
    }
}

impl std::error::Error for BadMailbox {}

/// There was no room for the decision in any mailbox. The task still waits: dispatch it again
/// later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MailboxesFull;

impl fmt::Display for MailboxesFull {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("all mailboxes are full")
    }
}

impl std::error::Error for MailboxesFull {}
