// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel side of Metronome: mechanism, no policy.
 *
 * A task that wakes finds an idle CPU (select_cpu), or waits in PENDING_DSQ while user space is told of it through the
 * rings `queued` (enqueue). User space answers with a decision in a mailbox, of one CPU or of all. Whichever CPU needs
 * work next opens its mailboxes (dispatch) and moves each decided task from PENDING_DSQ to its own DSQ or to SHARED_DSQ,
 * both ordered by deadline, and runs the first.
 *
 * So a runnable task is always on a DSQ that the kernel knows (Invariant 3): a decision only moves it. A decision that is
 * late, doubled or wrong finds the task elsewhere and changes nothing, and if user space falls silent its tasks can be
 * run in the order of their last deadlines without asking anybody (Invariant 6).
 *
 * A task for which user space has left a standing order is spared all this: the order is carried out (orders.h).
 *
 * The functions stand in the order of a task's life.
 */
#include "kernel.h"
#include "abi.h"
#include "orders.h"

char _license[] SEC("license") = "GPL";

/* Options, set by user space before loading. */
const volatile u32 nr_cpus = 1;		/* possible CPUs: CPU numbers are below it */
const volatile u32 nr_rings = 1;	/* a power of two */
const volatile s32 agent_cpu;		/* where the scheduler thread lives */
const volatile u64 slice_ns = 20000000;	/* the default slice */
const volatile u64 budget_ns = 50000000;	/* how late user space may be while a CPU is idle */
const volatile u64 patience_ns = 1000000000;	/* how long a task may wait for a decision at all */
const volatile bool builtin_idle = true;
const volatile u32 exit_dump_len = 32768;

/* Who the scheduler is, in the initial pid namespace; set by the program become_agent(). */
s32 agent_pid;
s32 agent_tgid;

/* DSQs below MAX_CPUS belong to the CPU of that number. All are ordered by deadline but that of agent_cpu. */
#define SHARED_DSQ MAX_CPUS		/* decided, for any CPU */
#define PENDING_DSQ (MAX_CPUS + 1)	/* user space is asked */
#define URGENT_DSQ (MAX_CPUS + 2)	/* tasks with standing orders, by the time when they should have run */

/* By so much before the current virtual time there is no deadline. */
#define AHEAD_OF_ALL (1ULL << 40)

/* Decisions that one dispatch() carries out at most: it runs with the run queue locked. */
#define DRAIN_BATCH 32

/* One dispatch() in so many looks for tasks whose decision does not come, even if there is other work. */
#define PATIENCE_TURNS 16

/* What a task pinned to the scheduler thread's CPU may run there, and how long the thread then has to itself. */
#define GUEST_SLICE_NS 1000000
#define AGENT_SLICE_NS 4000000

/*
 * Records for user space. A task's records all go through the ring of its id, so they stay in order; several rings keep
 * the CPUs of a large machine from queueing up at one ring's spinlock.
 */
struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_RINGS);	/* user space fills the first nr_rings */
	__type(key, u32);
	__array(values, struct ring);
} queued SEC(".maps") = {
	.values = { [0] = &ring },
};

/* Puts the layout of its records into the object's BTF, where a test of user space looks for it. */
static const struct queued_task *const record_layout __attribute__((used));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);		/* set to nr_cpus before loading */
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
	__uint(max_entries, 1);		/* set to nr_cpus before loading */
	__type(key, u32);
	__type(value, struct cpu_state);
} cpus SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct idle_mask);
} idle_cpus SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct control);
} control SEC(".maps");

/* Standing orders, by task id. User space alone writes them. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_TASKS);
	__type(key, u32);
	__type(value, u64);
} orders SEC(".maps");

/* Why the scheduler ended. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct exit_record);
} exit_record SEC(".maps");

/* The text of the exit dump; the value is resized to exit_dump_len before loading. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(u32));
	__uint(value_size, 32768);
} exit_dump SEC(".maps");

/* Free task ids, the lowest on top, so that the ids in use stay dense. */
struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, MAX_TASKS);
	__type(value, u32);
} free_ids SEC(".maps");

/* By task id. The generation outlives the task, so that no later owner of the id is mistaken for it. */
struct id_slot {
	s32 pid;
	u32 generation;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_TASKS);
	__type(key, u32);
	__type(value, struct id_slot);
} id_slots SEC(".maps");

struct task_ctx {
	u32 id;
	s32 waker;
	u64 wake_flags;
	u64 born_with;		/* the order it has until user space has spoken about it */
	u64 deadline;		/* while is_ordered: when it should have run, ns on the clock of scx_bpf_now() */
	u64 vtime;		/* while has_vtime: what p->scx.dsq_vtime was before the deadline took its place on URGENT_DSQ */
	u64 told_at;
	bool is_ordered;	/* it waits or runs by a standing order */
	bool has_vtime;
	bool is_handed_off;
	bool has_deadline;	/* user space gave it one with the last decision */
	bool house_keeping;	/* memory management thread of the kernel: must not wait for user space, which may wait for it */
	u64 enqueued_at;
	u64 start_ts;
	u64 stop_ts;
	u64 exec_runtime;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task_ctx);
} task_ctxs SEC(".maps");

/* What a CPU keeps for itself. */
struct cpu_ctx {
	u64 chain_since;	/* since when it is handed from task to task */
	u64 decided_since;	/* when it began to run a task without an order last */
	u64 protected_until;	/* until then what runs there is not displaced */
	u64 pad[5];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);		/* set to nr_cpus before loading */
	__type(key, u32);
	__type(value, struct cpu_ctx);
} cpu_ctxs SEC(".maps");

/* The CPUs that take tasks from SHARED_DSQ: those online, less agent_cpu. A hotplug event ends the scheduler. */
static struct bpf_cpumask __kptr *workers SEC(".bss.workers");

/* The largest deadline that has got a CPU, and where it went while it ran. */
static u64 vtime_now;

/* Does the scheduler thread hold its CPU without limit? */
static bool agent_unlimited;

/* When the heartbeat was seen to change last, and its value. Races lose an update of a few ns. */
static u64 beat_seen, beat_seen_at;

static __always_inline void count(enum counter counter)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct cpu_state *state = bpf_map_lookup_elem(&cpus, &cpu);

	/* Interrupts are off in every op that counts, so nobody else writes this CPU's counters. */
	if (state)
		state->counters[counter]++;
}

/*
 * Adds to a word: a full barrier. Without the second line clang drops the old value, and with it the barrier on machines
 * whose atomics have none by themselves (arm64).
 */
static __always_inline void add_and_order(u64 *word, u64 addend)
{
	u64 old = __sync_fetch_and_add(word, addend);

	barrier_var(old);
}

static __always_inline struct cpu_state *cpu_state(s32 cpu)
{
	u32 key = cpu;

	return bpf_map_lookup_elem(&cpus, &key);
}

static __always_inline struct cpu_ctx *cpu_ctx(s32 cpu)
{
	u32 key = cpu;

	return bpf_map_lookup_elem(&cpu_ctxs, &key);
}

static __always_inline bool time_before(u64 a, u64 b)
{
	return (s64)(a - b) < 0;
}

/* Races lose an update of a few ns. */
static __always_inline void advance_vtime_now(u64 vtime)
{
	if (time_before(vtime_now, vtime))
		vtime_now = vtime;
}

/* CPU time, scaled by the task's weight. */
static __always_inline u64 virtual_time(const struct task_struct *p, u64 runtime)
{
	return runtime * 100 / (p->scx.weight ?: 1);
}

static __always_inline struct task_ctx *task_ctx(struct task_struct *p)
{
	return bpf_task_storage_get(&task_ctxs, p, 0, 0);
}

static __always_inline bool is_agent(const struct task_struct *p)
{
	return p->pid == agent_pid;
}

/* migrate_disable() is in force. Older kernels count the running BPF program as one such section of the current task. */
static __always_inline bool is_migration_disabled(const struct task_struct *p)
{
	u16 depth = p->migration_disabled;

	return depth > 1 || (depth == 1 && p != bpf_get_current_task_btf());
}

/* May @p run nowhere but on the CPU of the scheduler thread? */
static bool only_on_agent_cpu(struct task_struct *p)
{
	struct bpf_cpumask *mask = workers;

	return mask && !bpf_cpumask_intersects((const struct cpumask *)mask, p->cpus_ptr);
}

/* May @p run on every CPU that takes tasks? */
static bool is_unrestricted(struct task_struct *p)
{
	struct bpf_cpumask *mask = workers;

	return p->nr_cpus_allowed > 1 && mask && bpf_cpumask_subset((const struct cpumask *)mask, p->cpus_ptr);
}

/*
 * Records for user space
 */

static void fill_record(struct queued_task *rec, struct task_struct *p, struct task_ctx *tctx, u32 generation, u64 enq_flags)
{
	u32 everywhere;

	rec->id = tctx->id;
	rec->generation = generation;
	rec->pid = p->pid;
	rec->tgid = p->tgid;
	rec->cpu = scx_bpf_task_cpu(p);
	/* Kept apart from the other value, or clang loads both through one pointer, which the verifier refuses. */
	everywhere = nr_cpus;
	barrier_var(everywhere);
	rec->nr_cpus_allowed = is_unrestricted(p) ? everywhere : p->nr_cpus_allowed;
	/* Tasks that never entered the class have none, and are told of when they exit. */
	rec->weight = p->scx.weight ?: 100;
	rec->flags = enq_flags | tctx->wake_flags << WAKE_FLAGS_SHIFT;
	rec->enqueued_at = tctx->enqueued_at;
	rec->start_ts = tctx->start_ts;
	rec->stop_ts = tctx->stop_ts;
	rec->exec_runtime = tctx->exec_runtime;
	rec->sum_exec_runtime = p->se.sum_exec_runtime;
	rec->nvcsw = p->nvcsw;
	rec->slice = p->scx.slice > 0xffffffffULL ? 0xffffffffU : p->scx.slice;
	rec->waker = tctx->waker;
	rec->vtime = p->scx.dsq_vtime;
	__builtin_memcpy(rec->comm, p->comm, sizeof(rec->comm));
}

static __always_inline struct queued_task *reserve_record(u32 id)
{
	u32 key = id & (nr_rings - 1);
	void *to = bpf_map_lookup_elem(&queued, &key);

	return to ? bpf_ringbuf_reserve(to, sizeof(struct queued_task), 0) : NULL;
}

/*
 * Must the record that has just been reserved wake the scheduler thread? Counts it, too.
 *
 * Ordering: the addition is a full barrier. User space stores `parked`, passes a full barrier, and reads the producer
 * position, which bpf_ringbuf_reserve() has advanced; so either it sees this record and does not sleep, or it is seen
 * parked here (src/wait.rs).
 */
static u64 wakeup_flags(void)
{
	u32 cpu = bpf_get_smp_processor_id(), zero = 0;
	struct cpu_state *state = bpf_map_lookup_elem(&cpus, &cpu);
	struct control *ctl = bpf_map_lookup_elem(&control, &zero);

	if (!state || !ctl)
		return BPF_RB_FORCE_WAKEUP;
	add_and_order(&state->counters[COUNT_QUEUED], 1);
	if (!*(volatile u32 *)&ctl->parked)
		return BPF_RB_NO_WAKEUP;
	/* Whoever sleeps has no heartbeat: it is not late before it could wake up. */
	beat_seen_at = scx_bpf_now();
	return BPF_RB_FORCE_WAKEUP;
}

/* Something has happened to @p. Nobody waits for an answer, so nobody is woken for it. */
static void tell(struct task_struct *p, struct task_ctx *tctx, enum record_kind kind, u64 enq_flags)
{
	u32 id = tctx ? tctx->id : NO_TASK, zero = 0;
	struct control *ctl = bpf_map_lookup_elem(&control, &zero);
	struct id_slot *slot;
	struct queued_task *rec;

	if (!ctl || !(ctl->events & (1U << kind)))
		return;
	slot = bpf_map_lookup_elem(&id_slots, &id);
	if (!slot || !tctx)
		return;
	rec = reserve_record(id);
	if (!rec) {
		count(COUNT_EVENTS_LOST);
		return;
	}
	rec->kind = kind;
	fill_record(rec, p, tctx, slot->generation, enq_flags);
	bpf_ringbuf_submit(rec, BPF_RB_NO_WAKEUP);
	count(COUNT_EVENTS);
}

/*
 * Standing orders: which one @p has, if any
 */

/* What user space has said about this life of the id counts; before it has, what the task was born with. */
static u64 order_of(struct task_ctx *tctx)
{
	u32 id = tctx->id;
	struct id_slot *slot = bpf_map_lookup_elem(&id_slots, &id);
	u64 *written = bpf_map_lookup_elem(&orders, &id);
	u64 order;

	if (!slot || !written)
		return 0;
	order = *(volatile u64 *)written;
	if (ORDER_BIRTH(order) != slot->generation >> BIRTH_SHIFT)
		order = tctx->born_with;
	return order & ORDER_VALID ? order : 0;
}

static void inherit_order(struct task_ctx *child)
{
	struct task_ctx *parent = task_ctx(bpf_get_current_task_btf());
	u32 zero = 0;
	struct control *ctl = bpf_map_lookup_elem(&control, &zero);
	u64 order = parent ? order_of(parent) : 0;

	if (order & ORDER_INHERIT)
		child->born_with = order;
	else if (ctl)
		child->born_with = ctl->newborn;
}

/*
 * Life of a task id
 */

static bool has_prefix(const char *comm, const char *prefix, u32 len)
{
	u32 i;

	bpf_for(i, 0, len)
		if (comm[i & 15] != prefix[i & 15])
			return false;
	return true;
}

/* A new life of an id: what was decided or ordered about earlier ones is not meant. */
static void be_born(struct task_ctx *tctx)
{
	u32 id = tctx->id, birth;
	struct id_slot *slot = bpf_map_lookup_elem(&id_slots, &id);
	u64 *order = bpf_map_lookup_elem(&orders, &id);

	if (!slot || !order)
		return;
	birth = (slot->generation >> BIRTH_SHIFT) + 1;
	/* After 4,095 lives births come round again. */
	if (birth >= BIRTHS)
		birth = 1;
	if (birth == ORDER_BIRTH(*(volatile u64 *)order))
		birth = birth == BIRTHS - 1 ? 1 : birth + 1;
	slot->generation = birth << BIRTH_SHIFT;
}

SEC("struct_ops.s/init_task")
s32 BPF_PROG(metronome_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	struct task_ctx *tctx = bpf_task_storage_get(&task_ctxs, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	static const char kswapd[16] = "kswapd", khugepaged[16] = "khugepaged", kcompactd[16] = "kcompactd";
	char comm[16];
	u32 id;

	if (!tctx)
		return -ENOMEM;

	tctx->id = bpf_map_pop_elem(&free_ids, &id) ? NO_TASK : id;
	be_born(tctx);
	if (args->fork)
		inherit_order(tctx);
	if (p->flags & PF_KTHREAD) {
		__builtin_memcpy(comm, p->comm, sizeof(comm));
		tctx->house_keeping = has_prefix(comm, kswapd, 6) || has_prefix(comm, khugepaged, 10) ||
				      has_prefix(comm, kcompactd, 9);
	}
	return 0;
}

SEC("struct_ops/exit_task")
void BPF_PROG(metronome_exit_task, struct task_struct *p, struct scx_exit_task_args *args)
{
	struct task_ctx *tctx = task_ctx(p);
	struct id_slot *slot;
	u32 id;

	if (!tctx || tctx->id == NO_TASK)
		return;
	id = tctx->id;
	slot = bpf_map_lookup_elem(&id_slots, &id);
	if (!slot)
		return;
	tell(p, tctx, RECORD_GONE, 0);
	slot->pid = 0;
	slot->generation++;
	bpf_map_push_elem(&free_ids, &id, 0);
}

SEC("struct_ops/set_weight")
void BPF_PROG(metronome_set_weight, struct task_struct *p, u32 weight)
{
	tell(p, task_ctx(p), RECORD_WEIGHT, 0);
}

SEC("struct_ops/set_cpumask")
void BPF_PROG(metronome_set_cpumask, struct task_struct *p, const struct cpumask *cpumask)
{
	tell(p, task_ctx(p), RECORD_AFFINITY, 0);
}

/* A task enters the class: it starts level with those that run. */
SEC("struct_ops/enable")
void BPF_PROG(metronome_enable, struct task_struct *p)
{
	set_vtime(p, vtime_now);
}

/*
 * Wake-up
 */

SEC("struct_ops/runnable")
void BPF_PROG(metronome_runnable, struct task_struct *p, u64 enq_flags)
{
	struct task_ctx *tctx = task_ctx(p);

	if (tctx && enq_flags & SCX_ENQ_WAKEUP)
		tctx->exec_runtime = 0;
}

/* User space hears of an order that was carried out, but of each task only so often: what records tell is summed up. */
static void tell_of_order(struct task_struct *p, struct task_ctx *tctx, u64 enq_flags)
{
	u32 zero = 0;
	struct control *ctl = bpf_map_lookup_elem(&control, &zero);
	u64 now = scx_bpf_now();

	if (!ctl || now - tctx->told_at < ctl->tell_us * 1000ULL)
		return;
	tctx->told_at = now;
	tctx->enqueued_at = now;
	tell(p, tctx, RECORD_ORDERED, enq_flags);
}

/*
 * From now until it sleeps or its order is used up, @p goes by its order. To others a chain of hand-offs is one long task:
 * the longer it has been going on, the later is the deadline of who runs next.
 */
static void begin_order(struct task_ctx *tctx, u64 order, bool is_wakeup, u64 chain_ns)
{
	if (is_wakeup || !tctx->is_ordered)
		tctx->deadline = scx_bpf_now() + ORDER_LATENCY_NS(order) + chain_ns;
	tctx->is_ordered = true;
}

static __always_inline u64 order_slice_ns(u64 order)
{
	return ORDER_SLICE_NS(order) ?: slice_ns;
}

/*
 * May @p have the CPU of its waker, which is about to sleep? Both go by orders, nobody else has been promised the CPU, and
 * it has not been handed on for too long. *@chain_ns is for how long.
 */
static bool may_be_handed_off(struct task_struct *p, u64 order, u64 wake_flags, u64 *chain_ns)
{
	s32 cpu = bpf_get_smp_processor_id();
	struct task_struct *waker = bpf_get_current_task_btf();
	struct task_ctx *wctx = task_ctx(waker);
	struct cpu_state *state = cpu_state(cpu);
	struct cpu_ctx *cctx = cpu_ctx(cpu);

	if (!(order & ORDER_HAND_OFF) || !(wake_flags & SCX_WAKE_SYNC) || cpu == agent_cpu || !state || !cctx)
		return false;
	*chain_ns = scx_bpf_now() - cctx->chain_since;
	return wctx && wctx->is_ordered && !(waker->flags & PF_EXITING) && state->running.pid == waker->pid &&
	       bpf_cpumask_test_cpu(cpu, p->cpus_ptr) && *chain_ns < HAND_OFF_NS &&
	       scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | cpu) <= 0;
}

/* The CPU that is looked at first. */
static s32 preferred_cpu(struct task_struct *p, s32 prev_cpu, u64 order)
{
	u32 cpu = ORDER_CPU(order);

	if (!(order & ORDER_PREFERS))
		return prev_cpu;
	if (cpu < nr_cpus && bpf_cpumask_test_cpu(cpu, p->cpus_ptr))
		return cpu;
	count(COUNT_BAD_ORDER);
	return prev_cpu;
}

/* An idle CPU takes the task at once: where there is no choice to make, nobody is asked. */
SEC("struct_ops/select_cpu")
s32 BPF_PROG(metronome_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	struct task_ctx *tctx = task_ctx(p);
	u64 order, chain_ns = 0;
	s32 cpu;

	if (!tctx || is_agent(p))
		return prev_cpu;
	tctx->waker = bpf_get_current_task_btf()->pid;
	tctx->wake_flags = wake_flags;

	order = order_of(tctx);
	if (!order && !builtin_idle)
		return prev_cpu;
	cpu = select_cpu_and(p, preferred_cpu(p, prev_cpu, order), wake_flags);
	if (cpu < 0) {
		if (!may_be_handed_off(p, order, wake_flags, &chain_ns))
			return prev_cpu;
		cpu = bpf_get_smp_processor_id();
		tctx->is_handed_off = true;
		count(COUNT_HANDED_OFF);
	}

	if (order) {
		begin_order(tctx, order, true, chain_ns);
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, order_slice_ns(order), 0);
		tell_of_order(p, tctx, SCX_ENQ_WAKEUP);
		count(COUNT_ORDERED);
	} else {
		tctx->is_ordered = false;
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, 0);
		count(COUNT_DIRECT);
	}
	return cpu;
}

static void kick_idle_cpu_for(struct task_struct *p)
{
	s32 cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);

	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
}

/* Any CPU may run @p next, in deadline order, without user space. */
static void enqueue_shared(struct task_struct *p, u64 vtime, u64 enq_flags, enum counter counter)
{
	dsq_insert_vtime(p, SHARED_DSQ, slice_ns, vtime, enq_flags);
	kick_idle_cpu_for(p);
	count(counter);
}

/* @p can run only where the scheduler thread lives: the two take turns. Several of its kind run first come, first served. */
static void enqueue_guest(struct task_struct *p, u64 enq_flags)
{
	scx_bpf_dsq_insert(p, agent_cpu, GUEST_SLICE_NS, enq_flags);
	if (agent_unlimited)
		scx_bpf_kick_cpu(agent_cpu, SCX_KICK_PREEMPT);
	else
		scx_bpf_kick_cpu(agent_cpu, SCX_KICK_IDLE);
	count(COUNT_KERNEL_SIDE);
}

/*
 * Tasks that must not wait for user space, because user space may wait for them, or because no decision is possible.
 * Returns whether @p was one.
 */
static bool enqueue_kernel_side(struct task_struct *p, struct task_ctx *tctx, u64 enq_flags)
{
	u64 first = vtime_now - AHEAD_OF_ALL;

	if (is_agent(p)) {
		/* Whatever ran in its absence gives way; a kernel thread that preempted it does not. */
		u64 preempt = enq_flags & SCX_ENQ_WAKEUP ? SCX_ENQ_PREEMPT : 0;

		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, SCX_SLICE_INF, enq_flags | preempt);
		return true;
	}

	if (p->nr_cpus_allowed == 1 && p->flags & PF_KTHREAD) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, enq_flags | SCX_ENQ_PREEMPT);
	} else if (is_migration_disabled(p)) {
		/* Bound to where it is until it leaves the section: soon, and others may wait for it. */
		u64 preempt = scx_bpf_task_cpu(p) == agent_cpu ? SCX_ENQ_PREEMPT : 0;

		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, enq_flags | preempt);
	} else if (p->nr_cpus_allowed < nr_cpus && only_on_agent_cpu(p)) {
		enqueue_guest(p, enq_flags);
		return true;
	} else if (p->tgid == agent_tgid || p->flags & PF_EXITING || (tctx && tctx->house_keeping)) {
		enqueue_shared(p, first, enq_flags, COUNT_KERNEL_SIDE);
		return true;
	} else {
		return false;
	}
	count(COUNT_KERNEL_SIDE);
	return true;
}

/* Does @cpu, if it is in @allowed, run a task that gives way to such a deadline, and of what kind? One with an order, by a margin. */
static enum running_kind may_displace(const struct cpumask *allowed, s32 cpu, u64 deadline, u64 *displaced)
{
	struct cpu_state *state = cpu_state(cpu);
	struct cpu_ctx *cctx = cpu_ctx(cpu);
	u32 kind;

	if (!state || !cctx || cpu == agent_cpu || !bpf_cpumask_test_cpu(cpu, allowed) ||
	    time_before(scx_bpf_now(), cctx->protected_until))
		return RUNS_OTHER;
	kind = state->running.kind;
	*displaced = state->running.deadline;
	if (kind == RUNS_ORDERED && !time_before(deadline + PREEMPT_MARGIN_NS, *displaced))
		return RUNS_OTHER;
	return kind;
}

/*
 * The CPU whose task gives way to @p, or a negative number. A task without an order gives way first: if one runs right here,
 * that is the CPU that answers at once, if one runs where @p ran last, that is the one with its data. Else the last by
 * deadline of those without an order, else of those with one.
 */
static s32 find_victim(struct task_struct *p, u64 deadline)
{
	/* Loaded once: to verify such a load takes old kernels milliseconds. */
	const struct cpumask *allowed = p->cpus_ptr;
	u32 start = scx_bpf_task_cpu(p), best_kind = RUNS_OTHER, i;
	s32 here = bpf_get_smp_processor_id(), best = -1;
	u64 latest = 0, displaced;

	if (may_displace(allowed, here, deadline, &displaced) == RUNS_DECIDED)
		return here;
	bpf_for(i, 0, PREEMPT_SEARCH) {
		u32 cpu = start + i, kind;

		if (i >= nr_cpus)
			break;
		if (cpu >= nr_cpus)
			cpu -= nr_cpus;
		kind = may_displace(allowed, cpu, deadline, &displaced);
		if (!i && kind == RUNS_DECIDED)
			return cpu;
		if (kind == RUNS_OTHER || (kind == RUNS_ORDERED && best_kind == RUNS_DECIDED) ||
		    (kind == best_kind && !time_before(latest, displaced)))
			continue;
		best = cpu;
		best_kind = kind;
		latest = displaced;
	}
	return best;
}

/* Makes a CPU run @p, which is on URGENT_DSQ: an idle one, else the one with the least urgent task if the order allows it. */
static void find_cpu_for_urgent(struct task_struct *p, u64 order, u64 deadline)
{
	s32 cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	struct cpu_state *state;

	if (cpu >= 0) {
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
		return;
	}
	if (!(order & ORDER_PREEMPT))
		return;
	cpu = find_victim(p, deadline);
	if (cpu < 0)
		return;
	/* Until it runs something else, nobody else need kick it. */
	state = cpu_state(cpu);
	if (state)
		state->running.kind = RUNS_OTHER;
	scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
	count(COUNT_PREEMPTED);
}

/* @p has an order that is not used up: carries it out. Returns whether that is so. */
static bool enqueue_ordered(struct task_struct *p, struct task_ctx *tctx, u64 enq_flags)
{
	u64 order = order_of(tctx);

	if (!order) {
		tctx->is_ordered = false;
		return false;
	}
	if (tctx->exec_runtime >= ORDER_BUDGET_NS(order)) {
		tctx->is_ordered = false;
		count(COUNT_USED_UP);
		return false;
	}
	begin_order(tctx, order, enq_flags & SCX_ENQ_WAKEUP, 0);
	tctx->vtime = p->scx.dsq_vtime;
	tctx->has_vtime = true;
	dsq_insert_vtime(p, URGENT_DSQ, order_slice_ns(order), tctx->deadline, enq_flags);
	find_cpu_for_urgent(p, order, tctx->deadline);
	tell_of_order(p, tctx, enq_flags);
	if (enq_flags & SCX_ENQ_WAKEUP)
		count(COUNT_ORDERED);
	return true;
}

/* Of a task that was on URGENT_DSQ the deadline has the place of its virtual time. */
static void restore_vtime(struct task_struct *p, struct task_ctx *tctx)
{
	if (!tctx->has_vtime)
		return;
	set_vtime(p, tctx->vtime);
	tctx->has_vtime = false;
}

/* User space is asked about @p. Returns whether there was room for the question. */
static bool enqueue_pending(struct task_struct *p, struct task_ctx *tctx, u32 generation, u64 enq_flags)
{
	struct queued_task *rec = reserve_record(tctx->id);
	u64 wakeup;

	if (!rec)
		return false;
	wakeup = wakeup_flags();
	tctx->enqueued_at = scx_bpf_now();
	rec->kind = RECORD_QUEUED;
	fill_record(rec, p, tctx, generation, enq_flags);
	dsq_insert_vtime(p, PENDING_DSQ, slice_ns, p->scx.dsq_vtime, enq_flags);
	bpf_ringbuf_submit(rec, wakeup);
	return true;
}

/* No CPU is free: the standing order is carried out, or user space is asked. */
SEC("struct_ops/enqueue")
void BPF_PROG(metronome_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct task_ctx *tctx = task_ctx(p);
	u32 id = tctx ? tctx->id : NO_TASK;
	struct id_slot *slot = bpf_map_lookup_elem(&id_slots, &id);

	if (tctx)
		restore_vtime(p, tctx);
	/* Whatever was decided about earlier enqueues is void. */
	if (slot) {
		slot->pid = p->pid;
		slot->generation++;
	}
	if (enqueue_kernel_side(p, tctx, enq_flags))
		return;
	if (!tctx || !slot)
		enqueue_shared(p, p->scx.dsq_vtime, enq_flags, COUNT_NO_ID);
	else if (!enqueue_ordered(p, tctx, enq_flags) && !enqueue_pending(p, tctx, slot->generation, enq_flags))
		enqueue_shared(p, p->scx.dsq_vtime, enq_flags, COUNT_RING_FULL);
}

/*
 * Decisions
 */

/*
 * Takes the decision at the head of a mailbox, if there is one. Several CPUs may try at once; the slot belongs to the one
 * that advances head.
 *
 * Ordering: `seq` holds the position only after user space stored the rest of the slot (store-release in mailbox.rs). The
 * compare-and-swap on head is a full barrier between reading seq and reading the rest, the swap on seq one between that
 * and giving the slot back.
 */
static __always_inline bool take(u64 *head, struct decision *slots, u32 nr_slots, struct decision *taken)
{
	u64 position = *(volatile u64 *)head;
	struct decision *slot = &slots[position & (nr_slots - 1)];

	if (*(volatile u64 *)&slot->seq != position + 1)
		return false;
	if (__sync_val_compare_and_swap(head, position, position + 1) != position)
		return false;

	taken->id = slot->id;
	taken->generation = slot->generation;
	taken->slice_ns = slot->slice_ns;
	taken->vtime = slot->vtime;
	taken->flags = slot->flags;
	__sync_lock_test_and_set(&slot->seq, 0);
	return true;
}

/*
 * Moves @p from PENDING_DSQ to the DSQ of @cpu, or to SHARED_DSQ if @cpu is negative or not allowed.
 *
 * The iterator comes first: it cannot move what is enqueued after it was made, so generation and affinity, once checked,
 * hold until the move.
 */
static enum record_kind move_pending(struct task_struct *p, struct task_ctx *tctx, const struct decision *decision,
				     struct id_slot *slot, s32 cpu)
{
	/* Those without a deadline keep the order in which they were decided. */
	u64 vtime = decision->vtime ?: vtime_now;
	enum record_kind fate = RECORD_RESCUED;
	struct bpf_iter_scx_dsq it;
	bool here, displaces;

	if (!bpf_iter_scx_dsq_new(&it, PENDING_DSQ, 0)) {
		here = cpu >= 0 && bpf_cpumask_test_cpu(cpu, p->cpus_ptr);
		displaces = here && decision->flags & DECISION_PREEMPT;
		scx_bpf_dsq_move_set_slice(&it, decision->slice_ns ?: slice_ns);
		scx_bpf_dsq_move_set_vtime(&it, displaces ? vtime_now - AHEAD_OF_ALL : vtime);
		if (*(volatile u32 *)&slot->generation != decision->generation)
			fate = RECORD_STALE;
		else if (scx_bpf_dsq_move_vtime(&it, p, here ? cpu : SHARED_DSQ, 0))
			fate = cpu >= 0 && !here ? RECORD_BOUNCED : RECORD_DISPATCHED;
		if (displaces && fate == RECORD_DISPATCHED) {
			/* On its way only this CPU takes it, which is busy here. */
			tctx->vtime = vtime;
			tctx->has_vtime = true;
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
	return fate;
}

static enum record_kind carry_out_for(struct task_struct *p, const struct decision *decision, s32 cpu)
{
	struct task_ctx *tctx = task_ctx(p);
	u32 id = decision->id;
	struct id_slot *slot = bpf_map_lookup_elem(&id_slots, &id);
	enum record_kind fate;

	if (!tctx || tctx->id != id || !slot)
		return RECORD_STALE;
	tctx->has_deadline = decision->vtime;

	fate = move_pending(p, tctx, decision, slot, cpu);
	/*
	 * The record is published a moment before its task is on PENDING_DSQ, and a very quick answer comes within that
	 * moment. The first attempt then waits for the run queue lock under which the task is enqueued; the second finds it.
	 */
	if (fate == RECORD_RESCUED)
		fate = move_pending(p, tctx, decision, slot, cpu);

	if ((fate == RECORD_DISPATCHED && cpu < 0 && !is_unrestricted(p)) || fate == RECORD_BOUNCED)
		kick_idle_cpu_for(p);
	tell(p, tctx, fate, 0);
	return fate;
}

static void count_fate(enum record_kind fate)
{
	switch (fate) {
	case RECORD_BOUNCED:
		count(COUNT_BOUNCED);
		count(COUNT_DISPATCHED);
		break;
	case RECORD_DISPATCHED:
		count(COUNT_DISPATCHED);
		break;
	case RECORD_STALE:
		count(COUNT_STALE);
		break;
	default:
		count(COUNT_RESCUED);
	}
}

/*
 * Puts one task where user space wants it: on @cpu, or anywhere if @cpu is negative. Not static, so that it is verified by
 * itself and not again in each loop that calls it.
 */
__noinline int carry_out(const struct decision *decision __arg_nonnull, s32 cpu)
{
	u32 id = decision->id;
	struct id_slot *slot = bpf_map_lookup_elem(&id_slots, &id);
	struct task_struct *p = NULL;

	if (slot && slot->pid)
		p = bpf_task_from_pid(slot->pid);
	if (!p) {
		count(COUNT_GONE);
		return 0;
	}
	count_fate(carry_out_for(p, decision, cpu));
	bpf_task_release(p);
	return 0;
}

/* Returns whether one of the decisions displaces what ran here. */
static bool drain_own_mailbox(s32 cpu)
{
	u32 key = cpu;
	struct mailbox *box = bpf_map_lookup_elem(&mailboxes, &key);
	struct decision decision;
	bool displaces = false;
	u32 i;

	if (!box)
		return false;
	bpf_for(i, 0, DRAIN_BATCH) {
		if (!take(&box->head, box->slots, MAILBOX_SLOTS, &decision))
			break;
		carry_out(&decision, decision.flags & DECISION_ANY_CPU ? -1 : cpu);
		displaces |= !!(decision.flags & DECISION_PREEMPT);
	}
	return displaces;
}

static void drain_shared_mailbox(void)
{
	u32 key = 0;
	struct shared_mailbox *box = bpf_map_lookup_elem(&shared_mailbox, &key);
	struct decision decision;
	u32 i;

	if (!box)
		return;
	bpf_for(i, 0, DRAIN_BATCH) {
		if (!take(&box->head, box->slots, SHARED_MAILBOX_SLOTS, &decision))
			break;
		carry_out(&decision, -1);
	}
}

static bool has_mail(s32 cpu)
{
	u32 key = cpu, zero = 0;
	struct mailbox *own = bpf_map_lookup_elem(&mailboxes, &key);
	struct shared_mailbox *shared = bpf_map_lookup_elem(&shared_mailbox, &zero);
	u64 position;

	if (!own || !shared)
		return false;
	position = *(volatile u64 *)&own->head;
	if (*(volatile u64 *)&own->slots[position & (MAILBOX_SLOTS - 1)].seq == position + 1)
		return true;
	position = *(volatile u64 *)&shared->head;
	return *(volatile u64 *)&shared->slots[position & (SHARED_MAILBOX_SLOTS - 1)].seq == position + 1;
}

/*
 * Tells user space that @cpu has run out of work or has got some.
 *
 * Ordering: the addition is a full barrier, and the bit is set before it. User space publishes a decision, passes a full
 * barrier, and reads the bit and idle_seq; so either it sees both and kicks this CPU, or this CPU sees the decision here
 * and kicks itself.
 */
static void publish_idle(s32 cpu, bool is_idle)
{
	u32 key = cpu, zero = 0;
	struct cpu_state *state = bpf_map_lookup_elem(&cpus, &key);
	struct idle_mask *mask = bpf_map_lookup_elem(&idle_cpus, &zero);
	u64 seq, bit = 1ULL << (cpu & 63);
	u64 *word;

	if (!state || !mask)
		return;
	seq = *(volatile u64 *)&state->idle_seq;
	if (!is_idle && !(seq & 1))
		return;
	word = &mask->words[(key / 64) & (MAX_CPUS / 64 - 1)];
	if (is_idle && !(seq & 1))
		__sync_fetch_and_or(word, bit);
	else if (!is_idle)
		__sync_fetch_and_and(word, ~bit);
	add_and_order(&state->idle_seq, (seq & 1) == is_idle ? 2 : 1);
	if (is_idle && has_mail(cpu))
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
}

/* Has user space been silent for longer than its budget? */
static bool user_space_is_late(void)
{
	u32 zero = 0;
	struct control *ctl = bpf_map_lookup_elem(&control, &zero);
	u64 now = scx_bpf_now(), beat;

	if (!ctl)
		return true;
	beat = *(volatile u64 *)&ctl->heartbeat;
	if (beat != beat_seen) {
		beat_seen = beat;
		beat_seen_at = now;
		return false;
	}
	return (s64)(now - beat_seen_at) > (s64)budget_ns;
}

/* Has the first task of PENDING_DSQ been there for longer than @limit? */
static bool first_pending_is_overdue(u64 limit)
{
	struct bpf_iter_scx_dsq it;
	struct task_ctx *tctx = NULL;
	struct task_struct *p;
	bool overdue = false;

	if (!bpf_iter_scx_dsq_new(&it, PENDING_DSQ, 0)) {
		p = bpf_iter_scx_dsq_next(&it);
		if (p)
			tctx = task_ctx(p);
		overdue = tctx && (s64)(scx_bpf_now() - tctx->enqueued_at) > (s64)limit;
	}
	bpf_iter_scx_dsq_destroy(&it);
	return overdue;
}

/*
 * Takes a task that waits for a decision which does not come: user space is late, or its decision lies in the mailbox of
 * a CPU that does not look, as one that is being taken offline. @idle: this CPU has nothing else to do.
 */
static bool take_over(bool idle)
{
	if (!first_pending_is_overdue(idle ? budget_ns : patience_ns) && !(idle && user_space_is_late()))
		return false;
	if (!scx_bpf_dsq_move_to_local(PENDING_DSQ))
		return false;
	count(COUNT_TAKEOVER);
	return true;
}

/* Tasks for any CPU are left over, and the CPU that was kicked for them may have looked too early. */
static void pass_on_shared(void)
{
	struct bpf_cpumask *mask = workers;
	s32 cpu;

	if (!mask || (scx_bpf_dsq_nr_queued(SHARED_DSQ) <= 0 && scx_bpf_dsq_nr_queued(URGENT_DSQ) <= 0))
		return;
	cpu = scx_bpf_pick_idle_cpu((const struct cpumask *)mask, 0);
	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
}

/* @cpu could not run what is on its own DSQ, as happens while it is being taken offline: any other CPU may. */
static void give_away_own_dsq(s32 cpu)
{
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	u32 i;

	if (scx_bpf_dsq_nr_queued(cpu) <= 0)
		return;
	if (!bpf_iter_scx_dsq_new(&it, cpu, 0)) {
		bpf_for(i, 0, DRAIN_BATCH) {
			p = bpf_iter_scx_dsq_next(&it);
			if (!p)
				break;
			scx_bpf_dsq_move_vtime(&it, p, SHARED_DSQ, 0);
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
	pass_on_shared();
}

/* The next of the tasks that user space has decided about. The two DSQs take turns, so that neither starves the other. */
static bool move_decided_to_local(s32 cpu, u64 turn)
{
	bool shared_first = turn & 1;

	return scx_bpf_dsq_move_to_local(shared_first ? SHARED_DSQ : cpu) ||
	       scx_bpf_dsq_move_to_local(shared_first ? cpu : SHARED_DSQ);
}

/*
 * This CPU may have run nothing but tasks with orders for so long that one without must have its turn, and keep the CPU for a
 * moment.
 */
static bool move_starved_to_local(s32 cpu, u64 turn)
{
	struct cpu_ctx *cctx = cpu_ctx(cpu);
	u64 now = scx_bpf_now();

	if (!cctx || now - cctx->decided_since < URGENT_NS || !move_decided_to_local(cpu, turn))
		return false;
	cctx->protected_until = now + PROTECTED_NS;
	return true;
}

static bool agent_is_parked(void)
{
	u32 zero = 0;
	struct control *ctl = bpf_map_lookup_elem(&control, &zero);

	return ctl && *(volatile u32 *)&ctl->parked;
}

/* @cpu needs a task. */
SEC("struct_ops/dispatch")
void BPF_PROG(metronome_dispatch, s32 cpu, struct task_struct *prev)
{
	struct cpu_state *state = cpu_state(cpu);
	bool displaces;
	u64 turn;

	/* While the thread sleeps, its CPU is everybody's. */
	if (cpu == agent_cpu && !agent_is_parked()) {
		/* A kick that was meant for a worker may have ended up here. */
		if (!scx_bpf_dsq_move_to_local(agent_cpu))
			pass_on_shared();
		return;
	}
	if (!state)
		return;

	displaces = drain_own_mailbox(cpu);
	drain_shared_mailbox();

	turn = state->counters[COUNT_TURNS]++;
	if (turn % PATIENCE_TURNS == 0 && take_over(false))
		return;
	if ((displaces && scx_bpf_dsq_move_to_local(cpu)) || move_starved_to_local(cpu, turn) ||
	    scx_bpf_dsq_move_to_local(URGENT_DSQ) ||
	    move_decided_to_local(cpu, turn)) {
		pass_on_shared();
		return;
	}
	give_away_own_dsq(cpu);
	if (take_over(true))
		return;

	/*
	 * Idle before and idle still: update_idle() is not called for this, nor, before 7.3, for a CPU that went idle before
	 * the scheduler was attached. User space has to know that it is idle and that it has looked.
	 */
	if (cpu != agent_cpu && bpf_get_current_task_btf()->pid == 0)
		publish_idle(cpu, true);
}

SEC("struct_ops/update_idle")
void BPF_PROG(metronome_update_idle, s32 cpu, bool is_idle)
{
	if (cpu == agent_cpu)
		return;
	publish_idle(cpu, is_idle);
	/* Whoever put something there since this CPU looked has not seen it idle. */
	if (is_idle && (scx_bpf_dsq_nr_queued(SHARED_DSQ) > 0 || scx_bpf_dsq_nr_queued(URGENT_DSQ) > 0))
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
}

/*
 * On the CPU
 */

static void publish_running(struct task_struct *p, struct task_ctx *tctx)
{
	s32 cpu = scx_bpf_task_cpu(p);
	struct cpu_state *state = cpu_state(cpu);
	struct cpu_ctx *cctx = cpu_ctx(cpu);
	struct running_task *running;
	u64 vtime = p->scx.dsq_vtime;
	bool is_ours = !(p->flags & PF_KTHREAD && p->nr_cpus_allowed == 1);

	if (!state || !cctx)
		return;
	/* Kept apart from the other deadline, or clang loads both through one pointer, which the verifier refuses. */
	barrier_var(vtime);
	running = &state->running;
	running->pid = p->pid;
	running->id = tctx->id;
	running->since = tctx->start_ts;
	running->deadline = tctx->is_ordered ? tctx->deadline : vtime;
	running->slice = p->scx.slice;
	running->kind = !is_ours ? RUNS_OTHER : tctx->is_ordered ? RUNS_ORDERED : RUNS_DECIDED;

	if (running->kind == RUNS_DECIDED)
		cctx->decided_since = running->since;
	if (!tctx->is_handed_off)
		cctx->chain_since = running->since;
	tctx->is_handed_off = false;
}

SEC("struct_ops/running")
void BPF_PROG(metronome_running, struct task_struct *p)
{
	struct task_ctx *tctx = task_ctx(p);

	if (is_agent(p)) {
		agent_unlimited = scx_bpf_dsq_nr_queued(agent_cpu) <= 0 &&
				  scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | agent_cpu) <= 0;
		set_slice(p, agent_unlimited ? SCX_SLICE_INF : AGENT_SLICE_NS);
		return;
	}
	if (!tctx)
		return;
	tctx->start_ts = scx_bpf_now();
	restore_vtime(p, tctx);
	publish_running(p, tctx);
	advance_vtime_now(p->scx.dsq_vtime);
}

/* Sets *@vtime to the deadline of the first task on a DSQ, if there is one and @cpu may run it. */
static bool first_vtime(u64 dsq_id, s32 cpu, u64 *vtime)
{
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	bool found = false;

	if (!bpf_iter_scx_dsq_new(&it, dsq_id, 0)) {
		p = bpf_iter_scx_dsq_next(&it);
		if (p && bpf_cpumask_test_cpu(cpu, p->cpus_ptr)) {
			*vtime = p->scx.dsq_vtime;
			found = true;
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
	return found;
}

/* Sets *@vtime to the deadline of the first decision in a mailbox, if there is one. */
static __always_inline bool first_mail_vtime(u64 *head, struct decision *slots, u32 nr_slots, u64 *vtime)
{
	u64 position = *(volatile u64 *)head;
	struct decision *slot = &slots[position & (nr_slots - 1)];

	if (*(volatile u64 *)&slot->seq != position + 1)
		return false;
	/* If a CPU takes it and user space fills the slot again meanwhile, this is the deadline of the new one: as good. */
	*vtime = *(volatile u64 *)&slot->vtime;
	return true;
}

/* Does a task that @cpu may run have an earlier deadline than @p, which runs there and whose own moves on meanwhile? */
static bool is_overtaken(struct task_struct *p, struct task_ctx *tctx, s32 cpu)
{
	u64 deadline = p->scx.dsq_vtime + virtual_time(p, scx_bpf_now() - tctx->start_ts);
	u32 key = cpu, zero = 0;
	struct mailbox *own = bpf_map_lookup_elem(&mailboxes, &key);
	struct shared_mailbox *shared = bpf_map_lookup_elem(&shared_mailbox, &zero);
	u64 first;

	if (!own || !shared || !tctx->has_deadline)
		return false;
	return (first_vtime(cpu, cpu, &first) && time_before(first, deadline)) ||
	       (first_vtime(SHARED_DSQ, cpu, &first) && time_before(first, deadline)) ||
	       (first_mail_vtime(&own->head, own->slots, MAILBOX_SLOTS, &first) && time_before(first, deadline)) ||
	       (first_mail_vtime(&shared->head, shared->slots, SHARED_MAILBOX_SLOTS, &first) &&
		time_before(first, deadline));
}

/* Must @p, which runs on @cpu, make room for a task with an order, or one that was handed its CPU? */
static bool is_in_the_way(struct task_ctx *tctx, s32 cpu)
{
	struct cpu_ctx *cctx = cpu_ctx(cpu);
	u64 now = scx_bpf_now(), first;

	if (!cctx || time_before(now, cctx->protected_until))
		return false;
	if (scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | cpu) > 0)
		return true;
	if (tctx->is_ordered && now - cctx->decided_since > URGENT_NS &&
	    (scx_bpf_dsq_nr_queued(SHARED_DSQ) > 0 || scx_bpf_dsq_nr_queued(cpu) > 0))
		return true;
	if (!first_vtime(URGENT_DSQ, cpu, &first))
		return false;
	return !tctx->is_ordered || time_before(first + PREEMPT_MARGIN_NS, tctx->deadline);
}

/*
 * The task with the earliest deadline runs, give or take a tick. And as a backstop, nothing that finds its way to the
 * scheduler thread's CPU waits there for longer than that.
 */
SEC("struct_ops/tick")
void BPF_PROG(metronome_tick, struct task_struct *p)
{
	struct task_ctx *tctx = task_ctx(p);
	s32 cpu = scx_bpf_task_cpu(p);
	bool give_way;

	if (cpu == agent_cpu)
		give_way = scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | agent_cpu) > 0;
	else
		give_way = tctx && (is_in_the_way(tctx, cpu) || (!tctx->is_ordered && is_overtaken(p, tctx, cpu)));
	if (give_way)
		set_slice(p, 0);
}

SEC("struct_ops/stopping")
void BPF_PROG(metronome_stopping, struct task_struct *p, bool runnable)
{
	struct task_ctx *tctx = task_ctx(p);
	u64 ran, vtime;

	/* running() notes no time for the scheduler thread, which has no part in virtual time. */
	if (!tctx || !tctx->start_ts)
		return;
	tctx->stop_ts = scx_bpf_now();
	ran = tctx->stop_ts - tctx->start_ts;
	tctx->exec_runtime += ran;
	/* Whoever has run goes behind those who have not, should user space not say otherwise in time. */
	vtime = p->scx.dsq_vtime + virtual_time(p, ran);
	set_vtime(p, vtime);
	advance_vtime_now(vtime);
	if (runnable)
		return;
	tell(p, tctx, RECORD_BLOCKED, 0);
	tctx->is_ordered = false;
	tctx->waker = 0;
	tctx->wake_flags = 0;
}

/*
 * What user space calls
 */

/* The caller is the scheduler thread. Asked this way because user space may live in a pid namespace of its own. */
SEC("syscall")
int become_agent(void *ctx)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();

	agent_pid = (u32)pid_tgid;
	agent_tgid = pid_tgid >> 32;
	return 0;
}

/* Wakes the idle CPUs listed in `control`. */
SEC("syscall")
int kick_cpus(void *ctx)
{
	u32 zero = 0, i, nr;
	struct control *ctl = bpf_map_lookup_elem(&control, &zero);

	if (!ctl)
		return -ENOENT;
	nr = ctl->nr_kicks;
	if (nr > MAX_CPUS)
		nr = MAX_CPUS;
	bpf_for(i, 0, nr) {
		u32 kick = ctl->kicks[i & (MAX_CPUS - 1)];
		u32 cpu = kick & ~KICK_PREEMPT;

		if (cpu < nr_cpus && cpu != agent_cpu)
			scx_bpf_kick_cpu(cpu, kick & KICK_PREEMPT ? SCX_KICK_PREEMPT : SCX_KICK_IDLE);
	}
	return 0;
}

/* Claims an idle CPU for a task, as select_cpu() does. Returns its number, or a negative error. */
SEC("syscall")
int pick_idle_cpu(struct pick_args *args)
{
	struct task_struct *p = bpf_task_from_pid(args->pid);
	s32 cpu;

	if (!p)
		return -ENOENT;
	bpf_rcu_read_lock();
	cpu = select_cpu_and(p, args->prev_cpu, args->wake_flags);
	bpf_rcu_read_unlock();
	bpf_task_release(p);
	return cpu;
}

/*
 * Start and end
 */

static int fill_free_ids(void)
{
	u32 i, id;
	int err;

	bpf_for(i, 0, MAX_TASKS) {
		id = MAX_TASKS - 1 - i;
		err = bpf_map_push_elem(&free_ids, &id, 0);
		if (err)
			return err;
	}
	return 0;
}

static int set_workers(void)
{
	struct bpf_cpumask *mask = bpf_cpumask_create();
	const struct cpumask *online;

	if (!mask)
		return -ENOMEM;
	online = scx_bpf_get_online_cpumask();
	bpf_cpumask_copy(mask, online);
	scx_bpf_put_cpumask(online);
	bpf_cpumask_clear_cpu(agent_cpu, mask);
	mask = bpf_kptr_xchg(&workers, mask);
	if (mask)
		bpf_cpumask_release(mask);
	return 0;
}

SEC("struct_ops.s/init")
s32 BPF_PROG(metronome_init)
{
	s32 err, cpu;

	err = fill_free_ids();
	if (!err)
		err = set_workers();
	if (!err)
		err = scx_bpf_create_dsq(SHARED_DSQ, -1);
	if (!err)
		err = scx_bpf_create_dsq(PENDING_DSQ, -1);
	if (!err)
		err = scx_bpf_create_dsq(URGENT_DSQ, -1);
	bpf_for(cpu, 0, nr_cpus) {
		if (err)
			break;
		err = scx_bpf_create_dsq(cpu, -1);
	}
	beat_seen_at = scx_bpf_now();
	return err;
}

SEC("struct_ops/dump")
void BPF_PROG(metronome_dump, struct scx_dump_ctx *dump)
{
	static char fmt[] = "metronome: scheduler thread %lld on CPU %lld, heartbeat %llu, pending %lld, shared %lld, "
			    "shared mailbox at %llu, seq there %llu\n";
	u32 zero = 0;
	struct control *ctl = bpf_map_lookup_elem(&control, &zero);
	struct shared_mailbox *box = bpf_map_lookup_elem(&shared_mailbox, &zero);

	if (!ctl || !box)
		return;
	unsigned long long args[] = {
		agent_pid, agent_cpu, ctl->heartbeat, scx_bpf_dsq_nr_queued(PENDING_DSQ),
		scx_bpf_dsq_nr_queued(SHARED_DSQ), box->head, box->slots[box->head & (SHARED_MAILBOX_SLOTS - 1)].seq,
	};

	scx_bpf_dump_bstr(fmt, args, sizeof(args));
}

SEC("struct_ops/dump_cpu")
void BPF_PROG(metronome_dump_cpu, struct scx_dump_ctx *dump, s32 cpu, bool idle)
{
	static char fmt[] = "metronome: idle_seq %llu, turns %llu, queued %lld, mailbox at %llu, seq there %llu\n";
	u32 key = cpu;
	struct cpu_state *state = bpf_map_lookup_elem(&cpus, &key);
	struct mailbox *box = bpf_map_lookup_elem(&mailboxes, &key);

	if (!state || !box)
		return;
	unsigned long long args[] = {
		state->idle_seq, state->counters[COUNT_TURNS], scx_bpf_dsq_nr_queued(cpu), box->head,
		box->slots[box->head & (MAILBOX_SLOTS - 1)].seq,
	};

	scx_bpf_dump_bstr(fmt, args, sizeof(args));
}

SEC("struct_ops/exit")
void BPF_PROG(metronome_exit, struct scx_exit_info *info)
{
	u32 zero = 0;
	struct exit_record *record = bpf_map_lookup_elem(&exit_record, &zero);
	char *dump = bpf_map_lookup_elem(&exit_dump, &zero);

	if (dump)
		bpf_probe_read_kernel_str(dump, exit_dump_len, info->dump);
	if (!record)
		return;
	bpf_probe_read_kernel_str(record->reason, sizeof(record->reason), info->reason);
	bpf_probe_read_kernel_str(record->msg, sizeof(record->msg), info->msg);
	record->exit_code = info->exit_code;
	/* The swap is a full barrier: who sees the kind sees the rest. */
	__sync_lock_test_and_set(&record->kind, info->kind);
}

SEC(".struct_ops.link")
struct sched_ext_ops metronome = {
	.select_cpu = (void *)metronome_select_cpu,
	.enqueue = (void *)metronome_enqueue,
	.dispatch = (void *)metronome_dispatch,
	.tick = (void *)metronome_tick,
	.runnable = (void *)metronome_runnable,
	.running = (void *)metronome_running,
	.stopping = (void *)metronome_stopping,
	.update_idle = (void *)metronome_update_idle,
	.set_weight = (void *)metronome_set_weight,
	.set_cpumask = (void *)metronome_set_cpumask,
	.init_task = (void *)metronome_init_task,
	.exit_task = (void *)metronome_exit_task,
	.enable = (void *)metronome_enable,
	.dump = (void *)metronome_dump,
	.dump_cpu = (void *)metronome_dump_cpu,
	.init = (void *)metronome_init,
	.exit = (void *)metronome_exit,
	/* Set by user space: flags, timeout_ms, exit_dump_len, hotplug_seq. */
	.name = "metronome",
};
