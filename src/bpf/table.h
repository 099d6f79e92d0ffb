/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The flow table: how a packet finds its flow. A client's by the bucket that the
 * hash of its tuple names, a backend's by its destination port.
 */
#ifndef __XDP_PROXY_TABLE_H__
#define __XDP_PROXY_TABLE_H__

#include "stats.h"
#include "service.h"

/* The kernel's own clock tick: the verifier inlines it, one load (1 ns). */
static __always_inline __u32 now(void)
{
	return bpf_jiffies64();
}

/*
 * Ticks since something was seen. The clock is read last: another CPU may have
 * moved `seen` meanwhile, and what is from the future is young.
 */
static __always_inline __u32 ticks_since(const __u32 *seen)
{
	__u32 then = *(const volatile __u32 *)seen;
	__u32 ticks = now() - then;

	return (__s32)ticks < 0 ? 0 : ticks;
}

static __always_inline __u32 age(const struct flow *flow)
{
	return ticks_since(&flow->seen);
}

/*
 * Whether the record still is of the flow that was found in it. Asked when all
 * of it was used: who takes a record writes its hash before the rest.
 */
static __always_inline bool is_still_of(const struct flow *flow, __u32 hash)
{
	barrier();
	return *(const volatile __u32 *)&flow->hash == hash;
}

static __always_inline struct flow *flow_at(__u32 slot)
{
	return bpf_map_lookup_elem(&flows, &slot);
}

/* Of the client's tuple; the seed keeps its buckets unknown to clients. */
static __always_inline __u64 tuple_hash(const struct packet *packet, __u64 seed)
{
	__u64 tuple = (__u64)packet->from[0] << 32 |
		      (__u32)packet->source_port << 16 | packet->dest_port;

	if (is_ipv6(packet))
		tuple ^= mix(
			mix(((__u64)packet->from[1] << 32 | packet->from[2]) ^
			    seed) +
			packet->from[3]);
	return mix(tuple ^ seed ^ (__u64)packet->vip << 8 ^ packet->protocol);
}

static __always_inline bool is_flow_of_client(const struct flow *flow,
					      const struct packet *packet)
{
	return flow->family == packet->family &&
	       flow->protocol == packet->protocol && flow->vip == packet->vip &&
	       flow->client_port == packet->source_port &&
	       flow->service_port == packet->dest_port &&
	       same_address(flow->client, packet->from);
}

/* Long finished, though its port was not needed again. */
static __always_inline bool is_over(const struct flow *flow)
{
	const struct service *service;

	if (!flow->retired)
		return false;
	service = service_of(flow->service);
	return !service || age(flow) > service->closing;
}

/* The flow of a packet that a client sent, from the bucket of its hash. */
static __always_inline struct flow *find_flow_of_client(struct packet *packet)
{
	__u32 key = packet->hash & bucket_mask;
	struct bucket *bucket = bpf_map_lookup_elem(&buckets, &key);

	if (!bucket)
		return NULL;
	packet->insertions = *(volatile __u32 *)&bucket->insertions;
	for (int i = 0; i < BUCKET_ENTRIES; i++) {
		__u32 entry = *(volatile __u32 *)&bucket->entry[i];
		struct flow *flow;

		if ((entry ^ packet->hash) & ~SLOT_MASK)
			continue;
		flow = flow_at(entry & SLOT_MASK);
		if (flow && is_flow_of_client(flow, packet)) {
			packet->slot = entry & SLOT_MASK;
			return flow;
		}
	}
	return NULL;
}

/* The port that the flow's packets reach the backend on. */
static __always_inline __be16 backend_port(const struct backend *backend,
					   const struct flow *flow)
{
	if (serves_port_ranges && !backend->port)
		return flow->service_port;
	return backend->port;
}

/* The flow of a packet that a backend sent: its port is the flow's slot. */
static __always_inline struct flow *find_flow_of_backend(struct packet *packet)
{
	__u32 slot = (__u32)(packet->source - 1) << PORT_BITS |
		     bpf_ntohs(packet->dest_port);
	const struct backend *backend;
	struct flow *flow;
	__u32 index;

	if (!packet->source)
		return NULL;
	flow = flow_at(slot);
	if (!flow)
		return NULL;
	/* First: it tells later whether the record still is of this flow. */
	packet->hash = *(const volatile __u32 *)&flow->hash;
	barrier();
	if (flow->family != packet->family ||
	    flow->protocol != packet->protocol)
		return NULL;
	index = flow->backend;
	backend = bpf_map_lookup_elem(&backends, &index);
	if (!backend || backend_port(backend, flow) != packet->source_port ||
	    !same_address(backend->address, packet->from) || is_over(flow))
		return NULL;
	packet->slot = slot;
	packet->backend = index;
	return flow;
}

/*
 * Takes the flow that rested on a port out of its bucket; not where the port
 * was taken meanwhile, if `rests`: then the entry may be the next flow's.
 */
static __always_inline void unlink_flow(const struct flow *flow, __u32 slot,
					__u32 hash, bool rests)
{
	__u32 entry = (hash & ~SLOT_MASK) | slot;
	__u32 key = hash & bucket_mask;
	struct bucket *bucket = bpf_map_lookup_elem(&buckets, &key);

	if (!bucket)
		return;
	bpf_spin_lock(&bucket->lock);
	if (!rests || *(const volatile __u8 *)&flow->retired)
		for (int i = 0; i < BUCKET_ENTRIES; i++)
			if (bucket->entry[i] == entry)
				bucket->entry[i] = 0;
	bpf_spin_unlock(&bucket->lock);
}

enum link_result { LINKED, LINK_RACED, LINK_FULL };

/*
 * Makes a filled record findable, unless the bucket has grown since it was
 * searched for this tuple: then another CPU may have made the same flow.
 */
static __always_inline enum link_result link_flow(struct packet *packet)
{
	__u32 entry = (packet->hash & ~SLOT_MASK) | packet->slot;
	__u32 key = packet->hash & bucket_mask;
	struct bucket *bucket = bpf_map_lookup_elem(&buckets, &key);
	enum link_result result = LINK_FULL;

	if (!bucket)
		return LINK_FULL;
	bpf_spin_lock(&bucket->lock);
	if (bucket->insertions != packet->insertions) {
		result = LINK_RACED;
	} else {
		for (int i = 0; i < BUCKET_ENTRIES; i++)
			if (!bucket->entry[i]) {
				bucket->entry[i] = entry;
				bucket->insertions++;
				result = LINKED;
				break;
			}
	}
	bpf_spin_unlock(&bucket->lock);
	return result;
}

#endif /* __XDP_PROXY_TABLE_H__ */
