/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A flow's life: how it begins, and what its packets tell of its state.
 *
 *	TCP: SYN from the client	unanswered
 *	anything from the backend	answered
 *	ACK from the client		established
 *	FIN from both, or RST		closing: its port is given back
 *
 *	UDP: from the client		unanswered
 *	anything from the backend	established
 *
 * Only the client's acknowledgement establishes a flow, so that a flood of SYNs
 * from forged addresses holds ports for the short timeout, whatever the
 * backends answer.
 */
#ifndef __XDP_PROXY_FLOW_H__
#define __XDP_PROXY_FLOW_H__

#include "backend.h"
#include "checksum.h"

/*
 * ~m + m' over both addresses, and over both ports, on the way to the backend;
 * what is subtracted is added as its complement.
 */
static __always_inline void set_deltas(struct flow *flow,
				       const struct packet *packet,
				       const __be32 *source, __be16 source_port)
{
	const struct backend *backend = packet->backend;
	__u16 old_addresses = fold(address_sum(packet->from) +
				   address_sum(packet->to));

	flow->address_delta = fold((__u16)~old_addresses + address_sum(source) +
				   address_sum(backend->address));
	flow->port_delta = fold((__u32)(__u16)~packet->source_port +
				(__u16)~packet->dest_port + source_port +
				backend->port);
}

/* A first packet that no flow was found for: picks a backend and a port. */
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
	forget_flow(flow, packet->slot);

	copy_address(flow->client, packet->from);
	flow->client_port = packet->source_port;
	flow->service_port = packet->dest_port;
	flow->vip = packet->vip;
	flow->backend = packet->backend_index;
	flow->service = packet->service;
	flow->protocol = packet->protocol;
	flow->hash = packet->hash;
	set_deltas(flow, packet, address->address, bpf_htons(port));
	flow->seen = now();
	flow->state = FLOW_UNANSWERED;
	flow->finished = 0;
	flow->partial = 0;
	flow->retired = false;
	flow->family = packet->family;
	packet->flow = flow;
	count_flow_begun(packet->backend_index);

	switch (link_flow(packet)) {
	case LINKED:
		return OUTCOME_NEXT;
	case LINK_RACED:
		flow->family = 0;
		retire_flow(flow, packet->slot);
		return OUTCOME_DROPPED_RACE;
	default: /* never met below 16 times the bucket's mean load */
		flow->family = 0;
		retire_flow(flow, packet->slot);
		return OUTCOME_RESET_SNAT_EXHAUSTED;
	}
}

/* The flow of a client's packet: the one it has, or a new one. */
static __always_inline enum outcome flow_of_client(struct packet *packet)
{
	bool tcp = packet->protocol == IPPROTO_TCP;
	__u8 flags = tcp ? tcp_flags(packet->l4) : 0;
	bool opens = !tcp || (flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) ==
				     TCP_SYN;
	__u32 index;

	if (packet->flow) {
		index = packet->flow->backend;
		packet->backend_index = index;
		packet->backend = bpf_map_lookup_elem(&backends, &index);
		/*
		 * A client that uses its port again, and datagrams whose
		 * backend is gone, begin anew.
		 */
		if (opens && (packet->flow->retired ||
			      (!tcp && !(packet->backend && packet->backend->alive)))) {
			retire_flow(packet->flow, packet->slot);
			forget_flow(packet->flow, packet->slot);
			packet->flow = NULL;
		}
	}
	if (packet->flow)
		return packet->backend ? OUTCOME_NEXT :
					 OUTCOME_DROPPED_NO_NEIGHBOUR;
	if (opens)
		return begin_flow(packet);
	return flags & TCP_RST ? OUTCOME_DROPPED_NO_FLOW : OUTCOME_RESET_NO_FLOW;
}

/* What a segment tells of the flow's state. */
static __always_inline void track_tcp(const struct packet *packet)
{
	struct flow *flow = packet->flow;
	__u8 flags = tcp_flags(packet->l4);

	if (packet->direction == FROM_BACKEND) {
		if (flow->state == FLOW_UNANSWERED)
			flow->state = FLOW_ANSWERED;
	} else if (flow->state == FLOW_ANSWERED && (flags & TCP_ACK)) {
		flow->state = FLOW_ESTABLISHED;
	}
	if (flags & TCP_FIN)
		flow->finished |= packet->direction;
	if ((flags & TCP_RST) || flow->finished == (FROM_CLIENT | FROM_BACKEND))
		retire_flow(flow, packet->slot);
}

/* What a datagram tells: there is nothing to acknowledge. */
static __always_inline void track_udp(const struct packet *packet)
{
	struct flow *flow = packet->flow;

	if (packet->direction == FROM_BACKEND &&
	    flow->state != FLOW_ESTABLISHED)
		flow->state = FLOW_ESTABLISHED;
}

static __always_inline void track_flow(const struct packet *packet)
{
	struct flow *flow = packet->flow;
	__u32 tick = now();

	if (flow->retired) {
		/* A backend that goes on did not believe the RST (RFC 5961). */
		if (packet->direction == FROM_BACKEND &&
		    packet->protocol == IPPROTO_TCP &&
		    !(tcp_flags(packet->l4) & (TCP_RST | TCP_FIN)))
			flow->seen = tick;
		return;
	}
	if (packet->protocol == IPPROTO_TCP)
		track_tcp(packet);
	else
		track_udp(packet);
	/* A backend's answer alone does not keep a flow alive. */
	if ((flow->state == FLOW_ESTABLISHED ||
	     packet->direction == FROM_CLIENT) &&
	    flow->seen != tick)
		flow->seen = tick;
}

#endif /* __XDP_PROXY_FLOW_H__ */
