/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is known of the packet at hand, and where its bytes are.
 */
#ifndef __XDP_PROXY_PACKET_H__
#define __XDP_PROXY_PACKET_H__

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
	__u32 frame_bytes; /* in its first buffer; in all, once it was checked */
	__u32 l3_offset;   /* bytes from the frame's beginning */
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
	__u32 sequence;		    /* the same, of TCP */
	__u32 acknowledged;	    /* known where the segment is tracked */
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

	/* Of the flows nearby, the one that makes room first; rank 0: none. */
	__u32 idlest_rank;
	__u32 idlest_slot;
	__u32 idlest_steps;

	__be16 avoided_port; /* that a new flow must not come from */
	__u16 pad;
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

/* So many bytes of the frame's first buffer from an offset on; NULL: not there. */
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

static __always_inline __u32 l4_bytes(const struct packet *packet)
{
	return packet->ip_bytes - (packet->l4_offset - packet->l3_offset);
}

/* Of a packet that was checked, behind its transport header. */
static __always_inline __u32 payload_bytes(const struct packet *packet)
{
	return l4_bytes(packet) - packet->l4_header_bytes;
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

#endif /* __XDP_PROXY_PACKET_H__ */
