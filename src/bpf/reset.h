/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The client is told at once when nobody can serve it: its segment becomes the
 * RST that answers it (RFC 9293, section 3.10.7.1), IP options and all, so
 * that a checksum still to be completed keeps its place.
 */
#ifndef __XDP_PROXY_RESET_H__
#define __XDP_PROXY_RESET_H__

#include "forward.h"

#define RESET_TTL 64

/* Only RESET_ outcomes come here; they stay what they are if all goes well. */
static __always_inline enum outcome reset_client(struct xdp_md *ctx,
						 const struct packet *packet,
						 enum outcome outcome)
{
	const struct tcphdr *segment = packet->l4;
	__u8 flags = tcp_flags(segment);
	__u32 l4_offset = packet->ip->ihl * 4;
	__u32 segment_bytes = bpf_ntohs(packet->ip->tot_len) - l4_offset -
			      (((const __u8 *)segment)[12] >> 4 << 2);
	__u32 frame_bytes = ctx->data_end - ctx->data;
	enum checksum_kind kind = CHECKSUM_COMPLETE;
	__u8 client_mac[ETH_ALEN];
	void *data, *data_end;
	struct ethhdr *eth;
	struct iphdr *ip;
	struct tcphdr *tcp;
	__be32 address;
	__be16 port;
	__u16 segment_sum;
	__be16 total = bpf_htons(l4_offset + sizeof(*tcp));
	__u32 reset_bytes = sizeof(*eth) + l4_offset + sizeof(*tcp);
	__u64 sum = 0;

	if (partial_checksums && !complete_checksums)
		kind = checksum_kind(ctx, packet, NULL, &segment_sum);
	if (bpf_xdp_adjust_tail(ctx, (int)(reset_bytes - frame_bytes)))
		return OUTCOME_DROPPED_NO_ROOM;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	eth = data;
	ip = (void *)(eth + 1);
	tcp = (void *)ip + (l4_offset & 0x3c);
	if ((void *)(ip + 1) > data_end || (void *)(tcp + 1) > data_end)
		return OUTCOME_DROPPED_NO_ROOM;

	copy_mac(client_mac, eth->h_source);
	copy_mac(eth->h_source, eth->h_dest);
	copy_mac(eth->h_dest, client_mac);

	/* Swapped addresses leave the sum as it is. */
	address = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = address;
	ip->check = update_checksum(
		ip->check, (__u32)(__u16)~ip->tot_len + total + (__u16)~ip->id +
				   (__u16)~ip->frag_off + bpf_htons(IP_DF) +
				   (__u16)~bpf_htons(ip->ttl << 8) +
				   bpf_htons(RESET_TTL << 8));
	ip->tot_len = total;
	ip->id = 0;
	ip->frag_off = bpf_htons(IP_DF);
	ip->ttl = RESET_TTL;

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
	tcp->check = pseudo_header_sum(ip, sizeof(*tcp));
	if (kind == CHECKSUM_COMPLETE) {
		sum = 0;
#pragma unroll
		for (int i = 0; i < sizeof(*tcp) / 4; i++)
			sum += ((__u32 *)tcp)[i];
		tcp->check = ~fold(sum);
	}
	return outcome;
}

#endif /* __XDP_PROXY_RESET_H__ */
