// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Every byte that must come out, checksums by reference sums over what was
//! received and what is sent: right ones stay right, wrong ones stay wrong by
//! the same amount.

use std::net::{IpAddr, SocketAddr};

use crate::common::frame::{ACK, FIN, RST, SYN};
use crate::common::icmp::{Told, icmp_answer};
use crate::common::rig::MTU_BYTES;
use crate::judge::flags_of;
use crate::wire::*;
use crate::world::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UDP: there is none.
    Unsummed,
    Complete,
    Partial,
}

/// How far a checksum is from the right one, in one's-complement terms.
pub fn error(is: u16, right: u16) -> u32 {
    (u32::from(is) + 0xffff - u32::from(right)) % 0xffff
}

/// What a checksum must be that is updated: right if it was right; else wrong
/// by the same amount, of which `got` may be the other form (0 and 0xffff).
fn updated((was, was_right): (u16, u16), right: u16, got: u16) -> u16 {
    if was == was_right {
        right
    } else if error(got, right) == error(was, was_right) {
        got
    } else {
        fold(u64::from(right) + u64::from(error(was, was_right)))
    }
}

/// A field of what came out, if that is so long.
fn got(out: &[u8], at: usize) -> u16 {
    out.get(at..at + 2).map_or(0, |_| field(out, at))
}

/// RFC 768: a sum of 0 means that there is none.
fn for_protocol(packet: &Packet, sum: u16) -> u16 {
    match (packet.protocol, sum) {
        (UDP, 0) => 0xffff,
        _ => sum,
    }
}

/// What a packet's checksum is, and the identification that a fragment gets.
pub struct How {
    pub kind: Kind,
    pub id: Option<u32>,
}

impl World {
    /// By the table in docs/design.md; `partial` is what the sender's last
    /// clear one was.
    pub fn kind(&self, frame: &[u8], packet: &Packet, partial: bool) -> Kind {
        let settings = &self.rig.settings;
        let is = field(frame, packet.checksum_at());
        if packet.protocol == UDP && is == 0 {
            Kind::Unsummed
        } else if packet.part != Part::Whole {
            // Who fragments a packet completes its sum before.
            Kind::Complete
        } else if !settings.partial_checksums || is != packet.partial_sum() {
            Kind::Complete
        } else if packet.end - packet.l3 > MTU_BYTES as usize && !settings.complete_checksums {
            Kind::Partial
        } else if packet.right_sum_to_end(frame) == is && !partial {
            Kind::Complete
        } else {
            Kind::Partial
        }
    }

    /// One hop further, between other ends.
    pub fn want_rewritten(
        &mut self,
        frame: &[u8],
        packet: &Packet,
        link: ([u8; 6], Tags),
        (from, to): (SocketAddr, SocketAddr),
        how: How,
        out: &[u8],
    ) {
        let mut want = std::mem::take(&mut self.want);
        let new = start(&mut want, frame, packet, link, (from.ip(), to.ip()));
        if let Some(id) = how.id {
            set_id(&mut want, &new, id);
        }
        self.want_header_sum(&mut want, &new, (frame, packet), out);
        if packet.part != Part::Later {
            set_ports(&mut want, &new, from.port(), to.port());
            let at = new.checksum_at();
            let sum = match how.kind {
                Kind::Unsummed => 0,
                Kind::Partial if self.rig.settings.complete_checksums => {
                    new.right_sum_to_end(&want)
                }
                Kind::Partial => new.partial_sum(),
                Kind::Complete => {
                    let was = (field(frame, packet.checksum_at()), packet.right_sum(frame));
                    for_protocol(packet, updated(was, new.right_sum(&want), got(out, at)))
                }
            };
            set_field(&mut want, at, sum);
        }
        self.want = want;
    }

    fn want_header_sum(
        &self,
        want: &mut [u8],
        new: &Packet,
        (frame, packet): (&[u8], &Packet),
        out: &[u8],
    ) {
        if new.v6 {
            return;
        }
        let at = new.l3 + 10;
        let was = (field(frame, packet.l3 + 10), packet.right_header_sum(frame));
        let sum = updated(was, new.right_header_sum(want), got(out, at));
        set_field(want, at, sum);
    }

    /// The RST that answers a segment (RFC 9293, section 3.10.7.1), in its place.
    pub fn want_reset(&mut self, frame: &[u8], packet: &Packet, out: &[u8]) {
        let kind = self.kind(frame, packet, false);
        let mut want = std::mem::take(&mut self.want);
        want.clear();
        want.extend_from_slice(&frame[6..12]);
        want.extend_from_slice(&frame[..6]);
        want.extend_from_slice(&frame[12..packet.l4 + 20]);
        let new = Packet {
            end: packet.l4 + 20,
            from: packet.to,
            to: packet.from,
            ..*packet
        };
        want[hops_at(&new)] = 64;
        if new.v6 {
            set_number(&mut want, new.l3 + 4, new.end - new.l3 - 40);
        } else {
            set_number(&mut want, new.l3 + 2, new.end - new.l3);
            set_number(&mut want, new.l3 + 4, 0);
            set_number(&mut want, new.l3 + 6, 0x4000);
        }
        set_addresses(&mut want, &new, new.from, new.to);
        self.want_header_sum(&mut want, &new, (frame, packet), out);

        let (from, to) = packet.ends(frame);
        set_ports(&mut want, &new, to.port(), from.port());
        let flags = flags_of(frame, packet);
        let tcp = &frame[packet.l4..packet.end];
        let number = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().expect("4 bytes"));
        let payload = tcp.len() - usize::from(tcp[12] >> 4) * 4;
        let length = payload as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let (sequence, acknowledged, flags) = match flags & ACK {
            0 => (0, number(4).wrapping_add(length), RST | ACK),
            _ => (number(8), 0, RST),
        };
        let tcp = &mut want[new.l4..];
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        tcp[8..12].copy_from_slice(&u32::to_be_bytes(acknowledged));
        // Reserved bits and window, urgent pointer: none.
        tcp[12..20].copy_from_slice(&[5 << 4, flags, 0, 0, 0, 0, 0, 0]);
        let sum = match kind {
            Kind::Partial if !self.rig.settings.complete_checksums => new.partial_sum(),
            _ => new.right_sum(&want),
        };
        set_field(&mut want, new.checksum_at(), sum);
        if !self.can_cut(frame) {
            want.resize(frame.len(), 0);
        }
        self.want = want;
    }

    /// The ICMP error that a sender is told by.
    pub fn want_told(&mut self, frame: &[u8], packet: &Packet, told: Told) {
        let partial = self.kind(frame, packet, false) == Kind::Partial;
        let completed = partial && !self.rig.settings.complete_checksums;
        let tags = &frame[12..packet.l3 - 2];
        let untagged = [&frame[..12], &frame[packet.l3 - 2..]].concat();
        let answer = icmp_answer(
            &untagged,
            packet.l4 - tags.len(),
            told,
            completed.then_some(packet.checksum_at() - packet.l4),
        );
        self.want.clear();
        self.want.extend_from_slice(&answer[..12]);
        self.want.extend_from_slice(tags);
        self.want.extend_from_slice(&answer[12..]);
    }

    /// The reply to an echo request.
    pub fn want_echo(&mut self, frame: &[u8], packet: &Packet, out: &[u8]) {
        let mut want = std::mem::take(&mut self.want);
        want.clear();
        want.extend_from_slice(&frame[6..12]);
        want.extend_from_slice(&frame[..6]);
        want.extend_from_slice(&frame[12..]);
        let new = Packet {
            from: packet.to,
            to: packet.from,
            ..*packet
        };
        want[hops_at(&new)] = 64;
        set_addresses(&mut want, &new, new.from, new.to);
        self.want_header_sum(&mut want, &new, (frame, packet), out);
        want[new.l4] = if new.v6 { 129 } else { 0 };
        self.want_icmp_sum(&mut want, &new, (frame, packet), out);
        self.want = want;
    }

    fn want_icmp_sum(
        &self,
        want: &mut [u8],
        new: &Packet,
        (frame, packet): (&[u8], &Packet),
        out: &[u8],
    ) {
        let at = new.checksum_at();
        let was = (field(frame, packet.checksum_at()), packet.right_sum(frame));
        let sum = updated(was, new.right_sum(want), got(out, at));
        set_field(want, at, sum);
    }

    /// An ICMP error between other ends, about a packet between these ends.
    pub fn want_error(
        &mut self,
        frame: &[u8],
        packet: &Packet,
        link: ([u8; 6], Tags),
        (from, to): (SocketAddr, SocketAddr),
        out: &[u8],
    ) {
        let mut want = std::mem::take(&mut self.want);
        let new = start(&mut want, frame, packet, link, (from.ip(), to.ip()));
        self.want_header_sum(&mut want, &new, (frame, packet), out);
        let quoted = Packet::quoted(&want, &new).expect("it quotes a packet");
        let ends = quoted.l4..quoted.l4 + 4;
        let before = address_sum(quoted.from) + address_sum(quoted.to);
        let after = address_sum(from.ip()) + address_sum(to.ip());
        // The quoted packet went the other way.
        set_addresses(&mut want, &quoted, to.ip(), from.ip());
        if !quoted.v6 {
            moved(&mut want, quoted.l3 + 10, before, after, out);
        }
        let before = before + sum(&want[ends.clone()]);
        set_ports(&mut want, &quoted, to.port(), from.port());
        let after = after + sum(&want[ends]);
        let at = quoted.checksum_at();
        if at + 2 <= quoted.end && (quoted.protocol == TCP || field(&want, at) != 0) {
            moved(&mut want, at, before, after, out);
            let sum = for_protocol(&quoted, field(&want, at));
            set_field(&mut want, at, sum);
        }
        self.want_icmp_sum(&mut want, &new, (frame, packet), out);
        self.want = want;
    }
}

/// A checksum over words whose sum was `before` and is `after`; `out` may have
/// the other form of it.
fn moved(want: &mut [u8], at: usize, before: u64, after: u64, out: &[u8]) {
    let sum = fold(u64::from(field(want, at)) + before + u64::from(!fold(after)));
    let got = got(out, at);
    set_field(want, at, if error(got, sum) == 0 { got } else { sum });
}

/// The frame one hop further: link, addresses, TTL or hop limit.
fn start(
    want: &mut Vec<u8>,
    frame: &[u8],
    packet: &Packet,
    (mac, tags): ([u8; 6], Tags),
    (from, to): (IpAddr, IpAddr),
) -> Packet {
    want.clear();
    want.extend_from_slice(&mac);
    want.extend_from_slice(&frame[..6]);
    want.extend_from_slice(tags.bytes());
    let l3 = want.len() + 2;
    want.extend_from_slice(&frame[packet.l3 - 2..]);
    let new = Packet {
        l3,
        l4: packet.l4 - packet.l3 + l3,
        end: packet.end - packet.l3 + l3,
        id_at: (packet.id_at + l3).saturating_sub(packet.l3),
        from,
        to,
        ..*packet
    };
    want[hops_at(&new)] -= 1;
    set_addresses(want, &new, from, to);
    new
}
