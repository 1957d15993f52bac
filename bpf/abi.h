/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the two halves of Metronome share: every structure that both the BPF side and user space
 * touch, and every number that both must agree on. src/abi.rs is its mirror; both assert sizes and
 * offsets at compile time, and a test compares the Rust layout with the BTF of the compiled object.
 *
 * Who writes what is stated per field: "K" is the kernel side, "U" is user space. Nothing that U
 * writes is trusted by K beyond the bounds that K checks itself, and the other way round.
 */
#ifndef METRONOME_ABI_H
#define METRONOME_ABI_H

#define MAX_CPUS 1024
#define MAX_TASKS 65536
#define CACHE_LINE 64

/* A task id that names no task: the kernel side schedules such a task alone. */
#define NO_TASK 0xffffffffU

/*
 * Decisions that fit into one CPU's mailbox, and into the mailbox that all CPUs share. Powers of
 * two.
 */
#define MAILBOX_SLOTS 256
#define SHARED_MAILBOX_SLOTS 16384

/* Rings, each for the tasks whose id has the same remainder. A power of two. */
#define MAX_RINGS 16

/* Bytes of a ring: room for 8,192 records. */
#define RING_BYTES (1 << 20)

/* What a weight of 1 is worth where there are no groups. */
#define SHARE 1024

/* queued_task.kind: a task waits for a decision, or something has happened to it. */
enum record_kind {
	RECORD_QUEUED = 1, /* it waits for a decision */
	RECORD_ORDERED,	   /* it woke, and its standing order was carried out */
	RECORD_BLOCKED,	   /* it went to sleep */
	RECORD_EXITED,	   /* it exited or left the class, and its id is free */
	RECORD_WEIGHT,	   /* its weight changed */
	RECORD_AFFINITY,   /* the CPUs that it may use changed */
	/* What became of a decision about it: */
	RECORD_DISPATCHED, /* carried out */
	RECORD_BOUNCED,	   /* carried out on another CPU, as affinity demanded */
	RECORD_STALE,	   /* dropped: that enqueue is over */
	/* Dropped: the kernel side had run the task by itself, or lost it to another class. */
	RECORD_RESCUED,
	RECORD_DIRECT, /* it woke, and an idle CPU took it at once */
	/*
	 * A decision was dropped: its task has exited; id and generation are the decision's, the
	 * rest says nothing.
	 */
	RECORD_TOO_LATE,
	/* It runs, and has woken a thread of its process that is urgent by its order. */
	RECORD_CALLER,
};

/*
 * A generation is the epoch of the id, of which each owner begins a new one, never 0, in the upper
 * 12 bits, and a number of the owner's enqueue below.
 */
#define EPOCH_SHIFT 20
#define EPOCHS (1 << 12)

/* In queued_task.flags: SCX_WAKE_* of the wake-up, in bits that SCX_ENQ_* leaves free. */
#define WAKE_FLAGS_SHIFT 48

/*
 * Likewise: an idle CPU took the task as it woke, so that no task waited for the CPU time that it
 * got.
 */
#define FOUND_IDLE (1ULL << 56)

/* Likewise: it is of SCHED_BATCH or SCHED_IDLE, and says by that that it can wait. */
#define IS_BATCH (1ULL << 57)

/*
 * decision.flags: the task runs on the first CPU that becomes available; it displaces what runs on
 * its CPU.
 */
#define DECISION_ANY_CPU (1ULL << 20)
#define DECISION_PREEMPT (1ULL << 21)

/*
 * A standing order, a word: the epoch of the id, three times in units, a CPU, flags.
 * src/orders.rs has the table. U writes it, K reads it.
 */
#define ORDER_UNIT_NS 16000
#define ORDER_FIELD 0xfffULL
#define ORDER_LATENCY_SHIFT 12
#define ORDER_SLICE_SHIFT 24
#define ORDER_BUDGET_SHIFT 36
#define ORDER_CPU_SHIFT 48
#define ORDER_VALID (1ULL << 58)
#define ORDER_PREEMPT (1ULL << 59)
#define ORDER_HAND_OFF (1ULL << 60)
#define ORDER_PREFERS (1ULL << 61)
#define ORDER_INHERIT (1ULL << 62)
#define ORDER_IN_TURN (1ULL << 63)

/*
 * Of tasks that take turns: how far ahead of virtual time one may be, in lags, and how much faster
 * than it real time may pass. A lag is a quarter of the default slice.
 */
#define LEAD_LAGS 32
#define SLOWEST 16

/* Past its budget an order holds for so many more, behind all others. */
#define LATE_BUDGETS 7

/* The part of the default slice that a task gets unless slices are shortened as tasks wait. */
#define UNDECIDED_SLICE 8

/* Decisions that one dispatch() carries out at most: it runs with the run queue locked. */
#define DRAIN_BATCH 32

/* In an entry of control.kicks: what runs there gives way. */
#define KICK_PREEMPT (1U << 31)

/*
 * One record of the rings `queued`: a task waits for a decision. K writes it once, before it is
 * published, U reads it. 120 bytes: with the ring's header of 8 it takes 128, so that a record
 * never straddles the ring's end.
 */
struct queued_task {
	__u32 id;	  /* dense task id, 0..MAX_TASKS */
	__u32 generation; /* of this enqueue; a decision must carry it back */
	__s32 pid;
	__s32 tgid;
	__s32 cpu;	       /* the CPU it ran on last */
	__u16 kind;	       /* RECORD_* */
	__u16 nr_cpus_allowed; /* the number of possible CPUs for all that take tasks */
	/* SCX_ENQ_*, SCX_WAKE_* shifted by WAKE_FLAGS_SHIFT, FOUND_IDLE, IS_BATCH. */
	__u64 flags;
	__u32 weight; /* 1..10000, nice 0 is 100 */
	/* What it is worth beside those of other cgroups, times SHARE; 0: not known. */
	__u32 share;
	__u64 enqueued_at;	/* these four: ns of CLOCK_MONOTONIC */
	__u64 start_ts;		/* when it last got a CPU */
	__u64 stop_ts;		/* when it last left one */
	__u64 exec_runtime;	/* CPU time since it last slept, ns */
	__u64 sum_exec_runtime; /* CPU time since it was born, ns */
	__u64 nvcsw;		/* voluntary context switches since it was born */
	__u32 slice;		/* what is left of its slice, ns */
	__s32 waker;		/* the thread that woke it; 0: none has, or an interrupt */
	/*
	 * The deadline that user space gave it last, plus the CPU time it had since, scaled by
	 * weight.
	 */
	__u64 vtime;
	/* May lack a terminating NUL when the kernel changes it meanwhile. */
	char comm[16];
};

/*
 * One slot of a mailbox, a cache line of its own. U fills a slot whose `seq` is 0 and publishes it
 * by storing position + 1; K takes it by advancing mailbox.head, reads it, and frees it by storing
 * 0.
 */
struct decision {
	__u64 seq; /* 0: free (K stores it); else position + 1 (U stores it) */
	__u32 id;
	__u32 generation;
	__u64 slice_ns; /* 0: the default slice */
	/* Position in the DSQ: the smaller runs first; 0: none, in the order of decision. */
	__u64 vtime;
	__u64 flags; /* SCX_ENQ_*, DECISION_* */
	/* These two only if is_sampled(): when U took the record; 0: it does not know. */
	__u64 seen_at;
	__u64 decided_at; /* and when it filled this slot; ns, CLOCK_MONOTONIC */
	__u64 pad;
};

struct mailbox {
	__u64 head; /* K: the position that is taken next */
	__u64 pad[7];
	struct decision slots[MAILBOX_SLOTS];
};

struct shared_mailbox {
	__u64 head;
	__u64 pad[7];
	struct decision slots[SHARED_MAILBOX_SLOTS];
};

/* Counters, one set per CPU, written by that CPU alone and added up by user space. */
enum counter {
#define COUNTER(name, meaning) COUNT_##name,
#include "counters.h"
#undef COUNTER
	COUNTERS,
	NR_COUNTERS = (COUNTERS + 7) / 8 * 8, /* so many fill cache lines */
};

/*
 * What tasks are allowed before the kernel side acts by itself. U sets it before loading.
 * src/limits.rs has the defaults, and the reasons.
 */
struct limits {
	/* A running task with an order gives way only to a deadline that is earlier by this. */
	__u64 preempt_margin_ns;
	/* A task without an order that has got a CPU keeps it for so long. */
	__u64 undisturbed_ns;
	__u64 hand_off_ns; /* a chain of hand-offs may keep a CPU for so long */
	/* After so long with nothing but orders on a CPU a task without one has its turn. */
	__u64 urgent_ns;
	__u64 protected_ns; /* and is not displaced for so long */
	/* A task that has waited for so long runs, whatever the deadlines say. */
	__u64 longest_wait_ns;
	/* So far ahead of decided_now is a deadline for which that is watched. */
	__u64 far_ahead_ns;
	/* A CPU that another class has for longer loses what waits for it alone. */
	__u64 taken_ns;
	__u64 longest_slice_ns; /* no slice that user space names is longer */
	/* What a task that is bound to the scheduler thread's CPU runs there at a time. */
	__u64 guest_slice_ns;
	__u64 agent_slice_ns;	 /* what the thread then has to itself */
	__u64 order_of_kthreads; /* what kernel threads are born with; 0: no order */
};

/* running_task.kind */
enum running_kind {
	RUNS_OTHER,   /* nothing, or nothing that may be displaced */
	RUNS_DECIDED, /* a task that user space decided about, or waits to */
	RUNS_ORDERED, /* a task with a standing order */
};

/* What a CPU runs. */
struct running_task {
	__s32 pid;
	__u32 id;
	__u64 since; /* ns of CLOCK_MONOTONIC */
	/* Of the decision; of a task with an order, ns of CLOCK_MONOTONIC. */
	__u64 deadline;
	__u64 slice; /* what it had of its slice then, ns */
	enum running_kind kind;
	__u32 waiting; /* tasks on the CPU's own DSQ when it last looked there */
	__u64 pad[3];
};

/* One per possible CPU in the map `cpus`. All of it is written by K. */
struct cpu_state {
	/*
	 * 2 * n + idle, where n grows whenever the CPU runs out of work or gets some: two equal odd
	 * readings mean that it has been idle in between without looking for work.
	 */
	__u64 idle_seq;
	__u64 pad[7];
	struct running_task running;
	__u64 counters[NR_COUNTERS];
};

/* Map `machine`. All of it is written by K. */
struct machine_state {
	/*
	 * A bit per CPU that is idle, set and cleared along with idle_seq, so that the search for
	 * one costs a word for 64.
	 */
	__u64 idle[MAX_CPUS / 64];
	/*
	 * Odd in fallback, while the kernel side decides without user space; grows with each
	 * change.
	 */
	__u64 fallback;
	__u64 pad[7];
	/*
	 * Virtual time, by which tasks take turns: what one of weight 100 should have had that was
	 * always runnable, ns.
	 */
	__u64 virtual_now;
	__u64 pad2[7];
};

/* One page, map `control`. All of it is written by U. */
struct control {
	__u64 heartbeat;       /* grows with every turn of the scheduler thread */
	__u32 nr_kicks;	       /* the CPUs that the program kick_cpus() shall kick */
	__u32 kicks[MAX_CPUS]; /* CPU numbers */
	/*
	 * 1: the scheduler thread sleeps or is about to. Every enqueue reads it: not on the cache
	 * line of the heartbeat.
	 */
	__u32 parked;
	/* The standing order of tasks whose parent has none that is inherited; 0: none. */
	__u64 newborn;
	__u32 events; /* 1 << RECORD_*: what user space wants to hear of */
	/* Of the wake-ups of one task about which it is not asked it hears at most so often. */
	__u32 tell_us;
	__u64 caught_up; /* the fallback during which the rings were found empty last */
	/*
	 * How many policies there have been: what a task was born with under an earlier one is
	 * void.
	 */
	__u64 policies;
};

/* Argument of the program pick_idle_cpu(). */
struct pick_args {
	__s32 pid;
	__s32 prev_cpu;
	__u64 wake_flags;
};

/*
 * Of a wake-up with the number n it is measured how long each stage takes if n * SAMPLE_FACTOR >>
 * SAMPLE_SHIFT is 0, in 32 bits.
 */
#define SAMPLE_FACTOR 0x9e3779b1U
#define SAMPLE_SHIFT 24

/* The stages of a task's way. */
enum stage {
	STAGE_SEEN,    /* from the enqueue until user space took the record */
	STAGE_DECIDED, /* from there until the decision was in a mailbox */
	STAGE_DRAINED, /* until a CPU took it out */
	STAGE_RUNNING, /* until the task ran */
	STAGE_WHOLE,   /* all four together */
	STAGE_ORDERED, /* from the wake-up of a task with a standing order until it ran */
	NR_STAGES,
};

/*
 * Eight for each power of two up to 2^34 ns: 0 to 7 ns have one each, what is longer is in the last
 * (src/latency.rs).
 */
#define LATENCY_BUCKETS 256

/* How many tasks took how long. */
struct histogram {
	__u64 buckets[LATENCY_BUCKETS];
};

/* Map `latencies`, an element per possible CPU, written by that CPU alone. Written by K. */
struct cpu_latency {
	struct histogram stages[NR_STAGES];
};

/* Why the scheduler ended. K writes all of it, `kind` last. */
struct exit_record {
	__s64 exit_code;
	__u32 kind; /* enum scx_exit_kind; 0 while the scheduler runs */
	__u32 pad;
	char reason[128];
	char msg[1024];
};

_Static_assert(sizeof(struct queued_task) == 120, "a record and its header fill 128 bytes");
_Static_assert(__builtin_offsetof(struct queued_task, flags) == 24, "no hole");
_Static_assert(__builtin_offsetof(struct queued_task, comm) == 104, "no hole");
_Static_assert(sizeof(struct decision) == CACHE_LINE, "one cache line each");
_Static_assert(__builtin_offsetof(struct decision, flags) == 32, "no hole");
_Static_assert(__builtin_offsetof(struct decision, seen_at) == 40, "no hole");
_Static_assert(__builtin_offsetof(struct mailbox, slots) == CACHE_LINE,
	       "head and slots share no line");
_Static_assert(__builtin_offsetof(struct shared_mailbox, slots) == CACHE_LINE,
	       "head and slots share no line");
_Static_assert(__builtin_offsetof(struct cpu_state, running) == CACHE_LINE, "a line of its own");
_Static_assert(sizeof(struct running_task) == CACHE_LINE, "a line of its own");
_Static_assert(__builtin_offsetof(struct cpu_state, counters) == 2 * CACHE_LINE,
	       "counters do not disturb the rest");
_Static_assert(sizeof(struct cpu_state) == 320, "as in abi.rs");
_Static_assert(__builtin_offsetof(struct machine_state, fallback) == 128, "a line of its own");
_Static_assert(__builtin_offsetof(struct machine_state, virtual_now) == 192, "a line of its own");
_Static_assert(sizeof(struct machine_state) == 256, "as in abi.rs");
_Static_assert(sizeof(struct control) == 4144, "as in abi.rs");
_Static_assert(__builtin_offsetof(struct control, parked) == 4108, "as in abi.rs");
_Static_assert(sizeof(struct cpu_latency) == 12288, "as in abi.rs");
_Static_assert(sizeof(struct exit_record) == 1168, "as in abi.rs");
_Static_assert(sizeof(struct pick_args) == 16, "as in abi.rs");
_Static_assert(__builtin_offsetof(struct pick_args, wake_flags) == 8, "no hole");

#endif /* METRONOME_ABI_H */
