/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Standing orders: what user space wants done with a task when it wakes, decided ahead (src/orders.rs has the layout).
 *
 * A task with an order goes to an idle CPU, or is handed its waker's, or waits on URGENT_DSQ by deadline, which is served
 * before all else, and displaces a running task if its order says so. User space is told, not asked.
 *
 * The limits are ours: an order holds for so much CPU time since the task last slept; a chain of hand-offs may keep a CPU
 * for HAND_OFF_NS; whoever waits without an order gets a CPU for PROTECTED_NS after URGENT_NS of nothing but urgent tasks.
 */
#ifndef METRONOME_ORDERS_H
#define METRONOME_ORDERS_H

#define ORDER_UNIT_NS 16000
#define ORDER_UNITS 0xfffULL
#define ORDER_BIRTH(order) ((order) & ORDER_UNITS)
#define ORDER_LATENCY_NS(order) (((order) >> 12 & ORDER_UNITS) * ORDER_UNIT_NS)
#define ORDER_SLICE_NS(order) (((order) >> 24 & ORDER_UNITS) * ORDER_UNIT_NS)
#define ORDER_BUDGET_NS(order) (((order) >> 36 & ORDER_UNITS) * ORDER_UNIT_NS)
#define ORDER_CPU(order) ((u32)((order) >> 48 & 0x3ff))
#define ORDER_VALID (1ULL << 58)
#define ORDER_PREEMPT (1ULL << 59)
#define ORDER_HAND_OFF (1ULL << 60)
#define ORDER_PREFERS (1ULL << 61)
#define ORDER_INHERIT (1ULL << 62)

/* A running task with an order gives way only to a deadline that is earlier by this. */
#define PREEMPT_MARGIN_NS 500000
#define HAND_OFF_NS 3000000
#define URGENT_NS 20000000
#define PROTECTED_NS 1000000

/* CPUs looked at for one that can be preempted. */
#define PREEMPT_SEARCH 64

#endif /* METRONOME_ORDERS_H */
