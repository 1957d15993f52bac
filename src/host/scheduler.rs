//! [`BpfScheduler`]: the kernel side, loaded, and the calls of a scheduler written against it.

use std::fmt;
use std::hint;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread as std_thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossbeam_utils::CachePadded;
use libbpf_rs::{Link, MapCore, MapFlags, OpenObject};

use super::builder::Builder;
use super::counts::{UserCounts, bump};
use super::error::{BadMailbox, BadRing, MailboxesFull};
use super::exit::{UserExitInfo, stop_requested};
use super::mappings::Mappings;
use super::memory;
use super::object::{run_program, with_libbpf};
use super::thread::{self, Place};
use super::topology::{AgentCpu, Topology};
use super::watch::Watch;
use crate::abi::PickArgs;
use crate::bpf::MetronomeSkel;
use crate::idle::Unrestricted;
use crate::mailbox::Full;
use crate::policy::{Machine, Policy};
use crate::shared::Shared;
use crate::stats::{Accounting, Snapshot};
use crate::task::{DispatchedTask, Kind, Kinds, QueuedTask};
use crate::turn::Turn;
use crate::wait::{Next, Wait, Waiter};

/// What can be changed while a policy runs: see [`BpfScheduler::tune`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// As [`Builder::wait`].
    pub wait: Wait,
    /// As [`Builder::slice`].
    pub slice: Duration,
    /// As [`Builder::slice_min`].
    pub slice_min: Duration,
}

/// A scheduler whose policy runs here, attached to the kernel.
///
/// The thread that made it is the scheduler thread, and the only one that may use it. Dropping it
/// detaches: the kernel's default scheduler takes all tasks over.
pub struct BpfScheduler<'a> {
    /// Dropped first: detaches.
    link: Option<Link>,
    shared: Box<Shared>,
    counts: Arc<CachePadded<UserCounts>>,
    stop: &'static AtomicBool,
    tid: i32,
    waiter: Waiter,
    /// The CPU is one of a hypervisor's.
    is_virtual: bool,
    /// Tasks taken and decided up to the last time that there was something to do.
    done: u64,
    kick_fd: i32,
    pick_fd: i32,
    place: Option<Place>,
    /// Made before the memory is locked; out while a policy runs.
    turn: Option<Box<Turn>>,
    unrestricted: Box<Unrestricted>,
    topology: Topology,
    agent: AgentCpu,
    skel: MetronomeSkel<'a>,
    mappings: Mappings,
}

impl fmt::Debug for BpfScheduler<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("BpfScheduler")
            .field("counts", &self.snapshot())
            .finish_non_exhaustive()
    }
}

impl<'a> BpfScheduler<'a> {
    /// The short way to [`Builder::attach`], with the arguments of `scx_rustland_core`: bytes of
    /// the exit dump (0: default), whether to schedule only SCHED_EXT tasks, whether to be
    /// talkative.
    ///
    /// # Errors
    /// As [`Builder::attach`].
    pub fn init(
        object: &'a mut MaybeUninit<OpenObject>,
        exit_dump_len: u32,
        partial: bool,
        debug: bool,
    ) -> Result<Self> {
        Builder::new()
            .exit_dump_len(exit_dump_len)
            .partial(partial)
            .debug(debug)
            .attach(object)
    }

    pub(super) fn start(
        skel: MetronomeSkel<'a>,
        topology: Topology,
        agent: AgentCpu,
        builder: &Builder,
    ) -> Result<Self> {
        let nr_rings = builder.nr_rings(&topology);
        let mappings = Mappings::new(&skel, topology.nr_cpus as usize, nr_rings)?;
        let mut shared = Box::new(mappings.shared(topology.nr_cpus, agent.cpu));
        shared.set_places(&topology.places());
        shared.set_online(&topology.online);
        shared.set_clock(thread::now);
        let place = Place::take(agent.cpu)?;
        let mut scheduler = Self {
            link: None,
            shared,
            counts: Arc::default(),
            stop: stop_requested(),
            tid: thread::id(),
            waiter: Waiter::new(builder.wait),
            is_virtual: thread::is_virtual(),
            done: 0,
            kick_fd: skel.progs.kick_cpus.as_fd().as_raw_fd(),
            pick_fd: skel.progs.pick_idle_cpu.as_fd().as_raw_fd(),
            place: Some(place),
            turn: Some(memory::zeroed()),
            unrestricted: Box::default(),
            topology,
            agent,
            skel,
            mappings,
        };
        let become_agent = scheduler.skel.progs.become_agent.as_fd().as_raw_fd();
        run_program(become_agent, None::<&mut PickArgs>)
            .context("cannot tell the kernel side which thread is its scheduler")?;
        scheduler.settle_memory()?;
        let attach = || scheduler.skel.maps.metronome.attach_struct_ops();
        let step = if scheduler.topology.isolated.is_empty() {
            "cannot attach the scheduler (has another been loaded this moment?)"
        } else {
            "cannot attach the scheduler: no kernel takes one that was booted with isolcpus=CPUS (boot with nohz_full=CPUS, or \
             isolcpus=nohz,CPUS: the scheduler thread then takes the last of them)"
        };
        let link = with_libbpf(step, attach)?;
        scheduler.link = Some(link);
        scheduler.start_counting_faults()?;
        Ok(scheduler)
    }

    /// Faults before this moment were those of getting ready.
    fn start_counting_faults(&self) -> Result<()> {
        self.counts
            .faults_at_start
            .store(memory::faults(self.tid)?, Ordering::Relaxed);
        Ok(())
    }

    /// Locks and touches everything, and sees whether touching it again still faults.
    fn settle_memory(&self) -> Result<()> {
        memory::lock()?;
        self.mappings.touch();
        let before = memory::faults(self.tid)?;
        self.mappings.touch();
        let faults = memory::faults(self.tid)? - before;
        // Reading the count costs an allocation, and so perhaps a fault or two.
        if faults > 8 {
            bail!(
                "the scheduler's memory does not stay resident: {faults} page faults on a second pass over it"
            );
        }
        Ok(())
    }

    /// Takes one task that waits, if there is one.
    ///
    /// Tasks that a policy has left behind ([`run_until`](Self::run_until)) are dispatched before,
    /// in its order, to any CPU.
    ///
    /// # Errors
    /// [`BadRing`]: the scheduler cannot go on; [`exited`](Self::exited) is true from then on.
    ///
    /// # Cost
    /// Two atomic loads, a store, and a copy of 120 bytes.
    pub fn dequeue_task(&mut self) -> Result<Option<QueuedTask>, BadRing> {
        self.dispatch_leftovers();
        let mut task = self.shared.dequeue();
        // What a policy asked to be told of may still be in the ring.
        while task.is_some_and(|task| task.kind() != Kind::Queued) {
            task = self.shared.dequeue();
        }
        if let Some(task) = &task {
            bump(&self.counts.taken, 1);
            self.unrestricted.note(task, self.shared.nr_cpus());
        } else if let Some(bad) = self.bad_ring() {
            return Err(bad);
        }
        Ok(task)
    }

    /// Says what shall become of a task. CPUs that are idle are woken for it by
    /// [`notify_complete`](Self::notify_complete).
    ///
    /// # Errors
    /// [`MailboxesFull`].
    ///
    /// # Cost
    /// A few stores. No system call.
    pub fn dispatch_task(&mut self, task: &DispatchedTask) -> Result<(), MailboxesFull> {
        self.shared
            .dispatch(task)
            .map_err(|Full(_)| MailboxesFull)?;
        bump(&self.counts.sent, 1);
        Ok(())
    }

    /// Hands the tasks that wait to `each`, in place, at most `limit` of them; returns how many.
    ///
    /// # Errors
    /// As [`dequeue_task`](Self::dequeue_task).
    ///
    /// # Cost
    /// As [`dequeue_task`](Self::dequeue_task) without the copies, and with one store for each
    /// eighth of the ring.
    pub fn drain(
        &mut self,
        limit: usize,
        mut each: impl FnMut(&QueuedTask),
    ) -> Result<usize, BadRing> {
        self.dispatch_leftovers();
        let Self {
            shared,
            unrestricted,
            ..
        } = self;
        let nr_cpus = shared.nr_cpus();
        let mut taken = 0;
        loop {
            let mut events = 0;
            let records = shared.drain(limit - taken, |task| match task.kind() {
                Kind::Queued => {
                    unrestricted.note(task, nr_cpus);
                    each(task);
                }
                // As in dequeue_task().
                _ => events += 1,
            });
            taken += records - events;
            if events == 0 {
                break;
            }
        }
        bump(&self.counts.taken, taken as u64);
        match self.bad_ring() {
            Some(bad) if taken == 0 => Err(bad),
            _ => Ok(taken),
        }
    }

    /// The kernel side tells only once of a task that waits, also if a policy took it and did not
    /// decide about it.
    fn dispatch_leftovers(&mut self) {
        let Some(turn) = &mut self.turn else { return };
        if turn.waiting() > 0 {
            let sent = turn.hand_over(&mut self.shared);
            bump(&self.counts.sent, sent as u64);
        }
    }

    /// As [`dispatch_task`](Self::dispatch_task) for each of them in turn, until there is no room.
    /// Returns how many were dispatched: those behind them still wait.
    ///
    /// # Cost
    /// As that of each.
    pub fn dispatch_batch(&mut self, tasks: &[DispatchedTask]) -> usize {
        let fits = |task: &&DispatchedTask| self.shared.dispatch(task).is_ok();
        let dispatched = tasks.iter().take_while(fits).count();
        bump(&self.counts.sent, dispatched as u64);
        dispatched
    }

    /// Claims an idle CPU for a task, `prev_cpu` if possible, else the nearest; see
    /// [`idle`](crate::idle). `flags` are `SCX_WAKE_*` of the kernel. Negative if there is
    /// none.
    ///
    /// Only the kernel knows where a task may run that may not run everywhere, so about those it is
    /// asked, and about tasks that [`dequeue_task`](Self::dequeue_task) has not returned
    /// lately. The claim ends with [`notify_complete`](Self::notify_complete), which kicks the
    /// CPU.
    ///
    /// # Cost
    /// A load for every 64 CPUs, and a search if one is idle. For other tasks, a system call if one
    /// is idle.
    pub fn select_cpu(&mut self, pid: i32, prev_cpu: i32, flags: u64) -> i32 {
        if self.unrestricted.contains(pid) {
            let found = self.shared.claim_idle_cpu(prev_cpu);
            return found.map_or(-libc::EBUSY, |cpu| cpu as i32);
        }
        if !self.shared.any_idle() {
            return -libc::EBUSY;
        }
        bump(&self.counts.syscalls, 1);
        let mut args = PickArgs {
            pid,
            prev_cpu,
            wake_flags: flags,
        };
        let found = run_program(self.pick_fd, Some(&mut args)).unwrap_or(-libc::EIO);
        if let Ok(cpu) = u32::try_from(found) {
            // So that the next search of ours does not find it again.
            self.shared.note_kick(cpu);
        }
        found
    }

    /// Ends a turn: CPUs that are idle are woken for what was dispatched. `nr_pending` is how many
    /// tasks the policy still holds. If there is nothing to do, waits as [`Builder::wait`]
    /// says.
    ///
    /// # Cost
    /// A fence if anything was dispatched, and one system call if any CPU must be woken; another
    /// one to sleep.
    pub fn notify_complete(&mut self, nr_pending: u64) {
        let left = self.turn.as_ref().map_or(0, |turn| turn.waiting() as u64);
        self.counts
            .waiting
            .store(nr_pending + left, Ordering::Relaxed);
        if self.shared.flush() != 0 {
            bump(&self.counts.syscalls, 1);
            // It fails only for a wrong file descriptor. A kick that is lost costs the time until
            // the CPU's next event.
            let _ = run_program(self.kick_fd, None::<&mut PickArgs>);
        }
        let counted = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let done = counted(&self.counts.taken) + counted(&self.counts.sent);
        if nr_pending != 0 || done != self.done {
            self.done = done;
            self.waiter.busy();
        } else {
            self.wait();
        }
    }

    /// There is nothing to do.
    fn wait(&mut self) {
        if self.waiter.idle(thread::now) == Next::Park {
            let rings = self.mappings.rings.iter().map(|ring| ring.fd.as_raw_fd());
            let slept = self.shared.park(|| thread::sleep_until_readable(rings));
            bump(&self.counts.syscalls, u64::from(slept));
        } else if !self.is_virtual {
            // For a sibling on the same core. A hypervisor would take it for the wait for a lock,
            // whose holder it should let run in our place, and interrupt us.
            hint::spin_loop();
        }
    }

    /// Runs a policy until the scheduler ends.
    ///
    /// # Errors
    /// As [`shutdown_and_report`](Self::shutdown_and_report).
    pub fn run(&mut self, policy: &mut impl Policy) -> Result<UserExitInfo> {
        self.run_until(policy, |_, _| false);
        self.shutdown_and_report()
    }

    /// Runs a policy until the scheduler ends or `until` says so, which is asked before each turn
    /// and may change the policy's parameters, or [`tune`](Self::tune) the scheduler.
    ///
    /// The next call, with this policy or another one, goes on with every task in its place: in
    /// between nothing is detached, and a task that waits does so for as long as it takes. The
    /// policy's standing orders end with it, and it is told of nothing more. The other verbs may go
    /// on, too: see [`dequeue_task`](Self::dequeue_task).
    pub fn run_until<P: Policy>(
        &mut self,
        policy: &mut P,
        mut until: impl FnMut(&mut Self, &mut P) -> bool,
    ) {
        let Some(mut turn) = self.turn.take() else {
            return;
        };
        self.shared.set_newborn(policy.newborn());
        policy.begin(&Machine(&self.shared));
        turn.adopt(policy);
        self.shared.listen(policy.events(), policy.tell_us());
        if self.counts.taken.load(Ordering::Relaxed) == 0 {
            // They could be read when the scheduler was attached.
            let _ = self.start_counting_faults();
        }
        let seal = memory::seal();
        while !self.exited() && !until(self, policy) {
            let turned = turn.turn(&mut self.shared, policy);
            bump(&self.counts.taken, turned.taken as u64);
            bump(&self.counts.sent, turned.handed_out as u64);
            bump(&self.counts.superseded, turned.superseded as u64);
            self.notify_complete(turn.waiting() as u64);
        }
        drop(seal);
        self.shared.listen(Kinds::NONE, 0);
        self.shared.clear_orders();
        self.turn = Some(turn);
    }

    /// Changes how the scheduler thread waits and how long slices are, from now on.
    pub fn tune(&mut self, tuning: Tuning) {
        self.waiter.set(tuning.wait);
        if let Some(data) = self.skel.maps.data_data.as_deref_mut() {
            for (word, slice) in [
                (&raw mut data.slice_ns, tuning.slice),
                (&raw mut data.slice_min_ns, tuning.slice_min),
            ] {
                // SAFETY: a live, aligned word of the object's mapped data, which others only read.
                let word = unsafe { AtomicU64::from_ptr(word) };
                // ORDERING: relaxed, with the loads of default_slice_ns() in bpf/state.h and
                // turn_slice_ns() in bpf/turns.h: no other word depends on it.
                word.store(slice.as_nanos() as u64, Ordering::Relaxed);
            }
        }
    }

    /// The CPU of the scheduler thread.
    pub fn cpu(&self) -> u32 {
        self.agent.cpu
    }

    /// The same, and why it is that one.
    pub fn agent_cpu(&self) -> AgentCpu {
        self.agent
    }

    /// The CPUs, as they were when it was attached.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Whether the scheduler is to end or has ended: the kernel threw it out, or SIGINT or SIGTERM
    /// came.
    ///
    /// # Cost
    /// Two loads, and one for each ring.
    pub fn exited(&self) -> bool {
        // ORDERING: relaxed, with the store of the signal handler, and with the swap at the end of
        // metronome_exit() in bpf/metronome.bpf.c: they only say that it is over. A thread that
        // reads what else is in the record waits for its kind by acquire.
        self.stop.load(Ordering::Relaxed)
            || self.mappings.exit_record().kind.load(Ordering::Relaxed) != 0
            || self.bad_ring().is_some()
            || self.shared.bad_mailbox().is_some()
    }

    fn bad_ring(&self) -> Option<BadRing> {
        let counts = self.shared.ring_counts();
        counts.are_bad().then_some(BadRing { counts })
    }

    /// Detaches, if that has not happened yet, and says why the scheduler ended.
    ///
    /// # Errors
    /// The [`UserExitInfo`], if the kernel threw the scheduler out; [`BadRing`]; [`BadMailbox`].
    pub fn shutdown_and_report(&mut self) -> Result<UserExitInfo> {
        drop(self.link.take());
        self.place = None;
        memory::unlock();
        let stopped = self.stop.swap(false, Ordering::Relaxed);
        let record = self.mappings.exit_record();
        let deadline = Instant::now() + Duration::from_secs(10);
        // ORDERING: acquire, with the swap at the end of metronome_exit() in bpf/metronome.bpf.c:
        // the rest of the record is there.
        while record.kind.load(Ordering::Acquire) == 0 && Instant::now() < deadline {
            std_thread::sleep(Duration::from_millis(1));
        }
        let dump = self
            .skel
            .maps
            .exit_dump
            .lookup(&0u32.to_ne_bytes(), MapFlags::ANY)?
            .unwrap_or_default();
        let info = UserExitInfo::read(record, &dump, stopped);
        if info.is_error() {
            return Err(info.into());
        }
        if let Some(bad) = self.bad_ring() {
            return Err(bad.into());
        }
        match self.shared.bad_mailbox() {
            Some(of) => Err(BadMailbox(of).into()),
            None => Ok(info),
        }
    }

    /// The accounts of both sides. They say something only after
    /// [`shutdown_and_report`](Self::shutdown_and_report).
    pub fn accounting(&mut self) -> Accounting {
        let counts = self.snapshot();
        let mut left_in_ring = 0;
        self.shared.drain(usize::MAX, |task| {
            left_in_ring += u64::from(task.kind() == Kind::Queued);
        });
        Accounting {
            counts,
            left_in_ring,
            left_in_policy: counts.waiting,
            left_in_mailboxes: self.shared.backlog(),
        }
    }

    /// All counters.
    pub fn snapshot(&self) -> Snapshot {
        self.watch().snapshot()
    }

    /// A reader of counters and latencies for another thread.
    pub fn watch(&self) -> Watch {
        Watch {
            cpus: Arc::clone(&self.mappings.cpus),
            latencies: Arc::clone(&self.mappings.latencies),
            nr_cpus: self.shared.nr_cpus(),
            counts: Arc::clone(&self.counts),
            tid: self.tid,
            affinity: self.place.as_ref().map(Place::former_affinity),
        }
    }
}

impl Drop for BpfScheduler<'_> {
    fn drop(&mut self) {
        // Detach before anything that the kernel side needs goes away.
        drop(self.link.take());
        memory::unlock();
    }
}
