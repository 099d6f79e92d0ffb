// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A frame read byte by byte, without the program's help or etherparse's:
//! where things are, and what its checksums should be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub const ETHERNET: usize = 14;
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;
pub const DESTINATION_OPTIONS: u8 = 60;
/// Hop-by-hop, routing and destination options: a length in units of 8 bytes.
pub const OPTIONS: [u8; 3] = [0, 43, DESTINATION_OPTIONS];
pub const TAGS_MAX: usize = 2;
/// How far the program looks: so many extension headers, which end within so
/// many bytes of the IP packet.
const EXTENSIONS_MAX: usize = 6;
const EXTENSIONS_BYTES_MAX: usize = 447;
/// The same of a packet that is quoted: where its headers begin in the frame.
pub const QUOTED_L3_MAX: usize = 471;
pub const QUOTED_L4_MAX: usize = 491;

/// The sum of 16-bit words as they lie in memory (RFC 1071), to be folded.
pub fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(4);
    let mut last = [0; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    let last = u64::from(u32::from_ne_bytes(last));
    let word = |bytes: &[u8]| u64::from(u32::from_ne_bytes(bytes.try_into().expect("4 bytes")));
    words.map(word).sum::<u64>() + last
}

pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A field of 16 bits as it lies in memory.
pub fn field(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

pub fn set_field(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
}

/// A number of 16 bits in network order.
pub fn number(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

pub fn set_number(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

/// What the checksum field at `at` of `bytes` should hold; `more` is the sum of
/// what it covers beside them.
pub fn checksum(bytes: &[u8], at: usize, more: u64) -> u16 {
    !fold(sum(bytes) + more + u64::from(!field(bytes, at)))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    First,
    Later,
}

/// An IP packet in a frame. Lengths are what its headers say, not checked yet.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub l3: usize,
    pub l4: usize,
    /// Where the packet ends.
    pub end: usize,
    pub v6: bool,
    pub protocol: u8,
    pub hops: u8,
    pub part: Part,
    /// Names the datagram that a fragment is of, in memory's order.
    pub id: u32,
    /// Where that stands in the frame.
    pub id_at: usize,
    pub from: IpAddr,
    pub to: IpAddr,
}

impl Packet {
    /// None: no IP packet that has a transport header where it should be.
    pub fn of(frame: &[u8], with_vlan: bool) -> Option<Packet> {
        let mut l3 = ETHERNET;
        for _ in 0..TAGS_MAX {
            if with_vlan && [0x8100, 0x88a8].contains(&number(frame, l3 - 2)) {
                l3 += 4;
                if frame.len() < l3 {
                    return None;
                }
            }
        }
        match number(frame, l3 - 2) {
            0x0800 => Packet::of_ipv4(frame, l3),
            0x86dd => Packet::of_ipv6(frame, l3),
            _ => None,
        }
    }

    /// The packet at `l3` of any bytes.
    pub fn of_ipv4(frame: &[u8], l3: usize) -> Option<Packet> {
        let ip = frame.get(l3..l3 + 20)?;
        let header = usize::from(ip[0] & 0xf) * 4;
        if ip[0] >> 4 != 4 || header < 20 {
            return None;
        }
        let place = number(ip, 6);
        Some(Packet {
            l3,
            l4: l3 + header,
            end: l3 + number(ip, 2),
            v6: false,
            protocol: ip[9],
            hops: ip[8],
            part: match (place & 0x1fff, place & 0x2000) {
                (0, 0) => Part::Whole,
                (0, _) => Part::First,
                _ => Part::Later,
            },
            id: field(ip, 4).into(),
            id_at: l3 + 4,
            from: Ipv4Addr::from(<[u8; 4]>::try_from(&ip[12..16]).ok()?).into(),
            to: Ipv4Addr::from(<[u8; 4]>::try_from(&ip[16..20]).ok()?).into(),
        })
    }

    pub fn of_ipv6(frame: &[u8], l3: usize) -> Option<Packet> {
        let ip = frame.get(l3..l3 + 40)?;
        if ip[0] >> 4 != 6 {
            return None;
        }
        let mut packet = Packet {
            l3,
            l4: l3 + 40,
            end: l3 + 40 + number(ip, 4),
            v6: true,
            protocol: ip[6],
            hops: ip[7],
            part: Part::Whole,
            id: 0,
            id_at: 0,
            from: Ipv6Addr::from(<[u8; 16]>::try_from(&ip[8..24]).ok()?).into(),
            to: Ipv6Addr::from(<[u8; 16]>::try_from(&ip[24..40]).ok()?).into(),
        };
        for _ in 0..EXTENSIONS_MAX {
            if packet.protocol != FRAGMENT && !OPTIONS.contains(&packet.protocol) {
                break;
            }
            let header = frame.get(packet.l4..packet.l4 + 8)?;
            if packet.protocol == FRAGMENT {
                let place = number(header, 2);
                packet.part = match (place >> 3, place & 1) {
                    (0, 0) => packet.part,
                    (0, _) => Part::First,
                    _ => Part::Later,
                };
                packet.id = u32::from_ne_bytes(header[4..8].try_into().ok()?);
                packet.id_at = packet.l4 + 4;
                packet.l4 += 8;
            } else {
                packet.l4 += 8 * (usize::from(header[1]) + 1);
            }
            packet.protocol = header[0];
            // What follows is of no header that later fragments have.
            if packet.part == Part::Later {
                break;
            }
            if packet.l4 - l3 > EXTENSIONS_BYTES_MAX {
                return None;
            }
        }
        Some(packet)
    }

    /// The packet that an ICMP error quotes, with 8 bytes of its transport header
    /// (RFC 792); its length is that of the quote.
    pub fn quoted(frame: &[u8], error: &Packet) -> Option<Packet> {
        let l3 = error.l4 + 8;
        let quoted = match error.v6 {
            true => Packet::of_ipv6(frame, l3),
            false => Packet::of_ipv4(frame, l3),
        }?;
        let has_ports = quoted.part != Part::Later && quoted.l4 + 4 <= frame.len();
        let is_quoted = quoted.l4 + 8 <= error.end;
        let in_sight = l3 <= QUOTED_L3_MAX && quoted.l4 <= QUOTED_L4_MAX;
        let end = error.end.min(frame.len());
        (has_ports && is_quoted && in_sight).then_some(Packet { end, ..quoted })
    }

    /// Where the checksum of its protocol stands in the frame.
    pub fn checksum_at(&self) -> usize {
        self.l4
            + match self.protocol {
                UDP => 6,
                TCP => 16,
                _ => 2,
            }
    }

    /// Source and destination; the frame has them.
    pub fn ends(&self, frame: &[u8]) -> (SocketAddr, SocketAddr) {
        (
            SocketAddr::new(self.from, number(frame, self.l4) as u16),
            SocketAddr::new(self.to, number(frame, self.l4 + 2) as u16),
        )
    }

    /// The headers and lengths contradict neither each other nor the frame.
    pub fn is_sane(&self, frame: &[u8]) -> bool {
        if self.end > frame.len() {
            return false;
        }
        let Some(header) = frame.get(self.l4..self.end) else {
            return false;
        };
        let part = self.part;
        match self.protocol {
            _ if part == Part::Later => true,
            TCP => {
                header.len() >= 20
                    && (20..=header.len()).contains(&(usize::from(header[12] >> 4) * 4))
            }
            _ if header.len() < 8 => false,
            // RFC 8200, section 8.1: with IPv6 there is a checksum.
            UDP if self.v6 && field(header, 6) == 0 => false,
            UDP if part == Part::First => number(header, 4) >= 8,
            UDP => (8..=header.len()).contains(&number(header, 4)),
            _ => true,
        }
    }

    /// What is sent in its IP packet, as far as its own length goes: what the
    /// checksum covers. Of a sane packet.
    fn covered<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        let bytes = &frame[self.l4..self.end];
        match self.protocol {
            UDP if self.part == Part::Whole => &bytes[..number(bytes, 4)],
            _ => bytes,
        }
    }

    /// The sum of the pseudo-header, to be folded.
    fn pseudo_header(&self, bytes: usize) -> u64 {
        address_sum(self.from)
            + address_sum(self.to)
            + u64::from(u16::from(self.protocol).to_be())
            + u64::from((bytes as u16).to_be())
    }

    /// What the field holds until somebody completes it (CHECKSUM_PARTIAL).
    pub fn partial_sum(&self) -> u16 {
        fold(self.pseudo_header(self.end - self.l4))
    }

    /// What the checksum should be over the packet as it lies in the frame.
    pub fn right_sum(&self, frame: &[u8]) -> u16 {
        self.sum_over(self.covered(frame))
    }

    /// The same over all that follows the IP header.
    pub fn right_sum_to_end(&self, frame: &[u8]) -> u16 {
        self.sum_over(&frame[self.l4..self.end])
    }

    fn sum_over(&self, covered: &[u8]) -> u16 {
        let pseudo = match self.protocol {
            ICMP => 0,
            _ => self.pseudo_header(covered.len()),
        };
        match checksum(covered, self.checksum_at() - self.l4, pseudo) {
            0 if self.protocol == UDP => 0xffff,
            right => right,
        }
    }

    /// Of the IPv4 header.
    pub fn right_header_sum(&self, frame: &[u8]) -> u16 {
        checksum(&frame[self.l3..self.l4], 10, 0)
    }
}

pub fn address_sum(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    }
}

pub fn set_addresses(frame: &mut [u8], packet: &Packet, from: IpAddr, to: IpAddr) {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame[packet.l3 + 12..packet.l3 + 16].copy_from_slice(&from.octets());
            frame[packet.l3 + 16..packet.l3 + 20].copy_from_slice(&to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame[packet.l3 + 8..packet.l3 + 24].copy_from_slice(&from.octets());
            frame[packet.l3 + 24..packet.l3 + 40].copy_from_slice(&to.octets());
        }
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// The identification that tells whose fragments are whose.
pub fn set_id(frame: &mut [u8], packet: &Packet, id: u32) {
    match packet.v6 {
        true => frame[packet.id_at..packet.id_at + 4].copy_from_slice(&id.to_ne_bytes()),
        false => set_field(frame, packet.id_at, id as u16),
    }
}

pub fn set_ports(frame: &mut [u8], packet: &Packet, from: u16, to: u16) {
    set_number(frame, packet.l4, from.into());
    set_number(frame, packet.l4 + 2, to.into());
}

/// Where TTL or hop limit stand.
pub fn hops_at(packet: &Packet) -> usize {
    packet.l3 + if packet.v6 { 7 } else { 8 }
}

/// Fills in the checksums of a frame, as far as it has what they are about.
pub fn mend(frame: &mut [u8]) {
    let Some(packet) = Packet::of(frame, true) else {
        return;
    };
    if !packet.v6 && packet.l4 <= frame.len() {
        let right = packet.right_header_sum(frame);
        set_field(frame, packet.l3 + 10, right);
    }
    let has_sum = [TCP, UDP, if packet.v6 { ICMPV6 } else { ICMP }];
    if packet.part == Part::Whole && packet.is_sane(frame) && has_sum.contains(&packet.protocol) {
        let right = packet.right_sum(frame);
        set_field(frame, packet.checksum_at(), right);
    }
}
