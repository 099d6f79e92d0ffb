// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! ICMP errors: those that senders are told by, and those that are translated.
//! From etherparse alone.

use std::net::IpAddr;

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6FlowLabel,
    Ipv6Header, icmpv4, icmpv6,
};
use xdp_proxy::abi::OutcomeCode;

use super::exchange::*;
use super::frame::*;
use super::rig::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    PortUnreachable,
    TimeExceeded,
}

/// Of the payload of the packet in question.
const QUOTED_BYTES_MAX: usize = 64;

/// The answer to a frame whose transport header is at `transport_at`. Where
/// `completed_at` (the checksum's place in that header) is given, somebody
/// completes the quoted checksum later, and the ICMP checksum counts on it.
pub fn icmp_answer(
    frame: &[u8],
    transport_at: usize,
    told: Told,
    completed_at: Option<usize>,
) -> Vec<u8> {
    let is_tag = |at: &usize| matches!(frame[*at..*at + 2], [0x81, 0] | [0x88, 0xa8]);
    let type_at = (12..).step_by(4).find(|at| !is_tag(at)).expect("a type");
    let link_bytes = type_at + 2;
    let is_v4 = frame[type_at..link_bytes] == [8, 0];
    let ip = &frame[link_bytes..];
    let packet_end = link_bytes
        + if is_v4 {
            let (header, _) = Ipv4Header::from_slice(ip).expect("an IPv4 header");
            usize::from(header.total_len)
        } else {
            let (header, _) = Ipv6Header::from_slice(ip).expect("an IPv6 header");
            Ipv6Header::LEN + usize::from(header.payload_length)
        };
    let quoted_end = packet_end.min(transport_at + QUOTED_BYTES_MAX);
    let quoted = &frame[link_bytes..quoted_end];
    let mut as_received = quoted.to_vec();
    if let Some(place) = completed_at {
        let transport = &frame[transport_at..quoted_end];
        let sum = Sum16BitWords::new().add_slice(transport).ones_complement();
        let at = transport_at - link_bytes + place;
        as_received[at..at + 2].copy_from_slice(&sum.to_be().to_be_bytes());
    }
    let (header, icmp) = if is_v4 {
        let (about, _) = Ipv4Header::from_slice(ip).expect("an IPv4 header");
        let kind = match told {
            Told::PortUnreachable => {
                Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port)
            }
            Told::TimeExceeded => {
                Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit)
            }
        };
        let icmp = Icmpv4Header::with_checksum(kind, &as_received);
        let bytes = (8 + quoted.len()) as u16;
        let (from, to) = (about.destination, about.source);
        let mut header = Ipv4Header::new(bytes, 64, IpNumber::ICMP, from, to).expect("it fits");
        header.dont_fragment = true;
        header.header_checksum = header.calc_header_checksum();
        (header.to_bytes().to_vec(), icmp.to_bytes().to_vec())
    } else {
        let (about, _) = Ipv6Header::from_slice(ip).expect("an IPv6 header");
        let kind = match told {
            Told::PortUnreachable => {
                Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port)
            }
            Told::TimeExceeded => {
                Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded)
            }
        };
        let (from, to) = (about.destination, about.source);
        let icmp = Icmpv6Header::with_checksum(kind, from, to, &as_received).expect("it fits");
        let header = Ipv6Header {
            traffic_class: 0,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: (8 + quoted.len()) as u16,
            next_header: IpNumber::IPV6_ICMP,
            hop_limit: 64,
            source: from,
            destination: to,
        };
        (header.to_bytes().to_vec(), icmp.to_bytes().to_vec())
    };
    [
        &frame[6..12],
        &frame[..6],
        &frame[12..link_bytes],
        &header,
        &icmp,
        quoted,
    ]
    .concat()
}

/// A quote of all there is.
pub const WHOLE_PACKET: usize = 2000;

/// Type, code and what is behind the checksum: an MTU, a pointer or nothing.
pub fn errors(v4: bool) -> Vec<Icmp> {
    let mtu = 1400u16.to_be_bytes();
    let of_v4 = [
        Icmp(3, 0, [0; 4]),
        Icmp(3, 1, [0; 4]),
        Icmp(3, 3, [0; 4]),
        Icmp(3, 4, [0, 0, mtu[0], mtu[1]]),
        Icmp(3, 13, [0; 4]),
        Icmp(11, 0, [0; 4]),
        Icmp(11, 1, [0; 4]),
        Icmp(12, 0, [20, 0, 0, 0]),
    ];
    let of_v6 = [
        Icmp(1, 0, [0; 4]),
        Icmp(1, 1, [0; 4]),
        Icmp(1, 4, [0; 4]),
        Icmp(2, 0, [0, 0, mtu[0], mtu[1]]),
        Icmp(3, 0, [0; 4]),
        Icmp(3, 1, [0; 4]),
        Icmp(4, 1, [0, 0, 0, 6]),
    ];
    if v4 { of_v4.into() } else { of_v6.into() }
}

/// An error on its way here, and as it must leave.
pub struct Translated {
    pub error: Frame,
    pub wanted: Frame,
}

impl Translated {
    pub fn payloads(&mut self) -> [&mut Vec<u8>; 2] {
        [&mut self.error.payload, &mut self.wanted.payload]
    }

    #[track_caller]
    pub fn check(&self, exchange: &Exchange) {
        let [error, wanted] = [&self.error, &self.wanted].map(|f| f.bytes(Sum::Complete));
        exchange.becomes(&error, &wanted, OutcomeCode::OUTCOME_ICMP_ERROR);
    }
}

/// So many bytes of the transport, or of all that is behind the IP header.
fn quote(frame: &Frame, bytes: usize) -> Vec<u8> {
    let mut packet = frame.packet(Sum::Complete);
    packet.truncate(frame.ip_header().len() + bytes);
    packet
}

/// The error about a packet that reached a host on this side: `sent` left here.
/// `reporter`: a router, or the host itself.
pub fn translated(
    exchange: &Exchange,
    about: &Frame,
    reporter: Option<IpAddr>,
    icmp: Icmp,
    bytes: usize,
) -> Translated {
    let to_backend = about.source() == exchange.client;
    let Path { source, backend } = exchange.path();
    let sent = match to_backend {
        true => exchange.forwarded(about),
        false => exchange.returned(about),
    };
    // Time to live was lost on the way there, and is quoted as it was.
    let [mut arrived, mut mirrored] = [sent.clone(), about.clone()];
    (*arrived.hops(), *mirrored.hops()) = (3, 3);
    let mac = if to_backend {
        backend_mac(backend.ip())
    } else {
        CLIENT_MAC
    };
    let (ours, far) = match to_backend {
        true => (source.ip(), backend.ip()),
        false => (exchange.service.ip(), exchange.client.ip()),
    };
    let mut error = Frame::icmp((mac, LB_MAC), reporter.unwrap_or(far), ours, icmp);
    *error.hops() = 61;
    error.tags = exchange.tags[usize::from(to_backend)].clone();
    error.payload = quote(&arrived, bytes);
    let (from, to, mac) = match to_backend {
        true => (exchange.service, exchange.client, CLIENT_MAC),
        false => (source, backend, backend_mac(backend.ip())),
    };
    let mut wanted = error.clone();
    (wanted.from_mac, wanted.to_mac) = (LB_MAC, mac);
    wanted.tags = exchange.tags[usize::from(!to_backend)].clone();
    wanted.set_ends(from, to);
    *wanted.hops() = 60;
    wanted.payload = quote(&mirrored, bytes);
    Translated { error, wanted }
}
