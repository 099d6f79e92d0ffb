// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Passes everything. veth delivers what a program sends by native XDP_TX only
 * when the peer has an XDP program too; this is the one for a peer with no job.
 */
__attribute__((section("xdp"), used)) int pass(void *ctx)
{
	return 2; /* XDP_PASS */
}

/* The same for frames in several buffers, which a large MTU asks for (Linux 5.18). */
__attribute__((section("xdp.frags"), used)) int pass_frags(void *ctx)
{
	return 2;
}

__attribute__((section("license"), used)) char _license[] = "Dual BSD/GPL";
