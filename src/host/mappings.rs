//! The maps of the kernel side, mapped into this process.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, libbpf_sys};

use super::memory::{Mapping, page_size};
use crate::abi::{
    Control, CpuLatency, CpuState, ExitRecord, MAILBOX_SLOTS, MAX_TASKS, MachineState, MailboxHead,
    RING_BYTES, SHARED_MAILBOX_SLOTS, Slot,
};
use crate::bpf::MetronomeSkel;
use crate::ring::{Ring, RingMemory};
use crate::shared::{Shared, SharedMemory};

/// The mapped memory. It must outlive every pointer into it, so it is dropped last.
#[derive(Debug)]
pub(super) struct Mappings {
    pub(super) rings: Vec<MappedRing>,
    pub(super) mailboxes: Mapping,
    pub(super) shared_mailbox: Mapping,
    pub(super) cpus: Arc<Mapping>,
    pub(super) latencies: Arc<Mapping>,
    pub(super) machine: Mapping,
    pub(super) orders: Mapping,
    pub(super) control: Mapping,
    pub(super) exit_record: Mapping,
}

/// A ring, mapped as the kernel's `ringbuf_map_mmap_kern()` allows it: only the consumer page may
/// be written.
#[derive(Debug)]
pub(super) struct MappedRing {
    pub(super) fd: OwnedFd,
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
        // SAFETY: mapped as the ring's three pieces; `BpfScheduler` drops the ring before the
        // mappings and makes one only.
        unsafe { Ring::new(memory, nr_cpus) }
    }
}

impl Mappings {
    pub(super) fn new(skel: &MetronomeSkel<'_>, nr_cpus: usize, nr_rings: u32) -> Result<Self> {
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

    pub(super) fn touch(&self) {
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
    pub(super) fn shared(&self, nr_cpus: u32, agent_cpu: u32) -> Shared {
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
        // SAFETY: arrays of `nr_cpus` elements of a freshly loaded object; dropped before the
        // mappings.
        unsafe { Shared::new(memory, rings) }
    }

    pub(super) fn exit_record(&self) -> &ExitRecord {
        let at: NonNull<ExitRecord> = self.exit_record.start().cast();
        // SAFETY: mapped with the size of an ExitRecord. The kernel writes its texts once, before
        // `kind`, and they are read only once `kind` has been seen.
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
