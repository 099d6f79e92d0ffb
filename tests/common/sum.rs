// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The checksums that a frame's transport header may hold, computed by etherparse.

use std::net::IpAddr;

use etherparse::checksum::Sum16BitWords;
use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};

use super::frame::*;

/// What a frame's TCP or UDP checksum field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// The checksum.
    Complete,
    /// The sum of the pseudo-header, for somebody to complete (CHECKSUM_PARTIAL).
    Partial,
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

impl Frame {
    /// The checksum over the whole segment or datagram.
    pub fn complete_sum(&self) -> u16 {
        let payload = &self.payload;
        match (&self.transport, &self.network) {
            (Transport::Tcp(tcp), Network::V4(ip)) => {
                tcp.calc_checksum_ipv4_raw(ip.source, ip.destination, payload)
            }
            (Transport::Tcp(tcp), Network::V6(ip, _)) => {
                tcp.calc_checksum_ipv6_raw(ip.source, ip.destination, payload)
            }
            (Transport::Udp(udp), Network::V4(ip)) => self
                .udp_with_length(udp)
                .calc_checksum_ipv4_raw(ip.source, ip.destination, payload),
            (Transport::Udp(udp), Network::V6(ip, _)) => self
                .udp_with_length(udp)
                .calc_checksum_ipv6_raw(ip.source, ip.destination, payload),
            (Transport::Icmp(icmp), Network::V4(_)) => {
                let &Icmp(type_u8, code_u8, bytes5to8) = icmp;
                let kind = Icmpv4Type::Unknown {
                    type_u8,
                    code_u8,
                    bytes5to8,
                };
                Ok(Icmpv4Header::with_checksum(kind, payload).checksum)
            }
            (Transport::Icmp(icmp), Network::V6(ip, _)) => {
                let &Icmp(type_u8, code_u8, bytes5to8) = icmp;
                let kind = Icmpv6Type::Unknown {
                    type_u8,
                    code_u8,
                    bytes5to8,
                };
                Icmpv6Header::with_checksum(kind, ip.source, ip.destination, payload)
                    .map(|header| header.checksum)
            }
        }
        .expect("a payload that fits")
    }

    /// The folded sum of the pseudo-header, not complemented.
    pub fn partial_sum(&self) -> u16 {
        let (source, destination) = self.addresses();
        let sum = Sum16BitWords::new()
            .add_slice(&octets(source))
            .add_slice(&octets(destination))
            .add_2bytes([0, self.protocol().0])
            .add_2bytes((self.transport_bytes() as u16).to_be_bytes());
        !sum.ones_complement().to_be()
    }

    /// Chooses the urgent pointer so that both kinds of sum are equal: the
    /// 1 packet in 65,536 whose bytes don't tell which one is meant.
    pub fn coincide(&mut self) {
        self.tcp().urgent_pointer = 0;
        let sum = u32::from(self.complete_sum()) + u32::from(!self.partial_sum());
        self.tcp().urgent_pointer = ((sum & 0xffff) + (sum >> 16)) as u16;
        assert_eq!(self.complete_sum(), self.partial_sum(), "{self:?}");
    }
}
