/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the kernel side counts, a line for each counter: its name and what it counts. abi.h makes
 * `enum counter` of this list, build.rs the Rust types `Counter` and `Snapshot`, and the command
 * its statistics. Also of a task that was taken back the decision comes, and counts as rescued.
 */
COUNTER(QUEUED, "enqueue records sent to user space")
COUNTER(RING_FULL, "tasks that found the ring full and went on without user space")
COUNTER(DIRECT, "wake-ups sent to an idle CPU at once")
COUNTER(KERNEL_SIDE, "tasks that are the kernel side's own business")
COUNTER(NO_ID, "tasks beyond the number of task ids")
COUNTER(DISPATCHED, "decisions carried out")
COUNTER(STALE, "decisions for an enqueue that is over")
COUNTER(TOO_LATE, "decisions for a task that has exited")
COUNTER(RESCUED, "decisions for a task that the kernel side had run, or lost to another class")
COUNTER(BOUNCED, "of those carried out, on another CPU, as affinity demanded")
COUNTER(TAKEN_BACK, "tasks that user space was asked about and the kernel side ran by itself")
COUNTER(TURNS, "times that a CPU looked for work")
COUNTER(ORDERED, "wake-ups for which a standing order was carried out")
COUNTER(HANDED_OFF, "of these, tasks that were handed their waker's CPU")
COUNTER(PREEMPTED, "of these, tasks that displaced another")
COUNTER(USED_UP, "enqueue records of tasks whose standing order was used up")
COUNTER(BAD_ORDERS, "orders of which something was ignored")
COUNTER(EVENTS, "records that were no enqueue records")
COUNTER(EVENTS_LOST, "events that found the ring half full")
COUNTER(LATE, "times that user space was found late, and fallback began")
COUNTER(FALLBACK, "tasks about which it was therefore not asked")
COUNTER(IN_TURN, "tasks that took turns by their standing order")
