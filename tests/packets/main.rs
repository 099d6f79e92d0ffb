// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Packets through the loaded program (BPF_PROG_TEST_RUN): every one of these
//! tests needs root, and none of them an interface.

#[path = "../common/mod.rs"]
mod common;

mod buffers;
mod carry;
mod checksums;
mod echo;
mod expiry;
mod families;
mod flows;
mod forged;
mod fragments;
mod gone;
mod headers;
mod icmp;
mod ipv6;
mod loading;
mod not_ours;
mod ports;
mod races;
mod random;
mod ranges;
mod reach;
mod resets;
mod reuse;
mod schedulers;
mod services;
mod shares;
mod sources;
mod steering;
mod strange;
mod udp;
mod unconfirmed;
mod vlan;
mod withheld;
