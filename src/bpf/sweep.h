/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What no packet does: userspace runs it, now and then or when the source addresses
 * change, over all slots or over one group.
 */
#ifndef __XDP_PROXY_SWEEP_H__
#define __XDP_PROXY_SWEEP_H__

#include "ports.h"
#include "route.h"

/*
 * Ends the flow in a slot that is ours no more, which nobody gets again. Returns whether
 * one is left, as it has just begun.
 */
__noinline int lose_slot(__u32 slot)
{
	__u32 index = group_of(slot);
	struct group *group = group_at(index);
	struct flow *flow = flow_at(slot);
	bool is_left;

	if (!group || !flow || flow->state == FLOW_NONE)
		return false;
	retire_flow(slot, flow->hash, ENDING_OVER);
	if (!lock_group(group, index))
		return true;
	group->used |= bit_of(slot);
	is_left = !*(volatile __u8 *)&flow->retired;
	if (!is_left)
		flow->family = 0;
	unlock_group(group);
	return is_left;
}

/* Some flow has the slot, under the lock of its group. */
__noinline int is_in_use(__u32 slot)
{
	const struct flow *flow = flow_at(slot);

	return flow && flow->state != FLOW_NONE && !flow->retired;
}

/*
 * Another set of a group's slots becomes ours: `gained` are free, `withheld` no more, each
 * once the flow that may have it has ended; and the flows in `lost` end. Returns how many
 * of these are left; REGROUP_AGAIN: nothing was done.
 */
__noinline int regroup(void)
{
	__u32 index = regrouped, left = 0;
	struct group *group = group_at(index);

	if (!group)
		return 0;
	if (!lock_group(group, index))
		return REGROUP_AGAIN;
	group->used |= lost | withheld;
	group->resting |= withheld;
	group->share = new_share;
	for (__u32 i = 0; i < GROUP_SLOTS; i++) {
		__u32 bit = gained & 1 << i;

		if (bit && is_in_use(first_slot(index) + i))
			group->resting &= ~bit;
		else
			group->used &= ~bit;
	}
	unlock_group(group);
	for (__u32 i = 0; i < GROUP_SLOTS; i++)
		if (lost >> i & 1)
			left += lose_slot(first_slot(index) + i);
	return left;
}

/*
 * Tells the home of the flow in a slot that it is elsewhere, if so: in another source
 * address, or where its home is by an earlier list.
 */
__noinline int tell_home(__u32 slot)
{
	const struct flow *flow = flow_at(slot);
	struct group *home;
	__u32 source, index;

	if (!flow || !flow->family)
		return 0;
	source = nth_list(flow->family, flow->hash, 0);
	if (source == slot >> PORT_BITS && !relisted)
		return 0;
	index = group_after(source, flow->hash, 0);
	home = group_at(index);
	if (home && index != group_of(slot))
		home->spilled = true;
	return 0;
}

/* Notes in the home of the flow in a slot how far it has gone. */
__noinline int note_steps(__u32 slot)
{
	__u32 source = slot >> PORT_BITS, group = group_of(slot), hash, index;
	const struct flow *flow = flow_at(slot);
	struct group *home;

	if (!flow || !flow->family || is_over(flow))
		return 0;
	hash = flow->hash;
	index = group_after(source, hash, 0);
	home = group_at(index);
	if (!home || index == group)
		return 0;
	for (__u32 steps = 1; steps < STEPS && steps <= home->reach; steps++) {
		if (group_after(source, hash, steps) != group)
			continue;
		if (home->reach_since >= steps)
			return 0;
		if (!lock_group(home, index))
			break;
		raise_reach(home, steps);
		unlock_group(home);
		return 0;
	}
	unnoted = true;
	return 0;
}

/*
 * Since the sweep before, which was at this group, all flows have been noted, and those
 * that began since note themselves.
 */
__noinline int lower_reach(__u32 index)
{
	struct group *group = group_at(index);

	if (!group || !lowers_reach || !lock_group(group, index))
		return 0;
	group->reach = group->reach_since;
	group->reach_since = 0;
	unlock_group(group);
	return 0;
}

/* Looks at the next slots of a source address for flows whose time is over. */
__noinline int sweep(void)
{
	__u32 hand = sweep_hand;

	sweep_hand = hand + SWEEP_ROUND;
	for (__u32 i = 0; i < SWEEP_ROUND; i++) {
		__u32 slot = sweep_source << PORT_BITS | (hand + i) % PORTS;

		if (slot % PORTS % GROUP_SLOTS == 0)
			lower_reach(group_of(slot));
		expire_flow(slot, false);
		if (carries_flows())
			tell_home(slot);
		note_steps(slot);
		steer_slot(slot);
	}
	return 0;
}

#endif /* __XDP_PROXY_SWEEP_H__ */
