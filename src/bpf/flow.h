/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A flow's life: how it begins, and what its packets tell of its state (track.h).
 */
#ifndef __XDP_PROXY_FLOW_H__
#define __XDP_PROXY_FLOW_H__

#include "backend.h"
#include "check.h"
#include "checksum.h"
#include "route.h"

/*
 * ~m + m' over both addresses, and over both ports, on the way to the backend;
 * what is subtracted is added as its complement.
 */
static __always_inline void set_deltas(struct flow *flow,
				       const struct packet *packet,
				       const struct backend *backend,
				       const __be32 *source, __be16 source_port)
{
	__u16 old_addresses =
		fold(address_sum(packet->from) + address_sum(packet->to));

	flow->address_delta = fold((__u16)~old_addresses + address_sum(source) +
				   address_sum(backend->address));
	flow->port_delta = fold((__u32)(__u16)~packet->source_port +
				(__u16)~packet->dest_port + source_port +
				backend_port(backend, flow));
}

/* How a slot is found, each where the one before has found none. */
enum search {
	SEARCH_FREE, /* one that is free, or an unconfirmed flow's of a crowd */
	SEARCH_PRESSED, /* the same, once flows nearby have ended whose time is over */
	SEARCH_IDLE, /* the one of the flow that was idle for longest */
};

/*
 * Finds a slot of one of the addresses that the service sends from: the source and
 * the steps to its group. None: the steps are STEPS.
 */
static __always_inline __u32 find_slot(const struct packet *packet,
				       const struct backend *backend,
				       __u32 *source, enum search search)
{
	const struct service *service = service_of(packet->service);
	__u32 steps = STEPS;

	if (!service)
		return STEPS;
	for (__u32 i = 0; i < SOURCES && steps >= STEPS; i++) {
		__u32 count = service->source_count, nth;

		if (i && i >= count)
			break;
		/* From the one on where it is looked for first. */
		nth = source_turn(packet->hash, count ?: 1) + i;
		nth = nth < count ? nth : nth - count;
		*source = count ? service->source[nth % SOURCES] :
				  backend->source;
		if (!i && search == SEARCH_FREE &&
		    is_roomy_home(packet, *source))
			return 0;
		if (search == SEARCH_PRESSED)
			expire_nearby(*source, packet->hash);
		if (search == SEARCH_IDLE)
			steps = evict_idlest(*source, packet->hash);
		else
			steps = find_room(*source, packet->hash);
	}
	return steps;
}

/*
 * A first packet that no flow was found for: picks a backend and a port, and
 * sets slot. A function of its own, which the verifier walks once.
 */
__noinline int begin_flow(struct xdp_md *ctx)
{
	const struct ethhdr *eth = frame_at(ctx, 0, sizeof(*eth));
	struct packet *packet = packet_at_hand();
	const struct ip_address *address;
	const struct backend *backend;
	__u32 source = 0, steps;
	struct flow *flow;

	if (!packet || !eth)
		return OUTCOME_REFUSED_NO_BACKEND;
	if (is_martian())
		return OUTCOME_DROPPED_MARTIAN;
	backend = pick_backend(packet);
	if (!backend)
		return OUTCOME_REFUSED_NO_BACKEND;
	if (avoids_ports)
		packet->avoided_port = backend->port ?: packet->dest_port;
	steps = find_slot(packet, backend, &source, SEARCH_FREE);
	if (steps >= STEPS)
		steps = find_slot(packet, backend, &source, SEARCH_PRESSED);
	if (steps >= STEPS)
		steps = find_slot(packet, backend, &source, SEARCH_IDLE);
	address = bpf_map_lookup_elem(&sources, &source);
	if (steps >= STEPS || !address)
		return OUTCOME_REFUSED_SNAT_EXHAUSTED;
	if (!take_slot(packet, source, steps))
		return OUTCOME_DROPPED_RACE;
	flow = flow_at(packet->slot);
	if (!flow)
		return OUTCOME_DROPPED_RACE;

	claim_flow(packet, flow);
	copy_address(flow->client, packet->from);
	flow->client_port = packet->source_port;
	flow->service_port = packet->dest_port;
	flow->vip = packet->vip;
	flow->backend = packet->backend;
	flow->protocol = packet->protocol;
	set_deltas(flow, packet, backend, address->address,
		   bpf_htons(packet->slot % PORTS));
	begin_client_link(packet, flow, eth);
	flow->from_client = 0;
	flow->from_backend = 0;
	flow->client_next = is_udp(packet) ? flow->seen : packet->sequence + 1;
	barrier(); /* whoever sees the family sees all of the flow */
	flow->family = packet->family;
	count_flow_begun(packet->backend);
	begin_counting(packet->slot);
	barrier(); /* from here on, others may end it */
	flow->state = FLOW_UNCONFIRMED;
	return OUTCOME_NEXT;
}

/* It begins a flow where there is none. */
static __always_inline bool opens(const struct packet *packet)
{
	return is_udp(packet) || (packet->flags & (TCP_SYN | TCP_ACK | TCP_RST |
						   TCP_FIN)) == TCP_SYN;
}

/* The flow's backend is gone; the client's own RST ends the flow where it is. */
static __always_inline bool is_gone(const struct packet *packet,
				    const struct backend *backend)
{
	return !(packet->flags & TCP_RST) && ends_flows(backend);
}

/*
 * Whether the packet is of the flow that its tuple has: not where a client uses its
 * port again, after the flow has closed.
 */
static __always_inline bool goes_on(const struct packet *packet,
				    const struct flow *flow,
				    const struct backend *backend)
{
	return flow && !is_gone(packet, backend) &&
	       !(flow->retired && (opens(packet) || is_over(flow)));
}

/* A client's packet that goes on with no flow: makes one, in slot. */
static __always_inline enum outcome begin_anew(struct xdp_md *ctx,
					       struct packet *packet,
					       struct flow *flow,
					       const struct backend *backend)
{
	if (flow) {
		enum outcome outcome = find_service(packet);

		if (!forget_flow(packet, flow))
			return OUTCOME_DROPPED_RACE;
		if (outcome)
			return outcome;
	}
	if (opens(packet))
		return begin_flow(ctx);
	if (flow && is_gone(packet, backend))
		return OUTCOME_REFUSED_BACKEND_GONE;
	return packet->flags & TCP_RST ? OUTCOME_DROPPED_NO_FLOW :
					 OUTCOME_REFUSED_NO_FLOW;
}

#endif /* __XDP_PROXY_FLOW_H__ */
