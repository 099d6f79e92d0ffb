/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counters, per CPU. Each packet is counted once by its outcome, at the single
 * exit; so received = passed + sent + dropped holds by construction.
 */
#ifndef __XDP_PROXY_STATS_H__
#define __XDP_PROXY_STATS_H__

#include "packet.h"

static __always_inline struct backend_counters *counters_of(__u32 backend)
{
	return bpf_map_lookup_elem(&backend_counters, &backend);
}

/* How many flows a backend has, for least-connections; NULL: nobody asks. */
static __always_inline __u64 *load_of(__u32 backend)
{
	return counts_loads ? bpf_map_lookup_elem(&loads, &backend) : NULL;
}

static __always_inline void count_flow_begun(__u32 backend)
{
	struct backend_counters *counters = counters_of(backend);
	__u64 *load = load_of(backend);

	if (counters)
		counters->flows_begun++;
	if (load)
		__sync_fetch_and_add(load, 1);
}

static __always_inline void count_flow_ended(__u32 backend)
{
	struct backend_counters *counters = counters_of(backend);
	__u64 *load = load_of(backend);

	if (counters)
		counters->flows_ended++;
	if (load)
		__sync_fetch_and_add(load, -1);
}

/* What a flow has had, from its begin on; NULL: nobody asks. */
static __always_inline struct flow_counters *counters_in_flow(__u32 slot)
{
	__u32 source = slot >> PORT_BITS, port = slot % PORTS;
	void *table;

	if (!counts_in_flows)
		return NULL;
	if (!several_sources)
		return bpf_map_lookup_elem(&flow_counters, &slot);
	table = bpf_map_lookup_elem(&counter_tables, &source);
	return table ? bpf_map_lookup_elem(table, &port) : NULL;
}

static __always_inline void begin_counting(__u32 slot)
{
	struct flow_counters *counters = counters_in_flow(slot);
	__u64 begun;

	if (!counters)
		return;
	begun = (__u32)bpf_jiffies64() ?: 1;
	counters->forwarded_packets = begun >> 16 << 48;
	counters->forwarded_bytes = 0;
	counters->returned_packets = begun << 48;
	counters->returned_bytes = 0;
}

/* Two CPUs that have packets of one direction at once may count one for two. */
static __always_inline void count_in_flow(const struct packet *packet,
					  enum outcome outcome)
{
	struct flow_counters *counters = counters_in_flow(packet->slot);

	if (counters && outcome == OUTCOME_FORWARDED) {
		counters->forwarded_packets++;
		counters->forwarded_bytes += packet->frame_bytes;
	} else if (counters) {
		counters->returned_packets++;
		counters->returned_bytes += packet->frame_bytes;
	}
}

/* Counts the packet and turns its outcome into the kernel's verdict. */
static __always_inline int account(const struct packet *packet,
				   enum outcome outcome)
{
	__u32 key = outcome;
	__u64 *counter = bpf_map_lookup_elem(&outcome_counters, &key);

	if (counter)
		(*counter)++;
	if (outcome == OUTCOME_FORWARDED || outcome == OUTCOME_RETURNED) {
		struct backend_counters *of_backend =
			counters_of(packet->backend);

		if (of_backend && outcome == OUTCOME_FORWARDED) {
			of_backend->forwarded_packets++;
			of_backend->forwarded_bytes += packet->frame_bytes;
		} else if (of_backend) {
			of_backend->returned_packets++;
			of_backend->returned_bytes += packet->frame_bytes;
		}
		count_in_flow(packet, outcome);
	}
	if (outcome <= OUTCOME_PASSED)
		return XDP_PASS;
	return outcome <= OUTCOME_SENT_LAST ? XDP_TX : XDP_DROP;
}

#endif /* __XDP_PROXY_STATS_H__ */
