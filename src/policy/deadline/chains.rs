//! Which tasks work for a frame together, and how long they take for it: for those who look on.
//! Orders go along wake-ups (see the module above), and do not depend on what is found here.
//!
//! A chain begins with a task that a timer or a device wakes often, its *head*, or with a loop that
//! never sleeps and calls. Whatever one of its members wakes, by an order, is a member, too. Each
//! time that the head wakes a frame begins. Its *path* lasts from then until the last member
//! sleeps: the critical path of the frame. A member's record comes as it wakes for the next frame,
//! and says when it slept, so a frame is known as a whole when the one after it ends.

use super::{Account, OVERDRAWN};
use crate::task::{Kind, QueuedTask};

/// So many chains are told apart.
pub const MAX_CHAINS: usize = 16;

/// So many members of each are.
pub const MAX_MEMBERS: usize = 32;

/// A chain whose head has not woken for so long is over, ns; and a task that sleeps for a tenth of
/// it in the mean begins none.
const FORGOTTEN: u64 = 1_000_000_000;

/// The tasks that work for a frame, in the order in which they woke for it.
#[derive(Clone, Copy, Debug)]
struct Members {
    pids: [i32; MAX_MEMBERS],
    number: usize,
    /// The least that one has left of what it may have by its orders, ns of virtual time.
    credit: i64,
}

impl Members {
    const NONE: Self = Self {
        pids: [0; MAX_MEMBERS],
        number: 0,
        credit: i64::MAX,
    };

    fn known(&self) -> &[i32] {
        self.pids.get(..self.number).unwrap_or_default()
    }

    /// Returns whether it is the first time for this frame.
    fn add(&mut self, pid: i32, credit: i64) -> bool {
        self.credit = self.credit.min(credit);
        let is_first = !self.known().contains(&pid);
        if is_first && let Some(place) = self.pids.get_mut(self.number) {
            *place = pid;
            self.number += 1;
        }
        is_first
    }
}

/// A chain of tasks, and its frames since it was found.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    /// [`Account::chain`] of its members. 0: none yet.
    tag: u8,
    head: u32,
    /// When this frame began and when the one before did, ns.
    began: u64,
    began_before: u64,
    /// From the beginning of each to the last sleep that is known, ns.
    path: u64,
    path_before: u64,
    period: u64,
    mean_path: u64,
    frames: u64,
    late: u64,
    members: Members,
    members_before: Members,
}

impl Chain {
    const NONE: Self = Self {
        tag: 0,
        head: 0,
        began: 0,
        began_before: 0,
        path: 0,
        path_before: 0,
        period: 0,
        mean_path: 0,
        frames: 0,
        late: 0,
        members: Members::NONE,
        members_before: Members::NONE,
    };

    /// The thread ids of the tasks that worked for the last frame, as far as [`MAX_MEMBERS`], in
    /// the order in which they woke: the head is the first.
    pub fn members(&self) -> &[i32] {
        self.members_before.known()
    }

    /// From a frame to the next, ns: the shortest of late.
    pub fn period_ns(&self) -> u64 {
        self.period
    }

    /// From the beginning of a frame until the last of its members sleeps, ns: a mean over the last
    /// few.
    pub fn path_ns(&self) -> u64 {
        self.mean_path
    }

    /// Frames since the chain was found.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Those of them that took until after the next one should have begun, by half a period, or
    /// until after it began.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// What the member with the least has left of what it may have by orders before it takes turns,
    /// ns of virtual time. Negative: it takes turns.
    pub fn credit_ns(&self) -> i64 {
        self.members_before.credit
    }

    /// Times are what records say, so they may be any: one of the future is none of late either.
    fn has_begun_of_late(&self, now: u64) -> bool {
        self.tag != 0 && now.abs_diff(self.began) <= FORGOTTEN
    }

    fn begin(&mut self, pid: i32, at: u64, slept_at: u64, credit: i64) {
        self.path = self.path.max(slept_at.saturating_sub(self.began));
        if self.began_before != 0 {
            self.close(self.began.saturating_sub(self.began_before));
        }
        (self.began_before, self.path_before) = (self.began, self.path);
        (self.began, self.path) = (at, 0);
        self.members_before = self.members;
        self.members = Members::NONE;
        self.members.add(pid, credit);
    }

    /// The frame before this one is known as a whole, and took so long until this one.
    fn close(&mut self, took: u64) {
        self.period = match self.period {
            0 => took,
            period => took.min(period.saturating_add(period.div_ceil(16))),
        };
        self.mean_path = match self.frames {
            0 => self.path_before,
            _ => self.mean_path - self.mean_path / 8 + self.path_before / 8,
        };
        self.frames += 1;
        let is_late = took - took / 3 > self.period || self.path_before > took;
        self.late += u64::from(is_late);
    }

    fn work(&mut self, pid: i32, slept_at: u64, credit: i64) {
        if self.members.add(pid, credit) {
            let path = slept_at.saturating_sub(self.began_before);
            self.path_before = self.path_before.max(path);
        } else {
            self.path = self.path.max(slept_at.saturating_sub(self.began));
        }
    }
}

/// All chains that are known: 5 KiB.
#[derive(Clone, Copy, Debug)]
pub struct Chains {
    seats: [Chain; MAX_CHAINS],
    now: u64,
}

impl Default for Chains {
    fn default() -> Self {
        Self::NONE
    }
}

impl Chains {
    pub(super) const NONE: Self = Self {
        seats: [Chain::NONE; MAX_CHAINS],
        now: 0,
    };

    /// Those that had a frame within the last second and have had a few.
    pub fn iter(&self) -> impl Iterator<Item = &Chain> {
        let is_shown = |chain: &&Chain| chain.has_begun_of_late(self.now) && chain.frames > 2;
        self.seats.iter().filter(is_shown)
    }

    /// Takes in that a task woke, or that a loop called: from outside, or by a member of the chain
    /// with this tag.
    pub(super) fn note(&mut self, account: &mut Account, task: &QueuedTask, tag: Option<u8>) {
        self.now = task.enqueued_at;
        let credit = OVERDRAWN as i64 - i64::from(account.spent);
        let is_call = task.kind() == Kind::Caller;
        let slept_at = if is_call {
            task.enqueued_at
        } else {
            task.stop_ts
        };
        let own = self.find(account.chain);
        let (has_chain, is_head) = match &own {
            Some(own) => (true, own.head == task.id),
            None => (false, false),
        };
        match (own, tag) {
            (Some(own), None) if is_head => {
                own.begin(task.pid, task.enqueued_at, slept_at, credit);
            }
            (Some(own), _) if is_head => own.work(task.pid, slept_at, credit),
            // What an interrupt wakes is not always woken by one.
            (_, None) if has_chain && account.is_called() => (),
            (_, None) => account.chain = self.found(account, task),
            (_, Some(tag)) if tag != 0 && account.is_ordered() => {
                account.chain = tag;
                if let Some(chain) = self.find(tag) {
                    chain.work(task.pid, slept_at, credit);
                }
            }
            _ => (),
        }
    }

    /// The chain with this tag, if it is not over.
    fn find(&mut self, tag: u8) -> Option<&mut Chain> {
        let chain = self.seats.get_mut(usize::from(tag) % MAX_CHAINS)?;
        (chain.tag == tag && chain.has_begun_of_late(self.now)).then_some(chain)
    }

    /// A chain that begins with this task, in the place of one that is over. Returns its tag, or 0.
    fn found(&mut self, account: &Account, task: &QueuedTask) -> u8 {
        let is_seldom = u64::from(account.asleep) > FORGOTTEN / 10;
        if is_seldom || !account.is_ordered() {
            return 0;
        }
        let now = self.now;
        let is_free = |(_, chain): &(usize, &mut Chain)| !chain.has_begun_of_late(now);
        let Some((seat, chain)) = self.seats.iter_mut().enumerate().find(is_free) else {
            return 0;
        };
        // Those of the chain before have another tag: the seat, and a number from 1 to 15.
        let turn = (chain.tag >> 4) % 15 + 1;
        *chain = Chain {
            tag: turn << 4 | seat as u8,
            head: task.id,
            began: task.enqueued_at,
            ..Chain::NONE
        };
        chain.tag
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::vec::Vec;

    use super::super::tests::{policy, task, woken};
    use super::super::{Deadline, Policy};
    use super::*;

    const MS: u64 = 1_000_000;

    /// A task's part of a frame of 16 ms: when it wakes, whom by (a pid; 0: a timer), for how long
    /// it runs.
    #[derive(Clone, Copy)]
    struct Part(u32, u64, i32, u64);

    /// What is found in 40 frames of these parts; of each tenth frame one takes 20 ms longer.
    fn chains(parts: &[Part], slow: Option<u32>) -> Vec<(Vec<i32>, u64, u64, u64, u64)> {
        let mut policy: Deadline<8> = policy();
        let mut slept_at = [0; 8];
        let mut ran = [0; 8];
        let mut at = MS;
        for frame in 1..=40_u64 {
            let is_slow = |id| frame % 10 == 0 && slow == Some(id);
            let mut end = 0;
            for &Part(id, after, waker, burst) in parts {
                let enqueued_at = at + after * MS;
                let burst = if is_slow(id) { burst + 20 } else { burst } * MS;
                let record = QueuedTask {
                    nvcsw: frame,
                    enqueued_at,
                    waker,
                    ..task(id, 100, ran[id as usize], 0)
                };
                let record = QueuedTask {
                    enqueued_at,
                    stop_ts: slept_at[id as usize],
                    ..woken(record, 10 * MS)
                };
                policy.now += 4 * MS;
                policy.event(&record);
                policy.order(&record);
                ran[id as usize] += burst;
                slept_at[id as usize] = enqueued_at + burst;
                end = end.max(enqueued_at + burst);
            }
            at += 16 * MS;
            while at < end {
                at += 16 * MS;
            }
        }
        let found = |chain: &Chain| {
            let times = (chain.period_ns() / MS, chain.path_ns() / MS);
            (
                chain.members().to_vec(),
                times.0,
                times.1,
                chain.frames(),
                chain.late(),
            )
        };
        policy.chains().iter().map(found).collect()
    }

    #[test]
    fn a_chain_has_its_members_in_order_its_period_and_its_critical_path() {
        // Pids are ids plus 1. The last to be woken is done before another.
        let parts = [
            Part(0, 0, 0, 1),
            Part(1, 1, 1, 6),
            Part(2, 2, 1, 1),
            Part(3, 3, 3, 1),
        ];
        let found = chains(&parts, None);
        let [(members, 16, path, frames, 0)] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(members, &[1, 2, 3, 4]);
        assert!((6..=7).contains(path) && *frames > 20, "{found:?}");
    }

    #[test]
    fn a_frame_that_one_member_makes_late_is_told_of() {
        let parts = [Part(0, 0, 0, 1), Part(1, 1, 1, 2)];
        let found = chains(&parts, Some(1));
        let [(_, 16, _, _, late)] = &found[..] else {
            panic!("{found:?}");
        };
        assert!((2..=3).contains(late), "{found:?}");
    }

    #[test]
    fn two_timers_are_two_chains_and_a_pool_is_none() {
        let parts = [
            Part(0, 0, 0, 1),
            Part(1, 1, 1, 1),
            Part(2, 2, 0, 1),
            Part(3, 3, 3, 1),
        ];
        let members: Vec<_> = chains(&parts, None)
            .into_iter()
            .map(|found| found.0)
            .collect();
        assert_eq!(members, [[1, 2], [3, 4]]);
        assert_eq!(chains(&[Part(0, 0, 2, 1), Part(1, 1, 1, 1)], None), []);
    }
}
