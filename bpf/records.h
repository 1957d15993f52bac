/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Records for user space: a task waits for a decision, or something has happened to it.
 */
#ifndef METRONOME_RECORDS_H
#define METRONOME_RECORDS_H

#include "latency.h"
#include "fallback.h"

static void fill_record(struct queued_task *rec, struct task_struct *p, struct task_ctx *tctx,
			u32 generation, u64 enq_flags)
{
	u32 everywhere;

	rec->id = tctx->id;
	rec->generation = generation;
	rec->pid = p->pid;
	rec->tgid = p->tgid;
	rec->cpu = scx_bpf_task_cpu(p);
	/*
	 * Kept apart from the other value, or clang loads both through one pointer, which the
	 * verifier refuses.
	 */
	everywhere = nr_cpus;
	barrier_var(everywhere);
	rec->nr_cpus_allowed = is_unrestricted(p) ? everywhere : p->nr_cpus_allowed;
	/* Tasks that never entered the class have none, and are told of when they exit. */
	rec->weight = p->scx.weight ?: 100;
	rec->share = tctx->share;
	rec->flags = enq_flags | tctx->wake_flags << WAKE_FLAGS_SHIFT;
	if (p->policy == SCHED_BATCH || p->policy == SCHED_IDLE)
		rec->flags |= IS_BATCH;
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

/*
 * What of a ring must stay free: events leave room for enqueue records, and these for the enqueue
 * records of tasks whose order is used up. Exit records may fill the ring as far as enqueue
 * records: a policy that keeps a table of tasks needs to know. User space reads an eighth of the
 * ring before it says so.
 */
#define FREE_FOR_ENQUEUES (RING_BYTES / 2)
#define FREE_FOR_ORDERED (RING_BYTES / 4)

static __always_inline struct queued_task *reserve_record(u32 id, u64 must_stay_free)
{
	u32 key = id & (nr_rings - 1);
	void *to = bpf_map_lookup_elem(&queued, &key);

	if (!to || (must_stay_free &&
		    bpf_ringbuf_query(to, BPF_RB_AVAIL_DATA) > RING_BYTES - must_stay_free))
		return NULL;
	return bpf_ringbuf_reserve(to, sizeof(struct queued_task), 0);
}

/*
 * Must the record that has just been reserved wake the scheduler thread? Counts it, too.
 *
 * Ordering: the addition is a full barrier. User space stores `parked`, passes a full barrier, and
 * reads the producer position, which bpf_ringbuf_reserve() has advanced; so either it sees this
 * record and does not sleep, or it is seen parked here (src/wait.rs).
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
	note_wakeup(ctl);
	return BPF_RB_FORCE_WAKEUP;
}

/*
 * No task waits for an answer to an event, so events wake the scheduler thread only when there are
 * so many, or the first has waited for so long, that reading them pays.
 */
#define UNHEARD_EVENTS 512
#define UNHEARD_NS 20000000ULL

static u64 event_wakeup_flags(struct control *ctl)
{
	/* Since the thread fell asleep. Races lose some, and the next comes soon. */
	static u64 unheard, unheard_since;

	if (!*(volatile u32 *)&ctl->parked) {
		unheard = 0;
		return BPF_RB_NO_WAKEUP;
	}
	if (!unheard)
		unheard_since = bpf_ktime_get_ns();
	if (++unheard < UNHEARD_EVENTS && elapsed_since(unheard_since) < UNHEARD_NS)
		return BPF_RB_NO_WAKEUP;
	unheard = 0;
	note_wakeup(ctl);
	watch_user_space();
	return BPF_RB_FORCE_WAKEUP;
}

__noinline int tell_event(struct task_struct *p __arg_trusted, enum record_kind kind, u64 enq_flags)
{
	struct control *ctl = controls();
	struct task_ctx *tctx;
	struct id_slot *slot;
	struct queued_task *rec;
	u32 id;

	if (!ctl)
		return 0;
	tctx = task_ctx(p);
	id = tctx ? tctx->id : NO_TASK;
	slot = bpf_map_lookup_elem(&id_slots, &id);
	if (!slot || !tctx)
		return 0;
	rec = reserve_record(id, kind == RECORD_EXITED ? FREE_FOR_ORDERED : FREE_FOR_ENQUEUES);
	if (!rec) {
		count(COUNT_EVENTS_LOST);
		return 0;
	}
	rec->kind = kind;
	fill_record(rec, p, tctx, slot->generation, enq_flags);
	bpf_ringbuf_submit(rec, event_wakeup_flags(ctl));
	count(COUNT_EVENTS);
	return 0;
}

/* Something has happened to @p: user space is told, if it wants to hear of such events. */
static void tell(struct task_struct *p, enum record_kind kind, u64 enq_flags)
{
	struct control *ctl = controls();

	if (ctl && ctl->events & (1U << kind))
		tell_event(p, kind, enq_flags);
}

#endif /* METRONOME_RECORDS_H */
