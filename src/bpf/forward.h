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

/* One hop further, from the address that the frame came to. */
static __always_inline void readdress(struct packet *packet, const __u8 *mac,
				      const __be32 *from, const __be32 *to,
				      __u16 address_delta)
{
	struct ipv6hdr *ipv6 = packet->ipv6;
	struct iphdr *ip = packet->ip;

	copy_mac(packet->eth->h_source, packet->eth->h_dest);
	copy_mac(packet->eth->h_dest, mac);
	if (packet->family == AF_INET) {
		ip->ttl--;
		ip->check = update_checksum(
			ip->check,
			(__u32)address_delta + bpf_htons(0xfeff));
		ip->saddr = from[0];
		ip->daddr = to[0];
	} else {
		ipv6->hop_limit--;
		copy_address(ipv6->saddr.in6_u.u6_addr32, from);
		copy_address(ipv6->daddr.in6_u.u6_addr32, to);
	}
}

/* RFC 768: a sum of 0 means that there is none. */
static __always_inline __u16 for_protocol(const struct packet *packet,
					  __u16 checksum)
{
	return packet->protocol == IPPROTO_UDP && !checksum ? 0xffff : checksum;
}

static __always_inline void update_l4(struct xdp_md *ctx, struct packet *packet,
				      __u16 address_delta, __u16 port_delta)
{
	__u16 *checksum = l4_checksum(packet);
	__u32 delta = (__u32)address_delta + port_delta;
	__u16 segment_sum = 0;

	if (packet->protocol == IPPROTO_UDP && !*checksum)
		return;
	if (!partial_checksums ||
	    checksum_kind(ctx, packet, &packet->flow->partial, &segment_sum) ==
		    CHECKSUM_COMPLETE)
		*checksum = for_protocol(packet,
					 update_checksum(*checksum, delta));
	else if (complete_checksums)
		*checksum = for_protocol(packet, ~fold(segment_sum + delta));
	else
		*checksum = fold((__u32)*checksum + address_delta);
}

static __always_inline enum outcome forward_packet(struct xdp_md *ctx,
						   struct packet *packet)
{
	const struct backend *backend = packet->backend;
	struct flow *flow = packet->flow;
	__u32 source = packet->slot >> PORT_BITS;
	const struct ip_address *address =
		bpf_map_lookup_elem(&sources, &source);
	__be16 *l4_ports = packet->l4;

	if (!backend->reachable || !address)
		return OUTCOME_DROPPED_NO_NEIGHBOUR;
	track_flow(packet);
	/* Replies go back to where the flow's packets come from. */
	if (!same_mac(flow->client_mac, packet->eth->h_source))
		copy_mac(flow->client_mac, packet->eth->h_source);
	update_l4(ctx, packet, flow->address_delta, flow->port_delta);
	readdress(packet, backend->mac, address->address, backend->address,
		  flow->address_delta);
	l4_ports[0] = bpf_htons(packet->slot % PORTS);
	l4_ports[1] = backend->port;
	return OUTCOME_FORWARDED;
}

static __always_inline enum outcome return_packet(struct xdp_md *ctx,
						  struct packet *packet)
{
	struct flow *flow = packet->flow;
	__u32 vip = flow->vip - 1;
	const struct ip_address *address = bpf_map_lookup_elem(&vips, &vip);
	__be16 *l4_ports = packet->l4;
	__u16 address_delta = ~flow->address_delta;

	if (!address)
		return OUTCOME_DROPPED_NO_NEIGHBOUR;
	track_flow(packet);
	update_l4(ctx, packet, address_delta, ~flow->port_delta);
	readdress(packet, flow->client_mac, address->address, flow->client,
		  address_delta);
	l4_ports[0] = flow->service_port;
	l4_ports[1] = flow->client_port;
	return OUTCOME_RETURNED;
}

#endif /* __XDP_PROXY_FORWARD_H__ */
