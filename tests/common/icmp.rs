// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The ICMP errors that senders are told by, from etherparse alone.

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6FlowLabel,
    Ipv6Header, icmpv4, icmpv6,
};

use super::frames::ETHERNET_BYTES;

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
    let is_v4 = frame[12..14] == [8, 0];
    let ip = &frame[ETHERNET_BYTES..];
    let packet_end = ETHERNET_BYTES
        + if is_v4 {
            let (header, _) = Ipv4Header::from_slice(ip).expect("an IPv4 header");
            usize::from(header.total_len)
        } else {
            let (header, _) = Ipv6Header::from_slice(ip).expect("an IPv6 header");
            Ipv6Header::LEN + usize::from(header.payload_length)
        };
    let quoted_end = packet_end.min(transport_at + QUOTED_BYTES_MAX);
    let quoted = &frame[ETHERNET_BYTES..quoted_end];
    let mut as_received = quoted.to_vec();
    if let Some(place) = completed_at {
        let transport = &frame[transport_at..quoted_end];
        let sum = Sum16BitWords::new().add_slice(transport).ones_complement();
        let at = transport_at - ETHERNET_BYTES + place;
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
        &frame[12..14],
        &header,
        &icmp,
        quoted,
    ]
    .concat()
}
