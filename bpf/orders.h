/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Standing orders: what user space wants done with a task when it wakes, decided ahead
 * (src/orders.rs has the layout).
 *
 * A task with an order goes to an idle CPU, or is handed its waker's, or waits on URGENT_DSQ by
 * deadline, which is served before all else, and displaces a running task if its order says so.
 * User space is told, not asked.
 *
 * An order holds for so much CPU time since the task last slept, or called (note_caller()). Past
 * that the task is late for a while, and then takes turns with all others, if the order says so
 * (turns.h), or user space is asked. What an order may do to others is limited by `limits`.
 */
#ifndef METRONOME_ORDERS_H
#define METRONOME_ORDERS_H

#include "groups.h"
#include "records.h"

#define ORDER_EPOCH(order) ((order) & ORDER_FIELD)
#define ORDER_NS(order, shift) (((order) >> (shift) & ORDER_FIELD) * ORDER_UNIT_NS)
#define ORDER_LATENCY_NS(order) ORDER_NS(order, ORDER_LATENCY_SHIFT)
#define ORDER_SLICE_NS(order) ORDER_NS(order, ORDER_SLICE_SHIFT)
#define ORDER_BUDGET_NS(order) ORDER_NS(order, ORDER_BUDGET_SHIFT)
#define ORDER_CPU(order) ((u32)((order) >> ORDER_CPU_SHIFT & (MAX_CPUS - 1)))

/* CPUs looked at for one that can be preempted. */
#define PREEMPT_SEARCH 64

/*
 * How long a CPU may run nothing but tasks with orders. While user space is away it takes no order
 * back from a task that overdoes it.
 */
static u64 urgent_ns(void)
{
	return in_fallback() ? limits.urgent_ns / 4 : limits.urgent_ns;
}

/*
 * Has @cctx's CPU run nothing but tasks with orders for so long that one without must have its
 * turn?
 */
static bool starves_others(struct cpu_ctx *cctx, u64 now)
{
	return cctx->urgent_since && elapsed(cctx->urgent_since, now) > urgent_ns();
}

/*
 * Past its budget a task is late before it takes turns: a game that has missed a frame does not
 * sleep until it has caught up. For LATE_BUDGETS more, of a light task the part that its share is
 * of 100, it still goes before those without an order, but behind all others with one, and
 * displaces none of them. Not while user space is away, nor if user space wants to be asked then.
 */
#define LATE_NS 33000000ULL

static __always_inline bool is_late(u64 order, u64 ran)
{
	return ran >= ORDER_BUDGET_NS(order);
}

/* Does @order hold for @p when it has run for @ran since it last slept? */
static bool holds(u64 order, struct task_struct *p, struct task_ctx *tctx, u64 ran)
{
	u64 budget = ORDER_BUDGET_NS(order), late = LATE_BUDGETS * budget, share;

	if (!order || !is_late(order, ran))
		return order;
	/* A task that is due last as it wakes has no frame to catch up with. */
	if (!(order & ORDER_IN_TURN) || in_fallback() || ORDER_LATENCY_NS(order) >= LATE_NS)
		return false;
	share = share_of(p, tctx);
	if (share < 100 * SHARE)
		late = late * share / (100 * SHARE);
	return ran < budget + late;
}

static u64 birth_order(struct task_ctx *tctx)
{
	struct control *ctl = controls();

	if (tctx->born_under != EVERY_POLICY && ctl &&
	    tctx->born_under != *(volatile u64 *)&ctl->policies)
		return 0;
	return tctx->born_with;
}

/* Is there a budget of CPU time for which a task with this order goes before those without? */
static __always_inline bool is_urgent(u64 order)
{
	return ORDER_BUDGET_NS(order) > 0;
}

/*
 * What user space has said in this epoch of the id counts; before it has, what the task was born
 * with. A kernel thread goes by what it was born with until user space has a budget for it.
 */
static u64 order_of(struct task_ctx *tctx)
{
	u32 id = tctx->id;
	struct id_slot *slot = bpf_map_lookup_elem(&id_slots, &id);
	u64 *written = bpf_map_lookup_elem(&orders, &id);
	u64 order;

	if (!slot || !written)
		return 0;
	order = *(volatile u64 *)written;
	if (ORDER_EPOCH(order) != slot->generation >> EPOCH_SHIFT)
		order = birth_order(tctx);
	else if (tctx->born_under == EVERY_POLICY && (!(order & ORDER_VALID) || !is_urgent(order)))
		order = birth_order(tctx) | (order & ORDER_VALID ? order & ORDER_IN_TURN : 0);
	return order & ORDER_VALID ? order : 0;
}

static void inherit_order(struct task_ctx *child)
{
	struct task_ctx *parent = task_ctx(bpf_get_current_task_btf());
	struct control *ctl = controls();
	u64 order = parent ? order_of(parent) : 0;

	if (!ctl)
		return;
	child->born_under = ctl->policies;
	child->born_with = order & ORDER_INHERIT ? order : ctl->newborn;
}

/*
 * Wake-up
 */

/*
 * User space hears of a wake-up about which it is not asked, but of each task only so often: what
 * records tell is summed up.
 */
static void tell_of_wakeup(struct task_struct *p, struct task_ctx *tctx, enum record_kind kind,
			   u64 now, u64 enq_flags)
{
	struct control *ctl = controls();

	if (!ctl || elapsed(tctx->told_at, now) < ctl->tell_us * 1000ULL)
		return;
	tctx->told_at = tctx->enqueued_at = now;
	tell(p, kind, enq_flags);
}

/*
 * The running task wakes @p, which is urgent by its order. If both are of one process, it may be
 * the loop of a game that its other threads wait for, and that never sleeps, because it is late or
 * has no limit. So user space hears of it, and its order holds anew, as if it had slept.
 */
static void note_caller(struct task_struct *p)
{
	struct task_struct *caller = bpf_get_current_task_btf();
	struct control *ctl = controls();
	struct task_ctx *tctx;
	u64 now, enqueued_at;

	if (caller->tgid != p->tgid || !ctl || !(ctl->events & (1U << RECORD_CALLER)) ||
	    in_interrupt() || in_fallback())
		return;
	tctx = task_ctx(caller);
	now = bpf_ktime_get_ns();
	/* Not if it is of another class, or the scheduler thread. */
	if (!tctx || !tctx->start_ts || time_before(tctx->start_ts, tctx->stop_ts) ||
	    elapsed(tctx->told_at, now) < ctl->tell_us * 1000ULL)
		return;
	tctx->told_at = now;
	/* It does not wait: in the record this is when it called. */
	enqueued_at = tctx->enqueued_at;
	tctx->enqueued_at = now;
	tell_event(caller, RECORD_CALLER, 0);
	tctx->enqueued_at = enqueued_at;
	if (tctx->is_ordered)
		tctx->deadline = now + ORDER_LATENCY_NS(order_of(tctx));
	/* What it has run for already will be added as it stops. */
	tctx->exec_runtime = -elapsed(tctx->start_ts, now);
}

/*
 * From now until it sleeps or its order is used up, @p goes by its order. To others a chain of
 * hand-offs is one long task: the longer it has been going on, the later is the deadline of the
 * task that runs next.
 */
static void begin_order(struct task_ctx *tctx, u64 order, bool is_wakeup, u64 now, u64 chain_ns)
{
	if (is_wakeup)
		begin_sample(tctx, 0, tctx->id + tctx->nr_ordered++);
	if (is_late(order, tctx->exec_runtime) && !is_wakeup)
		tctx->deadline = now + LATE_NS;
	else if (is_wakeup || !tctx->is_ordered)
		tctx->deadline = now + ORDER_LATENCY_NS(order) + chain_ns;
	tctx->is_ordered = true;
	tctx->is_due_last = ORDER_LATENCY_NS(order) >= LATE_NS;
}

static __always_inline u64 order_slice_ns(u64 order)
{
	return ORDER_SLICE_NS(order) ?: default_slice_ns();
}

/*
 * May @p have the CPU of its waker, which is about to sleep? Both go by orders, no other task waits
 * there or is on its way, and it has not been handed on for too long. *@chain_ns is for how long.
 */
static bool may_be_handed_off(struct task_struct *p, u64 order, u64 wake_flags, u64 *chain_ns)
{
	s32 cpu = bpf_get_smp_processor_id();
	struct task_struct *waker = bpf_get_current_task_btf();
	struct task_ctx *wctx = task_ctx(waker);
	struct cpu_state *state = cpu_state(cpu);
	struct cpu_ctx *cctx = cpu_ctx(cpu);

	if (!is_urgent(order) || !(order & ORDER_HAND_OFF) || !(wake_flags & SCX_WAKE_SYNC) ||
	    in_interrupt() || belongs_to_agent(cpu) || !state || !cctx || cctx->is_kicked)
		return false;
	*chain_ns = elapsed_since(cctx->chain_since);
	return wctx && wctx->is_ordered && !(waker->flags & PF_EXITING) &&
	       state->running.pid == waker->pid && may_run_on(p, cpu) &&
	       *chain_ns < limits.hand_off_ns && scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | cpu) <= 0;
}

/* The CPU that is looked at first. */
static s32 preferred_cpu(struct task_struct *p, s32 prev_cpu, u64 order)
{
	u32 cpu = ORDER_CPU(order);

	if (!(order & ORDER_PREFERS))
		return prev_cpu;
	if (cpu < nr_cpus && may_run_on(p, cpu))
		return cpu;
	count(COUNT_BAD_ORDERS);
	return prev_cpu;
}

/*
 * No CPU is idle
 */

/*
 * For how long a task without an order that has got a CPU keeps it. What is due last of all with an
 * order are messages of tasks: they may be many, and are answered together. Others wait for no more
 * than a part of the time that they have.
 */
static u64 undisturbed_ns(struct task_struct *p, u64 deadline)
{
	struct task_ctx *tctx = task_ctx(p);
	u64 latency = tctx ? elapsed(tctx->enqueued_at, deadline) : LATE_NS;
	u64 most = limits.undisturbed_ns / 4;

	if (latency >= LATE_NS)
		return limits.undisturbed_ns;
	return latency / 4 < most ? latency / 4 : most;
}

/* What a task that runs is to one that wants its CPU, the better the later. */
enum victim {
	NO_VICTIM,
	VICTIM_ORDERED,	   /* has an order, and is due later */
	VICTIM_SOON,	   /* has none, has just got the CPU, and gives way in a moment */
	VICTIM_MUCH_LATER, /* has an order, and is due in MUCH_LATER times the time */
	VICTIM_DUE_LAST,   /* is due last of all with an order */
	VICTIM_DECIDED,	   /* has none */
};

#define MUCH_LATER 8

/* For a CPU whose task gives way. */
struct search {
	u64 deadline;
	u64 now;
	u64 undisturbed;
	/* Of the CPU looked at last: when what it runs is due, and in how many ns it gives way. */
	u64 due;
	u64 left;
};

/*
 * What @cpu runs, an enum victim. The caller checks whether the task may run there. Not static: see
 * may_run_on().
 */
__noinline int victim_on(s32 cpu, struct search *search __arg_nonnull)
{
	struct cpu_state *state = cpu_state(cpu);
	u32 kind = state ? state->running.kind : RUNS_OTHER;
	struct cpu_ctx *cctx;

	if (!state || kind == RUNS_OTHER)
		return NO_VICTIM;
	search->due = state->running.deadline;
	/* While there are many messages, this is why most CPUs are no choice. */
	if (kind == RUNS_ORDERED &&
	    !time_before(search->deadline + limits.preempt_margin_ns, search->due))
		return NO_VICTIM;
	cctx = cpu_ctx(cpu);
	if (!cctx || belongs_to_agent(cpu) || cctx->is_kicked ||
	    time_before(search->now, cctx->protected_until))
		return NO_VICTIM;
	/* A task that was handed this CPU would be stuck there until the one that takes it sleeps. */
	if (scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | cpu) > 0)
		return NO_VICTIM;
	if (kind == RUNS_ORDERED && cctx->is_due_last)
		return VICTIM_DUE_LAST;
	if (kind == RUNS_ORDERED)
		return elapsed(search->now, search->due) >
				       MUCH_LATER * elapsed(search->now, search->deadline)
			       ? VICTIM_MUCH_LATER
			       : VICTIM_ORDERED;
	search->left = elapsed(search->now, state->running.since + search->undisturbed);
	return search->left ? VICTIM_SOON : VICTIM_DECIDED;
}

/*
 * The CPU whose task gives way to @p, or a negative number; *@soon becomes the ns until a task does
 * that has just got its CPU, if that is less. The CPU right here answers at once, if what it runs
 * is not urgent. The one where @p ran last has its data, if what it runs has no order. Else the
 * best victim, and of equals the one that is due last.
 */
static s32 find_victim(struct task_struct *p, struct search *search, u64 *soon)
{
	/* Loaded once: to verify such a load takes old kernels milliseconds. */
	const struct cpumask *allowed = p->cpus_ptr;
	u32 start = scx_bpf_task_cpu(p), i;
	s32 here = bpf_get_smp_processor_id(), best = -1, best_kind = NO_VICTIM, kind;
	u64 latest = 0;

	if (bpf_cpumask_test_cpu(here, allowed) && victim_on(here, search) >= VICTIM_DUE_LAST)
		return here;
	bpf_for(i, 0, PREEMPT_SEARCH) {
		u32 cpu = start + i;

		if (i >= nr_cpus)
			break;
		if (cpu >= nr_cpus)
			cpu -= nr_cpus;
		kind = victim_on(cpu, search);
		if (kind == NO_VICTIM || !bpf_cpumask_test_cpu(cpu, allowed))
			continue;
		if (!i && kind == VICTIM_DECIDED)
			return cpu;
		if (kind == VICTIM_SOON && search->left < *soon)
			*soon = search->left;
		if (kind < best_kind || (kind == best_kind && !time_before(latest, search->due)))
			continue;
		best = cpu;
		best_kind = kind;
		latest = search->due;
	}
	return best_kind == VICTIM_SOON ? -1 : best;
}

/*
 * A task that has found no CPU looks again when one will give way, in RETRY_LEAST_NS at the
 * earliest. By then another task may have taken that CPU: so it looks again in a part of the time
 * that it has, too. That part is no smaller than RETRY_NS, for the timer may well interrupt a task
 * that is more urgent.
 */
#define RETRY_LEAST_NS 20000
#define RETRY_NS 100000
#define RETRY_PART 32

static u64 retry_ns(u64 deadline, u64 now)
{
	u64 part = elapsed(now, deadline) / RETRY_PART;

	return part > RETRY_NS ? part : RETRY_NS;
}

/*
 * The CPU whose task gives way to @p, and which is none for others until it has; or, less than 0,
 * the ns until @p should look again.
 */
__noinline int claim_victim(struct task_struct *p __arg_trusted, u64 deadline, u64 now)
{
	struct search search = {
		.deadline = deadline,
		.now = now,
		.undisturbed = undisturbed_ns(p, deadline),
	};
	u64 soon = retry_ns(deadline, now);
	struct cpu_ctx *cctx;
	s32 cpu;

	/* The timer is verified as a part of a program that may sleep. */
	bpf_rcu_read_lock();
	cpu = find_victim(p, &search, &soon);
	bpf_rcu_read_unlock();
	if (cpu < 0)
		return -(s32)(soon < RETRY_LEAST_NS ? RETRY_LEAST_NS : soon);
	cctx = cpu_ctx(cpu);
	if (cctx)
		cctx->is_kicked = true;
	count(COUNT_PREEMPTED);
	return cpu;
}

/*
 * The CPU whose task gives way to @p shall look for a task. What it runs goes on if @p runs
 * elsewhere first. Returns the ns until @p should look again; 0: there is a CPU.
 */
static u32 displace_for(struct task_struct *p, u64 deadline, u64 now)
{
	s32 cpu = claim_victim(p, deadline, now);

	if (cpu < 0)
		return -cpu;
	scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
	return 0;
}

/*
 * No CPU is idle for @p, which wakes, and no task waits that is more urgent: the CPU where it runs
 * in place of another, which takes one interrupt at most. To have that CPU look for it on
 * URGENT_DSQ takes two or three. Negative if there is none.
 */
static s32 displace_at_wakeup(struct task_struct *p, struct task_ctx *tctx, u64 order, u64 now)
{
	u64 deadline = now + ORDER_LATENCY_NS(order), first = 0;
	struct cpu_ctx *cctx;
	s32 cpu;

	if (!is_urgent(order) || !(order & ORDER_PREEMPT) || p->flags & PF_EXITING ||
	    p->tgid == agent_tgid || tctx->housekeeping)
		return -1;
	if (scx_bpf_dsq_nr_queued(URGENT_DSQ) > 0 &&
	    (ORDER_LATENCY_NS(order) >= LATE_NS || !first_vtime(URGENT_DSQ, -1, &first) ||
	     !time_before(deadline, first)))
		return -1;
	tctx->enqueued_at = now;
	cpu = claim_victim(p, deadline, now);
	cctx = cpu < 0 ? NULL : cpu_ctx(cpu);
	if (!cctx)
		return -1;
	/* It has to look for a task without an order. */
	if (starves_others(cctx, now)) {
		scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
		return -1;
	}
	return cpu;
}

/*
 * A task may find no CPU whose task gives way now, because all have just begun, or another may take
 * the CPU that was told to give way: while tasks wait on URGENT_DSQ a timer looks after the first
 * of them.
 */
struct retry {
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct retry);
} retries SEC(".maps");

/*
 * When the timer expires; 0: it is not started. Of two CPUs that start it at once, the later may
 * win: a task waits for a thirty-second part of the other's time too long then.
 */
static u64 retry_at;

/* Tasks wait on URGENT_DSQ, and in @ns one may find a CPU. */
static void retry_in(u32 ns, u64 now)
{
	u64 at = now + ns, then = *(volatile u64 *)&retry_at;
	u32 zero = 0;
	struct retry *retry;

	if (then && !time_before(at, then))
		return;
	*(volatile u64 *)&retry_at = at;
	retry = bpf_map_lookup_elem(&retries, &zero);
	if (!retry || bpf_timer_start(&retry->timer, ns, 0))
		*(volatile u64 *)&retry_at = 0;
}

/* To ask whether any waits costs more than to know that the timer runs. */
static void retry_if_any_waits(void)
{
	u64 now, first = 0;

	if (*(volatile u64 *)&retry_at || scx_bpf_dsq_nr_queued(URGENT_DSQ) <= 0 ||
	    !first_vtime(URGENT_DSQ, -1, &first))
		return;
	now = bpf_ktime_get_ns();
	retry_in(retry_ns(first, now), now);
}

/* Of the tasks at the head of URGENT_DSQ so many are looked after at a time. */
#define RETRY_SEARCH 4

static int on_retry(void *map, u32 *key, struct retry *retry)
{
	u64 soonest = LATE_NS / RETRY_PART, soon;
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	struct task_ctx *tctx;
	u64 now = bpf_ktime_get_ns();
	u32 i;

	*(volatile u64 *)&retry_at = 0;
	if (scx_bpf_dsq_nr_queued(URGENT_DSQ) <= 0)
		return 0;
	bpf_rcu_read_lock();
	if (!bpf_iter_scx_dsq_new(&it, URGENT_DSQ, 0)) {
		bpf_for(i, 0, RETRY_SEARCH) {
			p = bpf_iter_scx_dsq_next(&it);
			if (!p)
				break;
			tctx = task_ctx(p);
			if (!tctx || !tctx->displaces)
				continue;
			soon = displace_for(p, tctx->deadline, now)
				       ?: retry_ns(tctx->deadline, now);
			if (soon < soonest)
				soonest = soon;
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
	bpf_rcu_read_unlock();
	retry_in(soonest, now);
	return 0;
}

static int init_retry(void)
{
	u32 zero = 0;
	struct retry *retry = bpf_map_lookup_elem(&retries, &zero);
	int err;

	if (!retry)
		return -ENOENT;
	err = bpf_timer_init(&retry->timer, &retries, 1 /* CLOCK_MONOTONIC */);
	return err ?: bpf_timer_set_callback(&retry->timer, on_retry);
}

/*
 * Makes a CPU run @p, which is on URGENT_DSQ: an idle one, else the one with the least urgent task
 * if the order allows it.
 */
static void find_cpu_for_urgent(struct task_struct *p, struct task_ctx *tctx, u64 order)
{
	s32 cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	u32 soon;

	tctx->displaces = order & ORDER_PREEMPT;
	if (cpu >= 0) {
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
		return;
	}
	note_enqueue(tctx->enqueued_at);
	if (!tctx->displaces)
		return;
	soon = displace_for(p, tctx->deadline, tctx->enqueued_at);
	if (soon)
		retry_in(soon, tctx->enqueued_at);
}

/* @p has an order that is not used up: carries it out. Returns whether that is so. */
static bool enqueue_ordered(struct task_struct *p, struct task_ctx *tctx, u64 order, u64 enq_flags)
{
	u64 now = tctx->enqueued_at;

	if (!holds(order, p, tctx, tctx->exec_runtime)) {
		tctx->is_ordered = false;
		if (order && !(order & ORDER_IN_TURN))
			count(COUNT_USED_UP);
		return false;
	}
	begin_order(tctx, order, enq_flags & SCX_ENQ_WAKEUP, now, 0);
	tctx->vtime = p->scx.dsq_vtime;
	tctx->has_vtime = true;
	note_insert(now);
	dsq_insert_vtime(p, URGENT_DSQ, order_slice_ns(order), tctx->deadline, enq_flags);
	find_cpu_for_urgent(p, tctx, order);
	tell_of_wakeup(p, tctx, RECORD_ORDERED, now, enq_flags);
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

#endif /* METRONOME_ORDERS_H */
