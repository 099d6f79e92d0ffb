/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which backend a new flow goes to. Userspace computes each service's look-up
 * table from the backends that take new flows (src/maglev.rs), as its scheduler
 * wants it:
 *
 *	maglev, source-hash	a place by the hash of the client's tuple or address
 *	random			any place
 *	round-robin		the next place, the weights' turns being the table
 *	least-connections	of the first places, which hold each backend once, the
 *				least busy one for its weight
 */
#ifndef __XDP_PROXY_BACKEND_H__
#define __XDP_PROXY_BACKEND_H__

#include "ports.h"

/* The same on every load balancer, so that all of them choose alike. */
#define MAGLEV_SEED 0x78647070726f7879ULL

static __always_inline __u32 next_turn(__u32 service)
{
	__u32 *turn = bpf_map_lookup_elem(&turns, &service);

	return turn ? (*turn)++ % MAGLEV_ENTRIES : 0;
}

/* Of the client's address alone. */
static __always_inline __u32 client_hash(const struct packet *packet)
{
	return mix(address_key(packet->from) ^ MAGLEV_SEED) >> 32;
}

/* The index in a place of a look-up table; 0: none. */
static __always_inline __u32 backend_in(const void *table, __u32 place)
{
	__u32 bits = place_bits, list = places_bytes;
	__u32 word = place * bits / 32 * sizeof(__u32), member;

	/*
	 * clang 14 knows that the place is below and may drop the check, without
	 * which the verifier of 6.1 refuses (r2 *= 65537; r2 >>= 31;
	 * r2 &= 262142; r0 += r2): "R0 max value is outside of the allowed
	 * memory range".
	 */
	barrier_var(word);
	if (word > list - sizeof(__u32))
		return 0;
	member = *(const __u32 *)(table + word) >> place * bits % 32;
	member &= (1U << bits) - 1;
	if (bits == PLACE_BITS_MAX)
		return member;
	return *(const __u16 *)(table + list + member * sizeof(__u16));
}

/* The same, by the table's index; a function of its own, which the verifier walks once. */
__noinline int backend_at(__u32 maglev, __u32 place)
{
	const void *table = bpf_map_lookup_elem(&maglevs, &maglev);

	return table ? backend_in(table, place) : 0;
}

/* The least busy of up to LEAST_TRIES members, from any one on; 0: none. */
__noinline int least_busy(__u32 maglev, __u32 members)
{
	__u32 first = scale(bpf_get_prandom_u32(), members), best = 0;
	__u64 best_load = 0, best_weight = 1;

	for (__u32 i = 0; i < LEAST_TRIES && i < members; i++) {
		__u32 index = backend_at(maglev, (first + i) % members);
		const struct backend *backend =
			bpf_map_lookup_elem(&backends, &index);
		__u64 *load = load_of(index), after;

		if (!index || !backend || !load)
			continue;
		/* The load with this flow, for the weight: a / w < b / v. */
		after = *(volatile __u64 *)load + 1;
		if (!best ||
		    after * best_weight < best_load * backend->weight) {
			best = index;
			best_load = after;
			best_weight = backend->weight;
		}
	}
	return best;
}

/* Sets backend; NULL: nobody can take the flow. */
static __always_inline struct backend *pick_backend(struct packet *packet)
{
	const struct service *service = service_of(packet->service);
	const void *table;
	__u32 key, index, place;

	if (!service)
		return NULL;
	key = service->maglev;
	table = bpf_map_lookup_elem(&maglevs, &key);
	if (!table)
		return NULL;
	if (service->scheduler == SCHEDULER_LEAST_CONNECTIONS) {
		index = least_busy(key, service->members);
	} else {
		if (service->scheduler == SCHEDULER_ROUND_ROBIN)
			place = next_turn(packet->service);
		else if (service->scheduler == SCHEDULER_RANDOM)
			place = scale(bpf_get_prandom_u32(), MAGLEV_ENTRIES);
		else if (service->scheduler == SCHEDULER_SOURCE_HASH)
			place = scale(client_hash(packet), MAGLEV_ENTRIES);
		else
			place = scale(tuple_hash(packet, MAGLEV_SEED) >> 32,
				      MAGLEV_ENTRIES);
		index = backend_in(table, place);
	}
	packet->backend = index;
	return index ? bpf_map_lookup_elem(&backends, &index) : NULL;
}

#endif /* __XDP_PROXY_BACKEND_H__ */
