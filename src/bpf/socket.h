/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The host's own connections stay the host's, whatever service has their port: where a
 * packet is of no flow and begins no connection, and the host has the VIP, the kernel is
 * asked whether one of its sockets waits for it.
 */
#ifndef __XDP_PROXY_SOCKET_H__
#define __XDP_PROXY_SOCKET_H__

#include "table.h"

#define BPF_F_CURRENT_NETNS (-1L)
#define TCP_STATE_LISTEN 10 /* of a socket */

/* The packet's ends as the kernel takes them; returns how many bytes they are. */
static __always_inline __u32 socket_tuple(const struct packet *packet,
					  struct bpf_sock_tuple *tuple)
{
	if (is_ipv6(packet)) {
		copy_address(tuple->ipv6.saddr, packet->from);
		copy_address(tuple->ipv6.daddr, packet->to);
		tuple->ipv6.sport = packet->source_port;
		tuple->ipv6.dport = packet->dest_port;
		return sizeof(tuple->ipv6);
	}
	tuple->ipv4.saddr = packet->from[0];
	tuple->ipv4.daddr = packet->to[0];
	tuple->ipv4.sport = packet->source_port;
	tuple->ipv4.dport = packet->dest_port;
	return sizeof(tuple->ipv4);
}

/*
 * A connection of the host has the packet's ends, be it half open or in TIME_WAIT. A
 * function of its own, which the verifier walks once, as is the next one.
 */
__noinline int has_connection(struct xdp_md *ctx)
{
	const struct packet *packet = packet_at_hand();
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *socket;
	bool found;
	__u32 bytes;

	if (!packet)
		return false;
	bytes = socket_tuple(packet, &tuple);
	socket = bpf_skc_lookup_tcp(ctx, &tuple, bytes, BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return false;
	found = socket->state != TCP_STATE_LISTEN;
	bpf_sk_release(socket);
	return found;
}

/*
 * A socket of the host is connected to the packet's sender; or, where the service has
 * several ports, is bound to this one: its answers may come from anybody.
 */
__noinline int has_datagram_socket(struct xdp_md *ctx)
{
	const struct packet *packet = packet_at_hand();
	struct bpf_sock_tuple tuple = {};
	const struct service *service;
	struct bpf_sock *socket;
	bool found;
	__u32 bytes;

	if (!packet)
		return false;
	service = service_of(packet->service);
	bytes = socket_tuple(packet, &tuple);
	socket = bpf_sk_lookup_udp(ctx, &tuple, bytes, BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return false;
	/* One that is connected to somebody else is not found. */
	found = socket->dst_port ||
		(service && service->first_port != service->last_port);
	bpf_sk_release(socket);
	return found;
}

/* SYN without ACK: no answer to anybody. */
static __always_inline bool is_syn(const struct xdp_md *ctx,
				   const struct packet *packet)
{
	const __u8 *tcp =
		frame_at(ctx, packet->l4_offset, sizeof(struct tcphdr));

	return !tcp || (tcp[13] & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* A packet to a service, of no flow, is the host's own. */
static __always_inline bool is_of_host(struct xdp_md *ctx,
				       const struct packet *packet)
{
	/* Without the address it has no such sockets. */
	if (!asks_sockets || packet->answers_echo)
		return false;
	if (is_udp(packet))
		return has_datagram_socket(ctx);
	return !is_syn(ctx, packet) && has_connection(ctx);
}

#endif /* __XDP_PROXY_SOCKET_H__ */
