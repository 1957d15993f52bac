/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Fallback: what the kernel side does by itself while user space is late, because it is stopped,
 * frozen, faulting, or kept off its CPU (Invariant 6).
 *
 * User space is late when its heart has not beaten for budget_ns while tasks wait on PENDING_DSQ,
 * or since it was woken. From then on it is not asked: a task that becomes runnable goes to
 * FALLBACK_DSQ, those on PENDING_DSQ run in turn, and standing orders hold as ever.
 * `machine.fallback` is odd meanwhile. User space that is back reads its rings empty, writes that
 * number into `control.caught_up`, and is asked again. Its decisions about tasks that have run
 * meanwhile find them elsewhere.
 *
 * A timer looks, because all CPUs may idle. It runs while a task waits for a decision. It looks
 * after CPUs that a task of another class has taken, too: what waits for such a CPU alone, in its
 * mailbox or on its DSQ, is taken from it.
 *
 *   fallback       caught_up          decides                               a task becomes runnable
 *   even           any                user space                            user space is asked
 *   odd            another number     the kernel side; user space is away,  goes to FALLBACK_DSQ
 *                                     or reads what it was asked before
 *   odd            the same number    the kernel side, until it looks       goes to FALLBACK_DSQ
 *
 *   fallback       changes when                                     by
 *   even -> odd    a task is pending, or user space was woken, and  begin_fallback(), from the timer
 *                  the heart has not beaten for budget_ns
 *   odd -> even    caught_up is the same number                     end_fallback(), from the timer
 *   caught_up      user space finds fallback odd and its rings      Shared::catch_up(), in each turn
 *                  empty                                            (src/shared.rs)
 *
 * The number only grows, so what user space has written about one fallback says nothing about the
 * next. Two CPUs that change it at once change it once, by compare-and-swap.
 */
#ifndef METRONOME_FALLBACK_H
#define METRONOME_FALLBACK_H

#include "state.h"
#include "mailbox.h"

/* Looks in the time of a budget. */
#define LOOKS 2

/*
 * The heartbeat that was seen last, and when it was seen to change. Races lose an update of a few
 * ns. The time is stored first: a reader of the new heartbeat with the time of the one before,
 * which may be of long ago, finds user space late that is not.
 */
static volatile u64 beat_seen, beat_seen_at;

struct watch {
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct watch);
} watches SEC(".maps");

/* Has user space been asked since the timer looked last? Is the timer started? */
static u32 watch_asked, watch_started;

/* Was a CPU taken while tasks waited on its own DSQ, or has the timer found that they still do? */
static u32 watch_taken;

/*
 * A CPU, plus 1, that is taken while work waits for it alone; 0: none is known. And where the timer
 * looks for one first.
 */
static u32 stranded, look_from;

/* The heartbeat at which user space was woken last. */
static u64 woken_at_beat = -1ULL;

/*
 * A thread that sleeps has no heartbeat: it is late only a budget after it has been woken. A task
 * that wakes it again meanwhile does not put that off.
 */
static void note_wakeup(struct control *ctl)
{
	u64 beat = *(volatile u64 *)&ctl->heartbeat;

	if (woken_at_beat == beat)
		return;
	woken_at_beat = beat;
	beat_seen_at = bpf_ktime_get_ns();
	beat_seen = beat;
}

/* Has user space been silent for longer than its budget? */
static bool user_space_is_late(void)
{
	struct control *ctl = controls();
	u64 now = bpf_ktime_get_ns(), beat;

	if (!ctl)
		return true;
	beat = *(volatile u64 *)&ctl->heartbeat;
	if (beat != beat_seen) {
		beat_seen_at = now;
		beat_seen = beat;
		return false;
	}
	return (s64)(now - beat_seen_at) > (s64)budget_ns;
}

/* Has user space been woken, and its heart not beaten since? */
static bool has_not_woken_up(void)
{
	struct control *ctl = controls();

	return ctl && *(volatile u64 *)&ctl->heartbeat == woken_at_beat;
}

/* Does the kernel side decide without user space? */
static bool in_fallback(void)
{
	struct machine_state *machine = machine_state();

	return machine && *(volatile u64 *)&machine->fallback & 1;
}

/*
 * Is @cpu the scheduler thread's, and does the thread need it? If it is kept from running, it does
 * not.
 */
static bool belongs_to_agent(s32 cpu)
{
	return cpu == agent_cpu && agent_runnable && !in_fallback();
}

/* User space is late: from now on it is not asked. */
static void begin_fallback(void)
{
	struct machine_state *machine = machine_state();
	u64 seq = machine ? *(volatile u64 *)&machine->fallback : 1;

	if (!(seq & 1) && __sync_val_compare_and_swap(&machine->fallback, seq, seq + 1) == seq)
		count(COUNT_LATE);
}

/* User space is back and has read all that was asked of it. */
static void end_fallback(void)
{
	struct machine_state *machine = machine_state();
	struct control *ctl = controls();
	u64 seq;

	if (!machine || !ctl)
		return;
	seq = *(volatile u64 *)&machine->fallback;
	if (seq & 1 && *(volatile u64 *)&ctl->caught_up == seq)
		__sync_val_compare_and_swap(&machine->fallback, seq, seq + 1);
}

/*
 * Had the first task of PENDING_DSQ been there for too long? Then there may be more, and CPUs look
 * more often.
 */
static bool pending_overdue;

/* Has the first task of PENDING_DSQ been there for longer than @limit? */
static bool first_pending_is_overdue(u64 limit)
{
	struct bpf_iter_scx_dsq it;
	struct task_ctx *tctx = NULL;
	struct task_struct *p;
	bool overdue = false;

	if (scx_bpf_dsq_nr_queued(PENDING_DSQ) <= 0)
		return false;
	if (!bpf_iter_scx_dsq_new(&it, PENDING_DSQ, 0)) {
		p = bpf_iter_scx_dsq_next(&it);
		if (p)
			tctx = task_ctx(p);
		overdue = tctx && elapsed_since(tctx->enqueued_at) > limit;
	}
	bpf_iter_scx_dsq_destroy(&it);
	return overdue;
}

/*
 * Takes a task that waits for a decision which does not come: user space is late, or its decision
 * lies in the mailbox of a CPU that does not look, as one that is being taken offline. @idle: this
 * CPU has nothing else to do.
 */
__noinline int run_pending(bool idle)
{
	if (!in_fallback()) {
		bool overdue = first_pending_is_overdue(idle ? budget_ns : limits.longest_wait_ns);

		if (!idle)
			pending_overdue = overdue;
		if (!overdue)
			return false;
	}
	if (!scx_bpf_dsq_move_to_local(PENDING_DSQ))
		return false;
	count(COUNT_TAKEN_BACK);
	return true;
}

/* CPUs without work look for some: as many as there are tasks on PENDING_DSQ. */
static void kick_idle_workers(void)
{
	s32 nr = scx_bpf_dsq_nr_queued(PENDING_DSQ), i, cpu;
	struct bpf_cpumask *mask = workers;

	bpf_for(i, 0, nr) {
		cpu = mask ? scx_bpf_pick_idle_cpu((const struct cpumask *)mask, 0) : -1;
		if (cpu < 0)
			break;
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
	}
	/* Its own thread does not need it. */
	if (nr > 0 && in_fallback())
		scx_bpf_kick_cpu(agent_cpu, SCX_KICK_IDLE);
}

/*
 * Has @cpu been without a task of ours for longer than @limit, and does not idle? Then a task of
 * another class has it.
 */
static bool is_taken(s32 cpu, u64 limit)
{
	struct machine_state *machine = machine_state();
	struct cpu_ctx *cctx = cpu_ctx(cpu);
	u32 word = (u32)cpu / 64 & (MAX_CPUS / 64 - 1);
	u64 left_at;

	if (!machine || !cctx || cpu == agent_cpu ||
	    *(volatile u64 *)&machine->idle[word] >> (cpu & 63) & 1)
		return false;
	left_at = *(volatile u64 *)&cctx->left_at;
	return left_at != OCCUPIED && elapsed_since(left_at) > limit;
}

static bool first_mail_of(s32 cpu, u64 *vtime)
{
	u32 key = cpu;
	struct mailbox *box = bpf_map_lookup_elem(&mailboxes, &key);

	return box && first_mail_vtime(&box->head, box->slots, MAILBOX_SLOTS, vtime);
}

static bool first_shared_mail(u64 *vtime)
{
	u32 key = 0;
	struct shared_mailbox *box = bpf_map_lookup_elem(&shared_mailbox, &key);

	return box && first_mail_vtime(&box->head, box->slots, SHARED_MAILBOX_SLOTS, vtime);
}

/* Does anything wait for @cpu alone? */
static bool work_waits_for(s32 cpu)
{
	u64 vtime;

	return scx_bpf_dsq_nr_queued(cpu) > 0 || first_mail_of(cpu, &vtime);
}

/*
 * Makes the next taken CPU for which work waits known to all others: whichever looks for a task
 * next takes that work over. Returns whether there is one, or will be soon.
 */
static bool find_stranded(void)
{
	struct bpf_cpumask *mask = workers;
	bool any = false;
	s32 idle;
	u32 i;

	bpf_for(i, 0, nr_cpus) {
		u32 cpu = look_from + i;

		if (cpu >= nr_cpus)
			cpu -= nr_cpus;
		if (!is_taken(cpu, 0) || !work_waits_for(cpu))
			continue;
		any = true;
		if (!is_taken(cpu, limits.taken_ns))
			continue;
		look_from = cpu + 1 < nr_cpus ? cpu + 1 : 0;
		__sync_lock_test_and_set(&stranded, cpu + 1);
		idle = mask ? scx_bpf_pick_idle_cpu((const struct cpumask *)mask, 0) : -1;
		if (idle >= 0)
			scx_bpf_kick_cpu(idle, SCX_KICK_IDLE);
		break;
	}
	return any;
}

static void look_after_user_space(void)
{
	bool pending = scx_bpf_dsq_nr_queued(PENDING_DSQ) > 0, overdue;

	end_fallback();
	if ((pending || has_not_woken_up()) && user_space_is_late())
		begin_fallback();
	overdue = pending && (in_fallback() || first_pending_is_overdue(budget_ns));
	if (overdue)
		kick_idle_workers();
	/*
	 * Each swap is a full barrier: the CPU that sets it anew has put its tasks where we look,
	 * or is seen by the next look.
	 */
	if ((__sync_lock_test_and_set(&watch_taken, 0) || overdue) && find_stranded())
		__sync_lock_test_and_set(&watch_taken, 1);
}

/*
 * The timer's function. It goes on for as long as there is something to look at.
 *
 * Ordering: each of two swaps is a full barrier. We store `started`, then read `asked`;
 * watch_user_space() stores `asked`, then reads `started`; so one of the two starts the timer
 * again.
 */
static int on_watch(void *map, u32 *key, struct watch *watch)
{
	bool asked = __sync_lock_test_and_set(&watch_asked, 0);

	bpf_rcu_read_lock();
	look_after_user_space();
	bpf_rcu_read_unlock();
	if (!asked && !in_fallback() && !*(volatile u32 *)&watch_taken &&
	    scx_bpf_dsq_nr_queued(PENDING_DSQ) <= 0) {
		__sync_lock_test_and_set(&watch_started, 0);
		if (!*(volatile u32 *)&watch_asked || __sync_lock_test_and_set(&watch_started, 1))
			return 0;
	}
	bpf_timer_start(&watch->timer, budget_ns / LOOKS, 0);
	return 0;
}

/* User space has been asked: the timer must look whether it answers. */
static void watch_user_space(void)
{
	u32 zero = 0;
	struct watch *watch;

	/* A CPU that finds it set is seen by the timer's next look. */
	if (*(volatile u32 *)&watch_asked || __sync_lock_test_and_set(&watch_asked, 1) ||
	    __sync_lock_test_and_set(&watch_started, 1))
		return;
	watch = bpf_map_lookup_elem(&watches, &zero);
	if (watch)
		bpf_timer_start(&watch->timer, budget_ns / LOOKS, 0);
}

/*
 * A task of another class is about to have @cpu: nothing there gives way, and what waits on its DSQ
 * may wait for long.
 */
static void note_taken(s32 cpu)
{
	struct cpu_state *state = cpu_state(cpu);

	if (state)
		state->running.kind = RUNS_OTHER;
	if (cpu == agent_cpu || scx_bpf_dsq_nr_queued(cpu) <= 0)
		return;
	__sync_lock_test_and_set(&watch_taken, 1);
	watch_user_space();
}

static int init_watch(void)
{
	u32 zero = 0;
	struct watch *watch = bpf_map_lookup_elem(&watches, &zero);
	int err;

	if (!watch)
		return -ENOENT;
	err = bpf_timer_init(&watch->timer, &watches, 1 /* CLOCK_MONOTONIC */);
	return err ?: bpf_timer_set_callback(&watch->timer, on_watch);
}

#endif /* METRONOME_FALLBACK_H */
