// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A packet to be made, and its bytes.

use std::net::{IpAddr, SocketAddr};

use crate::common::rig::{CLIENT_MAC, LB_MAC};
use crate::wire::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    Right,
    /// Wrong by some amount, that of the IPv4 header too.
    Wrong,
    /// The field is 0.
    None,
    /// To be completed by somebody (CHECKSUM_PARTIAL).
    Partial,
    /// Right, and as one that is to be completed would be.
    Both,
}

#[derive(Clone, Debug)]
pub struct Draft {
    pub from_mac: [u8; 6],
    /// As they lie in the frame.
    pub tags: Vec<u8>,
    pub protocol: u8,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub hops: u8,
    pub id: u32,
    /// IPv4: words of options. IPv6: extension headers are made of the number.
    pub options: usize,
    pub flags: u8,
    /// TCP's: of its sequence, and what it acknowledges. None: any.
    pub numbers: Option<[u32; 2]>,
    /// Words of TCP's options.
    pub l4_options: usize,
    /// Type and code.
    pub icmp: (u8, u8),
    /// What an ICMP error quotes.
    pub quote: Vec<u8>,
    pub payload: usize,
    /// Bytes after the packet's end.
    pub padding: usize,
    pub sum: Sum,
}

impl Draft {
    pub fn new(protocol: u8, from: SocketAddr, to: SocketAddr) -> Draft {
        Draft {
            from_mac: CLIENT_MAC,
            tags: vec![],
            protocol,
            from,
            to,
            hops: 64,
            id: 0,
            options: 0,
            flags: 0,
            numbers: None,
            l4_options: 0,
            icmp: (0, 0),
            quote: vec![],
            payload: 0,
            padding: 0,
            sum: Sum::Right,
        }
    }

    /// Ethernet and IP headers of a packet that carries so many bytes; `part` is
    /// the fragment's offset in bytes, and whether more follow.
    fn head(&self, frame: &mut Vec<u8>, noise: &[u8], bytes: usize, part: Option<(usize, bool)>) {
        frame.extend_from_slice(&LB_MAC);
        frame.extend_from_slice(&self.from_mac);
        frame.extend_from_slice(&self.tags);
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend_from_slice(&[8, 0]);
                let l3 = frame.len();
                let header = 20 + 4 * self.options;
                let (offset, more) = part.unwrap_or_default();
                let place = (offset / 8) | (usize::from(more) << 13);
                frame.extend_from_slice(&[0x40 | (header / 4) as u8, self.id as u8, 0, 0]);
                frame.extend_from_slice(&(self.id as u16).to_be_bytes());
                frame.extend_from_slice(&(place as u16).to_be_bytes());
                frame.extend_from_slice(&[self.hops, self.protocol, 0, 0]);
                frame.extend_from_slice(&from.octets());
                frame.extend_from_slice(&to.octets());
                frame.extend_from_slice(&noise[..header - 20]);
                set_number(frame, l3 + 2, header + bytes);
                let sum = checksum(&frame[l3..], 10, 0);
                let wrong = u16::from(self.sum == Sum::Wrong);
                set_field(frame, l3 + 10, sum.wrapping_add(wrong * noise[0] as u16));
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend_from_slice(&[0x86, 0xdd]);
                let l3 = frame.len();
                frame.extend_from_slice(&[0x60, noise[0], noise[1], noise[2], 0, 0, 0, self.hops]);
                frame.extend_from_slice(&from.octets());
                frame.extend_from_slice(&to.octets());
                // Where the number of the next header is to be written.
                let mut next_at = l3 + 6;
                for i in 0..self.options {
                    let units = usize::from(noise[i] >> 6);
                    frame[next_at] = OPTIONS[i % 3];
                    next_at = frame.len();
                    frame.extend_from_slice(&[0, units as u8]);
                    frame.extend_from_slice(&noise[..8 * units + 6]);
                }
                if let Some((offset, more)) = part {
                    frame[next_at] = 44;
                    next_at = frame.len();
                    let place = (offset | usize::from(more)) as u16;
                    frame.extend_from_slice(&[0, 0]);
                    frame.extend_from_slice(&place.to_be_bytes());
                    frame.extend_from_slice(&self.id.to_be_bytes());
                }
                frame[next_at] = self.protocol;
                let extensions = frame.len() - l3 - 40;
                set_number(frame, l3 + 4, extensions + bytes);
            }
            _ => panic!("{self:?} is of two families"),
        }
    }

    /// All that follows the IP headers, without its checksum.
    fn body(&self, noise: &[u8]) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.payload + self.quote.len() + 64);
        let ports = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()];
        match self.protocol {
            UDP => {
                body.extend_from_slice(ports.as_flattened());
                body.extend_from_slice(&((8 + self.payload) as u16).to_be_bytes());
                body.extend_from_slice(&[0, 0]);
            }
            ICMP | ICMPV6 => {
                body.extend_from_slice(&[self.icmp.0, self.icmp.1, 0, 0]);
                body.extend_from_slice(&noise[..4]);
                body.extend_from_slice(&self.quote);
            }
            _ => {
                body.extend_from_slice(ports.as_flattened());
                match self.numbers {
                    Some(numbers) => {
                        body.extend_from_slice(numbers.map(u32::to_be_bytes).as_flattened());
                    }
                    None => body.extend_from_slice(&noise[..8]),
                }
                body.extend_from_slice(&[(5 + self.l4_options as u8) << 4, self.flags, 1, 2]);
                body.extend_from_slice(&[0, 0, noise[8], noise[9]]);
                body.extend_from_slice(&noise[..4 * self.l4_options]);
            }
        }
        body.extend_from_slice(&noise[..self.payload]);
        body
    }

    pub fn bytes(&self, noise: &[u8]) -> Vec<u8> {
        let body = self.body(noise);
        let mut frame = Vec::with_capacity(body.len() + 128 + self.padding);
        self.head(&mut frame, noise, body.len(), None);
        frame.extend_from_slice(&body);
        self.fill_sum(&mut frame);
        frame.extend_from_slice(&noise[..self.padding]);
        frame
    }

    fn fill_sum(&self, frame: &mut [u8]) {
        let Some(packet) = Packet::of(frame, true).filter(|packet| packet.l4 < frame.len()) else {
            return;
        };
        let at = packet.checksum_at();
        if at + 2 > frame.len() {
            return;
        }
        let right = packet.right_sum_to_end(frame);
        let sum = match self.sum {
            Sum::Right => right,
            Sum::Wrong => right.wrapping_add(0x0101 * u16::from(frame[0].max(self.hops))),
            Sum::None => 0,
            Sum::Partial | Sum::Both => packet.partial_sum(),
        };
        set_field(frame, at, sum);
        // A word that makes it right: TCP's urgent pointer, or of the payload.
        let word = at + 2;
        if self.sum == Sum::Both && word + 2 <= packet.end {
            set_field(frame, word, 0);
            let missing = fold(u64::from(packet.right_sum_to_end(frame)) + u64::from(!sum));
            set_field(frame, word, missing);
        }
    }

    /// The same as fragments that carry `unit` bytes each.
    pub fn fragments(&self, noise: &[u8], unit: usize) -> Vec<Vec<u8>> {
        let mut body = self.body(noise);
        let whole = self.bytes(noise);
        if let Some(packet) = Packet::of(&whole, true)
            && let Some(with_sum) = whole.get(packet.l4..packet.l4 + body.len())
        {
            body.copy_from_slice(with_sum);
        }
        let count = body.len().div_ceil(unit);
        let part = |(i, bytes): (usize, &[u8])| {
            let mut frame = Vec::with_capacity(bytes.len() + 128);
            self.head(
                &mut frame,
                noise,
                bytes.len(),
                Some((i * unit, i + 1 < count)),
            );
            frame.extend_from_slice(bytes);
            frame.extend_from_slice(&noise[..self.padding]);
            frame
        };
        body.chunks(unit).enumerate().map(part).collect()
    }
}
