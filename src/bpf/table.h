/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The flow table and the port table, which are one: how a packet finds its
 * flow, how a port is taken and given back.
 *
 * A port is either free, and then in the queue of its source address (struct
 * ports), or it has a flow. A flow that is closing is both: its record still
 * serves late packets while its port rests in the queue, and ends for good when
 * the port is taken again. Who takes a port from the queue owns its record;
 * `retired` says that the port is in the queue, and changes under its lock
 * only, so a port is never there twice.
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
 * Ticks since the flow's last packet. The clock is read last: another CPU may
 * have moved `seen` meanwhile, and a flow from the future is a young one.
 */
static __always_inline __u32 age(const struct flow *flow)
{
	__u32 seen = *(const volatile __u32 *)&flow->seen;
	__u32 ticks = now() - seen;

	return (__s32)ticks < 0 ? 0 : ticks;
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
	__u32 place = flow->service;
	const struct service *service;

	if (!flow->retired)
		return false;
	service = bpf_map_lookup_elem(&services, &place);
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
	if (!backend || backend->port != packet->source_port ||
	    !same_address(backend->address, packet->from) || is_over(flow))
		return NULL;
	packet->slot = slot;
	packet->backend = index;
	return flow;
}

/*
 * The flow ends: its port goes to the end of the queue. `hash` tells that the
 * record still is of the flow that the caller means.
 */
static __always_inline void retire_flow(struct flow *flow, __u32 slot,
					__u32 hash)
{
	__u32 source = slot >> PORT_BITS;
	struct ports *queue = bpf_map_lookup_elem(&ports, &source);
	__u32 tick = now();
	__u32 backend = 0;
	bool retires;

	if (!queue)
		return;
	bpf_spin_lock(&queue->lock);
	retires = !flow->retired && flow->hash == hash;
	if (retires) {
		backend = flow->backend;
		flow->retired = true;
		flow->seen = tick;
		queue->port[queue->tail++ % PORTS] = slot;
	}
	bpf_spin_unlock(&queue->lock);
	if (retires)
		count_flow_ended(backend);
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

/*
 * A closing flow whose client begins anew: no packet finds it any more, and
 * its place in the bucket is the next one's.
 */
static __always_inline void forget_flow(const struct packet *packet,
					struct flow *flow)
{
	__u32 source = packet->slot >> PORT_BITS;
	struct ports *queue = bpf_map_lookup_elem(&ports, &source);

	if (!queue)
		return;
	bpf_spin_lock(&queue->lock);
	if (flow->retired && flow->hash == packet->hash)
		flow->family = 0;
	bpf_spin_unlock(&queue->lock);
	unlink_flow(flow, packet->slot, packet->hash, true);
}

/*
 * Retires the flow in a slot if its time is over. Functions that are not static
 * are walked by the verifier once for any arguments, not once for each call.
 */
__noinline int expire_flow(__u32 slot, bool pressed)
{
	struct flow *flow = flow_at(slot);
	const struct service *service;
	__u32 place, timeout, hash;

	if (!flow)
		return 0;
	/* First, as claim_flow writes it last: what follows is of this flow. */
	hash = *(const volatile __u32 *)&flow->hash;
	barrier();
	if (!flow->family || flow->retired)
		return 0;
	place = flow->service;
	service = bpf_map_lookup_elem(&services, &place);
	if (!service)
		return 0;
	if (flow->state == FLOW_ESTABLISHED)
		timeout = service->established;
	else /* where ports are short, these go first */
		timeout = service->unanswered >> (pressed ? 2 : 0);
	if (age(flow) > timeout)
		retire_flow(flow, slot, hash);
	return 0;
}

/* Looks at the next slots of a source address for flows whose time is over. */
__noinline int sweep(__u32 source, __u32 slots, bool pressed)
{
	struct ports *queue = bpf_map_lookup_elem(&ports, &source);
	__u32 hand;

	if (!queue)
		return 0;
	/* Two CPUs that read the same hand look twice: that does no harm. */
	hand = queue->hand;
	queue->hand = hand + slots;
	for (__u32 i = 0; i < SWEEP_ROUND && i < slots; i++)
		expire_flow(source << PORT_BITS | (hand + i) % PORTS, pressed);
	return 0;
}

/* Takes the port that has rested longest; 0: none is free. */
static __always_inline __u32 take_port(__u32 source)
{
	struct ports *queue = bpf_map_lookup_elem(&ports, &source);
	__u32 port = 0;

	if (!queue)
		return 0;
	bpf_spin_lock(&queue->lock);
	if (queue->head != queue->tail)
		port = queue->port[queue->head++ % PORTS];
	bpf_spin_unlock(&queue->lock);
	return port;
}

/* Makes the record of a port just taken the caller's own, and empties it. */
static __always_inline void claim_flow(struct flow *flow, __u32 slot,
				       __u32 hash)
{
	__u32 source = slot >> PORT_BITS;
	struct ports *queue = bpf_map_lookup_elem(&ports, &source);
	bool was_used = flow->state != FLOW_NONE;
	__u32 tick = now();
	__u32 old_hash;

	if (!queue)
		return;
	bpf_spin_lock(&queue->lock);
	old_hash = flow->hash;
	flow->family = 0;
	flow->seen = tick;
	barrier();
	flow->hash = hash;
	flow->retired = false;
	bpf_spin_unlock(&queue->lock);
	if (was_used)
		unlink_flow(flow, slot, old_hash, false);
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
