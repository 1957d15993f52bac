/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Control groups: what a task's weight is worth beside those of other groups.
 *
 * The runnable tasks of a group share what the group gets by their weights, and so do the groups of
 * a group that have any, by cpu.weight. So the share of a task is its weight, times weight /
 * runnable of its group and of all groups above: what its weight would be worth if there were no
 * groups. Tasks take turns by it (turns.h). Where there are no groups it is the weight.
 */
#ifndef METRONOME_GROUPS_H
#define METRONOME_GROUPS_H

#include "state.h"

/* Control groups that are told apart. A task of one more counts as one of the group above. */
#define MAX_GROUPS 4096
#define ROOT_GROUP 0

/* Levels of groups that are told apart, likewise. */
#define GROUP_LEVELS 16

/*
 * Cgroups at most: the memory controller allows no more (MEM_CGROUP_ID_MAX in the kernel's
 * mm/memcontrol.c).
 */
#define MAX_CGROUPS 65536

/* How old what is known of a task's share may be. */
#define SHARE_NS 1000000ULL

struct group {
	/* The weights of its runnable tasks, and of its groups that have any. */
	u64 runnable;
	/* What of it is in the runnable of the group above: its weight, or 0. */
	u64 counted;
	u32 weight;
	u32 parent;
	u64 id; /* of the cgroup; 0: it is free */
	u64 pad[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_GROUPS);
	__type(key, u32);
	__type(value, struct group);
} groups SEC(".maps");

/* From the id of a cgroup to its place among the groups. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_CGROUPS);
	__type(key, u64);
	__type(value, u32);
} group_places SEC(".maps");

static struct group *group_at(u32 place)
{
	return bpf_map_lookup_elem(&groups, &place);
}

/* What is not known counts as the root. */
static u32 place_of(struct cgroup *cgrp)
{
	u64 id = cgrp->kn->id;
	u32 *place = bpf_map_lookup_elem(&group_places, &id);

	return place ? *place : ROOT_GROUP;
}

/*
 * Makes what @group adds to the group above agree with whether it has runnable tasks. Returns by
 * how much that has changed.
 *
 * Ordering: each swap is a full barrier, and so is the addition to `runnable` before the call. Of
 * two CPUs that disagree, the one that swaps last sees the other's addition, and swaps again.
 */
static s64 settle(struct group *group)
{
	s64 change = 0;
	u32 i;

	bpf_for(i, 0, 8) {
		u64 due = *(volatile u64 *)&group->runnable ? *(volatile u32 *)&group->weight : 0;

		change += due - __sync_lock_test_and_set(&group->counted, due);
		if (due ==
		    (*(volatile u64 *)&group->runnable ? *(volatile u32 *)&group->weight : 0))
			break;
	}
	return change;
}

/* `runnable` of the root, the scheduler thread aside. */
static u64 runnable_weight;

/* So much more weight is runnable in a group that is not the root. */
__noinline int count_in_group(u32 place, s64 weight)
{
	struct group *group;
	u32 i;

	bpf_for(i, 0, GROUP_LEVELS) {
		group = group_at(place);
		if (!group)
			break;
		add_and_order(&group->runnable, weight);
		weight = settle(group);
		if (!weight)
			break;
		place = group->parent;
		if (place == ROOT_GROUP) {
			__sync_fetch_and_add(&runnable_weight, weight);
			break;
		}
	}
	return 0;
}

static void count_runnable(u32 place, s64 weight)
{
	if (place == ROOT_GROUP)
		__sync_fetch_and_add(&runnable_weight, weight);
	else
		count_in_group(place, weight);
}

/* A runnable task adds so much to its group from now on; 0 as it goes to sleep. */
static void count_weight(struct task_ctx *tctx, u32 weight)
{
	count_runnable(tctx->group, (s64)weight - tctx->counted_weight);
	tctx->counted_weight = weight;
}

/* What a weight is worth in a group that is not the root. */
__noinline u64 share_in(u32 place, u32 weight)
{
	u64 share = (u64)weight * SHARE * SHARE, runnable;
	struct group *group;
	u32 i;

	bpf_for(i, 0, GROUP_LEVELS) {
		group = place == ROOT_GROUP ? NULL : group_at(place);
		if (!group)
			break;
		runnable = *(volatile u64 *)&group->runnable;
		/* Alone it has all that the group gets. */
		share = share * group->weight / (runnable > weight ? runnable : weight);
		weight = group->weight;
		place = group->parent;
	}
	return share / SHARE ?: 1;
}

/* The share of @p, as of a moment ago. */
static u64 share_of(struct task_struct *p, struct task_ctx *tctx)
{
	u32 weight = p->scx.weight ?: 100;
	u64 now;

	if (tctx->group == ROOT_GROUP)
		return (u64)weight * SHARE;
	now = bpf_ktime_get_ns();
	if (!tctx->share || !time_before(now, tctx->share_at + SHARE_NS)) {
		tctx->share_at = now;
		tctx->share = share_in(tctx->group, weight);
	}
	return tctx->share;
}

/* CPU time, scaled by the task's share. */
static u64 shared_time(struct task_struct *p, struct task_ctx *tctx, u64 runtime)
{
	return runtime * 100 * SHARE / share_of(p, tctx);
}

/* The same, or by its weight alone if user space has named its deadline. */
static u64 scaled_time(struct task_struct *p, struct task_ctx *tctx, u64 runtime)
{
	return tctx->in_turn ? shared_time(p, tctx, runtime) : virtual_time(p, runtime);
}

/* A task belongs to another group. */
static void move_to_group(struct task_ctx *tctx, struct cgroup *cgrp)
{
	u32 counted = tctx->counted_weight;

	count_weight(tctx, 0);
	tctx->group = place_of(cgrp);
	tctx->share = 0;
	count_weight(tctx, counted);
}

/*
 * A place that no group has; ROOT_GROUP: there is none. The caller holds cgroup_mutex, as all ops
 * about groups do.
 */
static u32 find_place(void)
{
	static u32 last;
	struct group *group;
	u32 i, place;

	bpf_for(i, 0, MAX_GROUPS) {
		place = (last + 1 + i) % MAX_GROUPS;
		group = group_at(place);
		if (group && !group->id && place != ROOT_GROUP) {
			last = place;
			return place;
		}
	}
	return ROOT_GROUP;
}

static u32 place_above(struct cgroup *cgrp)
{
	struct cgroup *above = bpf_cgroup_ancestor(cgrp, cgrp->level - 1);
	u32 place;

	if (!above)
		return ROOT_GROUP;
	place = place_of(above);
	bpf_cgroup_release(above);
	return place;
}

/* The cgroups that are there, each after the one above, and later those that come. */
SEC("struct_ops.s/cgroup_init")
s32 BPF_PROG(metronome_cgroup_init, struct cgroup *cgrp, struct scx_cgroup_init_args *args)
{
	u64 id = cgrp->kn->id;
	struct group *group;
	u32 place, above;

	if (is_flat || !cgrp->level)
		return 0;
	above = place_above(cgrp);
	place = cgrp->level <= GROUP_LEVELS ? find_place() : ROOT_GROUP;
	group = group_at(place);
	if (group && place != ROOT_GROUP) {
		group->id = id;
		group->parent = above;
		group->weight = args->weight;
	} else {
		place = above;
	}
	/* One that is not known would count as the root: rather there is no such cgroup. */
	return bpf_map_update_elem(&group_places, &id, &place, 0);
}

SEC("struct_ops/cgroup_exit")
void BPF_PROG(metronome_cgroup_exit, struct cgroup *cgrp)
{
	u64 id = cgrp->kn->id;
	struct group *group = group_at(place_of(cgrp));

	bpf_map_delete_elem(&group_places, &id);
	if (group && group->id == id)
		group->id = 0;
}

SEC("struct_ops/cgroup_set_weight")
void BPF_PROG(metronome_cgroup_set_weight, struct cgroup *cgrp, u32 weight)
{
	u64 id = cgrp->kn->id;
	struct group *group = group_at(place_of(cgrp));
	s64 change;

	if (!group || group->id != id)
		return;
	group->weight = weight;
	change = settle(group);
	if (change)
		count_runnable(group->parent, change);
}

SEC("struct_ops/cgroup_move")
void BPF_PROG(metronome_cgroup_move, struct task_struct *p, struct cgroup *from, struct cgroup *to)
{
	struct task_ctx *tctx = task_ctx(p);

	if (tctx)
		move_to_group(tctx, to);
}

#endif /* METRONOME_GROUPS_H */
