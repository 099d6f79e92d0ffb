// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The packet's path, from top to bottom. A stage either decides what becomes
 * of the packet or leaves it to the next one (OUTCOME_NEXT). Until a packet is
 * known to be of a flow or for a service, nothing of it is changed.
 */
#include "answer.h"
#include "socket.h"
#include "sweep.h"

static __always_inline enum outcome
from_backend(struct xdp_md *ctx, struct packet *packet, struct flow *flow)
{
	enum outcome outcome = check_packet(ctx, packet);

	packet->direction = FROM_BACKEND;
	return outcome ? outcome : return_packet(ctx, packet, flow, true);
}

static __always_inline enum outcome
from_client(struct xdp_md *ctx, struct packet *packet, struct flow *flow)
{
	const struct backend *backend = flow ? backend_of(flow) : NULL;
	enum outcome outcome = check_packet(ctx, packet);

	packet->direction = FROM_CLIENT;
	if (!outcome && !goes_on(packet, flow, backend)) {
		outcome = begin_anew(ctx, packet, flow, backend);
		flow = flow_at(packet->slot);
		backend = flow ? backend_of(flow) : NULL;
	}
	return outcome ? outcome :
			 forward_packet(ctx, packet, flow, backend, true);
}

/* A packet that has ports, to an address of ours. */
static __always_inline enum outcome find_flow(struct xdp_md *ctx,
					      struct packet *packet)
{
	enum outcome outcome = OUTCOME_NEXT;
	struct flow *flow;

	flow = find_flow_of_backend(packet);
	if (flow)
		return from_backend(ctx, packet, flow);
	if (is_no_service(packet))
		return OUTCOME_PASSED;
	packet->hash = tuple_hash(packet, hash_seed);
	flow = find_flow_of_client(packet, AT_HAND);
	if (!flow) {
		outcome = find_service(packet);
		if (!outcome && is_of_host(ctx, packet))
			outcome = OUTCOME_PASSED;
	}
	return outcome ? outcome : from_client(ctx, packet, flow);
}

static __always_inline enum outcome walk(struct xdp_md *ctx,
					 struct packet *packet)
{
	enum outcome outcome;

	outcome = parse_packet(ctx, packet);
	if (outcome)
		return outcome;
	outcome = find_address(packet);
	if (outcome)
		return outcome;
	if (is_icmp(packet))
		return receive_icmp(ctx);
	if (packet->fragment == FRAGMENT_LATER)
		return follow_fragment(ctx);
	outcome = find_flow(ctx, packet);
	return packet->fragment ? remember_fragment(outcome) : outcome;
}

SEC("xdp")
int xdp_proxy(struct xdp_md *ctx)
{
	struct packet *packet = packet_at_hand();

	if (!packet)
		return XDP_PASS;
	/* Noted in the map, so that the verifier walks what follows once. */
	packet->outcome = walk(ctx, packet);
	barrier();
	packet->outcome = answer(ctx, packet, packet->outcome);
	barrier();
	return account(packet, packet->outcome);
}

/* Run by userspace now and then, never attached: ends flows in silence. */
SEC("xdp")
int xdp_proxy_sweep(struct xdp_md *ctx)
{
	sweep();
	return XDP_PASS;
}

/* The same, where routes, next hops or neighbours become others. */
SEC("xdp")
int xdp_proxy_steer(struct xdp_md *ctx)
{
	steer();
	return XDP_PASS;
}

/* The same, where the ports of a source address become others. */
SEC("xdp")
int xdp_proxy_regroup(struct xdp_md *ctx)
{
	return regroup();
}

char _license[] SEC("license") = "Dual BSD/GPL";
