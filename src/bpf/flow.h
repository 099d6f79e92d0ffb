/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A flow's life: how it begins, and what its packets tell of its state.
 *
 *	SYN from the client		unanswered
 *	anything from the backend	answered
 *	ACK from the client		established
 *	FIN from both, or RST		closing: its port is given back
 *
 * Only the client's acknowledgement establishes a flow, so that a flood of SYNs
 * from forged addresses holds ports for the short timeout, whatever the
 * backends answer.
 */
#ifndef __XDP_PROXY_FLOW_H__
#define __XDP_PROXY_FLOW_H__

#include "backend.h"
#include "checksum.h"

/* ~m + m' over both addresses, and over both ports, on the way to the backend. */
static __always_inline void set_deltas(struct flow *flow,
				       const struct packet *packet,
				       __be32 source, __be16 source_port)
{
	const struct backend *backend = packet->backend;

	flow->address_delta =
		fold((__u64)(__u32)~packet->ip->saddr +
		     (__u32)~packet->ip->daddr + source + backend->address[0]);
	flow->port_delta =
		fold((__u32)(__u16)~packet->source_port +
		     (__u16)~packet->dest_port + source_port + backend->port);
}

/* A client's SYN that no flow was found for: picks a backend and a port. */
static __always_inline enum outcome begin_flow(struct packet *packet)
{
	const struct ip_address *address;
	struct flow *flow;
	__u32 source, port;

	if (!pick_backend(packet))
		return OUTCOME_RESET_NO_BACKEND;
	source = packet->backend->source;
	address = bpf_map_lookup_elem(&sources, &source);
	if (!address)
		return OUTCOME_RESET_NO_BACKEND;
	port = take_port(source);
	sweep(source, port ? SWEEP_STEP : SWEEP_SHORT, !port);
	if (!port)
		port = take_port(source);
	packet->slot = source << PORT_BITS | port;
	flow = flow_at(packet->slot);
	if (!port || !flow)
		return OUTCOME_RESET_SNAT_EXHAUSTED;
	claim_flow(flow, packet->slot, packet->hash);

	flow->client[0] = packet->ip->saddr;
	flow->client_port = packet->source_port;
	flow->service_port = packet->dest_port;
	flow->vip = packet->vip;
	flow->backend = packet->backend_index;
	flow->service = packet->service;
	flow->protocol = packet->ip->protocol;
	set_deltas(flow, packet, address->address[0], bpf_htons(port));
	flow->state = FLOW_UNANSWERED;
	flow->finished = 0;
	flow->partial = 0;
	barrier(); /* whoever sees the family sees all of the flow */
	flow->family = AF_INET;
	packet->flow = flow;
	count_flow_begun(packet->backend_index);

	switch (link_flow(packet)) {
	case LINKED:
		return OUTCOME_NEXT;
	case LINK_RACED:
		flow->family = 0;
		retire_flow(flow, packet->slot, packet->hash);
		return OUTCOME_DROPPED_RACE;
	default: /* never met below 16 times the bucket's mean load */
		flow->family = 0;
		retire_flow(flow, packet->slot, packet->hash);
		return OUTCOME_RESET_SNAT_EXHAUSTED;
	}
}

/* The flow of a client's packet: the one it has, or a new one. */
static __always_inline enum outcome flow_of_client(struct packet *packet)
{
	__u8 flags = tcp_flags(packet->l4);
	bool opens =
		(flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
	enum outcome outcome;
	__u32 index;

	if (packet->flow && packet->flow->retired &&
	    (opens || is_over(packet->flow))) {
		/* The client uses its port again: of a service yet to be found. */
		forget_flow(packet);
		packet->flow = NULL;
		outcome = find_service(packet);
		if (outcome)
			return outcome;
	}
	if (packet->flow) {
		index = packet->flow->backend;
		packet->backend_index = index;
		packet->backend = bpf_map_lookup_elem(&backends, &index);
		return packet->backend ? OUTCOME_NEXT :
					 OUTCOME_DROPPED_NO_NEIGHBOUR;
	}
	if (opens)
		return begin_flow(packet);
	return flags & TCP_RST ? OUTCOME_DROPPED_NO_FLOW :
				 OUTCOME_RESET_NO_FLOW;
}

/* What the packet tells of the flow's state. */
static __always_inline void track_flow(const struct packet *packet)
{
	struct flow *flow = packet->flow;
	__u8 flags = tcp_flags(packet->l4);

	if (flow->retired) {
		/* A backend that goes on did not believe the RST (RFC 5961). */
		if (packet->direction == FROM_BACKEND &&
		    !(flags & (TCP_RST | TCP_FIN)))
			flow->seen = now();
		return;
	}
	if (packet->direction == FROM_BACKEND) {
		if (flow->state == FLOW_UNANSWERED)
			flow->state = FLOW_ANSWERED;
	} else if (flow->state == FLOW_ANSWERED && (flags & TCP_ACK)) {
		flow->state = FLOW_ESTABLISHED;
	}
	/* A backend's answer alone does not keep a flow alive. */
	if (flow->state == FLOW_ESTABLISHED ||
	    packet->direction == FROM_CLIENT) {
		__u32 tick = now();

		if (flow->seen != tick)
			flow->seen = tick;
	}
	if (flags & TCP_FIN)
		flow->finished |= packet->direction;
	if ((flags & TCP_RST) || flow->finished == (FROM_CLIENT | FROM_BACKEND))
		retire_flow(flow, packet->slot, packet->hash);
}

#endif /* __XDP_PROXY_FLOW_H__ */
