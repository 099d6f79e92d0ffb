// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A client that uses its port again, often and at several services.

use std::time::Duration;

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::service::Service;

use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::rig::*;
use crate::common::root_or_skip;

fn web() -> Service {
    service("10.0.0.5:80", &[("10.0.0.2:80", 1), ("10.0.0.3:80", 1)])
}

/// Wherever the services' places are: each of 20 is tried.
#[test]
fn a_port_used_again_stays_with_its_service() {
    if !root_or_skip("a_port_used_again_stays_with_its_service") {
        return;
    }
    let services = (1..=20)
        .map(|i| {
            let listen = format!("10.0.0.5:{}", 80 + i);
            service(&listen, &[(&format!("10.0.0.{}:80", 100 + i), 1)])
        })
        .collect();
    let rig = Rig::new(&config(services), GENERIC);
    for i in 1..=20u8 {
        let service = format!("10.0.0.5:{}", 80 + i);
        for _ in 0..2 {
            let mut connection = Exchange::new(&rig, &service, 1);
            connection.open();
            let backend = connection.path().backend.to_string();
            assert_eq!(backend, format!("10.0.0.{}:80", 100 + i));
            connection.close();
        }
    }
}

#[test]
fn a_flow_on_a_port_used_again_lives_as_long_as_any_other() {
    if !root_or_skip("a_flow_on_a_port_used_again_lives_as_long_as_any_other") {
        return;
    }
    let mut rig = Rig::new(&config(vec![web()]), GENERIC);
    let mut old = Exchange::new(&rig, WEB, 1);
    old.open();
    old.close();
    let mut new = Exchange::new(&rig, WEB, 1);
    new.open();
    let path = new.path();
    std::thread::sleep(Duration::from_millis(100));
    rig.datapath.sweep().unwrap();
    let mut new = Exchange::new(&rig, WEB, 1).with_path(path);
    new.forward(PSH | ACK);
    new.reply(ACK);
    let flows: u64 = rig.counters().backends.iter().map(|b| b.flows()).sum();
    assert_eq!(flows, 1);
}

/// However a client's connections end, it can have any number of them.
#[test]
fn a_client_may_use_one_port_any_number_of_times() {
    if !root_or_skip("a_client_may_use_one_port_any_number_of_times") {
        return;
    }
    let rig = Rig::new(&config(vec![web()]), GENERIC);
    for round in 0..100 {
        let mut connection = Exchange::new(&rig, WEB, 1);
        assert!(connection.try_open(), "connection {round}");
        if round % 2 == 0 {
            connection.close();
        } else {
            connection.forward(RST);
        }
    }
    assert_eq!(rig.counter(OutcomeCode::OUTCOME_REFUSED_SNAT_EXHAUSTED), 0);
}

/// The same where each comes long after the one before it has ended.
#[test]
fn a_client_may_come_back_any_number_of_times() {
    if !root_or_skip("a_client_may_come_back_any_number_of_times") {
        return;
    }
    let mut web = web();
    web.timeouts.closing = Duration::from_millis(1);
    let rig = Rig::new(&config(vec![web]), GENERIC);
    for round in 0..30 {
        let mut connection = Exchange::new(&rig, WEB, 1);
        assert!(connection.try_open(), "connection {round}");
        connection.forward(RST);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A backend has the port in TIME_WAIT and answers the SYN by an ACK of then; the client's
/// RST ends that, and its SYN comes again. From another port it may meet the same.
#[test]
fn a_syn_that_comes_again_after_a_backends_time_wait_has_its_port_of_before() {
    if !root_or_skip("a_syn_that_comes_again_after_a_backends_time_wait_has_its_port_of_before") {
        return;
    }
    let rig = Rig::new(&config(vec![web()]), GENERIC);
    let flows = || -> u64 { rig.counters().backends.iter().map(|b| b.flows()).sum() };
    let mut connection = Exchange::new(&rig, WEB, 1);
    assert!(connection.try_syn());
    let path = connection.path();
    for _ in 0..3 {
        connection.reply(ACK);
        connection.forward(RST);
        assert_eq!(flows(), 1);
        connection.forward(SYN);
    }
    assert_eq!(connection.path(), path);
    // Now it takes it; a RST is the client's word again.
    connection.reply(SYN | ACK);
    connection.forward(RST);
    assert_eq!(flows(), 0);

    // It has not answered at all: nothing is ended but the flow.
    let mut connection = Exchange::new(&rig, WEB, 2);
    assert!(connection.try_syn());
    connection.forward(RST);
    assert_eq!(flows(), 0);

    // Nor is a connection spared whose backend goes on by ACK after SYN+ACK.
    let mut connection = Exchange::new(&rig, WEB, 3);
    assert!(connection.try_syn());
    connection.reply(SYN | ACK);
    connection.reply(ACK);
    connection.forward(RST);
    assert_eq!(flows(), 0);
}
