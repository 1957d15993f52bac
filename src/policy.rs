//! What a scheduler decides: in which order tasks run, and for how long.
//!
//! # Problem
//! A policy should say what it wants in a few lines, and be unable to lose a task, decide about one
//! twice, or block the loop by mistake. One that gets the waiting tasks and gives decisions back,
//! as in `scx_rustland_core`, has all of that in its own hands: it keeps the queue, chooses the
//! CPU, and loses a task by a `return` too early. One that is a table of parameters cannot be
//! anything but a variation of what its author thought of.
//!
//! # Mechanism
//! A [`Policy`] says four things of a task: its deadline, its slice, its [`Place`], its standing
//! order. The queue, the mailboxes and the kicks belong to [`turn`](crate::turn), which asks at the
//! moments when the answer counts. A policy never touches shared memory; what it may know of the
//! CPUs it reads through [`Machine`]. A program that wants the loop for itself has `dequeue_task()`
//! and `dispatch_task()`.
//!
//! # Cost
//! Calls are static, so a method that is not overridden costs nothing. [`Policy::order`] is asked
//! for each record, and [`Policy::place`] and [`Policy::slice_ns`] for each decision.

use crate::orders::Order;
use crate::shared::Shared;
use crate::task::{Kinds, QueuedTask};

pub use crate::prefetch::prefetch;
pub use crate::running::{Running, RunningKind};
pub use crate::task::Place;

pub mod deadline;
pub mod fifo;

/// The task that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Its dense id.
    pub id: u32,
    /// Thread id.
    pub pid: i32,
    /// What [`Policy::deadline`] said.
    pub deadline: u64,
    /// Where it ran last.
    pub cpu: i32,
    /// How many CPUs its affinity allows; the number of possible CPUs if it allows all that take
    /// tasks.
    pub nr_cpus_allowed: u16,
}

/// The CPUs, as a policy sees them.
#[derive(Debug)]
pub struct Machine<'a>(pub(crate) &'a Shared);

impl Machine<'_> {
    /// How many CPUs there are: the bound of their numbers.
    pub fn nr_cpus(&self) -> u32 {
        self.0.nr_cpus()
    }

    /// The CPU of the scheduler thread, which gets no decisions.
    pub fn agent_cpu(&self) -> u32 {
        self.0.agent_cpu()
    }

    /// Whether the CPU takes tasks: it is online, and not that of the scheduler thread.
    pub fn is_worker(&self, cpu: u32) -> bool {
        self.0.is_worker(cpu)
    }

    /// Whether the CPU is idle.
    pub fn is_idle(&self, cpu: u32) -> bool {
        self.0.is_idle(cpu)
    }

    /// What runs on the CPU, or ran last; `None` if there is no such CPU.
    ///
    /// # Cost
    /// Loads from one cache line that the CPU writes with each task.
    pub fn running(&self, cpu: u32) -> Option<Running> {
        self.0.running(cpu)
    }

    /// What is left of the slice of what runs on the CPU, ns; 0 if it is used up, or there is no
    /// such CPU. [`u64::MAX`] is no limit.
    ///
    /// # Cost
    /// As [`running`](Self::running), and reading a clock.
    pub fn slice_left(&self, cpu: u32) -> u64 {
        let Some((running, now)) = self.running(cpu).zip(self.0.now()) else {
            return 0;
        };
        let used = now.saturating_sub(running.since);
        match running.slice {
            u64::MAX => u64::MAX,
            slice => slice.saturating_sub(used),
        }
    }

    /// How many tasks wait for the CPU alone, by decisions that name it. A guess: what has been
    /// taken from its mailbox is counted when it gets a task.
    pub fn backlog(&self, cpu: u32) -> u64 {
        self.0.backlog_of(cpu)
    }

    /// Virtual time of the tasks that take turns by their orders ([`Order::in_turn`]), ns: what one
    /// of weight 100 should have had that was always runnable. 0 before any has run.
    ///
    /// # Cost
    /// A load of a line that all CPUs write.
    pub fn virtual_now(&self) -> u64 {
        self.0.virtual_now()
    }

    /// Real time, in the clock of [`QueuedTask::enqueued_at`]; 0 if no clock was set.
    ///
    /// # Cost
    /// Reading a clock.
    pub fn now(&self) -> u64 {
        self.0.now().unwrap_or_default()
    }

    /// How many decisions for any CPU have not been taken yet.
    pub fn shared_backlog(&self) -> u64 {
        self.0.shared_backlog()
    }
}

/// A scheduling policy: it orders the waiting tasks.
///
/// All calls come from the scheduler thread. None may allocate, block, or call the system.
pub trait Policy {
    /// From now on this policy decides: at the start, after another policy, and after CPUs have
    /// come or gone.
    ///
    /// No record tells of a CPU that comes or goes. The kernel ends a scheduler without
    /// `cpu_online()` and `cpu_offline()` then, and asks for a restart; ours has neither,
    /// because mailboxes, dispatch queues, topology and the scheduler thread's own CPU are
    /// chosen for the CPUs that are there, and a restart chooses anew. What is kept by id and
    /// [`epoch`](QueuedTask::epoch) stays valid over it.
    fn begin(&mut self, _machine: &Machine<'_>) {}

    /// There are records: what follows is about them.
    fn look(&mut self, _machine: &Machine<'_>) {}

    /// One of the next calls is about the task of this id. A policy that keeps something for each
    /// may have it fetched by [`prefetch()`]. That is all: the id is any number, and other calls
    /// may come before.
    fn prefetch(&self, _id: u32) {}

    /// A task waits. Returns its deadline, in ns of a clock of the policy's own choosing; the
    /// smallest runs first, equal ones in the order of their arrival. Deadlines are compared by
    /// wrapping difference, so those in use at the same time must lie within 2^63 of each
    /// other.
    ///
    /// While a task runs, its deadline moves on by its virtual runtime. At a tick it gives way to a
    /// task with an earlier one, so its slice is at most about the distance between the two. 0 is
    /// no deadline: such a task keeps its slice to the end.
    fn deadline(&mut self, task: &QueuedTask) -> u64;

    /// The task of this id gets a CPU next. Returns its slice in ns; 0 is the default slice.
    /// `waiting` other tasks wait.
    fn slice_ns(&mut self, id: u32, waiting: usize) -> u64;

    /// Where the task that is due runs. Called for one task after the other, in the order of their
    /// deadlines, until one waits. About a task that may run on a single CPU there is nothing
    /// to ask: it goes there when it is due.
    fn place(&mut self, _task: &Due, _machine: &Machine<'_>) -> Place {
        Place::First
    }

    /// There was no room for the decision in any mailbox: 16,384 lie ahead. The task still waits,
    /// and is due again in the next turn.
    fn refused(&mut self, _task: &Due) {}

    /// Another policy is at the end, and this one takes over its waiting tasks, one after the other
    /// in the order of their deadlines. Returns the deadline of the `nr`th, in this policy's
    /// clock.
    fn adopt(&mut self, _id: u32, nr: u64) -> u64 {
        nr
    }

    /// The standing order of a task, asked after each record about it. It holds from the task's
    /// next wake-up on.
    fn order(&mut self, _task: &QueuedTask) -> Option<Order> {
        None
    }

    /// The standing order that a new task starts with, until the policy is asked for one of its
    /// own. A task whose parent's order says so ([`Order::inherit`]) starts with that instead.
    /// Asked once, when the policy begins. Kernel threads are the exception: they start with
    /// one that answers within 1 ms for up to 4 ms of work, because others wait for them, the
    /// policy itself not excepted.
    fn newborn(&self) -> Option<Order> {
        None
    }

    /// Something has happened to a task, of a [`kind`](QueuedTask::kind) that
    /// [`events`](Self::events) asks for. The records of one task come in order; one may be
    /// missing, if the ring was full. So what is kept by id is another task's as soon as
    /// [`epoch`](QueuedTask::epoch) is another.
    fn event(&mut self, _task: &QueuedTask) {}

    /// The kinds of records to be told of besides enqueue records. The kernel side hears of it when
    /// the policy begins.
    fn events(&self) -> Kinds {
        Kinds::NONE
    }

    /// Of the wake-ups of one task that have no enqueue record
    /// ([`Kind::Ordered`](crate::task::Kind::Ordered) and
    /// [`Kind::Direct`](crate::task::Kind::Direct)) one in so many µs is told of, and as many of
    /// its calls ([`Kind::Caller`](crate::task::Kind::Caller)); 0 is each. Asked once, when the
    /// policy begins.
    ///
    /// 4 ms by default: often enough to see a task change its ways, and seldom enough that pairs
    /// which wake each other all the time do not fill the ring.
    fn tell_us(&self) -> u32 {
        4_000
    }
}

/// All calls of one policy go to another one.
macro_rules! deref_policy {
    () => {
        fn begin(&mut self, machine: &Machine<'_>) {
            (**self).begin(machine);
        }

        fn look(&mut self, machine: &Machine<'_>) {
            (**self).look(machine);
        }

        fn prefetch(&self, id: u32) {
            (**self).prefetch(id);
        }

        fn deadline(&mut self, task: &QueuedTask) -> u64 {
            (**self).deadline(task)
        }

        fn slice_ns(&mut self, id: u32, waiting: usize) -> u64 {
            (**self).slice_ns(id, waiting)
        }

        fn place(&mut self, task: &Due, machine: &Machine<'_>) -> Place {
            (**self).place(task, machine)
        }

        fn refused(&mut self, task: &Due) {
            (**self).refused(task);
        }

        fn adopt(&mut self, id: u32, nr: u64) -> u64 {
            (**self).adopt(id, nr)
        }

        fn order(&mut self, task: &QueuedTask) -> Option<Order> {
            (**self).order(task)
        }

        fn newborn(&self) -> Option<Order> {
            (**self).newborn()
        }

        fn event(&mut self, task: &QueuedTask) {
            (**self).event(task);
        }

        fn events(&self) -> Kinds {
            (**self).events()
        }

        fn tell_us(&self) -> u32 {
            (**self).tell_us()
        }
    };
}

/// So that a policy can be chosen while it runs, as `&mut dyn Policy`.
impl<P: Policy + ?Sized> Policy for &mut P {
    deref_policy!();
}

/// So that policies can be kept and swapped as `Box<dyn Policy>`.
#[cfg(any(feature = "kernel", feature = "sim"))]
impl<P: Policy + ?Sized> Policy for Box<P> {
    deref_policy!();
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::task::Kind;

    /// Says a number of its own each time that it is asked.
    #[derive(Default)]
    struct Numbers(u32);

    impl Policy for Numbers {
        fn begin(&mut self, _machine: &Machine<'_>) {
            self.0 += 1;
        }

        fn deadline(&mut self, _task: &QueuedTask) -> u64 {
            1
        }

        fn slice_ns(&mut self, _id: u32, _waiting: usize) -> u64 {
            2
        }

        fn refused(&mut self, _task: &Due) {
            self.0 += 10;
        }

        fn adopt(&mut self, _id: u32, _nr: u64) -> u64 {
            3
        }

        fn order(&mut self, _task: &QueuedTask) -> Option<Order> {
            Some(Order::default())
        }

        fn newborn(&self) -> Option<Order> {
            Some(Order::default())
        }

        fn event(&mut self, _task: &QueuedTask) {
            self.0 += 100;
        }

        fn events(&self) -> Kinds {
            Kind::Blocked.into()
        }

        fn tell_us(&self) -> u32 {
            5
        }
    }

    fn answers(mut policy: impl Policy) {
        let task = QueuedTask::example(1, 1, 0, 4);
        let due = Due {
            id: 1,
            pid: 1,
            deadline: 0,
            cpu: 0,
            nr_cpus_allowed: 4,
        };
        assert_eq!(policy.deadline(&task), 1);
        assert_eq!(policy.slice_ns(1, 0), 2);
        assert_eq!(policy.adopt(1, 0), 3);
        assert_eq!(
            (policy.events(), policy.tell_us()),
            (Kind::Blocked.into(), 5)
        );
        assert!(policy.order(&task).is_some() && policy.newborn().is_some());
        policy.refused(&due);
        policy.event(&task);
    }

    #[test]
    fn a_policy_behind_a_pointer_is_asked_everything() {
        let mut numbers = Numbers::default();
        answers(&mut numbers as &mut dyn Policy);
        assert_eq!(numbers.0, 110);
        #[cfg(any(feature = "kernel", feature = "sim"))]
        answers(Box::new(numbers) as Box<dyn Policy>);
    }
}
