/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the datapath and userspace share: the constants, and the shape of every
 * map's value; of those that userspace alone writes in config.h. Rust sees these
 * types through the skeleton only.
 *
 * A flow's slot names everything about it:
 *
 *	 19    16 15                 0
 *	+--------+--------------------+
 *	| source |  source port       |   the index of its record
 *	+--------+--------------------+
 *
 * The source port that NAT picks *is* the place of the flow's record in the
 * table of its source address. So the reply path is one array look-up by the
 * packet's destination port, two flows can't share a port, and one record
 * serves both directions: there is no half to lose. GROUP_SLOTS slots in a row
 * are a group, which the hash of the client's tuple names: there the forward
 * path finds the slot by a tag, and a new flow takes one that is free.
 */
#ifndef __XDP_PROXY_ABI_H__
#define __XDP_PROXY_ABI_H__

#include "vmlinux.h"

#define ETH_ALEN 6
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88a8
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_HOPOPTS 0
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60
#define IP_MF 0x2000
#define IP_DF 0x4000
#define IP_OFFSET 0x1fff

/* An enum, as in BTF it reaches Rust. */
enum constant {
	/*
	 * Of what a later program finds in the maps: raised whenever a struct of this
	 * file or of config.h, a map or a hash over them changes. Maps of another
	 * layout are never taken over.
	 */
	LAYOUT = 6,
	/* Counts that bound loops and sizes. */
	SOURCES = 16,  /* source addresses, at most */
	LISTS = 32,    /* of groups: of each source address, now and earlier */
	PORTS = 65536, /* slots of one source address */
	PORT_BITS = 16,
	GROUP_SLOTS = 20, /* with what is known of them, one cache line */
	GROUPS = 3277,	  /* of one source address: PORTS / GROUP_SLOTS */
	GROUP_BITS = 12,  /* of an index: below those of the source address */
	STEPS = 128,	  /* groups of one source address where a flow may be */
	PROBES = 4,	  /* places where an address or a service may be */
	MAGLEV_ENTRIES = 65537,
	PLACE_BITS_MAX = 16,   /* of an entry that holds an index itself */
	VLAN_TAGS = 2,	       /* of a frame: 802.1ad and 802.1Q */
	FRAGMENTED = 8192,     /* datagrams in fragments that are remembered */
	EXTENSION_HEADERS = 6, /* of IPv6, before the transport header */
	L4_OFFSET_MAX = 511,   /* bytes from the frame's beginning */
	SWEEP_ROUND = 64, /* slots that one run of the sweep program looks at */
	LOCK_TRIES = 64,  /* for a group that another CPU is changing */
	LEAST_TRIES =
		32,  /* backends among which the least busy is looked for */
	ROUTES = 16, /* to clients, before they go into a trie */
	ROUTES_MAX = 32768,
	NEXT_HOPS = 256,    /* of all routes to clients */
	HOPS_OF_ROUTE = 8,  /* that share its clients */
	NEIGHBOURS = 4096,  /* of the kernel, on link, that are known */
	WAY_FIRST = 0xffff, /* of a way with next hops: the first one's index */
	WAY_COUNT_SHIFT = 16, /* and how many they are */
	/* What the regroup program may return. */
	REGROUP_AGAIN = GROUP_SLOTS + 1,
};

/*
 * What became of a packet. The order matters: up to OUTCOME_PASSED it goes to
 * the host, up to OUTCOME_SENT_LAST it was sent, all others are drops.
 */
enum outcome {
	OUTCOME_NEXT,	   /* not decided yet: the next stage is asked */
	OUTCOME_PASSED,	   /* not ours: to the host, untouched */
	OUTCOME_FORWARDED, /* to a backend */
	OUTCOME_RETURNED,  /* to a client */
	/* The sender was told: by RST, or by ICMP port unreachable for UDP. */
	OUTCOME_REFUSED_NO_FLOW,	/* mid-stream, of no flow we know */
	OUTCOME_REFUSED_NO_BACKEND,	/* nobody can take a new flow */
	OUTCOME_REFUSED_SNAT_EXHAUSTED, /* no source port is left */
	OUTCOME_REFUSED_BACKEND_GONE,	/* its flow's backend ends its flows */
	OUTCOME_REFUSED_LAST = OUTCOME_REFUSED_BACKEND_GONE,
	OUTCOME_TIME_EXCEEDED, /* its time to live ran out, and ICMP told so */
	OUTCOME_ICMP_ERROR,    /* about a flow, to the end that can act on it */
	OUTCOME_ECHO_REPLY,    /* for a VIP that the host does not own */
	OUTCOME_SENT_LAST = OUTCOME_ECHO_REPLY,
	OUTCOME_DROPPED_MALFORMED, /* headers or lengths that contradict the frame */
	OUTCOME_DROPPED_FRAGMENT, /* a later one, its first did not go on or was not seen */
	OUTCOME_DROPPED_ICMP_LIMIT, /* ICMP would tell, but did so too often or may not */
	OUTCOME_DROPPED_NO_FLOW,      /* a RST of no flow: never answered */
	OUTCOME_DROPPED_NO_NEIGHBOUR, /* the flow's backend has no MAC */
	/* Another CPU began the same flow or took its record just now. */
	OUTCOME_DROPPED_RACE,
	OUTCOME_DROPPED_NO_ROOM, /* the frame could not be made into an answer */
	OUTCOME_DROPPED_UNPROVEN, /* an ICMP error about a packet that did not pass */
	OUTCOME_DROPPED_MARTIAN, /* its source is ours, or no host's */
	OUTCOMES,
};

enum flow_state {
	FLOW_NONE,	  /* the port was never used */
	FLOW_BEGINNING,	  /* being written: its CPU alone may end it */
	FLOW_UNCONFIRMED, /* the client has not reacted to an answer yet */
	FLOW_ESTABLISHED, /* it has: it is no forged address */
};

enum direction {
	FROM_CLIENT = 1,
	FROM_BACKEND = 2,
};

/* What the packets of one direction have said: bits of a flow's from_*. */
enum heard {
	HEARD_FIN = 1,
	HEARD_FIN_ACKED = 2, /* it has acknowledged the other end's FIN */
	HEARD_RST = 4,
	HEARD_PARTIAL = 8, /* its checksums are still to be completed */
	/* Of a backend alone, to the flow's first packet. */
	HEARD_ANSWER = 16, /* SYN+ACK; anything, of UDP */
	HEARD_OTHER =
		32, /* TCP without SYN: of an earlier connection from the port */
	HEARD_EARLY =
		64, /* data behind the SYN+ACK, before the client's ACK was seen */
};

/*
 * A flow, in exactly one cache line (the map is mmapable, and so begins at a
 * page). VIP and backend are indexes, so that IPv6 fits too; its service is its
 * backend's.
 */
struct flow {
	/* Written when the flow begins. */
	__be32 client[4];
	__be16 client_port;
	__be16 service_port;
	__u16 vip;
	__u16 backend;
	__u8 family; /* 0: no flow was ever here */
	__u8 protocol;
	__u16 begun; /* a number that tells it from those before it */
	__u32 hash;  /* of the client's tuple: groups and tag */
	/*
	 * What the rewrite towards the backend adds to the packet's
	 * one's-complement sum; the way back takes the same away.
	 */
	__u16 address_delta;
	__u16 port_delta;

	/* Written as packets pass. */
	__u32 seen;   /* jiffies of the last packet that keeps it alive */
	__u8 state;   /* enum flow_state */
	__u8 retired; /* its slot is free to be taken; the flow is closing */
	__u8 from_client; /* enum heard; written by packets of this direction */
	__u8 from_backend; /* the same */
	/*
	 * TCP: the sequence numbers after what each end has sent, up to
	 * NUMBERS_STRIDE behind; exact until the flow is confirmed, and after a FIN.
	 * UDP: client_next is when the flow began, in jiffies.
	 */
	__u32 client_next;
	__u32 backend_next;
	__u16 client_vlan[VLAN_TAGS]; /* of its tags (link.h); 0: none */
	__u8 client_mac[ETH_ALEN];
	__u8 routed; /* the MAC is the next hop's, whatever its frames have */
	__u8 pad;
};
_Static_assert(sizeof(struct flow) == 64, "a flow is one cache line");

/*
 * Slots in a row, of one source address: which are in use, and whose they are.
 * They are taken in turns, from the hand on, so that the first unconfirmed flow
 * from there on is the oldest. A slot that comes free rests until the hand has
 * passed it, as the backends' TIME_WAIT and late packets want it: its tag still
 * leads those to its flow. One that is in use and rests is withheld: whoever has it
 * keeps it, and it comes free no more.
 *
 * The flows that are not confirmed have a share of the slots that they can't
 * exceed: the oldest of them makes room for the next one.
 */
struct group {
	__u32 lock; /* 1: somebody is changing it */
	/* A bit for each slot; those that are not ours are in use. */
	__u32 used;
	__u32 resting;
	__u32 unconfirmed;
	__u16 evicted;	  /* flows that made room */
	__u8 hand;	  /* the next slot to be taken, if it is free */
	__u8 share;	  /* of unconfirmed flows, at most */
	__u8 insertions;  /* of flows whose home this is */
	__u8 spilled;	  /* some of these are at another source address */
	__u8 reach;	  /* so many steps the others have gone */
	__u8 reach_since; /* the same of those seen since a sweep was here */
	__u16 tag[GROUP_SLOTS];
};
_Static_assert(sizeof(struct group) == 64, "a group is one cache line");

/*
 * The groups of one source address that have ports of ours: the first so many. From
 * SOURCES on are those that it had before its ports were changed: there the flows of
 * then are found.
 */
struct ports {
	__u32 groups;
	__u16 group[GROUPS + 1]; /* the last is padding */
};

/* Names the fragments of one packet (RFC 791, section 3.2; RFC 8200, 4.5). */
struct fragment_key {
	__be32 from[4];
	__be32 to[4];
	__be32 id;
	__u8 family;
	__u8 protocol; /* IPv6: 0 */
	__u16 pad;
};

/* What was decided on the first fragment, for the others. */
struct fragment {
	__u32 outcome;
	__u32 slot;  /* of its flow */
	__u32 hash;  /* of its flow, as long as the slot is its */
	__u32 begun; /* the same of its number */
	__u32 seen;  /* jiffies */
	__be32 id;   /* that the fragments are sent with */
	__u32 direction;
};

/*
 * Of one flow, in the slot of its record; beside it, as not everybody pays for
 * them. The upper 16 bits of the packets are the halves of the jiffies of the
 * flow's begin, the upper one first (0: nobody has counted), so that all of it is
 * half a cache line.
 */
struct flow_counters {
	__u64 forwarded_packets;
	__u64 forwarded_bytes;
	__u64 returned_packets;
	__u64 returned_bytes;
};
_Static_assert(sizeof(struct flow_counters) == 32, "half a cache line");

/* Per CPU, of one backend. */
struct backend_counters {
	__u64 forwarded_packets;
	__u64 forwarded_bytes;
	__u64 returned_packets;
	__u64 returned_bytes;
	__u64 flows_begun;
	__u64 flows_ended;
};

#endif /* __XDP_PROXY_ABI_H__ */
