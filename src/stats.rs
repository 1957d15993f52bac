//! What both sides count, added up.

use core::fmt;
use core::fmt::Write;

use crate::abi::Counter;

macro_rules! define_snapshot {
    ($($variant:ident $field:ident $meaning:literal,)*) => {
        /// All counters at one moment. They are read one after the other, so sums hold exactly only
        /// after the end.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Snapshot {
            $(#[doc = concat!("Kernel side: ", $meaning, ".")] pub $field: u64,)*
            /// User space: enqueue records taken from the ring.
            pub taken: u64,
            /// User space: decisions put into mailboxes.
            pub sent: u64,
            /// User space: records replaced by a newer one of the same task before they were
            /// decided.
            pub superseded: u64,
            /// User space: tasks in the policy's queue. A level.
            pub waiting: u64,
            /// User space: system calls of the scheduler thread.
            pub syscalls: u64,
            /// Allocations of threads that are sealed ([`memory::seal`](crate::memory::seal)), as
            /// the scheduler thread is while it runs a policy. A thread that calls
            /// `dequeue_task()` in a loop of its own seals itself. A level.
            pub allocations: u64,
            /// Page faults of the scheduler thread since the scheduler was attached, or since it
            /// began to run a policy. A level.
            pub faults: u64,
        }

        impl Snapshot {
            /// What the kernel side counts; all else is 0.
            pub fn of_kernel_side(count: impl Fn(Counter) -> u64) -> Self {
                Self {
                    $($field: count(Counter::$variant),)*
                    ..Self::default()
                }
            }

            /// What happened between `earlier` and now. Levels stay as they are.
            pub fn since(&self, earlier: &Self) -> Self {
                Self {
                    $($field: self.$field - earlier.$field,)*
                    taken: self.taken - earlier.taken,
                    sent: self.sent - earlier.sent,
                    superseded: self.superseded - earlier.superseded,
                    syscalls: self.syscalls - earlier.syscalls,
                    ..*self
                }
            }
        }

        /// Each counter with its name, in which `-` takes the place of `_`.
        impl fmt::Display for Snapshot {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(write!(out, "{} {} ", Hyphens(stringify!($field)), self.$field)?;)*
                let Self { taken, sent, superseded, waiting, .. } = self;
                write!(
                    out,
                    "taken {taken} sent {sent} superseded {superseded} waiting {waiting} \
                     syscalls {} faults {} allocations {}",
                    self.syscalls, self.faults, self.allocations
                )
            }
        }
    };
}
kernel_counters!(define_snapshot);

struct Hyphens(&'static str);

impl fmt::Display for Hyphens {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hyphened = |char| if char == '_' { '-' } else { char };
        self.0
            .chars()
            .try_for_each(|char| out.write_char(hyphened(char)))
    }
}

impl Snapshot {
    /// Decisions that the kernel side has dealt with, in whatever way.
    pub fn answered(&self) -> u64 {
        self.dispatched + self.stale + self.too_late + self.rescued
    }
}

/// The accounts of both sides after the end: every task that the kernel side handed over, and what
/// became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accounting {
    /// All counters.
    pub counts: Snapshot,
    /// Records that were not taken from the ring before the end.
    pub left_in_ring: u64,
    /// Tasks that were in the policy's hands at the end.
    pub left_in_policy: u64,
    /// Decisions that no CPU took from a mailbox before the end.
    pub left_in_mailboxes: u64,
}

impl Accounting {
    /// Whether every task is accounted for: what the kernel side handed over was taken or left in
    /// the ring; what was taken was decided, superseded or left in the policy; what was decided
    /// was dealt with or left in a mailbox.
    pub fn balance(&self) -> bool {
        let Self {
            counts,
            left_in_ring,
            left_in_policy,
            left_in_mailboxes,
        } = self;
        counts.queued == counts.taken + left_in_ring
            && counts.taken == counts.sent + counts.superseded + left_in_policy
            && counts.sent == counts.answered() + left_in_mailboxes
    }
}

impl fmt::Display for Accounting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            counts,
            left_in_ring,
            left_in_policy,
            left_in_mailboxes,
        } = self;
        write!(
            out,
            "accounting {}: queued {} = dispatched {} + stale {} + too-late {} + rescued {} + superseded {} + left {} \
             (ring {left_in_ring}, policy {left_in_policy}, mailboxes {left_in_mailboxes})",
            if self.balance() {
                "balances"
            } else {
                "DOES NOT BALANCE"
            },
            counts.queued,
            counts.dispatched,
            counts.stale,
            counts.too_late,
            counts.rescued,
            counts.superseded,
            left_in_ring + left_in_policy + left_in_mailboxes,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accounting_with_a_task_missing_at_any_stage_does_not_balance() {
        let counts = Snapshot {
            queued: 10,
            taken: 9,
            sent: 7,
            superseded: 1,
            dispatched: 4,
            stale: 1,
            ..Snapshot::default()
        };
        let good = Accounting {
            counts,
            left_in_ring: 1,
            left_in_policy: 1,
            left_in_mailboxes: 2,
        };
        assert!(good.balance());
        assert!(
            !Accounting {
                left_in_ring: 0,
                ..good
            }
            .balance()
        );
        assert!(
            !Accounting {
                left_in_policy: 2,
                ..good
            }
            .balance()
        );
        assert!(
            !Accounting {
                left_in_mailboxes: 1,
                ..good
            }
            .balance()
        );
    }
}
