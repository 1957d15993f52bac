/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Decisions of user space, from the mailboxes to where the tasks shall be.
 */
#ifndef METRONOME_DECISIONS_H
#define METRONOME_DECISIONS_H

#include "latecomers.h"
#include "records.h"

/*
 * Moves @p from PENDING_DSQ to the DSQ of @cpu, or to SHARED_DSQ if @cpu is negative or not
 * allowed.
 *
 * The iterator comes first: it cannot move what is enqueued after it was made, so generation and
 * affinity, once checked, hold until the move.
 */
static enum record_kind move_pending(struct task_struct *p, struct task_ctx *tctx,
				     const struct decision *decision, struct id_slot *slot, s32 cpu)
{
	/* Those without a deadline keep the order in which they were decided. */
	u64 vtime = decision->vtime ?: vtime_now, first = 0;
	enum record_kind fate = RECORD_RESCUED;
	struct bpf_iter_scx_dsq it;
	bool here, displaces;

	if (!bpf_iter_scx_dsq_new(&it, PENDING_DSQ, 0)) {
		/* On SHARED_DSQ all other CPUs would walk past it. */
		if (cpu < 0 && p->nr_cpus_allowed == 1)
			cpu = scx_bpf_task_cpu(p);
		here = cpu >= 0 && may_run_on(p, cpu);
		displaces = here && decision->flags & DECISION_PREEMPT;
		scx_bpf_dsq_move_set_slice(&it,
					   clamp_slice(decision->slice_ns) ?: default_slice_ns());
		scx_bpf_dsq_move_set_vtime(
			&it, displaces && first_vtime(cpu, -1, &first) ? first - 1 : vtime);
		note_insert(bpf_ktime_get_ns());
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
	if (fate == RECORD_DISPATCHED || fate == RECORD_BOUNCED) {
		tctx->waits_on = here ? cpu : SHARED_DSQ;
		if (decision->vtime && time_before(decided_now + limits.far_ahead_ns, vtime))
			note_latecomer(tctx->id, decision->generation);
	}
	return fate;
}

static enum record_kind carry_out_for(struct task_struct *p, struct task_ctx *tctx,
				      struct id_slot *slot, const struct decision *decision,
				      s32 cpu)
{
	enum record_kind fate;

	tctx->has_deadline = decision->vtime;
	tctx->in_order = !(decision->flags & DECISION_PREEMPT);
	tctx->is_decided = tctx->in_order && decision->vtime;
	/* Before the move: once it has moved, another CPU may run it. */
	sample_drained(tctx, decision);

	fate = move_pending(p, tctx, decision, slot, cpu);
	/*
	 * The record is published a moment before its task is on PENDING_DSQ, and a very quick
	 * answer comes within that moment. The first attempt then waits for the run queue lock
	 * under which the task is enqueued; the second finds it.
	 */
	if (fate == RECORD_RESCUED)
		fate = move_pending(p, tctx, decision, slot, cpu);

	if ((fate == RECORD_DISPATCHED && cpu < 0 && !is_unrestricted(p)) || fate == RECORD_BOUNCED)
		kick_idle_cpu_for(p, bpf_ktime_get_ns());
	tell(p, fate, 0);
	return fate;
}

/* The task of a decision has exited. There is nothing to tell but whose it was. */
static void tell_too_late(const struct decision *decision)
{
	struct control *ctl = controls();
	struct queued_task *rec;

	count(COUNT_TOO_LATE);
	if (!ctl || !(ctl->events & (1U << RECORD_TOO_LATE)))
		return;
	rec = reserve_record(decision->id, FREE_FOR_ENQUEUES);
	if (!rec) {
		count(COUNT_EVENTS_LOST);
		return;
	}
	__builtin_memset(rec, 0, sizeof(*rec));
	rec->kind = RECORD_TOO_LATE;
	rec->id = decision->id;
	rec->generation = decision->generation;
	/* So that it passes as a record. */
	rec->nr_cpus_allowed = 1;
	rec->weight = 100;
	bpf_ringbuf_submit(rec, BPF_RB_NO_WAKEUP);
	count(COUNT_EVENTS);
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
 * Puts one task where user space wants it: on @cpu, or anywhere if @cpu is negative. Not static, so
 * that it is verified by itself and not again in each loop that calls it.
 */
__noinline int carry_out(const struct decision *decision __arg_nonnull, s32 cpu)
{
	u32 id = decision->id;
	struct id_slot *slot = bpf_map_lookup_elem(&id_slots, &id);
	struct task_struct *p = NULL;
	struct task_ctx *tctx;

	if (!slot) {
		/* No task of any time had this id. */
		count(COUNT_TOO_LATE);
		return 0;
	}
	if (slot->pid)
		p = bpf_task_from_pid(slot->pid);
	if (!p) {
		tell_too_late(decision);
		return 0;
	}
	tctx = task_ctx(p);
	/* In this moment the id's owner has exited, and its pid is another's. */
	if (!tctx || tctx->id != id)
		tell_too_late(decision);
	else
		count_fate(carry_out_for(p, tctx, slot, decision, cpu));
	bpf_task_release(p);
	return 0;
}

/*
 * Carries out what lies in the mailbox of @of, on @cpu, or anywhere if that is negative. Returns
 * whether one of the decisions displaces.
 */
__noinline int drain_mailbox(s32 of, s32 cpu)
{
	u32 key = of;
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

__noinline int drain_shared_mailbox(void)
{
	u32 key = 0;
	struct shared_mailbox *box = bpf_map_lookup_elem(&shared_mailbox, &key);
	struct decision decision;
	u32 i;

	if (!box)
		return 0;
	bpf_for(i, 0, DRAIN_BATCH) {
		if (!take(&box->head, box->slots, SHARED_MAILBOX_SLOTS, &decision))
			break;
		carry_out(&decision, -1);
	}
	return 0;
}

/*
 * A CPU, plus 1, that runs a task which did not come through dispatch(), with mail in its mailbox:
 * an idle CPU reads it instead.
 */
static u32 unread;

static void offer_mail(s32 cpu)
{
	struct bpf_cpumask *mask = workers;
	u64 vtime;
	s32 idle;

	if (!mask || !first_mail_of(cpu, &vtime))
		return;
	idle = scx_bpf_pick_idle_cpu((const struct cpumask *)mask, 0);
	if (idle < 0)
		return;
	__sync_lock_test_and_set(&unread, cpu + 1);
	scx_bpf_kick_cpu(idle, SCX_KICK_IDLE);
}

static bool has_mail(s32 cpu)
{
	u64 vtime;

	return first_mail_of(cpu, &vtime) || first_shared_mail(&vtime);
}

#endif /* METRONOME_DECISIONS_H */
