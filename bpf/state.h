/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the kernel side keeps: its options, its maps, what it knows of each task and CPU.
 */
#ifndef METRONOME_STATE_H
#define METRONOME_STATE_H

#include "kernel.h"
#include "abi.h"

/* Options, set by user space before loading. */
const volatile u32 nr_cpus = 1;		 /* possible CPUs: CPU numbers are below it */
const volatile u32 nr_rings = 1;	 /* a power of two */
const volatile s32 agent_cpu;		 /* where the scheduler thread lives */
const volatile u64 budget_ns = 10000000; /* how late user space may be */
const volatile bool builtin_idle = true;
/* Tasks have what their weight is worth, whatever their cgroup. */
const volatile bool is_flat;
const volatile u32 exit_dump_len = 32768;

/* Options, too. */
const volatile struct limits limits;

/* The default slice. User space may change it at any moment. */
volatile u64 slice_ns = 20000000;

/* What it is shortened to at least as tasks that take turns wait. Likewise. */
volatile u64 slice_min_ns = 1000000;

/* The scheduler thread and its process, in the initial pid namespace; set by become_agent(). */
s32 agent_pid;
s32 agent_tgid;

/*
 * DSQs below MAX_CPUS belong to the CPU of that number. All are ordered by deadline but PENDING_DSQ
 * and the last two, which are first come, first served.
 */
#define SHARED_DSQ MAX_CPUS	   /* decided, for any CPU */
#define PENDING_DSQ (MAX_CPUS + 1) /* user space is asked */
/* Tasks with standing orders, by the time when they should have run. */
#define URGENT_DSQ (MAX_CPUS + 2)
#define KERNEL_SIDE_DSQ (MAX_CPUS + 3) /* user space is not asked */
#define FALLBACK_DSQ (MAX_CPUS + 4)    /* user space cannot be asked */

/*
 * One dispatch() in so many looks for tasks that have waited too long, even if there is other work.
 */
#define PATIENCE_TURNS 16

/*
 * Records for user space. A task's records all go through the ring of its id, so they stay in
 * order; several rings keep the CPUs of a large machine from queueing up at one ring's spinlock.
 */
struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_RINGS); /* user space fills the first nr_rings */
	__type(key, u32);
	__array(values, struct ring);
} queued SEC(".maps") = {
	.values = {[0] = &ring},
};

/* Puts the layout of its records into the object's BTF, where a test of user space looks for it. */
static const struct queued_task *const record_layout __attribute__((used));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* set to nr_cpus before loading */
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
	__uint(max_entries, 1); /* set to nr_cpus before loading */
	__type(key, u32);
	__type(value, struct cpu_state);
} cpus SEC(".maps");

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

/* How long each stage takes. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* set to nr_cpus before loading */
	__type(key, u32);
	__type(value, struct cpu_latency);
} latencies SEC(".maps");

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

/*
 * By task id. The generation outlives the task, so that no later owner of the id is mistaken for
 * it.
 */
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

/*
 * Of the next enqueue in the same epoch. The numbers come round after 2^20: the epoch above them
 * stays.
 */
static __always_inline u32 next_generation(u32 generation)
{
	u32 numbers = (1U << EPOCH_SHIFT) - 1;

	return (generation & ~numbers) | ((generation + 1) & numbers);
}

/*
 * A wake-up whose stages are measured; ns, CLOCK_MONOTONIC, because user space can read that clock,
 * too.
 */
struct sample {
	u64 since; /* when it was enqueued or its order begun; 0: it is not measured */
	u64 seen_at;
	u64 decided_at;
	u64 drained_at; /* 0: no decision has come */
	u32 generation; /* of the enqueue; 0: a standing order */
};

struct task_ctx {
	u32 id;
	s32 waker;
	u64 wake_flags;
	u64 born_with; /* the order it has until user space has spoken about it */
	/* Of control.policies; EVERY_POLICY: the order holds under every policy. */
	u64 born_under;
	/* While is_ordered: when it should have run, ns. */
	u64 deadline;
	/* What it adds to the runnable weight of its group; 0 while it sleeps. */
	u32 counted_weight;
	u32 group; /* where its cgroup is in `groups` */
	/* What its weight is worth beside other groups' (groups.h); 0: that is to be looked up. */
	u64 share;
	u64 share_at;	/* when it was */
	u64 charged_at; /* up to when its CPU time is in vruntime */
	/*
	 * CPU time it had, scaled by its share, where virtual time began when it entered the class
	 * (turns.h).
	 */
	u64 vruntime;
	/*
	 * While has_vtime: what p->scx.dsq_vtime was before the deadline took its place on
	 * URGENT_DSQ.
	 */
	u64 vtime;
	u64 told_at;
	bool is_ordered;  /* it waits or runs by a standing order */
	bool is_due_last; /* the same, and none is due later */
	bool has_vtime;
	bool is_handed_off;
	bool displaces; /* its order says so */
	/* P->scx.dsq_vtime tells when it is due: user space gave it one, or it was levelled. */
	bool has_deadline;
	/* It waits or runs by p->scx.dsq_vtime, so that this moves vtime_now on. */
	bool in_order;
	bool is_decided; /* the same, and user space has said so: it moves decided_now on */
	bool in_turn;	 /* it waits or runs by its virtual runtime */
	/* An idle CPU took it without being urgent, and it has not run since. */
	bool found_idle;
	/*
	 * Memory management thread of the kernel: must not wait for user space, which may wait for
	 * it.
	 */
	bool housekeeping;
	u64 enqueued_at;
	u64 start_ts;
	u64 stop_ts;
	u64 exec_runtime;
	u32 nr_ordered; /* wake-ups by standing orders */
	u32 waits_on;	/* the DSQ that the last decision has put it on */
	struct sample sample;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task_ctx);
} task_ctxs SEC(".maps");

#define EVERY_POLICY (~0ULL)

#define OCCUPIED (~0ULL)

/* What a CPU keeps for itself. */
struct cpu_ctx {
	u64 chain_since; /* since when it is handed from task to task */
	/* Since when it has run nothing but tasks with orders; 0: it does not. */
	u64 urgent_since;
	u64 protected_until; /* until then what runs there is not displaced */
	u64 left_at;	     /* when a task of ours left it last; OCCUPIED while one is there */
	/* It has been told to give way, and has not looked for a task since. */
	bool is_kicked;
	bool is_due_last;  /* what runs there goes by an order, and none is due later */
	u64 looked_at;	   /* when it last found no work on any DSQ */
	u64 dispatched_at; /* when it last needed a task */
	u64 pad[1];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set to nr_cpus before loading */
	__type(key, u32);
	__type(value, struct cpu_ctx);
} cpu_ctxs SEC(".maps");

/*
 * The CPUs that always take tasks from the DSQs of all: those online, less agent_cpu. A hotplug
 * event ends the scheduler.
 */
static struct bpf_cpumask __kptr *workers SEC(".bss.workers");

/* The largest deadline by which a task has got a CPU, and where it went while the task ran. */
static u64 vtime_now;

/*
 * The deadline by which a decided task has got a CPU last. The clock of user space's deadlines: it
 * may stand far behind vtime_now, which runs while CPUs are idle and user space is not asked, and
 * starts anew with another policy.
 */
static u64 decided_now;

/*
 * Does the scheduler thread run, or want to? While it sleeps, its CPU is a worker like any other.
 */
static bool agent_runnable;

/* Does it hold its CPU without limit? */
static bool agent_unlimited;

static __always_inline void count(enum counter counter)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct cpu_state *state = bpf_map_lookup_elem(&cpus, &cpu);

	/*
	 * Interrupts are off in every op that counts, so no other code writes this CPU's counters.
	 */
	if (state)
		state->counters[counter]++;
}

/*
 * Adds to a word: a full barrier. Without the second line clang drops the old value, and with it
 * the barrier on machines whose atomics have none by themselves (arm64).
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

static __always_inline struct machine_state *machine_state(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&machine, &zero);
}

static __always_inline struct control *controls(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&control, &zero);
}

static __always_inline bool time_before(u64 a, u64 b)
{
	return (s64)(a - b) < 0;
}

/*
 * ns. The clocks of two CPUs differ a little: what has just been noted on another may seem to lie
 * ahead, which is now.
 */
static __always_inline u64 elapsed(u64 then, u64 now)
{
	return time_before(now, then) ? 0 : now - then;
}

/*
 * The clock is CLOCK_MONOTONIC. scx_bpf_now() costs less, but outside of a locked run queue it may
 * stand still for a ms and more (7.3): a timer saw the same time four times in a row. Most likely
 * another CPU has taken a task from this one, which leaves its run queue's clock marked as valid.
 */
static __always_inline u64 elapsed_since(u64 then)
{
	return elapsed(then, bpf_ktime_get_ns());
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

static __always_inline u64 clamp_slice(u64 slice)
{
	return slice < limits.longest_slice_ns ? slice : limits.longest_slice_ns;
}

static __always_inline u64 default_slice_ns(void)
{
	return clamp_slice(slice_ns);
}

/* The slice of a task about which user space has said nothing. */
static __always_inline u64 undecided_slice_ns(void)
{
	return default_slice_ns() / UNDECIDED_SLICE;
}

static __always_inline bool is_agent(const struct task_struct *p)
{
	return p->pid == agent_pid;
}

/*
 * migrate_disable() is in force. Older kernels count the running BPF program as one such section of
 * the current task.
 */
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

	return p->nr_cpus_allowed > 1 && mask &&
	       bpf_cpumask_subset((const struct cpumask *)mask, p->cpus_ptr);
}

/*
 * May @p run on @cpu?
 *
 * Like the larger functions below it is not static: the verifier then looks at it once, not in each
 * place and state that calls it, and to load such a pointer costs it a search of the kernel's types
 * on older kernels.
 */
__noinline int may_run_on(struct task_struct *p __arg_trusted, s32 cpu)
{
	return bpf_cpumask_test_cpu(cpu, p->cpus_ptr);
}

/* Of the tasks at the head of a DSQ so many are looked at for one that a CPU may run. */
#define FIRST_SEARCH 8

/*
 * Sets *@vtime to the deadline of the first task on a DSQ that @cpu may run, if there is one near
 * its head. A negative @cpu stands for any. An empty DSQ costs no lock: ticks of all CPUs look
 * here.
 */
__noinline int first_vtime(u64 dsq_id, s32 cpu, u64 *vtime __arg_nonnull)
{
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	bool found = false;
	u32 i;

	if (scx_bpf_dsq_nr_queued(dsq_id) <= 0)
		return false;
	if (!bpf_iter_scx_dsq_new(&it, dsq_id, 0)) {
		bpf_for(i, 0, FIRST_SEARCH) {
			p = bpf_iter_scx_dsq_next(&it);
			if (!p)
				break;
			if (cpu >= 0 && !may_run_on(p, cpu))
				continue;
			*vtime = p->scx.dsq_vtime;
			found = true;
			break;
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
	return found;
}

/*
 * When a task was put on PENDING_DSQ, KERNEL_SIDE_DSQ or FALLBACK_DSQ last, or found there, ns.
 * These are empty nearly always, and to ask the kernel costs more than to load a word: CPUs look
 * there for SELDOM_NS, and now and then in any case.
 */
static u64 seldom_used_at;

#define SELDOM_NS 50000000ULL

static void note_seldom(u64 now)
{
	/* All CPUs read it. */
	if (now - *(volatile u64 *)&seldom_used_at > SELDOM_NS / 16)
		*(volatile u64 *)&seldom_used_at = now;
}

static bool seldom_waits(u64 now)
{
	return elapsed(*(volatile u64 *)&seldom_used_at, now) < SELDOM_NS;
}

/*
 * When a task was enqueued last for which no CPU was idle, ns. It reaches its DSQ only as the op
 * returns, within ENQUEUE_NS: a CPU that goes idle in between finds the DSQ empty and must look
 * again.
 */
static u64 enqueued_last;

#define ENQUEUE_NS 50000

static void note_enqueue(u64 now)
{
	/* All CPUs write it: not more often than it takes. */
	if (now - *(volatile u64 *)&enqueued_last > ENQUEUE_NS / 8)
		*(volatile u64 *)&enqueued_last = now;
}

/*
 * When a task was put last on the DSQ of a CPU, on SHARED_DSQ or on URGENT_DSQ, ns, give or take
 * ENQUEUE_NS / 8. It may reach it later by ENQUEUE_NS.
 */
static u64 inserted_last;

static void note_insert(u64 now)
{
	/* As above. */
	if (now - *(volatile u64 *)&inserted_last > ENQUEUE_NS / 8)
		*(volatile u64 *)&inserted_last = now;
}

/*
 * Has this CPU found these DSQs empty since a task was put there last? Then they are still, and to
 * ask the kernel of each costs a CPU that sleeps and wakes all the time more than to load a word.
 */
static bool has_looked(struct cpu_ctx *cctx)
{
	return time_before(*(volatile u64 *)&inserted_last + 2 * ENQUEUE_NS, cctx->looked_at);
}

__noinline int kick_idle_cpu_for(struct task_struct *p __arg_trusted, u64 now)
{
	s32 cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);

	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
	else
		note_enqueue(now);
	return 0;
}

#endif /* METRONOME_STATE_H */
