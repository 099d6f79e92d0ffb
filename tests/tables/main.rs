// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The tables that maps are filled from: pure, and so without root.

#[path = "../common/mod.rs"]
mod common;

mod condition;
mod followed;
mod listeners;
mod plan;
mod recovered;
mod sources;

use std::net::IpAddr;
use std::time::Duration;

use xdp_proxy::tables::Path;

const TICK: Duration = Duration::from_millis(4);

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// As the kernel's routes have it.
fn news(mac: u8) -> Path {
    Path {
        mac: Some([2, 0, 0, 0, 0, mac]),
        tags: Default::default(),
        source: Some(address("10.0.0.5")),
        alive: true,
    }
}
