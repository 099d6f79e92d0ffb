// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Servers that use one port at both ends, as of SIP, DNS, NTP and syslog do: what a backend
//! sends to a service is never taken for an answer to somebody's flow.

use std::net::SocketAddr;

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::datapath;
use xdp_proxy::service::{Config, PortRanges, Towards};

use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::rig::*;
use crate::common::root_or_skip;

/// Of each source address: two groups.
const PORTS: std::ops::RangeInclusive<u16> = 2000..=2039;
/// Of the backends, and of services.
const SIP: u16 = 2005;
/// Where flows have their ports, beside what they are for.
const FLOWS: [&str; 2] = ["10.0.0.5:80", "10.0.0.5:80/udp"];

/// Of services on these ports of the VIP, which is the source address too.
fn serving(listens: &[&str]) -> Config {
    let services = listens.iter().map(|listen| {
        let several = listen.contains(['-', '*']);
        let backends = match several {
            true => ["10.0.0.2", "10.0.0.3"],
            false => ["10.0.0.2:2005", "10.0.0.3:2005"],
        };
        let mut service = service(listen, &backends.map(|backend| (backend, 1)));
        service.source_ports = PortRanges::new(vec![PORTS]).unwrap();
        service
    });
    config(services.collect())
}

/// The next program, with the flows of this one.
fn follow(rig: &mut Rig, config: &Config) {
    let tick = datapath::tick().unwrap();
    let path_of = |towards: &Towards| xdp_proxy::tables::Path {
        mac: Some(backend_mac(towards.address)),
        tags: Default::default(),
        source: Some(SOURCE.into()),
        alive: true,
    };
    let of_others = |index: usize, rig: &Rig| {
        let service = &rig.tables.services[rig.tables.backends[index - 1].service];
        service.listen.ports.one() == Some(80)
    };
    let mut next = rig
        .tables
        .followed_by(config, tick, path_of, |index| of_others(index, rig))
        .unwrap();
    next.place_services(&rig.tables, config, tick);
    let mut datapath = rig.datapath.successor(&next, false).unwrap();
    datapath.write_interface(LB_MAC, MTU_BYTES).unwrap();
    datapath.sweep().unwrap();
    rig.tables = next;
    rig.datapath = datapath;
}

/// Opens flows until there is no port for one more; those of UDP, which nothing confirms so
/// soon, make room for each other until each port had its turn.
fn fill<'rig>(rig: &'rig Rig, listen: &str, first: u32) -> Vec<Exchange<'rig>> {
    let mut flows = Vec::new();
    let exhausted = OutcomeCode::OUTCOME_REFUSED_SNAT_EXHAUSTED;
    let limited = OutcomeCode::OUTCOME_DROPPED_ICMP_LIMIT;
    let refused = || rig.counter(exhausted) + rig.counter(limited);
    let before = refused();
    let most = match listen.ends_with("/udp") {
        true => 500,
        false => PORTS.len() as u32 + 1,
    };
    for number in first..first + most {
        let mut flow = Exchange::new(rig, listen, number);
        let ran = rig.run(&flow.client_frame(SYN).bytes(Sum::Complete));
        if refused() > before {
            break;
        }
        assert_eq!(ran.verdict, XDP_TX);
        flow = flow.with_path(Path::of(&ran.frame));
        flow.reply(SYN | ACK);
        flow.forward(ACK);
        flows.push(flow);
    }
    flows
}

fn ports_of(flows: &[Exchange]) -> Vec<u16> {
    let mut ports: Vec<u16> = flows.iter().map(Exchange::port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn all_but(withheld: &[u16]) -> Vec<u16> {
    PORTS.filter(|port| !withheld.contains(port)).collect()
}

#[test]
fn no_flow_gets_the_port_of_a_service_of_its_source_address() {
    if !root_or_skip("no_flow_gets_the_port_of_a_service_of_its_source_address") {
        return;
    }
    for flows in FLOWS {
        for sip in ["10.0.0.5:2005", "10.0.0.5:2005/udp"] {
            let rig = Rig::new(&serving(&[flows, sip]), GENERIC);
            assert_eq!(rig.tables.capacity(), 39);
            let opened = fill(&rig, flows, 1);
            assert_eq!(ports_of(&opened), all_but(&[SIP]), "{flows} beside {sip}");
        }
        // Nor those of a range; of what is more than half of the ports, none is withheld.
        for (sip, withheld) in [
            ("10.0.0.5:2005-2014", 2005..2015),
            ("10.0.0.5:1000-2019/udp", 2000..2020),
            ("10.0.0.5:2000-2020", 0..0),
            ("10.0.0.6:2005", 0..0),
        ] {
            let rig = Rig::new(&serving(&[flows, sip]), GENERIC);
            let opened = fill(&rig, flows, 1);
            // Where it is not withheld, no flow has its backend's port.
            let avoided = rig.tables.avoids_ports().then_some(SIP);
            let withheld: Vec<u16> = withheld.chain(avoided).collect();
            assert_eq!(
                ports_of(&opened),
                all_but(&withheld),
                "{flows} beside {sip}"
            );
        }
    }
}

#[test]
fn a_backend_is_a_client_of_a_service_on_its_own_port() {
    if !root_or_skip("a_backend_is_a_client_of_a_service_on_its_own_port") {
        return;
    }
    for (flows, sip) in FLOWS
        .into_iter()
        .zip(["10.0.0.5:2005", "10.0.0.5:2005/udp"])
    {
        let mut config = serving(&[flows, sip]);
        // Room for flows of their own.
        for service in &mut config.services {
            service.source_ports = PortRanges::new(vec![2000..=2999]).unwrap();
        }
        let rig = Rig::new(&config, GENERIC);
        for number in 1..900 {
            Exchange::new(&rig, flows, number).open();
        }
        for backend in ["10.0.0.2:2005", "10.0.0.3:2005"] {
            let mut flow = Exchange::new(&rig, sip, 0);
            flow.client = backend.parse::<SocketAddr>().unwrap();
            flow.client_mac = backend_mac(flow.client.ip());
            flow.open();
        }
    }
}

#[test]
fn a_port_that_becomes_a_services_is_given_to_no_flow_after_the_one_that_has_it() {
    let test = "a_port_that_becomes_a_services_is_given_to_no_flow_after_the_one_that_has_it";
    if !root_or_skip(test) {
        return;
    }
    let flows = FLOWS[0];
    let [alone, beside] = [&[flows][..], &[flows, "10.0.0.5:2005"]].map(serving);
    let mut rig = Rig::new(&alone, GENERIC);
    // Those that are open, by their clients' numbers.
    let (mut first, mut left) = (1, Vec::new());
    // Comes and goes: free, while a flow has it, and both.
    for (config, closes, withheld) in [
        (&beside, true, &[SIP][..]),
        (&alone, true, &[]),
        (&beside, false, &[]),
        (&beside, true, &[SIP]),
        (&alone, false, &[SIP]),
        (&alone, true, &[]),
        (&beside, false, &[]),
        (&alone, false, &[]),
        (&alone, true, &[]),
    ] {
        let opened = fill(&rig, flows, first);
        left.extend(
            (first..)
                .zip(&opened)
                .map(|(number, flow)| (number, flow.path())),
        );
        drop(opened);
        first += 100;
        follow(&mut rig, config);
        // All go on, whoever has which port.
        let mut opened: Vec<Exchange> = left
            .iter()
            .map(|(number, path)| Exchange::new(&rig, flows, *number).with_path(*path))
            .collect();
        for flow in &mut opened {
            flow.forward(PSH | ACK);
            flow.reply(PSH | ACK);
        }
        if !closes {
            continue;
        }
        opened.iter_mut().for_each(Exchange::close);
        left.clear();
        let mut again = fill(&rig, flows, first);
        assert_eq!(ports_of(&again), all_but(withheld));
        again.iter_mut().for_each(Exchange::close);
        first += 100;
    }
}

#[test]
fn on_any_port_no_flow_has_the_port_of_its_backend() {
    if !root_or_skip("on_any_port_no_flow_has_the_port_of_its_backend") {
        return;
    }
    for protocol in ["", "/udp"] {
        let rig = Rig::new(&serving(&[&format!("10.0.0.5:*{protocol}")]), GENERIC);
        assert!(rig.tables.avoids_ports());
        let mut had = Vec::new();
        for number in 0..2000 {
            // To each of the ports in turn.
            let to = 2000 + number % 40;
            let mut flow = Exchange::new(&rig, &format!("10.0.0.5:{to}{protocol}"), number);
            let ran = rig.run(&flow.client_frame(SYN).bytes(Sum::Complete));
            if ran.verdict != XDP_TX || Path::of(&ran.frame).backend.port() != to as u16 {
                continue;
            }
            flow = flow.with_path(Path::of(&ran.frame));
            assert_ne!(u32::from(flow.port()), to);
            had.push(flow.port());
            if protocol.is_empty() {
                flow.reply(RST | ACK);
            }
        }
        println!("{} flows", had.len());
        had.sort_unstable();
        had.dedup();
        assert!(had.len() > 35, "{had:?}");
    }
}
