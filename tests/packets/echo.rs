// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Echo requests to VIPs: answered for those that no host owns.

use std::net::{IpAddr, SocketAddr};

use etherparse::IpNumber;
use xdp_proxy::abi::OutcomeCode;

use crate::common::case::WAYS;
use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::rig::*;
use crate::common::root_or_skip;
use crate::common::served::SERVED;

const REPLY: OutcomeCode = OutcomeCode::OUTCOME_ECHO_REPLY;
const MARTIAN: OutcomeCode = OutcomeCode::OUTCOME_DROPPED_MARTIAN;
const MALFORMED: OutcomeCode = OutcomeCode::OUTCOME_DROPPED_MALFORMED;

/// VIPs of either family that are no source addresses.
const VIPS: [&str; 2] = ["10.9.9.9", "fd09::9"];

/// Of the host, beside them: addresses of its own, and one of all hosts of its network.
const HOST: [&str; 3] = ["10.0.0.6", "fd00::6", "10.0.0.255"];

/// Each VIP with every kind of checksum.
fn in_every_way(answers: bool, check: impl Fn(&Exchange)) {
    for (settings, _) in WAYS {
        let services = [
            service("10.9.9.9:80", &SERVED[0].1),
            service("[fd09::9]:80", &SERVED[2].1),
        ];
        let mut tables = tables(&config(services.into()));
        let vips = VIPS.iter().filter(|_| !answers);
        let held = HOST.iter().chain(vips);
        tables.set_held(&held.map(|text| text.parse().unwrap()).collect());
        let rig = Rig::with_tables(tables, *settings);
        for listen in ["10.9.9.9:80", "[fd09::9]:80"] {
            check(&Exchange::new(&rig, listen, 1));
        }
    }
}

fn request(exchange: &Exchange, to: IpAddr) -> Frame {
    let kind = if to.is_ipv4() { 8 } else { 128 };
    let icmp = Icmp(kind, 0, [0x12, 0x34, 0, 7]);
    Frame::icmp((CLIENT_MAC, LB_MAC), exchange.client.ip(), to, icmp)
}

fn reply(request: &Frame) -> Frame {
    let mut out = request.clone();
    (out.from_mac, out.to_mac) = (request.to_mac, request.from_mac);
    out.set_ends(request.destination(), request.source());
    *out.hops() = 64;
    if let Transport::Icmp(Icmp(kind, ..)) = &mut out.transport {
        *kind = if *kind == 8 { 0 } else { 129 };
    }
    out
}

#[track_caller]
fn is_answered(exchange: &Exchange, request: &Frame) {
    let [request, reply] = [request, &reply(request)].map(|f| f.bytes(Sum::Complete));
    exchange.becomes(&request, &reply, REPLY);
}

#[test]
fn a_request_to_a_vip_that_nobody_owns_is_answered() {
    if !root_or_skip("a_request_to_a_vip_that_nobody_owns_is_answered") {
        return;
    }
    in_every_way(true, |exchange| {
        let mut request = request(exchange, exchange.service.ip());
        for bytes in (0..130).chain([500, 999, 1472, 1500]) {
            request.payload = pattern(bytes);
            is_answered(exchange, &request);
        }
        for hops in [0, 1, 2, 255] {
            *request.hops() = hops;
            is_answered(exchange, &request);
        }
        request.padding = vec![0xa5; 7];
        is_answered(exchange, &request);
        match &mut request.network {
            Network::V4(ip) => ip.options = [1; 40].into(),
            Network::V6(_, extensions) => {
                *extensions = vec![extension(IpNumber::IPV6_DESTINATION_OPTIONS, 24)];
            }
        }
        is_answered(exchange, &request);
        // Wrong by the same amount.
        let [mut wrong, mut answer] = [&request, &reply(&request)].map(|f| f.bytes(Sum::Complete));
        let at = request.transport_at() + 20;
        (wrong[at], answer[at]) = (wrong[at] ^ 0x5a, answer[at] ^ 0x5a);
        exchange.becomes(&wrong, &answer, REPLY);
    });
}

#[test]
fn who_is_no_host_gets_no_answer() {
    if !root_or_skip("who_is_no_host_gets_no_answer") {
        return;
    }
    in_every_way(true, |exchange| {
        let of_v4 = [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
        ];
        let of_v6 = [
            "::",
            "::1",
            "ff02::1",
            "ff0e::1:2",
            "ff00::",
            "::ffff:10.0.0.4",
        ];
        // A VIP, a source address, one of the host's own, and a broadcast address.
        let ours_v4 = ["10.9.9.9", "10.0.0.5", HOST[0], HOST[2]];
        let ours_v6 = ["fd09::9", "fd00::5", HOST[1]];
        let froms = match exchange.service.is_ipv4() {
            true => [&of_v4[..], &ours_v4].concat(),
            false => [&of_v6[..], &ours_v6].concat(),
        };
        for from in froms {
            let mut frame = request(exchange, exchange.service.ip());
            let from = SocketAddr::new(from.parse().unwrap(), 0);
            frame.set_ends(from, exchange.service);
            exchange.is_dropped(&frame.bytes(Sum::Complete), MARTIAN);
            // Nor does a flow begin for him, nor a RST or an ICMP error go to him.
            for (flags, hops) in [(SYN, 64), (ACK, 64), (SYN, 1), (ACK, 1)] {
                let mut frame = exchange.client_frame(flags);
                *frame.hops() = hops;
                frame.set_ends(SocketAddr::new(from.ip(), 80), exchange.service);
                exchange.is_dropped(&frame.bytes(Sum::Complete), MARTIAN);
            }
        }
        // Who looks like them is somebody.
        let others = match exchange.service.is_ipv4() {
            true => &[
                "1.0.0.1",
                "126.1.1.1",
                "128.0.0.1",
                "223.255.255.255",
                "10.0.0.4",
            ][..],
            false => &[
                "::2",
                "0:0:1::",
                "1::",
                "::fffe:10.0.0.4",
                "fe80::1",
                "fd00::4",
            ],
        };
        for from in others {
            let mut frame = request(exchange, exchange.service.ip());
            frame.set_ends(SocketAddr::new(from.parse().unwrap(), 0), exchange.service);
            is_answered(exchange, &frame);
        }
    });
}

#[test]
fn what_is_for_another_address_of_the_host_is_passed_whatever_it_is() {
    let test = "what_is_for_another_address_of_the_host_is_passed_whatever_it_is";
    if !root_or_skip(test) {
        return;
    }
    in_every_way(true, |exchange| {
        let to: IpAddr = match exchange.service.is_ipv4() {
            true => HOST[0].parse().unwrap(),
            false => HOST[1].parse().unwrap(),
        };
        exchange.is_passed(&request(exchange, to).bytes(Sum::Complete));
        for flags in [SYN, ACK, RST] {
            let mut frame = exchange.client_frame(flags);
            frame.set_ends(
                exchange.client,
                SocketAddr::new(to, exchange.service.port()),
            );
            exchange.is_passed(&frame.bytes(Sum::Complete));
            // Nor is a later fragment of it anybody else's.
            match &mut frame.network {
                Network::V4(ip) => ip.fragment_offset = 9.try_into().unwrap(),
                Network::V6(_, extensions) => extensions.push(Extension::Fragment(9, false, 7)),
            }
            exchange.is_passed(&frame.bytes(Sum::Complete));
        }
    });
}

#[test]
fn a_request_that_contradicts_its_frame_is_malformed() {
    if !root_or_skip("a_request_that_contradicts_its_frame_is_malformed") {
        return;
    }
    in_every_way(true, |exchange| {
        let mut frame = request(exchange, exchange.service.ip());
        frame.payload = pattern(20);
        let bytes = frame.bytes(Sum::Complete);
        exchange.is_dropped(&bytes[..bytes.len() - 1], MALFORMED);
        exchange.is_dropped(&bytes[..frame.transport_at() + 8], MALFORMED);
        // The header is not there, or not within the packet.
        exchange.is_passed(&bytes[..frame.transport_at() + 7]);
        let mut bytes = frame.bytes(Sum::Complete);
        let (at, short) = match exchange.service.is_ipv4() {
            true => (16, 27u16),
            false => (18, 7),
        };
        bytes[at..at + 2].copy_from_slice(&short.to_be_bytes());
        exchange.is_passed(&bytes);
    });
}

#[test]
fn any_other_request_is_the_hosts() {
    if !root_or_skip("any_other_request_is_the_hosts") {
        return;
    }
    in_every_way(true, |exchange| {
        let v4 = exchange.service.is_ipv4();
        let vip = exchange.service.ip();
        // To a source address, and to none of ours.
        let source: IpAddr = if v4 { SOURCE.into() } else { SOURCE_V6.into() };
        let other: IpAddr = if v4 { "10.0.0.77" } else { "fd00::77" }.parse().unwrap();
        for to in [source, other] {
            exchange.is_passed(&request(exchange, to).bytes(Sum::Complete));
        }
        // In fragments, and what is no request.
        let mut frame = request(exchange, vip);
        frame.payload = pattern(64);
        for fragment in frame.fragments(Sum::Complete, 5, &[16, 40]) {
            exchange.is_passed(&fragment);
        }
        exchange.is_passed(&reply(&frame).bytes(Sum::Complete));
        let answer = Icmp(if v4 { 0 } else { 129 }, 0, [0; 4]);
        let macs = (CLIENT_MAC, LB_MAC);
        let frame = Frame::icmp(macs, exchange.client.ip(), vip, answer);
        exchange.is_passed(&frame.bytes(Sum::Complete));
    });
    in_every_way(false, |exchange| {
        for vip in VIPS.map(|vip| vip.parse::<IpAddr>().unwrap()) {
            if vip.is_ipv4() == exchange.service.is_ipv4() {
                exchange.is_passed(&request(exchange, vip).bytes(Sum::Complete));
            }
        }
    });
}
