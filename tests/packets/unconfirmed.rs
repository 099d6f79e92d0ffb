// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Flows that no client has confirmed have a share of the ports, half of them:
//! within it the oldest makes room, and nobody else ever does.

use std::thread::sleep;
use std::time::Duration;

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::service::PortRanges;

use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::random::{Random, at_most};
use crate::common::rig::*;
use crate::common::root_or_skip;
use crate::common::served::SERVED;

const NO_FLOW: OutcomeCode = OutcomeCode::OUTCOME_REFUSED_NO_FLOW;

/// So many ports, for a service of each protocol and family.
fn with_ports(count: u16, check: impl Fn(&Rig, &str)) {
    for (listen, backends) in SERVED {
        let mut service = service(listen, &backends);
        service.source_ports = PortRanges::new(vec![2000..=1999 + count]).unwrap();
        check(&Rig::new(&config(vec![service]), GENERIC), listen);
    }
}

/// Begun by its client; not answered.
fn begun<'rig>(rig: &'rig Rig, listen: &str, number: u32) -> Exchange<'rig> {
    let mut exchange = Exchange::new(rig, listen, number);
    exchange.forward(SYN);
    exchange
}

/// Nothing of the flow is left: a RST answers its client, the host its backend.
/// A datagram would begin a new one.
fn is_gone(exchange: &Exchange) {
    exchange.is_passed(&exchange.backend_frame(SYN | ACK).bytes(Sum::Complete));
    if exchange.service.port() == 80 {
        exchange.is_reset(&exchange.client_frame(ACK), NO_FLOW);
    }
}

#[test]
fn half_of_the_ports_are_unconfirmed_at_most_and_the_oldest_makes_room() {
    if !root_or_skip("half_of_the_ports_are_unconfirmed_at_most_and_the_oldest_makes_room") {
        return;
    }
    with_ports(20, |rig, listen| {
        for answered in [false, true] {
            let first = if answered { 100 } else { 0 };
            let mut flows = Vec::new();
            let (_, evicted) = rig.unconfirmed();
            for number in first..first + 50 {
                flows.push(begun(rig, listen, number));
                // An answer alone confirms nothing.
                if answered {
                    flows.last().unwrap().reply(SYN | ACK);
                }
            }
            let (unconfirmed, after) = rig.unconfirmed();
            assert_eq!(unconfirmed, 10);
            assert_eq!(after - evicted, if answered { 50 } else { 40 });
            let young = flows.split_off(40);
            for old in &flows {
                if old.service.port() == 80 {
                    old.is_reset(&old.client_frame(ACK), NO_FLOW);
                }
            }
            // The ports of those before have other flows already.
            flows[30..].iter().for_each(is_gone);
            young.iter().for_each(|exchange| exchange.reply(SYN | ACK));
        }
    });
}

/// With all of the share in use, but nobody who needs room.
#[test]
fn the_sweep_ends_no_flow_whose_time_is_not_over() {
    if !root_or_skip("the_sweep_ends_no_flow_whose_time_is_not_over") {
        return;
    }
    for (listen, backends) in SERVED {
        let mut service = service(listen, &backends);
        service.source_ports = PortRanges::new(vec![2000..=2007]).unwrap();
        let mut rig = Rig::new(&config(vec![service]), GENERIC);
        let paths: Vec<_> = (0..4).map(|n| begun(&rig, listen, n).path()).collect();
        rig.datapath.sweep().unwrap();
        for (number, path) in (0..).zip(paths) {
            let exchange = Exchange::new(&rig, listen, number).with_path(path);
            exchange.reply(SYN | ACK);
        }
    }
}

/// What began and ended long ago says nothing of who is oldest now.
#[test]
fn the_oldest_makes_room_whatever_used_its_port_before() {
    if !root_or_skip("the_oldest_makes_room_whatever_used_its_port_before") {
        return;
    }
    with_ports(8, |rig, listen| {
        let mut random = Random(8);
        for round in 0..20 {
            let mut earlier: Vec<Exchange> = (0..8)
                .map(|number| {
                    let mut exchange = Exchange::new(rig, listen, 1000 * round + number);
                    exchange.open();
                    exchange
                })
                .collect();
            random.shuffle(&mut earlier);
            for exchange in &mut earlier {
                match exchange.service.port() {
                    80 => exchange.close(),
                    _ => return, // no datagram ends a flow
                }
            }
            let mut flows: Vec<Exchange> = (0..4)
                .map(|number| begun(rig, listen, 1000 * round + 100 + number))
                .collect();
            for number in 0..30 {
                let new = begun(rig, listen, 1000 * round + 200 + number);
                is_gone(&flows.remove(0));
                flows.push(new);
                flows.iter().for_each(|exchange| exchange.reply(SYN | ACK));
            }
            for exchange in &mut flows {
                exchange.forward(ACK);
                exchange.close();
            }
        }
    });
}

#[test]
fn a_flood_of_begins_leaves_every_confirmed_flow_and_its_port_alone() {
    if !root_or_skip("a_flood_of_begins_leaves_every_confirmed_flow_and_its_port_alone") {
        return;
    }
    with_ports(20, |rig, listen| {
        let mut confirmed = Vec::new();
        for numbers in [0..10, 10..15] {
            let mut some: Vec<Exchange> = numbers
                .map(|number| {
                    let mut exchange = Exchange::new(rig, listen, number);
                    exchange.open();
                    exchange
                })
                .collect();
            if listen.ends_with("/udp") {
                Exchange::confirm(&mut some);
            }
            confirmed.extend(some);
        }
        assert_eq!(rig.unconfirmed(), (0, 0));
        // What is left is theirs alone: who began first makes room.
        (100..400).for_each(|number| drop(begun(rig, listen, number)));
        assert_eq!(rig.unconfirmed(), (5, 295));
        for exchange in &mut confirmed {
            exchange.forward(PSH | ACK);
            exchange.reply(ACK);
        }
    });
}

#[test]
fn the_count_of_unconfirmed_flows_is_right_whatever_their_lives() {
    if !root_or_skip("the_count_of_unconfirmed_flows_is_right_whatever_their_lives") {
        return;
    }
    for (listen, backends) in SERVED {
        let mut service = service(listen, &backends);
        service.source_ports = PortRanges::new(vec![2000..=2029]).unwrap();
        service.timeouts.unanswered = Duration::from_millis(20);
        service.timeouts.established = Duration::from_millis(40);
        let mut rig = Rig::new(&config(vec![service]), WHOLE);
        let mut random = Random(10);
        let clients: Vec<_> = (0..40)
            .map(|number| Exchange::new(&rig, listen, number))
            .map(|exchange| {
                [SYN, SYN, ACK, FIN | ACK, RST]
                    .map(|flags| exchange.client_frame(flags).bytes(Sum::Complete))
            })
            .collect();
        let backends: Vec<_> = (2000..2030)
            .flat_map(|port| {
                let exchange = Exchange::new(&rig, listen, 0);
                let source = match exchange.service.is_ipv4() {
                    true => std::net::SocketAddr::new(SOURCE.into(), port),
                    false => std::net::SocketAddr::new(SOURCE_V6.into(), port),
                };
                let addresses: Vec<_> = rig
                    .tables
                    .backends
                    .iter()
                    .map(|b| b.backend.address)
                    .collect();
                addresses.into_iter().map(move |backend| {
                    let exchange =
                        Exchange::new(exchange.rig, listen, 0).with_path(Path { source, backend });
                    [SYN | ACK, ACK, FIN | ACK, RST]
                        .map(|flags| exchange.backend_frame(flags).bytes(Sum::Complete))
                })
            })
            .collect();
        for number in 0..at_most(20_000) {
            let frame = match random.below(2) {
                0 => &clients[random.below(clients.len())][random.below(5)],
                _ => &backends[random.below(backends.len())][random.below(4)],
            };
            rig.run(frame);
            if number % 100 == 0 {
                let (unconfirmed, _) = rig.unconfirmed();
                assert!(unconfirmed <= 15, "{unconfirmed} of 30");
            }
        }
        println!("{listen}: {:?} unconfirmed and evicted", rig.unconfirmed());
        sleep(Duration::from_millis(100));
        rig.datapath.sweep().unwrap();
        assert_eq!(rig.unconfirmed().0, 0);
    }
}
