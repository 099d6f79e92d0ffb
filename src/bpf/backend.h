/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which backend a new flow goes to. Userspace computes the look-up tables from
 * the backends that can be reached (src/maglev.rs), so that the choice is one
 * hash and one load.
 */
#ifndef __XDP_PROXY_BACKEND_H__
#define __XDP_PROXY_BACKEND_H__

#include "ports.h"

/* The same on every load balancer, so that all of them choose alike. */
#define MAGLEV_SEED 0x78647070726f7879ULL

/* Sets backend; NULL: nobody can take the flow. */
static __always_inline struct backend *pick_backend(struct packet *packet)
{
	__u32 place = packet->service;
	const struct service *service = bpf_map_lookup_elem(&services, &place);
	const struct maglev *table;
	__u32 key, index;
	__u64 entry;

	if (!service)
		return NULL;
	key = service->maglev;
	table = bpf_map_lookup_elem(&maglevs, &key);
	if (!table)
		return NULL;
	/* 32 bits scaled to the table (Lemire, arXiv:1805.10941). */
	entry = (tuple_hash(packet, MAGLEV_SEED) >> 32) * MAGLEV_ENTRIES >> 32;
	/*
	 * clang 14 knows that this is below and drops the check, without which
	 * the verifier of 5.10 and 6.1 refuses (r2 *= 65537; r2 >>= 31;
	 * r2 &= 262142; r0 += r2): "R0 max value is outside of the allowed
	 * memory range".
	 */
	barrier_var(entry);
	if (entry >= MAGLEV_ENTRIES)
		return NULL;
	index = table->backend[entry];
	packet->backend = index;
	return index ? bpf_map_lookup_elem(&backends, &index) : NULL;
}

#endif /* __XDP_PROXY_BACKEND_H__ */
