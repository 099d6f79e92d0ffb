/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where what goes to a client goes: as the host would send it from the VIP. A flow
 * keeps the MAC and the VLAN tags of its client's side, so that its packets ask nobody:
 *
 *	a route by a next hop that is known	the next hop's
 *	on link					the client's own, by a frame that is
 *						proven or by the kernel's neighbour
 *						entry
 *	anything else				as on link, without the entry
 *
 * Userspace writes what the host's routes and rules make of each VIP, and runs over the
 * flows when that or a next hop becomes another. So no packet asks the kernel (bpf_fib_lookup),
 * and only the first one of a flow looks for a route: mostly in a list of two or three.
 */
#ifndef __XDP_PROXY_ROUTE_H__
#define __XDP_PROXY_ROUTE_H__

#include "track.h"

static __always_inline bool is_within(const __be32 *address,
				      const struct route *route)
{
	if ((address[0] & route->mask[0]) != route->address[0])
		return false;
	return !serves_ipv6 ||
	       ((address[1] & route->mask[1]) == route->address[1] &&
		(address[2] & route->mask[2]) == route->address[2] &&
		(address[3] & route->mask[3]) == route->address[3]);
}

/* Of the routes that fit into the list: the longest prefixes come first. */
static __always_inline __u32 way_in_list(__u32 fib, __u8 family,
					 const __be32 *address)
{
	for (__u32 i = 0; i < ROUTES && i < route_count; i++) {
		const struct route *route = &routes[i];

		if (route->family == family && route->fib == fib &&
		    is_within(address, route))
			return *(const volatile __u32 *)&route->way;
	}
	return WAY_UNKNOWN;
}

static __always_inline __u32 way_in_trie(__u32 fib, __u8 family,
					 const __be32 *address)
{
	struct route_key key = {
		.bits = 8 * (sizeof(key) - sizeof(key.bits)),
		.fib = fib,
		.family = family,
	};
	const __u32 *way;

	copy_address(key.address, address);
	way = bpf_map_lookup_elem(&route_trie, &key);
	return way ? *way : WAY_UNKNOWN;
}

/* The way from a VIP (its index + 1) to a client: enum way, or next hops. */
static __always_inline __u32 way_towards(__u32 vip, __u8 family,
					 const __be32 *client)
{
	__u32 fib = 0;

	if (several_fibs) {
		__u32 key = vip - 1;
		const __u32 *of_vip = bpf_map_lookup_elem(&fibs, &key);

		if (!of_vip)
			return WAY_UNKNOWN;
		fib = *of_vip;
	}
	return routes_in_trie ? way_in_trie(fib, family, client) :
				way_in_list(fib, family, client);
}

/*
 * A way's next hop, by its index + 1; 0: it has none that is known. Of several it is the one
 * with this MAC and in this VLAN, if there is one, so that a flow stays where it is.
 */
static __always_inline __u32 next_hop_of(__u32 way, const __u8 *mac,
					 const __u16 *vlan, __u32 hash)
{
	__u32 first = way & WAY_FIRST, count = way >> WAY_COUNT_SHIFT;

	if (way <= WAY_ON_LINK)
		return 0;
	for (__u32 i = 0; i < HOPS_OF_ROUTE && i < count && count > 1; i++) {
		const struct next_hop *hop =
			&next_hops[(first + i) % NEXT_HOPS];

		if (same_mac(hop->mac, mac) && same_vlan(hop->vlan, vlan))
			return first + i + 1;
	}
	return first + scale(hash, count) + 1;
}

static __always_inline const struct next_hop *next_hop_at(__u32 index)
{
	return &next_hops[index % NEXT_HOPS];
}

/* Without a look at what it was, so that nobody waits for the record of a new flow. */
static __always_inline void copy_client_link(struct flow *flow, const __u8 *mac,
					     const __u16 *vlan)
{
	copy_mac(flow->client_mac, mac);
	flow->client_vlan[0] = vlan[0];
	flow->client_vlan[1] = vlan[1];
}

static __always_inline bool has_client_link(const struct flow *flow,
					    const __u8 *mac, const __u16 *vlan)
{
	return same_mac(flow->client_mac, mac) &&
	       (!handles_vlan || same_vlan(flow->client_vlan, vlan));
}

/* A frame's VLAN, as a flow keeps it. */
static __always_inline void vlan_of(const struct packet *packet, __u16 *vlan)
{
	vlan[0] = vlan[1] = 0;
	if (handles_vlan)
		pack_tags(vlan, packet->tags);
}

/* The next hop from the packet's VIP towards its sender, by its index + 1; 0: none. */
static __always_inline __u32 next_hop_back(const struct packet *packet,
					   const __u8 *mac, const __u16 *vlan)
{
	__u32 way = way_towards(packet->vip, packet->family, packet->from);

	return next_hop_of(way, mac, vlan, packet->hash);
}

/*
 * An answer to the packet at hand from its VIP, which is to go to its sender. A function of
 * its own, which the verifier walks once.
 */
__noinline int steer_answer(struct xdp_md *ctx)
{
	struct ethhdr *eth = frame_at(ctx, 0, sizeof(*eth));
	struct packet *packet = packet_at_hand();
	const struct next_hop *next;
	__be32 tags[VLAN_TAGS];
	__u16 vlan[VLAN_TAGS];
	__u32 hop;

	if (!packet || !eth)
		return false;
	if (!packet->vip)
		return true;
	vlan_of(packet, vlan);
	hop = next_hop_back(packet, eth->h_dest, vlan);
	if (!hop)
		return true;
	next = next_hop_at(hop - 1);
	copy_mac(eth->h_dest, next->mac);
	tags[0] = unpack_tag(next->vlan[0]);
	tags[1] = unpack_tag(next->vlan[1]);
	if (!handles_vlan || same_tags(packet->tags, tags) ||
	    (tags_may_hide && !packet->tags[0]))
		return true;
	copy_tags(packet->new_tags, tags);
	return set_tags(ctx);
}

/* Of a flow that begins with the packet, where there is nothing to prove yet. */
static __always_inline void begin_client_link(const struct packet *packet,
					      struct flow *flow,
					      const struct ethhdr *eth)
{
	__u16 vlan[VLAN_TAGS];
	__u32 hop;

	vlan_of(packet, vlan);
	copy_client_link(flow, eth->h_source, vlan);
	hop = next_hop_back(packet, eth->h_source, vlan);
	flow->routed = !!hop;
	barrier();
	if (hop)
		copy_client_link(flow, next_hop_at(hop - 1)->mac,
				 next_hop_at(hop - 1)->vlan);
}

/*
 * A client that goes on from another MAC or VLAN, where no route says more. Not any frame
 * may say so, or any host of its network could turn the replies to itself: its numbers must
 * fit.
 */
static __always_inline void follow_client(struct xdp_md *ctx,
					  const struct packet *packet,
					  struct flow *flow,
					  const struct ethhdr *eth)
{
	const struct tcphdr *tcp;
	__u16 vlan[VLAN_TAGS];

	if (flow->routed)
		return;
	vlan_of(packet, vlan);
	if (has_client_link(flow, eth->h_source, vlan) || is_udp(packet) ||
	    flow->state != FLOW_ESTABLISHED || !(packet->flags & TCP_ACK))
		return;
	tcp = frame_at(ctx, packet->l4_offset, sizeof(*tcp));
	if (tcp && is_near(packet->sequence, flow->client_next) &&
	    is_near(bpf_ntohl(tcp->ack_seq), flow->backend_next))
		copy_client_link(flow, eth->h_source, vlan);
}

/* Only if it is another one, so that no other CPU's copy of the record goes. */
static __always_inline void set_client_link(struct flow *flow, const __u8 *mac,
					    const __u16 *vlan)
{
	if (!has_client_link(flow, mac, vlan))
		copy_client_link(flow, mac, vlan);
}

/*
 * By the kernel's entry for a client on link: always where no frame has proven itself, else
 * if the entry is news.
 */
static __always_inline void follow_neighbour(struct flow *flow)
{
	bool is_proven = flow->protocol == IPPROTO_TCP &&
			 flow->state == FLOW_ESTABLISHED;
	struct neighbour_key key = {.family = flow->family};
	const struct neighbour *neighbour;

	copy_address(key.address, flow->client);
	neighbour = bpf_map_lookup_elem(&neighbours, &key);
	if (neighbour && (!is_proven || neighbour->changed > news_since))
		set_client_link(flow, neighbour->mac, neighbour->vlan);
}

/* Steers the flow in a slot anew: by userspace, not by a packet. */
__noinline int steer_slot(__u32 slot)
{
	struct flow *flow = flow_at(slot);
	__u32 way, hop;

	if (!flow || !flow->family || flow->state == FLOW_BEGINNING)
		return 0;
	way = way_towards(flow->vip, flow->family, flow->client);
	hop = next_hop_of(way, flow->client_mac, flow->client_vlan, flow->hash);
	flow->routed = !!hop;
	if (hop)
		set_client_link(flow, next_hop_at(hop - 1)->mac,
				next_hop_at(hop - 1)->vlan);
	else if (way == WAY_ON_LINK && has_neighbours)
		follow_neighbour(flow);
	return 0;
}

/* The next slots of a source address. */
__noinline int steer(void)
{
	__u32 hand = steer_hand;

	steer_hand = hand + SWEEP_ROUND;
	for (__u32 i = 0; i < SWEEP_ROUND; i++)
		steer_slot(steer_source << PORT_BITS | (hand + i) % PORTS);
	return 0;
}

#endif /* __XDP_PROXY_ROUTE_H__ */
