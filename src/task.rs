//! A task as the policy sees it: what the kernel says of one that waits, and what user space
//! decides about it.
//!
//! # Problem
//! What lies in the ring was written by the other side (Invariant 5), and it is indexed with,
//! compared and computed with, some million times a second. To check each number where it is used
//! is to forget it somewhere; to copy it into a type of one's own, field by field, is the copy that
//! the ring is mapped to avoid.
//!
//! # Mechanism
//! A [`QueuedTask`] is never built from parts: [`QueuedTask::from_record`] makes it of a [`Record`]
//! of the ring, in place, having checked it. Until then its bytes are an allegation. What has a
//! range is checked once: kind, id, CPU, weight, affinity. Times and counts are any numbers, and
//! a policy that computes with them wraps or saturates.
//!
//! # Cost
//! Six comparisons for each record. A task that is kept costs 120 bytes, so the loop keeps 20 of
//! them.

use core::ops::BitOr;

use crate::abi::{
    DECISION_ANY_CPU, DECISION_PREEMPT, EPOCH_SHIFT, FOUND_IDLE, IS_BATCH, WAKE_FLAGS_SHIFT,
};
pub use crate::abi::{MAX_TASKS, SHARE};

/// For [`DispatchedTask::flags`]: the task runs on the first CPU that becomes available. One that
/// may run on a single CPU runs there.
pub const RL_CPU_ANY: u64 = DECISION_ANY_CPU;

/// For [`DispatchedTask::flags`]: the task displaces what runs on its CPU. Together with
/// [`RL_CPU_ANY`] it counts only for a task that may run on a single CPU: of the others there is no
/// CPU whose task could give way.
pub const RL_PREEMPT: u64 = DECISION_PREEMPT;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    /// The task waits for a decision.
    Queued = 1,
    /// It woke, and its standing order was carried out. Of one task this is told only so often;
    /// what the record says is summed up.
    Ordered,
    /// It went to sleep.
    Blocked,
    /// It exited or left the class, and its id is free.
    Exited,
    /// Its weight changed.
    Weight,
    /// The CPUs that it may use changed.
    Affinity,
    /// The last decision about it was carried out: on the CPU asked for, or on the first that
    /// became available if that was asked for or 256 decisions lay ahead in the CPU's mailbox
    /// ([`Machine::backlog`](crate::policy::Machine::backlog) tells beforehand).
    Dispatched,
    /// It was carried out on another CPU than asked for, as affinity demanded.
    Bounced,
    /// It was dropped: that enqueue is over.
    Stale,
    /// It was dropped: the kernel side had run the task by itself, or lost it to another scheduling
    /// class.
    Rescued,
    /// It woke, and an idle CPU took it at once. Told as rarely as [`Ordered`](Self::Ordered).
    Direct,
    /// A decision was dropped: its task has exited. Only id, generation and
    /// [`epoch`](QueuedTask::epoch) say something, and they are those of the decision: the id
    /// may be another task's, whose records are of another epoch.
    TooLate,
    /// It runs, and has woken a thread of its process that is urgent by its order: at
    /// [`enqueued_at`](QueuedTask::enqueued_at), and it may be long before it sleeps. Told as
    /// rarely as [`Ordered`](Self::Ordered). While a policy asks for these records, an order's
    /// budget counts from the last of them, too.
    Caller,
}

impl Kind {
    const fn of(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Queued,
            2 => Self::Ordered,
            3 => Self::Blocked,
            4 => Self::Exited,
            5 => Self::Weight,
            6 => Self::Affinity,
            7 => Self::Dispatched,
            8 => Self::Bounced,
            9 => Self::Stale,
            10 => Self::Rescued,
            11 => Self::Direct,
            12 => Self::TooLate,
            13 => Self::Caller,
            _ => return None,
        })
    }
}

impl BitOr for Kind {
    type Output = Kinds;

    fn bitor(self, other: Self) -> Kinds {
        Kinds::from(self) | other
    }
}

/// A set of kinds of records: `Kind::Ordered | Kind::Exited`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(u32);

impl Kinds {
    /// No kind.
    pub const NONE: Self = Self(0);

    /// Every kind.
    pub const ALL: Self = Self((2 << Kind::Caller as u16) - (1 << Kind::Queued as u16));

    /// Whether records of this kind are in the set.
    pub const fn contains(self, kind: Kind) -> bool {
        self.0 >> kind as u16 & 1 == 1
    }

    /// A bit for each kind, by its number in `enum record_kind` (bpf/abi.h).
    pub(crate) const fn word(self) -> u32 {
        self.0
    }
}

impl From<Kind> for Kinds {
    fn from(kind: Kind) -> Self {
        Self(1 << kind as u16)
    }
}

impl BitOr<Kind> for Kinds {
    type Output = Self;

    fn bitor(self, kind: Kind) -> Self {
        Self(self.0 | Self::from(kind).0)
    }
}

/// The words of a record as they lie in the ring: an allegation.
pub type Record = [u64; size_of::<QueuedTask>() / size_of::<u64>()];

/// A task that waits for a CPU, as the kernel described it when it was enqueued.
///
/// Times are in ns of `CLOCK_MONOTONIC`; CPU times are in ns.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct QueuedTask {
    /// Dense id, below [`MAX_TASKS`]. It belongs to the task for all its life, then to another.
    pub id: u32,
    /// Tells this enqueue from earlier ones of the same id; a decision carries it back.
    pub generation: u32,
    /// Thread id, in the initial pid namespace.
    pub pid: i32,
    /// Process id, in the initial pid namespace.
    pub tgid: i32,
    /// The CPU where it ran last.
    pub cpu: i32,
    pub(crate) kind: u16,
    /// How many CPUs its affinity allows, at least 1; the number of possible CPUs if it allows all
    /// that take tasks.
    pub nr_cpus_allowed: u16,
    /// `SCX_ENQ_*` of the kernel; bit 0 is set on a wake-up. Bits 48 to 55:
    /// [`wake_flags`](Self::wake_flags); 56: [`found_idle`](Self::found_idle); 57:
    /// [`is_batch`](Self::is_batch).
    pub flags: u64,
    /// 1 to 10,000; nice 0 is 100.
    pub weight: u32,
    pub(crate) share: u32,
    /// When it was enqueued.
    pub enqueued_at: u64,
    /// When it last got a CPU; 0 if never.
    pub start_ts: u64,
    /// When it last left one; 0 if never.
    pub stop_ts: u64,
    /// CPU time since it last slept.
    pub exec_runtime: u64,
    /// CPU time since it was born.
    pub sum_exec_runtime: u64,
    /// Voluntary context switches since it was born.
    pub nvcsw: u64,
    /// What is left of its slice.
    pub slice: u32,
    /// The thread that woke it; 0 if an interrupt did, or if it was not woken.
    pub waker: i32,
    /// The `vtime` of the last decision about it, plus the CPU time it had since, times 100 /
    /// weight.
    pub vtime: u64,
    pub(crate) comm: [u8; 16],
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRecord {
    /// Its length is not that of any record.
    Length,
    /// Its kind is unknown.
    Kind,
    /// Its task id is out of range.
    Id,
    /// Its CPU is not one of this machine.
    Cpu,
    /// Its weight is not one the kernel gives.
    Weight,
    /// It claims that its affinity allows no CPU.
    Affinity,
}

impl QueuedTask {
    /// Turns an allegation into a task, in place, or says why not. `nr_cpus` is the bound of CPU
    /// numbers.
    ///
    /// # Cost
    /// Six comparisons. No copy.
    #[inline]
    pub fn from_record(record: &Record, nr_cpus: u32) -> Result<&Self, BadRecord> {
        let record: *const Record = record;
        // SAFETY: of the same size and alignment, shared for as long, and any bytes are valid:
        // there are integers only.
        let task = unsafe { &*record.cast::<Self>() };
        task.check(nr_cpus)?;
        Ok(task)
    }

    /// The words that the task was made of.
    pub fn as_record(&self) -> &Record {
        let task: *const Self = self;
        // SAFETY: of the same size and alignment, shared for as long, and without padding.
        unsafe { &*task.cast::<Record>() }
    }

    #[inline]
    fn check(&self, nr_cpus: u32) -> Result<(), BadRecord> {
        if Kind::of(self.kind).is_none() {
            return Err(BadRecord::Kind);
        }
        if self.id as usize >= MAX_TASKS {
            return Err(BadRecord::Id);
        }
        if !u32::try_from(self.cpu).is_ok_and(|cpu| cpu < nr_cpus) {
            return Err(BadRecord::Cpu);
        }
        if !(1..=10_000).contains(&self.weight) {
            return Err(BadRecord::Weight);
        }
        if self.nr_cpus_allowed == 0 {
            return Err(BadRecord::Affinity);
        }
        Ok(())
    }

    /// What the record says of the task.
    pub fn kind(&self) -> Kind {
        // Checked when it was made.
        Kind::of(self.kind).unwrap_or(Kind::Queued)
    }

    /// The epoch of the id, which each of its owners begins anew: 1 to 4,095.
    pub fn epoch(&self) -> u32 {
        self.generation >> EPOCH_SHIFT
    }

    /// What its weight is worth beside those of other control groups, as of the last ms or so, in
    /// 1/1,024: what its weight would have to be, times 1,024, if there were no groups. At
    /// least 1. Weights in a group are worth what the group's `cpu.weight` is, shared out among
    /// those that are runnable there, and so on upwards.
    pub fn share(&self) -> u64 {
        match self.share {
            0 => u64::from(self.weight) * SHARE,
            share => share.into(),
        }
    }

    /// `SCX_WAKE_*` of the wake-up; 0 if it was not woken.
    pub fn wake_flags(&self) -> u64 {
        self.flags >> WAKE_FLAGS_SHIFT & 0xff
    }

    /// Whether an idle CPU took it as it woke: no task waited for the CPU time that it got. Told
    /// with [`Kind::Direct`], always, and with [`Kind::Ordered`].
    pub fn found_idle(&self) -> bool {
        self.flags & FOUND_IDLE != 0
    }

    /// Whether it is of SCHED_BATCH or SCHED_IDLE, and says by that that it can wait.
    pub fn is_batch(&self) -> bool {
        self.flags & IS_BATCH != 0
    }

    /// The name of the thread, up to 15 bytes; the empty string if it is not UTF-8.
    pub fn comm_str(&self) -> &str {
        let name = self
            .comm
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default();
        core::str::from_utf8(name).unwrap_or_default()
    }

    /// Whether it was woken, as opposed to preempted, moved or at the end of its slice.
    pub fn is_wakeup(&self) -> bool {
        self.flags & 1 != 0
    }

    /// A task for tests, models and the simulated kernel: id, generation and CPU as given, of
    /// weight 100, the rest zero, allowed on `nr_cpus_allowed` CPUs. Nothing of it is checked,
    /// so no other build has this.
    #[cfg(any(test, feature = "sim"))]
    pub fn example(id: u32, generation: u32, cpu: i32, nr_cpus_allowed: u16) -> Self {
        Self {
            id,
            generation,
            pid: id as i32 + 1,
            tgid: id as i32 + 1,
            cpu,
            kind: Kind::Queued as u16,
            nr_cpus_allowed,
            flags: 0,
            weight: 100,
            share: 0,
            enqueued_at: 0,
            start_ts: 0,
            stop_ts: 0,
            exec_runtime: 0,
            sum_exec_runtime: 0,
            nvcsw: 0,
            slice: 0,
            waker: 0,
            vtime: 0,
            comm: *b"example\0\0\0\0\0\0\0\0\0",
        }
    }
}

/// Where the task that is due runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// On an idle CPU if there is one, the one where it ran last if possible; else on the first
    /// that becomes available, once fewer decisions than there are CPUs, and fewer than 128,
    /// lie ahead of it.
    #[default]
    First,
    /// On this CPU, after what runs there and what waits there with an earlier deadline. On the
    /// first that becomes available if it may not run there
    /// ([`Kind::Bounced`] tells), or 256 decisions lie ahead:
    /// [`Machine::backlog`](crate::policy::Machine::backlog) tells beforehand, and nothing does
    /// afterwards.
    On(u32),
    /// On this CPU, at once: what runs there gives way. After it, if this is a guess that has been
    /// overtaken. Otherwise as [`On`](Self::On).
    Preempt(u32),
    /// Nowhere yet. It, and all behind it, wait for the next turn.
    Later,
}

/// What shall become of a waiting task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DispatchedTask {
    /// Thread id, for the reader's sake: the kernel side goes by id and generation.
    pub pid: i32,
    /// The CPU to run on; ignored with [`RL_CPU_ANY`].
    pub cpu: i32,
    /// [`RL_CPU_ANY`], [`RL_PREEMPT`] or 0.
    pub flags: u64,
    /// How long it may run, in ns; 0 is the default slice.
    pub slice_ns: u64,
    /// Its deadline: among the tasks decided for the same CPU (or for any), the smaller runs
    /// first, equal ones in the order of dispatch. Compared by wrapping difference, as the
    /// kernel's `time_before64()` does. At the tick, a running task gives way to an earlier
    /// one. 0 is no deadline: such tasks run in the order of dispatch, and keep their slices to
    /// the end.
    pub vtime: u64,
    pub(crate) id: u32,
    pub(crate) generation: u32,
    pub(crate) pinned: bool,
}

impl DispatchedTask {
    /// The default decision: where it ran last, the default slice, in the order of dispatch.
    ///
    /// # Cost
    /// Five loads and 48 bytes written.
    pub fn new(task: &QueuedTask) -> Self {
        Self {
            pid: task.pid,
            cpu: task.cpu,
            flags: 0,
            slice_ns: 0,
            vtime: 0,
            id: task.id,
            generation: task.generation,
            pinned: task.nr_cpus_allowed == 1,
        }
    }
}

// `Record` and `QueuedTask` lie over one another; abi.rs and the C side assert where each field is,
// so that there is no hole.
const _: () = {
    assert!(size_of::<Record>() == size_of::<QueuedTask>());
    assert!(align_of::<Record>() == align_of::<QueuedTask>());
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_with_any_field_out_of_range_is_refused() {
        let good = QueuedTask::example(7, 1, 3, 4);
        assert_eq!(good.check(4), Ok(()));
        assert_eq!(
            QueuedTask { kind: 0, ..good }.check(4),
            Err(BadRecord::Kind)
        );
        assert_eq!(
            QueuedTask {
                id: MAX_TASKS as u32,
                ..good
            }
            .check(4),
            Err(BadRecord::Id)
        );
        assert_eq!(QueuedTask { cpu: 4, ..good }.check(4), Err(BadRecord::Cpu));
        for nr_cpus in [4, u32::MAX] {
            assert_eq!(
                QueuedTask { cpu: -2, ..good }.check(nr_cpus),
                Err(BadRecord::Cpu)
            );
        }
        assert_eq!(
            QueuedTask { weight: 0, ..good }.check(4),
            Err(BadRecord::Weight)
        );
        assert_eq!(
            QueuedTask {
                weight: 10_001,
                ..good
            }
            .check(4),
            Err(BadRecord::Weight)
        );
        assert_eq!(
            QueuedTask {
                nr_cpus_allowed: 0,
                ..good
            }
            .check(4),
            Err(BadRecord::Affinity)
        );
    }

    #[test]
    fn a_set_of_kinds_has_those_that_were_put_in_and_no_others() {
        let set = Kind::Blocked | Kind::TooLate | Kind::Queued;
        for kind in (0..=u16::MAX).filter_map(Kind::of) {
            let is_in = [Kind::Blocked, Kind::TooLate, Kind::Queued].contains(&kind);
            assert_eq!(set.contains(kind), is_in, "{kind:?}");
            assert!(Kinds::ALL.contains(kind) && !Kinds::NONE.contains(kind));
        }
    }

    #[test]
    fn a_name_ends_at_its_nul_or_at_16_bytes() {
        let task = QueuedTask::example(0, 0, 0, 1);
        assert_eq!(task.comm_str(), "example");
        assert_eq!(
            QueuedTask {
                comm: *b"sixteen bytes ok",
                ..task
            }
            .comm_str(),
            "sixteen bytes ok"
        );
        assert_eq!(
            QueuedTask {
                comm: [0xff; 16],
                ..task
            }
            .comm_str(),
            ""
        );
    }
}
