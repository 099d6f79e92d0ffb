// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Flows that go on where the source addresses change, from one program to the next.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::datapath::{self, Datapath};
use xdp_proxy::service::{Config, PortRanges, Towards};

use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::rig::*;
use crate::common::root_or_skip;

const FIRST: u16 = 2000;

fn sending_from(sources: &[&str], last: u16) -> Config {
    let mut service = service(WEB, &[("10.0.0.2:80", 1), ("10.0.0.3:80", 1)]);
    service.source = sources.iter().map(|s| s.parse().unwrap()).collect();
    service.source_ports = PortRanges::new(vec![FIRST..=last]).unwrap();
    config(vec![service])
}

fn from_ports(ports: &[std::ops::RangeInclusive<u16>]) -> Config {
    let mut config = sending_from(&["10.0.0.10"], 2999);
    config.services[0].source_ports = PortRanges::new(ports.to_vec()).unwrap();
    config
}

/// The next program with the flows of this one, which is returned. Sources that are
/// configured no more are given up, or keep their flows.
fn follow(rig: &mut Rig, config: &Config, gives_up: bool) -> Datapath {
    let tick = datapath::tick().unwrap();
    let path_of = |towards: &Towards| xdp_proxy::tables::Path {
        mac: Some(backend_mac(towards.address)),
        tags: Default::default(),
        source: Some(SOURCE.into()),
        alive: true,
    };
    let mut next = rig
        .tables
        .followed_by(config, tick, path_of, |_| true)
        .unwrap();
    let leaving = next.leaving_sources().into_iter();
    let leaving: Vec<usize> = leaving.map(|(index, _)| index).collect();
    next.give_up(if gives_up { &leaving } else { &[] }).unwrap();
    next.place_services(&rig.tables, config, tick);
    let mut datapath = rig.datapath.successor(&next, false).unwrap();
    datapath.write_interface(LB_MAC, MTU_BYTES).unwrap();
    rig.tables = next;
    std::mem::replace(&mut rig.datapath, datapath)
}

/// A client's number and the path of its flow.
type Known = (u32, Path);

fn open(rig: &Rig, numbers: std::ops::Range<u32>) -> Vec<Known> {
    let opened = numbers.map(|number| {
        let mut flow = Exchange::new(rig, WEB, number);
        flow.open();
        (number, flow.path())
    });
    opened.collect()
}

/// Each of them goes on, both ways.
#[track_caller]
fn all_go_on(rig: &Rig, flows: &[Known]) {
    for (number, path) in flows {
        let mut flow = Exchange::new(rig, WEB, *number).with_path(*path);
        flow.forward(PSH | ACK);
        flow.reply(PSH | ACK);
    }
}

fn sources_of(flows: &[Known]) -> BTreeSet<String> {
    let addresses = flows.iter().map(|(_, path)| path.source.ip().to_string());
    addresses.collect()
}

/// The tables agree: each port of a source is free or has one of these flows.
#[track_caller]
fn agree(rig: &Rig, flows: &[Known]) {
    let distinct: HashSet<SocketAddr> = flows.iter().map(|(_, path)| path.source).collect();
    assert_eq!(distinct.len(), flows.len(), "no two flows have one port");
    for (index, source) in rig.tables.sources_in_use() {
        let mut ports = rig.datapath.free_ports(index).unwrap();
        let here = distinct.iter().filter(|end| end.ip() == source.address);
        ports.extend(here.clone().map(|end| end.port()));
        ports.sort_unstable();
        assert!(ports.iter().copied().eq(source.ports.iter()), "{ports:?}");
        let ports = rig.datapath.ports_with_flows(index).unwrap();
        assert_eq!(ports.len(), here.count());
    }
    let counted: u64 = rig.counters().backends.iter().map(|b| b.flows()).sum();
    assert_eq!(counted, flows.len() as u64, "flows begun less flows ended");
}

/// A few seconds pass after the next program is there.
fn seconds_pass(rig: &mut Rig) {
    for _ in 0..3 {
        rig.datapath.sweep().unwrap();
    }
}

#[test]
fn flows_go_on_where_sources_are_added() {
    if !root_or_skip("flows_go_on_where_sources_are_added") {
        return;
    }
    let mut rig = Rig::new(&sending_from(&["10.0.0.10"], 2999), GENERIC);
    let mut flows = open(&rig, 0..200);
    let sources = ["10.0.0.10", "10.0.0.11", "fd00::10", "10.0.0.12"];
    for (count, number) in [(2, 1000), (3, 2000), (4, 3000)] {
        let wanted: Vec<&str> = sources[..count].to_vec();
        let v4: Vec<&str> = wanted
            .iter()
            .copied()
            .filter(|s| !s.contains(':'))
            .collect();
        let mut config = sending_from(&v4, 2999);
        if count > 2 {
            let mut v6 = service("[fd00::5]:80", &[("[fd00::2]:80", 1)]);
            v6.source = vec!["fd00::10".parse().unwrap()];
            v6.source_ports = PortRanges::new(vec![FIRST..=2999]).unwrap();
            config.services.push(v6);
        }
        let mut old = follow(&mut rig, &config, false);
        // Begun by the program before, while the next one is there already.
        std::mem::swap(&mut rig.datapath, &mut old);
        flows.extend(open(&rig, number..number + 50));
        std::mem::swap(&mut rig.datapath, &mut old);
        drop(old);
        all_go_on(&rig, &flows);
        flows.extend(open(&rig, number + 50..number + 100));
        all_go_on(&rig, &flows);
        seconds_pass(&mut rig);
        all_go_on(&rig, &flows);
        agree(&rig, &flows);
        let latest = open(&rig, number + 100..number + 150);
        assert_eq!(
            sources_of(&latest).len(),
            v4.len(),
            "{:?}",
            sources_of(&latest)
        );
        flows.extend(latest);
    }
    agree(&rig, &flows);
    for (number, path) in &flows {
        Exchange::new(&rig, WEB, *number).with_path(*path).close();
    }
    agree(&rig, &[]);
}

#[test]
fn flows_of_a_source_that_leaves_go_on_and_none_begin_there() {
    if !root_or_skip("flows_of_a_source_that_leaves_go_on_and_none_begin_there") {
        return;
    }
    let both = sending_from(&["10.0.0.10", "10.0.0.11"], 2999);
    for (left, index) in [("10.0.0.10", 1), ("10.0.0.11", 0)] {
        let mut rig = Rig::new(&both, GENERIC);
        let mut flows = open(&rig, 0..200);
        drop(follow(&mut rig, &sending_from(&[left], 2999), false));
        all_go_on(&rig, &flows);
        seconds_pass(&mut rig);
        let latest = open(&rig, 1000..1100);
        assert_eq!(sources_of(&latest), [left.to_owned()].into());
        flows.extend(latest);
        all_go_on(&rig, &flows);
        agree(&rig, &flows);
        // It is configured again, with the flows that it has.
        drop(follow(&mut rig, &both, false));
        all_go_on(&rig, &flows);
        assert_eq!(sources_of(&open(&rig, 2000..2100)).len(), 2);
        assert_eq!(rig.tables.sources.len(), 2, "{index}");
    }
}

#[test]
fn flows_of_a_source_that_is_given_up_end_with_a_reset_and_are_counted() {
    if !root_or_skip("flows_of_a_source_that_is_given_up_end_with_a_reset_and_are_counted") {
        return;
    }
    let both = sending_from(&["10.0.0.10", "10.0.0.11"], 2999);
    for (stays, given_up) in [("10.0.0.10", 1), ("10.0.0.11", 0)] {
        let mut rig = Rig::new(&both, GENERIC);
        let flows = open(&rig, 0..200);
        let stay: IpAddr = stays.parse().unwrap();
        let (mut staying, gone): (Vec<Known>, Vec<Known>) =
            flows.iter().partition(|(_, path)| path.source.ip() == stay);
        assert!(staying.len() > 60 && gone.len() > 60);
        drop(follow(&mut rig, &sending_from(&[stays], 2999), true));
        all_go_on(&rig, &staying);
        for (number, path) in &gone {
            let flow = Exchange::new(&rig, WEB, *number).with_path(*path);
            let code = OutcomeCode::OUTCOME_REFUSED_NO_FLOW;
            flow.is_reset(&flow.client_frame(PSH | ACK), code);
            flow.is_passed(&flow.backend_frame(PSH | ACK).bytes(Sum::Complete));
        }
        seconds_pass(&mut rig);
        agree(&rig, &staying);
        // Its place is another one's, whose ports are all free.
        drop(follow(
            &mut rig,
            &sending_from(&[stays, "10.0.0.12"], 2999),
            true,
        ));
        let twelve: IpAddr = "10.0.0.12".parse().unwrap();
        assert_eq!(rig.tables.source_index(twelve), Some(given_up));
        staying.extend(open(&rig, 1000..1200));
        all_go_on(&rig, &staying);
        seconds_pass(&mut rig);
        all_go_on(&rig, &staying);
        agree(&rig, &staying);
    }
}

/// By the ports that they have and not.
fn split(flows: Vec<Known>, ports: &PortRanges) -> (Vec<Known>, Vec<Known>) {
    let ports: HashSet<u16> = ports.iter().collect();
    let has_one = |(_, path): &Known| ports.contains(&path.source.port());
    flows.into_iter().partition(has_one)
}

#[test]
fn flows_go_on_where_the_source_ports_change_and_those_outside_end_with_a_reset() {
    let test = "flows_go_on_where_the_source_ports_change_and_those_outside_end_with_a_reset";
    if !root_or_skip(test) {
        return;
    }
    for (old, new) in [
        // Fewer, more, others, and others within the same groups.
        (vec![2000..=2999], vec![2000..=2509]),
        (vec![2000..=2509], vec![1500..=2999, 5000..=8000]),
        (vec![2000..=2999], vec![2507..=3999]),
        (
            vec![2000..=2999],
            vec![2005..=2605, 2608..=2609, 2610..=3003],
        ),
        (vec![2003..=2016], vec![2001..=2015]),
    ] {
        let mut rig = Rig::new(&from_ports(&old), GENERIC);
        let count = if old[0].len() > 100 { 300 } else { 10 };
        let mut flows = open(&rig, 0..count);
        for (round, ports) in [&new, &old, &new].into_iter().enumerate() {
            let number = 1000 * (round as u32 + 1);
            let config = from_ports(ports);
            let ours = &config.services[0].source_ports;
            let mut before = follow(&mut rig, &config, false);
            // Begun by the program before, while the next one is there already.
            std::mem::swap(&mut rig.datapath, &mut before);
            flows.extend(open(&rig, number..number + 1));
            std::mem::swap(&mut rig.datapath, &mut before);
            drop(before);
            let gone;
            (flows, gone) = split(flows, ours);
            all_go_on(&rig, &flows);
            rig.datapath.sweep().unwrap();
            println!("{ports:?}: {} go on, {} end", flows.len(), gone.len());
            for (number, path) in &gone {
                let flow = Exchange::new(&rig, WEB, *number).with_path(*path);
                let code = OutcomeCode::OUTCOME_REFUSED_NO_FLOW;
                flow.is_reset(&flow.client_frame(PSH | ACK), code);
            }
            all_go_on(&rig, &flows);
            agree(&rig, &flows);
            seconds_pass(&mut rig);
            all_go_on(&rig, &flows);
            let latest = open(&rig, number + 10..number + 10 + count / 10);
            flows.extend(&latest);
            let (all, none) = split(flows, ours);
            assert_eq!(none, [], "only of these");
            flows = all;
            all_go_on(&rig, &flows);
            agree(&rig, &flows);
        }
        // Once all that are left are found by the ports of now, those of before are forgotten.
        assert!(rig.tables.is_relisted());
        let needed = rig.datapath.needs_earlier(0).unwrap();
        for (number, path) in flows.drain(..) {
            Exchange::new(&rig, WEB, number).with_path(path).close();
        }
        assert!(!rig.datapath.needs_earlier(0).unwrap());
        println!("ports of before were needed: {needed}");
        rig.tables.forget_earlier(|_| Ok(false)).unwrap();
        // All ports are there for who comes now.
        drop(follow(&mut rig, &from_ports(&[4000..=4099]), false));
        seconds_pass(&mut rig);
        let last = open(&rig, 9000..9090);
        all_go_on(&rig, &last);
        agree(&rig, &last);
    }
}
