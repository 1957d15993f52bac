//! What `scx_rustland_core` 2.4 does for each task, call by call, and `scx_rustland` with it.
//!
//! Faithful: the library calls and system calls, their number and order, the sizes of what is
//! copied, allocated and handed over (a record of 88 bytes, three times; a tree entry of 104; a
//! decision of 40).
//!
//! Not faithful, in its favour: its allocator is a buddy allocator behind a mutex, here it is the
//! system's; its program for choosing a CPU also searches for an idle one; it asks the ring once
//! more to find it empty; its yield lets others run first. Its kernel side submits records with
//! flags of 0, so that each that finds the ring read empty sends an interrupt to itself to wake
//! a thread that polls; here all are written by `BPF_RB_NO_WAKEUP`, and before the time that is
//! measured.
//!
//! Not faithful, to its cost: the measuring thread is a real-time one if it may be, and there
//! `sched_yield()` is somewhat dearer (183 instead of 157 ns where this was written, of 650 for a
//! decision). And the allocator is one that counts what sealed threads allocate: for each tree node
//! a look at a thread-local flag, which is not set here.
//!
//! And neither side pays for cache lines of another CPU, because the kernel side runs on the same.

use std::cell::UnsafeCell;
use std::cmp::Ordering;
use std::hint::black_box;

use libbpf_rs::{ProgramInput, RingBuffer, RingBufferBuilder, UserRingBuffer};
use scx_metronome_core::abi::PickArgs;

use super::bpf::BpfSide;

/// Bytes of its record. Ours is longer: of this record, these are the first.
const RECORD: usize = 88;

/// The first 88 bytes of `struct queued_task`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Record {
    id: u32,
    generation: u32,
    pid: i32,
    tgid: i32,
    cpu: i32,
    kind: u16,
    nr_cpus_allowed: u16,
    flags: u64,
    weight: u64,
    enqueued_at: u64,
    start_ts: u64,
    stop_ts: u64,
    exec_runtime: u64,
    sum_exec_runtime: u64,
    nvcsw: u64,
}

/// What the caller gets: 88 bytes again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedTask {
    pub pid: i32,
    pub cpu: i32,
    pub nr_cpus_allowed: u64,
    pub flags: u64,
    pub start_ts: u64,
    pub stop_ts: u64,
    pub exec_runtime: u64,
    pub weight: u64,
    pub vtime: u64,
    pub enq_cnt: u64,
    pub comm: [u64; 2],
}

const _: () = assert!(size_of::<Record>() == RECORD && size_of::<QueuedTask>() == RECORD);

#[repr(align(8))]
struct Buffer([u8; RECORD]);

/// The ring of waiting tasks.
pub struct Queued<'a> {
    ring: RingBuffer<'a>,
    buffer: &'static UnsafeCell<Buffer>,
}

impl<'a> Queued<'a> {
    pub fn new(side: &'a BpfSide) -> Self {
        let buffer: &'static _ = Box::leak(Box::new(UnsafeCell::new(Buffer([0; RECORD]))));
        let mut builder = RingBufferBuilder::new();
        let copy = |record: &[u8]| {
            // SAFETY: no code reads it while the ring is being consumed, which is when this is
            // called.
            let buffer = unsafe { &mut *buffer.get() };
            buffer.0.copy_from_slice(&record[..RECORD]);
            0
        };
        builder
            .add(&side.skel.maps.queued, copy)
            .expect("it is a ring");
        let ring = builder.build().expect("libbpf maps the ring");
        Self { ring, buffer }
    }

    pub fn dequeue_task(&mut self) -> Option<QueuedTask> {
        if self.ring.consume_raw_n(1) != 1 {
            return None;
        }
        // SAFETY: large enough, aligned, and integers only; the callback has returned.
        let record = unsafe { self.buffer.get().cast::<Record>().read() };
        // The second copy and the third are made in memory, not merged into one with the first.
        black_box(&record);
        let task = QueuedTask {
            pid: record.pid,
            cpu: record.cpu,
            nr_cpus_allowed: u64::from(record.nr_cpus_allowed),
            flags: record.flags,
            start_ts: record.start_ts,
            stop_ts: record.stop_ts,
            exec_runtime: record.exec_runtime,
            weight: record.weight,
            vtime: record.sum_exec_runtime,
            enq_cnt: u64::from(record.generation),
            comm: [record.enqueued_at, record.nvcsw],
        };
        black_box(&task);
        Some(task)
    }
}

/// Its decision: 40 bytes.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Decision {
    pub pid: i32,
    pub cpu: i32,
    pub flags: u64,
    pub slice_ns: u64,
    pub vtime: u64,
    pub enq_cnt: u64,
}

/// The user ring of decisions.
pub struct Dispatched(UserRingBuffer);

impl Dispatched {
    /// To be made once.
    pub fn new(side: &BpfSide) -> Self {
        let ring = UserRingBuffer::new(&side.skel.maps.dispatched);
        Self(ring.expect("libbpf maps the user ring"))
    }

    pub fn dispatch_task(&self, decision: &Decision) {
        let sample = self.0.reserve(size_of::<Decision>());
        let mut sample = sample.expect("the user ring has room");
        let to = sample.as_mut_ptr().cast::<Decision>();
        // SAFETY: the sample is of this size, and libbpf aligns samples to 8.
        unsafe { to.write(*decision) };
        self.0.submit(sample).expect("submitting never fails");
    }
}

/// Asks the kernel for a CPU: `BPF_PROG_RUN`, by libbpf-rs.
pub fn select_cpu(side: &BpfSide, pid: i32, prev_cpu: i32, wake_flags: u64) -> i32 {
    let mut arguments = PickArgs {
        pid,
        prev_cpu,
        wake_flags,
    };
    let bytes = (&raw mut arguments).cast::<u8>();
    // SAFETY: the bytes of a live structure without padding, which is not used otherwise meanwhile.
    let bytes = unsafe { std::slice::from_raw_parts_mut(bytes, size_of::<PickArgs>()) };
    let input = ProgramInput {
        context_in: Some(bytes),
        ..Default::default()
    };
    let output = side.skel.progs.select_cpu.test_run(input);
    output.expect("the kernel runs the program").return_value as i32
}

/// A task in `scx_rustland`'s tree: 104 bytes.
#[derive(PartialEq, Eq)]
pub struct Waiting {
    pub task: QueuedTask,
    pub deadline: u64,
    pub timestamp: u64,
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |waiting: &Self| (waiting.deadline, waiting.timestamp, waiting.task.pid);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
