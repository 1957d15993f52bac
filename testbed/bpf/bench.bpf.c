// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel's half of the benchmarks, for kernels without sched_ext: the maps of
 * bpf/metronome.bpf.c, and SYSCALL programs in the place of its ops. They play CPUs whose tasks run
 * and wake again: fill() wakes some, which writes their records, and the programs that drain take
 * the decisions and note whose they were, so that the next fill() may wake those.
 */
#include "../../bpf/kernel.h"
#include "../../bpf/abi.h"
#include "../../bpf/mailbox.h"

char _license[] SEC("license") = "GPL";

#define BENCH_CPUS 16

/* A task runs for up to so many ns between two waits. */
#define LONGEST_RUN_NS 4000000

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} queued SEC(".maps");

/* Shows what a ring of one's own is worth to a producer. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} queued_too SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_USER_RINGBUF);
	__uint(max_entries, 1 << 18);
} dispatched SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, BENCH_CPUS);
	__type(key, u32);
	__type(value, struct mailbox);
} mailboxes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct shared_mailbox);
} shared_mailbox SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, BENCH_CPUS);
	__type(key, u32);
	__type(value, struct cpu_state);
} cpus SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct control);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct machine_state);
} machine SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_TASKS);
	__type(key, u32);
	__type(value, u64);
} orders SEC(".maps");

/* What scx_rustland_core hands over: the layout of its dispatched_task_ctx. */
struct user_decision {
	s32 pid;
	s32 cpu;
	u64 flags;
	u64 slice_ns;
	u64 vtime;
	u64 enq_cnt;
};

struct task {
	u64 sum_exec_runtime;
	u32 generation;
};

static struct task tasks[MAX_TASKS];

/* The tasks that user space does not hold, in the order in which they wake. */
static u32 running[MAX_TASKS];
static u32 first_running, end_running;

static __always_inline void runs(u32 id)
{
	running[end_running++ & (MAX_TASKS - 1)] = id;
}

/* The first @nr tasks exist, and all run. */
SEC("syscall")
int reset(u32 *nr)
{
	u32 id, tasks_nr = *nr;

	first_running = end_running = 0;
	bpf_for(id, 0, tasks_nr) {
		tasks[id & (MAX_TASKS - 1)].sum_exec_runtime = 0;
		runs(id);
	}
	return 0;
}

static __always_inline void describe(struct queued_task *record, u32 id, struct task *task, u64 now)
{
	u64 ran = bpf_get_prandom_u32() % LONGEST_RUN_NS;

	task->sum_exec_runtime += ran;
	record->id = id;
	record->generation = 1 << EPOCH_SHIFT | (++task->generation & ((1 << EPOCH_SHIFT) - 1));
	record->pid = id + 1;
	record->tgid = id + 1;
	record->cpu = id % BENCH_CPUS;
	record->kind = RECORD_QUEUED;
	record->nr_cpus_allowed = BENCH_CPUS;
	record->flags = SCX_ENQ_WAKEUP;
	record->weight = 100;
	record->enqueued_at = now;
	record->start_ts = now - ran;
	record->stop_ts = now;
	record->exec_runtime = ran;
	record->sum_exec_runtime = task->sum_exec_runtime;
	record->nvcsw = task->generation;
	record->slice = 0;
	record->waker = 0;
	record->vtime = 0;
	__builtin_memcpy(record->comm, "bench\0\0\0\0\0\0\0\0\0\0", sizeof(record->comm));
}

/* Wakes so many tasks. Returns how many records it wrote. */
SEC("syscall")
int fill(u32 *nr)
{
	u32 i, id, filled = 0, wanted = *nr;
	struct queued_task *record;

	bpf_for(i, 0, wanted) {
		record = bpf_ringbuf_reserve(&queued, sizeof(*record), 0);
		if (!record)
			break;
		id = running[first_running++ & (MAX_TASKS - 1)];
		describe(record, id, &tasks[id & (MAX_TASKS - 1)], bpf_ktime_get_ns());
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
		filled++;
	}
	return filled;
}

/* For several producers at once, which share nothing but the ring. */
static __always_inline int flood_ring(void *ring, u32 nr)
{
	struct queued_task *record;
	struct task task = {};
	u32 i, filled = 0;

	bpf_for(i, 0, nr) {
		record = bpf_ringbuf_reserve(ring, sizeof(*record), 0);
		if (!record)
			break;
		describe(record, 0, &task, 0);
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
		filled++;
	}
	return filled;
}

SEC("syscall")
int flood(u32 *nr)
{
	return flood_ring(&queued, *nr);
}

SEC("syscall")
int flood_too(u32 *nr)
{
	return flood_ring(&queued_too, *nr);
}

/*
 * Writes one record with the time at which it began to. Returns how long that took, in ns, with one
 * reading of the clock.
 */
SEC("syscall")
int stamp(void *ctx)
{
	u64 now = bpf_ktime_get_ns();
	struct task task = {};
	struct queued_task *record = bpf_ringbuf_reserve(&queued, sizeof(*record), 0);

	if (!record)
		return -ENOMEM;
	describe(record, 0, &task, now);
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return bpf_ktime_get_ns() - now;
}

/* Reads the clock so many times. Returns how long that took, in ns. */
SEC("syscall")
int read_clock(u32 *nr)
{
	u64 start = bpf_ktime_get_ns(), now = start;
	u32 i, times = *nr;

	bpf_for(i, 0, times)
		now = bpf_ktime_get_ns();
	return now - start;
}

/*
 * Carries out what is in the shared mailbox and in that of the first CPU. Returns how many
 * decisions that was.
 */
SEC("syscall")
int drain_mailboxes(void *ctx)
{
	u32 zero = 0, drained = 0, i;
	struct shared_mailbox *shared = bpf_map_lookup_elem(&shared_mailbox, &zero);
	struct mailbox *own = bpf_map_lookup_elem(&mailboxes, &zero);
	struct decision decision;

	if (!own || !shared)
		return -ENOENT;
	bpf_for(i, 0, SHARED_MAILBOX_SLOTS) {
		if (!take(&shared->head, shared->slots, SHARED_MAILBOX_SLOTS, &decision))
			break;
		runs(decision.id);
		drained++;
	}
	bpf_for(i, 0, MAILBOX_SLOTS) {
		if (!take(&own->head, own->slots, MAILBOX_SLOTS, &decision))
			break;
		runs(decision.id);
		drained++;
	}
	return drained;
}

static long carry_out_user_decision(struct bpf_dynptr *sample, void *ctx)
{
	struct user_decision decision;

	if (!bpf_dynptr_read(&decision, sizeof(decision), sample, 0, 0))
		runs(decision.pid - 1);
	return 0;
}

/* Carries out what is in the user ring. Returns how many decisions that was. */
SEC("syscall")
int drain_user_ring(void *ctx)
{
	return bpf_user_ringbuf_drain(&dispatched, carry_out_user_decision, NULL, BPF_RB_NO_WAKEUP);
}

/*
 * The shape of scx_rustland_core's rs_select_cpu. There, the search for an idle CPU stands between
 * the two kfuncs, which this kernel may lack: so this is cheaper than the original.
 */
SEC("syscall")
int select_cpu(struct pick_args *args)
{
	struct task_struct *p = bpf_task_from_pid(args->pid);

	if (!p)
		return -ENOENT;
	bpf_task_release(p);
	return args->prev_cpu;
}
