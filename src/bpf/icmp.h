/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP that comes to an address of ours. An error about a packet that we sent
 * goes to who sent it to us, as if the error were about what he sent: the packet
 * that it quotes is turned back, header by header (RFC 5508, section 4). It says
 * to come from the end of the flow that he knows: a router's address may mean
 * nothing on his side, or be filtered there, and then path MTU discovery fails.
 *
 *	from the backend's side
 *		router -> source	quotes source:port -> backend
 *		VIP -> client		quotes client -> VIP:port
 *	from the client's side
 *		router -> VIP		quotes VIP:port -> client
 *		source -> backend	quotes backend -> source:port
 */
#ifndef __XDP_PROXY_ICMP_H__
#define __XDP_PROXY_ICMP_H__

#include "fragment.h"

#define ICMP_ECHO_REPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_PORT_UNREACH 3
#define ICMP_FRAG_NEEDED 4
#define ICMP_ECHO_REQUEST 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PKT_TOOBIG 2
#define ICMPV6_PORT_UNREACH 4
#define ICMPV6_TIME_EXCEED 3
#define ICMPV6_PARAMETER_PROBLEM 4
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

#define HOST_TTL 64	   /* of what we send in our own name */
#define QUOTED_BYTES_MIN 8 /* of a transport header (RFC 792) */
/* An error is about a segment so far behind what was sent since, at most. */
#define QUOTED_REACH (1 << 20)
#define PATH_MTU_BYTES_MIN 1280 /* of IPv6 (RFC 8200, section 5) */

static __always_inline bool is_icmp_error(const struct packet *packet,
					  __u8 type)
{
	if (is_ipv6(packet))
		return type >= ICMPV6_DEST_UNREACH &&
		       type <= ICMPV6_PARAMETER_PROBLEM;
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED ||
	       type == ICMP_PARAMETER_PROBLEM;
}

static __always_inline void swap_macs(struct ethhdr *eth)
{
	__u8 mac[ETH_ALEN];

	copy_mac(mac, eth->h_source);
	copy_mac(eth->h_source, eth->h_dest);
	copy_mac(eth->h_dest, mac);
}

/* Swapped addresses leave all sums as they are. */
static __always_inline bool swap_addresses(struct xdp_md *ctx,
					   const struct packet *packet)
{
	if (!is_ipv6(packet)) {
		struct iphdr *ip =
			frame_at(ctx, packet->l3_offset, sizeof(*ip));

		if (!ip)
			return false;
		ip->check = update_checksum(ip->check,
					    (__u16)~bpf_htons(ip->ttl << 8) +
						    bpf_htons(HOST_TTL << 8));
		ip->ttl = HOST_TTL;
		ip->saddr = packet->to[0];
		ip->daddr = packet->from[0];
	} else {
		struct ipv6hdr *ipv6 =
			frame_at(ctx, packet->l3_offset, sizeof(*ipv6));

		if (!ipv6)
			return false;
		ipv6->hop_limit = HOST_TTL;
		copy_address(ipv6->saddr.in6_u.u6_addr32, packet->to);
		copy_address(ipv6->daddr.in6_u.u6_addr32, packet->from);
	}
	return true;
}

/* For a VIP that the host does not own; else the host answers. */
static __always_inline enum outcome answer_echo(struct xdp_md *ctx,
						struct packet *packet)
{
	bool v6 = is_ipv6(packet);
	__u8 reply = v6 ? ICMPV6_ECHO_REPLY : ICMP_ECHO_REPLY;
	struct icmphdr *icmp = frame_at(ctx, packet->l4_offset, sizeof(*icmp));
	struct ethhdr *eth = frame_at(ctx, 0, sizeof(*eth));

	if (!packet->answers_echo)
		return OUTCOME_PASSED;
	if (!icmp || !eth || check_ip(ctx, packet) == OUTCOME_DROPPED_MALFORMED)
		return OUTCOME_DROPPED_MALFORMED;
	if (is_martian())
		return OUTCOME_DROPPED_MARTIAN;
	icmp->checksum = update_checksum(icmp->checksum,
					 (__u16)~bpf_htons(icmp->type << 8) +
						 bpf_htons(reply << 8));
	icmp->type = reply;
	swap_macs(eth);
	return swap_addresses(ctx, packet) && steer_answer(ctx) ?
		       OUTCOME_ECHO_REPLY :
		       OUTCOME_DROPPED_MALFORMED;
}

/*
 * The quoted packet's mirror image: a packet that comes from who it was sent
 * to, as those of its flow do.
 */
static __always_inline enum outcome mirror_quoted(struct xdp_md *ctx,
						  const struct packet *packet,
						  struct packet *quoted)
{
	__be16 type = bpf_htons(is_ipv6(packet) ? ETH_P_IPV6 : ETH_P_IP), port;
	__be32 address[4] = {};

	quoted->l3_offset = packet->l4_offset + sizeof(struct icmphdr);
	if (quoted->l3_offset > L4_OFFSET_MAX - sizeof(struct ipv6hdr) ||
	    parse_ip(ctx, QUOTED, quoted, type,
		     (void *)(long)ctx->data +
			     (quoted->l3_offset & L4_OFFSET_MAX)) ||
	    quoted->l4_offset > L4_OFFSET_MAX - sizeof(struct tcphdr) ||
	    quoted->l4_offset + QUOTED_BYTES_MIN >
		    packet->l3_offset + packet->ip_bytes ||
	    is_icmp(quoted) || quoted->fragment == FRAGMENT_LATER ||
	    !same_address(quoted->from, packet->to))
		return OUTCOME_PASSED;
	copy_address(address, quoted->from);
	copy_address(quoted->from, quoted->to);
	copy_address(quoted->to, address);
	port = quoted->source_port;
	quoted->source_port = quoted->dest_port;
	quoted->dest_port = port;
	quoted->vip = packet->vip;
	quoted->source = packet->source;
	return OUTCOME_NEXT;
}

/*
 * Turns the quoted packet back; returns what that adds to the sum over it, or
 * more than 32 bits where it is not all there.
 */
static __always_inline __u64 rewrite_quoted(struct xdp_md *ctx,
					    const struct packet *packet,
					    const struct packet *quoted,
					    const struct rewrite *new)
{
	__u32 end = packet->l3_offset + packet->ip_bytes, delta;
	__be16 *l4_ports = frame_at(ctx, quoted->l4_offset, 4);
	__u16 *checksum, old;

	if (!l4_ports)
		return ~0ULL;
	l4_ports[0] = new->dest_port;
	l4_ports[1] = new->source_port;
	delta = new->port_delta;
	checksum = checksum_at(ctx, quoted);
	/* Most quotes of TCP end before its checksum. */
	if (checksum &&
	    quoted->l4_offset + checksum_offset(quoted) + 2 <= end &&
	    (*checksum || !is_udp(quoted))) {
		old = *checksum;
		*checksum = for_protocol(
			quoted,
			update_checksum(old, (__u32) new->address_delta +
						     new->port_delta));
		delta += (__u16)~old + *checksum;
	}
	if (!is_ipv6(quoted)) {
		struct iphdr *ip =
			frame_at(ctx, quoted->l3_offset, sizeof(*ip));

		if (!ip)
			return ~0ULL;
		old = ip->check;
		ip->saddr = new->to[0];
		ip->daddr = new->from[0];
		ip->check = update_checksum(old, new->address_delta);
		delta += (__u16)~old + ip->check;
	} else {
		struct ipv6hdr *ipv6 =
			frame_at(ctx, quoted->l3_offset, sizeof(*ipv6));

		if (!ipv6)
			return ~0ULL;
		copy_address(ipv6->saddr.in6_u.u6_addr32, new->to);
		copy_address(ipv6->daddr.in6_u.u6_addr32, new->from);
	}
	return (__u64)delta + new->address_delta;
}

/* The path MTU that the error tells of; 0: none, or it is about something else. */
static __always_inline __u32 told_mtu(const struct packet *packet,
				      const struct icmphdr *icmp)
{
	const __be16 *halves = (const __be16 *)icmp;
	__u32 mtu = bpf_ntohs(halves[3]);

	if (!is_ipv6(packet))
		return icmp->type == ICMP_DEST_UNREACH &&
				       icmp->code == ICMP_FRAG_NEEDED ?
			       mtu :
			       0;
	if (bpf_ntohs(halves[2]))
		mtu = 0xffff;
	return icmp->type == ICMPV6_PKT_TOOBIG ? mtu : 0;
}

/*
 * Whether the error may be believed, as RFC 5927 has it: the segment that it quotes is
 * one that passed lately, `sent` being what was sent up to then. Datagrams have no
 * numbers: of them no path MTU is believed that is smaller than any of today.
 */
static __always_inline bool is_plausible(struct xdp_md *ctx,
					 const struct packet *packet,
					 const struct packet *quoted,
					 __u32 sent)
{
	const struct icmphdr *icmp =
		frame_at(ctx, packet->l4_offset, sizeof(*icmp));
	const __be32 *l4 = frame_at(ctx, quoted->l4_offset, QUOTED_BYTES_MIN);
	__u32 mtu;

	if (!icmp || !l4)
		return false;
	mtu = told_mtu(packet, icmp);
	if (mtu && mtu < PATH_MTU_BYTES_MIN &&
	    (is_udp(quoted) || is_ipv6(packet)))
		return false;
	return is_udp(quoted) || bpf_ntohl(l4[1]) - sent + QUOTED_REACH <
					 QUOTED_REACH + NUMBERS_REACH;
}

/* An error about a packet of a flow goes on; any other one is the host's. */
static __always_inline enum outcome translate_error(struct xdp_md *ctx,
						    struct packet *packet,
						    struct packet *quoted)
{
	struct icmphdr *icmp;
	struct rewrite new;
	enum outcome outcome;
	struct flow *flow;
	__u16 delta;
	__u64 added;
	__u32 sent;

	if (mirror_quoted(ctx, packet, quoted))
		return OUTCOME_PASSED;
	flow = find_flow_of_backend(quoted);
	if (flow) {
		sent = flow->client_next;
		if (!towards_client(flow, &new))
			return OUTCOME_DROPPED_NO_NEIGHBOUR;
	} else {
		quoted->hash = tuple_hash(quoted, hash_seed);
		flow = quoted->vip ? find_flow_of_client(quoted, QUOTED) : NULL;
		if (!flow || is_over(flow))
			return OUTCOME_PASSED;
		sent = flow->backend_next;
		if (!towards_backend(quoted, flow, backend_of(flow), &new))
			return OUTCOME_DROPPED_NO_NEIGHBOUR;
	}
	outcome = check_ip(ctx, packet);
	if (outcome)
		return outcome;
	if (!is_plausible(ctx, packet, quoted, sent))
		return OUTCOME_DROPPED_UNPROVEN;
	added = rewrite_quoted(ctx, packet, quoted, &new);
	icmp = frame_at(ctx, packet->l4_offset, sizeof(*icmp));
	if (!icmp || added > 0xffffffff)
		return OUTCOME_DROPPED_MALFORMED;
	delta = fold((__u64)(__u16)~fold(address_sum(packet->from) +
					 address_sum(packet->to)) +
		     address_sum(new.from) + address_sum(new.to));
	if (is_ipv6(packet))
		added += delta;
	icmp->checksum = ~fold((__u16)~icmp->checksum + added);
	if (!rewrite_l3(ctx, packet, new.from, new.to, delta) ||
	    !rewrite_link(ctx, packet, new.mac, new.tags))
		return OUTCOME_DROPPED_MALFORMED;
	return is_still_of(flow, quoted->hash) ? OUTCOME_ICMP_ERROR :
						 OUTCOME_DROPPED_RACE;
}

/* A function of its own, which the verifier walks once. */
__noinline int receive_icmp(struct xdp_md *ctx)
{
	struct packet *packet = packet_at_hand(), *quoted = packet_of(QUOTED);
	const struct icmphdr *icmp;

	if (!packet || !quoted)
		return OUTCOME_PASSED;
	icmp = frame_at(ctx, packet->l4_offset, sizeof(*icmp));
	if (!icmp || packet->l4_offset + sizeof(*icmp) >
			     packet->l3_offset + packet->ip_bytes)
		return OUTCOME_PASSED;
	if (icmp->type ==
	    (is_ipv6(packet) ? ICMPV6_ECHO_REQUEST : ICMP_ECHO_REQUEST))
		return answer_echo(ctx, packet);
	if (is_icmp_error(packet, icmp->type))
		return translate_error(ctx, packet, quoted);
	return OUTCOME_PASSED;
}

#endif /* __XDP_PROXY_ICMP_H__ */
