// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Source ports: none is given twice, all of them are used, and each comes
//! back.

use std::collections::{HashMap, HashSet};

use xdp_proxy::abi::{self, OutcomeCode};
use xdp_proxy::service::PortRanges;

use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::random::{Random, at_most};
use crate::common::rig::*;
use crate::common::root_or_skip;

const EXHAUSTED: OutcomeCode = OutcomeCode::OUTCOME_REFUSED_SNAT_EXHAUSTED;
const BACKENDS: &[(&str, u16)] = &[("10.0.0.2:80", 1), ("10.0.0.3:80", 1)];

fn with_ports(ports: PortRanges) -> Rig {
    let mut service = service("10.0.0.5:80", BACKENDS);
    service.source_ports = ports;
    Rig::new(&config(vec![service]), GENERIC)
}

fn few_ports(last: u16) -> Rig {
    with_ports(PortRanges::new(vec![2000..=last]).unwrap())
}

#[test]
fn every_port_is_used_before_the_first_client_is_refused() {
    if !root_or_skip("every_port_is_used_before_the_first_client_is_refused") {
        return;
    }
    for last in [2000, 2001, 2006, 2063, 2200] {
        let rig = few_ports(last);
        let count = u32::from(last) - 1999;
        let mut used = HashSet::new();
        for number in 0..count {
            let mut connection = Exchange::new(&rig, WEB, number);
            assert!(connection.try_open(), "flow {number} of {count}");
            assert!((2000..=last).contains(&connection.port()));
            assert!(used.insert(connection.port()));
        }
        assert_eq!(rig.counter(EXHAUSTED), 0);
        let mut late = Exchange::new(&rig, WEB, count);
        assert!(!late.try_syn(), "a flow too many");
        assert!(!late.try_syn(), "the same again");
        assert_eq!(rig.counter(EXHAUSTED), 2);
    }
}

#[test]
fn a_refused_client_gets_in_as_soon_as_another_flow_closes() {
    if !root_or_skip("a_refused_client_gets_in_as_soon_as_another_flow_closes") {
        return;
    }
    let rig = few_ports(2003);
    let mut flows: Vec<Exchange> = (0..4).map(|n| Exchange::new(&rig, WEB, n)).collect();
    flows.iter_mut().for_each(Exchange::open);
    let mut late = Exchange::new(&rig, WEB, 4);
    assert!(!late.try_syn());
    flows[2].close();
    assert!(late.try_open(), "a port is free");
    assert_eq!(late.port(), flows[2].port());
    late.forward(PSH | ACK);

    // The closed flow's port is another's now: its late packets find nothing.
    let late_ack = flows[2].client_frame(ACK);
    flows[2].is_reset(&late_ack, OutcomeCode::OUTCOME_REFUSED_NO_FLOW);
    if late.path() != flows[2].path() {
        flows[2].is_passed(&flows[2].backend_frame(ACK).bytes(Sum::Complete));
    }
    for i in [0, 1, 3] {
        flows[i].forward(PSH | ACK);
        flows[i].reply(ACK);
    }
    assert_eq!(rig.counter(EXHAUSTED), 1);
}

#[test]
fn a_client_that_uses_its_port_again_is_not_found_by_the_old_one() {
    if !root_or_skip("a_client_that_uses_its_port_again_is_not_found_by_the_old_one") {
        return;
    }
    let rig = few_ports(2063);
    let mut old = Exchange::new(&rig, WEB, 1);
    old.open();
    old.close();
    let mut new = Exchange::new(&rig, WEB, 1);
    new.open();
    assert_ne!(new.port(), old.port());
    assert_eq!(new.path().backend, old.path().backend, "Maglev's choice");
    old.is_passed(&old.backend_frame(ACK).bytes(Sum::Complete));
    new.forward(PSH | ACK);
    new.reply(ACK);
    new.close();
}

/// As the design wants it: at least 95 %.
#[test]
fn nearly_the_whole_default_range_serves_random_clients_and_no_port_twice() {
    let test = "nearly_the_whole_default_range_serves_random_clients_and_no_port_twice";
    if !root_or_skip(test) {
        return;
    }
    let ports = PortRanges::beside(32768..=60999).unwrap();
    let first = ports.iter().take(at_most(ports.count()));
    let ports = PortRanges::new(first.map(|port| port..=port).collect()).unwrap();
    let rig = with_ports(ports.clone());
    let mut random = Random(1);
    let mut clients: Vec<u32> = (0..ports.count() as u32).map(|n| n * 257).collect();
    let every: HashSet<u16> = ports.iter().collect();
    let mut in_use = 0;
    for round in 1..=2 {
        random.shuffle(&mut clients);
        let mut flows = Vec::new();
        let mut alive = HashSet::new();
        for number in &clients {
            let mut connection = Exchange::new(&rig, WEB, *number);
            if !connection.try_open() {
                break;
            }
            assert!(alive.insert(connection.port()), "{:?}", connection.path());
            flows.push(connection);
        }
        println!("{} of {} ports in use", flows.len(), every.len());
        assert!(flows.len() * 100 >= every.len() * 95);
        assert!(alive.is_subset(&every));
        in_use += flows.len() as u64;

        // Each is found, wherever it is.
        random.shuffle(&mut flows);
        for connection in &mut flows {
            connection.forward(PSH | ACK);
            connection.reply(PSH | ACK);
            connection.close();
        }
        let counters = rig.counters();
        let begun: u64 = counters.backends.iter().map(|b| b.flows_begun).sum();
        let ended: u64 = counters.backends.iter().map(|b| b.flows_ended).sum();
        assert_eq!((begun, ended), (in_use, in_use), "after round {round}");
    }
}

/// Of the slots that are one group: 2000 is a multiple of their number.
#[test]
fn a_port_rests_until_the_others_that_are_free_were_used() {
    if !root_or_skip("a_port_rests_until_the_others_that_are_free_were_used") {
        return;
    }
    let rig = few_ports(1999 + abi::GROUP_SLOTS as u16);
    let mut random = Random(3);
    let mut alive: Vec<Exchange> = Vec::new();
    // Those that came free, with the ports that were free beside them.
    let mut resting: HashMap<u16, HashSet<u16>> = HashMap::new();
    let every = || (2000..).take(abi::GROUP_SLOTS);
    let mut used_again = 0;
    for number in 0..2000 {
        if random.below(abi::GROUP_SLOTS) < alive.len() {
            let mut connection = alive.swap_remove(random.below(alive.len()));
            connection.close();
            let port = connection.port();
            let is_alive = |other: &u16| alive.iter().any(|flow| flow.port() == *other);
            let free = every().filter(|other| *other != port && !is_alive(other));
            // Those that rest already may go on to rest.
            let free = free.filter(|other| !resting.contains_key(other));
            resting.insert(port, free.collect());
        } else {
            let mut connection = Exchange::new(&rig, WEB, number);
            connection.open();
            let port = connection.port();
            if let Some(others) = resting.remove(&port) {
                used_again += 1;
                assert!(others.is_empty(), "{port} before {others:?}");
            }
            for others in resting.values_mut() {
                others.remove(&port);
            }
            alive.push(connection);
        }
    }
    assert!(used_again > 500, "{used_again} ports were used again");
}

#[test]
fn flows_that_come_and_go_at_random_never_share_a_port() {
    if !root_or_skip("flows_that_come_and_go_at_random_never_share_a_port") {
        return;
    }
    let rounds = at_most(60_000) as u32;
    // Few enough that all of them are taken now and then.
    let few = 500.min(rounds / 8);
    let rig = few_ports(1999 + few as u16);
    let mut random = Random(2);
    let mut alive: Vec<Exchange> = Vec::new();
    let mut ports = HashSet::new();
    let (mut begun, mut ended, mut refused) = (0, 0, 0);
    for number in 0..rounds {
        let closes = random.below(2 * few as usize) < alive.len();
        if closes && !alive.is_empty() {
            let mut connection = alive.swap_remove(random.below(alive.len()));
            if random.once_in(2) {
                connection.close();
            } else {
                connection.forward(RST);
            }
            assert!(ports.remove(&connection.port()));
            ended += 1;
        } else {
            let mut connection = Exchange::new(&rig, WEB, number);
            if connection.try_open() {
                assert!(ports.insert(connection.port()), "{:?}", connection.path());
                alive.push(connection);
                begun += 1;
            } else {
                let share = alive.len() * 100 / few as usize;
                assert!(share >= 95, "refused with {share} % of the ports in use");
                refused += 1;
            }
        }
    }
    println!("{begun} begun, {ended} ended, {refused} refused");
    let rounds = u64::from(rounds);
    assert!(begun > rounds / 3 && ended > rounds / 3 && refused > rounds / 600);
    let counters = rig.counters();
    assert_eq!(counters.of(EXHAUSTED), refused);
    assert_eq!(
        counters.backends.iter().map(|b| b.flows_begun).sum::<u64>(),
        begun
    );
    assert_eq!(
        counters.backends.iter().map(|b| b.flows_ended).sum::<u64>(),
        ended
    );
}
