// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! End to end: real clients and servers around the load balancer, in the lab of
//! lab/netns.sh. What is measured is printed (`cargo test --test lab -- --nocapture`).

#[path = "../common/mod.rs"]
mod common;

mod abuse;
mod accounting;
mod adoption;
mod any_port;
mod attach;
mod buffers;
mod carry;
mod diagnosis;
mod drain;
mod echo;
mod errors;
mod failure;
mod faults;
mod flows;
mod fragments;
mod health;
mod host;
mod ipv6;
mod json;
mod lifecycle;
mod manager;
mod name;
mod own_kernel;
mod path_mtu;
mod paths;
mod pins;
mod ports;
mod privileges;
mod reload;
mod routers;
mod sources;
mod spread;
mod switch;
mod systemd;
mod take_over;
mod traffic;
mod udp;
mod vlan;

use common::lab::Lab;

/// A lab for a test, unless it must be skipped.
fn lab(test: &str) -> Option<Lab> {
    common::root_or_skip(test).then(Lab::start)
}

/// The same while no other test has one: for what takes all of the machine, or must not
/// wait for it.
fn lab_alone(test: &str) -> Option<Lab> {
    common::root_or_skip(test).then(Lab::alone)
}
