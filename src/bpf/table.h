/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The flow table: how a packet finds its flow. A backend's by its destination
 * port, a client's in the groups of slots that the hash of its tuple names:
 *
 *	hash, upper bits	the flow's home, its first group
 *	hash, and the step	the group where it is looked for next
 *	hash, lower 16 bits	the tag, by which a group's slots are told apart
 *
 * Nearly all flows are at home. The home's `reach` says how much further those
 * have gone that found no room there.
 */
#ifndef __XDP_PROXY_TABLE_H__
#define __XDP_PROXY_TABLE_H__

#include "stats.h"
#include "service.h"

/* The kernel's own clock tick: the verifier inlines it, one load (1 ns). */
static __always_inline __u32 now(void)
{
	return bpf_jiffies64();
}

/*
 * Ticks since something was seen. The clock is read last: another CPU may have
 * moved `seen` meanwhile, and what is from the future is young.
 */
static __always_inline __u32 ticks_since(const __u32 *seen)
{
	__u32 then = *(const volatile __u32 *)seen;
	__u32 ticks = now() - then;

	return (__s32)ticks < 0 ? 0 : ticks;
}

static __always_inline __u32 age(const struct flow *flow)
{
	return ticks_since(&flow->seen);
}

/*
 * Whether the record still is of the flow that was found in it. Asked when all
 * of it was used: who takes a record writes its hash before the rest.
 */
static __always_inline bool is_still_of(const struct flow *flow, __u32 hash)
{
	barrier();
	return *(const volatile __u32 *)&flow->hash == hash;
}

static __always_inline struct flow *flow_at(__u32 slot)
{
	__u32 source = slot >> PORT_BITS, port = slot % PORTS;
	void *table;

	if (!several_sources)
		return bpf_map_lookup_elem(&flows, &slot);
	table = bpf_map_lookup_elem(&flow_tables, &source);
	return table ? bpf_map_lookup_elem(table, &port) : NULL;
}

/* Of the client's tuple; the seed keeps its groups unknown to clients. */
static __always_inline __u64 tuple_hash(const struct packet *packet, __u64 seed)
{
	__u64 tuple = (__u64)packet->from[0] << 32 |
		      (__u32)packet->source_port << 16 | packet->dest_port;

	if (is_ipv6(packet))
		tuple ^= mix(
			mix(((__u64)packet->from[1] << 32 | packet->from[2]) ^
			    seed) +
			packet->from[3]);
	return mix(tuple ^ seed ^ (__u64)packet->vip << 8 ^ packet->protocol);
}

static __always_inline bool is_flow_of_client(const struct flow *flow,
					      const struct packet *packet)
{
	return flow->family == packet->family &&
	       flow->protocol == packet->protocol && flow->vip == packet->vip &&
	       flow->client_port == packet->source_port &&
	       flow->service_port == packet->dest_port &&
	       same_address(flow->client, packet->from);
}

static __always_inline const struct backend *backend_of(const struct flow *flow)
{
	__u32 index = flow->backend;

	return bpf_map_lookup_elem(&backends, &index);
}

/* Long finished, though its port was not needed again. */
static __always_inline bool is_over(const struct flow *flow)
{
	const struct backend *backend;
	const struct service *service;

	if (!flow->retired)
		return false;
	backend = backend_of(flow);
	service = backend ? service_of(backend->service) : NULL;
	return !service || age(flow) > service->closing;
}

/* Of so many source addresses, the one that comes first: by the lower bits. */
static __always_inline __u32 source_turn(__u32 hash, __u32 count)
{
	return scale(hash << 16, count);
}

/*
 * Of the lists of groups where a flow of this family may be, the nth from the one that
 * its hash names. The first are those of source addresses, and have their indexes.
 */
static __always_inline __u32 nth_list(__u8 family, __u32 hash, __u32 nth)
{
	const volatile struct source_list *all =
		family == AF_INET6 ? &sources_v6 : &sources_v4;
	__u32 turns = all->turns;

	/* A constant: what is for several is cut out. */
	if (all->count <= 1)
		return all->list[0];
	if (nth < turns) {
		nth += source_turn(hash, turns);
		nth = nth < turns ? nth : nth - turns;
	}
	return all->list[nth % LISTS];
}

static __always_inline __u32 list_count(const struct packet *packet)
{
	return is_ipv6(packet) ? sources_v6.count : sources_v4.count;
}

/* Flows may be in any list, whatever their homes say. */
static __always_inline bool carries_flows(void)
{
	return (sources_v4.count > 1 || sources_v6.count > 1) &&
	       *(volatile __u32 *)&carries;
}

static __always_inline struct group *group_at(__u32 index)
{
	return bpf_map_lookup_elem(&groups, &index);
}

static __always_inline __u32 group_of(__u32 slot)
{
	return slot >> PORT_BITS << GROUP_BITS | slot % PORTS / GROUP_SLOTS;
}

static __always_inline __u32 first_slot(__u32 group)
{
	return (group >> GROUP_BITS << PORT_BITS) +
	       group % (1 << GROUP_BITS) * GROUP_SLOTS;
}

/*
 * The index of the group where a flow may be that has gone so many steps from its
 * home. The golden ratio spreads the steps over all groups, however few there
 * are (Knuth, The Art of Computer Programming 3, section 6.4).
 */
static __always_inline __u32 group_after(__u32 list, __u32 hash, __u32 steps)
{
	const struct ports *ours = bpf_map_lookup_elem(&ports, &list);
	__u32 nth;

	if (!ours)
		return 0;
	nth = scale(hash + steps * 0x9e3779b9, ours->groups);
	/* As in backend_in: clang would drop the check. */
	barrier_var(nth);
	return list % SOURCES << GROUP_BITS |
	       (nth < GROUPS ? ours->group[nth] : 0);
}

static __always_inline __u16 tag_of(__u32 hash)
{
	return hash & 0x7fff;
}

/*
 * Which of a group's tags are this one, four at a time, without a branch: a loop over
 * them is no faster, and has the verifier walk 98,000 instructions in place of
 * 38,000. Bit 16 * i + 15 - word is of the tag i in this word. From the upper bit
 * of each 16, which no tag has, nothing is taken where two are alike.
 */
static __always_inline __u64 matches(const struct group *group, __u16 tag)
{
	const volatile __u64 *words = (const volatile __u64 *)group->tag;
	const __u64 upper = 0x8000800080008000, ones = 0x0001000100010001;
	__u64 found = 0;

#pragma unroll
	for (int word = 0; word < GROUP_SLOTS / 4; word++)
		found |= ((upper - (words[word] ^ tag * ones)) & upper) >> word;
	return found;
}

/*
 * The tag that a bit of `matches` is of. A multiplication by this number brings
 * another six bits to the top for each bit (Leiserson, Prokop, Randall: Using de
 * Bruijn sequences to index a 1 in a computer word, 1998).
 */
#define DE_BRUIJN 0x022fdd63cc95386dULL
#define TAG(word, i) \
	[(1ULL << (16 * i + 15 - word)) * DE_BRUIJN >> 58] = 4 * word + i
#define TAGS(word) TAG(word, 0), TAG(word, 1), TAG(word, 2), TAG(word, 3)
static const __u8 tag_at[64] = {TAGS(0), TAGS(1), TAGS(2), TAGS(3), TAGS(4)};

/* The slot that the lowest bit of `matches` leads to, in the group with this index. */
static __always_inline __u32 slot_of(__u64 found, __u32 index)
{
	return first_slot(index) + tag_at[(found & -found) * DE_BRUIJN >> 58];
}

/* Whether the packet's flow is in the group so many steps from home; sets slot. */
__noinline int is_after(__u32 kind, __u32 list, __u32 steps)
{
	struct packet *packet = packet_of(kind);
	const struct group *group;
	__u32 index;
	__u64 found;

	if (!packet)
		return false;
	index = group_after(list, packet->hash, steps);
	group = group_at(index);
	if (!group)
		return false;
	found = matches(group, tag_of(packet->hash));
	for (int i = 0; i < GROUP_SLOTS && found; i++, found &= found - 1) {
		__u32 slot = slot_of(found, index);
		const struct flow *flow = flow_at(slot);

		if (flow && is_flow_of_client(flow, packet)) {
			packet->slot = slot;
			return true;
		}
	}
	return false;
}

/* Searches so many steps from its home in a list, and further on. */
__noinline int is_in_list(__u32 kind, __u32 list, __u32 steps)
{
	const struct packet *packet = packet_of(kind);
	const struct group *home;
	__u32 reach;

	if (!packet)
		return false;
	home = group_at(group_after(list, packet->hash, 0));
	if (!home)
		return false;
	reach = home->reach;
	for (; steps < STEPS && steps <= reach; steps++)
		if (is_after(kind, list, steps))
			return true;
	return false;
}

/* A flow that is not at home. */
__noinline int is_elsewhere(__u32 kind)
{
	struct packet *packet = packet_of(kind);
	const struct group *home;

	if (!packet)
		return false;
	home = group_at(packet->home);
	if (!home)
		return false;
	if (is_in_list(kind, nth_list(packet->family, packet->hash, 0), 1))
		return true;
	if (!home->spilled && !carries_flows())
		return false;
	for (__u32 nth = 1; nth < LISTS && nth < list_count(packet); nth++)
		if (is_in_list(kind,
			       nth_list(packet->family, packet->hash, nth), 0))
			return true;
	return false;
}

/*
 * Whether the group one step from home has the flow's tag. Inlined: of a table that is
 * nearly full most groups have flows one step further, and new flows are in none of
 * them.
 */
static __always_inline bool may_be_next(__u32 source, __u32 hash)
{
	const struct group *next = group_at(group_after(source, hash, 1));

	return next && matches(next, tag_of(hash));
}

/* The flow of a packet that a client sent; NULL: none. Sets slot. */
static __always_inline struct flow *find_flow_of_client(struct packet *packet,
							enum packet_kind kind)
{
	__u32 source = nth_list(packet->family, packet->hash, 0);
	__u32 index = group_after(source, packet->hash, 0);
	const struct group *home = group_at(index);
	struct flow *flow;
	__u64 found;
	__u8 reach;

	if (!home)
		return NULL;
	packet->home = index;
	packet->insertions = *(const volatile __u8 *)&home->insertions;
	found = matches(home, tag_of(packet->hash));
	if (found) {
		packet->slot = slot_of(found, index);
		flow = flow_at(packet->slot);
		if (flow && is_flow_of_client(flow, packet))
			return flow;
		/* Another one has the same tag, once in 1600 times. */
		if (found & (found - 1) && is_after(kind, source, 0))
			return flow_at(packet->slot);
	}
	reach = *(const volatile __u8 *)&home->reach;
	if (!carries_flows() && !*(const volatile __u8 *)&home->spilled &&
	    (!reach || (reach == 1 && !may_be_next(source, packet->hash))))
		return NULL;
	return is_elsewhere(kind) ? flow_at(packet->slot) : NULL;
}

/* The port that the flow's packets reach the backend on. */
static __always_inline __be16 backend_port(const struct backend *backend,
					   const struct flow *flow)
{
	if (serves_port_ranges && !backend->port)
		return flow->service_port;
	return backend->port;
}

/* The flow of a packet that a backend sent: its port is the flow's slot. */
static __always_inline struct flow *find_flow_of_backend(struct packet *packet)
{
	__u32 slot = (__u32)(packet->source - 1) << PORT_BITS |
		     bpf_ntohs(packet->dest_port);
	const struct backend *backend;
	struct flow *flow;
	__u32 index;

	if (!packet->source || bpf_ntohs(packet->dest_port) < first_port)
		return NULL;
	flow = flow_at(slot);
	if (!flow)
		return NULL;
	/* First: it tells later whether the record still is of this flow. */
	packet->hash = *(const volatile __u32 *)&flow->hash;
	barrier();
	if (flow->family != packet->family ||
	    flow->protocol != packet->protocol)
		return NULL;
	index = flow->backend;
	backend = bpf_map_lookup_elem(&backends, &index);
	if (!backend || backend_port(backend, flow) != packet->source_port ||
	    !same_address(backend->address, packet->from) || is_over(flow))
		return NULL;
	packet->slot = slot;
	packet->backend = index;
	return flow;
}

#endif /* __XDP_PROXY_TABLE_H__ */
