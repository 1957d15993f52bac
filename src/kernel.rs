//! [`BpfScheduler`]: the kernel side, loaded, and the calls of a scheduler written against it.
//!
//! The only user of libbpf-rs. Order at the start: check, open, load, map, lock, touch, and only then attach, so that the
//! scheduler never owns the machine while it can still fault (Invariant 2).

use std::ffi::c_char;
use std::fmt;
use std::hint;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread as std_thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossbeam_utils::CachePadded;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, MapType, OpenObject, PrintLevel, libbpf_sys};

use crate::abi::{
    Control, Counter, CpuLatency, CpuState, ExitRecord, MAILBOX_SLOTS, MAX_RINGS, MAX_TASKS,
    MachineState, MailboxHead, PickArgs, RING_BYTES, SHARED_MAILBOX_SLOTS, Slot,
};
use crate::bpf::{MetronomeSkel, MetronomeSkelBuilder, OpenMetronomeSkel};
use crate::exit::{UserExitInfo, handle_signals, stop_requested};
use crate::idle::Unrestricted;
use crate::latency::Latency;
use crate::limits::Limits;
use crate::mailbox::Full;
use crate::memory::{self, Mapping, page_size};
use crate::policy::{Machine, Policy, Running};
use crate::preflight;
use crate::ring::{Ring, RingCounts, RingMemory};
use crate::shared::{MailboxOf, Shared, SharedMemory};
use crate::stats::{Books, Snapshot};
use crate::task::{DispatchedTask, Kind, QueuedTask};
use crate::thread::{self, Haste, Place};
use crate::topology::{AgentCpu, Topology};
use crate::turn::Turn;
use crate::wait::{Next, Wait, Waiter};

const OPS_KEEP_BUILTIN_IDLE: u64 = 1;
const OPS_ENQ_EXITING: u64 = 1 << 2;
const OPS_SWITCH_PARTIAL: u64 = 1 << 3;
const OPS_ENQ_MIGRATION_DISABLED: u64 = 1 << 4;

/// The kernel's default (`SCX_EXIT_DUMP_DFL_LEN`), in bytes.
const DEFAULT_DUMP_LEN: u32 = 32_768;

/// How to start a [`BpfScheduler`].
#[derive(Clone, Debug)]
pub struct Builder {
    name: String,
    cpu: Option<u32>,
    exit_dump_len: u32,
    partial: bool,
    debug: bool,
    builtin_idle: bool,
    flat: bool,
    slice: Duration,
    slice_min: Duration,
    timeout: Duration,
    budget: Duration,
    limits: Limits,
    rings: Option<u32>,
    wait: Wait,
    preferred: Vec<u32>,
    kernel_log_level: u32,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            name: format!("metronome_{}", env!("CARGO_PKG_VERSION")),
            cpu: None,
            exit_dump_len: 0,
            partial: false,
            debug: false,
            builtin_idle: true,
            flat: false,
            slice: Duration::from_millis(20),
            slice_min: Duration::from_millis(1),
            timeout: Duration::from_secs(5),
            budget: Duration::from_millis(10),
            limits: Limits::default(),
            rings: None,
            wait: Wait::default(),
            preferred: Vec::new(),
            kernel_log_level: 0,
        }
    }
}

impl Builder {
    /// The defaults: all tasks, a CPU picked for the scheduler thread, slices of 20 ms, a watchdog of 5 s.
    pub fn new() -> Self {
        Self::default()
    }

    /// The name under which the kernel shows it in `/sys/kernel/sched_ext/root/ops`: up to 127 letters, digits, `_`, `.`.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_string();
        self
    }

    /// The CPU of the scheduler thread. Without: an isolated one, else one without a tick, else an
    /// efficiency core, else the last. (Kernels so far attach nothing while there are isolated ones: see
    /// [`topology`](crate::topology).)
    pub fn cpu(mut self, cpu: u32) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// Bytes of the dump that is made when the kernel throws the scheduler out; 0 is the kernel's default, 32,768.
    pub fn exit_dump_len(mut self, bytes: u32) -> Self {
        self.exit_dump_len = bytes;
        self
    }

    /// Whether to schedule only tasks that asked for it by `sched_setscheduler(SCHED_EXT)`; otherwise all ordinary tasks.
    pub fn partial(mut self, partial: bool) -> Self {
        self.partial = partial;
        self
    }

    /// Whether libbpf and the verifier tell on stderr what they do.
    pub fn debug(mut self, debug: bool) -> Self {
        self.debug = debug;
        self
    }

    /// Whether the kernel side sends a waking task to an idle CPU at once; otherwise user space is asked about every one.
    pub fn builtin_idle(mut self, builtin_idle: bool) -> Self {
        self.builtin_idle = builtin_idle;
        self
    }

    /// Whether control groups do not count: a task then has what its weight is worth, whatever the `cpu.weight` of its group. See
    /// [`QueuedTask::share`](crate::task::QueuedTask::share).
    pub fn flat(mut self, flat: bool) -> Self {
        self.flat = flat;
        self
    }

    /// The slice of a decision that names none, and of tasks that the kernel side places by itself.
    pub fn slice(mut self, slice: Duration) -> Self {
        self.slice = slice;
        self
    }

    /// What the slice of a task that takes turns by its order ([`Order::in_turn`](crate::orders::Order::in_turn)) is shortened to at least as others wait.
    pub fn slice_min(mut self, slice_min: Duration) -> Self {
        self.slice_min = slice_min;
        self
    }

    /// How long a runnable task may wait before the kernel throws the scheduler out; up to 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How late the scheduler thread may be before the kernel side goes on alone, until it is back: 1 ms to 10 s.
    pub fn budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    /// What the kernel side allows tasks before it acts by itself: each more than 0, and at most 10 s; the slices at most 1 s.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How many rings carry tasks to user space: 1, 2, 4, 8 or 16, of 1 MiB each. Without: one for each 16 CPUs.
    pub fn rings(mut self, rings: u32) -> Self {
        self.rings = Some(rings);
        self
    }

    /// What the scheduler thread does when there is nothing to do; see [`wait`](crate::wait).
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }

    /// CPUs to prefer, of those that are idle, when user space looks for one. Without: all alike.
    pub fn prefer(mut self, cpus: &[u32]) -> Self {
        self.preferred = cpus.to_vec();
        self
    }

    /// How much the kernel's verifier writes down, 0 to 7; seen with [`debug`](Self::debug).
    pub fn kernel_log_level(mut self, level: u32) -> Self {
        self.kernel_log_level = level;
        self
    }

    /// Checks the machine, loads the kernel side, locks the memory, and attaches. The calling thread becomes the scheduler
    /// thread: it moves to its CPU. Until then it has nice level -20, if it may, so that a full machine does not wait long.
    ///
    /// # Errors
    /// One line that says what is in the way and what to do. Nothing is left attached.
    pub fn attach<'a>(self, object: &'a mut MaybeUninit<OpenObject>) -> Result<BpfScheduler<'a>> {
        self.check()?;
        let _haste = Haste::make();
        let hotplug_seq = preflight::check()?;
        let mut topology = Topology::read()?;
        topology.prefer(&self.preferred)?;
        let agent = topology.pick_agent_cpu(self.cpu, &thread::reach()?)?;
        handle_signals()?;
        listen_to_libbpf(self.debug);

        let mut open = with_libbpf("cannot open the BPF object", || {
            let mut builder = MetronomeSkelBuilder::default();
            builder.obj_builder.debug(self.debug);
            let options = libbpf_sys::bpf_object_open_opts {
                sz: size_of::<libbpf_sys::bpf_object_open_opts>() as _,
                kernel_log_level: self.kernel_log_level,
                ..Default::default()
            };
            builder.open_opts(options, object)
        })?;
        self.configure(&mut open, &topology, agent.cpu, hotplug_seq)?;
        go_on_with_births(&mut open)?;
        let skel = with_libbpf("the kernel refuses the BPF object", || open.load())?;
        keep_births(&skel)?;
        BpfScheduler::start(skel, topology, agent, &self)
    }

    /// One ring for each 16 CPUs.
    ///
    /// What a ring bears: `cargo bench --bench contention`, on two cores of an EPYC of family 26, says
    ///
    /// | producers, each as fast as it can | ns per record and producer | records/s in all |
    /// |-----------------------------------|----------------------------|------------------|
    /// | 1 on a ring                       | 52                         | 19 M             |
    /// | 2 on a ring                       | 224                        | 9 M              |
    /// | 2 on a ring each                  | 52                         | 39 M             |
    ///
    /// So the lock of a ring that two share is held, and handed on, for 112 ns per record; of one that 52 share, for 500 ns (2 M/s in
    /// the kernel's `tools/testing/selftests/bpf/benchs/bench_ringbufs.c`). Who comes now and then waits for
    /// `load / (2 * (1 - load))` of that on average (a queue with one server and a constant service time). That wait shall be half of
    /// the 52 ns that a record costs in any case: with 500 ns, a load of 9.4 %, or 188,000 records/s. A busy CPU that
    /// switches every 100 us writes 10,000 of them, so a ring bears 18 CPUs; 16 of them are the next power of two below. With 112 ns it
    /// would be 280. With one ring for 1,024 CPUs the load would be five times what it bears.
    ///
    /// Whatever the number, it costs the scheduler thread a load per ring and turn (`cargo bench --bench scale`).
    fn nr_rings(&self, topology: &Topology) -> u32 {
        self.rings.unwrap_or_else(|| {
            let wanted = topology.nr_cpus.div_ceil(16).next_power_of_two();
            wanted.min(MAX_RINGS as u32)
        })
    }

    fn check(&self) -> Result<()> {
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if self.name.is_empty() || self.name.len() > 127 || !self.name.chars().all(legal) {
            bail!(
                "the scheduler's name {:?} must be 1 to 127 letters, digits, '_' or '.'",
                self.name
            );
        }
        if let Some(rings) = self.rings
            && (!rings.is_power_of_two() || rings > MAX_RINGS as u32)
        {
            bail!("the number of rings is {rings}, but must be 1, 2, 4, 8 or 16");
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(10)).contains(&self.budget) {
            bail!(
                "the scheduler thread's budget is {:?}, but must be 1 ms to 10 s",
                self.budget
            );
        }
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(30) {
            bail!(
                "the watchdog's timeout is {:?}, but the kernel allows 1 ms to 30 s",
                self.timeout
            );
        }
        for (what, slice) in [("default", self.slice), ("least", self.slice_min)] {
            if slice.is_zero() || slice > Duration::from_secs(1) {
                bail!("the {what} slice is {slice:?}, but must be more than 0 and at most 1 s");
            }
        }
        self.limits.check()
    }

    fn configure(
        &self,
        open: &mut OpenMetronomeSkel<'_>,
        topology: &Topology,
        agent_cpu: u32,
        hotplug_seq: u64,
    ) -> Result<()> {
        let dump_len = if self.exit_dump_len == 0 {
            DEFAULT_DUMP_LEN
        } else {
            self.exit_dump_len
        };
        self.set_options(open, topology, agent_cpu, dump_len)?;
        size_maps(open, topology.nr_cpus, dump_len)?;
        let ops = open.struct_ops.metronome_mut();
        ops.flags = OPS_KEEP_BUILTIN_IDLE | OPS_ENQ_EXITING | OPS_ENQ_MIGRATION_DISABLED;
        if self.partial {
            ops.flags |= OPS_SWITCH_PARTIAL;
        }
        ops.timeout_ms = self.timeout.as_millis() as u32;
        ops.exit_dump_len = dump_len;
        ops.hotplug_seq = hotplug_seq;
        ops.name.fill(0);
        for (to, from) in ops.name.iter_mut().zip(self.name.bytes()) {
            *to = from as c_char;
        }
        Ok(())
    }

    fn set_options(
        &self,
        open: &mut OpenMetronomeSkel<'_>,
        topology: &Topology,
        agent_cpu: u32,
        dump_len: u32,
    ) -> Result<()> {
        let rodata = open
            .maps
            .rodata_data
            .as_deref_mut()
            .context("the BPF object has no options")?;
        rodata.nr_cpus = topology.nr_cpus;
        rodata.nr_rings = self.nr_rings(topology);
        rodata.agent_cpu = agent_cpu as i32;
        rodata.budget_ns = self.budget.as_nanos() as u64;
        rodata.builtin_idle = self.builtin_idle;
        rodata.is_flat = self.flat;
        self.limits.write(&mut rodata.limits);
        rodata.exit_dump_len = dump_len;
        let data = open.maps.data_data.as_deref_mut();
        let data = data.context("the BPF object has no parameters")?;
        data.slice_ns = self.slice.as_nanos() as u64;
        data.slice_min_ns = self.slice_min.as_nanos() as u64;
        Ok(())
    }
}

impl Limits {
    fn check(&self) -> Result<()> {
        let (second, longest) = (Duration::from_secs(1), Duration::from_secs(10));
        for (name, value, most) in [
            ("preempt_margin", self.preempt_margin, longest),
            ("undisturbed", self.undisturbed, longest),
            ("hand_off", self.hand_off, longest),
            ("urgent", self.urgent, longest),
            ("protected", self.protected, longest),
            ("longest_wait", self.longest_wait, longest),
            ("far_ahead", self.far_ahead, longest),
            ("taken", self.taken, longest),
            ("longest_slice", self.longest_slice, second),
            ("guest_slice", self.guest_slice, second),
            ("agent_slice", self.agent_slice, second),
        ] {
            if value.is_zero() || value > most {
                bail!(
                    "the limit {name} is {value:?}, but must be more than 0 and at most {most:?}"
                );
            }
        }
        Ok(())
    }

    fn write(&self, to: &mut crate::bpf::types::limits) {
        let ns = |time: Duration| time.as_nanos() as u64;
        to.preempt_margin_ns = ns(self.preempt_margin);
        to.undisturbed_ns = ns(self.undisturbed);
        to.hand_off_ns = ns(self.hand_off);
        to.urgent_ns = ns(self.urgent);
        to.protected_ns = ns(self.protected);
        to.longest_wait_ns = ns(self.longest_wait);
        to.far_ahead_ns = ns(self.far_ahead);
        to.taken_ns = ns(self.taken);
        to.longest_slice_ns = ns(self.longest_slice);
        to.guest_slice_ns = ns(self.guest_slice);
        to.agent_slice_ns = ns(self.agent_slice);
        to.order_of_kthreads = self.kernel_threads.map_or(0, |order| order.encode(0));
    }
}

/// As large as this machine needs them.
fn size_maps(open: &mut OpenMetronomeSkel<'_>, nr_cpus: u32, dump_len: u32) -> Result<()> {
    open.maps
        .mailboxes
        .set_max_entries(nr_cpus)
        .context("cannot size the mailboxes")?;
    open.maps
        .cpus
        .set_max_entries(nr_cpus)
        .context("cannot size the CPU states")?;
    open.maps
        .latencies
        .set_max_entries(nr_cpus)
        .context("cannot size the latency histograms")?;
    open.maps
        .cpu_ctxs
        .set_max_entries(nr_cpus)
        .context("cannot size what the CPUs keep for themselves")?;
    open.maps
        .exit_dump
        .set_value_size(dump_len)
        .context("cannot size the exit dump")?;
    Ok(())
}

/// What can be changed while a policy runs: see [`BpfScheduler::run_tuned`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// As [`Builder::wait`].
    pub wait: Wait,
    /// As [`Builder::slice`].
    pub slice: Duration,
    /// As [`Builder::slice_min`].
    pub slice_min: Duration,
}

/// The map of the births of task ids, which all loads of this process have in common. A policy may outlive a load, as it does when a CPU
/// comes or goes. If births began anew, it would take what it keeps by id and birth for what it knows of another task.
static BIRTHS: OnceLock<OwnedFd> = OnceLock::new();

fn go_on_with_births(open: &mut OpenMetronomeSkel<'_>) -> Result<()> {
    let Some(births) = BIRTHS.get() else {
        return Ok(());
    };
    with_libbpf("cannot go on with the births of task ids", || {
        open.maps.id_slots.reuse_fd(births.as_fd())
    })
}

fn keep_births(skel: &MetronomeSkel<'_>) -> Result<()> {
    let births = skel.maps.id_slots.as_fd();
    let births = births
        .try_clone_to_owned()
        .context("cannot keep the births of task ids")?;
    // From the second load on it is the map that is there already.
    let _ = BIRTHS.set(births);
    Ok(())
}

/// The last line that libbpf printed, for the error that follows.
static LIBBPF_SAID: Mutex<String> = Mutex::new(String::new());

fn listen_to_libbpf(debug: bool) {
    fn keep(_: PrintLevel, line: String) {
        let mut said = LIBBPF_SAID.lock().unwrap_or_else(PoisonError::into_inner);
        // The first complaint is the cause, what follows is fallout.
        if said.is_empty() {
            *said = line.trim().replace('\n', " | ");
        }
    }
    fn show(_: PrintLevel, line: String) {
        eprint!("{line}");
    }
    libbpf_rs::set_print(Some(if debug {
        (PrintLevel::Debug, show)
    } else {
        (PrintLevel::Warn, keep)
    }));
}

/// Runs a step of libbpf; if it fails, the error has what libbpf said.
fn with_libbpf<T>(step: &str, run: impl FnOnce() -> libbpf_rs::Result<T>) -> Result<T> {
    LIBBPF_SAID
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clear();
    run().map_err(|error| {
        let said = LIBBPF_SAID
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let said = if said.is_empty() {
            String::new()
        } else {
            format!(" ({said})")
        };
        anyhow::anyhow!("{step}: {error:#}{said}")
    })
}

/// What the scheduler thread counts. One writer, any number of readers.
#[derive(Debug, Default)]
struct UserCounts {
    taken: AtomicU64,
    sent: AtomicU64,
    superseded: AtomicU64,
    waiting: AtomicU64,
    syscalls: AtomicU64,
    /// Page faults of the scheduler thread before it began to schedule.
    faults_at_start: AtomicU64,
}

/// Adds to a counter that has one writer: no locked instruction.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}

/// The mapped memory. It must outlive every pointer into it, so it is dropped last.
#[derive(Debug)]
struct Mappings {
    rings: Vec<MappedRing>,
    mailboxes: Mapping,
    shared_mailbox: Mapping,
    cpus: Arc<Mapping>,
    latencies: Arc<Mapping>,
    machine: Mapping,
    orders: Mapping,
    control: Mapping,
    exit_record: Mapping,
}

/// A ring, mapped as the kernel's `ringbuf_map_mmap_kern()` allows it: only the consumer page may be written.
#[derive(Debug)]
struct MappedRing {
    fd: OwnedFd,
    consumer: Mapping,
    /// The producer page and the data.
    data: Mapping,
}

impl MappedRing {
    fn new(ring: BorrowedFd<'_>) -> Result<Self> {
        let page = page_size();
        let write = libc::PROT_READ | libc::PROT_WRITE;
        let size = page + 2 * RING_BYTES as usize;
        Ok(Self {
            fd: ring
                .try_clone_to_owned()
                .context("cannot keep a ring open")?,
            consumer: Mapping::new(ring, 0, page, write, "a ring's consumer page")?,
            data: Mapping::new(ring, page as i64, size, libc::PROT_READ, "a ring's data")?,
        })
    }

    fn ring(&self, nr_cpus: u32) -> Ring {
        // SAFETY: the producer page comes first in this mapping, the data behind it.
        let data = unsafe { self.data.start().add(page_size()) };
        let memory = RingMemory {
            consumer: self.consumer.start().cast(),
            producer: self.data.start().cast(),
            data,
            size: u64::from(RING_BYTES),
        };
        // SAFETY: mapped as the ring's three pieces; `BpfScheduler` drops the ring before the mappings and makes one only.
        unsafe { Ring::new(memory, nr_cpus) }
    }
}

impl Mappings {
    fn new(skel: &MetronomeSkel<'_>, nr_cpus: usize, nr_rings: u32) -> Result<Self> {
        let mailbox = |slots: usize| size_of::<MailboxHead>() + slots * size_of::<Slot>();
        let map = |map: &dyn MapCore, bytes: usize, what: &'static str| {
            let write = libc::PROT_READ | libc::PROT_WRITE;
            Mapping::new(map.as_fd(), 0, bytes, write, what)
        };
        let maps = &skel.maps;
        let mailboxes = nr_cpus * mailbox(MAILBOX_SLOTS);
        let states = nr_cpus * size_of::<CpuState>();
        let latencies = nr_cpus * size_of::<CpuLatency>();
        Ok(Self {
            rings: map_rings(skel, nr_rings)?,
            mailboxes: map(&maps.mailboxes, mailboxes, "the mailboxes")?,
            shared_mailbox: map(
                &maps.shared_mailbox,
                mailbox(SHARED_MAILBOX_SLOTS),
                "the shared mailbox",
            )?,
            cpus: Arc::new(map(&maps.cpus, states, "the CPU states")?),
            latencies: Arc::new(map(&maps.latencies, latencies, "the latency histograms")?),
            machine: map(
                &maps.machine,
                size_of::<MachineState>(),
                "the state of the machine",
            )?,
            orders: map(
                &maps.orders,
                MAX_TASKS * size_of::<u64>(),
                "the standing orders",
            )?,
            control: map(&maps.control, size_of::<Control>(), "the control page")?,
            exit_record: map(
                &maps.exit_record,
                size_of::<ExitRecord>(),
                "the exit record",
            )?,
        })
    }

    fn touch(&self) {
        let Self {
            rings,
            mailboxes,
            shared_mailbox,
            cpus,
            latencies,
            machine,
            orders,
            control,
            exit_record,
        } = self;
        for MappedRing { consumer, data, .. } in rings {
            consumer.touch();
            data.touch();
        }
        for mapping in [
            mailboxes,
            shared_mailbox,
            cpus,
            latencies,
            machine,
            orders,
            control,
            exit_record,
        ] {
            mapping.touch();
        }
    }

    /// The two sides' memory as the core wants it.
    fn shared(&self, nr_cpus: u32, agent_cpu: u32) -> Shared {
        let memory = SharedMemory {
            mailboxes: self.mailboxes.start(),
            shared_mailbox: self.shared_mailbox.start(),
            cpus: self.cpus.start().cast(),
            machine: self.machine.start().cast(),
            orders: self.orders.start().cast(),
            control: self.control.start().cast(),
            nr_cpus,
            agent_cpu,
        };
        let rings = self.rings.iter().map(|ring| ring.ring(nr_cpus));
        // SAFETY: arrays of `nr_cpus` elements of a freshly loaded object; dropped before the mappings.
        unsafe { Shared::new(memory, rings) }
    }

    fn exit_record(&self) -> &ExitRecord {
        let at: NonNull<ExitRecord> = self.exit_record.start().cast();
        // SAFETY: mapped with the size of an ExitRecord. The kernel writes its texts once, before `kind`, and they are read
        // only once `kind` has been seen.
        unsafe { at.as_ref() }
    }
}

/// Makes the rings beside the first, which the object has, and maps all.
fn map_rings(skel: &MetronomeSkel<'_>, nr_rings: u32) -> Result<Vec<MappedRing>> {
    let mut rings = vec![MappedRing::new(skel.maps.ring.as_fd())?];
    for index in 1..nr_rings {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let ring = MapHandle::create(MapType::RingBuf, Some("ring"), 0, 0, RING_BYTES, &options)
            .context("cannot make a ring")?;
        let fd = ring.as_fd().as_raw_fd();
        skel.maps
            .queued
            .update(
                &index.to_ne_bytes(),
                &(fd as u32).to_ne_bytes(),
                MapFlags::ANY,
            )
            .context("cannot hand the kernel side a ring")?;
        rings.push(MappedRing::new(ring.as_fd())?);
    }
    Ok(rings)
}

/// A scheduler whose policy runs here, attached to the kernel.
///
/// The thread that made it is the scheduler thread, and the only one that may use it. Dropping it detaches: the kernel's
/// default scheduler takes all tasks over.
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

/// A ring has a record that no kernel side of ours wrote, or a position that neither side did. The scheduler is ending.
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

/// A mailbox has a position that neither side wrote: some decisions never leave it. The scheduler is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMailbox(
    /// Which it is.
    pub MailboxOf,
);

impl fmt::Display for BadMailbox {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} holds a position of nobody's making", self.0)
    }
}

impl std::error::Error for BadMailbox {}

/// There was no room for the decision in any mailbox. The task still waits: dispatch it again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MailboxesFull;

impl fmt::Display for MailboxesFull {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("all mailboxes are full")
    }
}

impl std::error::Error for MailboxesFull {}

impl<'a> BpfScheduler<'a> {
    /// The short way to [`Builder::attach`], with the arguments of `scx_rustland_core`: bytes of the exit dump (0: default),
    /// whether to schedule only SCHED_EXT tasks, whether to be talkative.
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

    fn start(
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
            .context("cannot tell the kernel side who its scheduler is")?;
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
    /// Tasks that a policy has left behind ([`run_until`](Self::run_until)) are dispatched before, in its order, to any CPU.
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

    /// Says what shall become of a task. CPUs that are idle are woken for it by [`notify_complete`](Self::notify_complete).
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
    /// As [`dequeue_task`](Self::dequeue_task) without the copies, and with one store for each eighth of the ring.
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

    /// Tasks that a policy took and did not decide about have nobody else to speak for them.
    fn dispatch_leftovers(&mut self) {
        let Some(turn) = &mut self.turn else { return };
        if turn.waiting() > 0 {
            let sent = turn.hand_over(&mut self.shared);
            bump(&self.counts.sent, sent as u64);
        }
    }

    /// As [`dispatch_task`](Self::dispatch_task) for each of them in turn, until there is no room. Returns how many were dispatched: those
    /// behind them still wait.
    ///
    /// # Cost
    /// As that of each.
    pub fn dispatch_batch(&mut self, tasks: &[DispatchedTask]) -> usize {
        let fits = |task: &&DispatchedTask| self.shared.dispatch(task).is_ok();
        let dispatched = tasks.iter().take_while(fits).count();
        bump(&self.counts.sent, dispatched as u64);
        dispatched
    }

    /// Claims an idle CPU for a task, `prev_cpu` if possible, else the nearest; see [`idle`](crate::idle). `flags` are
    /// `SCX_WAKE_*` of the kernel. Negative if there is none.
    ///
    /// Only the kernel knows where a task may run that may not run everywhere, so about those it is asked, and about tasks
    /// that [`dequeue_task`](Self::dequeue_task) has not returned lately. The claim ends with
    /// [`notify_complete`](Self::notify_complete), which kicks the CPU.
    ///
    /// # Cost
    /// A load for every 64 CPUs, and a search if one is idle. For other tasks, a system call if one is idle.
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
            self.shared.promise(cpu);
        }
        found
    }

    /// Ends a turn: CPUs that are idle are woken for what was dispatched. `nr_pending` is how many tasks the policy still
    /// holds. If there is nothing to do, waits as [`Builder::wait`] says.
    ///
    /// # Cost
    /// A fence if anything was dispatched, and one system call if any CPU must be woken; another one to sleep.
    pub fn notify_complete(&mut self, nr_pending: u64) {
        let left = self.turn.as_ref().map_or(0, |turn| turn.waiting() as u64);
        self.counts
            .waiting
            .store(nr_pending + left, Ordering::Relaxed);
        if self.shared.flush() != 0 {
            bump(&self.counts.syscalls, 1);
            // It fails only for a wrong file descriptor. A kick that is lost costs the time until the CPU's next event.
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
            // For a sibling on the same core. A hypervisor would take it for the wait for a lock, whose holder it should let run in
            // our place, and interrupt us.
            hint::spin_loop();
        }
    }

    /// Runs a policy until the scheduler ends.
    ///
    /// # Errors
    /// As [`shutdown_and_report`](Self::shutdown_and_report).
    pub fn run(&mut self, policy: &mut impl Policy) -> Result<UserExitInfo> {
        self.run_tuned(policy, |_| None)
    }

    /// As [`run`](Self::run). Before each turn `tune` may change the policy's parameters, and the scheduler's.
    ///
    /// # Errors
    /// As [`shutdown_and_report`](Self::shutdown_and_report).
    pub fn run_tuned<P: Policy>(
        &mut self,
        policy: &mut P,
        mut tune: impl FnMut(&mut P) -> Option<Tuning>,
    ) -> Result<UserExitInfo> {
        self.start_counting_faults()?;
        self.turns(policy, |scheduler, policy| {
            if let Some(tuning) = tune(policy) {
                scheduler.tune(tuning);
            }
            true
        });
        self.shutdown_and_report()
    }

    /// Runs a policy until the scheduler ends or `until` says so. The next call, with this policy or another one, goes on
    /// with every task in its place: in between nothing is detached, and who waits waits for as long as it takes.
    /// The policy's standing orders end with it, and it is told of nothing more. The other verbs may go on, too:
    /// see [`dequeue_task`](Self::dequeue_task).
    pub fn run_until(&mut self, policy: &mut impl Policy, mut until: impl FnMut() -> bool) {
        self.turns(policy, |_, _| !until());
    }

    fn tune(&mut self, tuning: Tuning) {
        self.waiter.set(tuning.wait);
        if let Some(data) = self.skel.maps.data_data.as_deref_mut() {
            for (word, slice) in [
                (&raw mut data.slice_ns, tuning.slice),
                (&raw mut data.slice_min_ns, tuning.slice_min),
            ] {
                // SAFETY: a live, aligned word of the object's mapped data, which others only read.
                let word = unsafe { AtomicU64::from_ptr(word) };
                // ORDERING: relaxed, with the loads of default_slice_ns() in bpf/state.h and turn_slice_ns() in bpf/turns.h: no
                // other word depends on it.
                word.store(slice.as_nanos() as u64, Ordering::Relaxed);
            }
        }
    }

    /// Runs a policy until the scheduler ends, or `go_on`, which is asked before each turn, says no.
    fn turns<P: Policy>(
        &mut self,
        policy: &mut P,
        mut go_on: impl FnMut(&mut Self, &mut P) -> bool,
    ) {
        let Some(mut turn) = self.turn.take() else {
            return;
        };
        self.shared.set_newborn(policy.newborn());
        policy.begin(&Machine(&self.shared));
        turn.adopt(policy);
        self.shared.listen(policy.events(), policy.tell_us());
        let seal = memory::seal();
        while !self.exited() && go_on(self, policy) {
            let turned = turn.turn(&mut self.shared, policy);
            bump(&self.counts.taken, turned.taken as u64);
            bump(&self.counts.sent, turned.handed_out as u64);
            bump(&self.counts.superseded, turned.superseded as u64);
            self.notify_complete(turn.waiting() as u64);
        }
        drop(seal);
        self.shared.listen(0, 0);
        self.shared.clear_orders();
        self.turn = Some(turn);
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

    /// Whether the scheduler is to end or has ended: the kernel threw it out, or SIGINT or SIGTERM came.
    ///
    /// # Cost
    /// Two loads, and one for each ring.
    pub fn exited(&self) -> bool {
        // ORDERING: relaxed, with the store of the signal handler, and with the swap at the end of metronome_exit() in
        // bpf/metronome.bpf.c: they only say that it is over. Who reads what else is in the record waits for its kind by acquire.
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
        // ORDERING: acquire, with the swap at the end of metronome_exit() in bpf/metronome.bpf.c: the rest of the record is there.
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

    /// The accounts of both sides. They say something only after [`shutdown_and_report`](Self::shutdown_and_report).
    pub fn books(&mut self) -> Books {
        let counts = self.snapshot();
        let mut left_in_ring = 0;
        self.shared.drain(usize::MAX, |task| {
            left_in_ring += u64::from(task.kind() == Kind::Queued);
        });
        Books {
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

/// Reads the counters and latencies of a [`BpfScheduler`] from any thread.
#[derive(Clone)]
pub struct Watch {
    cpus: Arc<Mapping>,
    latencies: Arc<Mapping>,
    nr_cpus: u32,
    counts: Arc<CachePadded<UserCounts>>,
    tid: i32,
    affinity: Option<libc::cpu_set_t>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Watch").field(&self.snapshot()).finish()
    }
}

impl Watch {
    /// A thread started by the scheduler thread is bound to its CPU: this sets the calling thread free.
    pub fn leave_scheduler_cpu(&self) {
        if let Some(affinity) = &self.affinity {
            // Failing costs only this thread: the two take turns there.
            let _ = thread::set_affinity(affinity);
        }
    }

    /// All counters.
    pub fn snapshot(&self) -> Snapshot {
        let count = |counter| self.count(counter);
        let user = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            queued: count(Counter::Queued),
            ring_full: count(Counter::RingFull),
            direct: count(Counter::Direct),
            kernel_side: count(Counter::KernelSide),
            no_id: count(Counter::NoId),
            dispatched: count(Counter::Dispatched),
            stale: count(Counter::Stale),
            gone: count(Counter::Gone),
            rescued: count(Counter::Rescued),
            bounced: count(Counter::Bounced),
            takeover: count(Counter::Takeover),
            ordered: count(Counter::Ordered),
            handed_off: count(Counter::HandedOff),
            preempted: count(Counter::Preempted),
            in_turn: count(Counter::InTurn),
            used_up: count(Counter::UsedUp),
            bad_orders: count(Counter::BadOrder),
            events: count(Counter::Events),
            events_lost: count(Counter::EventsLost),
            late: count(Counter::Late),
            alone: count(Counter::Alone),
            taken: user(&self.counts.taken),
            sent: user(&self.counts.sent),
            superseded: user(&self.counts.superseded),
            waiting: user(&self.counts.waiting),
            syscalls: user(&self.counts.syscalls),
            allocations: memory::sealed_allocations(),
            faults: memory::faults(self.tid).map_or(0, |faults| {
                faults.saturating_sub(user(&self.counts.faults_at_start))
            }),
        }
    }

    /// How long each hop has taken so far. Nobody is held up by it.
    pub fn latency(&self) -> Latency {
        let mut latency = Latency::default();
        let first: NonNull<CpuLatency> = self.latencies.start().cast();
        for cpu in 0..self.nr_cpus as usize {
            // SAFETY: within the mapped array of `nr_cpus` elements.
            let at = unsafe { first.add(cpu) };
            // SAFETY: mapped and aligned; all its fields are atomics.
            latency.add(unsafe { at.as_ref() });
        }
        latency
    }

    /// Whether each CPU is idle, and what it runs, or ran last.
    pub fn cpus(&self) -> impl Iterator<Item = (bool, Running)> {
        self.states().map(|state| {
            // ORDERING: relaxed, with the addition in publish_idle() in bpf/metronome.bpf.c: a guess, like what it runs.
            let is_idle = state.idle_seq.load(Ordering::Relaxed) & 1 != 0;
            (is_idle, Running::read(&state.running))
        })
    }

    fn states(&self) -> impl Iterator<Item = &CpuState> {
        let first: NonNull<CpuState> = self.cpus.start().cast();
        (0..self.nr_cpus as usize).map(move |cpu| {
            // SAFETY: within the mapped array of `nr_cpus` states.
            let at = unsafe { first.add(cpu) };
            // SAFETY: mapped and aligned; all its fields are atomics.
            unsafe { at.as_ref() }
        })
    }

    fn count(&self, counter: Counter) -> u64 {
        // ORDERING: relaxed, with count() and add_and_order() in bpf/state.h: each counter stands for itself.
        self.states()
            .filter_map(|state| state.counters.get(counter as usize))
            .map(|counter| counter.load(Ordering::Relaxed))
            .fold(0, u64::wrapping_add)
    }
}

/// Runs a SYSCALL program and returns what it returned.
///
/// # Cost
/// One system call; no allocation.
fn run_program<T>(fd: i32, context: Option<&mut T>) -> Result<i32> {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        ..Default::default()
    };
    if let Some(context) = context {
        options.ctx_size_in = size_of::<T>() as u32;
        options.ctx_in = std::ptr::from_mut(context).cast();
    }
    // SAFETY: the options are live, and their context is of the size told.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(fd, &mut options) };
    if result != 0 {
        bail!(
            "the kernel did not run it: {}",
            std::io::Error::from_raw_os_error(-result)
        );
    }
    Ok(options.retval as i32)
}
