// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Several services, VIPs and backends, and what changes while flows are alive.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::service::PortRanges;

use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::random::at_most;
use crate::common::rig::*;
use crate::common::root_or_skip;

#[test]
fn services_are_told_apart_by_address_and_port() {
    if !root_or_skip("services_are_told_apart_by_address_and_port") {
        return;
    }
    // The second VIP is no source address: replies come to 10.0.0.5.
    let services = [
        ("10.0.0.5:80", "10.0.0.2:80"),
        ("10.0.0.5:443", "10.0.0.3:8443"),
        ("10.0.0.77:80", "10.0.0.4:80"),
    ];
    let rig = Rig::new(
        &config(
            services
                .iter()
                .map(|(listen, backend)| service(listen, &[(backend, 1)]))
                .collect(),
        ),
        GENERIC,
    );
    // The same client's port to each of them: three flows.
    let mut flows = services.map(|(listen, backend)| {
        let mut connection = Exchange::new(&rig, listen, 1);
        connection.open();
        assert_eq!(
            connection.path().backend,
            backend.parse().unwrap(),
            "of {listen}"
        );
        assert_eq!(connection.path().source.ip(), SOURCE);
        connection
    });
    let ports: HashSet<u16> = flows.iter().map(Exchange::port).collect();
    assert_eq!(ports.len(), 3);
    for connection in &mut flows {
        connection.forward(PSH | ACK);
        connection.reply(PSH | ACK);
    }
    // One ends, the others live on.
    flows[0].close();
    for connection in &mut flows[1..] {
        connection.forward(PSH | ACK);
        connection.reply(PSH | ACK);
    }
    for other in ["10.0.0.77:443", "10.0.0.5:8443", "10.0.0.3:8443"] {
        let connection = Exchange::new(&rig, other, 1);
        connection.is_passed(&connection.client_frame(SYN).bytes(Sum::Complete));
    }
    // A reply to a VIP that is no source address is nobody's.
    let mut reply = flows[2].backend_frame(ACK);
    reply.ipv4().destination = [10, 0, 0, 77];
    flows[2].is_passed(&reply.bytes(Sum::Complete));
    // A reply from the backend of one flow to the port of another is nobody's.
    let mut reply = flows[2].backend_frame(ACK);
    reply.tcp().destination_port = flows[1].port();
    flows[2].is_passed(&reply.bytes(Sum::Complete));
}

#[test]
fn each_source_address_has_ports_of_its_own() {
    if !root_or_skip("each_source_address_has_ports_of_its_own") {
        return;
    }
    let services = ["10.0.0.5", "10.0.0.88"].map(|source| {
        let mut service = service(&format!("{source}:80"), &[("10.0.0.2:80", 1)]);
        service.source = vec![source.parse().unwrap()];
        service.source_ports = PortRanges::new(vec![2000..=2000]).unwrap();
        service
    });
    let rig = Rig::new(&config(services.into()), GENERIC);
    let open = |number, service| {
        let mut connection = Exchange::new(&rig, service, number);
        connection.open();
        connection
    };
    let mut one = open(1, "10.0.0.5:80");
    let mut other = open(2, "10.0.0.88:80");
    assert_eq!(one.path().source.to_string(), "10.0.0.5:2000");
    assert_eq!(other.path().source.to_string(), "10.0.0.88:2000");
    for connection in [&mut one, &mut other] {
        connection.reply(PSH | ACK);
        connection.forward(PSH | ACK);
    }
    let mut late = Exchange::new(&rig, "10.0.0.88:80", 3);
    assert!(!late.try_syn(), "its source address has one port");
    one.close();
    assert!(!late.try_syn(), "the other's port is of no use");
    other.close();
    assert!(late.try_open());
    assert_eq!(late.path().source.to_string(), "10.0.0.88:2000");
}

#[test]
fn every_one_of_1024_services_is_found_and_nothing_beside_them() {
    if !root_or_skip("every_one_of_1024_services_is_found_and_nothing_beside_them") {
        return;
    }
    // Each has a look-up table, as much work as 16 packets.
    let services = at_most(16 * 1024) as u32 / 16;
    let listen =
        |i: u32, beside: u32| format!("203.0.113.{}:{}", i % 4 + 1, i / 4 * 2 + 1 + beside);
    let backend = |i: u32| format!("{}:8080", Ipv4Addr::from(0x0a01_0000 + i));
    let each = (0..services).map(|i| service(&listen(i, 0), &[(&backend(i), 1)]));
    let rig = Rig::new(&config(each.collect()), GENERIC);
    for i in 0..services {
        let mut connection = Exchange::new(&rig, &listen(i, 0), 1);
        connection.open();
        assert_eq!(connection.path().backend.to_string(), backend(i));
        let connection = Exchange::new(&rig, &listen(i, 1), 1);
        connection.is_passed(&connection.client_frame(SYN).bytes(Sum::Complete));
    }
    assert!(rig.counters().backends.iter().all(|b| b.flows_begun == 1));
}

fn two_backends() -> Rig {
    let backends = [("10.0.0.2:80", 1), ("10.0.0.3:80", 1)];
    Rig::new(&config(vec![service("10.0.0.5:80", &backends)]), GENERIC)
}

/// A flow to each of the two backends.
fn one_each(rig: &Rig) -> (Exchange<'_>, Exchange<'_>) {
    let mut first = Exchange::new(rig, WEB, 1);
    first.open();
    let other = (2..100)
        .map(|number| {
            let mut connection = Exchange::new(rig, WEB, number);
            connection.open();
            connection
        })
        .find(|connection| connection.path().backend != first.path().backend);
    (
        first,
        other.expect("a client that goes to the other backend"),
    )
}

#[test]
fn a_flow_keeps_its_backend_when_the_look_up_table_changes() {
    if !root_or_skip("a_flow_keeps_its_backend_when_the_look_up_table_changes") {
        return;
    }
    let mut rig = two_backends();
    let (first, other) = one_each(&rig);
    let (paths, clients) = ([first.path(), other.path()], [first.client, other.client]);
    for (dead, begins_at) in [(0, 1), (1, 0)] {
        let gone = rig.backend_index(paths[dead].backend);
        rig.tables
            .backends
            .iter_mut()
            .for_each(|b| b.path.alive = true);
        rig.tables.backends[gone - 1].path.alive = false;
        rig.datapath.write_maglev(&rig.tables, 0).unwrap();
        for (path, client) in paths.iter().zip(clients) {
            let mut connection = Exchange::new(&rig, WEB, 0).with_path(*path);
            connection.client = client;
            // A late SYN as well as data: all of one flow.
            for flags in [SYN, ACK, PSH | ACK] {
                connection.forward(flags);
                connection.reply(ACK);
            }
        }
        for number in 0..200 {
            let mut connection = Exchange::new(&rig, WEB, 1000 * (dead as u32 + 1) + number);
            connection.open();
            assert_eq!(connection.path().backend, paths[begins_at].backend);
        }
    }
}

#[test]
fn a_backend_whose_mac_changes_is_followed() {
    if !root_or_skip("a_backend_whose_mac_changes_is_followed") {
        return;
    }
    let mut rig = two_backends();
    let mut connection = Exchange::new(&rig, WEB, 1);
    connection.open();
    let path = connection.path();
    let segment = connection.client_frame(ACK);
    let index = rig.backend_index(path.backend);
    let new_mac = [2, 0, 0, 5, 5, 5];
    rig.tables.backends[index - 1].path.mac = Some(new_mac);
    rig.datapath.write_backend(&rig.tables, index).unwrap();
    let ran = rig.run(&segment.bytes(Sum::Complete));
    let mut wanted = Exchange::new(&rig, WEB, 1)
        .with_path(path)
        .forwarded(&segment);
    wanted.to_mac = new_mac;
    assert_eq!(
        (ran.verdict, ran.frame),
        (XDP_TX, wanted.bytes(Sum::Complete))
    );
}

#[test]
fn packets_to_a_backend_without_a_mac_are_dropped_and_its_replies_return() {
    let name = "packets_to_a_backend_without_a_mac_are_dropped_and_its_replies_return";
    if !root_or_skip(name) {
        return;
    }
    let mut rig = two_backends();
    let mut connection = Exchange::new(&rig, WEB, 1);
    connection.open();
    let (path, segment) = (connection.path(), connection.client_frame(PSH | ACK));
    let index = rig.backend_index(path.backend);
    let known = std::mem::take(&mut rig.tables.backends[index - 1].path);
    rig.datapath.write_backend(&rig.tables, index).unwrap();

    let frame = segment.bytes(Sum::Complete);
    let before = rig.counters();
    let ran = rig.run(&frame);
    assert_eq!((ran.verdict, &ran.frame), (XDP_DROP, &frame));
    let mut moved = before.clone();
    moved.outcomes[OutcomeCode::OUTCOME_DROPPED_NO_NEIGHBOUR.0 as usize] += 1;
    assert_eq!(rig.counters(), moved, "one drop, counted for no backend");
    Exchange::new(&rig, WEB, 1).with_path(path).reply(ACK);

    rig.tables.backends[index - 1].path = known;
    rig.datapath.write_backend(&rig.tables, index).unwrap();
    let mut connection = Exchange::new(&rig, WEB, 1).with_path(path);
    connection.forward(PSH | ACK);
    connection.reply(ACK);
}

#[test]
fn without_a_backend_that_answers_a_syn_gets_a_reset_and_flows_go_on() {
    let name = "without_a_backend_that_answers_a_syn_gets_a_reset_and_flows_go_on";
    if !root_or_skip(name) {
        return;
    }
    let mut rig = two_backends();
    let mut old = Exchange::new(&rig, WEB, 1);
    old.open();
    let path = old.path();
    rig.tables
        .backends
        .iter_mut()
        .for_each(|b| b.path.alive = false);
    rig.datapath.write_maglev(&rig.tables, 0).unwrap();

    for sum in [Sum::Complete, Sum::Partial] {
        let mut connection = Exchange::new(&rig, WEB, 2);
        connection.sum = sum;
        for payload in [0, 1, 500] {
            let mut syn = connection.client_frame(SYN);
            syn.payload = pattern(payload);
            connection.is_reset(&syn, OutcomeCode::OUTCOME_REFUSED_NO_BACKEND);
        }
        let ack = connection.client_frame(ACK);
        connection.is_reset(&ack, OutcomeCode::OUTCOME_REFUSED_NO_FLOW);
    }
    let mut old = Exchange::new(&rig, WEB, 1).with_path(path);
    old.forward(PSH | ACK);
    old.reply(PSH | ACK);
    assert_eq!(
        rig.counters()
            .backends
            .iter()
            .map(|b| b.flows_begun)
            .sum::<u64>(),
        1
    );
}
