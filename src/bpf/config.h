/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What userspace writes and the datapath reads: addresses, services, backends, and
 * where new flows go. For Rust as abi.h is.
 */
#ifndef __XDP_PROXY_CONFIG_H__
#define __XDP_PROXY_CONFIG_H__

#include "abi.h"

/*
 * An address of ours: a VIP, a source address, or both; or another one of this host, or
 * of all hosts of a network that it is in (broadcast), from which no packet can come.
 * Open addressing over a power of two: an entry is within PROBES places of its hash, and
 * an unused place (family 0) ends the search.
 */
struct address {
	__be32 address[4]; /* IPv4: the first, the others 0 */
	__u16 vip;	   /* index into vips + 1; 0: not a VIP */
	__u16 source;	   /* index into sources + 1; 0: not a source address */
	__u16 family;	   /* AF_INET, AF_INET6; 0: unused */
	__u16 answers_echo; /* a VIP that the host itself does not own */
};

/*
 * Where a service is found: placed like an address. An entry with port 0 leads to
 * the services that have several ports of a VIP.
 */
struct listener {
	__u16 vip;   /* index into vips + 1; 0: unused */
	__be16 port; /* 0: `target` is an index into port_maps */
	__u8 protocol;
	__u8 pad;
	__u16 target; /* index into services */
};

/* The services on several ports of one VIP and protocol. */
struct port_map {
	__u16 service[PORTS]; /* index into services + 1, by port; 0: none */
};

enum scheduler {
	SCHEDULER_MAGLEV,
	SCHEDULER_SOURCE_HASH, /* all flows of a client go to one backend */
	SCHEDULER_ROUND_ROBIN, /* each CPU by itself */
	SCHEDULER_RANDOM,
	SCHEDULER_LEAST_CONNECTIONS,
};

/* What a flow keeps to. Times are in jiffies. */
struct service {
	__u32 maglev;	    /* index of its look-up table */
	__u32 members;	    /* least-connections: the table's first entries */
	__u16 scheduler;    /* enum scheduler */
	__u16 source_count; /* 0: flows come from their backend's source */
	__u32 unanswered;
	__u32 established;
	__u32 half_closed;
	__u32 closing;
	/* For userspace, which finds here what a running datapath serves. */
	__u16 vip; /* index into vips + 1; 0: no service */
	__u16 first_port;
	__u16 last_port;
	__u16 protocol;
	__u8 source[SOURCES]; /* indexes into sources, the first source_count */
};

/* What checks said of a backend. */
enum health {
	HEALTH_UNKNOWN, /* nothing so far, or there are none: it counts as up */
	HEALTH_UP,
	HEALTH_DOWN,
};

/* A backend of one service; index 0 is no backend. */
struct backend {
	__be32 address[4];
	__be32 tags
		[VLAN_TAGS]; /* of the VLAN it is in, outermost first; 0: none */
	__be16 port;	     /* 0: the port that the client connects to */
	__u16 source; /* index into sources: the address it is reached from */
	__u8 mac[ETH_ALEN]; /* of the next hop towards it */
	__u8 reachable;	    /* the MAC is known */
	__u8 ends_flows; /* with the client's next packet: RST, or begun anew */
	__u16 weight;
	/* For userspace, which finds here what it knew. Times since boot. */
	__u16 service; /* index */
	__u8 health;   /* enum health */
	__u8 drained;  /* by command */
	__u16 pad;
	__u32 health_since_s;
	__u32 draining_since_s; /* by command or weight 0; 0: it does not drain */
};

/* A VIP, or an address that flows to backends come from. */
struct ip_address {
	__be32 address[4]; /* IPv4: the first alone */
};

/*
 * Where a client's flow may be, by indexes into ports: first the source addresses that
 * flows may begin from, in turns, then what has none but old ones.
 */
struct source_list {
	__u32 count;
	__u32 turns; /* of the first so many */
	__u8 list[LISTS];
};

/* How the routes lead to a client; more than these: by next hops, WAY_FIRST and so on. */
enum way {
	WAY_UNKNOWN, /* not at all, or not by this interface, or by nobody that answers */
	WAY_ON_LINK, /* the client is in a network of the interface */
};

/* A router that answers to clients are sent by. */
struct next_hop {
	__u8 mac[ETH_ALEN];
	__u16 vlan[VLAN_TAGS]; /* as a flow's */
};

/*
 * A route to clients. What the rules make of the routes is the same for most VIPs: a fib
 * is one such result.
 */
struct route {
	__be32 address[4]; /* IPv4: the first, the others 0 */
	__be32 mask[4];
	__u16 family;
	__u16 fib;
	__u32 way; /* enum way, or next hops */
};

/* The same in the trie. */
struct route_key {
	__u32 bits; /* of what follows that count */
	__u16 fib;
	__u16 family;
	__be32 address[4];
};

struct neighbour_key {
	__be32 address[4];
	__u32 family;
};

/* Of the kernel's neighbour table: a host on link. */
struct neighbour {
	__u8 mac[ETH_ALEN];
	__u16 vlan[VLAN_TAGS];
	__u16 pad;
	__u32 changed; /* a number that grows with each change */
};

#endif /* __XDP_PROXY_CONFIG_H__ */
