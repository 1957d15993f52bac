/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How long each stage of a task's way takes, for one wake-up in 256. All that is known of one of
 * them is put into the histograms of the CPU that runs the task, when it does, so that all stages
 * are of the same tasks. A task that is run without its decision, or in another class, is not in
 * them.
 */
#ifndef METRONOME_LATENCY_H
#define METRONOME_LATENCY_H

#include "state.h"

/*
 * The same as in src/latency.rs. Wake-ups that alternate between two kinds are sampled alike: the
 * hits are not periodic.
 */
static __always_inline bool is_sampled(u32 number)
{
	return number * SAMPLE_FACTOR >> SAMPLE_SHIFT == 0;
}

/* @generation of the enqueue, 0 for a standing order; @number tells it from the others. */
static __always_inline void begin_sample(struct task_ctx *tctx, u32 generation, u32 number)
{
	tctx->sample.since = 0;
	if (!is_sampled(number))
		return;
	tctx->sample.since = bpf_ktime_get_ns();
	tctx->sample.generation = generation;
	tctx->sample.drained_at = 0;
}

/* A CPU has taken @decision out of a mailbox, and is about to carry it out. */
static __always_inline void sample_drained(struct task_ctx *tctx, const struct decision *decision)
{
	struct sample *sample = &tctx->sample;

	if (!sample->since || sample->generation != decision->generation || !decision->seen_at)
		return;
	sample->seen_at = decision->seen_at;
	sample->decided_at = decision->decided_at;
	sample->drained_at = bpf_ktime_get_ns();
}

static u32 bucket_of(u64 ns)
{
	u64 rest = ns;
	u32 log = 0;

	if (ns < 8)
		return ns;
	if (ns >> 34)
		return LATENCY_BUCKETS - 1;
	if (rest >> 32) {
		log += 32;
		rest >>= 32;
	}
	if (rest >> 16) {
		log += 16;
		rest >>= 16;
	}
	if (rest >> 8) {
		log += 8;
		rest >>= 8;
	}
	if (rest >> 4) {
		log += 4;
		rest >>= 4;
	}
	if (rest >> 2) {
		log += 2;
		rest >>= 2;
	}
	if (rest >> 1)
		log += 1;
	return (log - 2) * 8 + (ns >> (log - 3) & 7);
}

/*
 * A task took @ns for a stage; stamps of user space may make it negative. Not static, so that it is
 * verified by itself and not again wherever it is called.
 */
__noinline int add_latency(enum stage stage, s64 ns)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct cpu_latency *latency = bpf_map_lookup_elem(&latencies, &cpu);
	u32 bucket = bucket_of(ns < 0 ? 0 : ns) & (LATENCY_BUCKETS - 1);

	/* Interrupts are off in running(), so no other code writes this CPU's histograms. */
	if (latency && stage < NR_STAGES)
		latency->stages[stage].buckets[bucket]++;
	return 0;
}

/* The task runs. */
static void end_sample(struct task_ctx *tctx)
{
	struct sample *sample = &tctx->sample;
	u64 now = bpf_ktime_get_ns();

	if (!sample->generation) {
		add_latency(STAGE_ORDERED, now - sample->since);
	} else if (sample->drained_at) {
		add_latency(STAGE_SEEN, sample->seen_at - sample->since);
		add_latency(STAGE_DECIDED, sample->decided_at - sample->seen_at);
		add_latency(STAGE_DRAINED, sample->drained_at - sample->decided_at);
		add_latency(STAGE_RUNNING, now - sample->drained_at);
		add_latency(STAGE_WHOLE, now - sample->since);
	}
	sample->since = 0;
}

#endif /* METRONOME_LATENCY_H */
