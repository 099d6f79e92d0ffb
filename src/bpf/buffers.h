/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Frames in several buffers (XDP multi-buffer): jumbo frames, and in generic mode GSO
 * packets. Headers are in the first buffer, which is what the program sees of the
 * frame; the others' bytes are copied by calls of the kernel's, block by block.
 *
 * The functions ask whether there are such frames first, as the kernel verifies them
 * also where nothing calls them, and those before 5.18 don't know what they call.
 */
#ifndef __XDP_PROXY_BUFFERS_H__
#define __XDP_PROXY_BUFFERS_H__

#include "packet.h"

#define FRAME_BYTES_MAX 65600 /* the longest IP packet, and its link header */
#define BLOCK_BYTES 2048
#define LINE_BYTES 64

struct block {
	__u32 line[BLOCK_BYTES / LINE_BYTES][LINE_BYTES / 4];
};

enum block_kind { COPY, ZEROS, BLOCKS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BLOCKS);
	__type(key, __u32);
	__type(value, struct block);
} blocks SEC(".maps");

static __always_inline struct block *block_of(__u32 kind)
{
	return bpf_map_lookup_elem(&blocks, &kind);
}

static __always_inline __u32 first_buffer_bytes(const struct xdp_md *ctx)
{
	return (void *)(long)ctx->data_end - (void *)(long)ctx->data;
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Of so many bytes, how many are in this block; 0: none. */
static __always_inline __u32 in_block(__u32 bytes, __u32 block)
{
	__u32 before = block * BLOCK_BYTES;

	if (bytes <= before)
		return 0;
	return bytes - before < BLOCK_BYTES ? bytes - before : BLOCK_BYTES;
}

/*
 * The same number, but for 0: 1 to BLOCK_BYTES. The verifiers of 5.18 to 6.7 would
 * not learn from a comparison that it is not 0.
 */
static __always_inline __u32 bounded(__u32 bytes)
{
	__u32 last = bytes - 1;

	barrier_var(last);
	return last % BLOCK_BYTES + 1;
}

/*
 * Adds up one block of so many bytes from offset on; 0 where the frame ends before. A
 * function of its own, which the verifier walks once; the same holds for clear_block.
 */
__noinline __u32 sum_copy(struct xdp_md *ctx, __u32 offset, __u32 bytes,
			  __u32 number)
{
	struct block *copy = block_of(COPY);
	__u64 sum = 0;
	__u32 last;

	bytes = in_block(bytes, number);
	if (!several_buffers || !copy || !bytes)
		return 0;
	bytes = bounded(bytes);
	last = (bytes - 1) / LINE_BYTES;
	/* What follows an odd end is 0, as RFC 1071 has it. */
	__builtin_memset(copy->line[last], 0, LINE_BYTES);
	if (bpf_xdp_load_bytes(ctx, offset + number * BLOCK_BYTES, copy, bytes))
		return 0;
	for (__u32 i = 0; i < BLOCK_BYTES / LINE_BYTES; i++) {
		/* Or clang 14 counts down to 0, of which 6.1 sees no end. */
		barrier_var(last);
		if (i > last)
			break;
#pragma unroll
		for (int word = 0; word < LINE_BYTES / 4; word++)
			sum += copy->line[i][word];
	}
	return fold(sum);
}

/* Adds up so many bytes from offset on, wherever they lie. */
static __always_inline __u32 sum_buffers(struct xdp_md *ctx, __u32 offset,
					 __u32 bytes)
{
	__u64 sum = 0;

	for (int i = 0; i <= FRAME_BYTES_MAX / BLOCK_BYTES; i++) {
		if (bytes <= i * BLOCK_BYTES)
			break;
		sum += sum_copy(ctx, offset, bytes, i);
	}
	return fold(sum);
}

/* Writes zeros over one block of so many bytes from offset on. */
__noinline int clear_block(struct xdp_md *ctx, __u32 offset, __u32 bytes,
			   __u32 number)
{
	struct block *zeros = block_of(ZEROS);

	bytes = in_block(bytes, number);
	if (!several_buffers || !zeros || !bytes)
		return false;
	return !bpf_xdp_store_bytes(ctx, offset + number * BLOCK_BYTES, zeros,
				    bounded(bytes));
}

/* Writes zeros over all of the frame from offset on. */
__noinline int clear_frame(struct xdp_md *ctx, __u32 offset)
{
	__u32 bytes;

	if (!several_buffers)
		return false;
	bytes = bpf_xdp_get_buff_len(ctx) - offset;
	for (int i = 0; i <= FRAME_BYTES_MAX / BLOCK_BYTES; i++) {
		if (bytes <= i * BLOCK_BYTES)
			return true;
		if (!clear_block(ctx, offset, bytes, i))
			return false;
	}
	return false;
}

#endif /* __XDP_PROXY_BUFFERS_H__ */
