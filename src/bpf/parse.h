/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From the first byte to the ports. Nothing is judged here: what can't be of
 * any service is passed, and what is wrong with a packet of ours shows later,
 * when it is known to be ours (check_packet).
 */
#ifndef __XDP_PROXY_PARSE_H__
#define __XDP_PROXY_PARSE_H__

#include "maps.h"

enum fragment_kind {
	FRAGMENT_NONE,
	FRAGMENT_FIRST,
	FRAGMENT_LATER, /* has no ports */
};

/*
 * What is known of the packet at hand: one a CPU, in a map. There the verifier
 * forgets each value as it is written, so that it walks a later stage once, not
 * once for every kind of packet; and stages can be functions of their own.
 * The second of a CPU is the packet that an ICMP error quotes.
 */
struct packet {
	__u32 frame_bytes;
	__u32 l3_offset; /* bytes from the frame's beginning */
	__u32 l4_offset;
	__u32 ip_bytes; /* the IP packet's length by its own header */
	__u8 family;
	__u8 protocol;
	__u8 fragment; /* enum fragment_kind */
	__u8 flags; /* TCP's; 0 for others. Known once the packet was checked */
	__be16 source_port; /* both 0 for ICMP and later fragments */
	__be16 dest_port;
	__be32 from[4]; /* addresses, as in struct address */
	__be32 to[4];
	__u32 l4_header_bytes;	    /* known once the packet was checked */
	__be32 tags[VLAN_TAGS];	    /* outermost first; 0: none */
	__be32 fragment_id;	    /* IPv4: the lower 16 bits in memory */
	__u32 fragment_offset;	    /* IPv6: of the header that says so */
	__be32 new_id;		    /* that the fragment leaves with */
	__be32 new_tags[VLAN_TAGS]; /* the same */
	__u32 ids;		    /* that this CPU has given to fragments */

	/* What the packet turned out to belong to. */
	__u16 vip;	    /* the destination as a VIP, or 0 */
	__u16 source;	    /* the destination as a source address + 1, or 0 */
	__u32 answers_echo; /* the destination is a VIP that nobody owns */
	__u32 hash;	    /* of the client's tuple */
	__u32 home;	    /* the first group where its flow may be */
	__u32 insertions;   /* of flows with that home, when it was searched */
	__u32 begun;	    /* flows that this CPU has begun */
	__u32 service;	    /* index into services */
	__u32 slot;	    /* of its flow */
	__u32 backend;	    /* index; 0: counted for no backend */
	__u32 direction;    /* enum direction */
	__u32 outcome;	    /* enum outcome: what became of it */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct packet);
} packets SEC(".maps");

enum packet_kind { AT_HAND, QUOTED };

static __always_inline struct packet *packet_of(__u32 kind)
{
	return bpf_map_lookup_elem(&packets, &kind);
}

static __always_inline struct packet *packet_at_hand(void)
{
	return packet_of(AT_HAND);
}

/* So many bytes of the frame from an offset on; NULL: they are not there. */
static __always_inline void *frame_at(const struct xdp_md *ctx, __u32 offset,
				      __u32 bytes)
{
	void *data_end = (void *)(long)ctx->data_end;
	void *at = (void *)(long)ctx->data;

	/* clang may know the bound already; the verifier wants to see it. */
	barrier_var(offset);
	at += offset & L4_OFFSET_MAX;
	return at + bytes > data_end ? NULL : at;
}

/* TCP flags as they lie in the header: RFC 9293, section 3.1. */
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

static __always_inline bool to_our_mac(const struct ethhdr *eth)
{
	const __u16 *dest = (const __u16 *)eth->h_dest;
	const __u16 *ours = (const __u16 *)interface_mac;

	return dest[0] == ours[0] && dest[1] == ours[1] && dest[2] == ours[2];
}

static __always_inline void copy_address(__be32 *to, const __be32 *from)
{
	to[0] = from[0];
	if (serves_ipv6) {
		to[1] = from[1];
		to[2] = from[2];
		to[3] = from[3];
	}
}

/* IPv4 addresses agree in the three words that are 0. */
static __always_inline bool same_address(const __be32 *one, const __be32 *other)
{
	return one[0] == other[0] &&
	       (!serves_ipv6 || (one[1] == other[1] && one[2] == other[2] &&
				 one[3] == other[3]));
}

static __always_inline bool is_ipv6(const struct packet *packet)
{
	return serves_ipv6 && packet->family == AF_INET6;
}

static __always_inline bool is_icmp(const struct packet *packet)
{
	return packet->protocol ==
	       (is_ipv6(packet) ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
}

static __always_inline bool is_udp(const struct packet *packet)
{
	return serves_udp && packet->protocol == IPPROTO_UDP;
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

static __always_inline __u32 l4_bytes(const struct packet *packet)
{
	return packet->ip_bytes - (packet->l4_offset - packet->l3_offset);
}

static __always_inline __u32 checksum_offset(const struct packet *packet)
{
	return is_udp(packet) ? offsetof(struct udphdr, check) :
				offsetof(struct tcphdr, check);
}

/* The packet's TCP or UDP checksum; NULL: the frame is too short. */
static __always_inline __u16 *checksum_at(const struct xdp_md *ctx,
					  const struct packet *packet)
{
	return frame_at(ctx, packet->l4_offset + checksum_offset(packet),
			sizeof(__u16));
}

/* The sender's address is one host's: it may be answered (RFC 1122, 3.2.1.3). */
static __always_inline bool is_from_host(const struct packet *packet)
{
	__u8 first = *(const __u8 *)packet->from;

	/* Neither multicast, nor ::, nor ::1. */
	if (is_ipv6(packet))
		return first != 0xff &&
		       (packet->from[0] | packet->from[1] | packet->from[2] |
			(packet->from[3] & ~bpf_htonl(1)));
	return first && first != 127 && (first & 0xf0) != 0xe0 &&
	       packet->from[0] != 0xffffffff;
}

/* Is the IP packet of ours whole, and may it travel on? */
static __always_inline enum outcome check_ip(struct xdp_md *ctx,
					     const struct packet *packet)
{
	const __u8 *ip = frame_at(ctx, packet->l3_offset, sizeof(struct iphdr));
	__u8 hops;

	if (!ip || packet->l3_offset + packet->ip_bytes > packet->frame_bytes ||
	    packet->l3_offset + packet->ip_bytes < packet->l4_offset)
		return OUTCOME_DROPPED_MALFORMED;
	hops = ip[is_ipv6(packet) ? offsetof(struct ipv6hdr, hop_limit) :
				    offsetof(struct iphdr, ttl)];
	return hops <= 1 ? OUTCOME_TIME_EXCEEDED : OUTCOME_NEXT;
}

/* A packet that is known to be ours: is it whole, and may it travel on? */
static __always_inline enum outcome check_packet(struct xdp_md *ctx,
						 struct packet *packet)
{
	__u32 l4_offset = packet->l4_offset, l4_bytes_min;

	if (!is_udp(packet)) {
		/* As bytes: the kernel's bitfields moved between versions. */
		const __u8 *tcp =
			frame_at(ctx, l4_offset, sizeof(struct tcphdr));

		if (!tcp)
			return OUTCOME_DROPPED_MALFORMED;
		packet->flags = tcp[13];
		l4_bytes_min = tcp[12] >> 4 << 2;
		packet->l4_header_bytes = l4_bytes_min;
		if (l4_bytes_min < sizeof(struct tcphdr))
			return OUTCOME_DROPPED_MALFORMED;
	} else {
		const struct udphdr *udp =
			frame_at(ctx, l4_offset, sizeof(struct udphdr));

		if (!udp)
			return OUTCOME_DROPPED_MALFORMED;
		packet->flags = 0;
		packet->l4_header_bytes = sizeof(*udp);
		l4_bytes_min = bpf_ntohs(udp->len);
		/* RFC 8200, section 8.1: IPv6 wants a checksum. */
		if (l4_bytes_min < sizeof(*udp) ||
		    (is_ipv6(packet) && !udp->check))
			return OUTCOME_DROPPED_MALFORMED;
		if (packet->fragment)
			l4_bytes_min = sizeof(*udp);
	}
	if (packet->l3_offset + packet->ip_bytes < l4_offset + l4_bytes_min)
		return OUTCOME_DROPPED_MALFORMED;
	return check_ip(ctx, packet);
}

#endif /* __XDP_PROXY_PARSE_H__ */
