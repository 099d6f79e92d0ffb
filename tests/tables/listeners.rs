// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What a packet's destination is looked up in, and the memory that it all takes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use xdp_proxy::abi;
use xdp_proxy::service::{PortRanges, Protocol};
use xdp_proxy::tables::{Path, Tables};

use super::{TICK, address, news};
use crate::common::rig::{config, service};

/// The service of each port of 10.0.0.5, as its place among the configured.
fn served(tables: &Tables, protocol: u8) -> Vec<Option<usize>> {
    let listeners = &tables.listeners;
    let at = |port: u16| {
        let is_it = |entry: &&abi::listener| {
            (entry.vip, entry.protocol, entry.port) == (1, protocol, port.to_be())
        };
        listeners.entries.iter().find(is_it)
    };
    let leads_on = at(0);
    (0..=u16::MAX)
        .map(|port| match (port, at(port), leads_on) {
            (1.., Some(listener), _) => Some(listener.target.into()),
            (_, _, Some(listener)) => {
                let map = &listeners.port_maps[usize::from(listener.target)];
                usize::from(map.service[usize::from(port)]).checked_sub(1)
            }
            _ => None,
        })
        .collect()
}

#[test]
fn port_maps_lead_each_port_to_its_service() {
    let listens = [
        "10.0.0.5:8000-8099",
        "10.0.0.5:*",
        "10.0.0.5:8050",
        "10.0.0.5:8100-8100",
        "10.0.0.5:65000-65535/udp",
        "10.0.0.5:1-9/udp",
        "10.0.0.6:*/udp",
    ];
    let services = listens.map(|listen| service(listen, &[("10.0.0.2", 1)]));
    let tables = Tables::new(&config(services.into()), TICK, |_| news(1)).unwrap();
    assert_eq!(tables.services.len(), listens.len());
    assert_eq!(tables.listeners.port_maps.len(), 3);
    for (port, service) in (0..).zip(served(&tables, 6)) {
        let wanted = match port {
            0 => None,
            8050 => Some(2),
            8100 => Some(3),
            8000..=8099 => Some(0),
            _ => Some(1),
        };
        assert_eq!(service, wanted, "tcp {port}");
    }
    for (port, service) in (0..).zip(served(&tables, 17)) {
        let wanted = match port {
            1..=9 => Some(5),
            65_000.. => Some(4),
            _ => None,
        };
        assert_eq!(service, wanted, "udp {port}");
    }
}

#[test]
fn memory_and_flows_grow_with_port_maps_and_sources() {
    let of = |listens: &[&str], sources: &[&str]| {
        let services = listens.iter().map(|listen| {
            let mut service = service(listen, &[("10.0.0.2", 1)]);
            service.source = sources.iter().map(|source| address(source)).collect();
            service.source_ports = PortRanges::new(vec![1024..=65535]).unwrap();
            service
        });
        let tables = Tables::new(&config(services.collect()), TICK, |_| news(1)).unwrap();
        (tables.capacity(), tables.memory_bytes(2))
    };
    // One port map is there in any case.
    let two = &["10.0.0.5:1-9", "10.0.0.5:10-19"];
    let two_maps = &["10.0.0.5:1-9", "10.0.0.5:10-19/udp"];
    let (flows, bytes) = of(two, &["10.0.0.6"]);
    assert_eq!(flows, 64_512);
    assert_eq!(of(two_maps, &["10.0.0.6"]), (flows, bytes + 2 * 65_536));
    let (flows, more) = of(two, &["10.0.0.6", "10.0.0.7"]);
    assert_eq!(flows, 129_024);
    // 65,536 flows of 64 bytes each, and their groups.
    assert!(
        (4 << 20..7 << 20).contains(&(more - bytes)),
        "{}",
        more - bytes
    );
}

/// Five ports of one VIP whose hashes are the same, whatever the table's size.
#[test]
fn hashes_that_collide_too_much_are_an_error_and_no_endless_loop() {
    let mut by_place: BTreeMap<usize, Vec<u16>> = BTreeMap::new();
    for port in 1..=u16::MAX {
        let entry = abi::listener_entry(0, port, Protocol::Tcp, 0);
        let ports = by_place
            .entry(abi::listener_place(&entry) % (1 << 15))
            .or_default();
        ports.push(port);
    }
    let colliding = by_place.values().find(|ports| ports.len() > abi::PROBES);
    let colliding = colliding.expect("65,535 hashes in half as many places");
    let tables = |count| {
        let services = colliding[..count]
            .iter()
            .map(|port| service(&format!("10.0.0.5:{port}"), &[("10.0.0.2:80", 1)]));
        Tables::new(&config(services.collect()), TICK, |_| news(1))
    };
    assert!(tables(4).is_ok());
    assert_eq!(
        tables(5).err().unwrap().to_string(),
        "5 services or addresses do not fit in 32768 places of a hash table, as more than 4 of \
         them fall on one: change a VIP, a source address or a port"
    );
}

#[test]
fn a_thousand_services_on_addresses_and_ports_in_a_row_fit() {
    let vip = |i: u32| std::net::Ipv4Addr::from(0x0a05_0000 + i);
    /// The VIP's number and the port of each service.
    type Shape = (&'static str, fn(u32) -> (u32, u32));
    let shapes: [Shape; 7] = [
        ("ports in a row", |i| (0, 1 + i)),
        ("every 63rd port", |i| (0, 1 + 63 * i)),
        ("ports at random", |i| {
            (0, i.wrapping_mul(0x9e37_79b1) >> 16 | 1)
        }),
        ("addresses in a row", |i| (i, 80)),
        ("every 16th address", |i| (16 * i, 80)),
        ("four ports of each", |i| (i / 4, 8080 + i % 4)),
        ("each with a port of its own", |i| (i, 8080 + i)),
    ];
    for (shape, listen) in shapes {
        let services = (0..1024).map(listen).map(|(host, port)| {
            let listen = format!("{}:{port}", vip(host));
            service(&listen, &[("10.0.0.2:80", 1)])
        });
        let tables = Tables::new(&config(services.collect()), TICK, |_| news(1)).unwrap();
        let places = (tables.listeners.entries.len(), tables.addresses.len());
        println!("{shape}: places of services and addresses: {places:?}");
    }
}

#[test]
fn echo_is_answered_for_vips_that_the_host_does_not_have() {
    let mut tables = Tables::new(
        &config(vec![
            service("10.0.0.5:80", &[("10.0.0.2:80", 1)]),
            service("10.0.0.9:80", &[("10.0.0.2:80", 1)]),
            service("10.0.0.8:80", &[("10.0.0.2:80", 1)]),
        ]),
        TICK,
        // A source address that is no VIP.
        |_| Path {
            source: Some(address("10.0.0.7")),
            ..news(1)
        },
    )
    .unwrap();
    let answers = |tables: &Tables| {
        let places = tables
            .addresses
            .iter()
            .filter(|entry| entry.answers_echo != 0);
        let mut last: Vec<u8> = places
            .map(|entry| entry.address[0].to_ne_bytes()[3])
            .collect();
        last.sort();
        last
    };
    let held = |texts: &[&str]| texts.iter().map(|text| address(text)).collect();
    let changed = tables.set_held(&held(&["10.0.0.5", "10.0.0.7"]));
    assert_eq!((answers(&tables), changed.len()), (vec![8, 9], 2));
    assert_eq!(tables.set_held(&held(&["10.0.0.5"])), Vec::<usize>::new());
    let changed = tables.set_held(&held(&["10.0.0.9"]));
    assert_eq!((answers(&tables), changed.len()), (vec![5, 8], 2));
    for place in changed {
        assert_ne!(tables.addresses[place].vip, 0);
    }
}

/// As many as there is room for, and none of them moves what packets look for.
#[test]
fn addresses_of_the_host_come_and_go_beside_ours() {
    let services = vec![service("10.0.0.5:80", &[("10.0.0.2:80", 1)])];
    let mut tables = Tables::new(&config(services), TICK, |_| Path {
        source: Some(address("10.0.0.7")),
        ..news(1)
    })
    .unwrap();
    let ours = |tables: &Tables| -> Vec<_> {
        let places = (0..).zip(&tables.addresses);
        let ours = places.filter(|(_, entry)| entry.vip + entry.source > 0);
        ours.map(|(place, entry): (usize, _)| (place, entry.address))
            .collect()
    };
    let before = ours(&tables);
    assert_eq!(before.len(), 2);
    let all: Vec<IpAddr> = (0..200)
        .map(|i| match i % 2 {
            0 => address(&format!("192.0.2.{i}")),
            _ => address(&format!("2001:db8::{i}")),
        })
        .chain(["10.0.0.5", "10.0.0.7"].map(address))
        .collect();
    for count in [202, 3, 100, 0, 150] {
        let held: BTreeSet<_> = all[all.len() - count..].iter().copied().collect();
        let changed = tables.set_held(&held);
        assert_eq!(ours(&tables), before, "with {count}");
        assert!(changed.iter().all(|place| *place < tables.addresses.len()));
        let is_there = |held: &&IpAddr| {
            let words = abi::address_words(**held);
            let mut entries = tables.addresses.iter();
            entries.any(|entry| entry.family != 0 && entry.address == words)
        };
        let found = held.iter().filter(is_there).count();
        println!("{found} of {count} in {} places", tables.addresses.len());
        assert!(found * 50 >= count * 49, "{found} of {count}");
        // What is no more is gone.
        let there = tables.addresses.iter().filter(|entry| entry.family != 0);
        let of_host = there.filter(|entry| entry.vip + entry.source == 0).count();
        assert!(of_host <= count, "{of_host} of {count}");
    }
}
