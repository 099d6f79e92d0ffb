/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which address and which service a packet is for. Both tables are laid out by
 * userspace (src/abi.rs computes the same hashes) so that PROBES places are
 * enough; mostly the first one tells. A service on several ports is found by its
 * VIP's port map: after those on one port.
 */
#ifndef __XDP_PROXY_SERVICE_H__
#define __XDP_PROXY_SERVICE_H__

#include "parse.h"

/* Fibonacci hashing: Knuth, The Art of Computer Programming 3, section 6.4. */
static __always_inline __u32 place_hash(__u64 key)
{
	return key * 0x9e3779b97f4a7c15ULL >> 32;
}

/* The mixer of splitmix64 (Steele, Lea, Flood, OOPSLA 2014). */
static __always_inline __u64 mix(__u64 x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

/* Scaled to below `bound` (Lemire, arXiv:1805.10941). */
static __always_inline __u32 scale(__u32 random, __u32 bound)
{
	return (__u64)random * bound >> 32;
}

/* Mixed, as place_hash hardly minds the upper bits of its key; IPv4: the word. */
static __always_inline __u64 address_key(const __be32 *address)
{
	if (!serves_ipv6)
		return address[0];
	return address[0] ^
	       mix(((__u64)address[1] << 32 | address[2]) ^ mix(address[3]));
}

/* What is known of an address; NULL: it is none of this host. */
static __always_inline const struct address *address_of(__u8 family,
							const __be32 *words)
{
	__u32 place = place_hash(address_key(words));

#pragma unroll
	for (int i = 0; i < PROBES; i++, place++) {
		__u32 key = place & address_mask;
		const struct address *address =
			bpf_map_lookup_elem(&addresses, &key);

		if (!address || !address->family)
			break;
		if (address->family == family &&
		    same_address(address->address, words))
			return address;
	}
	return NULL;
}

/* Sets vip and source; passes what is for no address of ours. */
static __always_inline enum outcome find_address(struct packet *packet)
{
	const struct address *address = address_of(packet->family, packet->to);

	if (!address)
		return OUTCOME_PASSED;
	packet->vip = address->vip;
	packet->source = address->source;
	packet->answers_echo = address->answers_echo;
	return packet->vip | packet->source ? OUTCOME_NEXT : OUTCOME_PASSED;
}

/* Whether no service has the packet's port: most of the host's own end here. */
static __always_inline bool is_no_service(const struct packet *packet)
{
	__u32 port = bpf_ntohs(packet->dest_port);

	return !(port_filter[port / 64 % 8] >> port % 64 & 1);
}

/* The entry of a port of the packet's VIP and protocol; NULL: none. */
static __always_inline const struct listener *
listener_at(const struct packet *packet, __be16 port)
{
	__u32 place = place_hash((__u64)packet->vip << 32 |
				 packet->protocol << 16 | port);

#pragma unroll
	for (int i = 0; i < PROBES; i++, place++) {
		__u32 key = place & listener_mask;
		const struct listener *listener =
			bpf_map_lookup_elem(&listeners, &key);

		if (!listener || !listener->vip)
			break;
		if (listener->vip == packet->vip && listener->port == port &&
		    listener->protocol == packet->protocol)
			return listener;
	}
	return NULL;
}

/* Sets service from the port map of the packet's VIP, if it has one. */
static __always_inline enum outcome find_in_port_map(struct packet *packet)
{
	const struct listener *listener = listener_at(packet, 0);
	const struct port_map *map;
	__u32 index;
	__u16 service;

	if (!listener)
		return OUTCOME_PASSED;
	index = listener->target;
	map = bpf_map_lookup_elem(&port_maps, &index);
	if (!map)
		return OUTCOME_PASSED;
	service = map->service[bpf_ntohs(packet->dest_port)];
	if (!service)
		return OUTCOME_PASSED;
	packet->service = service - 1;
	return OUTCOME_NEXT;
}

/* Sets service; passes what is for no service of the VIP. */
static __always_inline enum outcome find_service(struct packet *packet)
{
	const struct listener *listener;

	/* Port 0 is nobody's: its entry leads to a port map. */
	if (!packet->vip || !packet->dest_port)
		return OUTCOME_PASSED;
	listener = listener_at(packet, packet->dest_port);
	if (!listener)
		return serves_port_ranges ? find_in_port_map(packet) :
					    OUTCOME_PASSED;
	packet->service = listener->target;
	return OUTCOME_NEXT;
}

static __always_inline const struct service *service_of(__u32 index)
{
	return bpf_map_lookup_elem(&services, &index);
}

#endif /* __XDP_PROXY_SERVICE_H__ */
