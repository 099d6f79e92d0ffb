/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What packets tell of their flow's state. Any of them may be forged, so that each
 * is believed as far as it proves itself.
 *
 *	TCP: SYN from the client		unconfirmed
 *	SYN+ACK, then an ACK of its number	established: the client has read it
 *	FIN from one				half closed
 *	FIN from both, each acknowledged	closing: its port is given back
 *	RST that fits				the same
 *
 *	UDP: from the client			unconfirmed
 *	an answer, and the client goes on	established
 *	for a second
 *
 * Who sends blindly, from forged addresses, never gets more than the share of the
 * unconfirmed, whatever the backends answer. Of UDP nothing proves that the client has
 * read an answer; but who has no second's patience for each port gets no further.
 */
#ifndef __XDP_PROXY_TRACK_H__
#define __XDP_PROXY_TRACK_H__

#include "checksum.h"
#include "link.h"
#include "ports.h"

/* Bytes that a flow's numbers may be behind: they share a line that two CPUs read. */
#define NUMBERS_STRIDE 16384
/* So far from a flow's number, on either side, a segment may be of it. */
#define NUMBERS_REACH 131072
/* Data behind a SYN+ACK, at most (RFC 7413): an initial window. */
#define EARLY_BYTES_MAX 65536

/* Whether a blind sender would have guessed it: 1 in 16,384 does. */
static __always_inline bool is_near(__u32 number, __u32 known)
{
	return number - known + NUMBERS_REACH < 2 * NUMBERS_REACH;
}

/*
 * The client's RST ends an earlier connection from the flow's port, which the backend
 * still had in TIME_WAIT: it has answered the SYN by an ACK (RFC 9293, 3.10.7.4). The
 * same SYN comes again, in Linux at once, and must come from that port: of any other the
 * backend may have the same to say.
 */
static __always_inline bool ends_earlier(const struct flow *flow)
{
	return flow->state == FLOW_UNCONFIRMED &&
	       (flow->from_backend & (HEARD_ANSWER | HEARD_OTHER)) ==
		       HEARD_OTHER;
}

/* A segment of a handshake from the backend. */
static __always_inline void track_answer(const struct packet *packet,
					 struct flow *flow)
{
	if ((packet->flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK)) {
		flow->backend_next = packet->sequence + 1;
		flow->from_backend =
			(flow->from_backend & ~HEARD_OTHER) | HEARD_ANSWER;
	} else if (!(flow->from_backend & HEARD_ANSWER)) {
		flow->from_backend |= HEARD_OTHER;
	} else if (!(flow->from_backend & HEARD_EARLY) &&
		   payload_bytes(packet)) {
		/* Its first SYN+ACK may have been another one (SYN cookies). */
		flow->backend_next = packet->sequence;
		flow->from_backend |= HEARD_EARLY;
	}
}

/* Whether the client acknowledges what only the backend's answer told it. */
static __always_inline bool proves_client(const struct packet *packet,
					  const struct flow *flow)
{
	__u32 beyond = packet->acknowledged - flow->backend_next;

	return (packet->flags & TCP_ACK) &&
	       (flow->from_backend & HEARD_ANSWER) &&
	       (!beyond || ((flow->from_backend & HEARD_EARLY) &&
			    beyond <= EARLY_BYTES_MAX));
}

/* Whether a RST is of the flow (RFC 5961, section 3.2, as far as it can be told). */
static __always_inline bool resets(struct xdp_md *ctx,
				   const struct packet *packet,
				   const struct flow *flow,
				   enum direction direction)
{
	bool fits;

	if (packet->fragment)
		return false;
	if (direction == FROM_CLIENT)
		fits = is_near(packet->sequence, flow->client_next);
	else if (flow->from_backend & HEARD_ANSWER)
		fits = is_near(packet->sequence, flow->backend_next);
	else /* refused: it acknowledges the SYN, and data that came with it */
		fits = (packet->flags & TCP_ACK) &&
		       packet->acknowledged - flow->client_next <=
			       EARLY_BYTES_MAX;
	return fits && is_sum_right(ctx);
}

/*
 * Takes in how far the packet's end is, and whether it has finished there. A segment
 * beyond a FIN shows that the FIN was another's.
 */
static __always_inline void track_numbers(const struct packet *packet,
					  __u32 *next, __u8 *heard)
{
	__u32 end = packet->sequence + payload_bytes(packet);

	if (!is_near(packet->sequence, *next))
		return;
	if (packet->flags & TCP_FIN) {
		*next = end + 1;
		*heard |= HEARD_FIN;
	} else if ((*heard & HEARD_FIN) ?
			   (__s32)(end - *next) > 0 :
			   (__s32)(end - *next) >= NUMBERS_STRIDE) {
		*next = end;
		*heard &= ~HEARD_FIN;
	}
}

/*
 * What a segment tells of the flow's state, where it tells anything. A function of its
 * own, which the verifier walks once: most segments do without it (goes_on_as_before).
 */
__noinline int track_segment(struct xdp_md *ctx, __u32 direction)
{
	bool is_client = direction == FROM_CLIENT;
	struct packet *packet = packet_at_hand();
	const struct tcphdr *tcp;
	__u32 *next, other_next;
	__u8 flags, *heard, other;
	struct flow *flow;

	if (!packet)
		return 0;
	flow = flow_at(packet->slot);
	tcp = frame_at(ctx, packet->l4_offset, sizeof(*tcp));
	if (!flow || !tcp)
		return 0;
	packet->acknowledged = bpf_ntohl(tcp->ack_seq);
	flags = packet->flags;
	next = is_client ? &flow->client_next : &flow->backend_next;
	heard = is_client ? &flow->from_client : &flow->from_backend;
	other_next = is_client ? flow->backend_next : flow->client_next;
	other = is_client ? flow->from_backend : flow->from_client;

	if (flags & TCP_RST) {
		if (is_client && ends_earlier(flow))
			flow->from_backend &= ~HEARD_OTHER;
		else if (resets(ctx, packet, flow, direction))
			*heard |= HEARD_RST;
	} else if (flow->state == FLOW_UNCONFIRMED) {
		if (!is_client)
			track_answer(packet, flow);
		else if (flags & TCP_SYN)
			flow->client_next = packet->sequence + 1;
		else if (proves_client(packet, flow))
			confirm_flow(packet->slot, packet->hash);
	}
	if (flow->state == FLOW_ESTABLISHED && !(flags & (TCP_SYN | TCP_RST))) {
		track_numbers(packet, next, heard);
		if ((other & HEARD_FIN) && (flags & TCP_ACK) &&
		    packet->acknowledged == other_next)
			*heard |= HEARD_FIN_ACKED;
	}
	if (is_finished(flow))
		retire_flow(packet->slot, packet->hash, ENDING_OVER);
	return 0;
}

/* The state of a flow, and what was heard of it, in one load. */
#define STATE(state, retired, from_client, from_backend)         \
	((__u32)(state) | (retired) << 8 | (from_client) << 16 | \
	 (__u32)(from_backend) << 24)
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "as STATE has it");
_Static_assert(offsetof(struct flow, state) % 4 == 0 &&
		       offsetof(struct flow, from_backend) ==
			       offsetof(struct flow, state) + 3,
	       "the state is one word");
#define HEARD_OF_END (HEARD_FIN | HEARD_FIN_ACKED | HEARD_RST)

/* An established flow that nobody is ending, and data that is no news of its numbers. */
static __always_inline bool goes_on_as_before(const struct packet *packet,
					      const struct flow *flow,
					      enum direction direction)
{
	__u32 state = *(const __u32 *)&flow->state;
	__u32 next = direction == FROM_CLIENT ? flow->client_next :
						flow->backend_next;

	return (state & STATE(0xff, 0xff, HEARD_OF_END, HEARD_OF_END)) ==
		       STATE(FLOW_ESTABLISHED, 0, 0, 0) &&
	       !(packet->flags & (TCP_SYN | TCP_RST | TCP_FIN)) &&
	       packet->sequence - next + packet->ip_bytes < NUMBERS_STRIDE;
}

/* What a datagram tells: there is nothing to acknowledge. */
static __always_inline void track_udp(const struct packet *packet,
				      struct flow *flow,
				      enum direction direction)
{
	if (direction == FROM_BACKEND) {
		if (!(flow->from_backend & HEARD_ANSWER))
			flow->from_backend |= HEARD_ANSWER;
	} else if (flow->state == FLOW_UNCONFIRMED &&
		   (flow->from_backend & HEARD_ANSWER) &&
		   ticks_since(&flow->client_next) >= second_ticks) {
		confirm_flow(packet->slot, packet->hash);
	}
}

/* A SYN that has begun the flow, or is sent again. */
static __always_inline bool begins_as_noted(const struct packet *packet,
					    const struct flow *flow,
					    enum direction direction)
{
	return direction == FROM_CLIENT && packet->flags == TCP_SYN &&
	       flow->client_next == packet->sequence + 1;
}

/* A fragment without ports says no more than that the flow goes on. */
static __always_inline void track_flow(struct xdp_md *ctx,
				       const struct packet *packet,
				       struct flow *flow,
				       enum direction direction, bool has_ports)
{
	/* Of such a fragment IPv6 tells another protocol, if it likes. */
	bool is_tcp =
		has_ports ? !is_udp(packet) : flow->protocol == IPPROTO_TCP;
	__u32 tick = now();

	if (has_ports && is_tcp && goes_on_as_before(packet, flow, direction)) {
		if (flow->seen != tick)
			flow->seen = tick;
		return;
	}
	if (flow->retired) {
		/* A backend that goes on did not believe the RST (RFC 5961). */
		if (direction == FROM_BACKEND && is_tcp &&
		    !(packet->flags & (TCP_RST | TCP_FIN)))
			flow->seen = tick;
		return;
	}
	if (has_ports && !is_tcp)
		track_udp(packet, flow, direction);
	else if (has_ports && !begins_as_noted(packet, flow, direction))
		track_segment(ctx, direction);
	/* A backend's answer alone keeps no flow of TCP alive. */
	if ((flow->state == FLOW_ESTABLISHED || direction == FROM_CLIENT ||
	     !is_tcp) &&
	    flow->seen != tick)
		flow->seen = tick;
}

#endif /* __XDP_PROXY_TRACK_H__ */
