/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A packet that is known to be ours is judged: is it whole, may it travel on, may
 * its sender be answered?
 */
#ifndef __XDP_PROXY_CHECK_H__
#define __XDP_PROXY_CHECK_H__

#include "packet.h"

#define FRAME_BYTES_MIN 60 /* of Ethernet, without the checksum */

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
