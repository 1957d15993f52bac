//! What both sides count, added up.

use core::fmt;

/// All counters at one moment. They are read one after the other, so sums hold exactly only after
/// the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Kernel side: tasks handed to user space.
    pub queued: u64,
    /// Kernel side: tasks that found the ring full and went on in deadline order without user
    /// space.
    pub ring_full: u64,
    /// Kernel side: wake-ups sent to an idle CPU at once.
    pub direct: u64,
    /// Kernel side: tasks that are its own business.
    pub kernel_side: u64,
    /// Kernel side: tasks beyond the number of task ids.
    pub no_id: u64,
    /// Kernel side: decisions carried out.
    pub dispatched: u64,
    /// Kernel side: decisions for an enqueue that is over.
    pub stale: u64,
    /// Kernel side: decisions for a task that is gone.
    pub gone: u64,
    /// Kernel side: decisions that came after it had run the task, or lost it to another
    /// scheduling class.
    pub rescued: u64,
    /// Kernel side: of the dispatched, those on another CPU than asked for, as affinity demanded.
    pub bounced: u64,
    /// Kernel side: tasks taken out of user space's hands because it was late.
    pub takeover: u64,
    /// Kernel side: wake-ups for which a standing order was carried out.
    pub ordered: u64,
    /// Kernel side: of these, tasks that were handed their waker's CPU.
    pub handed_off: u64,
    /// Kernel side: of these, tasks that displaced another.
    pub preempted: u64,
    /// Kernel side: tasks that took turns by their standing order.
    pub in_turn: u64,
    /// Kernel side: questions about tasks whose standing order was used up.
    pub used_up: u64,
    /// Kernel side: orders of which something was ignored.
    pub bad_orders: u64,
    /// Kernel side: records that were no questions.
    pub events: u64,
    /// Kernel side: events that found the ring half full.
    pub events_lost: u64,
    /// Kernel side: times that user space was found late and it went on alone.
    pub late: u64,
    /// Kernel side: tasks about which it therefore did not ask.
    pub alone: u64,
    /// User space: questions taken from the ring.
    pub taken: u64,
    /// User space: decisions put into mailboxes.
    pub sent: u64,
    /// User space: records replaced by a newer one of the same task before they were decided.
    pub superseded: u64,
    /// User space: tasks in the policy's queue.
    pub waiting: u64,
    /// User space: system calls of the scheduler thread.
    pub syscalls: u64,
    /// Allocations of threads that are sealed ([`memory::seal`](crate::memory::seal)), as the
    /// scheduler thread is while it runs a policy. Who calls `dequeue_task()` in a loop of its
    /// own seals itself.
    pub allocations: u64,
    /// Page faults of the scheduler thread since the scheduler was attached, or since it began to
    /// run a policy.
    pub faults: u64,
}

impl Snapshot {
    /// Decisions that the kernel side has dealt with, in whatever way.
    pub fn answered(&self) -> u64 {
        self.dispatched + self.stale + self.gone + self.rescued
    }

    /// What happened between `earlier` and now; levels (as opposed to counts) stay as they are.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            queued: self.queued - earlier.queued,
            ring_full: self.ring_full - earlier.ring_full,
            direct: self.direct - earlier.direct,
            kernel_side: self.kernel_side - earlier.kernel_side,
            no_id: self.no_id - earlier.no_id,
            dispatched: self.dispatched - earlier.dispatched,
            stale: self.stale - earlier.stale,
            gone: self.gone - earlier.gone,
            rescued: self.rescued - earlier.rescued,
            bounced: self.bounced - earlier.bounced,
            takeover: self.takeover - earlier.takeover,
            ordered: self.ordered - earlier.ordered,
            handed_off: self.handed_off - earlier.handed_off,
            preempted: self.preempted - earlier.preempted,
            in_turn: self.in_turn - earlier.in_turn,
            used_up: self.used_up - earlier.used_up,
            bad_orders: self.bad_orders - earlier.bad_orders,
            events: self.events - earlier.events,
            events_lost: self.events_lost - earlier.events_lost,
            late: self.late - earlier.late,
            alone: self.alone - earlier.alone,
            taken: self.taken - earlier.taken,
            sent: self.sent - earlier.sent,
            superseded: self.superseded - earlier.superseded,
            waiting: self.waiting,
            syscalls: self.syscalls - earlier.syscalls,
            allocations: self.allocations,
            faults: self.faults,
        }
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "direct {} ordered {} handed-off {} preempted {} in-turn {} used-up {} bad-orders {} queued {} dispatched {} waiting {} stale {} gone {} \
             rescued {} bounced {} ring-full {} late {} alone {} takeover {} no-id {} kernel {} events {} events-lost {} syscalls {} faults {} \
             allocations {}",
            self.direct,
            self.ordered,
            self.handed_off,
            self.preempted,
            self.in_turn,
            self.used_up,
            self.bad_orders,
            self.queued,
            self.dispatched,
            self.waiting,
            self.stale,
            self.gone,
            self.rescued,
            self.bounced,
            self.ring_full,
            self.late,
            self.alone,
            self.takeover,
            self.no_id,
            self.kernel_side,
            self.events,
            self.events_lost,
            self.syscalls,
            self.faults,
            self.allocations
        )
    }
}

/// The accounts of both sides after the end: every task that the kernel side handed over, and what
/// became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Books {
    /// All counters.
    pub counts: Snapshot,
    /// Records nobody took from the ring before the end.
    pub left_in_ring: u64,
    /// Tasks that were in the policy's hands at the end.
    pub left_in_policy: u64,
    /// Decisions that no CPU took from a mailbox before the end.
    pub left_in_mailboxes: u64,
}

impl Books {
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

impl fmt::Display for Books {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            counts,
            left_in_ring,
            left_in_policy,
            left_in_mailboxes,
        } = self;
        write!(
            out,
            "books {}: queued {} = dispatched {} + stale {} + gone {} + rescued {} + superseded {} + left {} \
             (ring {left_in_ring}, policy {left_in_policy}, mailboxes {left_in_mailboxes})",
            if self.balance() {
                "balance"
            } else {
                "DO NOT BALANCE"
            },
            counts.queued,
            counts.dispatched,
            counts.stale,
            counts.gone,
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
    fn books_with_a_task_missing_at_any_hop_do_not_balance() {
        let counts = Snapshot {
            queued: 10,
            taken: 9,
            sent: 7,
            superseded: 1,
            dispatched: 4,
            stale: 1,
            ..Snapshot::default()
        };
        let good = Books {
            counts,
            left_in_ring: 1,
            left_in_policy: 1,
            left_in_mailboxes: 2,
        };
        assert!(good.balance());
        assert!(
            !Books {
                left_in_ring: 0,
                ..good
            }
            .balance()
        );
        assert!(
            !Books {
                left_in_policy: 2,
                ..good
            }
            .balance()
        );
        assert!(
            !Books {
                left_in_mailboxes: 1,
                ..good
            }
            .balance()
        );
    }
}
