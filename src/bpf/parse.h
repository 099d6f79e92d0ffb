/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From the first byte to the ports. Nothing is judged here: what can't be of
 * any service is passed, and what is wrong with a packet of ours shows later,
 * when it is known to be ours (check_packet).
 */
#ifndef __XDP_PROXY_PARSE_H__
#define __XDP_PROXY_PARSE_H__

#include "maps.h"

struct packet {
	void *data_end;
	struct ethhdr *eth;
	struct iphdr *ip;     /* IPv4, or */
	struct ipv6hdr *ipv6; /* IPv6 */
	void *l4;	      /* TCP or UDP */
	__u8 family;
	__u8 protocol;
	bool fragment; /* the first one; no other has ports */
	__be16 source_port;
	__be16 dest_port;
	__be32 from[4]; /* addresses, as in struct address */
	__be32 to[4];
	__u32 l3_offset; /* bytes from the frame's beginning */
	__u32 l4_offset;
	__u32 ip_bytes; /* the IP packet's length by its own header */

	/* What the packet turned out to belong to. */
	__u16 vip;	  /* the destination as a VIP, or 0 */
	__u16 source;	  /* the destination as a source address + 1, or 0 */
	__u32 hash;	  /* of the tuple, where it came from a client */
	__u32 insertions; /* into its bucket when it was searched */
	__u32 service;	  /* place of the service in services */
	__u32 slot;
	enum direction direction;
	struct flow *flow;
	struct backend *backend;
	__u16 backend_index; /* 0: counted for no backend */
};

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* The flags as one byte: the kernel's bitfields moved between its versions. */
static __always_inline __u8 tcp_flags(const struct tcphdr *tcp)
{
	return ((const __u8 *)tcp)[13];
}

static __always_inline __u32 tcp_header_bytes(const struct tcphdr *tcp)
{
	return ((const __u8 *)tcp)[12] >> 4 << 2;
}

static __always_inline bool to_our_mac(const struct ethhdr *eth)
{
	const __u16 *dest = (const __u16 *)eth->h_dest;
	const __u16 *ours = (const __u16 *)interface_mac;

	return dest[0] == ours[0] && dest[1] == ours[1] && dest[2] == ours[2];
}

static __always_inline void copy_address(__be32 *to, const __be32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

static __always_inline bool same_address(const __be32 *one, const __be32 *other,
					 __u8 family)
{
	return one[0] == other[0] &&
	       (family == AF_INET || (one[1] == other[1] &&
				      one[2] == other[2] && one[3] == other[3]));
}

static __always_inline enum outcome parse_ipv4(struct packet *packet)
{
	struct iphdr *ip = (void *)(packet->eth + 1);
	__u32 header_bytes;

	if ((void *)(ip + 1) > packet->data_end || ip->version != 4)
		return OUTCOME_PASSED;
	header_bytes = ip->ihl * 4;
	/* Only a first fragment has ports. */
	if (header_bytes < sizeof(*ip) ||
	    (ip->frag_off & bpf_htons(IP_OFFSET)))
		return OUTCOME_PASSED;
	packet->ip = ip;
	packet->family = AF_INET;
	packet->protocol = ip->protocol;
	packet->fragment = ip->frag_off & bpf_htons(IP_MF);
	packet->from[0] = ip->saddr;
	packet->to[0] = ip->daddr;
	packet->ip_bytes = bpf_ntohs(ip->tot_len);
	packet->l4_offset = sizeof(*packet->eth) + header_bytes;
	return OUTCOME_NEXT;
}

/* Extension headers: RFC 8200, section 4. */
static __always_inline enum outcome parse_ipv6(struct packet *packet)
{
	struct ipv6hdr *ipv6 = (void *)(packet->eth + 1);
	__u32 offset = sizeof(*packet->eth) + sizeof(*ipv6);
	__u8 next;

	if ((void *)(ipv6 + 1) > packet->data_end || ipv6->version != 6)
		return OUTCOME_PASSED;
	next = ipv6->nexthdr;
	for (int i = 0; i < EXTENSION_HEADERS; i++) {
		const __u8 *header = (void *)packet->eth + offset;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING &&
		    next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT)
			break;
		if ((void *)(header + 8) > packet->data_end)
			return OUTCOME_PASSED;
		if (next == IPPROTO_FRAGMENT) {
			__be16 place = *(const __be16 *)(header + 2);

			if (place & bpf_htons(0xfff8))
				return OUTCOME_PASSED;
			packet->fragment |= place & bpf_htons(1);
			offset += 8;
		} else {
			offset += (header[1] + 1) * 8;
		}
		next = header[0];
		/* Keeps the offset bounded for the verifier. */
		if (offset > L4_OFFSET_MAX)
			return OUTCOME_PASSED;
	}
	packet->ipv6 = ipv6;
	packet->family = AF_INET6;
	packet->protocol = next;
	copy_address(packet->from, ipv6->saddr.in6_u.u6_addr32);
	copy_address(packet->to, ipv6->daddr.in6_u.u6_addr32);
	packet->ip_bytes = sizeof(*ipv6) + bpf_ntohs(ipv6->payload_len);
	packet->l4_offset = offset;
	return OUTCOME_NEXT;
}

static __always_inline enum outcome parse_packet(struct xdp_md *ctx,
						 struct packet *packet)
{
	void *data = (void *)(long)ctx->data;
	enum outcome outcome = OUTCOME_PASSED;
	__be16 *l4_ports;

	packet->data_end = (void *)(long)ctx->data_end;
	packet->eth = data;
	packet->l3_offset = sizeof(*packet->eth);
	if ((void *)(packet->eth + 1) > packet->data_end)
		return OUTCOME_PASSED;
	if (packet->eth->h_proto == bpf_htons(ETH_P_IP))
		outcome = parse_ipv4(packet);
	else if (packet->eth->h_proto == bpf_htons(ETH_P_IPV6))
		outcome = parse_ipv6(packet);
	if (outcome)
		return outcome;
	if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP)
		return OUTCOME_PASSED;
	l4_ports = data + packet->l4_offset;
	if ((void *)(l4_ports + 2) > packet->data_end ||
	    !to_our_mac(packet->eth))
		return OUTCOME_PASSED;
	packet->l4 = l4_ports;
	packet->source_port = l4_ports[0];
	packet->dest_port = l4_ports[1];
	return OUTCOME_NEXT;
}

static __always_inline __u32 l4_bytes(const struct packet *packet)
{
	return packet->ip_bytes - (packet->l4_offset - packet->l3_offset);
}

static __always_inline __u16 *l4_checksum(const struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP ?
		       &((struct tcphdr *)packet->l4)->check :
		       &((struct udphdr *)packet->l4)->check;
}

/* A packet that is known to be ours: is it whole, and may it travel on? */
static __always_inline enum outcome check_packet(const struct packet *packet)
{
	const struct tcphdr *tcp = packet->l4;
	const struct udphdr *udp = packet->l4;
	__u32 header_bytes;
	__u8 hops;

	if (packet->fragment)
		return OUTCOME_DROPPED_FRAGMENT;
	if (packet->protocol == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > packet->data_end)
			return OUTCOME_DROPPED_MALFORMED;
		header_bytes = tcp_header_bytes(tcp);
		if (header_bytes < sizeof(*tcp))
			return OUTCOME_DROPPED_MALFORMED;
	} else {
		if ((void *)(udp + 1) > packet->data_end)
			return OUTCOME_DROPPED_MALFORMED;
		header_bytes = bpf_ntohs(udp->len);
		if (header_bytes < sizeof(*udp))
			return OUTCOME_DROPPED_MALFORMED;
	}
	if (packet->l3_offset + packet->ip_bytes >
		    packet->data_end - (void *)packet->eth ||
	    packet->l3_offset + packet->ip_bytes <
		    packet->l4_offset + header_bytes)
		return OUTCOME_DROPPED_MALFORMED;
	hops = packet->family == AF_INET ? packet->ip->ttl :
					   packet->ipv6->hop_limit;
	return hops <= 1 ? OUTCOME_DROPPED_TTL : OUTCOME_NEXT;
}

#endif /* __XDP_PROXY_PARSE_H__ */
