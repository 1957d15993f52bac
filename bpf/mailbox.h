/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel's side of a mailbox of decisions; src/mailbox.rs is the other.
 */
#ifndef METRONOME_MAILBOX_H
#define METRONOME_MAILBOX_H

#include "kernel.h"
#include "abi.h"

/*
 * Takes the decision at the head of a mailbox, if there is one. Several CPUs may try at once; the
 * slot belongs to the one that advances head.
 *
 * Ordering: `seq` holds the position only after user space stored the rest of the slot
 * (store-release in mailbox.rs). The compare-and-swap on head is a full barrier between reading seq
 * and reading the rest, the swap on seq one between that and giving the slot back.
 */
static __always_inline bool take(u64 *head, struct decision *slots, u32 nr_slots,
				 struct decision *taken)
{
	u64 position = *(volatile u64 *)head;
	struct decision *slot = &slots[position & (nr_slots - 1)];

	if (*(volatile u64 *)&slot->seq != position + 1)
		return false;
	if (__sync_val_compare_and_swap(head, position, position + 1) != position)
		return false;

	taken->id = slot->id;
	taken->generation = slot->generation;
	taken->slice_ns = slot->slice_ns;
	taken->vtime = slot->vtime;
	taken->flags = slot->flags;
	taken->seen_at = slot->seen_at;
	taken->decided_at = slot->decided_at;
	__sync_lock_test_and_set(&slot->seq, 0);
	return true;
}

/* Sets *@vtime to the deadline of the first decision in a mailbox, if there is one. */
static __always_inline bool first_mail_vtime(u64 *head, struct decision *slots, u32 nr_slots,
					     u64 *vtime)
{
	u64 position = *(volatile u64 *)head;
	struct decision *slot = &slots[position & (nr_slots - 1)];

	if (*(volatile u64 *)&slot->seq != position + 1)
		return false;
	/*
	 * If a CPU takes it and user space fills the slot again meanwhile, this is the deadline of
	 * the new one: as good.
	 */
	*vtime = *(volatile u64 *)&slot->vtime;
	return true;
}

#endif /* METRONOME_MAILBOX_H */
