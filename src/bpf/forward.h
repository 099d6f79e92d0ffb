/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The rewrite: full NAT, in place. What a direction adds to the checksums was
 * computed when the flow began (set_deltas), so a packet costs three additions.
 */
#ifndef __XDP_PROXY_FORWARD_H__
#define __XDP_PROXY_FORWARD_H__

#include "flow.h"

static __always_inline void copy_mac(__u8 *to, const __u8 *from)
{
	((__u16 *)to)[0] = ((const __u16 *)from)[0];
	((__u16 *)to)[1] = ((const __u16 *)from)[1];
	((__u16 *)to)[2] = ((const __u16 *)from)[2];
}

static __always_inline bool same_mac(const __u8 *one, const __u8 *other)
{
	return ((const __u16 *)one)[0] == ((const __u16 *)other)[0] &&
	       ((const __u16 *)one)[1] == ((const __u16 *)other)[1] &&
	       ((const __u16 *)one)[2] == ((const __u16 *)other)[2];
}

/* RFC 768: a sum of 0 means that there is none. */
static __always_inline __u16 for_protocol(const struct packet *packet,
					  __u16 checksum)
{
	return is_udp(packet) && !checksum ? 0xffff : checksum;
}

/* What the packet's TCP or UDP checksum becomes. */
static __always_inline __u16 new_checksum(struct xdp_md *ctx,
					  const struct packet *packet,
					  struct flow *flow, __u16 checksum,
					  __u16 address_delta, __u16 port_delta)
{
	__u32 delta = (__u32)address_delta + port_delta;
	__u16 segment_sum = 0;

	if (is_udp(packet) && !checksum)
		return 0;
	if (!partial_checksums ||
	    checksum_kind(ctx, packet, checksum, &flow->partial,
			  &segment_sum) == CHECKSUM_COMPLETE)
		return for_protocol(packet, update_checksum(checksum, delta));
	if (complete_checksums)
		return for_protocol(packet, ~fold(segment_sum + delta));
	return fold((__u32)checksum + address_delta);
}

/* A packet's new ends, and what they add to its one's-complement sum. */
struct rewrite {
	const __u8 *mac; /* of the next hop */
	const __be32 *from;
	const __be32 *to;
	__be16 source_port;
	__be16 dest_port;
	__u16 address_delta;
	__u16 port_delta;
};

/* Both addresses and ports, one hop further, in place. */
static __always_inline bool rewrite_packet(struct xdp_md *ctx,
					   const struct packet *packet,
					   struct flow *flow,
					   const struct rewrite *new)
{
	__u16 *old_checksum = checksum_at(ctx, packet), checksum;
	struct ethhdr *eth;
	__be16 *l4_ports;

	if (!old_checksum)
		return false;
	checksum = new_checksum(ctx, packet, flow, *old_checksum,
				new->address_delta, new->port_delta);
	/* A call made the verifier forget what it knew of the frame. */
	old_checksum = checksum_at(ctx, packet);
	l4_ports = frame_at(ctx, packet->l4_offset, 4);
	eth = frame_at(ctx, 0, sizeof(*eth));
	if (!old_checksum || !l4_ports || !eth)
		return false;
	if (!is_ipv6(packet)) {
		struct iphdr *ip =
			frame_at(ctx, packet->l3_offset, sizeof(*ip));

		if (!ip)
			return false;
		ip->ttl--;
		ip->check =
			update_checksum(ip->check, (__u32) new->address_delta +
							   bpf_htons(0xfeff));
		ip->saddr = new->from[0];
		ip->daddr = new->to[0];
	} else {
		struct ipv6hdr *ipv6 =
			frame_at(ctx, packet->l3_offset, sizeof(*ipv6));

		if (!ipv6)
			return false;
		ipv6->hop_limit--;
		copy_address(ipv6->saddr.in6_u.u6_addr32, new->from);
		copy_address(ipv6->daddr.in6_u.u6_addr32, new->to);
	}
	*old_checksum = checksum;
	l4_ports[0] = new->source_port;
	l4_ports[1] = new->dest_port;
	copy_mac(eth->h_source, eth->h_dest);
	copy_mac(eth->h_dest, new->mac);
	return true;
}

static __always_inline enum outcome forward_packet(struct xdp_md *ctx,
						   struct packet *packet)
{
	const struct ethhdr *eth = frame_at(ctx, 0, sizeof(*eth));
	__u32 source = packet->slot >> PORT_BITS, index;
	struct flow *flow = flow_at(packet->slot);
	const struct ip_address *address =
		bpf_map_lookup_elem(&sources, &source);
	const struct backend *backend;
	struct rewrite new;

	if (!flow || !address || !eth)
		return OUTCOME_DROPPED_NO_NEIGHBOUR;
	index = flow->backend;
	backend = bpf_map_lookup_elem(&backends, &index);
	if (!backend || !backend->reachable)
		return OUTCOME_DROPPED_NO_NEIGHBOUR;
	packet->backend = index;
	track_flow(packet, flow);
	/* Replies go back to where the flow's packets come from. */
	if (!same_mac(flow->client_mac, eth->h_source))
		copy_mac(flow->client_mac, eth->h_source);
	new.mac = backend->mac;
	new.from = address->address;
	new.to = backend->address;
	new.source_port = bpf_htons(packet->slot % PORTS);
	new.dest_port = backend_port(backend, flow);
	new.address_delta = flow->address_delta;
	new.port_delta = flow->port_delta;
	return rewrite_packet(ctx, packet, flow, &new) ?
		       OUTCOME_FORWARDED :
		       OUTCOME_DROPPED_MALFORMED;
}

static __always_inline enum outcome return_packet(struct xdp_md *ctx,
						  const struct packet *packet,
						  struct flow *flow)
{
	__u32 vip = flow->vip - 1;
	const struct ip_address *address = bpf_map_lookup_elem(&vips, &vip);
	struct rewrite new;

	if (!address)
		return OUTCOME_DROPPED_NO_NEIGHBOUR;
	track_flow(packet, flow);
	new.mac = flow->client_mac;
	new.from = address->address;
	new.to = flow->client;
	new.source_port = flow->service_port;
	new.dest_port = flow->client_port;
	new.address_delta = ~flow->address_delta;
	new.port_delta = ~flow->port_delta;
	return rewrite_packet(ctx, packet, flow, &new) ?
		       OUTCOME_RETURNED :
		       OUTCOME_DROPPED_MALFORMED;
}

#endif /* __XDP_PROXY_FORWARD_H__ */
