/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What no packet does: userspace runs it, now and then or when the source addresses
 * change, over all slots or over one group.
 */
#ifndef __XDP_PROXY_SWEEP_H__
#define __XDP_PROXY_SWEEP_H__

#include "ports.h"

/*
 * Ends the flow in a slot that is ours no more, which nobody gets again. Returns whether
 * one is left, as it has just begun.
 */
__noinline int lose_slot(__u32 slot)
{
	struct group *group = group_at(group_of(slot));
	struct flow *flow = flow_at(slot);
	bool is_left;

	if (!group || !flow || flow->state == FLOW_NONE)
		return false;
	retire_flow(flow, slot, flow->hash, false);
	bpf_spin_lock(&group->lock);
	group->used |= bit_of(slot);
	is_left = !*(volatile __u8 *)&flow->retired;
	if (!is_left)
		flow->family = 0;
	bpf_spin_unlock(&group->lock);
	return is_left;
}

/*
 * Another set of a group's slots becomes ours: `gained` are free, and the flows in `lost`
 * end. Returns how many of these are left.
 */
__noinline int regroup(void)
{
	__u32 index = regrouped, left = 0;
	struct group *group = group_at(index);

	if (!group)
		return 0;
	bpf_spin_lock(&group->lock);
	group->used = (group->used & ~gained) | lost;
	group->share = new_share;
	bpf_spin_unlock(&group->lock);
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
	if (!home || index == group_of(slot) || home->reach & SPILLED)
		return 0;
	bpf_spin_lock(&home->lock);
	home->reach |= SPILLED;
	bpf_spin_unlock(&home->lock);
	return 0;
}

/* Looks at the next slots of a source address for flows whose time is over. */
__noinline int sweep(void)
{
	__u32 hand = sweep_hand;

	sweep_hand = hand + SWEEP_ROUND;
	for (__u32 i = 0; i < SWEEP_ROUND; i++) {
		__u32 slot = sweep_source << PORT_BITS | (hand + i) % PORTS;

		expire_flow(slot, false);
		if (carries_flows())
			tell_home(slot);
	}
	return 0;
}

#endif /* __XDP_PROXY_SWEEP_H__ */
