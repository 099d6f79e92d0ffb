// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Frames of TCP, UDP or ICMP over IPv4 or IPv6, tagged or not, as fields. Bytes
//! and checksums come from etherparse alone.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6FragmentHeader, Ipv6Header,
    Ipv6RawExtHeader, NetSlice, SlicedPacket, TcpHeader, UdpHeader,
};
use xdp_proxy::service::Protocol;

pub use super::sum::Sum;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

pub const ETHERNET_BYTES: usize = 14;

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

    pub fn ipv4(&mut self) -> &mut Ipv4Header {
        match &mut self.network {
            Network::V4(ip) => ip,
            Network::V6(..) => panic!("IPv6"),
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

    pub fn transport_bytes(&self) -> usize {
        self.transport_header_bytes() + self.payload.len()
    }

    pub fn udp_with_length(&self, udp: &UdpHeader) -> UdpHeader {
        UdpHeader {
            length: self.transport_bytes() as u16,
            ..udp.clone()
        }
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

/// The fields of a whole segment over IPv4, less lengths and checksums.
pub fn segment_of(frame: &[u8]) -> Frame {
    let (ethernet, rest) = frame.split_at(ETHERNET_BYTES);
    assert_eq!(ethernet[12..], [8, 0], "the type of {frame:02x?}");
    let (mut ip, rest) = Ipv4Header::from_slice(rest).expect("an IPv4 header");
    let packet_bytes = ip.payload_len().expect("a length beyond the header's");
    let (packet, padding) = rest.split_at(packet_bytes.into());
    let (mut tcp, payload) = TcpHeader::from_slice(packet).expect("a TCP header");
    (ip.total_len, ip.header_checksum, tcp.checksum) = (0, 0, 0);
    Frame {
        to_mac: ethernet[..6].try_into().expect("six bytes"),
        from_mac: ethernet[6..12].try_into().expect("six bytes"),
        tags: vec![],
        network: Network::V4(ip),
        transport: Transport::Tcp(tcp),
        payload: payload.to_vec(),
        padding: padding.to_vec(),
        unsummed: false,
    }
}

pub fn set_flags(tcp: &mut TcpHeader, flags: u8) {
    tcp.fin = flags & FIN != 0;
    tcp.syn = flags & SYN != 0;
    tcp.rst = flags & RST != 0;
    tcp.psh = flags & PSH != 0;
    tcp.ack = flags & ACK != 0;
}

/// Bytes that show when one is moved or lost.
pub fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 7 + 3) as u8).collect()
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
