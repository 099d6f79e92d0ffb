// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The addresses that flows come from follow the routes, within the configuration.

use std::net::IpAddr;

use xdp_proxy::service::ListenPorts;
use xdp_proxy::tables::{Path, ServiceTable, Tables};

use super::{TICK, address, news};
use crate::common::rig::{config, service};

fn sources(tables: &Tables) -> Vec<IpAddr> {
    tables.sources.iter().map(|source| source.address).collect()
}

#[test]
fn a_configured_source_stays_whatever_the_routes_say() {
    let mut service = service("10.0.0.5:80", &[("10.0.0.2:80", 1)]);
    service.source = vec![address("10.0.0.6")];
    let config = config(vec![service]);
    let mut tables = Tables::new(&config, TICK, |_| news(1)).unwrap();
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
    let mut tables = Tables::new(&config, TICK, |_| news(1)).unwrap();
    let moved = Path {
        source: Some(address("10.0.0.7")),
        ..news(1)
    };
    tables.backends[0].path = tables.backends[0].path_after(moved);
    assert_eq!(tables.backends[0].path.source, Some(address("10.0.0.7")));
}

#[test]
fn backends_of_configured_sources_are_reachable_once_their_mac_is_known() {
    let mut service = service("10.0.0.5:80", &[("10.0.0.2:80", 1)]);
    service.source = vec![address("10.0.0.6"), address("10.0.0.7")];
    let config = config(vec![service]);
    let unknown = Path {
        mac: None,
        alive: false,
        ..news(1)
    };
    let mut tables = Tables::new(&config, TICK, |_| unknown).unwrap();
    assert_eq!(tables.backend_entry(1).reachable, 0);
    // The route's source is none of the service's, and has no ports.
    assert_eq!(sources(&tables), [address("10.0.0.6"), address("10.0.0.7")]);
    tables.backends[0].path = tables.backends[0].path_after(news(1));
    assert_eq!(tables.backend_entry(1).reachable, 1);
}

#[test]
fn a_service_names_its_sources_by_their_indexes() {
    let with = |listen: &str, sources: &[&str]| {
        let mut service = service(listen, &[("10.0.0.2:80", 1)]);
        service.source = sources.iter().map(|source| address(source)).collect();
        service
    };
    let tables = Tables::new(
        &config(vec![
            with("10.0.0.5:80", &["10.0.0.6", "10.0.0.7"]),
            with("10.0.0.5:81", &[]),
            with("10.0.0.5:82", &["10.0.0.8", "10.0.0.7"]),
        ]),
        TICK,
        |_| news(1),
    )
    .unwrap();
    let sources = ["10.0.0.6", "10.0.0.7", "10.0.0.5", "10.0.0.8"].map(address);
    assert_eq!(self::sources(&tables), sources);
    let named = |port: u16| {
        let mut services = tables.services.iter();
        let is_it = |table: &&ServiceTable| table.listen.ports == ListenPorts::One(port);
        let entry = &services.find(is_it).unwrap().entry;
        entry.source[..entry.source_count.into()].to_vec()
    };
    assert_eq!(
        [named(80), named(81), named(82)],
        [vec![0, 1], vec![], vec![3, 1]]
    );
    assert_eq!(tables.capacity(), 4 * 36_280);
}
