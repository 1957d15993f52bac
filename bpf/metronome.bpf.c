// SPDX-License-Identifier: GPL-2.0-only
/*
 * The kernel side of Metronome: mechanism. What it allows tasks before it acts by itself, its user
 * sets (src/limits.rs).
 *
 * A task that wakes finds an idle CPU (select_cpu), or waits in PENDING_DSQ while user space is
 * told of it through the rings `queued` (enqueue). User space answers with a decision in a mailbox,
 * of one CPU or of all. Whichever CPU needs work next opens its mailboxes (dispatch) and moves each
 * decided task from PENDING_DSQ to its own DSQ or to SHARED_DSQ, both ordered by deadline, and runs
 * the first.
 *
 * So a runnable task is always on a DSQ that the kernel knows (Invariant 3): a decision only moves
 * it. A decision that is late, doubled or wrong finds the task elsewhere and changes nothing, and
 * if user space falls silent its tasks can be run in turn without it (Invariant 6).
 *
 * A task for which user space has left a standing order is spared all this: the order is carried
 * out (orders.h).
 *
 * Here are the ops, in the order of a task's life. What they do with it: state.h (what is kept),
 * records.h (user space is told), orders.h (standing orders), groups.h (control groups), turns.h
 * (tasks that take turns by order), decisions.h (what user space has decided), latecomers.h (tasks
 * that have waited too long), fallback.h (while user space is late), latency.h (how long each stage
 * takes).
 */
#include "state.h"
#include "records.h"
#include "orders.h"
#include "groups.h"
#include "turns.h"
#include "decisions.h"
#include "fallback.h"

char _license[] SEC("license") = "GPL";

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

/* A new owner begins a new epoch of its id: what was decided about earlier owners is void. */
static void begin_epoch(struct task_ctx *tctx)
{
	u32 id = tctx->id, epoch;
	struct id_slot *slot = bpf_map_lookup_elem(&id_slots, &id);
	u64 *order = bpf_map_lookup_elem(&orders, &id);

	if (!slot || !order)
		return;
	epoch = (slot->generation >> EPOCH_SHIFT) + 1;
	/* After 4,095 owners epochs come round again. */
	if (epoch >= EPOCHS)
		epoch = 1;
	if (epoch == ORDER_EPOCH(*(volatile u64 *)order))
		epoch = epoch == EPOCHS - 1 ? 1 : epoch + 1;
	slot->generation = epoch << EPOCH_SHIFT;
}

SEC("struct_ops.s/init_task")
s32 BPF_PROG(metronome_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	struct task_ctx *tctx =
		bpf_task_storage_get(&task_ctxs, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	static const char kswapd[16] = "kswapd", khugepaged[16] = "khugepaged",
			  kcompactd[16] = "kcompactd";
	char comm[16];
	u32 id;

	if (!tctx)
		return -ENOMEM;

	tctx->id = bpf_map_pop_elem(&free_ids, &id) ? NO_TASK : id;
	begin_epoch(tctx);
	if (bpf_core_field_exists(args->cgroup))
		tctx->group = place_of(args->cgroup);
	if (args->fork)
		inherit_order(tctx);
	if (p->flags & PF_KTHREAD) {
		tctx->born_with = limits.order_of_kthreads;
		tctx->born_under = EVERY_POLICY;
		__builtin_memcpy(comm, p->comm, sizeof(comm));
		tctx->housekeeping = has_prefix(comm, kswapd, 6) ||
				     has_prefix(comm, khugepaged, 10) ||
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
	tell(p, RECORD_EXITED, 0);
	slot->pid = 0;
	slot->generation = next_generation(slot->generation);
	bpf_map_push_elem(&free_ids, &id, 0);
}

SEC("struct_ops/set_weight")
void BPF_PROG(metronome_set_weight, struct task_struct *p, u32 weight)
{
	struct task_ctx *tctx = task_ctx(p);

	if (tctx && tctx->counted_weight)
		count_weight(tctx, weight);
	if (tctx)
		tctx->share = 0;
	tell(p, RECORD_WEIGHT, 0);
}

SEC("struct_ops/set_cpumask")
void BPF_PROG(metronome_set_cpumask, struct task_struct *p, const struct cpumask *cpumask)
{
	tell(p, RECORD_AFFINITY, 0);
}

/* A task enters the class: it starts level with those that run. */
SEC("struct_ops/enable")
void BPF_PROG(metronome_enable, struct task_struct *p)
{
	struct task_ctx *tctx = task_ctx(p);

	if (tctx) {
		/* It may have left the class while it waited by an order. */
		tctx->has_vtime = false;
		tctx->vruntime = virtual_now();
	}
	set_vtime(p, vtime_now);
}

/*
 * Wake-up
 */

/* 0: no task wakes it, but a timer or a device. */
static s32 waker_pid(void)
{
	return in_interrupt() ? 0 : bpf_get_current_task_btf()->pid;
}

/*
 * @p is runnable until it goes to sleep. Noted by enqueue() or running(), whichever comes first: an
 * op of its own, runnable(), would cost each wake-up a call more.
 */
static void note_runnable(struct task_struct *p, struct task_ctx *tctx)
{
	if (is_agent(p))
		agent_runnable = true;
	else if (tctx && !tctx->counted_weight)
		count_weight(tctx, p->scx.weight);
}

/* An idle CPU takes the task at once: where there is no choice to make, user space is not asked. */
SEC("struct_ops/select_cpu")
s32 BPF_PROG(metronome_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	struct task_ctx *tctx = task_ctx(p);
	u64 order, now, chain_ns = 0, flags = SCX_ENQ_WAKEUP | FOUND_IDLE, preempt = 0;
	s32 cpu;

	if (!tctx || is_agent(p))
		return prev_cpu;
	tctx->waker = waker_pid();
	tctx->wake_flags = wake_flags;

	order = order_of(tctx);
	if (!order && !builtin_idle)
		return prev_cpu;
	if (is_urgent(order))
		note_caller(p);
	cpu = select_cpu_and(p, preferred_cpu(p, prev_cpu, order), wake_flags);
	now = bpf_ktime_get_ns();
	if (cpu < 0) {
		flags = SCX_ENQ_WAKEUP;
		if (may_be_handed_off(p, order, wake_flags, &chain_ns)) {
			cpu = bpf_get_smp_processor_id();
			tctx->is_handed_off = true;
			count(COUNT_HANDED_OFF);
		} else {
			cpu = displace_at_wakeup(p, tctx, order, now);
			if (cpu < 0)
				return prev_cpu;
			preempt = SCX_ENQ_PREEMPT;
		}
	}

	tctx->in_order = false;
	tctx->in_turn = false;
	tctx->is_decided = false;
	if (is_urgent(order)) {
		begin_order(tctx, order, true, now, chain_ns);
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, order_slice_ns(order), preempt);
		tell_of_wakeup(p, tctx, RECORD_ORDERED, now, flags);
		count(COUNT_ORDERED);
	} else {
		tctx->is_ordered = false;
		tctx->in_turn = order & ORDER_IN_TURN;
		tctx->found_idle = true;
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, default_slice_ns(), 0);
		tell_of_wakeup(p, tctx, RECORD_DIRECT, now, flags);
		count(COUNT_DIRECT);
	}
	tctx->exec_runtime = 0;
	return cpu;
}

/* Any CPU may run @p next, without user space. */
static void enqueue_first(struct task_struct *p, u64 enq_flags)
{
	u64 now = bpf_ktime_get_ns();

	note_seldom(now);
	scx_bpf_dsq_insert(p, KERNEL_SIDE_DSQ, undecided_slice_ns(), enq_flags);
	kick_idle_cpu_for(p, now);
	count(COUNT_KERNEL_SIDE);
}

/* @p can run only where the scheduler thread lives: if that needs its CPU, the two take turns. */
static void enqueue_guest(struct task_struct *p, struct task_ctx *tctx, u64 order, u64 enq_flags)
{
	u64 vtime = vtime_now, slice = limits.guest_slice_ns;

	if (tctx && order & ORDER_IN_TURN) {
		tctx->is_ordered = false;
		vtime = begin_turn(p, tctx, enq_flags);
		if (!belongs_to_agent(agent_cpu))
			slice = turn_slice_ns(agent_cpu);
	}
	note_insert(bpf_ktime_get_ns());
	dsq_insert_vtime(p, agent_cpu, slice, vtime, enq_flags);
	kick_for_bound(agent_cpu);
	count(COUNT_KERNEL_SIDE);
}

/*
 * User space cannot be asked: it is late, its ring is full, or @p has no id. What it has said of
 * earlier enqueues is no guide: its deadlines move on only as it decides. So these tasks take equal
 * turns, first come, first served, which starves none of them.
 */
static void enqueue_fallback(struct task_struct *p, struct task_ctx *tctx, u64 enq_flags,
			     enum counter counter)
{
	s32 cpu = scx_bpf_task_cpu(p);
	u64 now = bpf_ktime_get_ns();

	if (tctx)
		tctx->has_deadline = false;
	if (p->nr_cpus_allowed == 1) {
		if (tctx)
			tctx->in_order = true;
		/*
		 * On FALLBACK_DSQ all other CPUs would walk past it, each time that they look
		 * there.
		 */
		note_insert(now);
		dsq_insert_vtime(p, cpu, undecided_slice_ns(), vtime_now, enq_flags);
		kick_for_bound(cpu);
	} else {
		note_seldom(now);
		scx_bpf_dsq_insert(p, FALLBACK_DSQ, undecided_slice_ns(), enq_flags);
		kick_idle_cpu_for(p, now);
	}
	count(counter);
}

/*
 * Tasks that must not wait for user space, because user space may wait for them, or because no
 * decision is possible. Returns whether @p was one.
 */
static bool enqueue_kernel_side(struct task_struct *p, struct task_ctx *tctx, u64 order,
				u64 enq_flags)
{
	if (is_agent(p)) {
		/*
		 * Whatever ran in its absence gives way; a kernel thread that preempted it does
		 * not.
		 */
		u64 preempt = enq_flags & SCX_ENQ_WAKEUP ? SCX_ENQ_PREEMPT : 0;

		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, SCX_SLICE_INF, enq_flags | preempt);
		return true;
	}

	if (p->nr_cpus_allowed == 1 && p->flags & PF_KTHREAD) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, default_slice_ns(),
				   enq_flags | SCX_ENQ_PREEMPT);
	} else if (is_migration_disabled(p)) {
		/*
		 * Bound to where it is until it leaves the section: soon, and others may wait for
		 * it.
		 */
		u64 preempt = belongs_to_agent(scx_bpf_task_cpu(p)) ? SCX_ENQ_PREEMPT : 0;

		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, default_slice_ns(), enq_flags | preempt);
	} else if (p->nr_cpus_allowed < nr_cpus && only_on_agent_cpu(p)) {
		enqueue_guest(p, tctx, order, enq_flags);
		return true;
	} else if (p->tgid == agent_tgid || (tctx && tctx->housekeeping)) {
		enqueue_first(p, enq_flags);
		return true;
	} else if (p->flags & PF_EXITING) {
		/*
		 * Others may wait for its memory, but to give back much takes long: it goes in turn
		 * with them.
		 */
		enqueue_fallback(p, tctx, enq_flags, COUNT_KERNEL_SIDE);
		return true;
	} else {
		return false;
	}
	count(COUNT_KERNEL_SIDE);
	return true;
}

/* User space is asked about @p. Returns whether there was room for the record. */
static bool enqueue_pending(struct task_struct *p, struct task_ctx *tctx, u64 order, u32 generation,
			    u64 enq_flags)
{
	/* User space hears sooner of a task that has used up an order than of others. */
	struct queued_task *rec = reserve_record(tctx->id, order ? 0 : FREE_FOR_ORDERED);
	u64 wakeup;

	if (!rec)
		return false;
	wakeup = wakeup_flags();
	begin_sample(tctx, generation, tctx->id + generation);
	rec->kind = RECORD_QUEUED;
	fill_record(rec, p, tctx, generation, enq_flags);
	note_seldom(tctx->enqueued_at);
	scx_bpf_dsq_insert(p, PENDING_DSQ, undecided_slice_ns(), enq_flags);
	bpf_ringbuf_submit(rec, wakeup);
	watch_user_space();
	return true;
}

static void begin_wakeup(struct task_struct *p, struct task_ctx *tctx)
{
	tctx->exec_runtime = 0;
	/* The kernel does not ask select_cpu() about those that have no choice. */
	if (p->nr_cpus_allowed == 1 || is_migration_disabled(p))
		tctx->waker = waker_pid();
}

/* No CPU is free: the standing order is carried out, or user space is asked. */
SEC("struct_ops/enqueue")
void BPF_PROG(metronome_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct task_ctx *tctx = task_ctx(p);
	u32 id = tctx ? tctx->id : NO_TASK;
	struct id_slot *slot = bpf_map_lookup_elem(&id_slots, &id);
	u64 order = 0;

	note_runnable(p, tctx);
	if (tctx) {
		/* The clock is read here once: the run queue may be another CPU's. */
		tctx->enqueued_at = bpf_ktime_get_ns();
		if (enq_flags & SCX_ENQ_WAKEUP)
			begin_wakeup(p, tctx);
		restore_vtime(p, tctx);
		tctx->sample.since = 0;
		tctx->found_idle = false;
		tctx->in_order = false;
		tctx->in_turn = false;
		tctx->is_decided = false;
	}
	/* Whatever was decided about earlier enqueues is void. */
	if (slot) {
		slot->pid = p->pid;
		slot->generation = next_generation(slot->generation);
	}
	if (tctx)
		order = order_of(tctx);
	if (enqueue_kernel_side(p, tctx, order, enq_flags))
		return;
	if (!tctx || !slot) {
		enqueue_fallback(p, tctx, enq_flags, COUNT_NO_ID);
		return;
	}
	if (enqueue_ordered(p, tctx, order, enq_flags) ||
	    enqueue_in_turn(p, tctx, order, slot->generation, enq_flags))
		return;
	if (in_fallback())
		enqueue_fallback(p, tctx, enq_flags, COUNT_FALLBACK);
	else if (!enqueue_pending(p, tctx, order, slot->generation, enq_flags))
		enqueue_fallback(p, tctx, enq_flags, COUNT_RING_FULL);
}

/*
 * A CPU needs work
 */

/*
 * Tells user space that @cpu has run out of work or has got some.
 *
 * Ordering: the addition is a full barrier, and the bit is set before it. User space publishes a
 * decision, passes a full barrier, and reads the bit and idle_seq; so either it sees both and kicks
 * this CPU, or this CPU sees the decision here and kicks itself.
 */
static void publish_idle(s32 cpu, bool is_idle)
{
	u32 key = cpu;
	struct cpu_state *state = bpf_map_lookup_elem(&cpus, &key);
	struct machine_state *machine = machine_state();
	u64 seq, bit = 1ULL << (cpu & 63);
	u64 *word;

	if (!state || !machine)
		return;
	seq = *(volatile u64 *)&state->idle_seq;
	if (!is_idle && !(seq & 1))
		return;
	word = &machine->idle[(key / 64) & (MAX_CPUS / 64 - 1)];
	if (is_idle && !(seq & 1))
		__sync_fetch_and_or(word, bit);
	else if (!is_idle)
		__sync_fetch_and_and(word, ~bit);
	add_and_order(&state->idle_seq, (seq & 1) == is_idle ? 2 : 1);
	if (is_idle && has_mail(cpu))
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
}

/* Are there tasks for any CPU? */
static bool shared_waits(void)
{
	return scx_bpf_dsq_nr_queued(SHARED_DSQ) > 0 || scx_bpf_dsq_nr_queued(URGENT_DSQ) > 0 ||
	       (seldom_waits(bpf_ktime_get_ns()) && (scx_bpf_dsq_nr_queued(KERNEL_SIDE_DSQ) > 0 ||
						     scx_bpf_dsq_nr_queued(FALLBACK_DSQ) > 0));
}

static bool any_worker_is_idle(void)
{
	struct machine_state *machine = machine_state();
	u32 i;

	/* An ordinary loop: an iterator costs more than the words. */
	for (i = 0; i < MAX_CPUS / 64 && i * 64 < nr_cpus; i++)
		if (machine && *(volatile u64 *)&machine->idle[i])
			return true;
	return false;
}

/*
 * Tasks for any CPU are left over, and the CPU that was kicked for them may have looked too early.
 */
static void pass_on_shared(void)
{
	struct bpf_cpumask *mask = workers;
	s32 cpu;

	if (!mask || !any_worker_is_idle() || !shared_waits())
		return;
	cpu = scx_bpf_pick_idle_cpu((const struct cpumask *)mask, 0);
	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
}

/*
 * @cpu could not run what is on its own DSQ, as happens while it is being taken offline, or does
 * not come to it: any other CPU may.
 */
__noinline int give_away_dsq_of(s32 cpu)
{
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	u32 i;

	if (scx_bpf_dsq_nr_queued(cpu) <= 0)
		return 0;
	if (!bpf_iter_scx_dsq_new(&it, cpu, 0)) {
		bpf_for(i, 0, DRAIN_BATCH) {
			p = bpf_iter_scx_dsq_next(&it);
			if (!p)
				break;
			/* All others would only walk past it. */
			if (p->nr_cpus_allowed > 1) {
				note_insert(bpf_ktime_get_ns());
				scx_bpf_dsq_move_vtime(&it, p, SHARED_DSQ, 0);
			}
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
	pass_on_shared();
	return 0;
}

/* A CPU is taken by a task of another class: what waits for it alone is for any CPU. */
__noinline int rescue_stranded(void)
{
	u32 cpu = __sync_lock_test_and_set(&stranded, 0) - 1;

	if (cpu >= nr_cpus || !is_taken(cpu, limits.taken_ns))
		return 0;
	drain_mailbox(cpu, -1);
	give_away_dsq_of(cpu);
	return 0;
}

/*
 * The next of the tasks that user space has decided about or that take turns: by deadline, whether
 * it waits for this CPU or for any. Now and then it is of the other DSQ, so that no policy's
 * deadlines starve one.
 */
static bool move_decided_to_local(s32 cpu, u64 turn)
{
	u64 own = 0, shared = 0;
	bool own_first;

	if (!first_vtime(cpu, -1, &own))
		return scx_bpf_dsq_move_to_local(SHARED_DSQ);
	own_first = !first_vtime(SHARED_DSQ, cpu, &shared) || !time_before(shared, own);
	if (turn % PATIENCE_TURNS == 0)
		own_first = !own_first;
	return scx_bpf_dsq_move_to_local(own_first ? cpu : SHARED_DSQ) ||
	       scx_bpf_dsq_move_to_local(own_first ? SHARED_DSQ : cpu);
}

/*
 * The next of the tasks that user space is not asked about. Others wait for those on
 * KERNEL_SIDE_DSQ, but if they have no end, as when memory is short, they get no more: the two DSQs
 * take turns, too.
 */
static bool move_unasked_to_local(bool fallback_first)
{
	bool moved = scx_bpf_dsq_move_to_local(fallback_first ? FALLBACK_DSQ : KERNEL_SIDE_DSQ) ||
		     scx_bpf_dsq_move_to_local(fallback_first ? KERNEL_SIDE_DSQ : FALLBACK_DSQ);

	/* There may be more. */
	if (moved)
		note_seldom(bpf_ktime_get_ns());
	return moved;
}

/*
 * The next of the tasks without orders. One of two is of those that user space is not asked about.
 * Of the others, while user space is late, three of four are of those that it has been asked about,
 * which have waited longest.
 */
static bool move_next_to_local(s32 cpu, u64 turn)
{
	u64 rest = turn / 2;
	bool fallback = in_fallback(),
	     seldom = turn % PATIENCE_TURNS == 0 || seldom_waits(bpf_ktime_get_ns());

	return (seldom && turn & 1 && move_unasked_to_local(rest & 1)) ||
	       (fallback && rest & 3 && run_pending(false)) || move_decided_to_local(cpu, turn) ||
	       (fallback && run_pending(false)) || (seldom && move_unasked_to_local(rest & 1));
}

/*
 * This CPU may have run nothing but tasks with orders for so long that one without must have its
 * turn, and keep the CPU for a moment.
 */
static bool move_starved_to_local(s32 cpu, u64 turn)
{
	struct cpu_ctx *cctx = cpu_ctx(cpu);

	if (!cctx || !move_next_to_local(cpu, turn))
		return false;
	cctx->protected_until = bpf_ktime_get_ns() + limits.protected_ns;
	return true;
}

/* This CPU is about to idle, and decisions for another that is busy may lie unread. */
static bool move_unread_to_local(void)
{
	u32 cpu;

	if (!*(volatile u32 *)&unread)
		return false;
	cpu = __sync_lock_test_and_set(&unread, 0) - 1;
	if (cpu >= nr_cpus)
		return false;
	drain_mailbox(cpu, -1);
	return scx_bpf_dsq_move_to_local(SHARED_DSQ);
}

/*
 * A task that has waited too long is next, whatever the deadlines say: one whose decision does not
 * come, or one whose deadline does not. One dispatch() in so many looks for them; of two, if the
 * last look has found one.
 */
static bool move_overdue_to_local(s32 cpu, u64 turn)
{
	bool looks = turn % PATIENCE_TURNS == 0;

	return ((looks || (turn & 1 && pending_overdue)) && run_pending(false)) ||
	       ((looks || (turn & 1 && latecomers_overdue)) && move_latecomer_to_local(cpu));
}

/*
 * @prev goes by an order that is not used up, and its slice is over, or it was told to give way: it
 * goes on if no task that waits is more urgent. Were it enqueued, it would have to displace what
 * comes in between.
 */
__noinline int goes_on(struct task_struct *prev __arg_trusted, s32 cpu, u64 now)
{
	struct task_ctx *tctx = task_ctx(prev);
	u64 order, ran, first = 0;

	/* A decision in the mailbox may displace it. */
	if (!(prev->scx.flags & SCX_TASK_QUEUED) || !tctx || !tctx->is_ordered ||
	    first_mail_of(cpu, &first) || scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | cpu) > 0)
		return false;
	order = order_of(tctx);
	ran = tctx->exec_runtime + elapsed(tctx->start_ts, now);
	if (!holds(order, prev, tctx, ran))
		return false;
	if (is_late(order, ran))
		tctx->deadline = now + LATE_NS;
	if (first_vtime(URGENT_DSQ, cpu, &first) &&
	    time_before(first + limits.preempt_margin_ns, tctx->deadline))
		return false;
	set_slice(prev, order_slice_ns(order));
	retry_if_any_waits();
	return true;
}

/*
 * Must @p, which runs on @cpu without an order, give way to another of its kind? To the kernel
 * side's own at once, to one that user space cannot be asked about after a turn as long as that
 * one's, and to an earlier deadline. @p's own moves on while it runs.
 */
static bool is_overtaken(struct task_struct *p, struct task_ctx *tctx, s32 cpu)
{
	u64 ran = elapsed_since(tctx->start_ts),
	    deadline = p->scx.dsq_vtime + scaled_time(p, tctx, ran);
	u64 first = 0;

	if (first_vtime(KERNEL_SIDE_DSQ, cpu, &first) ||
	    (ran >= undecided_slice_ns() &&
	     (first_vtime(FALLBACK_DSQ, cpu, &first) ||
	      (in_fallback() && first_vtime(PENDING_DSQ, cpu, &first))))) {
		note_seldom(bpf_ktime_get_ns());
		return true;
	}
	if (!tctx->has_deadline)
		return false;
	return (first_vtime(cpu, cpu, &first) && time_before(first, deadline)) ||
	       (first_vtime(SHARED_DSQ, cpu, &first) && time_before(first, deadline)) ||
	       (first_mail_of(cpu, &first) && time_before(first, deadline)) ||
	       (first_shared_mail(&first) && time_before(first, deadline));
}

/*
 * @prev takes turns, and its slice is over: it goes on if it is due before all that wait, until it
 * has had a default slice. It is not among them yet, so one that has had less than its share would
 * otherwise wait for a turn of another after each of its own.
 */
__noinline int keeps_turn(struct task_struct *prev __arg_trusted, s32 cpu)
{
	struct task_ctx *tctx = task_ctx(prev);
	u64 mail = 0;

	if (!(prev->scx.flags & SCX_TASK_QUEUED) || !tctx || !tctx->in_turn ||
	    scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | cpu) > 0 ||
	    elapsed_since(tctx->start_ts) >= default_slice_ns() || first_mail_of(cpu, &mail) ||
	    first_shared_mail(&mail) || is_overtaken(prev, tctx, cpu))
		return false;
	set_slice(prev, turn_slice_ns(cpu));
	return true;
}

/*
 * Is it in vain that @cpu looks for a task? It ran one that sleeps now, or none, and has looked
 * since a task was put anywhere. One dispatch() in so many looks all the same.
 */
static bool idles_on(struct cpu_ctx *cctx, struct task_struct *prev, s32 cpu, u64 turn, u64 now)
{
	return turn % PATIENCE_TURNS && has_looked(cctx) &&
	       !(prev && prev->scx.flags & SCX_TASK_QUEUED) && !in_fallback() &&
	       !seldom_waits(now) && !has_mail(cpu) && !*(volatile u32 *)&stranded &&
	       !*(volatile u32 *)&unread;
}

/* @cpu needs a task. */
SEC("struct_ops/dispatch")
void BPF_PROG(metronome_dispatch, s32 cpu, struct task_struct *prev)
{
	struct cpu_state *state = cpu_state(cpu);
	struct cpu_ctx *cctx = cpu_ctx(cpu);
	bool displaces, starves;
	u64 turn, now;

	if (belongs_to_agent(cpu)) {
		/* A kick that was meant for a worker may have ended up here. */
		if (!scx_bpf_dsq_move_to_local(agent_cpu))
			pass_on_shared();
		return;
	}
	if (!state || !cctx)
		return;

	cctx->is_kicked = false;
	cctx->dispatched_at = now = bpf_ktime_get_ns();
	turn = state->counters[COUNT_TURNS]++;
	if (idles_on(cctx, prev, cpu, turn, now))
		goto idle;
	if (move_overdue_to_local(cpu, turn))
		return;
	/* Before the mailboxes are opened, which may take long. */
	starves = starves_others(cctx, now);
	if (!starves && prev && goes_on(prev, cpu, now))
		return;
	if (!starves && scx_bpf_dsq_move_to_local(URGENT_DSQ)) {
		retry_if_any_waits();
		pass_on_shared();
		return;
	}
	if (*(volatile u32 *)&stranded)
		rescue_stranded();
	if (!starves && prev && turn % PATIENCE_TURNS && keeps_turn(prev, cpu))
		return;
	displaces = drain_mailbox(cpu, cpu);
	drain_shared_mailbox();
	if ((displaces && scx_bpf_dsq_move_to_local(cpu)) ||
	    (starves &&
	     (move_starved_to_local(cpu, turn) || scx_bpf_dsq_move_to_local(URGENT_DSQ))) ||
	    move_next_to_local(cpu, turn)) {
		state->running.waiting = scx_bpf_dsq_nr_queued(cpu);
		pass_on_shared();
		return;
	}
	state->running.waiting = 0;
	give_away_dsq_of(cpu);
	if (((in_fallback() || seldom_waits(now)) && run_pending(true)) || move_unread_to_local())
		return;
	cctx->looked_at = now;
idle:
	/*
	 * Idle before and idle still: update_idle() is not called for this, nor, before 7.3, for a
	 * CPU that went idle before the scheduler was attached. User space has to know that it is
	 * idle and that it has looked.
	 */
	if (cpu != agent_cpu && bpf_get_current_task_btf()->pid == 0)
		publish_idle(cpu, true);
}

SEC("struct_ops/update_idle")
void BPF_PROG(metronome_update_idle, s32 cpu, bool is_idle)
{
	struct cpu_state *state = cpu_state(cpu);
	struct cpu_ctx *cctx = cpu_ctx(cpu);

	/* User space sends its own CPU no decisions. */
	if (cpu != agent_cpu)
		publish_idle(cpu, is_idle);
	if (!is_idle || !state || !cctx)
		return;
	/* Until a task of ours runs there. One of another class may come first. */
	state->running.kind = RUNS_OTHER;
	/* No task has waited for it. */
	cctx->urgent_since = 0;
	/* A CPU that put something there since this one looked has not seen it idle. */
	if ((!has_looked(cctx) && shared_waits()) ||
	    elapsed(*(volatile u64 *)&enqueued_last, cctx->dispatched_at) < ENQUEUE_NS)
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
}

/*
 * A task of another class has taken the CPU, perhaps for long: what was about to run there may run
 * elsewhere. It mostly comes back here, for the other CPUs are busy. The tracepoint that kernels
 * since 6.19 would rather have us use costs something at each switch.
 */
SEC("struct_ops/cpu_release")
void BPF_PROG(metronome_cpu_release, s32 cpu, struct scx_cpu_release_args *args)
{
	scx_bpf_reenqueue_local();
	note_taken(cpu);
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
	/*
	 * Kept apart from the other deadline, or clang loads both through one pointer, which the
	 * verifier refuses.
	 */
	barrier_var(vtime);
	running = &state->running;
	running->pid = p->pid;
	running->id = tctx->id;
	running->since = tctx->start_ts;
	running->deadline = tctx->is_ordered ? tctx->deadline : vtime;
	running->slice = p->scx.slice;
	running->kind = !is_ours ? RUNS_OTHER : tctx->is_ordered ? RUNS_ORDERED : RUNS_DECIDED;

	cctx->left_at = OCCUPIED;
	cctx->is_kicked = false;
	cctx->is_due_last = tctx->is_ordered && tctx->is_due_last;
	if (running->kind == RUNS_DECIDED)
		cctx->urgent_since = 0;
	else if (running->kind == RUNS_ORDERED && !cctx->urgent_since)
		cctx->urgent_since = running->since;
	if (!tctx->is_handed_off)
		cctx->chain_since = running->since;
	tctx->is_handed_off = false;
}

/*
 * An idle CPU has taken @p: it starts level with those that run. By a deadline of long ago it would
 * keep the CPU for its whole slice, however many come to wait meanwhile, and then owe them all of
 * that.
 */
static void level_vtime(struct task_struct *p, struct task_ctx *tctx)
{
	tctx->found_idle = false;
	tctx->has_deadline = true;
	tctx->in_order = true;
	if (tctx->in_turn)
		level_vruntime(p, tctx);
	else if (time_before(p->scx.dsq_vtime, vtime_now))
		set_vtime(p, vtime_now);
}

SEC("struct_ops/running")
void BPF_PROG(metronome_running, struct task_struct *p)
{
	struct task_ctx *tctx = task_ctx(p);
	u64 vtime;

	note_runnable(p, tctx);
	if (is_agent(p)) {
		agent_unlimited = scx_bpf_dsq_nr_queued(agent_cpu) <= 0 &&
				  scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | agent_cpu) <= 0;
		set_slice(p, agent_unlimited ? SCX_SLICE_INF : limits.agent_slice_ns);
		return;
	}
	if (!tctx)
		return;
	tctx->start_ts = tctx->charged_at = bpf_ktime_get_ns();
	if (tctx->sample.since)
		end_sample(tctx);
	restore_vtime(p, tctx);
	if (tctx->found_idle) {
		level_vtime(p, tctx);
		offer_mail(scx_bpf_task_cpu(p));
	}
	publish_running(p, tctx);
	vtime = p->scx.dsq_vtime;
	/*
	 * Kept apart from the virtual runtime, or clang loads both through one pointer, which the
	 * verifier refuses.
	 */
	barrier_var(vtime);
	if (tctx->in_order)
		advance_vtime_now(vtime);
	if (tctx->is_decided) {
		decided_now = vtime;
		adopt_clock_of(vtime);
	}
}

/*
 * Must @p, which runs on @cpu, make room for a task with an order, or one that was handed its CPU?
 */
static bool is_in_the_way(struct task_ctx *tctx, s32 cpu)
{
	struct cpu_ctx *cctx = cpu_ctx(cpu);
	u64 now = bpf_ktime_get_ns(), first = 0;

	if (!cctx || time_before(now, cctx->protected_until))
		return false;
	if (scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | cpu) > 0)
		return true;
	if (tctx->is_ordered && starves_others(cctx, now) &&
	    (scx_bpf_dsq_nr_queued(SHARED_DSQ) > 0 || scx_bpf_dsq_nr_queued(cpu) > 0 ||
	     scx_bpf_dsq_nr_queued(KERNEL_SIDE_DSQ) > 0 || scx_bpf_dsq_nr_queued(FALLBACK_DSQ) > 0))
		return true;
	if (!first_vtime(URGENT_DSQ, cpu, &first))
		return false;
	return !tctx->is_ordered || time_before(first + limits.preempt_margin_ns, tctx->deadline);
}

/*
 * The task with the earliest deadline runs, give or take a tick. And as a backstop, nothing that
 * finds its way to the scheduler thread's CPU waits there for longer than that.
 */
SEC("struct_ops/tick")
void BPF_PROG(metronome_tick, struct task_struct *p)
{
	struct task_ctx *tctx = task_ctx(p);
	s32 cpu = scx_bpf_task_cpu(p);
	bool give_way;

	/*
	 * What is runnable changes meanwhile: the time is shared out while it is known among which
	 * tasks.
	 */
	if (tctx && !is_agent(p))
		charge_vruntime(p, tctx, cpu, bpf_ktime_get_ns());
	if (is_agent(p) || belongs_to_agent(cpu))
		give_way = scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | agent_cpu) > 0;
	else
		give_way = tctx && (is_in_the_way(tctx, cpu) ||
				    (!tctx->is_ordered && is_overtaken(p, tctx, cpu)));
	if (give_way)
		set_slice(p, 0);
}

SEC("struct_ops/stopping")
void BPF_PROG(metronome_stopping, struct task_struct *p, bool runnable)
{
	struct task_ctx *tctx = task_ctx(p);
	struct cpu_ctx *cctx = cpu_ctx(scx_bpf_task_cpu(p));
	u64 now = bpf_ktime_get_ns(), ran;

	/* running() notes no time for the scheduler thread, which has no part in virtual time. */
	if (!tctx || !tctx->start_ts)
		return;
	tctx->stop_ts = now;
	if (cctx)
		cctx->left_at = now;
	ran = elapsed(tctx->start_ts, now);
	tctx->exec_runtime += ran;
	/* Virtual time goes by no task's weight. */
	if (tctx->in_order)
		advance_vtime_now(p->scx.dsq_vtime + ran);
	/*
	 * It may go on without an enqueue: a light task's own virtual time, which is far ahead
	 * then, is not that of the others.
	 */
	if (scaled_time(p, tctx, ran) > ran)
		tctx->in_order = false;
	tctx->is_decided = false;
	charge_vruntime(p, tctx, scx_bpf_task_cpu(p), now);
	/*
	 * A task that has run goes behind those that have not, should user space not say otherwise
	 * in time.
	 */
	set_vtime(p, p->scx.dsq_vtime + scaled_time(p, tctx, ran));
}

/*
 * stopping() also comes when something about a running task is changed; this tells whether it goes
 * to sleep.
 */
SEC("struct_ops/quiescent")
void BPF_PROG(metronome_quiescent, struct task_struct *p, u64 deq_flags)
{
	struct task_ctx *tctx = task_ctx(p);
	struct cpu_state *state = cpu_state(scx_bpf_task_cpu(p));

	if (is_agent(p))
		agent_runnable = false;
	if (!tctx || is_agent(p))
		return;
	count_weight(tctx, 0);
	if (!(deq_flags & SCX_DEQ_SLEEP)) {
		/* It may go on in another class, on the same CPU. If not, running() comes. */
		if (state && state->running.pid == p->pid)
			note_taken(scx_bpf_task_cpu(p));
		return;
	}
	tell(p, RECORD_BLOCKED, 0);
	tctx->is_ordered = false;
	tctx->waker = 0;
	tctx->wake_flags = 0;
}

/*
 * What user space calls
 */

/*
 * The caller is the scheduler thread. Asked this way because user space may live in a pid namespace
 * of its own.
 */
SEC("syscall")
int become_agent(void *ctx)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();

	agent_pid = (u32)pid_tgid;
	agent_tgid = pid_tgid >> 32;
	agent_runnable = true;
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
			scx_bpf_kick_cpu(cpu,
					 kick & KICK_PREEMPT ? SCX_KICK_PREEMPT : SCX_KICK_IDLE);
	}
	return 0;
}

/* Claims an idle CPU for a task, as select_cpu() does. Returns its number, or a negative error. */
SEC("syscall")
int pick_idle_cpu(struct pick_args *args)
{
	struct task_struct *p;
	s32 cpu;

	/* The kernel throws out a scheduler that names a CPU that is not there. */
	if ((u32)args->prev_cpu >= nr_cpus)
		return -EINVAL;
	p = bpf_task_from_pid(args->pid);
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
	if (!err)
		err = scx_bpf_create_dsq(KERNEL_SIDE_DSQ, -1);
	if (!err)
		err = scx_bpf_create_dsq(FALLBACK_DSQ, -1);
	bpf_for(cpu, 0, nr_cpus) {
		if (err)
			break;
		err = scx_bpf_create_dsq(cpu, -1);
	}
	return err ?: init_watch() ?: init_retry();
}

SEC("struct_ops/dump")
void BPF_PROG(metronome_dump, struct scx_dump_ctx *dump)
{
	static char fmt[] =
		"metronome: scheduler thread %lld on CPU %lld, heartbeat %llu, pending %lld, "
		"shared %lld, shared mailbox at %llu, seq there %llu\n";
	u32 zero = 0;
	struct control *ctl = bpf_map_lookup_elem(&control, &zero);
	struct shared_mailbox *box = bpf_map_lookup_elem(&shared_mailbox, &zero);

	if (!ctl || !box)
		return;
	unsigned long long args[] = {
		agent_pid,
		agent_cpu,
		ctl->heartbeat,
		scx_bpf_dsq_nr_queued(PENDING_DSQ),
		scx_bpf_dsq_nr_queued(SHARED_DSQ),
		box->head,
		box->slots[box->head & (SHARED_MAILBOX_SLOTS - 1)].seq,
	};

	scx_bpf_dump_bstr(fmt, args, sizeof(args));
}

SEC("struct_ops/dump_cpu")
void BPF_PROG(metronome_dump_cpu, struct scx_dump_ctx *dump, s32 cpu, bool idle)
{
	static char fmt[] = "metronome: idle_seq %llu, turns %llu, queued %lld, mailbox at %llu, "
			    "seq there %llu\n";
	u32 key = cpu;
	struct cpu_state *state = bpf_map_lookup_elem(&cpus, &key);
	struct mailbox *box = bpf_map_lookup_elem(&mailboxes, &key);

	if (!state || !box)
		return;
	unsigned long long args[] = {
		state->idle_seq,
		state->counters[COUNT_TURNS],
		scx_bpf_dsq_nr_queued(cpu),
		box->head,
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
	/* The swap is a full barrier: a reader of the kind sees the rest. */
	__sync_lock_test_and_set(&record->kind, info->kind);
}

SEC(".struct_ops.link")
struct sched_ext_ops metronome = {
	.select_cpu = (void *)metronome_select_cpu,
	.enqueue = (void *)metronome_enqueue,
	.dispatch = (void *)metronome_dispatch,
	.tick = (void *)metronome_tick,
	.running = (void *)metronome_running,
	.stopping = (void *)metronome_stopping,
	.quiescent = (void *)metronome_quiescent,
	.update_idle = (void *)metronome_update_idle,
	.cpu_release = (void *)metronome_cpu_release,
	.set_weight = (void *)metronome_set_weight,
	.set_cpumask = (void *)metronome_set_cpumask,
	.init_task = (void *)metronome_init_task,
	.exit_task = (void *)metronome_exit_task,
	.enable = (void *)metronome_enable,
	.cgroup_init = (void *)metronome_cgroup_init,
	.cgroup_exit = (void *)metronome_cgroup_exit,
	.cgroup_move = (void *)metronome_cgroup_move,
	.cgroup_set_weight = (void *)metronome_cgroup_set_weight,
	.dump = (void *)metronome_dump,
	.dump_cpu = (void *)metronome_dump_cpu,
	.init = (void *)metronome_init,
	.exit = (void *)metronome_exit,
	/* Set by user space: flags, timeout_ms, exit_dump_len, hotplug_seq. */
	.name = "metronome",
};
