// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What the benchmark puts around the program it measures. BPF_PROG_TEST_RUN
 * restores nothing between repetitions: a program that rewrites its packet would
 * from the second on be measured on its own output. So each frame is written
 * anew, as of the next flow, before the program gets it by a tail call.
 *
 * Flows differ by a port and, above 32,768 of them, by an address. What is added
 * to those words is taken from others (a part of a TCP number, the IP
 * header's identification), so that the checksums stay right without being
 * computed.
 *
 * New flows in a steady state: in one run, a frame that opens a flow and one that
 * ends the flow opened plan.flows turns earlier take turns, so that as many flows are
 * open all the time. The clock at each frame's beginning tells what the one before
 * took. The same through the empty program tells what of that is not the tested one's.
 *
 * Compiled by benches/bpf.rs when the benchmark runs.
 */
#include "vmlinux.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <stdbool.h>

#define FRAME_BYTES 96
#define LIST 65536
/* Who takes longer had to leave the processor to somebody else. */
#define RESCHEDULED_NS 20000

/* Kinds of frames; there are two where flows are opened and ended again. */
enum { OPENING, ENDING, KINDS };

/* As in benches/bpf.rs. Offsets of 0 mean that nothing is written there. */
struct plan {
	__u8 frames[KINDS][FRAME_BYTES];
	__u32 restored_bytes; /* of a frame, a multiple of 8 */
	__u32 flows;	      /* in turn, or open at a time */
	__u32 out_interface;
	__u16 port_at;
	__u16 port_pad_at;
	__u16 address_at; /* its last word */
	__u16 address_pad_at;
	__u16 identification_at;
	__u16 listed; /* ports and addresses are those of the lists */
	__be16 ports[LIST];
	__be16 addresses[LIST];
};
const volatile struct plan plan = {};

struct timed {
	__u64 ns;
	__u64 frames;
};

struct state {
	__u64 arrived;
	__u64 begun_ns; /* the frame before */
	struct timed timed[KINDS];
	__u32 first; /* number of the first flow */
	__u32 next;  /* counted from there */
	__u32 turn;  /* whose it is */
	__u32 padding;
};
struct state state;

enum { TESTED, EMPTY, SLOTS };

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} programs SEC(".maps");

static __always_inline void put(void *frame, __u32 offset, __u16 word)
{
	if (offset)
		*(__u16 *)(frame + offset) = word;
}

/* Writes a frame of the flow with this number. */
static __always_inline bool write_frame(struct xdp_md *ctx, __u32 kind,
					__u32 number)
{
	const volatile __u64 *from = (const volatile __u64 *)plan.frames[kind];
	void *data_end = (void *)(long)ctx->data_end;
	void *data = (void *)(long)ctx->data;
	__u32 bytes = plan.restored_bytes;
	__u16 low, high;

	if (data + bytes > data_end)
		return false;
#pragma unroll
	for (int i = 0; i < FRAME_BYTES / 8; i++)
		if (i * 8 < bytes)
			((__u64 *)data)[i] = from[i];
	if (plan.port_at) {
		low = plan.listed ? plan.ports[number % LIST] :
				    bpf_htons(1024 + (number & 0x7fff));
		high = plan.listed ? plan.addresses[number % LIST] :
				     bpf_htons(number >> 15);
		put(data, plan.port_at, low);
		put(data, plan.port_pad_at, ~low);
		if (plan.address_at) {
			put(data, plan.address_at, high);
			put(data, plan.address_pad_at, ~high);
			put(data, plan.identification_at, ~high);
		}
	}
	return true;
}

/* The next flow's, of plan.flows round and round. */
static __always_inline bool next_frame(struct xdp_md *ctx, __u32 kind)
{
	__u32 next = state.next;

	state.next = next + 1 < plan.flows ? next + 1 : 0;
	return write_frame(ctx, kind, state.first + next);
}

/* One that opens the next flow, or else one that ends the oldest, timed. */
static __always_inline bool next_turn(struct xdp_md *ctx)
{
	__u64 now_ns = bpf_ktime_get_ns();
	__u64 took_ns = now_ns - state.begun_ns;
	__u32 kind = state.turn & 1;
	__u32 number = state.first + state.next;
	struct timed *before = &state.timed[!kind];

	if (took_ns < RESCHEDULED_NS) {
		before->ns += took_ns;
		before->frames++;
	}
	state.begun_ns = now_ns;
	state.turn = !kind;
	if (kind == ENDING) {
		number -= plan.flows;
		state.next++;
	}
	return write_frame(ctx, kind, number);
}

/* ns/packet: the program under test, and the empty one, called alike. */
SEC("xdp")
int call_tested(struct xdp_md *ctx)
{
	if (next_frame(ctx, OPENING))
		bpf_tail_call_static(ctx, &programs, TESTED);
	return XDP_ABORTED;
}

SEC("xdp")
int call_empty(struct xdp_md *ctx)
{
	if (next_frame(ctx, OPENING))
		bpf_tail_call_static(ctx, &programs, EMPTY);
	return XDP_ABORTED;
}

/* The flows that call_tested opened. */
SEC("xdp")
int end_tested(struct xdp_md *ctx)
{
	if (next_frame(ctx, ENDING))
		bpf_tail_call_static(ctx, &programs, TESTED);
	return XDP_ABORTED;
}

/* New flows in a steady state. */
SEC("xdp")
int turns_tested(struct xdp_md *ctx)
{
	if (next_turn(ctx))
		bpf_tail_call_static(ctx, &programs, TESTED);
	return XDP_ABORTED;
}

SEC("xdp")
int turns_empty(struct xdp_md *ctx)
{
	if (next_turn(ctx))
		bpf_tail_call_static(ctx, &programs, EMPTY);
	return XDP_ABORTED;
}

SEC("xdp")
int empty(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* Live frames: to the native program at the other end of a veth. */
SEC("xdp")
int send_frame(struct xdp_md *ctx)
{
	return next_frame(ctx, OPENING) ? bpf_redirect(plan.out_interface, 0) :
					  XDP_ABORTED;
}

/* The same as received by the stack, with a generic program on its way. */
SEC("xdp")
int receive_frame(struct xdp_md *ctx)
{
	return next_frame(ctx, OPENING) ? XDP_PASS : XDP_ABORTED;
}

/* The least that a program can do to send a frame back. */
SEC("xdp")
int swap_macs(struct xdp_md *ctx)
{
	void *data_end = (void *)(long)ctx->data_end;
	__u16 *mac = (void *)(long)ctx->data;

	if ((void *)(mac + 6) > data_end)
		return XDP_ABORTED;
#pragma unroll
	for (int i = 0; i < 3; i++) {
		__u16 word = mac[i];

		mac[i] = mac[i + 3];
		mac[i + 3] = word;
	}
	return XDP_TX;
}

/* Where they arrive. */
SEC("xdp")
int count_frame(struct xdp_md *ctx)
{
	__sync_fetch_and_add(&state.arrived, 1);
	return XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
