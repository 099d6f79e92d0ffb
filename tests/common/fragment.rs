// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Fragments of a datagram, and the datagram that fragments make, by etherparse.

use etherparse::defrag::IpDefragPool;
use etherparse::{IpFragOffset, NetSlice, SlicedPacket};

use xdp_proxy::abi::OutcomeCode;

use super::exchange::*;
use super::frame::*;
use super::rig::*;

impl Frame {
    /// The frame in fragments, cut at these multiples of 8 bytes. IPv6: the
    /// headers before an [`Extension::Fragment`], or all, stand in each of them.
    pub fn fragments(&self, sum: Sum, id: u32, cuts: &[usize]) -> Vec<Vec<u8>> {
        let mut each = self.clone();
        let mut behind = vec![];
        if let Network::V6(_, extensions) = &mut each.network {
            let mark = |extension: &Extension| matches!(extension, Extension::Fragment(..));
            if let Some(place) = extensions.iter().position(mark) {
                behind = extensions.split_off(place).split_off(1);
            }
        }
        let next = behind.first().map_or(self.protocol(), kind_of);
        let payload = [
            Frame::extension_bytes(&behind, self.protocol()),
            self.ip_payload(sum),
        ]
        .concat();
        let begins = [0].iter().chain(cuts);
        let last = [payload.len()];
        let ends = cuts.iter().chain(&last);
        let piece = |(begin, end): (&usize, &usize)| {
            let (begin, end) = (*begin, *end);
            let more = end < payload.len();
            let offset = IpFragOffset::try_new(begin as u16 / 8).expect("13 bits");
            assert_eq!(begin % 8, 0, "a cut");
            let mut frame = each.clone();
            match &mut frame.network {
                Network::V4(ip) => {
                    ip.identification = id as u16;
                    (ip.fragment_offset, ip.more_fragments) = (offset, more);
                }
                Network::V6(_, extensions) => {
                    extensions.push(Extension::Fragment(offset.value(), more, id));
                }
            }
            [
                &frame.link_header(),
                &frame.ip_header_before(next, end - begin),
                &payload[begin..end],
            ]
            .concat()
        };
        begins.zip(ends).map(piece).collect()
    }
}

/// The identification of a fragment.
pub fn fragment_id(frame: &[u8]) -> u32 {
    let packet = SlicedPacket::from_ethernet(frame).expect("a whole packet");
    match packet.net {
        Some(NetSlice::Ipv4(ip)) => ip.header().identification().into(),
        Some(NetSlice::Ipv6(ip)) => {
            let mut extensions = ip.extensions().clone().into_iter();
            let id = extensions.find_map(|extension| match extension {
                etherparse::Ipv6ExtensionSlice::Fragment(header) => Some(header.identification()),
                _ => None,
            });
            id.expect("a fragment header")
        }
        other => panic!("{other:?}"),
    }
}

/// What the receiver makes of the fragments: the payload of the IP packet.
pub fn reassembled(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut pool = IpDefragPool::<(), ()>::new();
    let mut whole = fragments.iter().filter_map(|frame| {
        let packet = SlicedPacket::from_ethernet(frame).expect("a whole packet");
        pool.process_sliced_packet(&packet, (), ())
            .expect("fragments that fit each other")
    });
    whole.next().expect("no fragment is missing").payload
}

/// A datagram in fragments on its way here, and as they must leave.
pub struct Fragmented {
    pub fragments: Vec<Vec<u8>>,
    whole: Frame,
    cuts: Vec<usize>,
    code: OutcomeCode,
}

impl Fragmented {
    /// The kernel completes a checksum before it fragments a packet.
    pub fn new(exchange: &Exchange, frame: &Frame, id: u32, cuts: &[usize]) -> Fragmented {
        let forth = frame.source() == exchange.client;
        Fragmented {
            fragments: frame.fragments(Sum::Complete, id, cuts),
            whole: match forth {
                true => exchange.forwarded(frame),
                false => exchange.returned(frame),
            },
            cuts: cuts.to_vec(),
            code: match forth {
                true => OutcomeCode::OUTCOME_FORWARDED,
                false => OutcomeCode::OUTCOME_RETURNED,
            },
        }
    }

    /// The first fragment goes on; the identification it leaves with.
    #[track_caller]
    pub fn begins(&self, exchange: &Exchange) -> u32 {
        let ran = exchange.counted(&self.fragments[0], self.code);
        let id = fragment_id(&ran.frame);
        assert_eq!(
            (ran.verdict, ran.frame),
            (XDP_TX, self.wanted(id).remove(0))
        );
        id
    }

    /// A later one follows.
    #[track_caller]
    pub fn follows(&self, exchange: &Exchange, id: u32, number: usize) {
        let wanted = &self.wanted(id)[number];
        exchange.becomes(&self.fragments[number], wanted, self.code);
    }

    #[track_caller]
    pub fn all_go_on(&self, exchange: &Exchange) -> u32 {
        let id = self.begins(exchange);
        for number in 1..self.fragments.len() {
            self.follows(exchange, id, number);
        }
        id
    }

    #[track_caller]
    pub fn check(&self, exchange: &Exchange) -> u32 {
        let id = self.all_go_on(exchange);
        let together = reassembled(&self.wanted(id));
        assert!(together.ends_with(&self.whole.ip_payload(Sum::Complete)));
        id
    }

    fn wanted(&self, id: u32) -> Vec<Vec<u8>> {
        self.whole.fragments(Sum::Complete, id, &self.cuts)
    }
}
