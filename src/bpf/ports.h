/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The ports, which are the places of flows: how one is taken and given back.
 *
 * A port is either free, and then in the queue of its source address (struct
 * ports), or it has a flow. A flow that is closing is both: its record still
 * serves late packets while its port rests in the queue, and ends for good when
 * the port is taken again. Who takes a port from the queue owns its record;
 * `retired` says that the port is in the queue, and changes under its lock
 * only, so a port is never there twice.
 *
 * The same lock guards the step from unconfirmed to established, so that the
 * queue knows how many flows are unconfirmed. A flood of them, from forged
 * addresses, turns over its own share of the ports and no other.
 */
#ifndef __XDP_PROXY_PORTS_H__
#define __XDP_PROXY_PORTS_H__

#include "table.h"

static __always_inline struct ports *ports_of(__u32 slot)
{
	__u32 source = slot >> PORT_BITS;

	return bpf_map_lookup_elem(&ports, &source);
}

/*
 * The flow ends: its port goes to the end of the queue. `hash` tells that the
 * record still is of the flow that the caller means; `evict` spares it if it is
 * established by now, and forgets it: its client must not go on with it.
 */
static __always_inline void retire_flow(struct flow *flow, __u32 slot,
					__u32 hash, bool evict)
{
	struct ports *queue = ports_of(slot);
	__u32 tick = now();
	__u32 backend = 0;
	bool unconfirmed, retires;

	if (!queue)
		return;
	bpf_spin_lock(&queue->lock);
	unconfirmed = flow->state == FLOW_UNCONFIRMED;
	retires = !flow->retired && flow->hash == hash &&
		  flow->state != FLOW_BEGINNING && (unconfirmed || !evict);
	if (retires) {
		backend = flow->backend;
		flow->retired = true;
		flow->seen = tick;
		queue->unconfirmed -= unconfirmed;
		if (evict) {
			flow->family = 0;
			queue->evicted++;
		}
		queue->port[queue->tail++ % PORTS] = slot;
	}
	bpf_spin_unlock(&queue->lock);
	if (retires)
		count_flow_ended(backend);
}

/* The client has reacted to an answer. */
static __always_inline void confirm_flow(struct flow *flow, __u32 slot,
					 __u32 hash)
{
	struct ports *queue = ports_of(slot);

	if (!queue)
		return;
	bpf_spin_lock(&queue->lock);
	if (!flow->retired && flow->hash == hash &&
	    flow->state == FLOW_UNCONFIRMED) {
		flow->state = FLOW_ESTABLISHED;
		queue->unconfirmed--;
	}
	bpf_spin_unlock(&queue->lock);
}

/*
 * A closing flow whose client begins anew: no packet finds it any more, and
 * its place in the bucket is the next one's.
 */
static __always_inline void forget_flow(const struct packet *packet,
					struct flow *flow)
{
	struct ports *queue = ports_of(packet->slot);

	if (!queue)
		return;
	bpf_spin_lock(&queue->lock);
	if (flow->retired && flow->hash == packet->hash)
		flow->family = 0;
	bpf_spin_unlock(&queue->lock);
	unlink_flow(flow, packet->slot, packet->hash, true);
}

/* No packet of a client goes there any more: it is down, or has drained. */
static __always_inline bool ends_flows(__u32 index)
{
	const struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	return !backend || backend->ends_flows;
}

/*
 * Retires the flow in a slot if its time is over. Functions that are not static
 * are walked by the verifier once for any arguments, not once for each call.
 */
__noinline int expire_flow(__u32 slot, bool pressed)
{
	struct flow *flow = flow_at(slot);
	const struct service *service;
	__u32 timeout, hash;

	if (!flow)
		return 0;
	/* First, as claim_flow writes it last: what follows is of this flow. */
	hash = *(const volatile __u32 *)&flow->hash;
	barrier();
	if (!flow->family || flow->retired)
		return 0;
	service = service_of(flow->service);
	if (!service)
		return 0;
	if (flow->state == FLOW_ESTABLISHED ||
	    (flow->answered && flow->protocol == IPPROTO_UDP))
		timeout = service->established;
	else /* where ports are short, these go first */
		timeout = service->unanswered >> (pressed ? 2 : 0);
	if (age(flow) > timeout || ends_flows(flow->backend))
		retire_flow(flow, slot, hash, false);
	return 0;
}

/* Looks at the next slots of a source address for flows whose time is over. */
__noinline int sweep(__u32 source, __u32 slots, bool pressed)
{
	struct ports *queue = bpf_map_lookup_elem(&ports, &source);
	__u32 hand;

	if (!queue)
		return 0;
	/* Two CPUs that read the same hand look twice: that does no harm. */
	hand = queue->hand;
	queue->hand = hand + slots;
	for (__u32 i = 0; i < SWEEP_ROUND && i < slots; i++)
		expire_flow(source << PORT_BITS | (hand + i) % PORTS, pressed);
	return 0;
}

/* Takes the port that has rested longest; 0: none is free. */
static __always_inline __u32 take_port(__u32 source)
{
	struct ports *queue = bpf_map_lookup_elem(&ports, &source);
	__u32 port = 0;

	if (!queue)
		return 0;
	bpf_spin_lock(&queue->lock);
	if (queue->head != queue->tail &&
	    queue->unconfirmed < queue->unconfirmed_max)
		port = queue->port[queue->head++ % PORTS];
	bpf_spin_unlock(&queue->lock);
	return port;
}

/*
 * Looks at the first flow on the list of those that began. One that is confirmed or
 * gone leaves the list; one that is not ends where room is `needed` and the
 * unconfirmed flows have all of their share: the oldest makes room. False: there
 * is nothing to do.
 */
__noinline int make_room(__u32 source, bool needed)
{
	struct ports *queue = bpf_map_lookup_elem(&ports, &source);
	__u32 slot, hash, place, port;
	bool crowded, waits;
	struct flow *flow;

	if (!queue)
		return false;
	bpf_spin_lock(&queue->lock);
	crowded = needed && queue->unconfirmed >= queue->unconfirmed_max;
	place = queue->begun_head;
	port = place == queue->begun_tail ? 0 : queue->begun[place % PORTS];
	bpf_spin_unlock(&queue->lock);
	slot = source << PORT_BITS | port;
	flow = flow_at(slot);
	if (!port || !flow)
		return false;
	hash = *(const volatile __u32 *)&flow->hash;
	barrier();
	/* Else the port had another flow then: this one's place is further on. */
	waits = flow->begun == place && !flow->retired &&
		(flow->state == FLOW_BEGINNING ||
		 flow->state == FLOW_UNCONFIRMED);
	if (waits && !crowded)
		return false;
	bpf_spin_lock(&queue->lock);
	queue->begun_head += queue->begun_head == place;
	bpf_spin_unlock(&queue->lock);
	if (waits)
		retire_flow(flow, slot, hash, true);
	return true;
}

/* Tidies the list, so that a flood finds the oldest at once. */
__noinline int tidy(__u32 source)
{
	for (int i = 0; i < TIDY_ROUND; i++)
		if (!make_room(source, false))
			break;
	return 0;
}

/*
 * A port of a source address; 0: none is free. `pressed`: it was asked before,
 * and had none.
 */
__noinline int reserve_port(__u32 source, bool pressed)
{
	__u32 port;

	for (int i = 0; i < EVICT_TRIES; i++)
		if (!make_room(source, true))
			break;
	if (pressed)
		sweep(source, SWEEP_SHORT, true);
	port = take_port(source);
	if (!pressed)
		sweep(source, SWEEP_STEP, false);
	return port;
}

/* Makes the record of a port just taken the caller's own, and empties it. */
static __always_inline void claim_flow(struct flow *flow, __u32 slot,
				       __u32 hash)
{
	struct ports *queue = ports_of(slot);
	bool was_used = flow->state != FLOW_NONE;
	__u32 tick = now();
	__u32 old_hash;

	if (!queue)
		return;
	bpf_spin_lock(&queue->lock);
	old_hash = flow->hash;
	flow->family = 0;
	flow->seen = tick;
	flow->state = FLOW_BEGINNING;
	barrier();
	flow->hash = hash;
	flow->retired = false;
	queue->unconfirmed++;
	if (queue->begun_tail - queue->begun_head == PORTS)
		queue->begun_head++;
	flow->begun = queue->begun_tail++;
	queue->begun[flow->begun % PORTS] = slot;
	bpf_spin_unlock(&queue->lock);
	if (was_used)
		unlink_flow(flow, slot, old_hash, false);
}

#endif /* __XDP_PROXY_PORTS_H__ */
