// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Frames of TCP, UDP or ICMP over IPv4 or IPv6, tagged or not, as fields. Bytes
//! and checksums come from etherparse alone.

use std::net::{IpAddr, SocketAddr};

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv6FlowLabel, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, NetSlice, SlicedPacket,
    TcpHeader, UdpHeader,
};
use xdp_proxy::service::Protocol;

use super::frames::*;

/// An extension header of IPv6, less what names the next one.
#[derive(Clone, Debug, PartialEq)]
pub enum Extension {
    /// Its kind, and its bytes after the first two: 6, 14, 22...
    Raw(IpNumber, Vec<u8>),
    /// Offset in units of 8 bytes, whether more follow, and the identification.
    Fragment(u16, bool, u32),
}

/// So many bytes of an extension header, a multiple of 8.
pub fn extension(kind: IpNumber, bytes: usize) -> Extension {
    // One option that nobody need know (RFC 8200, section 4.2).
    let mut body = vec![0; bytes - 2];
    (body[0], body[1]) = (0x1e, bytes as u8 - 4);
    Extension::Raw(kind, body)
}

#[derive(Clone, Debug, PartialEq)]
pub enum Network {
    V4(Ipv4Header),
    V6(Ipv6Header, Vec<Extension>),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Transport {
    Tcp(TcpHeader),
    Udp(UdpHeader),
    Icmp(Icmp),
}

/// ICMP of the family at hand: type, code and the four bytes behind the checksum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Icmp(pub u8, pub u8, pub [u8; 4]);

/// A VLAN tag: its protocol, and priority with the VLAN's number.
pub type Tag = (u16, u16);

/// Lengths and checksums are not kept here: [`Frame::bytes`] computes them.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub to_mac: [u8; 6],
    pub from_mac: [u8; 6],
    /// The outermost first.
    pub tags: Vec<Tag>,
    pub network: Network,
    pub transport: Transport,
    pub payload: Vec<u8>,
    /// Bytes of the frame after the packet's end.
    pub padding: Vec<u8>,
    /// UDP: the checksum field is 0.
    pub unsummed: bool,
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

impl Frame {
    pub fn new(
        protocol: Protocol,
        macs: ([u8; 6], [u8; 6]),
        from: SocketAddr,
        to: SocketAddr,
    ) -> Frame {
        let transport = match protocol {
            Protocol::Tcp => Transport::Tcp(TcpHeader::new(from.port(), to.port(), 0, 0)),
            Protocol::Udp => Transport::Udp(UdpHeader {
                source_port: from.port(),
                destination_port: to.port(),
                ..Default::default()
            }),
        };
        Frame::between(macs, from.ip(), to.ip(), transport)
    }

    pub fn icmp(macs: ([u8; 6], [u8; 6]), from: IpAddr, to: IpAddr, icmp: Icmp) -> Frame {
        Frame::between(macs, from, to, Transport::Icmp(icmp))
    }

    fn between(macs: ([u8; 6], [u8; 6]), from: IpAddr, to: IpAddr, transport: Transport) -> Frame {
        let network = match (from, to) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (source, destination) = (source.octets(), destination.octets());
                let mut ip = Ipv4Header::new(0, 64, IpNumber::TCP, source, destination)
                    .expect("nothing is not too long");
                ip.identification = 0x1d1d;
                Network::V4(ip)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => Network::V6(
                Ipv6Header {
                    traffic_class: 0xb9,
                    flow_label: Ipv6FlowLabel::try_new(0xa_bcde).expect("20 bits"),
                    hop_limit: 64,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Default::default()
                },
                vec![],
            ),
            _ => panic!("{from} and {to} are of two families"),
        };
        Frame {
            from_mac: macs.0,
            to_mac: macs.1,
            tags: vec![],
            network,
            transport,
            payload: vec![],
            padding: vec![],
            unsummed: false,
        }
    }

    pub fn addresses(&self) -> (IpAddr, IpAddr) {
        match &self.network {
            Network::V4(ip) => (ip.source.into(), ip.destination.into()),
            Network::V6(ip, _) => (ip.source.into(), ip.destination.into()),
        }
    }

    pub fn source(&self) -> SocketAddr {
        let port = match &self.transport {
            Transport::Tcp(tcp) => tcp.source_port,
            Transport::Udp(udp) => udp.source_port,
            Transport::Icmp(_) => 0,
        };
        SocketAddr::new(self.addresses().0, port)
    }

    pub fn destination(&self) -> SocketAddr {
        let port = match &self.transport {
            Transport::Tcp(tcp) => tcp.destination_port,
            Transport::Udp(udp) => udp.destination_port,
            Transport::Icmp(_) => 0,
        };
        SocketAddr::new(self.addresses().1, port)
    }

    pub fn set_ends(&mut self, source: SocketAddr, destination: SocketAddr) {
        match (&mut self.network, source.ip(), destination.ip()) {
            (Network::V4(ip), IpAddr::V4(source), IpAddr::V4(destination)) => {
                (ip.source, ip.destination) = (source.octets(), destination.octets());
            }
            (Network::V6(ip, _), IpAddr::V6(source), IpAddr::V6(destination)) => {
                (ip.source, ip.destination) = (source.octets(), destination.octets());
            }
            _ => panic!("another family"),
        }
        match &mut self.transport {
            Transport::Tcp(tcp) => {
                (tcp.source_port, tcp.destination_port) = (source.port(), destination.port());
            }
            Transport::Udp(udp) => {
                (udp.source_port, udp.destination_port) = (source.port(), destination.port());
            }
            Transport::Icmp(_) => (),
        }
    }

    /// TTL or hop limit.
    pub fn hops(&mut self) -> &mut u8 {
        match &mut self.network {
            Network::V4(ip) => &mut ip.time_to_live,
            Network::V6(ip, _) => &mut ip.hop_limit,
        }
    }

    pub fn extensions(&mut self) -> &mut Vec<Extension> {
        match &mut self.network {
            Network::V4(_) => panic!("IPv4 has none"),
            Network::V6(_, extensions) => extensions,
        }
    }

    pub fn ipv6(&mut self) -> &mut Ipv6Header {
        match &mut self.network {
            Network::V4(_) => panic!("IPv4"),
            Network::V6(ip, _) => ip,
        }
    }

    pub fn tcp(&mut self) -> &mut TcpHeader {
        match &mut self.transport {
            Transport::Tcp(tcp) => tcp,
            _ => panic!("not TCP"),
        }
    }

    pub fn protocol(&self) -> IpNumber {
        match &self.transport {
            Transport::Tcp(_) => IpNumber::TCP,
            Transport::Udp(_) => IpNumber::UDP,
            Transport::Icmp(_) => match self.network {
                Network::V4(_) => IpNumber::ICMP,
                Network::V6(..) => IpNumber::IPV6_ICMP,
            },
        }
    }

    fn transport_header_bytes(&self) -> usize {
        match &self.transport {
            Transport::Tcp(tcp) => tcp.header_len(),
            Transport::Udp(_) => UdpHeader::LEN,
            Transport::Icmp(_) => 8,
        }
    }

    fn transport_bytes(&self) -> usize {
        self.transport_header_bytes() + self.payload.len()
    }

    fn udp_with_length(&self, udp: &UdpHeader) -> UdpHeader {
        UdpHeader {
            length: self.transport_bytes() as u16,
            ..udp.clone()
        }
    }

    /// The checksum over the whole segment or datagram, computed by etherparse.
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

    /// Where the transport header begins in the frame.
    pub fn transport_at(&self) -> usize {
        self.link_header().len() + self.ip_header().len()
    }

    /// Where the checksum lies in the transport header.
    pub fn checksum_at(&self) -> usize {
        match &self.transport {
            Transport::Tcp(_) => 16,
            Transport::Udp(_) => 6,
            Transport::Icmp(_) => 2,
        }
    }

    /// MACs, tags and type.
    pub fn link_header(&self) -> Vec<u8> {
        let mut bytes = [self.to_mac, self.from_mac].concat();
        for (protocol, control) in &self.tags {
            bytes.extend(protocol.to_be_bytes());
            bytes.extend(control.to_be_bytes());
        }
        bytes.extend(match self.network {
            Network::V4(_) => [8, 0],
            Network::V6(..) => [0x86, 0xdd],
        });
        bytes
    }

    /// Extension headers, the last of which names `next`.
    pub fn extension_bytes(extensions: &[Extension], next: IpNumber) -> Vec<u8> {
        let kinds = extensions.iter().map(kind_of);
        let next = kinds.skip(1).chain([next]);
        let bytes = extensions
            .iter()
            .zip(next)
            .map(|(extension, next)| match extension {
                Extension::Raw(_, body) => Ipv6RawExtHeader::new_raw(next, body)
                    .expect("a length that fits")
                    .to_bytes()
                    .to_vec(),
                Extension::Fragment(offset, more, id) => {
                    let offset = IpFragOffset::try_new(*offset).expect("13 bits");
                    Ipv6FragmentHeader::new(next, offset, *more, *id)
                        .to_bytes()
                        .to_vec()
                }
            });
        bytes.flatten().collect()
    }

    /// The IP header with all that is before the transport header.
    pub fn ip_header(&self) -> Vec<u8> {
        self.ip_header_before(self.protocol(), self.transport_bytes())
    }

    /// The same before so many bytes of something else.
    pub fn ip_header_before(&self, next: IpNumber, bytes: usize) -> Vec<u8> {
        match &self.network {
            Network::V4(ip) => {
                let mut ip = ip.clone();
                ip.protocol = next;
                ip.set_payload_len(bytes).expect("it fits");
                ip.header_checksum = ip.calc_header_checksum();
                ip.to_bytes().to_vec()
            }
            Network::V6(ip, extensions) => {
                let mut ip = ip.clone();
                let extension_bytes = Self::extension_bytes(extensions, next);
                ip.next_header = extensions.first().map_or(next, kind_of);
                ip.set_payload_length(extension_bytes.len() + bytes)
                    .expect("it fits");
                [&ip.to_bytes()[..], &extension_bytes].concat()
            }
        }
    }

    /// The transport header and the payload.
    pub fn ip_payload(&self, sum: Sum) -> Vec<u8> {
        let checksum = match sum {
            _ if self.unsummed => 0,
            Sum::Complete => self.complete_sum(),
            Sum::Partial => self.partial_sum(),
        };
        let header = match &self.transport {
            Transport::Tcp(tcp) => {
                let mut tcp = tcp.clone();
                tcp.checksum = checksum;
                tcp.to_bytes().to_vec()
            }
            Transport::Udp(udp) => {
                let mut udp = self.udp_with_length(udp);
                udp.checksum = checksum;
                udp.to_bytes().to_vec()
            }
            Transport::Icmp(Icmp(kind, code, rest)) => {
                [&[*kind, *code], &checksum.to_be_bytes()[..], rest].concat()
            }
        };
        [&header[..], &self.payload].concat()
    }

    /// The IP packet, without the frame around it.
    pub fn packet(&self, sum: Sum) -> Vec<u8> {
        [self.ip_header(), self.ip_payload(sum)].concat()
    }

    /// The whole frame, its lengths and checksums filled in.
    pub fn bytes(&self, sum: Sum) -> Vec<u8> {
        [&self.link_header()[..], &self.packet(sum), &self.padding].concat()
    }
}

pub fn kind_of(extension: &Extension) -> IpNumber {
    match extension {
        Extension::Raw(kind, _) => *kind,
        Extension::Fragment(..) => IpNumber::IPV6_FRAGMENTATION_HEADER,
    }
}

/// Source and destination of a frame of TCP or UDP, or of its first fragment.
pub fn ends_of(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a whole packet");
    let (from, to, payload): (IpAddr, IpAddr, _) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
            ip.payload().payload,
        ),
        Some(NetSlice::Ipv6(ip)) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
            ip.payload().payload,
        ),
        other => panic!("{other:?}"),
    };
    let port = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
    (SocketAddr::new(from, port(0)), SocketAddr::new(to, port(2)))
}
