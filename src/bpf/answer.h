/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The sender is told at once when its packet can't go on: a segment that
 * nobody serves becomes the RST that answers it, a datagram an ICMP port
 * unreachable, and a packet whose time to live has run out an ICMP time
 * exceeded, as from any router.
 */
#ifndef __XDP_PROXY_ANSWER_H__
#define __XDP_PROXY_ANSWER_H__

#include "icmp.h"

/* Of the packet in question, what an ICMP error quotes of its payload. */
#define QUOTED_BYTES_MAX 64
/*
 * ICMP errors are limited as routers limit them (RFC 1812, section 4.3.2.8): so many
 * in one tick of the clock to all, and to each destination one a second, after so many
 * at once, as the kernel does (icmp_ratelimit). Who forges his source has no more than
 * that sent to his victim. RSTs and echo replies, which are no longer than what they
 * answer, are not limited, as the kernel's are not.
 */
#define ICMP_PER_TICK 16
#define ICMP_BURST 6
#define ICMP_DESTINATIONS 4096 /* that are told apart, by their hash */

/* A bucket of tokens, filled with each tick; approximate between CPUs. */
__u32 icmp_tick;
__u32 icmp_tokens;
/* Jiffies at which one error a second would have come to what was sent. */
__u32 icmp_until[ICMP_DESTINATIONS];

static __always_inline bool may_send_icmp(const struct packet *packet)
{
	__u32 bucket =
		mix(address_key(packet->from) ^ hash_seed) % ICMP_DESTINATIONS;
	__u32 tick = now(), ahead = icmp_until[bucket] - tick;

	if (icmp_tick != tick) {
		icmp_tick = tick;
		icmp_tokens = ICMP_PER_TICK;
	}
	/* It is over, or was never used. */
	if (ahead > ICMP_BURST * second_ticks)
		ahead = 0;
	if (!icmp_tokens || ahead > (ICMP_BURST - 1) * second_ticks)
		return false;
	icmp_tokens--;
	icmp_until[bucket] = tick + ahead + second_ticks;
	return true;
}

/*
 * Cuts the frame, which is as long or longer. A function of its own, which the
 * verifier walks once. In generic mode not a frame in several buffers: the kernel
 * would take what it frees off the packet's buffers, but not off its length, and send
 * on what lies behind them (Linux 6.18 does).
 */
__noinline int cut_frame(struct xdp_md *ctx, __u32 bytes)
{
	__u32 first = first_buffer_bytes(ctx);
	__u32 has = several_buffers ? bpf_xdp_get_buff_len(ctx) : first;

	/* Of several buffers to cut off nothing is an error. */
	if (has == bytes)
		return true;
	if (has != first && !complete_checksums)
		return false;
	return !bpf_xdp_adjust_tail(ctx, (int)(bytes - has));
}

/*
 * All behind so many bytes becomes padding, which no checksum minds: zeros. Not of a
 * GSO packet, which would be cut into segments again: its sender tries a single one
 * next.
 */
static __always_inline bool pad_frame(struct xdp_md *ctx,
				      const struct packet *packet, __u32 bytes)
{
	return several_buffers && packet->ip_bytes <= interface_mtu_bytes &&
	       clear_frame(ctx, bytes);
}

/* An IPv4 header without options. */
static __always_inline void write_ipv4(struct iphdr *ip,
				       const struct packet *packet,
				       __u8 protocol, __u32 bytes)
{
	__u64 sum = 0;

	((__u8 *)ip)[0] = 0x45;
	ip->tos = 0;
	ip->tot_len = bpf_htons(bytes);
	ip->id = 0;
	ip->frag_off = bpf_htons(IP_DF);
	ip->ttl = HOST_TTL;
	ip->protocol = protocol;
	ip->check = 0;
	ip->saddr = packet->to[0];
	ip->daddr = packet->from[0];
#pragma unroll
	for (int i = 0; i < sizeof(*ip) / 4; i++)
		sum += ((__u32 *)ip)[i];
	ip->check = ~fold(sum);
}

static __always_inline void write_ipv6(struct ipv6hdr *ipv6,
				       const struct packet *packet,
				       __u8 next_header, __u32 payload_bytes)
{
	*(__be32 *)ipv6 = bpf_htonl(6 << 28);
	ipv6->payload_len = bpf_htons(payload_bytes);
	ipv6->nexthdr = next_header;
	ipv6->hop_limit = HOST_TTL;
	copy_address(ipv6->saddr.in6_u.u6_addr32, packet->to);
	copy_address(ipv6->daddr.in6_u.u6_addr32, packet->from);
}

/*
 * The segment becomes the RST (RFC 9293, section 3.10.7.1) in its place, IP
 * options and extension headers and all, so that a checksum that is still to
 * be completed keeps its place.
 */
__noinline int answer_tcp(struct xdp_md *ctx, int outcome)
{
	struct packet *packet = packet_at_hand();
	__u32 segment_bytes, reset_bytes;
	enum checksum_kind kind = CHECKSUM_COMPLETE;
	const __u16 *checksum;
	__u16 segment_sum;
	struct ethhdr *eth;
	struct tcphdr *tcp;
	__be16 total, port;
	__u64 sum = 0;
	__u8 flags;

	if (!packet)
		return OUTCOME_DROPPED_NO_ROOM;
	checksum = checksum_at(ctx, packet);
	if (!checksum)
		return OUTCOME_DROPPED_NO_ROOM;
	if (partial_checksums && !complete_checksums && !packet->fragment)
		kind = checksum_kind(ctx, packet, *checksum, NULL,
				     &segment_sum);
	flags = packet->flags;
	segment_bytes = l4_bytes(packet) - packet->l4_header_bytes;
	reset_bytes = packet->l4_offset + sizeof(*tcp);
	total = bpf_htons(reset_bytes - packet->l3_offset);
	if (!cut_frame(ctx, reset_bytes) &&
	    !pad_frame(ctx, packet, reset_bytes))
		return OUTCOME_DROPPED_NO_ROOM;

	if (!is_ipv6(packet)) {
		struct iphdr *ip =
			frame_at(ctx, packet->l3_offset, sizeof(*ip));

		if (!ip)
			return OUTCOME_DROPPED_NO_ROOM;
		/* Swapped addresses leave the sum as it is. */
		ip->check = update_checksum(
			ip->check,
			(__u32)(__u16)~ip->tot_len + total + (__u16)~ip->id +
				(__u16)~ip->frag_off + bpf_htons(IP_DF) +
				(__u16)~bpf_htons(ip->ttl << 8) +
				bpf_htons(HOST_TTL << 8));
		ip->saddr = packet->to[0];
		ip->daddr = packet->from[0];
		ip->tot_len = total;
		ip->id = 0;
		ip->frag_off = bpf_htons(IP_DF);
		ip->ttl = HOST_TTL;
	} else {
		struct ipv6hdr *ipv6 =
			frame_at(ctx, packet->l3_offset, sizeof(*ipv6));

		if (!ipv6)
			return OUTCOME_DROPPED_NO_ROOM;
		copy_address(ipv6->saddr.in6_u.u6_addr32, packet->to);
		copy_address(ipv6->daddr.in6_u.u6_addr32, packet->from);
		ipv6->payload_len = bpf_htons(bpf_ntohs(total) - sizeof(*ipv6));
		ipv6->hop_limit = HOST_TTL;
	}

	tcp = frame_at(ctx, packet->l4_offset, sizeof(*tcp));
	eth = frame_at(ctx, 0, sizeof(*eth));
	if (!tcp || !eth)
		return OUTCOME_DROPPED_NO_ROOM;
	swap_macs(eth);
	port = tcp->source;
	tcp->source = tcp->dest;
	tcp->dest = port;
	if (flags & TCP_ACK) {
		tcp->seq = tcp->ack_seq;
		tcp->ack_seq = 0;
	} else {
		segment_bytes += !!(flags & TCP_SYN) + !!(flags & TCP_FIN);
		tcp->ack_seq = bpf_htonl(bpf_ntohl(tcp->seq) + segment_bytes);
		tcp->seq = 0;
	}
	((__u8 *)tcp)[12] = sizeof(*tcp) / 4 << 4;
	((__u8 *)tcp)[13] = flags & TCP_ACK ? TCP_RST : TCP_RST | TCP_ACK;
	tcp->window = 0;
	tcp->urg_ptr = 0;
	tcp->check = pseudo_header_sum(packet, sizeof(*tcp));
	if (kind == CHECKSUM_COMPLETE) {
#pragma unroll
		for (int i = 0; i < sizeof(*tcp) / 4; i++)
			sum += ((__u32 *)tcp)[i];
		tcp->check = ~fold(sum);
	}
	return steer_answer(ctx) ? outcome : OUTCOME_DROPPED_NO_ROOM;
}

/*
 * The packet, cut to what is quoted, gets an IP and an ICMP header before it
 * (RFC 792, RFC 4443) and goes back.
 *
 * A checksum of the quoted packet that is still to be completed stays so: who
 * completes it writes its field, and that the ICMP checksum takes into account.
 */
__noinline int answer_icmp(struct xdp_md *ctx, __u8 type, __u8 code,
			   int outcome)
{
	struct packet *packet = packet_at_hand();
	__u16 segment_sum, old, completed;
	__u32 quoted, headers, icmp_bytes;
	const __u16 *checksum;
	struct icmphdr *icmp;
	struct ethhdr *eth;
	__u8 macs[MACS_BYTES];
	__u64 sum = 0;

	if (!packet || !may_send_icmp(packet))
		return OUTCOME_DROPPED_ICMP_LIMIT;
	checksum = checksum_at(ctx, packet);
	eth = frame_at(ctx, 0, sizeof(*eth));
	if (!checksum || !eth)
		return OUTCOME_DROPPED_NO_ROOM;
	copy_mac(macs, eth->h_source);
	copy_mac(macs + ETH_ALEN, eth->h_dest);
	old = *checksum;
	completed = old;
	quoted = l4_bytes(packet);
	if (quoted > QUOTED_BYTES_MAX)
		quoted = QUOTED_BYTES_MAX;
	if (partial_checksums && !complete_checksums && !packet->fragment &&
	    checksum_kind(ctx, packet, old, NULL, &segment_sum) ==
		    CHECKSUM_PARTIAL)
		completed = ~fold(sum_segment(ctx, packet->l4_offset, quoted));
	if (!cut_frame(ctx, packet->l4_offset + quoted))
		return OUTCOME_DROPPED_NO_ROOM;

	icmp_bytes =
		sizeof(*icmp) + packet->l4_offset - packet->l3_offset + quoted;
	if (!is_ipv6(packet))
		headers = sizeof(struct iphdr);
	else
		headers = sizeof(struct ipv6hdr);
	if (bpf_xdp_adjust_head(ctx, -(int)(headers + sizeof(*icmp))))
		return OUTCOME_DROPPED_NO_ROOM;
	eth = frame_at(ctx, 0, sizeof(*eth));
	if (!eth)
		return OUTCOME_DROPPED_NO_ROOM;
	copy_mac(eth->h_dest, macs);
	copy_mac(eth->h_source, macs + ETH_ALEN);
	if (!write_tags(ctx, packet->tags,
			bpf_htons(is_ipv6(packet) ? ETH_P_IPV6 : ETH_P_IP)))
		return OUTCOME_DROPPED_NO_ROOM;
	if (!is_ipv6(packet)) {
		struct iphdr *ip =
			frame_at(ctx, packet->l3_offset, sizeof(*ip));

		if (!ip)
			return OUTCOME_DROPPED_NO_ROOM;
		write_ipv4(ip, packet, IPPROTO_ICMP, headers + icmp_bytes);
	} else {
		struct ipv6hdr *ipv6 =
			frame_at(ctx, packet->l3_offset, sizeof(*ipv6));

		if (!ipv6)
			return OUTCOME_DROPPED_NO_ROOM;
		write_ipv6(ipv6, packet, IPPROTO_ICMPV6, icmp_bytes);
		sum = address_sum(packet->from) + address_sum(packet->to) +
		      bpf_htons(IPPROTO_ICMPV6) + bpf_htons(icmp_bytes);
	}
	icmp = frame_at(ctx, packet->l3_offset + headers, sizeof(*icmp));
	if (!icmp)
		return OUTCOME_DROPPED_NO_ROOM;
	((__be32 *)icmp)[0] = 0;
	((__be32 *)icmp)[1] = 0;
	icmp->type = type;
	icmp->code = code;
	sum += sum_segment(ctx, packet->l3_offset + headers, icmp_bytes);
	sum += (__u16)~old + completed;
	/* The call made the verifier forget what it knew of the frame. */
	icmp = frame_at(ctx, packet->l3_offset + headers, sizeof(*icmp));
	if (!icmp)
		return OUTCOME_DROPPED_NO_ROOM;
	icmp->checksum = ~fold(sum);
	return steer_answer(ctx) ? outcome : OUTCOME_DROPPED_NO_ROOM;
}

/* Tells the sender, where the outcome is one that it is told of. */
static __always_inline enum outcome
answer(struct xdp_md *ctx, const struct packet *packet, enum outcome outcome)
{
	bool v6 = is_ipv6(packet);

	if (outcome < OUTCOME_REFUSED_NO_FLOW ||
	    outcome > OUTCOME_TIME_EXCEEDED)
		return outcome;
	if (is_martian())
		return OUTCOME_DROPPED_MARTIAN;
	if (outcome == OUTCOME_TIME_EXCEEDED) {
		/* No error about an error, nor about a later fragment. */
		if (is_icmp(packet) || packet->fragment == FRAGMENT_LATER)
			return OUTCOME_DROPPED_ICMP_LIMIT;
		return answer_icmp(ctx,
				   v6 ? ICMPV6_TIME_EXCEED : ICMP_TIME_EXCEEDED,
				   0, outcome);
	}
	if (is_udp(packet))
		return answer_icmp(
			ctx, v6 ? ICMPV6_DEST_UNREACH : ICMP_DEST_UNREACH,
			v6 ? ICMPV6_PORT_UNREACH : ICMP_PORT_UNREACH, outcome);
	/* A header of IPv6 says that it is a fragment, and would in the RST. */
	if (packet->fragment)
		return OUTCOME_DROPPED_FRAGMENT;
	return answer_tcp(ctx, outcome);
}

#endif /* __XDP_PROXY_ANSWER_H__ */
