//! One turn of the scheduler thread: drain the ring, order, hand out. The one place with control
//! flow.
//!
//! # Problem
//! Each task that waits wants an answer at once, and a policy wants to see all that wait before it
//! answers any. Two ways that fail: to decide about each record as it is read is first come, first
//! served, whatever the deadlines; to wait until nothing more comes starves the first while a flood
//! lasts.
//!
//! # Mechanism
//! A turn takes 256 records at most into a queue by deadline, and hands out from its front until as
//! much is decided ahead as the CPUs may need before the next turn. Then all idle CPUs are kicked
//! together. A task has one place in the queue, by its id: a newer record of it replaces the older,
//! whose enqueue is over. A task that exits stays in the queue until it is due; the decision
//! is then dropped by the kernel side, which is cheaper than to look for it.
//!
//! # How far ahead to decide
//! A decision that is handed out early can no longer be overtaken in our queue, only in the DSQ of
//! the kernel side, which is ordered by the same deadline; a decision handed out late leaves a CPU
//! idle. So a task goes straight to an idle CPU if there is one, and otherwise into the mailbox of
//! all CPUs, until that holds one decision for each CPU, 128 at most: enough for all of them to run
//! out of work in the same moment.
//!
//! # Cost
//! In `cargo bench --bench decision`, some 50 to 80 ns a decision with 64 tasks waiting, of 16 to a
//! turn, and about twice as much with 65,536: while one is made, what the next needs is fetched. A
//! turn in which there is nothing to do reads a position of each ring and stores the
//! heartbeat.
#![deny(clippy::indexing_slicing)]

use crate::abi::MAX_TASKS;
use crate::mailbox::Decision;
use crate::policy::{Due, Machine, Place, Policy};
use crate::prefetch::prefetch;
use crate::queue::{DeadlineQueue, Entry};
use crate::shared::Shared;
use crate::task::{Kind, QueuedTask};

/// Records taken in one turn at most, so that a flood does not delay the decisions that are due.
const BATCH: usize = 256;

/// Decisions for any CPU that lie ahead at most. By the time that so many CPUs have taken theirs,
/// there are more.
const AHEAD: u64 = 128;

/// What is kept of so many waiting tasks lies in the near caches, without being asked for.
const NEAR: usize = 256;

/// A task in our queue. All zero: never seen.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    generation: u32,
    pid: i32,
    cpu: i32,
    nr_cpus_allowed: u16,
}

/// What a turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turned {
    /// Enqueue records taken.
    pub taken: usize,
    /// Other records taken.
    pub events: usize,
    /// Decisions handed out.
    pub handed_out: usize,
    /// Records that replaced an older one of the same task, whose enqueue is over.
    pub superseded: usize,
}

/// The state of the loop around a policy, for task ids below `TASKS`. About 3 MB for all of them:
/// build it where it shall stay. All-zero bytes are one in which nothing waits.
#[derive(Debug)]
pub struct Turn<const TASKS: usize = MAX_TASKS> {
    queue: DeadlineQueue<TASKS>,
    waiting: [Waiting; TASKS],
    /// Ids on their way from one policy to the next.
    adopted: [u32; TASKS],
}

impl<const TASKS: usize> Turn<TASKS> {
    /// How many tasks wait in our queue.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Takes what waits, asks the policy, and hands out what is due. The caller flushes and kicks.
    ///
    /// # Cost
    /// Per record: a check, a policy call, a heap push; per decision: a heap pop, a policy call, a
    /// mailbox push. No allocation, no system call.
    pub fn turn(&mut self, shared: &mut Shared, policy: &mut impl Policy) -> Turned {
        let mut turned = Turned::default();
        let events = policy.events();
        if !shared.rings_are_empty() {
            policy.look(&Machine(shared));
        }
        shared.drain_with_orders(BATCH, |task, next, orders| {
            if let Some(next) = next.id() {
                orders.prefetch(next);
                self.queue.prefetch(next);
                self.prefetch(next, policy);
            }
            if task.kind() == Kind::Queued {
                turned.taken += 1;
                turned.superseded += usize::from(self.admit(task, policy));
            } else {
                turned.events += 1;
                // What another policy asked for may still be in the ring.
                if events.contains(task.kind()) {
                    policy.event(task);
                }
            }
            // The id may have an owner of another epoch, with an order.
            if task.kind() == Kind::TooLate {
                return;
            }
            // An order given to a task that has exited would be void, but stay in the table.
            let order = policy.order(task).filter(|_| task.kind() != Kind::Exited);
            orders.set(task, order);
        });
        turned.handed_out = self.hand_out(shared, policy);
        turned
    }

    /// Another policy goes on: every waiting task stays, in the order in which it waited.
    ///
    /// # Cost
    /// Two heap operations for each waiting task. No allocation.
    pub fn adopt(&mut self, policy: &mut impl Policy) {
        let waiting = self.queue.len();
        // All out before the first goes back, so that no old deadline meets a new one.
        for id in self.adopted.iter_mut().take(waiting) {
            *id = self.queue.pop().map_or(0, |first| first.id);
        }
        for (nr, id) in self.adopted.iter().take(waiting).enumerate() {
            // Each was in the queue once.
            let _ = self.queue.push(*id, policy.adopt(*id, nr as u64));
        }
    }

    /// No policy goes on: every waiting task goes to the first CPU that becomes available, in the
    /// order in which it waited. Returns how many did; those for which there was no room still
    /// wait.
    pub fn hand_over(&mut self, shared: &mut Shared) -> usize {
        let mut handed_over = 0;
        while let Some(first) = self.queue.peek() {
            let Some(waiting) = self.waiting.get(first.id as usize) else {
                break;
            };
            let due = waiting.due(first);
            let place = only_cpu(&due).unwrap_or(Place::First);
            // Its deadline is of the policy's clock, which says nothing to others.
            if shared.send(waiting.decision(first.id, 0, 0), place).is_err() {
                break;
            }
            self.queue.pop();
            handed_over += 1;
        }
        handed_over
    }

    /// Puts a task into the queue. Returns whether it was there already, by an enqueue that is
    /// over.
    fn admit(&mut self, task: &QueuedTask, policy: &mut impl Policy) -> bool {
        let deadline = policy.deadline(task);
        if let Some(waiting) = self.waiting.get_mut(task.id as usize) {
            *waiting = Waiting {
                generation: task.generation,
                pid: task.pid,
                cpu: task.cpu,
                nr_cpus_allowed: task.nr_cpus_allowed,
            };
        }
        match self.queue.push(task.id, deadline) {
            Ok(()) => false,
            Err(_) => self.queue.update(task.id, deadline),
        }
    }

    fn hand_out(&mut self, shared: &mut Shared, policy: &mut impl Policy) -> usize {
        let mut handed_out = 0;
        // A CPU that goes idle later in this turn is kicked by flush(), or served in the next.
        let mut any_idle = true;
        while let Some(first) = self.queue.peek() {
            let Some(waiting) = self.waiting.get(first.id as usize) else {
                break;
            };
            let due = waiting.due(first);
            let place = place(&due, shared, policy, &mut any_idle);
            if place == Place::Later {
                break;
            }
            let behind = self.queue.len() - 1 + shared.shared_backlog() as usize;
            let slice_ns = policy.slice_ns(due.id, behind);
            let decision = waiting.decision(due.id, slice_ns, due.deadline);
            if shared.send(decision, place).is_err() {
                policy.refused(&due);
                break;
            }
            self.queue.pop();
            if self.queue.len() > NEAR
                && let Some(second) = self.queue.second()
            {
                self.prefetch(second.id, policy);
            }
            handed_out += 1;
        }
        handed_out
    }

    /// Has fetched what is kept for a task, here and by the policy.
    fn prefetch(&self, id: u32, policy: &impl Policy) {
        prefetch(self.waiting.get(id as usize));
        policy.prefetch(id);
    }
}

impl Waiting {
    fn due(&self, entry: Entry) -> Due {
        Due {
            id: entry.id,
            pid: self.pid,
            deadline: entry.deadline,
            cpu: self.cpu,
            nr_cpus_allowed: self.nr_cpus_allowed,
        }
    }

    fn decision(&self, id: u32, slice_ns: u64, vtime: u64) -> Decision {
        Decision {
            id,
            generation: self.generation,
            slice_ns,
            vtime,
            flags: 0,
        }
    }
}

/// Where a task runs that may run on a single CPU, which may be the scheduler thread's.
fn only_cpu(due: &Due) -> Option<Place> {
    (due.nr_cpus_allowed == 1).then_some(Place::On(due.cpu as u32))
}

/// Where the task runs now: on a CPU, on the first that becomes available, or nowhere yet.
fn place(
    due: &Due,
    shared: &mut Shared,
    policy: &mut impl Policy,
    any_idle: &mut bool,
) -> Place {
    if let Some(place) = only_cpu(due) {
        return place;
    }
    match policy.place(due, &Machine(shared)) {
        Place::First => first_available(due, shared, any_idle),
        place => place,
    }
}

fn first_available(due: &Due, shared: &mut Shared, any_idle: &mut bool) -> Place {
    if *any_idle {
        let idle = shared.idle_cpu(due.cpu);
        *any_idle = idle.is_some();
        // Of a task with some CPUs forbidden we only know that its last CPU is allowed; the kernel
        // side knows the others.
        let may_use = |cpu: &u32| {
            u32::from(due.nr_cpus_allowed) >= shared.nr_cpus() || *cpu == due.cpu as u32
        };
        if let Some(cpu) = idle.filter(may_use) {
            return Place::On(cpu);
        }
    }
    let ahead = u64::from(shared.nr_cpus()).min(AHEAD);
    if shared.shared_backlog() < ahead { Place::First } else { Place::Later }
}
