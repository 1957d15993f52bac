/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * No task waits without end for those with earlier deadlines.
 *
 * A DSQ is ordered by deadline, so it does not tell which task has waited longest. Tasks with a
 * deadline far ahead, as light ones have, are therefore noted here in the order of their decisions,
 * too. A CPU that looks for work now and then runs the first of them if it has waited for
 * limits.longest_wait_ns. Most have run by then, and their notes are dropped.
 */
#ifndef METRONOME_LATECOMERS_H
#define METRONOME_LATECOMERS_H

#include "state.h"

/* As many as there are ids. A note that finds no room is not taken. */
#define LATECOMERS_SHIFT 16
_Static_assert(1 << LATECOMERS_SHIFT == MAX_TASKS, "an id fits below the lap");

/* Notes that are dropped at one look at most. */
#define LATECOMERS_LOOK 16

/* A note: the generation above, the lap of the array in the middle, the id below. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << LATECOMERS_SHIFT);
	__type(key, u32);
	__type(value, u64);
} latecomers SEC(".maps");

/* Positions, which only grow: notes are taken at the head and written at the tail. */
static u64 latecomers_head, latecomers_tail;

/* Had the first waited too long? Then there may be more, and CPUs look more often. */
static bool latecomers_overdue;

static u64 *latecomer_at(u64 position)
{
	u32 key = position & ((1 << LATECOMERS_SHIFT) - 1);

	return bpf_map_lookup_elem(&latecomers, &key);
}

/* Never 0, which an unwritten note holds. */
static u64 lap_of(u64 position)
{
	return ((position >> LATECOMERS_SHIFT) % 0xffff + 1) << LATECOMERS_SHIFT;
}

static void note_latecomer(u32 id, u32 generation)
{
	u64 position, *note;

	if (*(volatile u64 *)&latecomers_tail - *(volatile u64 *)&latecomers_head >=
	    1 << LATECOMERS_SHIFT)
		return;
	position = __sync_fetch_and_add(&latecomers_tail, 1);
	note = latecomer_at(position);
	if (note)
		*(volatile u64 *)note = (u64)generation << 32 | lap_of(position) | id;
}

/* The task of a note, with a reference, if it still waits by the enqueue that is meant. */
static struct task_struct *latecomer_of(u64 note)
{
	u32 id = note & ((1 << LATECOMERS_SHIFT) - 1);
	struct id_slot *slot = bpf_map_lookup_elem(&id_slots, &id);
	struct task_struct *p;
	struct task_ctx *tctx;

	if (!slot || !slot->pid || slot->generation != note >> 32)
		return NULL;
	p = bpf_task_from_pid(slot->pid);
	if (!p)
		return NULL;
	tctx = task_ctx(p);
	if (tctx && tctx->id == id && time_before(tctx->start_ts, tctx->enqueued_at))
		return p;
	bpf_task_release(p);
	return NULL;
}

/*
 * The task that is noted first, with a reference, if it has waited too long. The CPU that advances
 * the head has the note. What it read of the note before counts only then.
 */
static struct task_struct *take_latecomer(void)
{
	struct task_struct *p;
	struct task_ctx *tctx;
	u64 head, word, *note;
	u32 i;

	latecomers_overdue = false;
	bpf_for(i, 0, LATECOMERS_LOOK) {
		head = *(volatile u64 *)&latecomers_head;
		note = latecomer_at(head);
		word = note ? *(volatile u64 *)note : 0;
		/* None is left, or its writer is about to write it. */
		if ((word & 0xffffULL << LATECOMERS_SHIFT) != lap_of(head))
			return NULL;
		p = latecomer_of(word);
		tctx = p ? task_ctx(p) : NULL;
		if (tctx && elapsed_since(tctx->enqueued_at) < limits.longest_wait_ns) {
			bpf_task_release(p);
			return NULL;
		}
		if (__sync_val_compare_and_swap(&latecomers_head, head, head + 1) == head && p) {
			latecomers_overdue = true;
			return p;
		}
		if (p)
			bpf_task_release(p);
	}
	return NULL;
}

/* Puts @p from one DSQ to the head of another, which is a CPU's own. */
static bool move_to_head(struct task_struct *p, u64 from, s32 cpu)
{
	struct bpf_iter_scx_dsq it;
	bool moved = false;
	u64 first = 0;

	if (!bpf_iter_scx_dsq_new(&it, from, 0)) {
		scx_bpf_dsq_move_set_vtime(&it,
					   first_vtime(cpu, -1, &first) ? first - 1 : vtime_now);
		note_insert(bpf_ktime_get_ns());
		moved = scx_bpf_dsq_move_vtime(&it, p, cpu, 0);
	}
	bpf_iter_scx_dsq_destroy(&it);
	return moved;
}

/* The task that has waited too long runs on @cpu, or is the next where it may. */
__noinline int move_latecomer_to_local(s32 cpu)
{
	struct task_struct *p = take_latecomer();
	struct task_ctx *tctx;
	bool moved = false;
	u64 vtime;
	s32 to;

	if (!p)
		return false;
	tctx = task_ctx(p);
	to = may_run_on(p, cpu) ? cpu : scx_bpf_task_cpu(p);
	if (tctx) {
		vtime = p->scx.dsq_vtime;
		tctx->in_order = false;
		tctx->is_decided = false;
		moved = move_to_head(p, tctx->waits_on, to) || move_to_head(p, SHARED_DSQ, to);
		if (moved && to == cpu) {
			/* Its own deadline counts again once it runs. */
			tctx->vtime = vtime;
			tctx->has_vtime = true;
		}
	}
	bpf_task_release(p);
	return moved && to == cpu && scx_bpf_dsq_move_to_local(cpu);
}

#endif /* METRONOME_LATECOMERS_H */
