/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The rewrite: full NAT, in place. What a direction adds to the checksums was
 * computed when the flow began (set_deltas), so a packet costs three additions.
 */
#ifndef __XDP_PROXY_FORWARD_H__
#define __XDP_PROXY_FORWARD_H__

#include "flow.h"

/* RFC 768: a sum of 0 means that there is none. */
static __always_inline __u16 for_protocol(const struct packet *packet,
					  __u16 checksum)
{
	return is_udp(packet) && !checksum ? 0xffff : checksum;
}

/* What the packet's TCP or UDP checksum becomes. */
static __always_inline __u16 new_checksum(struct xdp_md *ctx,
					  const struct packet *packet,
					  __u8 *heard, __u16 checksum,
					  __u16 address_delta, __u16 port_delta)
{
	__u32 delta = (__u32)address_delta + port_delta;
	__u16 segment_sum = 0;

	if (is_udp(packet) && !checksum)
		return 0;
	/* The kernel completes a sum before it fragments the packet. */
	if (!partial_checksums || packet->fragment ||
	    checksum_kind(ctx, packet, checksum, heard, &segment_sum) ==
		    CHECKSUM_COMPLETE)
		return for_protocol(packet, update_checksum(checksum, delta));
	if (complete_checksums)
		return for_protocol(packet, ~fold(segment_sum + delta));
	return fold((__u32)checksum + address_delta);
}

/* A packet's new ends, and what they add to its one's-complement sum. */
struct rewrite {
	const __u8 *mac; /* of the next hop */
	__be32 tags[VLAN_TAGS];
	__u8 *heard; /* what the flow knows of the packet's sender */
	const __be32 *from;
	const __be32 *to;
	__be16 source_port;
	__be16 dest_port;
	__u16 address_delta;
	__u16 port_delta;
};

/* The ends of what goes to the flow's backend; false: it can't be reached. */
static __always_inline bool towards_backend(const struct packet *packet,
					    struct flow *flow,
					    const struct backend *backend,
					    struct rewrite *new)
{
	__u32 source = packet->slot >> PORT_BITS;
	const struct ip_address *address =
		bpf_map_lookup_elem(&sources, &source);

	if (!address || !backend || !backend->reachable)
		return false;
	new->mac = backend->mac;
	copy_tags(new->tags, backend->tags);
	new->heard = &flow->from_client;
	new->from = address->address;
	new->to = backend->address;
	new->source_port = bpf_htons(packet->slot % PORTS);
	new->dest_port = backend_port(backend, flow);
	new->address_delta = flow->address_delta;
	new->port_delta = flow->port_delta;
	return true;
}

/* The ends of what goes to the flow's client. */
static __always_inline bool towards_client(struct flow *flow,
					   struct rewrite *new)
{
	__u32 vip = flow->vip - 1;
	const struct ip_address *address = bpf_map_lookup_elem(&vips, &vip);

	if (!address)
		return false;
	new->mac = flow->client_mac;
	new->tags[0] = handles_vlan ? unpack_tag(flow->client_vlan[0]) : 0;
	new->tags[1] = handles_vlan ? unpack_tag(flow->client_vlan[1]) : 0;
	new->heard = &flow->from_backend;
	new->from = address->address;
	new->to = flow->client;
	new->source_port = flow->service_port;
	new->dest_port = flow->client_port;
	new->address_delta = ~flow->address_delta;
	new->port_delta = ~flow->port_delta;
	return true;
}

static __always_inline bool rewrite_l4(struct xdp_md *ctx,
				       const struct packet *packet,
				       const struct rewrite *new)
{
	__u16 *old_checksum = checksum_at(ctx, packet), checksum;
	__be16 *l4_ports;

	if (!old_checksum)
		return false;
	checksum = new_checksum(ctx, packet, new->heard, *old_checksum,
				new->address_delta, new->port_delta);
	/* A call made the verifier forget what it knew of the frame. */
	old_checksum = checksum_at(ctx, packet);
	l4_ports = frame_at(ctx, packet->l4_offset, 4);
	if (!old_checksum || !l4_ports)
		return false;
	*old_checksum = checksum;
	l4_ports[0] = new->source_port;
	l4_ports[1] = new->dest_port;
	return true;
}

/* Both addresses, one hop further; a fragment gets an identification of ours. */
static __always_inline bool rewrite_l3(struct xdp_md *ctx,
				       const struct packet *packet,
				       const __be32 *from, const __be32 *to,
				       __u16 address_delta)
{
	__u32 delta = (__u32)address_delta + bpf_htons(0xfeff);

	if (!is_ipv6(packet)) {
		struct iphdr *ip =
			frame_at(ctx, packet->l3_offset, sizeof(*ip));

		if (!ip)
			return false;
		if (packet->fragment) {
			delta += (__u16)~ip->id + (__u16)packet->new_id;
			ip->id = packet->new_id;
		}
		ip->ttl--;
		ip->check = update_checksum(ip->check, delta);
		ip->saddr = from[0];
		ip->daddr = to[0];
	} else {
		struct ipv6hdr *ipv6 =
			frame_at(ctx, packet->l3_offset, sizeof(*ipv6));

		if (!ipv6)
			return false;
		ipv6->hop_limit--;
		copy_address(ipv6->saddr.in6_u.u6_addr32, from);
		copy_address(ipv6->daddr.in6_u.u6_addr32, to);
		if (packet->fragment) {
			__be32 *header =
				frame_at(ctx, packet->fragment_offset, 8);

			if (!header)
				return false;
			header[1] = packet->new_id;
		}
	}
	return true;
}

/*
 * Both addresses, and the ports if the packet has any (a constant, so that no
 * code for them stands where there are none), one hop further, in place.
 */
static __always_inline bool rewrite_packet(struct xdp_md *ctx,
					   struct packet *packet,
					   const struct rewrite *new,
					   bool has_ports)
{
	if (has_ports && !rewrite_l4(ctx, packet, new))
		return false;
	return rewrite_l3(ctx, packet, new->from, new->to,
			  new->address_delta) &&
	       rewrite_link(ctx, packet, new->mac, new->tags);
}

static __always_inline enum outcome
forward_packet(struct xdp_md *ctx, struct packet *packet, struct flow *flow,
	       const struct backend *backend, bool has_ports)
{
	const struct ethhdr *eth;
	struct rewrite new;

	if (!flow || !towards_backend(packet, flow, backend, &new))
		return OUTCOME_DROPPED_NO_NEIGHBOUR;
	packet->backend = flow->backend;
	track_flow(ctx, packet, flow, FROM_CLIENT, has_ports);
	eth = frame_at(ctx, 0, sizeof(*eth));
	if (!eth)
		return OUTCOME_DROPPED_MALFORMED;
	if (has_ports)
		follow_client(ctx, packet, flow, eth);
	if (!rewrite_packet(ctx, packet, &new, has_ports))
		return OUTCOME_DROPPED_MALFORMED;
	return is_still_of(flow, packet->hash) ? OUTCOME_FORWARDED :
						 OUTCOME_DROPPED_RACE;
}

static __always_inline enum outcome return_packet(struct xdp_md *ctx,
						  struct packet *packet,
						  struct flow *flow,
						  bool has_ports)
{
	struct rewrite new;

	if (!towards_client(flow, &new))
		return OUTCOME_DROPPED_NO_NEIGHBOUR;
	track_flow(ctx, packet, flow, FROM_BACKEND, has_ports);
	if (!rewrite_packet(ctx, packet, &new, has_ports))
		return OUTCOME_DROPPED_MALFORMED;
	return is_still_of(flow, packet->hash) ? OUTCOME_RETURNED :
						 OUTCOME_DROPPED_RACE;
}

#endif /* __XDP_PROXY_FORWARD_H__ */
