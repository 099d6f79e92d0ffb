/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The sender is told at once when its packet can't go on: a segment that
 * nobody serves becomes the RST that answers it, a datagram an ICMP port
 * unreachable, and a packet whose time to live has run out an ICMP time
 * exceeded, as from any router.
 */
#ifndef __XDP_PROXY_ANSWER_H__
#define __XDP_PROXY_ANSWER_H__

#include "forward.h"

#define ANSWER_TTL 64

#define ICMP_DEST_UNREACH 3
#define ICMP_PORT_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define IPPROTO_ICMP 1
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PORT_UNREACH 4
#define ICMPV6_TIME_EXCEED 3
#define IPPROTO_ICMPV6 58

/* Of the packet in question, what an ICMP error quotes of its payload. */
#define QUOTED_BYTES_MAX 64
/* ICMP errors in one tick of the clock, as routers limit them (RFC 1812). */
#define ICMP_PER_TICK 16

/* A bucket of tokens, filled with each tick; approximate between CPUs. */
__u32 icmp_tick;
__u32 icmp_tokens;

static __always_inline bool may_send_icmp(void)
{
	__u32 tick = now();

	if (icmp_tick != tick) {
		icmp_tick = tick;
		icmp_tokens = ICMP_PER_TICK;
	}
	if (!icmp_tokens)
		return false;
	icmp_tokens--;
	return true;
}

/* An IPv4 header without options, but for the checksum of a change of it. */
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
	ip->ttl = ANSWER_TTL;
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
	ipv6->hop_limit = ANSWER_TTL;
	copy_address(ipv6->saddr.in6_u.u6_addr32, packet->to);
	copy_address(ipv6->daddr.in6_u.u6_addr32, packet->from);
}

/*
 * The segment becomes the RST (RFC 9293, section 3.10.7.1) in its place, IP
 * options and extension headers and all, so that a checksum that is still to
 * be completed keeps its place.
 */
static __always_inline enum outcome answer_tcp(struct xdp_md *ctx,
					       const struct packet *packet,
					       enum outcome outcome)
{
	const struct tcphdr *segment = packet->l4;
	__u8 flags = tcp_flags(segment);
	__u32 segment_bytes = l4_bytes(packet) - tcp_header_bytes(segment);
	__u32 reset_bytes = packet->l4_offset + sizeof(struct tcphdr);
	__u32 frame_bytes = ctx->data_end - ctx->data;
	enum checksum_kind kind = CHECKSUM_COMPLETE;
	__be16 total = bpf_htons(reset_bytes - packet->l3_offset);
	__u8 client_mac[ETH_ALEN];
	void *data, *data_end;
	struct ipv6hdr *ipv6;
	struct ethhdr *eth;
	struct tcphdr *tcp;
	struct iphdr *ip;
	__u16 segment_sum;
	__be16 port;
	__u64 sum;

	if (partial_checksums && !complete_checksums)
		kind = checksum_kind(ctx, packet, NULL, &segment_sum);
	if (bpf_xdp_adjust_tail(ctx, (int)(reset_bytes - frame_bytes)))
		return OUTCOME_DROPPED_NO_ROOM;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	eth = data;
	ip = (void *)(eth + 1);
	ipv6 = (void *)(eth + 1);
	tcp = data + (packet->l4_offset & L4_OFFSET_MAX);
	if ((void *)(ipv6 + 1) > data_end || (void *)(tcp + 1) > data_end)
		return OUTCOME_DROPPED_NO_ROOM;

	copy_mac(client_mac, eth->h_source);
	copy_mac(eth->h_source, eth->h_dest);
	copy_mac(eth->h_dest, client_mac);
	if (packet->family == AF_INET) {
		/* Swapped addresses leave the sum as it is. */
		ip->check = update_checksum(
			ip->check,
			(__u32)(__u16)~ip->tot_len + total + (__u16)~ip->id +
				(__u16)~ip->frag_off + bpf_htons(IP_DF) +
				(__u16)~bpf_htons(ip->ttl << 8) +
				bpf_htons(ANSWER_TTL << 8));
		ip->saddr = packet->to[0];
		ip->daddr = packet->from[0];
		ip->tot_len = total;
		ip->id = 0;
		ip->frag_off = bpf_htons(IP_DF);
		ip->ttl = ANSWER_TTL;
	} else {
		copy_address(ipv6->saddr.in6_u.u6_addr32, packet->to);
		copy_address(ipv6->daddr.in6_u.u6_addr32, packet->from);
		ipv6->payload_len =
			bpf_htons(bpf_ntohs(total) - sizeof(*ipv6));
		ipv6->hop_limit = ANSWER_TTL;
	}

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
		sum = 0;
#pragma unroll
		for (int i = 0; i < sizeof(*tcp) / 4; i++)
			sum += ((__u32 *)tcp)[i];
		tcp->check = ~fold(sum);
	}
	return outcome;
}

/*
 * The packet, cut to what is quoted, gets an IP and an ICMP header before it
 * (RFC 792, RFC 4443) and goes back.
 *
 * A checksum of the quoted packet that is still to be completed stays so: who
 * completes it writes its field, and that the ICMP checksum takes into account.
 */
static __always_inline enum outcome
answer_icmp(struct xdp_md *ctx, const struct packet *packet, __u8 type,
	    __u8 code, enum outcome outcome)
{
	bool v4 = packet->family == AF_INET;
	__u32 quoted = l4_bytes(packet) < QUOTED_BYTES_MAX ? l4_bytes(packet) :
							     QUOTED_BYTES_MAX;
	__u32 headers = (v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) +
			sizeof(struct icmphdr);
	__u32 icmp_bytes = sizeof(struct icmphdr) + packet->l4_offset -
			   packet->l3_offset + quoted;
	__u32 frame_bytes = ctx->data_end - ctx->data;
	__u32 icmp_offset = packet->l3_offset + headers -
			    sizeof(struct icmphdr);
	__u16 old = *l4_checksum(packet), segment_sum = 0, completed = old;
	__u8 client_mac[ETH_ALEN], our_mac[ETH_ALEN];
	enum checksum_kind kind = CHECKSUM_COMPLETE;
	void *data, *data_end;
	struct icmphdr *icmp;
	struct ethhdr *eth;
	__u64 sum = 0;

	if (!may_send_icmp())
		return outcome;
	if (partial_checksums && !complete_checksums)
		kind = checksum_kind(ctx, packet, NULL, &segment_sum);
	copy_mac(client_mac, packet->eth->h_source);
	copy_mac(our_mac, packet->eth->h_dest);
	if (bpf_xdp_adjust_tail(ctx, (int)(packet->l4_offset + quoted -
					   frame_bytes)))
		return OUTCOME_DROPPED_NO_ROOM;
	if (kind == CHECKSUM_PARTIAL)
		completed = ~fold(sum_segment(ctx, packet->l4_offset, quoted));
	if (bpf_xdp_adjust_head(ctx, -(int)headers))
		return OUTCOME_DROPPED_NO_ROOM;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	eth = data;
	if ((void *)(eth + 1) + sizeof(struct ipv6hdr) + sizeof(*icmp) >
	    data_end)
		return OUTCOME_DROPPED_NO_ROOM;
	copy_mac(eth->h_dest, client_mac);
	copy_mac(eth->h_source, our_mac);
	if (v4) {
		eth->h_proto = bpf_htons(ETH_P_IP);
		write_ipv4((void *)(eth + 1), packet, IPPROTO_ICMP,
			   sizeof(struct iphdr) + icmp_bytes);
		icmp = (void *)(eth + 1) + sizeof(struct iphdr);
	} else {
		eth->h_proto = bpf_htons(ETH_P_IPV6);
		write_ipv6((void *)(eth + 1), packet, IPPROTO_ICMPV6,
			   icmp_bytes);
		icmp = (void *)(eth + 1) + sizeof(struct ipv6hdr);
		sum = address_sum(packet->from) + address_sum(packet->to) +
		      bpf_htons(IPPROTO_ICMPV6) + bpf_htons(icmp_bytes);
	}
	*(__be32 *)icmp = 0;
	((__be32 *)icmp)[1] = 0;
	icmp->type = type;
	icmp->code = code;
	sum += sum_segment(ctx, icmp_offset, icmp_bytes) + (__u16)~old +
	       completed;
	/* The call has made the verifier forget what it knew of the packet. */
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	icmp = data + (v4 ? sizeof(*eth) + sizeof(struct iphdr) :
			    sizeof(*eth) + sizeof(struct ipv6hdr));
	if ((void *)(icmp + 1) > data_end)
		return OUTCOME_DROPPED_NO_ROOM;
	icmp->checksum = ~fold(sum);
	return outcome;
}

/* Only RESET_ outcomes come here; they stay what they are if all goes well. */
static __always_inline enum outcome refuse_client(struct xdp_md *ctx,
						  const struct packet *packet,
						  enum outcome outcome)
{
	if (packet->protocol == IPPROTO_TCP)
		return answer_tcp(ctx, packet, outcome);
	return packet->family == AF_INET ?
		       answer_icmp(ctx, packet, ICMP_DEST_UNREACH,
				   ICMP_PORT_UNREACH, outcome) :
		       answer_icmp(ctx, packet, ICMPV6_DEST_UNREACH,
				   ICMPV6_PORT_UNREACH, outcome);
}

#endif /* __XDP_PROXY_ANSWER_H__ */
