/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The Internet checksum (RFC 1071) and its incremental update (RFC 1624). Sums
 * are taken over 16-bit words as they lie in memory: one's-complement addition
 * does not mind the byte order (RFC 1071, section 2B).
 *
 * CHECKSUM_PARTIAL. On veth, tap and virtio, a packet that a local stack sent
 * carries in its checksum field only the folded sum of its pseudo-header; who
 * puts it on a wire completes it. XDP can't see that flag. So:
 *
 *	field                 the packet                      it is
 *	not that sum          -                               complete
 *	that sum              longer than the MTU (GSO)       partial
 *	that sum              its full sum is wrong           partial
 *	that sum              its full sum is right           what its sender's
 *	                                                      last clear one was
 *
 * The last row is the coincidence, 1 packet in 65,536: both readings fit its
 * bytes, and only the flow's history tells which one its sender means.
 */
#ifndef __XDP_PROXY_CHECKSUM_H__
#define __XDP_PROXY_CHECKSUM_H__

#include "buffers.h"

/* The longest segment whose sum is taken in its place: jumbo frames. */
#define SUM_BYTES_MAX 9216
#define SUM_BLOCK_BYTES 512
#define SUM_LINE_BYTES 64
#define SUM_OFFSET_MASK 0x3fff

/* `fold` of a sum of few words: no more than 32 bits. */
static __always_inline __u16 fold_few(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* RFC 1624, equation 3: HC' = ~(~HC + ~m + m'); delta is ~m + m'. */
static __always_inline __u16 update_checksum(__u16 checksum, __u32 delta)
{
	return ~fold_few((__u16)~checksum + delta);
}

static __always_inline __u64 address_sum(const __be32 *address)
{
	__u64 sum = address[0];

	if (serves_ipv6)
		sum += (__u64)address[1] + address[2] + address[3];
	return sum;
}

/* The same whichever of the two addresses comes first. */
static __always_inline __u16 pseudo_header_sum(const struct packet *packet,
					       __u32 bytes)
{
	return fold(address_sum(packet->from) + address_sum(packet->to) +
		    bpf_htons(packet->protocol) + bpf_htons(bytes));
}

/* Adds up a block; 0 where the frame ends before it does. */
__noinline __u32 sum_block(struct xdp_md *ctx, __u32 offset)
{
	void *data_end = (void *)(long)ctx->data_end;
	__u32 *words;
	__u64 sum = 0;

	/* clang may know the bound already; the verifier wants to see it. */
	barrier_var(offset);
	words = (void *)(long)ctx->data + (offset & SUM_OFFSET_MASK);
	if ((void *)words + SUM_BLOCK_BYTES > data_end)
		return 0;
#pragma unroll
	for (int i = 0; i < SUM_BLOCK_BYTES / 4; i++) {
		sum += words[i];
		/* Or clang 14 loads all words first, and takes 216 bytes of stack. */
		barrier_var(sum);
	}
	return fold(sum);
}

/*
 * Adds up so many bytes from offset on. All are functions of their own, which the
 * verifier walks once for any arguments. First the odd end, then lines, then
 * blocks, each from its own start, so that no state of a loop is carried into
 * the next one. What is not all in the first buffer is copied, block by block.
 * 0 where the frame is too short or the segment too long.
 */
__noinline __u32 sum_segment(struct xdp_md *ctx, __u32 offset, __u32 bytes)
{
	void *data_end = (void *)(long)ctx->data_end;
	__u8 *data = (void *)(long)ctx->data, *cursor;
	__u32 rest = bytes % SUM_LINE_BYTES;
	__u64 sum = 0;

	if (several_buffers && offset + bytes > first_buffer_bytes(ctx))
		return sum_buffers(ctx, offset, bytes);
	if (offset > L4_OFFSET_MAX || bytes > SUM_BYTES_MAX)
		return 0;
	cursor = data + ((offset + bytes - rest) & SUM_OFFSET_MASK);
	for (int i = 0; i < SUM_LINE_BYTES / 4; i++) {
		if (rest < (i + 1) * 4)
			break;
		/* Or clang 14 does arithmetic on data_end: not allowed. */
		barrier_var(cursor);
		if ((void *)(cursor + 4) > data_end)
			return 0;
		sum += *(__u32 *)cursor;
		cursor += 4;
	}
	if (bytes & 2) {
		if ((void *)(cursor + 2) > data_end)
			return 0;
		sum += *(__u16 *)cursor;
		cursor += 2;
	}
	if (bytes & 1) {
		if ((void *)(cursor + 1) > data_end)
			return 0;
		sum += bpf_htons(*cursor << 8);
	}
	rest = bytes % SUM_BLOCK_BYTES;
	cursor = data + ((offset + bytes - rest) & SUM_OFFSET_MASK);
	for (int i = 0; i < SUM_BLOCK_BYTES / SUM_LINE_BYTES; i++) {
		if (rest < (i + 1) * SUM_LINE_BYTES)
			break;
		barrier_var(cursor);
		if ((void *)(cursor + SUM_LINE_BYTES) > data_end)
			return 0;
#pragma unroll
		for (int word = 0; word < SUM_LINE_BYTES / 4; word++)
			sum += ((__u32 *)cursor)[word];
		cursor += SUM_LINE_BYTES;
	}
	for (int i = 0; i < SUM_BYTES_MAX / SUM_BLOCK_BYTES; i++) {
		if (bytes < (i + 1) * SUM_BLOCK_BYTES)
			break;
		sum += sum_block(ctx, offset + i * SUM_BLOCK_BYTES);
	}
	return fold(sum);
}

enum checksum_kind { CHECKSUM_COMPLETE, CHECKSUM_PARTIAL };

/*
 * Which of the two the packet's sum is, by the table above; *segment_sum is
 * the sum over the segment as it came, where it was needed.
 */
static __always_inline enum checksum_kind
checksum_kind(struct xdp_md *ctx, const struct packet *packet, __u16 checksum,
	      __u8 *heard, __u16 *segment_sum)
{
	__u32 bytes = l4_bytes(packet);
	__u16 pseudo = pseudo_header_sum(packet, bytes);
	__u8 known = heard ? *heard & HEARD_PARTIAL : 0;
	bool is_partial;

	if (checksum != pseudo) {
		is_partial = false;
	} else if (packet->ip_bytes > interface_mtu_bytes &&
		   !complete_checksums) {
		is_partial = true;
	} else {
		*segment_sum = sum_segment(ctx, packet->l4_offset, bytes);
		is_partial =
			fold((__u32)*segment_sum + pseudo) != 0xffff || known;
	}
	/* Written on a change alone: the line is shared by two CPUs. */
	if (heard && is_partial != !!known)
		*heard ^= HEARD_PARTIAL;
	return is_partial ? CHECKSUM_PARTIAL : CHECKSUM_COMPLETE;
}

/*
 * Whether the segment's sum is right, as far as can be told: one that is still to be
 * completed is. A function of its own, which the verifier walks once.
 */
__noinline int is_sum_right(struct xdp_md *ctx)
{
	const struct packet *packet = packet_at_hand();
	const __u16 *checksum;
	__u16 pseudo;

	if (!packet)
		return false;
	checksum = checksum_at(ctx, packet);
	if (!checksum)
		return false;
	pseudo = pseudo_header_sum(packet, l4_bytes(packet));
	if (partial_checksums && *checksum == pseudo)
		return true;
	return fold((__u64)sum_segment(ctx, packet->l4_offset,
				       l4_bytes(packet)) +
		    pseudo) == 0xffff;
}

#endif /* __XDP_PROXY_CHECKSUM_H__ */
