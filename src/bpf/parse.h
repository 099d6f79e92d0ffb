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
	struct iphdr *ip;
	void *l4;
	__be16 source_port;
	__be16 dest_port;

	/* What the packet turned out to belong to. */
	__u16 vip;	  /* the destination as a VIP, or 0 */
	__u16 source;	  /* the destination as a source address + 1, or 0 */
	__u32 hash;	  /* of the client's tuple */
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

static __always_inline bool to_our_mac(const struct ethhdr *eth)
{
	const __u16 *dest = (const __u16 *)eth->h_dest;
	const __u16 *ours = (const __u16 *)interface_mac;

	return dest[0] == ours[0] && dest[1] == ours[1] && dest[2] == ours[2];
}

static __always_inline enum outcome parse_packet(struct xdp_md *ctx,
						 struct packet *packet)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	__be16 *l4_ports;
	__u32 header_bytes;

	if ((void *)(ip + 1) > data_end || eth->h_proto != bpf_htons(ETH_P_IP))
		return OUTCOME_PASSED;
	header_bytes = ip->ihl * 4;
	if (ip->version != 4 || header_bytes < sizeof(*ip) ||
	    ip->protocol != IPPROTO_TCP)
		return OUTCOME_PASSED;
	/* Only a first fragment has ports. */
	if (ip->frag_off & bpf_htons(IP_OFFSET))
		return OUTCOME_PASSED;
	l4_ports = (void *)ip + header_bytes;
	if ((void *)(l4_ports + 2) > data_end || !to_our_mac(eth))
		return OUTCOME_PASSED;

	packet->data_end = data_end;
	packet->eth = eth;
	packet->ip = ip;
	packet->l4 = l4_ports;
	packet->source_port = l4_ports[0];
	packet->dest_port = l4_ports[1];
	return OUTCOME_NEXT;
}

/*
 * A packet that is known to be ours: is it whole, and may it travel on?
 * IHL was bounded by the parser; TCP's length is not needed but its header is.
 */
static __always_inline enum outcome check_packet(const struct packet *packet)
{
	const struct iphdr *ip = packet->ip;
	const struct tcphdr *tcp = packet->l4;
	__u32 l4_offset = ip->ihl * 4;
	__u32 total_bytes = bpf_ntohs(ip->tot_len);
	__u32 tcp_bytes;

	if (ip->frag_off & bpf_htons(IP_MF))
		return OUTCOME_DROPPED_FRAGMENT;
	if ((void *)(tcp + 1) > packet->data_end ||
	    total_bytes > packet->data_end - (void *)ip)
		return OUTCOME_DROPPED_MALFORMED;
	tcp_bytes = ((const __u8 *)tcp)[12] >> 4 << 2;
	if (tcp_bytes < sizeof(*tcp) || total_bytes < l4_offset + tcp_bytes)
		return OUTCOME_DROPPED_MALFORMED;
	if (ip->ttl <= 1)
		return OUTCOME_DROPPED_TTL;
	return OUTCOME_NEXT;
}

#endif /* __XDP_PROXY_PARSE_H__ */
