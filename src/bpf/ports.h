/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The slots, which are the ports of flows: how one is taken and given back.
 *
 * A slot is in use or free, as its group says. A flow that is closing has given
 * its slot back (`retired`), yet its record serves late packets until the slot is
 * taken again. All of this changes under the group's lock, and so does the step
 * from unconfirmed to established; a new flow at home takes no other lock.
 *
 * A flow takes its slot in its home or in the group one step further, whichever
 * has more room; where neither has any, in the first one after them that has. By
 * that more than 97 % of the slots are taken before the first flow finds none.
 */
#ifndef __XDP_PROXY_PORTS_H__
#define __XDP_PROXY_PORTS_H__

#include "table.h"

/* A group with as many free slots needs no comparing with the next one. */
#define ROOMY (GROUP_SLOTS / 4)
#define HOME_STEPS 2 /* the two groups that are compared */
#define NEAR_STEPS 8 /* groups that are asked before a flow makes room */

static __always_inline __u32 bit_of(__u32 slot)
{
	return 1 << slot % PORTS % GROUP_SLOTS;
}

/* Warren, Hacker's Delight, section 5-1; BPF has no instruction for it. */
static __always_inline __u32 count_bits(__u32 bits)
{
	bits -= bits >> 1 & 0x55555555;
	bits = (bits & 0x33333333) + (bits >> 2 & 0x33333333);
	bits = (bits + (bits >> 4)) & 0x0f0f0f0f;
	return bits * 0x01010101 >> 24;
}

static __always_inline __u32 bits_below(__u32 bit)
{
	return (1U << bit) - 1;
}

/* The first of a group's slots from its hand on, round, whose bit is set. */
static __always_inline __u32 first_from(__u32 hand, __u32 bits)
{
	__u32 after = bits & ~bits_below(hand);

	if (!after)
		after = bits;
	return count_bits((after & -after) - 1);
}

static __always_inline bool is_crowded(const struct group *group)
{
	return count_bits(group->unconfirmed) >= group->share;
}

/*
 * The slots of a group that the new flow at hand may have: not the one whose port is its
 * backend's, where the source address has services on so many ports that they can't be
 * withheld. Or it would take in what the backend sends to those from one port to the same
 * one, as servers of SIP, DNS, NTP and syslog do.
 */
static __always_inline __u32 allowed_in(__u32 index)
{
	const struct packet *packet = avoids_ports ? packet_at_hand() : NULL;
	__u32 nth;

	if (!packet)
		return ~0;
	nth = bpf_ntohs(packet->avoided_port) - first_slot(index) % PORTS;
	return nth < GROUP_SLOTS ? ~(1U << nth) : ~0;
}

static __always_inline __u32 free_in(const struct group *group, __u32 index)
{
	return ~group->used & allowed_in(index);
}

/* So many slots has a group for new flows. */
static __always_inline __u32 room_in(const struct group *group, __u32 index)
{
	return is_crowded(group) ? 0 : count_bits(free_in(group, index));
}

/* Another CPU has the group's lock: it won't be long, unless that CPU is stopped. */
__noinline int lock_later(__u32 index)
{
	struct group *group = group_at(index);
	__u32 held = 1;

	if (!group)
		return false;
	for (int i = 0; i < LOCK_TRIES && held; i++)
		held = __sync_val_compare_and_swap(&group->lock, 0, 1);
	return !held;
}

/*
 * False: it can't be had. One instruction where a bpf_spin_lock, which masks interrupts
 * and in a virtual machine frees by another atomic instruction, took a sixth of what a
 * new flow costs. No other program takes it, so that interrupts may come.
 */
static __always_inline bool lock_group(struct group *group, __u32 index)
{
	return !__sync_val_compare_and_swap(&group->lock, 0, 1) ||
	       lock_later(index);
}

/* Stores are seen in order on x86. */
static __always_inline void unlock_group(struct group *group)
{
	barrier();
	*(volatile __u32 *)&group->lock = 0;
}

/* Why a flow ends, and so which ones may. */
enum ending {
	ENDING_OVER,	    /* it is over */
	ENDING_UNCONFIRMED, /* makes room, if it is not confirmed by now */
	ENDING_IDLE,	    /* makes room, whatever its state */
};

/*
 * The flow ends, and its slot is free. `hash` tells that the record still is of the
 * flow that the caller means. Who makes room is forgotten: its client must not go on
 * with it. Returns whether it ended now.
 */
__noinline int retire_flow(__u32 slot, __u32 hash, __u32 ending)
{
	__u32 index = group_of(slot), tick = now(), bit = bit_of(slot);
	struct group *group = group_at(index);
	struct flow *flow = flow_at(slot);
	__u32 backend = 0;
	bool retires;

	if (!group || !flow || !lock_group(group, index))
		return false;
	retires = !*(volatile __u8 *)&flow->retired &&
		  *(volatile __u32 *)&flow->hash == hash &&
		  (flow->state == FLOW_UNCONFIRMED ||
		   (flow->state == FLOW_ESTABLISHED &&
		    ending != ENDING_UNCONFIRMED));
	if (retires) {
		backend = flow->backend;
		flow->retired = true;
		flow->seen = tick;
		/* Both: it is withheld. */
		group->used &= ~bit | group->resting;
		group->resting |= bit;
		group->unconfirmed &= ~bit;
		if (ending != ENDING_OVER) {
			group->evicted++;
			flow->family = 0;
		}
	}
	unlock_group(group);
	if (retires)
		count_flow_ended(backend);
	return retires;
}

/* The client has reacted to an answer. */
__noinline int confirm_flow(__u32 slot, __u32 hash)
{
	__u32 index = group_of(slot), bit = bit_of(slot);
	struct group *group = group_at(index);
	struct flow *flow = flow_at(slot);

	if (!group || !flow || !lock_group(group, index))
		return false;
	if (!*(volatile __u8 *)&flow->retired &&
	    *(volatile __u32 *)&flow->hash == hash &&
	    flow->state == FLOW_UNCONFIRMED) {
		flow->state = FLOW_ESTABLISHED;
		group->unconfirmed &= ~bit;
	}
	unlock_group(group);
	return true;
}

/*
 * A flow whose client begins anew ends, and no packet finds it any more. False: another
 * CPU is in the way.
 */
static __always_inline bool forget_flow(const struct packet *packet,
					struct flow *flow)
{
	__u32 index = group_of(packet->slot);
	struct group *group = group_at(index);
	bool is_taken, is_gone;

	retire_flow(packet->slot, packet->hash, ENDING_OVER);
	if (!group || !lock_group(group, index))
		return false;
	/* Who has just taken the slot has not claimed the record yet. */
	is_taken = group->used & ~group->resting & bit_of(packet->slot);
	is_gone = (flow->retired && !is_taken) || flow->hash != packet->hash;
	if (is_gone && flow->hash == packet->hash)
		flow->family = 0;
	unlock_group(group);
	return is_gone;
}

/* No packet of a client goes there any more: it is down, or has drained. */
static __always_inline bool ends_flows(const struct backend *backend)
{
	return !backend || backend->ends_flows;
}

/*
 * Both ends have finished, and have acknowledged that; or one has reset. What was only
 * sent may have been lost, and comes again.
 */
static __always_inline bool is_finished(const struct flow *flow)
{
	return ((flow->from_client | flow->from_backend) & HEARD_RST) ||
	       (flow->from_client & flow->from_backend &
		(HEARD_FIN | HEARD_FIN_ACKED)) == (HEARD_FIN | HEARD_FIN_ACKED);
}

static __always_inline bool is_half_closed(const struct flow *flow)
{
	return (flow->from_client | flow->from_backend) & HEARD_FIN;
}

/* So many jiffies may pass without a packet of the flow. */
static __always_inline __u32 patience(const struct flow *flow,
				      const struct service *service,
				      bool pressed)
{
	bool answered = flow->protocol == IPPROTO_UDP &&
			(flow->from_backend & HEARD_ANSWER);

	/* Where ports are short, these go first. */
	if (flow->state != FLOW_ESTABLISHED && !answered)
		return service->unanswered >> (pressed ? 2 : 0);
	return is_half_closed(flow) ? service->half_closed :
				      service->established;
}

/*
 * Retires the flow in a slot if its time is over. Functions that are not static
 * are walked by the verifier once for any arguments, not once for each call.
 */
__noinline int expire_flow(__u32 slot, bool pressed)
{
	struct flow *flow = flow_at(slot);
	const struct backend *backend;
	const struct service *service;
	__u32 hash;

	if (!flow)
		return 0;
	/* First, as claim_flow writes it last: what follows is of this flow. */
	hash = *(const volatile __u32 *)&flow->hash;
	barrier();
	if (!flow->family || flow->retired)
		return 0;
	backend = backend_of(flow);
	service = backend ? service_of(backend->service) : NULL;
	if (!service)
		return 0;
	/* Finished: its end met a lock that could not be had. */
	if (age(flow) > patience(flow, service, pressed) || is_finished(flow) ||
	    ends_flows(backend) || given_up >> (slot >> PORT_BITS) & 1)
		retire_flow(slot, hash, ENDING_OVER);
	return 0;
}

/* Looks at the flows of one group, as there is a need of slots. */
__noinline int expire_group(__u32 index)
{
	for (__u32 i = 0; i < GROUP_SLOTS; i++)
		expire_flow(first_slot(index) + i, true);
	return 0;
}

/* The same of all groups nearby. */
__noinline int expire_nearby(__u32 source, __u32 hash)
{
	for (__u32 near = 0; near < NEAR_STEPS; near++)
		expire_group(group_after(source, hash, near));
	return 0;
}

/* The oldest of a group's unconfirmed flows makes room, if they have their share. */
__noinline int evict_oldest(__u32 index)
{
	const struct group *group = group_at(index);
	struct flow *flow;
	__u32 slot, hash;

	if (!group || !is_crowded(group))
		return 0;
	slot = first_slot(index) +
	       first_from(group->hand % GROUP_SLOTS, group->unconfirmed);
	flow = flow_at(slot);
	if (!flow)
		return 0;
	hash = *(const volatile __u32 *)&flow->hash;
	barrier();
	retire_flow(slot, hash, ENDING_UNCONFIRMED);
	return 0;
}

/* So many slots has the group so many steps from home; -1: it is crowded. */
__noinline int room_after(__u32 source, __u32 hash, __u32 steps)
{
	__u32 index = group_after(source, hash, steps);
	const struct group *group = group_at(index);

	if (!group)
		return 0;
	return is_crowded(group) ? -1 : count_bits(free_in(group, index));
}

/* The steps to the first group with room that is not near; STEPS: there is none. */
__noinline int far_room(__u32 source, __u32 hash)
{
	__u32 steps = NEAR_STEPS;

	while (steps < STEPS && room_after(source, hash, steps) <= 0)
		steps++;
	return steps;
}

/* Seconds of silence for which no established flow makes room. */
#define BUSY_SECONDS_TCP 10
#define BUSY_SECONDS_UDP 4

/* Who makes room before whom, the last first; within, who was silent for longest. */
#define RANK(nth) ((__u32)(nth) << 30)
#define RANK_IDLE_MAX (RANK(1) - 1)

/* The higher, the sooner the flow makes room; 0: it does not. */
__noinline __u32 rank_of(__u32 slot, bool crowded)
{
	const struct flow *flow = flow_at(slot);
	__u32 idle, busy;

	if (!flow || !flow->family || flow->retired)
		return 0;
	idle = age(flow);
	if (idle > RANK_IDLE_MAX)
		idle = RANK_IDLE_MAX;
	if (flow->state == FLOW_UNCONFIRMED)
		return RANK(1) + idle;
	busy = second_ticks * (flow->protocol == IPPROTO_UDP ?
				       BUSY_SECONDS_UDP :
				       BUSY_SECONDS_TCP);
	/* By another one's end a crowded group gets no room. */
	if (flow->state != FLOW_ESTABLISHED || crowded || idle < busy)
		return 0;
	return (is_half_closed(flow) ? RANK(2) : 0) + idle;
}

/* Notes in the packet who of a group, so many steps from home, makes room first. */
__noinline int note_idlest(__u32 index, __u32 steps)
{
	const struct group *group = group_at(index);
	struct packet *packet = packet_at_hand();
	bool crowded;
	__u32 slots;

	if (!group || !packet)
		return 0;
	crowded = is_crowded(group);
	/* What is withheld would not come free. */
	slots = allowed_in(index) & ~group->resting;
	for (__u32 i = 0; i < GROUP_SLOTS; i++) {
		__u32 slot = first_slot(index) + i;
		__u32 rank = rank_of(slot, crowded);

		if (rank <= packet->idlest_rank || !(slots >> i & 1))
			continue;
		packet->idlest_rank = rank;
		packet->idlest_slot = slot;
		packet->idlest_steps = steps;
	}
	return 0;
}

/*
 * No slot is free: of the flows nearby, one that may be dead makes room, else one that
 * is not confirmed, else an established one; the longest idle first. Returns the steps
 * to its group; STEPS: all are busy.
 */
__noinline int evict_idlest(__u32 source, __u32 hash)
{
	struct packet *packet = packet_at_hand();
	const struct flow *flow;
	__u32 slot, idlest;

	if (!packet)
		return STEPS;
	packet->idlest_rank = 0;
	for (__u32 near = 0; near < NEAR_STEPS; near++)
		note_idlest(group_after(source, hash, near), near);
	if (!packet->idlest_rank)
		return STEPS;
	slot = packet->idlest_slot;
	flow = flow_at(slot);
	if (!flow)
		return STEPS;
	idlest = *(const volatile __u32 *)&flow->hash;
	barrier();
	/* Another CPU may have given the slot to another flow. */
	if (!rank_of(slot, false) || !retire_flow(slot, idlest, ENDING_IDLE))
		return STEPS;
	return packet->idlest_steps;
}

/*
 * Where there is room for a new flow if not in its home, nor one step further.
 * Returns the steps; STEPS: there is none. Where most groups are crowded, which takes a flood, who is not confirmed
 * makes room at once for who is not, and nobody goes far.
 */
__noinline int make_room(__u32 source, __u32 hash)
{
	__u32 steps = STEPS, crowded = 0;

	for (__u32 near = 0; near < NEAR_STEPS; near++) {
		int room = room_after(source, hash, near);

		if (room > 0)
			return near;
		crowded += room < 0;
	}
	if (crowded < NEAR_STEPS / 2)
		steps = far_room(source, hash);
	if (steps < STEPS)
		return steps;
	for (__u32 near = 0; near < HOME_STEPS; near++) {
		evict_oldest(group_after(source, hash, near));
		if (room_after(source, hash, near) > 0)
			return near;
	}
	return far_room(source, hash);
}

/* Where a new flow may have a slot of a source address; as make_room says it. */
__noinline int find_room(__u32 source, __u32 hash)
{
	__u32 index = group_after(source, hash, 0), room, room_next;
	const struct group *home = group_at(index), *next;

	if (!home)
		return STEPS;
	room = room_in(home, index);
	if (room >= ROOMY)
		return 0;
	index = group_after(source, hash, 1);
	next = group_at(index);
	if (!next)
		return STEPS;
	room_next = room_in(next, index);
	if (room || room_next)
		return room_next > room;
	return make_room(source, hash);
}

/* Whether that is where the packet's flow was looked for first: mostly it is. */
static __always_inline bool is_roomy_home(const struct packet *packet,
					  __u32 source)
{
	__u32 index = group_after(source, packet->hash, 0);
	const struct group *home = group_at(index);

	return home && index == packet->home && room_in(home, index) >= ROOMY;
}

/* Some flow whose home this is has gone so far; under the group's lock. */
static __always_inline void raise_reach(struct group *home, __u32 steps)
{
	if (home->reach < steps)
		home->reach = steps;
	if (home->reach_since < steps)
		home->reach_since = steps;
}

/* Notes in a flow's first home that it is further on; false: a race was lost. */
__noinline int note_reach(__u32 source, __u32 steps)
{
	struct packet *packet = packet_at_hand();
	struct group *first, *home;
	bool in_first, raced;
	__u32 index;

	if (!packet)
		return false;
	index = group_after(source, packet->hash, 0);
	in_first = index == packet->home;
	first = group_at(packet->home);
	home = group_at(index);
	if (!first || !home)
		return false;
	if (!lock_group(first, packet->home))
		return false;
	raced = first->insertions != packet->insertions;
	if (!raced) {
		first->insertions++;
		if (!in_first)
			first->spilled = true;
		else
			raise_reach(first, steps);
	}
	unlock_group(first);
	if (raced || in_first)
		return !raced;
	if (!lock_group(home, index))
		return false;
	raise_reach(home, steps);
	unlock_group(home);
	return true;
}

/*
 * Takes a slot of the group so many steps from home: sets slot. False: another CPU
 * was faster, maybe with the same flow.
 */
static __always_inline bool take_slot(struct packet *packet, __u32 source,
				      __u32 steps)
{
	__u32 index = group_after(source, packet->hash, steps);
	bool is_home = index == packet->home, takes;
	struct group *group = group_at(index);
	__u32 hand, free, rested, passed, nth;

	if (!group || (!is_home && !note_reach(source, steps)))
		return false;
	hand = group->hand % GROUP_SLOTS;
	free = free_in(group, index);
	rested = free & ~group->resting;
	nth = first_from(hand, rested ?: free);
	barrier_var(nth);
	if (nth >= GROUP_SLOTS)
		return false;
	passed = bits_below(nth + 1) & ~bits_below(hand);
	if (!rested)
		passed = ~0;
	else if (nth < hand)
		passed = bits_below(nth + 1) | ~bits_below(hand);
	if (!lock_group(group, index))
		return false;
	takes = !(group->used & 1 << nth) && !is_crowded(group) &&
		(!is_home || group->insertions == packet->insertions);
	if (takes) {
		group->resting &= ~passed | group->used;
		group->used |= 1 << nth;
		group->unconfirmed |= 1 << nth;
		group->hand = nth + 1;
		group->insertions += is_home;
		group->tag[nth] = tag_of(packet->hash);
	}
	unlock_group(group);
	packet->slot = first_slot(index) + nth;
	return takes;
}

/*
 * Makes the record of a slot just taken the caller's own. Until then it is of a
 * flow that has ended, which nobody changes: `retired` goes last. (Stores are seen
 * in order on x86.) Nothing of it is read, and no lock is held: so nobody waits
 * for the cache miss, which costs as much as all the rest.
 */
static __always_inline void claim_flow(struct packet *packet, struct flow *flow)
{
	flow->family = 0;
	flow->state = FLOW_BEGINNING;
	barrier();
	flow->hash = packet->hash;
	flow->begun = packet->begun++ * cpus + bpf_get_smp_processor_id();
	flow->seen = now();
	barrier();
	flow->retired = false;
}

#endif /* __XDP_PROXY_PORTS_H__ */
