/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the kernel side does by itself while user space is late: killed by nobody, but stopped, frozen, faulting, or kept off
 * its CPU (Invariant 6).
 *
 * User space is late when its heart has not beaten for budget_ns while tasks wait on PENDING_DSQ. From then on nobody is
 * asked: who becomes runnable goes to SHARED_DSQ by its last deadline, those on PENDING_DSQ run in that order too, and
 * standing orders hold as ever. `machine.takeover` is odd meanwhile. User space that is back reads its rings empty, writes that
 * number into `control.caught_up`, and is asked again. Its decisions about tasks that have run meanwhile find them elsewhere.
 *
 * Somebody has to look while all CPUs idle, so a timer does, as long as anybody has been asked lately.
 */
#ifndef METRONOME_TAKEOVER_H
#define METRONOME_TAKEOVER_H

#include "state.h"

/* Looks in the time of a budget. */
#define LOOKS 2

/* The heartbeat that was seen last, and when it was seen to change. Races lose an update of a few ns. */
static u64 beat_seen, beat_seen_at;

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

/*
 * Whoever sleeps has no heartbeat: it is late only a budget after it has been woken. Those who wake it again meanwhile do not
 * put that off.
 */
static void note_wakeup(struct control *ctl)
{
	static u64 woken_at_beat = -1ULL;
	u64 beat = *(volatile u64 *)&ctl->heartbeat;

	if (woken_at_beat == beat)
		return;
	woken_at_beat = beat;
	beat_seen = beat;
	beat_seen_at = scx_bpf_now();
}

/* Has user space been silent for longer than its budget? */
static bool user_space_is_late(void)
{
	struct control *ctl = controls();
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

/* Does the kernel side decide alone? */
static bool is_alone(void)
{
	struct machine_state *machine = machine_state();

	return machine && *(volatile u64 *)&machine->takeover & 1;
}

/* User space is late: from now on it is not asked. */
static void begin_takeover(void)
{
	struct machine_state *machine = machine_state();
	u64 seq = machine ? *(volatile u64 *)&machine->takeover : 1;

	if (!(seq & 1) && __sync_val_compare_and_swap(&machine->takeover, seq, seq + 1) == seq)
		count(COUNT_LATE);
}

/* User space is back and has read all that was asked of it. */
static void end_takeover(void)
{
	struct machine_state *machine = machine_state();
	struct control *ctl = controls();
	u64 seq;

	if (!machine || !ctl)
		return;
	seq = *(volatile u64 *)&machine->takeover;
	if (seq & 1 && *(volatile u64 *)&ctl->caught_up == seq)
		__sync_val_compare_and_swap(&machine->takeover, seq, seq + 1);
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
	if (!is_alone() && !first_pending_is_overdue(idle ? budget_ns : patience_ns))
		return false;
	if (!scx_bpf_dsq_move_to_local(PENDING_DSQ))
		return false;
	count(COUNT_TAKEOVER);
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
	if (nr > 0 && is_alone())
		scx_bpf_kick_cpu(agent_cpu, SCX_KICK_IDLE);
}

static void look_after_user_space(void)
{
	bool pending = scx_bpf_dsq_nr_queued(PENDING_DSQ) > 0;

	end_takeover();
	if (pending && user_space_is_late())
		begin_takeover();
	if (pending && (is_alone() || first_pending_is_overdue(budget_ns)))
		kick_idle_workers();
}

/*
 * The timer's function. It goes on for as long as there is something to look at.
 *
 * Ordering: each of two swaps is a full barrier. We store `started`, then read `asked`; watch_user_space() stores `asked`, then
 * reads `started`; so one of the two starts the timer again.
 */
static int on_watch(void *map, u32 *key, struct watch *watch)
{
	bool asked = __sync_lock_test_and_set(&watch_asked, 0);

	bpf_rcu_read_lock();
	look_after_user_space();
	bpf_rcu_read_unlock();
	if (!asked && !is_alone() && scx_bpf_dsq_nr_queued(PENDING_DSQ) <= 0) {
		__sync_lock_test_and_set(&watch_started, 0);
		if (!*(volatile u32 *)&watch_asked || __sync_lock_test_and_set(&watch_started, 1))
			return 0;
	}
	bpf_timer_start(&watch->timer, budget_ns / LOOKS, 0);
	return 0;
}

/* User space has been asked: somebody must look whether it answers. */
static void watch_user_space(void)
{
	u32 zero = 0;
	struct watch *watch;

	/* Whoever finds it set is seen by the timer's next look. */
	if (*(volatile u32 *)&watch_asked || __sync_lock_test_and_set(&watch_asked, 1) ||
	    __sync_lock_test_and_set(&watch_started, 1))
		return;
	watch = bpf_map_lookup_elem(&watches, &zero);
	if (watch)
		bpf_timer_start(&watch->timer, budget_ns / LOOKS, 0);
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

#endif /* METRONOME_TAKEOVER_H */
