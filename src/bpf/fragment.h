/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fragments. Only the first one has ports: what was decided on it is kept for a
 * short while, and the others follow. All leave with an identification of our
 * own: clients that share a source address may have chosen the same one, and the
 * backend would put their fragments together.
 */
#ifndef __XDP_PROXY_FRAGMENT_H__
#define __XDP_PROXY_FRAGMENT_H__

#include "forward.h"

static __always_inline void fragment_key(const struct packet *packet,
					 struct fragment_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	copy_address(key->from, packet->from);
	copy_address(key->to, packet->to);
	key->id = packet->fragment_id;
	key->family = packet->family;
	key->protocol = is_ipv6(packet) ? 0 : packet->protocol;
}

/* What was decided on a first fragment holds for the others. */
__noinline int remember_fragment(int outcome)
{
	struct packet *packet = packet_at_hand();
	struct fragment decision = {};
	const struct flow *flow;
	struct fragment_key key;

	if (!packet || outcome > OUTCOME_RETURNED)
		return outcome;
	flow = flow_at(packet->slot);
	fragment_key(packet, &key);
	decision.outcome = outcome;
	decision.slot = packet->slot;
	decision.hash = packet->hash;
	decision.begun = flow ? flow->begun : 0;
	decision.seen = now();
	decision.id = packet->new_id;
	decision.direction = packet->direction;
	bpf_map_update_elem(&fragments, &key, &decision, BPF_ANY);
	return outcome;
}

/* A later fragment to an address of ours. */
__noinline int follow_fragment(struct xdp_md *ctx)
{
	struct packet *packet = packet_at_hand();
	const struct fragment *decision;
	struct fragment_key key;
	enum outcome outcome;
	struct flow *flow;

	if (!packet)
		return OUTCOME_DROPPED_FRAGMENT;
	fragment_key(packet, &key);
	decision = bpf_map_lookup_elem(&fragments, &key);
	/* Destination options hide what is behind them, in the first one alone. */
	if (!decision || ticks_since(&decision->seen) > fragment_life)
		return packet->protocol == IPPROTO_DSTOPTS ?
			       OUTCOME_PASSED :
			       OUTCOME_DROPPED_FRAGMENT;
	if (decision->outcome == OUTCOME_PASSED)
		return OUTCOME_PASSED;
	packet->slot = decision->slot;
	packet->hash = decision->hash;
	packet->new_id = decision->id;
	packet->direction = decision->direction;
	packet->flags = 0;
	flow = flow_at(packet->slot);
	/* The client's next flow may have the same port, and another backend. */
	if (!flow || !flow->family || flow->hash != packet->hash ||
	    flow->begun != decision->begun)
		return OUTCOME_DROPPED_FRAGMENT;
	outcome = check_ip(ctx, packet);
	if (outcome)
		return outcome;
	packet->backend = flow->backend;
	return packet->direction == FROM_CLIENT ?
		       forward_packet(ctx, packet, flow, backend_of(flow),
				      false) :
		       return_packet(ctx, packet, flow, false);
}

#endif /* __XDP_PROXY_FRAGMENT_H__ */
