// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The cases of ns/packet, and the tables that they run on.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use anyhow::{Result, ensure};
use xdp_proxy::abi::{self, OutcomeCode};
use xdp_proxy::datapath::{Hook, Settings};
use xdp_proxy::service::{Protocol, Service};
use xdp_proxy::status::counted;

use crate::Effort;
use crate::common::frame::Sum;
use crate::common::rig::*;
use crate::packets::{Case, Figure, SharedRig, establish};
use crate::stream::{Kind, SEGMENT, Stream};

const FORWARDED: OutcomeCode = OutcomeCode::OUTCOME_FORWARDED;
const RETURNED: OutcomeCode = OutcomeCode::OUTCOME_RETURNED;
const PASSED: OutcomeCode = OutcomeCode::OUTCOME_PASSED;

pub const MANY_FLOWS: u32 = 32_768;
const MANY: usize = 1000;
/// New flows that are open at a time, a tenth of the 36,280 that fit.
const NEW_FLOWS: u32 = 3628;
/// So the names of those cases end that have per-flow counters, as is the default.
pub const COUNTED: &str = ", packets counted";

const UDP: Kind = Kind {
    protocol: Protocol::Udp,
    ..SEGMENT
};
const V6: Kind = Kind {
    v6: true,
    ..SEGMENT
};

const VLAN: u16 = 100;
const VLAN_HANDLED: Settings = Settings {
    handles_vlan: true,
    ..WHOLE
};

/// Clients and backends are in one VLAN, so that frames keep their length.
fn vlan_rig() -> SharedRig {
    let mut tables = tables(&config(two()));
    for backend in &mut tables.backends {
        backend.path.tags[0] = abi::vlan_tag(0x8100, VLAN);
    }
    shared(Rig::with_tables(tables, VLAN_HANDLED))
}

fn backend(number: usize) -> String {
    let [high, low] = (number as u16).to_be_bytes();
    format!("10.1.{high}.{low}:80")
}

fn service_of(listen: &str, backends: usize) -> Service {
    let names: Vec<String> = (1..=backends).map(backend).collect();
    let backends: Vec<(&str, u16)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    service(listen, &backends)
}

fn rig(services: Vec<Service>, settings: Settings) -> SharedRig {
    shared(Rig::new(&config(services), settings))
}

fn shared(rig: Rig) -> SharedRig {
    Rc::new(RefCell::new(rig))
}

/// One TCP service over IPv4, checksums whole.
pub fn plain_rig(backends: usize) -> SharedRig {
    rig(vec![service_of("10.0.0.5:80", backends)], WHOLE)
}

/// The same with per-flow counters.
fn counted_rig() -> SharedRig {
    let mut config = config(two());
    config.flow_counters = true;
    shared(Rig::new(&config, WHOLE))
}

/// As the load balancer is loaded on a card in native mode, and on a veth in
/// generic mode.
pub fn live_rig(mode: Hook, backends: usize) -> SharedRig {
    let settings = if mode == Hook::Native { WHOLE } else { GENERIC };
    rig(vec![service_of("10.0.0.5:80", backends)], settings)
}

fn two() -> Vec<Service> {
    vec![service_of("10.0.0.5:80", 2)]
}

/// With the first flow established, which is all that most cases need.
fn with_a_flow(services: Vec<Service>, settings: Settings, kind: Kind) -> Result<SharedRig> {
    let rig = rig(services, settings);
    establish(&rig.borrow(), kind, 1)?;
    Ok(rig)
}

fn arp() -> Stream {
    let mut frame = [&[0xff; 6][..], &CLIENT_MAC, &[8, 6]].concat();
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(CLIENT_MAC);
    frame.extend([10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 10, 0, 0, 5]);
    Stream::of(frame)
}

type Group = fn(&Effort) -> Result<Vec<Case>>;

/// The groups of cases, each with words that its cases' names begin with.
const GROUPS: [(&[&str], Group); 5] = [
    (&["established", "reply"], established),
    (&["new flow", "flow's end"], new_flows),
    (&["not ours", "UDP", "IPv6, "], other_packets),
    (
        &[
            "1000 services",
            "10 backends",
            "100 backends",
            "1000 backends",
        ],
        other_tables,
    ),
    (
        &["IPv6 and UDP", "VLAN", "partial sums", "native"],
        features,
    ),
];

/// The cases with the wanted words in their names; none else is prepared.
pub fn all(effort: &Effort) -> Result<Vec<Case>> {
    let wanted = effort.cases.as_str();
    let mut cases = Vec::new();
    for (beginnings, group) in GROUPS {
        let may_be = |word: &&str| word.contains(wanted) || wanted.starts_with(word);
        if beginnings.iter().any(may_be) {
            cases.extend(group(effort)?);
        }
    }
    cases.retain(|case| case.name.contains(wanted));
    ensure!(!cases.is_empty(), "CASES={wanted}: no case is called so");
    Ok(cases)
}

/// On one rig with all of the flows: the packets use the first so many.
fn established(effort: &Effort) -> Result<Vec<Case>> {
    let rig = plain_rig(2);
    let replies = establish(&rig.borrow(), SEGMENT, MANY_FLOWS)?;
    let mut counts = vec![1, 10, 100, 1000, 4096, 16_384, MANY_FLOWS];
    if effort.quick {
        counts = vec![1, 1000, MANY_FLOWS];
    }
    let mut cases: Vec<Case> = counts
        .iter()
        .map(|flows| {
            let name = format!("established, {}", counted((*flows).into(), "flow"));
            Case::new(name, &rig, SEGMENT.of_clients(*flows), FORWARDED)
        })
        .collect();
    for flows in [1, MANY_FLOWS] {
        let stream = SEGMENT.of_backends(&replies[..flows as usize]);
        let name = format!("reply, {}", counted(flows.into(), "flow"));
        cases.push(Case::new(name, &rig, stream, RETURNED));
    }
    let rig = counted_rig();
    establish(&rig.borrow(), SEGMENT, MANY_FLOWS)?;
    for flows in [1, MANY_FLOWS] {
        let name = format!("established, {}{COUNTED}", counted(flows.into(), "flow"));
        let stream = SEGMENT.of_clients(flows);
        cases.push(Case::new(name, &rig, stream, FORWARDED));
    }
    Ok(cases)
}

/// So full with `open` flows that packets will open.
fn filled(rig: SharedRig, percent: u32, open: u32) -> Result<SharedRig> {
    let full = rig.borrow().tables.capacity() as u32 * percent / 100;
    establish(&rig.borrow(), SEGMENT, full - open)?;
    Ok(rig)
}

fn new_flows(_: &Effort) -> Result<Vec<Case>> {
    let stream = SEGMENT.syn().of_clients(NEW_FLOWS).ended_by(SEGMENT.rst());
    let case = |name: String, rig: &SharedRig, figure: Figure| Case {
        figure,
        ..Case::new(name, rig, stream.clone(), FORWARDED)
    };
    let mut cases = Vec::new();
    for percent in [50, 90] {
        let table = format!("table {percent} % full");
        let steady = filled(plain_rig(2), percent, NEW_FLOWS)?;
        // They are opened and ended: half of them on average.
        let paused = filled(plain_rig(2), percent, NEW_FLOWS / 2)?;
        cases.extend([
            case(format!("new flow, {table}"), &steady, Figure::Opening),
            case(
                format!("flow's end by RST, {table}"),
                &steady,
                Figure::Ending,
            ),
            case(
                format!("new flow after a pause, {table}"),
                &paused,
                Figure::AfterPause,
            ),
        ]);
    }
    let counted = filled(counted_rig(), 50, NEW_FLOWS)?;
    let name = format!("new flow, table 50 % full{COUNTED}");
    cases.push(case(name, &counted, Figure::Opening));
    Ok(cases)
}

fn other_packets(_: &Effort) -> Result<Vec<Case>> {
    let rig = with_a_flow(two(), WHOLE, SEGMENT)?;
    let to = |address: SocketAddr| SEGMENT.to(address, 1);
    let stranger = SocketAddr::new(Ipv4Addr::new(10, 0, 0, 77).into(), 80);
    let port = SocketAddr::new(VIP.into(), 22);
    let udp = with_a_flow(vec![service_of("10.0.0.5:80/udp", 2)], WHOLE, UDP)?;
    let six = service("[fd00::5]:80", &[("[fd00::2]:80", 1), ("[fd00::3]:80", 1)]);
    let v6 = rig_of_many(vec![six], V6)?;
    Ok(vec![
        Case::new("not ours: another address", &rig, to(stranger), PASSED),
        Case::new("not ours: another port of the VIP", &rig, to(port), PASSED),
        Case::new("not ours: ARP", &rig, arp(), PASSED),
        Case::new("UDP, 1 flow", &udp, UDP.of_clients(1), FORWARDED),
        Case::new("IPv6, 1 flow", &v6, V6.of_clients(1), FORWARDED),
        Case::new(
            "IPv6, 32768 flows",
            &v6,
            V6.of_clients(MANY_FLOWS),
            FORWARDED,
        ),
    ])
}

fn rig_of_many(services: Vec<Service>, kind: Kind) -> Result<SharedRig> {
    let rig = rig(services, WHOLE);
    establish(&rig.borrow(), kind, MANY_FLOWS)?;
    Ok(rig)
}

fn other_tables(effort: &Effort) -> Result<Vec<Case>> {
    let mut services = two();
    for port in 1..MANY {
        services.push(service_of(&format!("10.0.0.5:{}", 8000 + port), 2));
    }
    let services = with_a_flow(services, WHOLE, SEGMENT)?;
    let stream = SEGMENT.of_clients(1);
    let mut cases = vec![Case::new(
        "1000 services, 1 flow",
        &services,
        stream.clone(),
        FORWARDED,
    )];
    let counts = if effort.quick {
        &[MANY][..]
    } else {
        &[10, 100, MANY]
    };
    for backends in counts.iter().copied() {
        let rig = plain_rig(backends);
        establish(&rig.borrow(), SEGMENT, MANY_FLOWS)?;
        if backends == MANY {
            let name = format!("{backends} backends, 1 flow");
            cases.push(Case::new(name, &rig, stream.clone(), FORWARDED));
        }
        let name = format!("{backends} backends, {MANY_FLOWS} flows");
        cases.push(Case::new(
            name,
            &rig,
            SEGMENT.of_clients(MANY_FLOWS),
            FORWARDED,
        ));
    }
    Ok(cases)
}

fn features(_: &Effort) -> Result<Vec<Case>> {
    let partial = Kind {
        sum: Sum::Partial,
        ..SEGMENT
    };
    let full = Kind {
        payload_bytes: 1448,
        ..partial
    };
    let tagged = Kind {
        vlan: Some(VLAN),
        ..SEGMENT
    };
    let mut both = two();
    both.push(service("[fd00::5]:80", &[("[fd00::2]:80", 1)]));
    both.push(service_of("10.0.0.5:80/udp", 2));

    let generic = with_a_flow(two(), GENERIC, SEGMENT)?;
    let native = with_a_flow(two(), NATIVE, SEGMENT)?;
    let vlan = vlan_rig();
    establish(&vlan.borrow(), tagged, 1)?;
    let untagged = with_a_flow(two(), VLAN_HANDLED, SEGMENT)?;
    let both = with_a_flow(both, WHOLE, SEGMENT)?;
    let case = |name: &str, rig: &SharedRig, kind: Kind| {
        Case::new(name, rig, kind.of_clients(1), FORWARDED)
    };
    Ok(vec![
        case("IPv6 and UDP served as well", &both, SEGMENT),
        case("VLAN handled, a tag", &vlan, tagged),
        case("VLAN handled, no tag", &untagged, SEGMENT),
        case("partial sums looked for, whole sum", &generic, SEGMENT),
        case("partial sums looked for, partial sum", &generic, partial),
        case("native: partial sum completed, 20 bytes", &native, partial),
        case("native: partial sum completed, 1468 bytes", &native, full),
    ])
}
