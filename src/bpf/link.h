/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The Ethernet header and the VLAN tags behind its addresses (IEEE 802.1Q),
 * as a frame is sent on.
 */
#ifndef __XDP_PROXY_LINK_H__
#define __XDP_PROXY_LINK_H__

#include "packet.h"

#define MACS_BYTES (2 * ETH_ALEN)

static __always_inline void copy_mac(__u8 *to, const __u8 *from)
{
	((__u16 *)to)[0] = ((const __u16 *)from)[0];
	((__u16 *)to)[1] = ((const __u16 *)from)[1];
	((__u16 *)to)[2] = ((const __u16 *)from)[2];
}

static __always_inline bool same_mac(const __u8 *one, const __u8 *other)
{
	return ((const __u16 *)one)[0] == ((const __u16 *)other)[0] &&
	       ((const __u16 *)one)[1] == ((const __u16 *)other)[1] &&
	       ((const __u16 *)one)[2] == ((const __u16 *)other)[2];
}

static __always_inline void copy_tags(__be32 *to, const __be32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
}

static __always_inline bool same_tags(const __be32 *one, const __be32 *other)
{
	return one[0] == other[0] && one[1] == other[1];
}

static __always_inline __u32 tags_bytes(const __be32 *tags)
{
	return (!!tags[0] + !!tags[1]) * sizeof(*tags);
}

/*
 * A tag in 16 bits: its priority and its VLAN. The bit between them, which has a frame
 * dropped earlier than others and is left behind, says that it is one of 802.1ad.
 */
#define VLAN_8021AD 0x1000

static __always_inline __u16 pack_tag(__be32 tag)
{
	__u32 all = bpf_ntohl(tag);

	return (all & 0xefff) | (all >> 16 == ETH_P_8021AD ? VLAN_8021AD : 0);
}

/* One that says nothing (VLAN 0, no priority) is left out. */
static __always_inline void pack_tags(__u16 *vlan, const __be32 *tags)
{
	__u16 outer = pack_tag(tags[0]), inner = pack_tag(tags[1]);

	vlan[0] = outer ?: inner;
	vlan[1] = outer ? inner : 0;
}

static __always_inline bool same_vlan(const __u16 *one, const __u16 *other)
{
	return one[0] == other[0] && one[1] == other[1];
}

static __always_inline __be32 unpack_tag(__u16 vlan)
{
	__u32 protocol = vlan & VLAN_8021AD ? ETH_P_8021AD : ETH_P_8021Q;

	return vlan ? bpf_htonl(protocol << 16 | (vlan & 0xefff)) : 0;
}

/* Writes the tags, and the Ethernet type behind them. */
static __always_inline bool write_tags(struct xdp_md *ctx, const __be32 *tags,
				       __be16 type)
{
	__be32 *tag = frame_at(ctx, MACS_BYTES,
			       VLAN_TAGS * sizeof(*tag) + sizeof(type));

	if (!tag)
		return false;
	if (tags[0])
		*tag++ = tags[0];
	if (tags[0] && tags[1])
		*tag++ = tags[1];
	*(__be16 *)tag = type;
	return true;
}

/*
 * Makes room for other tags (new_tags) than the frame has, or takes their room
 * away. A function of its own, which the verifier walks once.
 */
__noinline int set_tags(struct xdp_md *ctx)
{
	const struct packet *packet = packet_at_hand();
	const __be16 *type;
	const __u8 *old;
	__u8 macs[MACS_BYTES], *new;
	__be16 ethernet_type;

	if (!packet)
		return false;
	type = frame_at(ctx, packet->l3_offset - sizeof(*type), sizeof(*type));
	old = frame_at(ctx, 0, MACS_BYTES);
	if (!type || !old)
		return false;
	ethernet_type = *type;
	copy_mac(macs, old);
	copy_mac(macs + ETH_ALEN, old + ETH_ALEN);
	if (bpf_xdp_adjust_head(ctx, (int)(tags_bytes(packet->tags) -
					   tags_bytes(packet->new_tags))))
		return false;
	new = frame_at(ctx, 0, MACS_BYTES);
	if (!new)
		return false;
	copy_mac(new, macs);
	copy_mac(new + ETH_ALEN, macs + ETH_ALEN);
	return write_tags(ctx, packet->new_tags, ethernet_type);
}

/* From the MAC that the frame came to, to the next hop's, in its VLAN. */
static __always_inline bool rewrite_link(struct xdp_md *ctx,
					 struct packet *packet, const __u8 *mac,
					 const __be32 *tags)
{
	struct ethhdr *eth = frame_at(ctx, 0, sizeof(*eth));

	if (!eth)
		return false;
	copy_mac(eth->h_source, eth->h_dest);
	copy_mac(eth->h_dest, mac);
	if (!handles_vlan || same_tags(packet->tags, tags) ||
	    (tags_may_hide && !packet->tags[0]))
		return true;
	copy_tags(packet->new_tags, tags);
	return set_tags(ctx);
}

#endif /* __XDP_PROXY_LINK_H__ */
