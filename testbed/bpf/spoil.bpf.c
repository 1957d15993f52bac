// SPDX-License-Identifier: GPL-2.0-only
/*
 * Writes arbitrary records into a ring of the scheduler that is loaded, the only way
 * there is into it: tests/kernel/corrupt.rs.
 */
#include "../../bpf/kernel.h"
#include "../../bpf/abi.h"

char _license[] SEC("license") = "GPL";

/* The scheduler's own takes its place before loading. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} ring SEC(".maps");

SEC("syscall")
int write_record(struct queued_task *bytes)
{
	struct queued_task *record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);

	if (!record)
		return -ENOMEM;
	*record = *bytes;
	bpf_ringbuf_submit(record, BPF_RB_FORCE_WAKEUP);
	return 0;
}

/* The same bytes but the last eight: their length is not that of any record. */
SEC("syscall")
int write_short_record(struct queued_task *bytes)
{
	u64 *record = bpf_ringbuf_reserve(&ring, sizeof(*bytes) - sizeof(u64), 0);

	if (!record)
		return -ENOMEM;
	__builtin_memcpy(record, bytes, sizeof(*bytes) - sizeof(u64));
	bpf_ringbuf_submit(record, BPF_RB_FORCE_WAKEUP);
	return 0;
}
