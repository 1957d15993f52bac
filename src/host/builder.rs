//! [`Builder`]: how a scheduler is started, and what its options mean for the BPF object.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{OpenObject, libbpf_sys};

use super::exit::handle_signals;
use super::object::{go_on_with_births, keep_births, listen_to_libbpf, with_libbpf};
use super::preflight;
use super::scheduler::BpfScheduler;
use super::thread::{self, Haste};
use super::topology::Topology;
use crate::abi::MAX_RINGS;
use crate::bpf::{MetronomeSkelBuilder, OpenMetronomeSkel};
use crate::limits::Limits;
use crate::wait::Wait;

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
    pub(super) wait: Wait,
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
    /// The defaults: all tasks, a CPU picked for the scheduler thread, slices of 20 ms, a watchdog
    /// of 5 s.
    pub fn new() -> Self {
        Self::default()
    }

    /// The name under which the kernel shows it in `/sys/kernel/sched_ext/root/ops`: up to 127
    /// letters, digits, `_`, `.`.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_string();
        self
    }

    /// The CPU of the scheduler thread. Without: an isolated one, else one without a tick, else an
    /// efficiency core, else the last. (Kernels so far attach nothing while there are isolated
    /// ones: see [`topology`](crate::topology).)
    pub fn cpu(mut self, cpu: u32) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// Bytes of the dump that is made when the kernel throws the scheduler out; 0 is the kernel's
    /// default, 32,768.
    pub fn exit_dump_len(mut self, bytes: u32) -> Self {
        self.exit_dump_len = bytes;
        self
    }

    /// Whether to schedule only tasks that asked for it by `sched_setscheduler(SCHED_EXT)`;
    /// otherwise all ordinary tasks.
    pub fn partial(mut self, partial: bool) -> Self {
        self.partial = partial;
        self
    }

    /// Whether libbpf and the verifier tell on stderr what they do.
    pub fn debug(mut self, debug: bool) -> Self {
        self.debug = debug;
        self
    }

    /// Whether the kernel side sends a waking task to an idle CPU at once; otherwise user space is
    /// asked about every one.
    pub fn builtin_idle(mut self, builtin_idle: bool) -> Self {
        self.builtin_idle = builtin_idle;
        self
    }

    /// Whether control groups do not count: a task then has what its weight is worth, whatever the
    /// `cpu.weight` of its group. See [`QueuedTask::share`](crate::task::QueuedTask::share).
    pub fn flat(mut self, flat: bool) -> Self {
        self.flat = flat;
        self
    }

    /// The slice of a decision that names none, and of tasks that the kernel side places by itself.
    pub fn slice(mut self, slice: Duration) -> Self {
        self.slice = slice;
        self
    }

    /// What the slice of a task that takes turns by its order
    /// ([`Order::in_turn`](crate::orders::Order::in_turn)) is shortened to at least as others wait.
    pub fn slice_min(mut self, slice_min: Duration) -> Self {
        self.slice_min = slice_min;
        self
    }

    /// How long a runnable task may wait before the kernel throws the scheduler out; up to 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How late the scheduler thread may be before the kernel side goes on alone, until it is back:
    /// 1 ms to 10 s.
    pub fn budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    /// What the kernel side allows tasks before it acts by itself: each more than 0, and at most 10
    /// s; the slices at most 1 s.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How many rings carry tasks to user space: 1, 2, 4, 8 or 16, of 1 MiB each. Without: one for
    /// each 16 CPUs.
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

    /// Checks the machine, loads the kernel side, locks the memory, and attaches. The calling
    /// thread becomes the scheduler thread: it moves to its CPU. Until then it has nice level
    /// -20, if it may, so that a full machine does not wait long.
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
    /// What a ring bears: `cargo bench --bench contention`, on two cores of an EPYC of family 26,
    /// says
    ///
    /// | producers, each as fast as it can | ns per record and producer | records/s in all |
    /// |-----------------------------------|----------------------------|------------------|
    /// | 1 on a ring                       | 52                         | 19 M             |
    /// | 2 on a ring                       | 224                        | 9 M              |
    /// | 2 on a ring each                  | 52                         | 39 M             |
    ///
    /// So the lock of a ring that two share is held, and handed on, for 112 ns per record; of one
    /// that 52 share, for 500 ns (2 M/s in the kernel's
    /// `tools/testing/selftests/bpf/benchs/bench_ringbufs.c`). A producer that comes now and then
    /// waits for `load / (2 * (1 - load))` of that on average (a queue with one server and a
    /// constant service time). That wait shall be half of the 52 ns that a record costs in any
    /// case: with 500 ns, a load of 9.4 %, or 188,000 records/s. A busy CPU that switches every
    /// 100 us writes 10,000 of them, so a ring bears 18 CPUs; 16 of them are the next power of
    /// two below. With 112 ns it would be 280. With one ring for 1,024 CPUs the load would be
    /// five times what it bears.
    ///
    /// Whatever the number, it costs the scheduler thread a load per ring and turn (`cargo bench
    /// --bench scale`).
    pub(super) fn nr_rings(&self, topology: &Topology) -> u32 {
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
