//! That both sides mean the same bytes: each structure here, field by field, against the BTF of the
//! compiled BPF object, which the C compiler wrote; and each number, against the BTF where it shows
//! there and against the text of `abi.h`.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::mem::{MaybeUninit, offset_of};

use libbpf_rs::btf::types::{Array, Enum, MemberAttr, Struct};
use libbpf_rs::btf::{Btf, HasSize, TypeId};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{AsRawLibbpf, OpenObject, libbpf_sys};

use super::*;
use crate::bpf::{MetronomeSkelBuilder, OpenMetronomeSkel};
use crate::task::QueuedTask;

/// Opens the object, which neither loads it nor needs a privilege.
fn with_object(test: impl FnOnce(&OpenMetronomeSkel<'_>, &Btf<'_>)) {
    let mut place = MaybeUninit::<OpenObject>::uninit();
    let skel = MetronomeSkelBuilder::default().open(&mut place).unwrap();
    let object = skel.open_object().as_libbpf_object();
    // SAFETY: the skeleton owns it and outlives the reference.
    let btf = Btf::from_bpf_object(unsafe { object.as_ref() });
    test(&skel, &btf.unwrap().unwrap());
}

#[derive(Debug, PartialEq, Eq)]
struct Field {
    name: String,
    offset: usize,
    size: usize,
}

#[derive(Debug, PartialEq, Eq)]
struct Layout {
    size: usize,
    fields: Vec<Field>,
}

/// A field's size, told by the projection to it.
const fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// The layout of a structure of this side. Does not compile if a field is left out.
macro_rules! layout {
    ($type:ident { $($field:ident),* }) => {{
        let _ = |$type { $($field: _),* }: &$type| ();
        Layout {
            size: size_of::<$type>(),
            fields: vec![$(Field {
                name: stringify!($field).into(),
                offset: offset_of!($type, $field),
                size: size_of_field(|whole: &$type| &whole.$field),
            }),*],
        }
    }};
}

/// The layout of a structure of the kernel side.
fn layout_in(btf: &Btf<'_>, name: &str) -> Layout {
    let composite: Struct<'_> = btf
        .type_by_name(name)
        .unwrap_or_else(|| panic!("struct {name}"));
    let fields = composite.iter().map(|member| {
        let MemberAttr::Normal { offset } = member.attr else {
            panic!("{name} has a bit field");
        };
        Field {
            name: member.name.unwrap().to_str().unwrap().into(),
            offset: offset as usize / 8,
            size: resolve_size(btf, member.ty),
        }
    });
    Layout {
        size: composite.size(),
        fields: fields.collect(),
    }
}

fn resolve_size(btf: &Btf<'_>, ty: TypeId) -> usize {
    // SAFETY: the pointer is that of a live Btf; the id is checked.
    let size = unsafe { libbpf_sys::btf__resolve_size(btf.as_libbpf_object().as_ptr(), ty.into()) };
    usize::try_from(size).unwrap()
}

/// How many elements an array has, as the kernel side knows it.
fn elements(btf: &Btf<'_>, name: &str, field: &str) -> usize {
    let composite: Struct<'_> = btf.type_by_name(name).unwrap();
    let member = composite
        .iter()
        .find(|member| member.name.unwrap() == field);
    let array: Array<'_> = btf.type_by_id(member.unwrap().ty).unwrap();
    array.capacity()
}

#[test]
fn what_travels_between_the_sides_is_the_same_on_both() {
    with_object(|_, btf| {
        assert_eq!(
            layout_in(btf, "queued_task"),
            layout!(QueuedTask {
                id,
                generation,
                pid,
                tgid,
                cpu,
                kind,
                nr_cpus_allowed,
                flags,
                weight,
                share,
                enqueued_at,
                start_ts,
                stop_ts,
                exec_runtime,
                sum_exec_runtime,
                nvcsw,
                slice,
                waker,
                vtime,
                comm
            })
        );
        assert_eq!(
            layout_in(btf, "decision"),
            layout!(Slot {
                seq,
                id,
                generation,
                slice_ns,
                vtime,
                flags,
                seen_at,
                decided_at,
                pad
            })
        );
    });
}

#[test]
fn what_each_side_publishes_is_the_same_on_both() {
    with_object(|_, btf| {
        assert_eq!(
            layout_in(btf, "cpu_state"),
            layout!(CpuState {
                idle_seq,
                pad,
                running,
                counters
            })
        );
        assert_eq!(
            layout_in(btf, "running_task"),
            layout!(RunningTask {
                pid,
                id,
                since,
                deadline,
                slice,
                kind,
                waiting,
                pad
            })
        );
        assert_eq!(
            layout_in(btf, "machine_state"),
            layout!(MachineState {
                idle,
                fallback,
                pad,
                virtual_now,
                pad2
            })
        );
        assert_eq!(
            layout_in(btf, "control"),
            layout!(Control {
                heartbeat,
                nr_kicks,
                kicks,
                parked,
                newborn,
                events,
                tell_us,
                caught_up,
                policies
            })
        );
    });
}

#[test]
fn what_is_read_at_leisure_is_the_same_on_both() {
    with_object(|_, btf| {
        assert_eq!(
            layout_in(btf, "histogram"),
            layout!(SharedHistogram { buckets })
        );
        assert_eq!(
            layout_in(btf, "cpu_latency"),
            layout!(CpuLatency { stages })
        );
        assert_eq!(
            layout_in(btf, "pick_args"),
            layout!(PickArgs {
                pid,
                prev_cpu,
                wake_flags
            })
        );
        assert_eq!(
            layout_in(btf, "exit_record"),
            layout!(ExitRecord {
                exit_code,
                kind,
                pad,
                reason,
                msg
            })
        );
    });
}

#[test]
fn a_mailbox_is_its_head_and_then_its_slots() {
    for (name, slots) in [
        ("mailbox", MAILBOX_SLOTS),
        ("shared_mailbox", SHARED_MAILBOX_SLOTS),
    ] {
        let mut expected = layout!(MailboxHead { head, pad });
        expected.fields.push(Field {
            name: "slots".into(),
            offset: size_of::<MailboxHead>(),
            size: slots * size_of::<Slot>(),
        });
        expected.size += slots * size_of::<Slot>();
        with_object(|_, btf| {
            assert_eq!(layout_in(btf, name), expected);
            assert_eq!(elements(btf, name, "slots"), slots);
        });
    }
}

#[test]
fn the_maps_have_the_sizes_that_are_mapped_and_numbered_here() {
    with_object(|skel, btf| {
        let maps = &skel.maps;
        assert_eq!(maps.ring.max_entries(), RING_BYTES);
        assert_eq!(maps.queued.max_entries() as usize, MAX_RINGS);
        assert_eq!(
            maps.machine.value_size() as usize,
            size_of::<MachineState>()
        );
        assert_eq!(maps.free_ids.max_entries() as usize, MAX_TASKS);
        assert_eq!(maps.id_slots.max_entries() as usize, MAX_TASKS);
        assert_eq!(maps.orders.max_entries() as usize, MAX_TASKS);
        assert_eq!(maps.orders.value_size() as usize, size_of::<AtomicU64>());
        assert_eq!(maps.control.value_size() as usize, size_of::<Control>());
        assert_eq!(maps.cpus.value_size() as usize, size_of::<CpuState>());
        assert_eq!(
            maps.latencies.value_size() as usize,
            size_of::<CpuLatency>()
        );
        assert_eq!(
            maps.exit_record.value_size() as usize,
            size_of::<ExitRecord>()
        );
        for (map, slots) in [
            (&maps.mailboxes, MAILBOX_SLOTS),
            (&maps.shared_mailbox, SHARED_MAILBOX_SLOTS),
        ] {
            assert_eq!(
                map.value_size() as usize,
                size_of::<MailboxHead>() + slots * size_of::<Slot>()
            );
        }
        assert_eq!(elements(btf, "control", "kicks"), MAX_CPUS);
        assert_eq!(elements(btf, "cpu_state", "counters"), NR_COUNTERS);
    });
}

#[test]
fn counters_have_the_same_names_and_numbers() {
    let mut here = Counter::ALL
        .map(|counter| {
            let name = format!("COUNT_{}", constant_case(&format!("{counter:?}")));
            (name, counter as i64)
        })
        .to_vec();
    here.push(("COUNTERS".into(), Counter::ALL.len() as i64));
    here.push(("NR_COUNTERS".into(), NR_COUNTERS as i64));
    with_object(|_, btf| {
        let there: Enum<'_> = btf.type_by_name("counter").unwrap();
        let there = there.iter().map(|member| {
            let name = member.name.unwrap().to_str().unwrap();
            (name.to_owned(), member.value)
        });
        assert_eq!(there.collect::<Vec<_>>(), here);
    });
}

#[test]
fn kinds_of_records_have_the_same_names_and_numbers() {
    use crate::task::Kind::{
        Affinity, Blocked, Bounced, Caller, Direct, Dispatched, Exited, Ordered, Queued, Rescued,
        Stale, TooLate, Weight,
    };
    let kinds = [
        Queued, Ordered, Blocked, Exited, Weight, Affinity, Dispatched, Bounced, Stale, Rescued,
        Direct, TooLate, Caller,
    ];
    let here = kinds.map(|kind| {
        let name = format!("RECORD_{}", constant_case(&format!("{kind:?}")));
        (name, kind as i64)
    });
    with_object(|_, btf| {
        let there: Enum<'_> = btf.type_by_name("record_kind").unwrap();
        let there = there.iter().map(|member| {
            let name = member.name.unwrap().to_str().unwrap();
            (name.to_owned(), member.value)
        });
        assert_eq!(there.collect::<Vec<_>>(), here);
    });
}

#[test]
fn kinds_of_running_tasks_have_the_same_numbers() {
    with_object(|_, btf| {
        let there: Enum<'_> = btf.type_by_name("running_kind").unwrap();
        let numbers: Vec<_> = there.iter().map(|member| member.value).collect();
        assert_eq!(
            numbers,
            [0, i64::from(RUNS_DECIDED), i64::from(RUNS_ORDERED)]
        );
    });
}

#[test]
fn stages_have_the_same_names_and_numbers() {
    use crate::latency::Stage;
    let mut here = Stage::ALL
        .map(|stage| {
            let name = format!("STAGE_{}", constant_case(&format!("{stage:?}")));
            (name, stage as i64)
        })
        .to_vec();
    here.push(("NR_STAGES".into(), NR_STAGES as i64));
    with_object(|_, btf| {
        let there: Enum<'_> = btf.type_by_name("stage").unwrap();
        let there = there.iter().map(|member| {
            let name = member.name.unwrap().to_str().unwrap();
            (name.to_owned(), member.value)
        });
        assert_eq!(there.collect::<Vec<_>>(), here);
    });
}

/// "RingFull" as "RING_FULL".
fn constant_case(name: &str) -> String {
    let spaced = name.char_indices().flat_map(|(at, letter)| {
        let gap = (at > 0 && letter.is_uppercase()).then_some('_');
        gap.into_iter().chain(letter.to_uppercase())
    });
    spaced.collect()
}

/// Macros leave no trace in BTF, so these are compared with the text.
#[test]
fn each_macro_of_the_header_has_the_same_value_here() {
    let text = include_str!("../../bpf/abi.h");
    let macros = text
        .lines()
        .filter_map(|line| line.strip_prefix("#define "));
    // Not those with arguments.
    let there: Vec<_> = macros
        .filter_map(|text| text.split_once(' '))
        .filter(|(name, _)| !name.contains('('))
        .collect();
    // An id that is none, whatever MAX_TASKS is.
    assert!(MAX_TASKS <= u32::MAX as usize);
    let bit = |bit: u64| {
        assert!(bit.is_power_of_two());
        format!("(1ULL << {})", bit.ilog2())
    };
    let here = [
        ("MAX_CPUS", format!("{MAX_CPUS}")),
        ("MAX_TASKS", format!("{MAX_TASKS}")),
        ("CACHE_LINE", format!("{}", align_of::<Slot>())),
        ("NO_TASK", format!("{:#x}U", u32::MAX)),
        ("MAILBOX_SLOTS", format!("{MAILBOX_SLOTS}")),
        ("SHARED_MAILBOX_SLOTS", format!("{SHARED_MAILBOX_SLOTS}")),
        ("MAX_RINGS", format!("{MAX_RINGS}")),
        ("RING_BYTES", format!("(1 << {})", RING_BYTES.ilog2())),
        ("SHARE", format!("{SHARE}")),
        ("EPOCH_SHIFT", format!("{EPOCH_SHIFT}")),
        ("EPOCHS", format!("(1 << {})", EPOCHS.ilog2())),
        ("WAKE_FLAGS_SHIFT", format!("{WAKE_FLAGS_SHIFT}")),
        ("FOUND_IDLE", bit(FOUND_IDLE)),
        ("IS_BATCH", bit(IS_BATCH)),
        ("DECISION_ANY_CPU", bit(DECISION_ANY_CPU)),
        ("DECISION_PREEMPT", bit(DECISION_PREEMPT)),
        ("ORDER_UNIT_NS", format!("{ORDER_UNIT_NS}")),
        ("ORDER_FIELD", format!("{ORDER_FIELD:#x}ULL")),
        ("ORDER_LATENCY_SHIFT", format!("{ORDER_LATENCY_SHIFT}")),
        ("ORDER_SLICE_SHIFT", format!("{ORDER_SLICE_SHIFT}")),
        ("ORDER_BUDGET_SHIFT", format!("{ORDER_BUDGET_SHIFT}")),
        ("ORDER_CPU_SHIFT", format!("{ORDER_CPU_SHIFT}")),
        ("ORDER_VALID", bit(ORDER_VALID)),
        ("ORDER_PREEMPT", bit(ORDER_PREEMPT)),
        ("ORDER_HAND_OFF", bit(ORDER_HAND_OFF)),
        ("ORDER_PREFERS", bit(ORDER_PREFERS)),
        ("ORDER_INHERIT", bit(ORDER_INHERIT)),
        ("ORDER_IN_TURN", bit(ORDER_IN_TURN)),
        ("LEAD_LAGS", format!("{LEAD_LAGS}")),
        ("SLOWEST", format!("{SLOWEST}")),
        ("LATE_BUDGETS", format!("{LATE_BUDGETS}")),
        ("UNDECIDED_SLICE", format!("{UNDECIDED_SLICE}")),
        ("DRAIN_BATCH", format!("{DRAIN_BATCH}")),
        ("KICK_PREEMPT", format!("(1U << {})", KICK_PREEMPT.ilog2())),
        ("SAMPLE_FACTOR", format!("{SAMPLE_FACTOR:#x}U")),
        ("SAMPLE_SHIFT", format!("{SAMPLE_SHIFT}")),
        ("LATENCY_BUCKETS", format!("{LATENCY_BUCKETS}")),
    ];
    assert!(KICK_PREEMPT.is_power_of_two() && EPOCHS.is_power_of_two());
    let here: Vec<_> = here
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    assert_eq!(there, here);
}
