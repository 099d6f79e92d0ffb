/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which address and which service a packet is for. Both tables are laid out by
 * userspace (src/abi.rs computes the same hashes) so that PROBES places are
 * enough; mostly the first one tells.
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

/* Mixed, as place_hash hardly minds the upper bits of its key; IPv4: the word. */
static __always_inline __u64 address_key(const __be32 *address)
{
	if (!serves_ipv6)
		return address[0];
	return address[0] ^
	       mix(((__u64)address[1] << 32 | address[2]) ^ mix(address[3]));
}

/* Sets vip and source; passes what is for no address of ours. */
static __always_inline enum outcome find_address(struct packet *packet)
{
	__u32 place = place_hash(address_key(packet->to));

#pragma unroll
	for (int i = 0; i < PROBES; i++, place++) {
		__u32 key = place & address_mask;
		const struct address *address =
			bpf_map_lookup_elem(&addresses, &key);

		if (!address || !address->family)
			break;
		if (address->family == packet->family &&
		    same_address(address->address, packet->to)) {
			packet->vip = address->vip;
			packet->source = address->source;
			packet->answers_echo = address->answers_echo;
			return OUTCOME_NEXT;
		}
	}
	return OUTCOME_PASSED;
}

/* Sets service; passes what is for no service of the VIP. */
static __always_inline enum outcome find_service(struct packet *packet)
{
	__u32 place = place_hash((__u64)packet->vip << 32 |
				 packet->protocol << 16 | packet->dest_port);

	if (!packet->vip)
		return OUTCOME_PASSED;
#pragma unroll
	for (int i = 0; i < PROBES; i++, place++) {
		__u32 key = place & service_mask;
		const struct service *service =
			bpf_map_lookup_elem(&services, &key);

		if (!service || !service->vip)
			break;
		if (service->vip == packet->vip &&
		    service->port == packet->dest_port &&
		    service->protocol == packet->protocol) {
			packet->service = key;
			return OUTCOME_NEXT;
		}
	}
	return OUTCOME_PASSED;
}

#endif /* __XDP_PROXY_SERVICE_H__ */
