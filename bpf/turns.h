/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tasks that take turns by weight, decided ahead: an order that says so holds past its budget, too,
 * and user space is not asked.
 *
 * Each task has a virtual runtime: the CPU time it had, scaled by 100 / share, where its share is
 * its weight, or what that is worth beside those of other control groups (groups.h). Its deadline
 * is that, plus the CPU time since it last slept, scaled likewise, at most a lag of it: of two with
 * the same share, the one that runs in short bursts is served before the one that would keep the
 * CPU. A lag is a quarter of the default slice.
 *
 * Virtual time is what a task of weight 100 has had that was always runnable and got its share: it
 * moves on by all CPU time that tasks have, shared out by the weights of those that are runnable. A
 * task that slept comes back at most a lag behind it, or behind the first that waits, so that sleep
 * cannot be saved up. One that has not slept has waited for what it is behind by: up to
 * LAGS_BEHIND, or what a lag puts its deadline off by if it is light, for it is due late, and must
 * not lose its share by it. None is further ahead than LEAD_LAGS. And virtual time never runs
 * slower than real time by more than SLOWEST: many tasks that sleep and wake all the time cannot
 * overtake one that waits for longer than that.
 *
 * The policy of src/policy/deadline.rs goes by the same rules where it is asked. It has the
 * reasons.
 */
#ifndef METRONOME_TURNS_H
#define METRONOME_TURNS_H

#include "groups.h"
#include "latecomers.h"
#include "orders.h"

/* A slice. */
#define LAGS_BEHIND 4

/* How often virtual time is compared with real time. */
#define FLOOR_NS 4000000ULL

static __always_inline u64 lag_ns(void)
{
	return default_slice_ns() / 4;
}

static __always_inline u64 virtual_now(void)
{
	struct machine_state *machine = machine_state();

	return machine ? *(volatile u64 *)&machine->virtual_now : 0;
}

/* A task has had so much CPU time: what each runnable task should have of it. */
static void advance_virtual_now(u64 ran)
{
	struct machine_state *machine = machine_state();
	u64 weight = *(volatile u64 *)&runnable_weight;

	if (machine)
		__sync_fetch_and_add(&machine->virtual_now,
				     ran * 100 / (weight > 100 ? weight : 100));
}

/*
 * A task gets a CPU by a deadline of user space. If that is far ahead of all that tasks can be, it
 * is of a clock that began elsewhere.
 */
static void adopt_clock_of(u64 vtime)
{
	struct machine_state *machine = machine_state();

	if (machine && (s64)(vtime - virtual_now()) > (s64)(2 * LEAD_LAGS * lag_ns()))
		machine->virtual_now = vtime;
}

/* Real time passes at most SLOWEST times as fast as virtual time. */
static void keep_virtual_time_going(u64 real_now)
{
	static u64 looked_at, then;
	struct machine_state *machine = machine_state();
	u64 passed = real_now - *(volatile u64 *)&looked_at, now = virtual_now();

	if (!machine || (s64)passed < (s64)FLOOR_NS)
		return;
	*(volatile u64 *)&looked_at = real_now;
	/* A machine that was idle for long has nothing to make up for. */
	if (passed < 1000 * FLOOR_NS && time_before(now, then + passed / SLOWEST)) {
		now = then + passed / SLOWEST;
		machine->virtual_now = now;
	}
	then = now;
}

/* Between @behind behind virtual time and so many lags ahead of it. */
static void limit_vruntime(struct task_ctx *tctx, u64 behind, u64 lags)
{
	u64 now = virtual_now(), earliest = now - behind, latest = now + lags * lag_ns();

	if (time_before(tctx->vruntime, earliest))
		tctx->vruntime = earliest;
	else if (time_before(latest, tctx->vruntime))
		tctx->vruntime = latest;
}

/*
 * Charges @p, which runs on @cpu, for the CPU time that it has had since it was charged last. What
 * it has had while no other task waited for the CPU, as far as we can see, is not held against it:
 * of brief runs that is not asked, which are little. Nor is what it has by an order: how much that
 * may be is the policy's to say.
 */
static void charge_vruntime(struct task_struct *p, struct task_ctx *tctx, s32 cpu, u64 now)
{
	u64 ran = elapsed(tctx->charged_at, now);

	tctx->charged_at = now;
	tctx->vruntime += shared_time(p, tctx, ran);
	advance_virtual_now(ran);
	if (tctx->is_ordered || (ran >= FLOOR_NS / 8 && scx_bpf_dsq_nr_queued(SHARED_DSQ) <= 0 &&
				 scx_bpf_dsq_nr_queued(cpu) <= 0))
		limit_vruntime(tctx, lag_ns(), 0);
}

/* The more tasks wait, the shorter. */
static u64 turn_slice_ns(s32 cpu)
{
	s32 waiting = scx_bpf_dsq_nr_queued(SHARED_DSQ) + scx_bpf_dsq_nr_queued(cpu);
	u64 slice = default_slice_ns() / (waiting > 0 ? waiting + 1 : 1),
	    least = clamp_slice(slice_min_ns);

	return slice < least ? least : slice;
}

/* @p waits on the DSQ of @cpu, the only one that may run it. */
static void kick_for_bound(s32 cpu)
{
	scx_bpf_kick_cpu(cpu, belongs_to_agent(cpu) && agent_unlimited ? SCX_KICK_PREEMPT
								       : SCX_KICK_IDLE);
}

/*
 * How far behind virtual time a task comes back that slept: a lag. Tasks with orders may have more
 * than their share, and then all that wait are behind: it comes back a lag behind the first of
 * them, or it would be the last. A light task does so in part: those whose share is small can be
 * many, as the threads of a group are.
 */
static u64 behind_after_sleep(struct task_struct *p, struct task_ctx *tctx)
{
	u64 lag = lag_ns(), now = virtual_now(), first = 0, late, share;

	if (!first_vtime(SHARED_DSQ, scx_bpf_task_cpu(p), &first) || !time_before(first, now))
		return lag;
	late = now - first < LAGS_BEHIND * lag ? now - first : LAGS_BEHIND * lag;
	share = share_of(p, tctx);
	return lag + (share < 100 * SHARE ? late * share / (100 * SHARE) : late);
}

/* From now until it has run, @p goes by its virtual runtime. Returns its deadline. */
static u64 begin_turn(struct task_struct *p, struct task_ctx *tctx, u64 enq_flags)
{
	u64 lag = lag_ns(), scaled = shared_time(p, tctx, lag);
	u64 burst = tctx->exec_runtime < lag ? tctx->exec_runtime : lag, deadline, latest;

	keep_virtual_time_going(tctx->enqueued_at);
	tctx->has_deadline = true;
	tctx->in_order = true;
	tctx->in_turn = true;
	if (enq_flags & SCX_ENQ_WAKEUP)
		limit_vruntime(tctx, behind_after_sleep(p, tctx), LEAD_LAGS);
	else
		limit_vruntime(tctx, scaled < LAGS_BEHIND * lag ? LAGS_BEHIND * lag : scaled,
			       LEAD_LAGS);
	deadline = tctx->vruntime + shared_time(p, tctx, burst);
	latest = virtual_now() + LEAD_LAGS * lag;
	return time_before(latest, deadline) ? latest : deadline;
}

/* @p takes turns with the others if its order says so. Returns whether it does. */
static bool enqueue_in_turn(struct task_struct *p, struct task_ctx *tctx, u64 order, u32 generation,
			    u64 enq_flags)
{
	s32 cpu = scx_bpf_task_cpu(p);
	u64 deadline;

	if (!(order & ORDER_IN_TURN))
		return false;
	deadline = begin_turn(p, tctx, enq_flags);
	/* On SHARED_DSQ all other CPUs would walk past it. */
	tctx->waits_on = p->nr_cpus_allowed == 1 ? cpu : SHARED_DSQ;
	if (time_before(virtual_now() + limits.far_ahead_ns, deadline))
		note_latecomer(tctx->id, generation);
	note_insert(tctx->enqueued_at);
	dsq_insert_vtime(p, tctx->waits_on, turn_slice_ns(cpu), deadline, enq_flags);
	if (tctx->waits_on == cpu)
		kick_for_bound(cpu);
	else
		kick_idle_cpu_for(p, tctx->enqueued_at);
	if (enq_flags & SCX_ENQ_WAKEUP)
		tell_of_wakeup(p, tctx, RECORD_ORDERED, tctx->enqueued_at, enq_flags);
	count(COUNT_IN_TURN);
	return true;
}

/*
 * An idle CPU has taken @p, so no task has waited for what it had before: it starts level with
 * those that run.
 */
static void level_vruntime(struct task_struct *p, struct task_ctx *tctx)
{
	limit_vruntime(tctx, lag_ns(), 0);
	set_vtime(p, tctx->vruntime);
}

#endif /* METRONOME_TURNS_H */
