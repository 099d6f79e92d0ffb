/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps and the settings. Every size marked "set at load" is what the
 * configuration needs. All maps but that of fragments are arrays, whose look-up
 * the kernel inlines (2 ns; a hash map's hit costs 43).
 */
#ifndef __XDP_PROXY_MAPS_H__
#define __XDP_PROXY_MAPS_H__

#include "config.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <stdbool.h>
#include <stddef.h>

#define BPF_F_NO_PREALLOC (1U << 0)
#define BPF_F_MMAPABLE (1U << 10)
#define BPF_ANY 0

/* Settings that never change while the program is loaded. */
const volatile __u64 hash_seed = 0;    /* secret: nobody can aim at a group */
const volatile __u32 address_mask = 0; /* entries of addresses, less 1 */
const volatile __u32 listener_mask = 0;
/* A bit for each port that is a service's, modulo the bits: none else is asked for. */
const volatile __u64 port_filter[8] = {};
const volatile __u16 first_port = 0; /* that flows to backends come from */
/* What no service is of costs nothing: the verifier cuts it out. */
const volatile __u8 serves_ipv6 = 0;
const volatile __u8 serves_udp = 0;
const volatile __u8 counts_loads = 0; /* for least-connections */
const volatile __u8 serves_port_ranges = 0;
const volatile __u8 counts_in_flows = 0;
/* The kernel can be asked for the host's sockets: not from a card. */
const volatile __u8 asks_sockets = 0;
/* Some source address but the first one has flows. */
const volatile __u8 several_sources = 0;
/* Some source address is the VIP of more ports than can be withheld from flows. */
const volatile __u8 avoids_ports = 0;
/* Some source address had other ports before. */
const volatile __u8 relisted = 0;
/* The source addresses of each family, in which a client's flow may be. */
const volatile struct source_list sources_v4 = {};
const volatile struct source_list sources_v6 = {};
/* The shape of a look-up table, below: as wide as the service with most needs. */
const volatile __u32 place_bits = 1;
const volatile __u32 places_bytes = 0;
/* The interface can carry packets whose checksum is still to be completed. */
const volatile __u8 partial_checksums = 0;
/* Nobody completes it after us (native mode): the program does. */
const volatile __u8 complete_checksums = 0;
/* A frame may lie in several buffers, its headers in the first (XDP multi-buffer). */
const volatile __u8 several_buffers = 0;
/* Frames may carry VLAN tags; else such frames are not ours. */
const volatile __u8 handles_vlan = 0;
/*
 * The outermost tag may be out of sight (the card or the peer of a veth took it
 * off, and generic mode can't see where the kernel keeps it): a frame that shows
 * none is sent with what it has.
 */
const volatile __u8 tags_may_hide = 0;
/* Jiffies that the decision on a first fragment is kept for the others. */
const volatile __u32 fragment_life = 0;
const volatile __u32 second_ticks = 1; /* jiffies in a second */
const volatile __u32 cpus = 1;	       /* CPUs that there can be */
const volatile __u32 layout = LAYOUT;  /* noted for the next daemon */
/* Keeps the enums in the BTF, from which the skeleton makes Rust types. */
const volatile enum constant constant_in_btf = LAYOUT;
const volatile enum outcome outcome_in_btf = OUTCOME_NEXT;
const volatile enum flow_state flow_state_in_btf = FLOW_NONE;
const volatile enum heard heard_in_btf = HEARD_FIN;
const volatile enum scheduler scheduler_in_btf = SCHEDULER_MAGLEV;
const volatile enum health health_in_btf = HEALTH_UNKNOWN;
const volatile enum way way_in_btf = WAY_UNKNOWN;
/* The same of these structs. */
const volatile struct flow flow_in_btf = {};
const volatile struct flow_counters flow_counters_in_btf = {};

/* The interface, which may change. */
__u8 interface_mac[8];
__u32 interface_mtu_bytes;

/* Where answers to clients go (route.h): the longest prefixes first. */
struct route routes[ROUTES];
__u32 route_count;
struct next_hop next_hops[NEXT_HOPS];
__u32 several_fibs;   /* else all VIPs have the first one */
__u32 routes_in_trie; /* there are more than fit into the list */
__u32 has_neighbours;
/* The same of the steer program as of the sweep program; and from when on an entry is news. */
__u32 steer_source;
__u32 steer_hand;
__u32 news_since;

/* The source address whose table the sweep program works on, and how far it is. */
__u32 sweep_source;
__u32 sweep_hand;
/* The sweep before was whole and noted all flows in their homes; this one missed some. */
__u32 lowers_reach;
__u32 unnoted;
/*
 * The source addresses were others until now: a flow may be in any, though its home
 * does not say so. The sweep tells the homes.
 */
__u32 carries;
/* A bit for each source address whose flows the sweep ends. */
__u32 given_up;
/* The group that gets other slots: a bit for each, and the share that follows. */
__u32 regrouped;
__u32 gained;
__u32 lost;
__u32 withheld;
__u32 new_share;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set at load */
	__type(key, __u32);
	__type(value, struct address);
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set at load */
	__type(key, __u32);
	__type(value, struct listener);
} listeners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set at load */
	__type(key, __u32);
	__type(value, struct service);
} services SEC(".maps");

/* Whose turn it is, by service. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1); /* set at load */
	__type(key, __u32);
	__type(value, __u32);
} turns SEC(".maps");

/* Flows that a backend has now: the CPUs together. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set at load */
	__type(key, __u32);
	__type(value, __u64);
} loads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set at load */
	__type(key, __u32);
	__type(value, struct port_map);
} port_maps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set at load */
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set at load */
	__type(key, __u32);
	__type(value, struct ip_address);
} vips SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SOURCES);
	__type(key, __u32);
	__type(value, struct ip_address);
} sources SEC(".maps");

/* Which routes a VIP's answers go by. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set at load */
	__type(key, __u32);
	__type(value, __u32);
} fibs SEC(".maps");

/* Of hosts with many routes, as those that speak BGP. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, ROUTES_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct route_key);
	__type(value, __u32);
} route_trie SEC(".maps");

/* No packet asks for these, only the sweep and the steer program. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NEIGHBOURS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct neighbour_key);
	__type(value, struct neighbour);
} neighbours SEC(".maps");

/*
 * Which backend a new flow goes to, by consistent hashing; in turns for round-robin;
 * each once for least-connections. A place has the number of a backend within its
 * service, in `place_bits`, and behind all places, from `places_bytes` on, is the index
 * of each. So the table of a service with two has 8 KB, and of one with up to
 * sixteen 32, where its indexes alone had 128: a new flow's place is mostly in the
 * processor's cache. With more than 256 there is no list; the places have the indexes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set at load */
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32)); /* set at load */
} maglevs SEC(".maps");

/*
 * The flows of one source address, by their ports. Each has a table of its own, so
 * that source addresses come and go while the others' flows stay where they are. The
 * sizes and no types: userspace makes such maps without BTF, and 5.15 to 6.1 take no
 * other map than the first for a map of maps (timer_off differs).
 */
struct flow_table {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PORTS);	   /* set at load: 1 if it has none */
	__uint(map_flags, BPF_F_MMAPABLE); /* for the page alignment too */
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct flow));
};

/* The first source address's: where it is the only one, all that is looked at. */
struct flow_table flows SEC(".maps");

/* All of them, where there are several. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, SOURCES);
	__type(key, __u32);
	__array(values, struct flow_table);
} flow_tables SEC(".maps");

/* Of all source addresses that there can be: a map in a map has no locks before 6.2. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SOURCES << GROUP_BITS);
	__uint(map_flags, BPF_F_MMAPABLE); /* for the page alignment */
	__type(key, __u32);
	__type(value, struct group);
} groups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LISTS);
	__type(key, __u32);
	__type(value, struct ports);
} ports SEC(".maps");

/* What flows have had, in tables as those of the flows. */
struct counter_table {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PORTS);	   /* set at load: 1 if nobody asks */
	__uint(map_flags, BPF_F_MMAPABLE); /* for the page alignment */
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct flow_counters));
};

struct counter_table flow_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, SOURCES);
	__type(key, __u32);
	__array(values, struct counter_table);
} counter_tables SEC(".maps");

/* Bounded: whoever was not asked for longest makes room. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FRAGMENTED);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, __u64);
} outcome_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1); /* set at load */
	__type(key, __u32);
	__type(value, struct backend_counters);
} backend_counters SEC(".maps");

/* Of userspace, for the next daemon: what was counted in maps of before. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set at load */
	__type(key, __u32);
	__type(value, struct backend_counters);
} earlier SEC(".maps");

/* The same: what the other maps do not tell, as JSON. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32)); /* set at load */
} notes SEC(".maps");

#endif /* __XDP_PROXY_MAPS_H__ */
