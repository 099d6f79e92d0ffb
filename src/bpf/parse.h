/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From the first byte to the ports. Nothing is judged here: what can't be of
 * any service is passed, and what is wrong with a packet of ours shows later,
 * when it is known to be ours (check.h).
 */
#ifndef __XDP_PROXY_PARSE_H__
#define __XDP_PROXY_PARSE_H__

#include "packet.h"

static __always_inline bool to_our_mac(const struct ethhdr *eth)
{
	const __u16 *dest = (const __u16 *)eth->h_dest;
	const __u16 *ours = (const __u16 *)interface_mac;

	return dest[0] == ours[0] && dest[1] == ours[1] && dest[2] == ours[2];
}

static __always_inline enum outcome
parse_ipv4(struct packet *packet, const struct iphdr *ip, const void *data_end)
{
	__u32 header_bytes;

	if ((void *)(ip + 1) > data_end || ip->version != 4)
		return OUTCOME_PASSED;
	header_bytes = ip->ihl * 4;
	if (header_bytes < sizeof(*ip))
		return OUTCOME_PASSED;
	packet->family = AF_INET;
	packet->protocol = ip->protocol;
	if (ip->frag_off & bpf_htons(IP_MF | IP_OFFSET)) {
		packet->fragment = ip->frag_off & bpf_htons(IP_OFFSET) ?
					   FRAGMENT_LATER :
					   FRAGMENT_FIRST;
		packet->fragment_id = ip->id;
	}
	packet->from[0] = ip->saddr;
	packet->to[0] = ip->daddr;
	packet->ip_bytes = bpf_ntohs(ip->tot_len);
	packet->l4_offset = packet->l3_offset + header_bytes;
	return OUTCOME_NEXT;
}

/*
 * Extension headers: RFC 8200, section 4. A function of its own, which the
 * verifier walks once.
 */
__noinline int parse_ipv6(struct xdp_md *ctx, __u32 kind)
{
	struct packet *packet = packet_of(kind);
	void *data_end = (void *)(long)ctx->data_end;
	const struct ipv6hdr *ipv6;
	__u32 offset = sizeof(*ipv6);
	__u8 next;

	if (!packet)
		return OUTCOME_PASSED;
	ipv6 = frame_at(ctx, packet->l3_offset, sizeof(*ipv6));
	if (!ipv6 || ipv6->version != 6)
		return OUTCOME_PASSED;
	next = ipv6->nexthdr;
	for (int i = 0; i < EXTENSION_HEADERS; i++) {
		const __u8 *header = (void *)ipv6 + offset;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING &&
		    next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT)
			break;
		if ((void *)(header + 8) > data_end)
			return OUTCOME_PASSED;
		if (next == IPPROTO_FRAGMENT) {
			__be16 place = *(const __be16 *)(header + 2);

			if (place & bpf_htons(0xfff8))
				packet->fragment = FRAGMENT_LATER;
			else if (place & bpf_htons(1))
				packet->fragment = FRAGMENT_FIRST;
			packet->fragment_id = *(const __be32 *)(header + 4);
			packet->fragment_offset = packet->l3_offset + offset;
			offset += 8;
		} else {
			offset += (header[1] + 1) * 8;
		}
		next = header[0];
		/* What follows is no header any more. */
		if (packet->fragment == FRAGMENT_LATER)
			break;
		/* Keeps the offset bounded for the verifier. */
		if (offset > L4_OFFSET_MAX - 64)
			return OUTCOME_PASSED;
	}
	packet->family = AF_INET6;
	packet->protocol = next;
	copy_address(packet->from, ipv6->saddr.in6_u.u6_addr32);
	copy_address(packet->to, ipv6->daddr.in6_u.u6_addr32);
	packet->ip_bytes = sizeof(*ipv6) + bpf_ntohs(ipv6->payload_len);
	packet->l4_offset = packet->l3_offset + offset;
	return OUTCOME_NEXT;
}

/* Sets tags and l3_offset; the Ethernet type behind the tags. */
static __always_inline __be16 parse_tags(struct packet *packet,
					 const struct ethhdr *eth,
					 const void *data_end)
{
	const __be32 *tag = (const void *)&eth->h_proto;
	__be16 type = eth->h_proto;

	packet->tags[0] = 0;
	packet->tags[1] = 0;
#pragma unroll
	for (int i = 0; i < VLAN_TAGS; i++) {
		if ((type != bpf_htons(ETH_P_8021Q) &&
		     type != bpf_htons(ETH_P_8021AD)) ||
		    (void *)(tag + 2) > data_end)
			break;
		packet->tags[i] = *tag++;
		packet->l3_offset += sizeof(*tag);
		type = *(const __be16 *)tag;
	}
	return type;
}

/* No two CPUs give the same; the seed keeps them from being foreseen. */
static __always_inline __be32 next_id(struct packet *packet)
{
	__u32 id = packet->ids++ * cpus + bpf_get_smp_processor_id() +
		   (__u32)hash_seed;

	return is_ipv6(packet) ? bpf_htonl(id) : bpf_htons(id);
}

/* The IP header and the ports, from l3_offset on. */
static __always_inline enum outcome parse_ip(struct xdp_md *ctx,
					     enum packet_kind kind,
					     struct packet *packet, __be16 type,
					     const void *ip)
{
	void *data_end = (void *)(long)ctx->data_end;
	enum outcome outcome = OUTCOME_PASSED;
	const __be16 *l4_ports;

	packet->fragment = FRAGMENT_NONE;
	if (serves_ipv6) {
		packet->from[1] = packet->from[2] = packet->from[3] = 0;
		packet->to[1] = packet->to[2] = packet->to[3] = 0;
	}
	if (type == bpf_htons(ETH_P_IP))
		outcome = parse_ipv4(packet, ip, data_end);
	else if (serves_ipv6 && type == bpf_htons(ETH_P_IPV6))
		outcome = parse_ipv6(ctx, kind);
	if (outcome)
		return outcome;
	packet->source_port = 0;
	packet->dest_port = 0;
	if (packet->protocol != IPPROTO_TCP && !is_udp(packet)) {
		/* Destination options may stand before either, out of sight. */
		if (packet->fragment == FRAGMENT_LATER)
			return is_ipv6(packet) && packet->protocol ==
							  IPPROTO_DSTOPTS ?
				       OUTCOME_NEXT :
				       OUTCOME_PASSED;
		return is_icmp(packet) && !packet->fragment ? OUTCOME_NEXT :
							      OUTCOME_PASSED;
	}
	if (packet->fragment == FRAGMENT_LATER)
		return OUTCOME_NEXT;
	if (packet->fragment)
		packet->new_id = next_id(packet);
	l4_ports = frame_at(ctx, packet->l4_offset, 4);
	if (!l4_ports)
		return OUTCOME_PASSED;
	packet->source_port = l4_ports[0];
	packet->dest_port = l4_ports[1];
	return OUTCOME_NEXT;
}

static __always_inline enum outcome parse_packet(struct xdp_md *ctx,
						 struct packet *packet)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	const struct ethhdr *eth = data;
	__be16 type;

	packet->frame_bytes = data_end - data;
	packet->backend = 0;
	packet->l3_offset = sizeof(*eth);
	if ((void *)(eth + 1) > data_end || !to_our_mac(eth))
		return OUTCOME_PASSED;
	if (!handles_vlan)
		return parse_ip(ctx, AT_HAND, packet, eth->h_proto, eth + 1);
	type = parse_tags(packet, eth, data_end);
	return parse_ip(ctx, AT_HAND, packet, type,
			data + (packet->l3_offset & L4_OFFSET_MAX));
}

#endif /* __XDP_PROXY_PARSE_H__ */
