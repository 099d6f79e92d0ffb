// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Services on any port and on ranges of ports.

use std::net::SocketAddr;

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::service::{ListenPorts, Service};

use crate::common::case::WAYS;
use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::random::{Random, at_most};
use crate::common::rig::*;
use crate::common::root_or_skip;

/// A VIP, and the backend of a service on it.
const FAMILIES: [(&str, &str); 2] = [("10.0.0.5", "10.0.0.2"), ("[fd00::5]", "fd00::2")];
const PROTOCOLS: [&str; 2] = ["/tcp", "/udp"];

fn backend(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// With client `number`; `protocol` is "/tcp" or "/udp".
fn exchange<'r>(rig: &'r Rig, vip: &str, port: u16, protocol: &str, number: u32) -> Exchange<'r> {
    let protocol = protocol.trim_end_matches("/tcp");
    Exchange::new(rig, &format!("{vip}:{port}{protocol}"), number)
}

/// A service as its `listen` displays it, with one backend.
fn one(listen: &str, backend: &str) -> Service {
    service(listen.trim_end_matches("/tcp"), &[(backend, 1)])
}

#[track_caller]
fn is_passed(exchange: &Exchange) {
    exchange.is_passed(&exchange.client_frame(SYN).bytes(exchange.sum));
}

#[test]
fn a_service_on_any_port_keeps_the_port_that_the_client_connects_to() {
    if !root_or_skip("a_service_on_any_port_keeps_the_port_that_the_client_connects_to") {
        return;
    }
    for (vip, address) in FAMILIES {
        for protocol in PROTOCOLS {
            for (settings, sum) in WAYS {
                let listen = format!("{vip}:*{protocol}");
                let rig = Rig::new(&config(vec![one(&listen, address)]), *settings);
                // All of them with the ports of one client: flows of their own.
                let mut flows: Vec<Exchange> = [1, 22, 80, 1024, 33333, 65535]
                    .map(|port| exchange(&rig, vip, port, protocol, 1).with_sum(*sum))
                    .into();
                flows.iter_mut().for_each(Exchange::open);
                for flow in &mut flows {
                    assert_eq!(flow.path().backend, backend(address, flow.service.port()));
                    flow.forward(PSH | ACK);
                    flow.reply(PSH | ACK);
                }
                if protocol == "/tcp" {
                    flows.iter_mut().for_each(Exchange::close);
                }
                is_passed(&exchange(&rig, vip, 0, protocol, 1));
                let other = PROTOCOLS[usize::from(protocol == "/tcp")];
                is_passed(&exchange(&rig, vip, 80, other, 1));
            }
        }
    }
}

#[test]
fn one_port_goes_before_ranges_and_ranges_go_before_any() {
    if !root_or_skip("one_port_goes_before_ranges_and_ranges_go_before_any") {
        return;
    }
    for (vip, backends) in [
        ("10.0.0.5", ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.6"]),
        ("[fd00::5]", ["fd00::2", "fd00::3", "fd00::4", "fd00::6"]),
    ] {
        for protocol in PROTOCOLS {
            let [any, range, single, beside] = backends;
            let own_port = SocketAddr::new(single.parse().unwrap(), 1234).to_string();
            let mut services = vec![
                one(&format!("{vip}:*{protocol}"), any),
                one(&format!("{vip}:8000-8099{protocol}"), range),
                one(&format!("{vip}:8050{protocol}"), &own_port),
                one(&format!("{vip}:8100-8101{protocol}"), beside),
            ];
            // In whatever order they are written.
            for _ in 0..services.len() {
                services.rotate_left(1);
                let rig = Rig::new(&config(services.clone()), GENERIC);
                for (port, address) in [
                    (1, any),
                    (7999, any),
                    (8000, range),
                    (8049, range),
                    (8051, range),
                    (8099, range),
                    (8100, beside),
                    (8101, beside),
                    (8102, any),
                    (65535, any),
                ] {
                    let mut exchange = exchange(&rig, vip, port, protocol, 1);
                    exchange.open();
                    assert_eq!(exchange.path().backend, backend(address, port));
                }
                let mut exchange = exchange(&rig, vip, 8050, protocol, 1);
                exchange.open();
                assert_eq!(exchange.path().backend, backend(single, 1234));
            }
        }
    }
}

#[test]
fn a_port_of_no_range_is_passed() {
    if !root_or_skip("a_port_of_no_range_is_passed") {
        return;
    }
    let rig = Rig::new(
        &config(vec![
            one("10.0.0.5:8000-8099/tcp", "10.0.0.2"),
            one("10.0.0.5:9000-9099/udp", "10.0.0.3"),
            one("10.0.0.77:7000-7099/tcp", "10.0.0.4"),
            one("10.0.0.77:22/tcp", "10.0.0.4:22"),
        ]),
        GENERIC,
    );
    for (vip, port, protocol) in [
        ("10.0.0.5", 7999, "/tcp"),
        ("10.0.0.5", 8100, "/tcp"),
        ("10.0.0.5", 0, "/tcp"),
        ("10.0.0.5", 22, "/tcp"),
        ("10.0.0.5", 7000, "/tcp"),
        ("10.0.0.5", 9000, "/tcp"),
        ("10.0.0.5", 8000, "/udp"),
        ("10.0.0.77", 8000, "/tcp"),
        ("10.0.0.77", 7000, "/udp"),
        ("10.0.0.77", 22, "/udp"),
    ] {
        is_passed(&exchange(&rig, vip, port, protocol, 1));
    }
    for (vip, port, protocol, address) in [
        ("10.0.0.5", 8000, "/tcp", "10.0.0.2"),
        ("10.0.0.5", 9000, "/udp", "10.0.0.3"),
        ("10.0.0.77", 7000, "/tcp", "10.0.0.4"),
        ("10.0.0.77", 22, "/tcp", "10.0.0.4"),
    ] {
        let mut exchange = exchange(&rig, vip, port, protocol, 1);
        exchange.open();
        assert_eq!(exchange.path().backend, backend(address, port));
    }
}

/// The VIP is the source address too: what comes from a backend to a flow's
/// port is a reply if it comes from the flow's port at the backend, and else a
/// client's packet like any other.
#[test]
fn replies_are_told_from_clients_by_the_backends_port() {
    if !root_or_skip("replies_are_told_from_clients_by_the_backends_port") {
        return;
    }
    for (vip, address) in FAMILIES {
        let rig = Rig::new(
            &config(vec![one(&format!("{vip}:*/tcp"), address)]),
            GENERIC,
        );
        let mut flow = exchange(&rig, vip, 80, "/tcp", 1);
        flow.open();
        let Path {
            source,
            backend: at,
        } = flow.path();

        let mut stray = flow.backend_frame(ACK);
        stray.set_ends(SocketAddr::new(at.ip(), 81), source);
        flow.is_reset(&stray, OutcomeCode::OUTCOME_REFUSED_NO_FLOW);
        // The backend's own connection to the VIP, at the port of the flow.
        let mut own = exchange(&rig, vip, source.port(), "/tcp", 2);
        own.client = SocketAddr::new(at.ip(), 81);
        own.open();
        assert_eq!(own.path().backend, backend(address, source.port()));

        flow.forward(PSH | ACK);
        flow.reply(PSH | ACK);
        own.close();
        flow.close();
    }
}

/// What one VIP and protocol may listen on, at random: any port, ranges side by
/// side or apart, and single ports, some at a range's ends.
fn random_ports(random: &mut Random) -> Vec<ListenPorts> {
    let mut all = Vec::new();
    if random.once_in(2) {
        all.push(ListenPorts::Any);
    }
    let mut first = 1 + random.below(20_000);
    while first < 65_535 {
        let bits = 1 + random.below(14);
        let last = 65_535.min(first + 1 + random.below(1 << bits));
        all.push(ListenPorts::new(first as u16, last as u16));
        first = last + 1 + random.below(2) * random.below(30_000);
    }
    for _ in 0..random.below(8) {
        let end = *all[random.below(all.len())].range().start();
        let port = match random.below(2) {
            0 => end,
            _ => 1 + random.below(65_535) as u16,
        };
        all.push(ListenPorts::One(port));
    }
    all.sort();
    all.dedup();
    all
}

#[test]
fn random_services_that_overlap_get_the_ports_that_are_theirs() {
    if !root_or_skip("random_services_that_overlap_get_the_ports_that_are_theirs") {
        return;
    }
    let mut random = Random(12);
    let (mut served, mut passed) = (0, 0);
    for _ in 0..at_most(24_000) / 1000 {
        let mut services = Vec::new();
        let mut asked = Vec::new();
        for vip in ["10.0.0.5", "10.0.0.77"] {
            for protocol in PROTOCOLS {
                let all = random_ports(&mut random);
                for ports in &all {
                    let number = services.len();
                    let mut backend = format!("10.1.{}.{}", number / 250, number % 250 + 1);
                    if let Some(port) = ports.one() {
                        backend += &format!(":{port}");
                    }
                    services.push(one(&format!("{vip}:{ports}{protocol}"), &backend));
                }
                for _ in 0..250 {
                    let range = all[random.below(all.len())].range();
                    let port = match random.below(5) {
                        0 => *range.start(),
                        1 => *range.end(),
                        2 => range.start() - 1,
                        3 => range.end().saturating_add(1),
                        _ => random.word() as u16,
                    };
                    asked.push((vip, protocol, port));
                }
            }
        }
        random.shuffle(&mut services);
        let rig = Rig::new(&config(services.clone()), WHOLE);
        for ((vip, protocol, port), number) in asked.into_iter().zip(0..) {
            let named = |service: &&Service| {
                let listen = service.listen;
                listen.vip.to_string() == vip
                    && format!("/{}", listen.protocol) == protocol
                    && listen.ports.range().contains(&port)
            };
            let narrowest = services.iter().filter(named);
            let narrowest = narrowest.min_by_key(|service| service.listen.ports.range().len());
            let mut exchange = exchange(&rig, vip, port, protocol, number);
            match narrowest {
                Some(service) => {
                    exchange.forward(SYN);
                    let address = service.backends[0].address.ip();
                    assert_eq!(exchange.path().backend, SocketAddr::new(address, port));
                    exchange.reply(SYN | ACK);
                    served += 1;
                }
                None => {
                    is_passed(&exchange);
                    passed += 1;
                }
            }
        }
    }
    println!("{served} served, {passed} passed");
    assert!(served > passed && passed > served / 100);
}
