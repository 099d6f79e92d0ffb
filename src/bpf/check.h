/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A packet that is known to be ours is judged: is it whole, may it travel on, may
 * its sender be answered?
 */
#ifndef __XDP_PROXY_CHECK_H__
#define __XDP_PROXY_CHECK_H__

#include "service.h"

#define FRAME_BYTES_MIN 60 /* of Ethernet, without the checksum */

/* The address is one that a host may have (RFC 1122, section 3.2.1.3; RFC 4291). */
static __always_inline bool is_unicast(const struct packet *packet)
{
	const __be32 *from = packet->from;
	__u8 first = *(const __u8 *)from;

	if (is_ipv6(packet)) {
		if (first == 0xff) /* multicast */
			return false;
		if (from[0] | from[1])
			return true;
		/* Neither :: nor ::1, nor what stands for an IPv4 address. */
		return from[2] ? from[2] != bpf_htonl(0xffff) :
				 (from[3] & ~bpf_htonl(1)) != 0;
	}
	/* Neither this network, nor loopback, nor multicast, nor class E. */
	return first && first != 127 && first < 0xe0;
}

/*
 * The packet says that it comes from where none can: from this host, from a whole
 * network, or from no host at all. What would answer it, or be sent on for it, might come
 * back to us without end. Asked of what would begin a flow or be answered, never of a
 * flow's packets. A function of its own, which the verifier walks once.
 */
__noinline int is_martian(void)
{
	const struct packet *packet = packet_at_hand();

	return !packet || !is_unicast(packet) ||
	       address_of(packet->family, packet->from);
}

/*
 * Is so much of the frame there? Most end there in the first buffer, or a little
 * further, as short ones are padded: others are asked how long they are, which takes
 * 9 ns. (So padding that goes on in another buffer may not be seen, and not counted.)
 */
static __always_inline bool reaches(struct xdp_md *ctx, struct packet *packet,
				    __u32 end)
{
	if (packet->frame_bytes - end < FRAME_BYTES_MIN)
		return true;
	if (several_buffers)
		packet->frame_bytes = bpf_xdp_get_buff_len(ctx);
	return end <= packet->frame_bytes;
}

/* Is the IP packet of ours whole, and may it travel on? */
static __always_inline enum outcome check_ip(struct xdp_md *ctx,
					     struct packet *packet)
{
	const __u8 *ip = frame_at(ctx, packet->l3_offset, sizeof(struct iphdr));
	__u32 end = packet->l3_offset + packet->ip_bytes;
	__u8 hops;

	if (!ip || end < packet->l4_offset || !reaches(ctx, packet, end))
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
		const struct tcphdr *header =
			frame_at(ctx, l4_offset, sizeof(*header));
		const __u8 *tcp = (const __u8 *)header;

		if (!header)
			return OUTCOME_DROPPED_MALFORMED;
		packet->flags = tcp[13];
		packet->sequence = bpf_ntohl(header->seq);
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

#endif /* __XDP_PROXY_CHECK_H__ */
