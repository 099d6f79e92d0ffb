// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The tables follow what is known of the paths, within the configuration.

mod common;

use std::net::IpAddr;
use std::time::Duration;

use common::rig::{config, service};
use xdp_proxy::tables::{Path, Tables};

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

#[test]
fn a_configured_source_stays_whatever_the_routes_say() {
    let mut service = service("10.0.0.5:80", &[("10.0.0.2:80", 1)]);
    service.source = vec![address("10.0.0.6")];
    let config = config(vec![service]);
    let mut tables = Tables::new(&config, Duration::from_millis(4), |_| news(1)).unwrap();
    for mac in [1, 2] {
        assert_eq!(tables.backends[0].path.source, Some(address("10.0.0.6")));
        assert_eq!(tables.backend_entry(1).reachable, 1);
        assert_eq!(tables.backend_entry(1).mac[5], mac);
        tables.backends[0].path = tables.backends[0].path_after(news(2));
    }
}

#[test]
fn a_source_that_nobody_configured_follows_the_routes() {
    let config = config(vec![service("10.0.0.5:80", &[("10.0.0.2:80", 1)])]);
    let mut tables = Tables::new(&config, Duration::from_millis(4), |_| news(1)).unwrap();
    let moved = Path {
        source: Some(address("10.0.0.7")),
        ..news(1)
    };
    tables.backends[0].path = tables.backends[0].path_after(moved);
    assert_eq!(tables.backends[0].path.source, Some(address("10.0.0.7")));
}
