// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Services that send from several source addresses.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::service::{PortRanges, Service};

use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::icmp::Told;
use crate::common::random::at_most;
use crate::common::rig::*;
use crate::common::root_or_skip;

const EXHAUSTED: OutcomeCode = OutcomeCode::OUTCOME_REFUSED_SNAT_EXHAUSTED;

/// The rig's routes would have 10.0.0.5 or fd00::5 as the source.
fn sending_from(listen: &str, sources: &[&str], last: u16) -> Service {
    let backend = if listen.starts_with('[') {
        "[fd00::2]:80"
    } else {
        "10.0.0.2:80"
    };
    let mut service = service(listen, &[(backend, 1)]);
    service.source = sources.iter().map(|s| s.parse().unwrap()).collect();
    service.source_ports = PortRanges::new(vec![2000..=last]).unwrap();
    service
}

#[track_caller]
fn is_refused(exchange: &Exchange) {
    let frame = exchange.client_frame(SYN);
    if exchange.service.port() == 80 {
        exchange.is_reset(&frame, EXHAUSTED);
    } else {
        exchange.is_told(&frame, Told::PortUnreachable, EXHAUSTED);
    }
}

/// How many flows each source address has.
fn shares(flows: &[Exchange]) -> HashMap<IpAddr, usize> {
    let mut shares = HashMap::new();
    for flow in flows {
        *shares.entry(flow.path().source.ip()).or_default() += 1;
    }
    shares
}

/// An open flow, confirmed by the client.
fn open<'r>(rig: &'r Rig, listen: &str, number: u32) -> Exchange<'r> {
    let mut exchange = Exchange::new(rig, listen, number);
    exchange.open();
    exchange
}

#[test]
fn every_port_of_all_sources_is_used_before_the_first_client_is_refused() {
    if !root_or_skip("every_port_of_all_sources_is_used_before_the_first_client_is_refused") {
        return;
    }
    for (listen, sources) in [
        (WEB, &["10.0.0.10", "10.0.0.11"][..]),
        (WEB, &["10.0.0.10", "10.0.0.11", "10.0.0.12"]),
        ("[fd00::5]:80", &["fd00::10", "fd00::11"]),
    ] {
        let service = sending_from(listen, sources, 2199);
        let rig = Rig::new(&config(vec![service]), GENERIC);
        let count = 200 * sources.len() as u32;
        assert_eq!(rig.tables.capacity(), count as usize);
        let mut flows: Vec<Exchange> = (0..count / 2).map(|n| open(&rig, listen, n)).collect();
        // A standard deviation is some 7 flows of the 100 that each should have.
        let half = shares(&flows);
        println!("{half:?}");
        assert_eq!(half.len(), sources.len());
        assert!(
            half.values().all(|share| (70..=130).contains(share)),
            "{half:?}"
        );

        flows.extend((count / 2..count).map(|n| open(&rig, listen, n)));
        let distinct: HashSet<SocketAddr> = flows.iter().map(|flow| flow.path().source).collect();
        assert_eq!(distinct.len(), flows.len(), "no two alike");
        let all = shares(&flows);
        assert_eq!(all.len(), sources.len());
        for source in sources {
            assert_eq!(all[&source.parse::<IpAddr>().unwrap()], 200);
        }
        is_refused(&Exchange::new(&rig, listen, count));
        is_refused(&Exchange::new(&rig, listen, count));
        for flow in &mut flows {
            flow.forward(PSH | ACK);
            flow.reply(PSH | ACK);
        }
        assert_eq!(rig.counter(EXHAUSTED), 2);
    }
}

#[test]
fn where_one_source_has_no_port_the_other_one_serves() {
    if !root_or_skip("where_one_source_has_no_port_the_other_one_serves") {
        return;
    }
    let sources = ["10.0.0.10", "10.0.0.11"];
    let rig = Rig::new(&config(vec![sending_from(WEB, &sources, 2099)]), GENERIC);
    let mut flows: Vec<Exchange> = (0..200).map(|n| open(&rig, WEB, n)).collect();
    for (source, numbers) in sources.iter().zip([1000.., 2000..]) {
        let source: IpAddr = source.parse().unwrap();
        let mut closed = HashSet::new();
        for flow in flows.iter_mut().filter(|f| f.path().source.ip() == source) {
            flow.close();
            closed.insert(flow.path().source);
        }
        flows.retain(|flow| flow.path().source.ip() != source);
        let again: Vec<Exchange> = numbers.take(100).map(|n| open(&rig, WEB, n)).collect();
        let taken: HashSet<SocketAddr> = again.iter().map(|flow| flow.path().source).collect();
        assert_eq!(taken, closed, "all of {source}, which had ports");
        flows.extend(again);
        is_refused(&Exchange::new(&rig, WEB, 3000));
    }
    assert_eq!(rig.counter(EXHAUSTED), 2);
}

#[test]
fn services_share_the_ports_of_the_sources_that_they_have_in_common() {
    if !root_or_skip("services_share_the_ports_of_the_sources_that_they_have_in_common") {
        return;
    }
    const ALT: &str = "10.0.0.5:81";
    let rig = Rig::new(
        &config(vec![
            sending_from(WEB, &["10.0.0.10", "10.0.0.11"], 2009),
            sending_from(ALT, &["10.0.0.11", "10.0.0.12"], 2009),
        ]),
        GENERIC,
    );
    assert_eq!(rig.tables.capacity(), 30);
    let mut flows: Vec<Exchange> = (0..20).map(|n| open(&rig, WEB, n)).collect();
    is_refused(&Exchange::new(&rig, WEB, 100));
    // The other service has the address that only it sends from.
    flows.extend((0..10).map(|n| open(&rig, ALT, n)));
    let late = Exchange::new(&rig, ALT, 100);
    late.is_reset(&late.client_frame(SYN), EXHAUSTED);
    let distinct: HashSet<SocketAddr> = flows.iter().map(|flow| flow.path().source).collect();
    assert_eq!(distinct.len(), 30);
    for source in ["10.0.0.10", "10.0.0.11", "10.0.0.12"] {
        assert_eq!(shares(&flows)[&source.parse::<IpAddr>().unwrap()], 10);
    }
    flows.iter_mut().for_each(Exchange::close);
}

/// Nearly as many flows to one backend as two addresses have ports from 1024 up.
#[test]
fn two_sources_have_95_of_129024_flows_in_100_and_no_two_alike() {
    if !root_or_skip("two_sources_have_95_of_129024_flows_in_100_and_no_two_alike") {
        return;
    }
    let last = 1023 + at_most(64_512) as u16;
    let mut service = sending_from(WEB, &["10.0.0.10", "10.0.0.11"], 2000);
    service.source_ports = PortRanges::new(vec![1024..=last]).unwrap();
    let count = 2 * service.source_ports.count() as u32;
    let rig = Rig::new(&config(vec![service]), WHOLE);
    let mut taken = HashSet::new();
    for number in 0..count {
        let mut flow = Exchange::new(&rig, WEB, number * 61);
        if !flow.try_open() {
            break;
        }
        assert!(taken.insert(flow.path().source), "{:?}", flow.path());
    }
    println!("{} of {count} flows to one backend", taken.len());
    assert!(taken.len() as u32 / 95 >= count / 100);
    let backend = rig.counters().backends[0];
    assert_eq!(backend.flows_begun, taken.len() as u64);
    assert_eq!(backend.flows_ended, 0);
}
