// SPDX-License-Identifier: GPL-2.0-only
/*
 * A scheduler without a single op: the kernel serves all tasks in the order of their arrival. What
 * it costs is the price of the class itself (vm/price).
 */
#include "../../bpf/kernel.h"

char _license[] SEC("license") = "GPL";

SEC(".struct_ops.link")
struct sched_ext_ops bare = {
	.name = "bare",
};
