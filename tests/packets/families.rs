// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Services of both families and both protocols in one program.

use std::collections::HashSet;

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::service::PortRanges;

use crate::common::case::WAYS;
use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::icmp::Told;
use crate::common::random::at_most;
use crate::common::rig::*;
use crate::common::root_or_skip;

#[test]
fn ipv4_and_ipv6_are_served_side_by_side() {
    if !root_or_skip("ipv4_and_ipv6_are_served_side_by_side") {
        return;
    }
    const SERVICES: [(&str, &str); 5] = [
        ("10.0.0.5:80", "10.0.0.2:80"),
        ("[fd00::5]:80", "[fd00::2]:80"),
        ("10.0.0.5:80/udp", "10.0.0.3:81"),
        ("[fd00::5]:80/udp", "[fd00::3]:81"),
        // The same first word as the IPv4 address, the others 0.
        ("[a00:5::]:80", "[fd00::4]:82"),
    ];
    let clients = at_most(20_000) as u32 / 100;
    for (settings, sum) in WAYS {
        let services = SERVICES
            .iter()
            .map(|(listen, backend)| service(listen, &[(backend, 1)]))
            .collect();
        let rig = Rig::new(&config(services), *settings);
        let mut flows: Vec<Exchange> = (0..clients)
            .flat_map(|number| SERVICES.map(|(listen, _)| (listen, number)))
            .map(|(listen, number)| Exchange::new(&rig, listen, number).with_sum(*sum))
            .collect();
        flows.iter_mut().for_each(Exchange::open);
        flows.iter_mut().for_each(Exchange::open);
        for (flow, (_, backend)) in flows.iter().zip(SERVICES.iter().cycle()) {
            assert_eq!(flow.path().backend, backend.parse().unwrap());
        }
        let distinct: HashSet<Path> = flows.iter().map(Exchange::path).collect();
        assert_eq!(distinct.len(), flows.len());
        let begun = rig.counters().backends;
        assert!(begun.iter().all(|b| b.flows_begun == u64::from(clients)));
    }
}

/// TCP and UDP of one source address: two flows never have one port.
#[test]
fn services_that_share_ports_take_them_from_each_other() {
    if !root_or_skip("services_that_share_ports_take_them_from_each_other") {
        return;
    }
    for [tcp, udp, backend] in [
        ["10.0.0.5:80", "10.0.0.5:53/udp", "10.0.0.2:80"],
        ["[fd00::5]:80", "[fd00::5]:53/udp", "[fd00::2]:80"],
    ] {
        let services = [tcp, udp].map(|listen| {
            let mut service = service(listen, &[(backend, 1)]);
            service.source_ports = PortRanges::new(vec![2000..=2003]).unwrap();
            service
        });
        let rig = Rig::new(&config(services.into()), GENERIC);
        let mut flows: Vec<Exchange> = (0..4)
            .map(|number| Exchange::new(&rig, [tcp, udp][number as usize % 2], number))
            .collect();
        flows.iter_mut().for_each(Exchange::open);
        Exchange::confirm(&mut flows);
        let ports: HashSet<u16> = flows.iter().map(|f| f.path().source.port()).collect();
        assert_eq!(ports.len(), 4);
        let exhausted = OutcomeCode::OUTCOME_REFUSED_SNAT_EXHAUSTED;
        let late = Exchange::new(&rig, tcp, 9);
        late.is_reset(&late.client_frame(SYN), exhausted);
        let late = Exchange::new(&rig, udp, 9);
        late.is_told(&late.client_frame(0), Told::PortUnreachable, exhausted);
        // A TCP flow's port, once it is closed, serves a datagram.
        let free = flows[0].path().source;
        flows[0].close();
        let mut next = Exchange::new(&rig, udp, 10);
        next.open();
        assert_eq!(next.path().source, free);
        flows[1..].iter_mut().for_each(Exchange::open);
    }
}

/// Addresses that differ in any one of their bytes, and in their last two.
#[test]
fn each_of_many_ipv6_addresses_is_found_and_none_beside_them() {
    if !root_or_skip("each_of_many_ipv6_addresses_is_found_and_none_beside_them") {
        return;
    }
    let mut vips: Vec<u128> = (0..600u128)
        .map(|i| 0xfd00 << 112 | 7 << 64 | (i * 2))
        .collect();
    vips.extend(
        (2..16).flat_map(|byte| (1..=20).map(move |i| 0xfd02 << 112 | i << (8 * (15 - byte)))),
    );
    vips.sort_unstable();
    vips.dedup();
    // Some twenty packets for each.
    let few = 20_000 / at_most(20_000);
    let vips: Vec<u128> = vips.into_iter().step_by(few).collect();
    let name = |vip: u128| format!("[{}]:80", std::net::Ipv6Addr::from(vip));
    let services = vips
        .iter()
        .zip(1000..)
        .map(|(vip, port)| service(&name(*vip), &[(&format!("[fd00::2]:{port}"), 1)]))
        .collect();
    let rig = Rig::new(&config(services), GENERIC);
    for (vip, port) in vips.iter().zip(1000..) {
        let mut exchange = Exchange::new(&rig, &name(*vip), 1);
        exchange.open();
        assert_eq!(exchange.path().backend.port(), port, "of {}", name(*vip));
        for beside in [vip ^ 1, vip ^ 1 << 40, vip ^ 1 << 100, vip.rotate_left(32)] {
            if !vips.contains(&beside) {
                let exchange = Exchange::new(&rig, &name(beside), 1);
                exchange.is_passed(&exchange.client_frame(SYN).bytes(Sum::Complete));
            }
        }
    }
    println!(
        "{} addresses in {} places",
        vips.len(),
        rig.tables.addresses.len()
    );
}

/// Neighbours' addresses with ports at random: each flow has a hash of its own,
/// which names its group and its tag, whatever its client's address ends with.
#[test]
fn ipv6_clients_of_one_network_have_hashes_of_their_own() {
    if !root_or_skip("ipv6_clients_of_one_network_have_hashes_of_their_own") {
        return;
    }
    let flows = at_most(4000) as u32;
    const WEB: &str = "[fd00::5]:80";
    let rig = Rig::new(&config(vec![service(WEB, &[("[fd00::2]:80", 1)])]), WHOLE);
    let hashes: Vec<u32> = (0..flows)
        .map(|number| {
            let mut exchange = Exchange::new(&rig, WEB, number);
            let host = format!("fd01::{:x}", number % 64).parse().unwrap();
            exchange.client.set_ip(host);
            exchange.forward(SYN);
            let port = exchange.path().source.port();
            rig.datapath.flow(0, port).unwrap().hash
        })
        .collect();
    let distinct: HashSet<&u32> = hashes.iter().collect();
    let shared = hashes.len() - distinct.len();
    println!("{shared} of {flows} flows have another's hash");
    assert!(shared < 3, "{shared}");
}
