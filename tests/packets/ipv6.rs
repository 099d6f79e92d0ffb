// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! IPv6: its header, its extension headers, and what is not ours of it.

use std::net::Ipv6Addr;

use etherparse::{Icmpv6Header, Icmpv6Type, IpNumber, Ipv6FlowLabel};
use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::service::PortRanges;

use crate::common::case::WAYS;
use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::icmp::Told;
use crate::common::rig::*;
use crate::common::root_or_skip;

const MALFORMED: OutcomeCode = OutcomeCode::OUTCOME_DROPPED_MALFORMED;
const NO_FLOW: OutcomeCode = OutcomeCode::OUTCOME_REFUSED_NO_FLOW;
const TIME_EXCEEDED: OutcomeCode = OutcomeCode::OUTCOME_TIME_EXCEEDED;

const HOP: IpNumber = IpNumber::IPV6_HEADER_HOP_BY_HOP;
const ROUTING: IpNumber = IpNumber::IPV6_ROUTE_HEADER;
const DESTINATION: IpNumber = IpNumber::IPV6_DESTINATION_OPTIONS;

/// `EXTENSION_HEADERS` of src/bpf/abi.h.
const EXTENSION_HEADERS: usize = 6;

const WEB: &str = "[fd00::5]:80";
const DNS: &str = "[fd00::5]:53/udp";

fn rig(settings: xdp_proxy::datapath::Settings) -> Rig {
    let web = [("[fd00::2]:80", 1), ("[fd00::3]:8080", 1)];
    let dns = [("[fd00::2]:53", 1), ("[fd00::3]:5353", 1)];
    Rig::new(
        &config(vec![service(WEB, &web), service(DNS, &dns)]),
        settings,
    )
}

/// TCP and UDP, with all kinds of checksums, each with a flow.
fn in_every_way(check: impl Fn(&mut Exchange)) {
    for (settings, sum) in WAYS {
        let rig = rig(*settings);
        for service in [WEB, DNS] {
            let mut exchange = Exchange::new(&rig, service, 1).with_sum(*sum);
            exchange.open();
            check(&mut exchange);
        }
    }
}

/// A packet of each end, changed alike.
fn both(exchange: &Exchange, change: impl Fn(&mut Frame)) -> [Frame; 2] {
    let mut frames = [exchange.client_frame(ACK), exchange.backend_frame(ACK)];
    for frame in &mut frames {
        frame.payload = pattern(37);
        change(frame);
    }
    frames
}

fn pass_on(exchange: &mut Exchange, change: impl Fn(&mut Frame)) {
    let frames = both(exchange, change);
    exchange.pass_both(&frames);
}

#[test]
fn tcp_lives_from_its_syn_to_its_end() {
    if !root_or_skip("tcp_lives_from_its_syn_to_its_end") {
        return;
    }
    for (settings, sum) in WAYS {
        let rig = rig(*settings);
        let new = || Exchange::new(&rig, WEB, 1).with_sum(*sum);
        let mut first = new();
        first.open();
        for bytes in [0, 1, 2, 63, 64, 65, 1000, 1001, 1439, 1440] {
            let mut out = first.client_frame(PSH | ACK);
            let mut back = first.backend_frame(PSH | ACK);
            (out.payload, back.payload) = (pattern(bytes), pattern(bytes));
            first.forward_frame(&out);
            first.reply_frame(&back);
        }
        first.close();
        first.reply(ACK); // late
        let mut second = new();
        second.open();
        assert_ne!(
            second.path().source,
            first.path().source,
            "a port used again"
        );
        second.forward(RST);
        let mut third = new();
        third.open();
        third.reply(RST | ACK);
        new().open();

        let unknown = Exchange::new(&rig, WEB, 2).with_sum(*sum);
        for flags in [ACK, FIN | ACK, FIN, PSH | ACK, SYN | ACK, 0] {
            for bytes in [0, 1, 500] {
                let mut frame = unknown.client_frame(flags);
                frame.payload = pattern(bytes);
                unknown.is_reset(&frame, NO_FLOW);
                *frame.extensions() = vec![extension(HOP, 8), extension(DESTINATION, 24)];
                unknown.is_reset(&frame, NO_FLOW);
            }
        }
        let reset = unknown.client_frame(RST).bytes(*sum);
        unknown.is_dropped(&reset, OutcomeCode::OUTCOME_DROPPED_NO_FLOW);
        let flows: u64 = rig.counters().backends.iter().map(|b| b.flows()).sum();
        assert_eq!(flows, 1);
    }
}

#[test]
fn without_a_backend_or_a_port_a_syn_is_reset() {
    if !root_or_skip("without_a_backend_or_a_port_a_syn_is_reset") {
        return;
    }
    for (settings, sum) in WAYS {
        let mut service = service(WEB, &[("[fd00::2]:80", 1)]);
        service.source_ports = PortRanges::new(vec![2000..=2000]).unwrap();
        let mut rig = Rig::new(&config(vec![service]), *settings);
        Exchange::new(&rig, WEB, 1).with_sum(*sum).open();
        let late = Exchange::new(&rig, WEB, 2).with_sum(*sum);
        let exhausted = OutcomeCode::OUTCOME_REFUSED_SNAT_EXHAUSTED;
        late.is_reset(&late.client_frame(SYN), exhausted);
        rig.tables.backends[0].path.alive = false;
        rig.datapath.write_maglev(&rig.tables, 0).unwrap();
        let late = Exchange::new(&rig, WEB, 2).with_sum(*sum);
        let none = OutcomeCode::OUTCOME_REFUSED_NO_BACKEND;
        late.is_reset(&late.client_frame(SYN), none);
    }
}

#[test]
fn the_header_is_kept_but_for_the_hop_limit() {
    if !root_or_skip("the_header_is_kept_but_for_the_hop_limit") {
        return;
    }
    in_every_way(|exchange| {
        for traffic_class in [0, 1, 0x80, 0xff] {
            for flow_label in [0, 1, 0xf_ffff] {
                for hops in [2, 3, 255] {
                    pass_on(exchange, |frame| {
                        let ip = frame.ipv6();
                        ip.traffic_class = traffic_class;
                        ip.flow_label = Ipv6FlowLabel::try_new(flow_label).unwrap();
                        ip.hop_limit = hops;
                        frame.padding = vec![0xa5; 3];
                    });
                }
            }
        }
    });
}

fn chains() -> Vec<Vec<Extension>> {
    let mut chains = vec![
        vec![extension(HOP, 8)],
        vec![extension(DESTINATION, 8)],
        vec![Extension::Raw(ROUTING, vec![0; 6])],
        vec![extension(HOP, 24), extension(DESTINATION, 16)],
        vec![
            extension(HOP, 8),
            extension(DESTINATION, 8),
            Extension::Raw(ROUTING, vec![0; 22]),
            extension(DESTINATION, 40),
        ],
        vec![extension(DESTINATION, 256)],
        // An atomic fragment: nothing is missing (RFC 6946).
        vec![Extension::Fragment(0, false, 0x1d1d)],
        vec![extension(HOP, 8), Extension::Fragment(0, false, 0x1d1d)],
    ];
    chains.push(vec![extension(DESTINATION, 8); EXTENSION_HEADERS]);
    chains
}

#[test]
fn extension_headers_are_kept() {
    if !root_or_skip("extension_headers_are_kept") {
        return;
    }
    in_every_way(|exchange| {
        for chain in chains() {
            pass_on(exchange, |frame| *frame.extensions() = chain.clone());
        }
        // A first packet has them as well.
        for (chain, number) in chains().into_iter().zip(100..) {
            let service = if exchange.service.port() == 80 {
                WEB
            } else {
                DNS
            };
            let mut new = Exchange::new(exchange.rig, service, number).with_sum(exchange.sum);
            let mut frame = new.client_frame(SYN);
            *frame.extensions() = chain;
            new.forward_frame(&frame);
            new.reply(SYN | ACK);
        }
    });
}

#[test]
fn what_is_behind_too_many_extension_headers_is_passed() {
    if !root_or_skip("what_is_behind_too_many_extension_headers_is_passed") {
        return;
    }
    in_every_way(|exchange| {
        let beyond = vec![extension(DESTINATION, 8); EXTENSION_HEADERS + 1];
        let long = vec![extension(DESTINATION, 408)];
        for chain in [beyond, long] {
            for frame in both(exchange, |frame| *frame.extensions() = chain.clone()) {
                exchange.is_passed(&frame.bytes(exchange.sum));
            }
        }
        for frame in both(exchange, |f| *f.extensions() = vec![extension(HOP, 8)]) {
            let mut bytes = frame.bytes(exchange.sum);
            // Its length leads out of the frame.
            for units in [20, 40, 49, 50, 51, 60, 255] {
                bytes[ETHERNET_BYTES + 41] = units;
                exchange.is_passed(&bytes);
            }
            // No next header; authentication, ESP, mobility: not looked into.
            bytes[ETHERNET_BYTES + 41] = 0;
            for next in [59, 51, 50, 135, 1, 132, 255] {
                bytes[ETHERNET_BYTES + 40] = next;
                exchange.is_passed(&bytes);
            }
            // It is cut off.
            let bytes = frame.bytes(exchange.sum);
            for end in 14..ETHERNET_BYTES + 52 {
                exchange.is_passed(&bytes[..end]);
            }
        }
    });
}

#[test]
fn a_payload_length_that_the_frame_contradicts_is_malformed() {
    if !root_or_skip("a_payload_length_that_the_frame_contradicts_is_malformed") {
        return;
    }
    in_every_way(|exchange| {
        for chain in [vec![], vec![extension(HOP, 8), extension(DESTINATION, 8)]] {
            for frame in both(exchange, |f| *f.extensions() = chain.clone()) {
                let mut bytes = frame.bytes(exchange.sum);
                let whole = (bytes.len() - ETHERNET_BYTES - 40) as u16;
                let headers = 16 * u16::from(!chain.is_empty());
                let header = if exchange.service.port() == 80 {
                    20
                } else {
                    45
                };
                let short = headers + header - 1;
                for length in [whole + 1, u16::MAX, short, headers, 8, 1, 0] {
                    bytes[18..20].copy_from_slice(&length.to_be_bytes());
                    exchange.is_dropped(&bytes, MALFORMED);
                }
            }
        }
    });
}

#[test]
fn the_sender_is_told_by_icmpv6_that_its_packets_time_is_over() {
    if !root_or_skip("the_sender_is_told_by_icmpv6_that_its_packets_time_is_over") {
        return;
    }
    in_every_way(|exchange| {
        for chain in [vec![], vec![extension(HOP, 8), extension(DESTINATION, 256)]] {
            for hops in [0, 1] {
                for mut frame in both(exchange, |f| *f.extensions() = chain.clone()) {
                    *frame.hops() = hops;
                    for bytes in [0, 1, 43, 44, 45, 1001] {
                        frame.payload = pattern(bytes);
                        exchange.is_told(&frame, Told::TimeExceeded, TIME_EXCEEDED);
                    }
                }
            }
        }
    });
}

/// Frames of ICMPv6: echo, neighbour solicitation and advertisement, packet
/// too big; with the hop limit that each has.
fn icmpv6_frames(exchange: &Exchange) -> Vec<Vec<u8>> {
    let frame = exchange.client_frame(ACK);
    let (source, destination) = match &frame.network {
        Network::V6(ip, _) => (ip.source, ip.destination),
        Network::V4(_) => panic!("IPv4"),
    };
    let target = destination;
    let kinds = [
        (128, 0, 64),
        (129, 0, 1),
        (135, 0, 255),
        (136, 0, 255),
        (2, 0, 64),
    ];
    let frame_of = |(type_u8, code_u8, hop_limit): (u8, u8, u8)| {
        let kind = Icmpv6Type::Unknown {
            type_u8,
            code_u8,
            bytes5to8: [0, 80, 0, 80],
        };
        let icmp = Icmpv6Header::with_checksum(kind, source, destination, &target).unwrap();
        let mut ip = frame.clone().ipv6().clone();
        ip.next_header = IpNumber::IPV6_ICMP;
        ip.payload_length = 8 + 16;
        ip.hop_limit = hop_limit;
        [
            &LB_MAC[..],
            &CLIENT_MAC,
            &[0x86, 0xdd],
            &ip.to_bytes(),
            &icmp.to_bytes(),
            &target,
        ]
        .concat()
    };
    kinds.map(frame_of).into()
}

#[test]
fn what_is_not_ours_is_passed() {
    if !root_or_skip("what_is_not_ours_is_passed") {
        return;
    }
    in_every_way(|exchange| {
        for frame in icmpv6_frames(exchange) {
            exchange.is_passed(&frame);
        }
        let sum = exchange.sum;
        for mut frame in both(exchange, |_| ()) {
            frame.ipv6().destination[15] = 6;
            exchange.is_passed(&frame.bytes(sum));
            frame.ipv6().destination = Ipv6Addr::from(0xff02 << 112 | 1).octets();
            exchange.is_passed(&frame.bytes(sum));
        }
        for mut frame in both(exchange, |f| f.to_mac = [2, 0, 0, 0, 0, 2]) {
            exchange.is_passed(&frame.bytes(sum));
            frame.to_mac = [0x33, 0x33, 0, 0, 0, 1];
            exchange.is_passed(&frame.bytes(sum));
        }
        // A reply from another address, or to another port.
        for byte in 0..16 {
            let mut frame = exchange.backend_frame(ACK);
            frame.ipv6().source[byte] ^= 0x40;
            exchange.is_passed(&frame.bytes(sum));
        }
        // Another version, under either type.
        for frame in both(exchange, |_| ()) {
            let mut bytes = frame.bytes(sum);
            for version in [0x40, 0x45, 0x50, 0x00, 0xf0] {
                bytes[14] = version;
                exchange.is_passed(&bytes);
            }
            bytes[12..15].copy_from_slice(&[8, 0, 0x60]);
            exchange.is_passed(&bytes);
        }
    });
}

/// An IPv6 packet's first words of an address are not taken for IPv4's.
#[test]
fn without_a_service_of_ipv6_all_of_it_is_passed() {
    if !root_or_skip("without_a_service_of_ipv6_all_of_it_is_passed") {
        return;
    }
    for (settings, sum) in WAYS {
        let services = vec![
            service("10.0.0.5:80", &[("10.0.0.2:80", 1)]),
            service("10.0.0.5:53/udp", &[("10.0.0.2:53", 1)]),
        ];
        let rig = Rig::new(&config(services), *settings);
        for service in [WEB, DNS, "[a00:5::]:80", "[::10.0.0.5]:80"] {
            let exchange = Exchange::new(&rig, service, 1).with_sum(*sum);
            for flags in [SYN, ACK, RST] {
                let mut frame = exchange.client_frame(flags);
                exchange.is_passed(&frame.bytes(*sum));
                *frame.hops() = 1;
                exchange.is_passed(&frame.bytes(*sum));
            }
            for frame in icmpv6_frames(&exchange) {
                exchange.is_passed(&frame);
            }
        }
    }
}
