/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the kernel side does by itself while user space is late.
 */
#ifndef METRONOME_TAKEOVER_H
#define METRONOME_TAKEOVER_H

#include "state.h"

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

#endif /* METRONOME_TAKEOVER_H */
