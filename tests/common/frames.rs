// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Frames as fields. Bytes and checksums come from etherparse alone.

use std::net::SocketAddrV4;

use etherparse::checksum::Sum16BitWords;
use etherparse::{IpNumber, Ipv4Header, TcpHeader};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

pub const ETHERNET_BYTES: usize = 14;
const ETHERTYPE_IPV4: [u8; 2] = [8, 0];

/// What a frame's TCP checksum field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// The checksum.
    Complete,
    /// The sum of the pseudo-header, for somebody to complete (CHECKSUM_PARTIAL).
    Partial,
}

/// A TCP segment in IPv4 in Ethernet. Lengths and checksums are not kept here:
/// [`Segment::bytes`] computes them.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    pub to_mac: [u8; 6],
    pub from_mac: [u8; 6],
    pub ip: Ipv4Header,
    pub tcp: TcpHeader,
    pub payload: Vec<u8>,
    /// Bytes of the frame after the packet's end.
    pub padding: Vec<u8>,
}

impl Segment {
    pub fn new(macs: ([u8; 6], [u8; 6]), from: SocketAddrV4, to: SocketAddrV4) -> Segment {
        let addresses = (from.ip().octets(), to.ip().octets());
        let mut ip = Ipv4Header::new(0, 64, IpNumber::TCP, addresses.0, addresses.1)
            .expect("nothing is not too long");
        ip.identification = 0x1d1d;
        ip.total_len = 0;
        Segment {
            from_mac: macs.0,
            to_mac: macs.1,
            ip,
            tcp: TcpHeader::new(from.port(), to.port(), 0, 0),
            payload: vec![],
            padding: vec![],
        }
    }

    pub fn source(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip.source.into(), self.tcp.source_port)
    }

    pub fn destination(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip.destination.into(), self.tcp.destination_port)
    }

    pub fn set_source(&mut self, source: SocketAddrV4) {
        self.ip.source = source.ip().octets();
        self.tcp.source_port = source.port();
    }

    pub fn set_destination(&mut self, destination: SocketAddrV4) {
        self.ip.destination = destination.ip().octets();
        self.tcp.destination_port = destination.port();
    }

    pub fn set_flags(&mut self, flags: u8) {
        let tcp = &mut self.tcp;
        tcp.fin = flags & FIN != 0;
        tcp.syn = flags & SYN != 0;
        tcp.rst = flags & RST != 0;
        tcp.psh = flags & PSH != 0;
        tcp.ack = flags & ACK != 0;
    }

    fn tcp_bytes(&self) -> usize {
        self.tcp.header_len() + self.payload.len()
    }

    /// The checksum over the whole segment, computed by etherparse.
    pub fn complete_sum(&self) -> u16 {
        self.tcp
            .calc_checksum_ipv4_raw(self.ip.source, self.ip.destination, &self.payload)
            .expect("a payload that fits")
    }

    /// The folded sum of the pseudo-header (RFC 9293, section 3.1), not complemented.
    pub fn partial_sum(&self) -> u16 {
        let tcp_bytes = u16::try_from(self.tcp_bytes()).expect("a payload that fits");
        let sum = Sum16BitWords::new()
            .add_4bytes(self.ip.source)
            .add_4bytes(self.ip.destination)
            .add_2bytes([0, IpNumber::TCP.0])
            .add_2bytes(tcp_bytes.to_be_bytes());
        !sum.ones_complement().to_be()
    }

    /// Chooses the urgent pointer so that both kinds of sum are equal: the
    /// 1 packet in 65,536 whose bytes don't tell which one is meant.
    pub fn coincide(&mut self) {
        self.tcp.urgent_pointer = 0;
        let sum = u32::from(self.complete_sum()) + u32::from(!self.partial_sum());
        self.tcp.urgent_pointer = ((sum & 0xffff) + (sum >> 16)) as u16;
        assert_eq!(self.complete_sum(), self.partial_sum(), "{self:?}");
    }

    /// The whole frame, its lengths and checksums filled in.
    pub fn bytes(&self, sum: Sum) -> Vec<u8> {
        let mut ip = self.ip.clone();
        ip.set_payload_len(self.tcp_bytes())
            .expect("a payload that fits");
        ip.header_checksum = ip.calc_header_checksum();
        let mut tcp = self.tcp.clone();
        tcp.checksum = match sum {
            Sum::Complete => self.complete_sum(),
            Sum::Partial => self.partial_sum(),
        };
        [
            &self.to_mac[..],
            &self.from_mac,
            &ETHERTYPE_IPV4,
            &ip.to_bytes(),
            &tcp.to_bytes(),
            &self.payload,
            &self.padding,
        ]
        .concat()
    }

    /// The fields of a frame, less lengths and checksums.
    pub fn parse(frame: &[u8]) -> Segment {
        let (ethernet, rest) = frame.split_at(ETHERNET_BYTES);
        assert_eq!(ethernet[12..], ETHERTYPE_IPV4, "the type of {frame:02x?}");
        let (mut ip, rest) = Ipv4Header::from_slice(rest).expect("an IPv4 header");
        let payload_bytes = usize::from(ip.payload_len().expect("a length beyond the header's"));
        let (packet, padding) = rest.split_at(payload_bytes);
        let (mut tcp, payload) = TcpHeader::from_slice(packet).expect("a TCP header");
        (ip.total_len, ip.header_checksum, tcp.checksum) = (0, 0, 0);
        Segment {
            to_mac: ethernet[..6].try_into().expect("six bytes"),
            from_mac: ethernet[6..12].try_into().expect("six bytes"),
            ip,
            tcp,
            payload: payload.to_vec(),
            padding: padding.to_vec(),
        }
    }
}

/// Bytes that show when one is moved or lost.
pub fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 7 + 3) as u8).collect()
}
