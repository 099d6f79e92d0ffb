// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The skeleton that libbpf-cargo generates, and what surrounds it: layout
//! asserts, byte order, and the hashes that both sides must compute alike. The
//! only place where `to_be` and `from_be` appear.

#![allow(clippy::all, missing_docs, dead_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::service::{Health, Listen, ListenPorts, Protocol, SOURCES_MAX, Scheduler, Service};

include!(concat!(env!("OUT_DIR"), "/xdp_proxy.skel.rs"));

pub use types::outcome as OutcomeCode;
pub use types::{
    address, backend, backend_counters, flow, flow_counters, group, ip_address, listener,
    neighbour, next_hop, port_map, ports, route, service, source_list,
};

use types::constant;

/// Of the maps: those of another one are never taken over.
pub const LAYOUT: u32 = constant::LAYOUT.0;
/// Places where an address or a service may be.
pub const PROBES: usize = constant::PROBES.0 as usize;
/// Slots of one source address.
pub const PORTS: usize = constant::PORTS.0 as usize;
/// Bits of a slot that are the port.
pub const PORT_BITS: u32 = constant::PORT_BITS.0;
/// Slots that are a group.
pub const GROUP_SLOTS: usize = constant::GROUP_SLOTS.0 as usize;
/// Bits of a group's index that are not its source address's.
pub const GROUP_BITS: u32 = constant::GROUP_BITS.0;
/// Source addresses, whose lists of groups come before those of earlier.
pub const SOURCES: usize = constant::SOURCES.0 as usize;
/// Slots that one run of the sweep program looks at.
pub const SWEEP_ROUND: u32 = constant::SWEEP_ROUND.0;
/// Routes to clients, at most.
pub const ROUTES_MAX: usize = constant::ROUTES_MAX.0 as usize;
/// Of them, those that are in a list.
pub const ROUTES: usize = constant::ROUTES.0 as usize;
/// Next hops of all routes to clients.
pub const NEXT_HOPS: usize = constant::NEXT_HOPS.0 as usize;
/// Next hops of one route.
pub const HOPS_OF_ROUTE: usize = constant::HOPS_OF_ROUTE.0 as usize;
/// Neighbours on link that are known.
pub const NEIGHBOURS: usize = constant::NEIGHBOURS.0 as usize;
/// The way to a client of which nothing is known.
pub const WAY_UNKNOWN: u32 = types::way::WAY_UNKNOWN.0;
/// That of a client in a network of the interface.
pub const WAY_ON_LINK: u32 = types::way::WAY_ON_LINK.0;
/// What the regroup program returns when it could do nothing.
pub const REGROUP_AGAIN: u32 = constant::REGROUP_AGAIN.0;
/// VLAN tags of a frame, at most.
pub const VLAN_TAGS: usize = constant::VLAN_TAGS.0 as usize;
/// Datagrams in fragments that are remembered.
pub const FRAGMENTED: usize = constant::FRAGMENTED.0 as usize;
/// The name of the program in the kernel, by which it is known again.
pub const PROGRAM_NAME: &str = "xdp_proxy";

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

// SAFETY: all of them are `repr(C)`, of fixed-width integers and arrays of
// them with explicit padding, so that every bit pattern is a value.
unsafe impl plain::Plain for address {}
unsafe impl plain::Plain for listener {}
unsafe impl plain::Plain for service {}
unsafe impl plain::Plain for backend {}
unsafe impl plain::Plain for backend_counters {}
unsafe impl plain::Plain for flow_counters {}
unsafe impl plain::Plain for ip_address {}
unsafe impl plain::Plain for port_map {}
unsafe impl plain::Plain for ports {}
unsafe impl plain::Plain for flow {}
unsafe impl plain::Plain for group {}
unsafe impl plain::Plain for neighbour {}

const _: () = {
    assert!(size_of::<address>() == 24);
    assert!(size_of::<listener>() == 8);
    assert!(size_of::<service>() == 36 + SOURCES);
    assert!(SOURCES == SOURCES_MAX);
    assert!(constant::MAGLEV_ENTRIES.0 as usize == crate::maglev::TABLE_SIZE);
    assert!(size_of::<backend>() == 52);
    assert!(size_of::<port_map>() == 2 * PORTS);
    assert!(size_of::<ip_address>() == 16);
    assert!(size_of::<flow>() == 64);
    assert!(size_of::<group>() == 24 + 2 * GROUP_SLOTS);
    assert!(size_of::<ports>() == 4 + 2 * (PORTS.div_ceil(GROUP_SLOTS) + 1));
    assert!(PORTS.div_ceil(GROUP_SLOTS) <= 1 << GROUP_BITS);
    assert!(size_of::<backend_counters>() == 48);
    assert!(size_of::<flow_counters>() == 32);
    assert!(size_of::<route>() == 40);
    assert!(size_of::<next_hop>() == 10);
    assert!(size_of::<types::route_key>() == size_of::<RouteKey>());
    assert!(size_of::<types::neighbour_key>() == size_of::<NeighbourKey>());
    assert!(size_of::<neighbour>() == 16);
    assert!(std::mem::offset_of!(flow, seen) == 36);
};

/// An address as the packet carries it: IPv4 in the first of four words.
pub fn address_words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(v4) => [u32::from(v4).to_be(), 0, 0, 0],
        IpAddr::V6(v6) => {
            let bits = u128::from(v6);
            [96, 64, 32, 0].map(|shift| ((bits >> shift) as u32).to_be())
        }
    }
}

fn family(address: IpAddr) -> u16 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// A duration as the datapath counts time: in ticks of the kernel's clock,
/// at least one.
pub fn jiffies(duration: Duration, tick: Duration) -> u32 {
    let ticks = duration.as_nanos().div_ceil(tick.as_nanos().max(1));
    u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
}

/// `answers_echo`: a VIP that the host itself does not own.
pub fn address_entry(
    address: IpAddr,
    vip: Option<usize>,
    source: Option<usize>,
    answers_echo: bool,
) -> address {
    address {
        address: address_words(address),
        vip: vip.map_or(0, |index| index as u16 + 1),
        source: source.map_or(0, |index| index as u16 + 1),
        family: family(address),
        answers_echo: answers_echo.into(),
    }
}

/// Where a service is found; port 0: `target` is a port map's index, not the
/// service's.
pub fn listener_entry(vip: usize, port: u16, protocol: Protocol, target: usize) -> listener {
    listener {
        vip: vip as u16 + 1,
        port: port.to_be(),
        protocol: protocol_number(protocol),
        pad: 0,
        target: target as u16,
    }
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// What the flows of a service keep to; `maglev` and `sources` are indexes, none of
/// the latter: the source that reaches the backend.
pub fn service_entry(
    of: &Service,
    vip: usize,
    maglev: usize,
    sources: &[usize],
    tick: Duration,
) -> service {
    let mut source = [0; SOURCES_MAX];
    for (place, index) in source.iter_mut().zip(sources) {
        *place = *index as u8;
    }
    let (first_port, last_port) = of.listen.ports.range().into_inner();
    service {
        maglev: maglev as u32,
        members: 0,
        scheduler: match of.scheduler {
            Scheduler::Maglev => types::scheduler::SCHEDULER_MAGLEV,
            Scheduler::SourceHash => types::scheduler::SCHEDULER_SOURCE_HASH,
            Scheduler::RoundRobin => types::scheduler::SCHEDULER_ROUND_ROBIN,
            Scheduler::Random => types::scheduler::SCHEDULER_RANDOM,
            Scheduler::LeastConnections => types::scheduler::SCHEDULER_LEAST_CONNECTIONS,
        }
        .0 as u16,
        source_count: sources.len() as u16,
        unanswered: jiffies(of.timeouts.unanswered, tick),
        established: jiffies(of.timeouts.established, tick),
        half_closed: jiffies(of.timeouts.half_closed, tick),
        closing: jiffies(of.timeouts.closing, tick),
        vip: vip as u16 + 1,
        first_port,
        last_port,
        protocol: protocol_number(of.listen.protocol).into(),
        source,
    }
}

/// What a service listens on, whose VIP this is.
pub fn listen_of(entry: &service, vip: IpAddr) -> Listen {
    Listen {
        vip,
        ports: ListenPorts::new(entry.first_port, entry.last_port),
        protocol: match entry.protocol {
            17 => Protocol::Udp,
            _ => Protocol::Tcp,
        },
    }
}

pub fn scheduler_of(entry: &service) -> Scheduler {
    match types::scheduler(entry.scheduler.into()) {
        types::scheduler::SCHEDULER_SOURCE_HASH => Scheduler::SourceHash,
        types::scheduler::SCHEDULER_ROUND_ROBIN => Scheduler::RoundRobin,
        types::scheduler::SCHEDULER_RANDOM => Scheduler::Random,
        types::scheduler::SCHEDULER_LEAST_CONNECTIONS => Scheduler::LeastConnections,
        _ => Scheduler::Maglev,
    }
}

/// What a flow's packets have shown of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Unconfirmed,
    Established,
    Closing,
}

/// Every state, and its word.
pub const STATES: [(&str, State); 3] = [
    ("unconfirmed", State::Unconfirmed),
    ("established", State::Established),
    ("closing", State::Closing),
];

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = STATES.iter().find(|(_, state)| state == self);
        f.write_str(word.map_or("", |(word, _)| word))
    }
}

/// `None`: there is no flow in the record.
pub fn state_of(flow: &flow) -> Option<State> {
    if flow.family == 0 {
        return None;
    }
    if flow.retired != 0 {
        return Some(State::Closing);
    }
    match types::flow_state(flow.state.into()) {
        types::flow_state::FLOW_UNCONFIRMED => Some(State::Unconfirmed),
        types::flow_state::FLOW_ESTABLISHED => Some(State::Established),
        _ => None,
    }
}

/// Bits of `flow_counters` that packets are counted in.
const PACKET_BITS: u32 = 48;

impl flow_counters {
    /// When the flow began, in jiffies; `None`: nobody has counted.
    pub fn begun(&self) -> Option<u32> {
        let [high, low] =
            [self.forwarded_packets, self.returned_packets].map(|word| word >> PACKET_BITS);
        let begun = (high << 16 | low) as u32;
        (begun != 0).then_some(begun)
    }

    /// How many packets to the backend and from it.
    pub fn packets(&self) -> [u64; 2] {
        [self.forwarded_packets, self.returned_packets].map(|word| word & ((1 << PACKET_BITS) - 1))
    }
}

/// A flow's client, its port, and the port that it connects to.
pub fn ends_of(flow: &flow, vip: IpAddr) -> (IpAddr, u16, u16) {
    let client = address_from(flow.client, vip.is_ipv4());
    let ports = [flow.client_port, flow.service_port].map(u16::from_be);
    (client, ports[0], ports[1])
}

/// The address that [`address_words`] made the words of.
pub fn address_from(words: [u32; 4], is_ipv4: bool) -> IpAddr {
    let words = words.map(u32::from_be);
    if is_ipv4 {
        return Ipv4Addr::from(words[0]).into();
    }
    let bits = words
        .iter()
        .fold(0, |bits, word| bits << 32 | u128::from(*word));
    Ipv6Addr::from(bits).into()
}

/// The address and port of a backend, which is of its VIP's family.
pub fn address_of(entry: &backend, vip: IpAddr) -> (IpAddr, u16) {
    let address = address_from(entry.address, vip.is_ipv4());
    (address, u16::from_be(entry.port))
}

/// A VLAN tag as a frame carries it: tag protocol identifier and control information.
pub fn vlan_tag(protocol: u16, id: u16) -> u32 {
    (u32::from(protocol) << 16 | u32::from(id)).to_be()
}

/// A VLAN as a flow keeps it: `pack_tag` of src/bpf/link.h, without a priority.
pub fn packed_vlan(protocol: u16, id: u16) -> u16 {
    const ETH_P_8021AD: u16 = 0x88a8;
    const VLAN_8021AD: u16 = 0x1000;
    match protocol {
        ETH_P_8021AD => id | VLAN_8021AD,
        _ => id,
    }
}

/// The bytes of `route_key`: how many bits count, the fib, the family, the address.
pub type RouteKey = [u8; 24];
/// The bytes of `neighbour_key`: the address, the family.
pub type NeighbourKey = [u8; 20];

/// The way by so many next hops from the one with this index on.
pub fn way_by(first: usize, count: usize) -> u32 {
    (count << constant::WAY_COUNT_SHIFT.0 | first) as u32
}

/// A route to clients whose addresses are this one where the mask has ones.
pub fn route_entry(address: IpAddr, mask: IpAddr, fib: u16, way: u32) -> route {
    route {
        address: address_words(address),
        mask: address_words(mask),
        family: family(address),
        fib,
        way,
    }
}

/// The same in the trie: so many bits of the address count.
pub fn route_key(address: IpAddr, bits: u8, fib: u16) -> RouteKey {
    let mut key = RouteKey::default();
    let count = u32::from(bits) + 8 * 4;
    key[..4].copy_from_slice(&count.to_ne_bytes());
    key[4..6].copy_from_slice(&fib.to_ne_bytes());
    key[6..8].copy_from_slice(&family(address).to_ne_bytes());
    key[8..].copy_from_slice(&address_bytes(address));
    key
}

/// Where a client on link is found.
pub fn neighbour_key(address: IpAddr) -> NeighbourKey {
    let mut key = NeighbourKey::default();
    key[..16].copy_from_slice(&address_bytes(address));
    key[16..].copy_from_slice(&u32::from(family(address)).to_ne_bytes());
    key
}

fn address_bytes(address: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (place, word) in bytes.chunks_exact_mut(4).zip(address_words(address)) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// A backend; port 0: the one that the client connects to. `path` is its next
/// hop's MAC, its VLAN tags (outermost first; 0: none) and the index of the source
/// address that reaches it, once known. Its flows go on, and nothing is known of its
/// health.
pub fn backend_entry(
    address: IpAddr,
    port: u16,
    path: Option<([u8; 6], [u32; VLAN_TAGS], usize)>,
    weight: u16,
    service: usize,
) -> backend {
    let (mac, tags, source) = path.unwrap_or_default();
    backend {
        address: address_words(address),
        tags,
        port: port.to_be(),
        source: source as u16,
        mac,
        reachable: path.is_some().into(),
        weight,
        service: service as u16,
        ..backend::default()
    }
}

/// What checks said of a backend, in its record.
pub fn health_number(health: Health) -> u8 {
    match health {
        Health::Unknown => types::health::HEALTH_UNKNOWN,
        Health::Up => types::health::HEALTH_UP,
        Health::Down => types::health::HEALTH_DOWN,
    }
    .0 as u8
}

/// The reverse.
pub fn health_of(number: u8) -> Health {
    match types::health(number.into()) {
        types::health::HEALTH_UP => Health::Up,
        types::health::HEALTH_DOWN => Health::Down,
        _ => Health::Unknown,
    }
}

/// `place_hash` of src/bpf/service.h.
fn place_hash(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

/// `mix` of src/bpf/service.h.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Where the search for an address begins, before the mask.
pub fn address_place(entry: &address) -> usize {
    let [a, b, c, d] = entry.address.map(u64::from);
    place_hash(a ^ mix((b << 32 | c) ^ mix(d)))
}

/// Where the search for a listener begins, before the mask.
pub fn listener_place(entry: &listener) -> usize {
    place_hash(u64::from(entry.vip) << 32 | u64::from(entry.protocol) << 16 | u64::from(entry.port))
}
