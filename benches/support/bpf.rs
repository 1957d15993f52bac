//! The kernel's half of the benchmarks: `testbed/bpf/bench.bpf.c`, loaded and mapped.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

use libbpf_rs::libbpf_sys;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapHandle, MapType};
use scx_metronome_core::abi::{
    Control, CpuState, MAILBOX_SLOTS, MAX_TASKS, MachineState, RING_BYTES, SHARED_MAILBOX_SLOTS,
};
use scx_metronome_core::mailbox::Mailbox;
use scx_metronome_core::ring::{Ring, RingMemory};
use scx_metronome_core::shared::{Shared, SharedMemory};

pub use testbed::bench::BenchSkel;
use testbed::bench::BenchSkelBuilder;

/// `BENCH_CPUS` of the BPF side.
pub const CPUS: u32 = 16;

const PAGE: usize = 4096;
const LINE: usize = 64;

/// The loaded object. It stays loaded, and its memory mapped, until the process ends.
pub struct BpfSide {
    pub skel: BenchSkel<'static>,
}

impl BpfSide {
    /// Loads it; or says in one line why `what` is skipped.
    pub fn load(what: &str) -> Option<Self> {
        // A process that may not make a ring may do nothing here. If that works, all else must.
        let listener = libbpf_rs::set_print(None);
        let allowed = may_use_bpf();
        libbpf_rs::set_print(listener);
        if let Err(error) = allowed {
            println!("{what}: skipped, BPF is not to be had: {error}");
            return None;
        }
        let object = Box::leak(Box::new(MaybeUninit::uninit()));
        let open = BenchSkelBuilder::default()
            .open(object)
            .expect("the benchmarks' BPF object opens");
        let skel = open.load().expect("the kernel takes it");
        Some(Self { skel })
    }

    /// The tasks below `nr` exist, and none is in the hands of user space.
    pub fn reset(&self, mut nr: u32) {
        Program::new(&self.skel.progs.reset).run(Some(&mut nr));
    }

    /// Wakes `nr` tasks: writes their records.
    pub fn fill(&self, nr: usize) {
        let mut argument = nr as u32;
        let filled = Program::new(&self.skel.progs.fill).run(Some(&mut argument));
        assert_eq!(filled, nr as i32, "records written");
    }

    /// Carries out the decisions in the shared mailbox and in that of CPU 0; `nr` must be there.
    pub fn drain_mailboxes(&self, nr: usize) {
        let drained = Program::new(&self.skel.progs.drain_mailboxes).run(None::<&mut u32>);
        assert_eq!(drained, nr as i32, "decisions in the mailboxes");
    }

    /// Carries out the decisions in the user ring; `nr` must be there.
    pub fn drain_user_ring(&self, nr: usize) {
        let drained = Program::new(&self.skel.progs.drain_user_ring).run(None::<&mut u32>);
        assert_eq!(drained, nr as i32, "decisions in the user ring");
    }

    /// Our consumer of the ring. There must be no other at work meanwhile.
    pub fn ring(&self) -> Ring {
        let memory = ring_memory(self.skel.maps.queued.as_fd());
        // SAFETY: the mappings stay, and the benchmarks use one consumer at a time.
        unsafe { Ring::new(memory, CPUS) }
    }

    /// Our writing side of the mailbox of CPU 0. To be made once.
    pub fn mailbox(&self) -> Mailbox {
        let memory = map(
            self.skel.maps.mailboxes.as_fd(),
            0,
            LINE * (1 + MAILBOX_SLOTS),
            libc::PROT_READ | libc::PROT_WRITE,
        );
        // SAFETY: a fresh `struct mailbox`, mapped until the process ends.
        unsafe { Mailbox::new(memory, MAILBOX_SLOTS) }
    }

    /// All our memory. To be made once. No CPU is ever idle: no CPU changes its state, which
    /// are 0.
    pub fn shared(&self) -> Shared {
        let maps = &self.skel.maps;
        let write = libc::PROT_READ | libc::PROT_WRITE;
        let cpus = CPUS as usize;
        let memory = SharedMemory {
            mailboxes: map(
                maps.mailboxes.as_fd(),
                0,
                cpus * LINE * (1 + MAILBOX_SLOTS),
                write,
            ),
            shared_mailbox: map(
                maps.shared_mailbox.as_fd(),
                0,
                LINE * (1 + SHARED_MAILBOX_SLOTS),
                write,
            ),
            cpus: map(maps.cpus.as_fd(), 0, cpus * size_of::<CpuState>(), write).cast(),
            machine: map(maps.machine.as_fd(), 0, size_of::<MachineState>(), write).cast(),
            orders: map(maps.orders.as_fd(), 0, MAX_TASKS * size_of::<u64>(), write).cast(),
            control: map(maps.control.as_fd(), 0, size_of::<Control>(), write).cast(),
            nr_cpus: CPUS,
            agent_cpu: CPUS - 1,
        };
        // SAFETY: arrays of `CPUS` elements of a fresh object, mapped until the process ends.
        unsafe { Shared::new(memory, [self.ring()]) }
    }
}

/// `CLOCK_MONOTONIC`, as the scheduler thread reads it.
pub fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is live.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn may_use_bpf() -> libbpf_rs::Result<()> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    MapHandle::create(MapType::RingBuf, Some("may_i"), 0, 0, PAGE as u32, &options).map(drop)
}

/// The three pieces of a ring buffer.
pub fn ring_memory(ring: BorrowedFd<'_>) -> RingMemory {
    let write = libc::PROT_READ | libc::PROT_WRITE;
    let kernels = map(
        ring,
        PAGE as i64,
        PAGE + 2 * RING_BYTES as usize,
        libc::PROT_READ,
    );
    RingMemory {
        consumer: map(ring, 0, PAGE, write).cast(),
        producer: kernels.cast(),
        // SAFETY: the producer page comes first in this mapping, the data behind it.
        data: unsafe { kernels.add(PAGE) },
        size: u64::from(RING_BYTES),
    }
}

/// Maps `length` bytes until the process ends.
fn map(fd: BorrowedFd<'_>, offset: i64, length: usize, protection: i32) -> NonNull<u8> {
    let length = length.next_multiple_of(PAGE);
    let fd = fd.as_raw_fd();
    // SAFETY: a new mapping, at an address of the kernel's choosing.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            length,
            protection,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            fd,
            offset,
        )
    };
    assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    NonNull::new(at.cast()).expect("address 0 is not mapped")
}

/// A SYSCALL program, for any thread to run.
#[derive(Clone, Copy)]
pub struct Program(i32);

impl Program {
    /// Of an object that stays loaded.
    pub fn new(program: &impl AsFd) -> Self {
        Self(program.as_fd().as_raw_fd())
    }

    /// Runs it, and returns what it returned.
    pub fn run<T>(self, argument: Option<&mut T>) -> i32 {
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
            ..Default::default()
        };
        if let Some(argument) = argument {
            options.ctx_size_in = size_of::<T>() as u32;
            options.ctx_in = ptr::from_mut(argument).cast();
        }
        // SAFETY: the options are live, and their context is of the size told.
        let error = unsafe { libbpf_sys::bpf_prog_test_run_opts(self.0, &mut options) };
        assert_eq!(error, 0, "the kernel runs the program");
        options.retval as i32
    }
}
