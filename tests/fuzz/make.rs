// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What a round does: packets of its flows, and everything that is not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use xdp_proxy::datapath::knows_several_buffers;
use xdp_proxy::service::Health;
use xdp_proxy::tables::Path;

use crate::common::frame::{ACK, FIN, PSH, RST, SYN};
use crate::common::random::Random;
use crate::common::rig::*;
use crate::draft::*;
use crate::wire::*;
use crate::world::*;

const CLIENT_PORTS: [u16; 4] = [1025, 33_000, 50_123, 65_535];
const OTHER_PORTS: [u16; 8] = [0, 1, 22, 80, 443, 1999, 2064, 65_535];

/// More than any frame has.
const FRAME_BYTES: usize = 10_000;
const NOISE_BYTES: usize = FRAME_BYTES + 1024;

pub struct Maker {
    pub random: Random,
    /// Bytes to take payloads from.
    noise: Vec<u8>,
    /// There may be frames in several buffers.
    long_frames: bool,
    /// Packets of flows that may be gone by now.
    late: Vec<Draft>,
    /// Frames that are still to be sent: the fragments of a datagram.
    waiting: Vec<Vec<u8>>,
    /// Addresses of IPv4 and of IPv6 that mean something.
    known: [Vec<IpAddr>; 2],
}

/// Ours, those of backends, and such as no host has.
fn known(world: &World, v6: bool) -> Vec<IpAddr> {
    let tables = &world.rig.tables;
    let others = match v6 {
        false => &[
            "10.0.0.77",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "0.0.0.0",
        ],
        true => &["fd00::77", "::1", "ff02::1", "::", "::ffff:10.0.0.5"][..],
    };
    (tables.vips.iter().copied())
        .chain(tables.sources.iter().map(|source| source.address))
        .chain(tables.backends.iter().map(|b| b.backend.address.ip()))
        .filter(|ip| ip.is_ipv6() == v6)
        .chain(others.iter().map(|text| text.parse().expect("an address")))
        .collect()
}

impl Maker {
    pub fn new(seed: u64, world: &World) -> Maker {
        // splitmix64's mixer: neighbouring seeds have nothing in common.
        let mut word = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mut random = Random((word ^ (word >> 31)) | 1);
        let noise = random.bytes(NOISE_BYTES);
        Maker {
            random,
            noise,
            long_frames: knows_several_buffers(),
            late: Vec::new(),
            waiting: Vec::new(),
            known: [known(world, false), known(world, true)],
        }
    }

    pub fn step(&mut self, world: &World) -> Step {
        if let Some(frame) = self.waiting.pop() {
            return Step::Frame(frame);
        }
        if self.random.once_in(250) {
            return self.event(world);
        }
        let mut frame = match self.random.below(16) {
            0 => self.any_bytes(),
            1 => self.icmp(world),
            2 => self.datagram_in_fragments(world),
            _ => {
                let draft = self.draft(world);
                self.bytes(&draft)
            }
        };
        if self.random.once_in(6) {
            self.mutate(&mut frame);
        }
        Step::Frame(frame)
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.random.below(items.len())]
    }

    /// Not a packet.
    fn event(&mut self, world: &World) -> Step {
        match self.random.below(16) {
            0..4 => Step::Hours(self.pick(&[1, 2, 3, 6, 11, 31])),
            4..8 => Step::Seconds,
            8 => Step::Sweep,
            9 => Step::Limit(!world.icmp_limited),
            _ => {
                let backend = 1 + self.random.below(world.rig.tables.backends.len());
                let path = world.path(backend);
                let address = world.backend_address(backend).ip();
                let mac = backend_mac(address);
                let health = self.pick(&[Health::Unknown, Health::Up, Health::Up, Health::Down]);
                Step::News(
                    backend,
                    match self.random.below(8) {
                        0 => Path {
                            mac: None,
                            alive: false,
                            ..path
                        },
                        1 | 2 => Path {
                            alive: false,
                            ..path
                        },
                        _ => Path {
                            mac: Some([mac[0], mac[1], self.random.below(3) as u8, 1, 2, mac[5]]),
                            alive: true,
                            ..path
                        },
                    },
                    health,
                )
            }
        }
    }

    fn any_bytes(&mut self) -> Vec<u8> {
        let bytes = 14 + self.random.below(120);
        let mut frame = self.random.bytes(bytes);
        if !self.random.once_in(8) {
            frame[..6].copy_from_slice(&LB_MAC);
        }
        let kind = self.pick(&[0x0800, 0x0806, 0x86dd, 0x8100, 0x88a8, 0x9100]);
        set_number(&mut frame, 12, kind);
        frame
    }

    /// A packet of a flow, or one that may begin one, or a stray.
    fn draft(&mut self, world: &World) -> Draft {
        let draft = match self.random.below(16) {
            0..10 => self.of_flow(world),
            10..14 => self.of_client(world),
            14 if !self.late.is_empty() => {
                let at = self.random.below(self.late.len());
                self.late[at].clone()
            }
            _ => self.stray(),
        };
        if self.late.len() < 64 {
            self.late.push(draft.clone());
        } else if self.random.once_in(16) {
            let at = self.random.below(self.late.len());
            self.late[at] = draft.clone();
        }
        draft
    }

    pub fn of_flow(&mut self, world: &World) -> Draft {
        for _ in 0..8 {
            let place = self.random.below(world.flows.len());
            let Some(flow) = &world.flows[place] else {
                continue;
            };
            let protocol = flow.tuple.protocol;
            let flags = self.flags(&[ACK, ACK, ACK, PSH | ACK, PSH | ACK, FIN | ACK, SYN]);
            return if self.random.once_in(2) {
                let mut draft = self.between(protocol, flow.tuple.client, flow.tuple.service);
                draft.flags = flags;
                draft.numbers = self.numbers(flow.next);
                if !self.random.once_in(8) {
                    draft.tags = flow.tags.bytes().to_vec();
                }
                draft
            } else {
                let backend = world.backend_end(flow.backend, &flow.tuple);
                let mut draft = self.between(protocol, backend, flow.source);
                draft.numbers = self.numbers([flow.next[1], flow.next[0]]);
                draft.flags = match flow.answered {
                    true => flags,
                    false => self.flags(&[SYN | ACK, SYN | ACK, SYN | ACK, ACK]),
                };
                draft
            };
        }
        self.of_client(world)
    }

    /// Of a segment whose sender has sent, and whose receiver has sent, up to these: mostly
    /// those themselves, or some near them or far from them.
    fn numbers(&mut self, next: [u32; 2]) -> Option<[u32; 2]> {
        if self.random.once_in(12) {
            return None;
        }
        const APART: [u32; 10] = [
            1, 2, 100, 1460, 16_383, 16_384, 65_536, 131_071, 131_072, 1_048_576,
        ];
        Some(next.map(|number| {
            let apart = self.pick(&APART);
            match self.random.below(10) {
                0 => number.wrapping_add(apart),
                1 => number.wrapping_sub(apart),
                2 => number.wrapping_sub(1),
                _ => number,
            }
        }))
    }

    fn flags(&mut self, likely: &[u8]) -> u8 {
        match self.random.below(40) {
            0 => RST,
            1 => RST | ACK,
            2 => self.random.word() as u8,
            _ => self.pick(likely),
        }
    }

    fn of_client(&mut self, world: &World) -> Draft {
        let listen = world.served[self.random.below(world.served.len())].listen;
        let range = listen.ports.range();
        let ports = usize::from(range.end() - range.start()) + 1;
        let port = range.start() + self.random.below(ports.min(8)) as u16;
        let service = SocketAddr::new(listen.vip, port);
        let protocol = number_of(listen.protocol);
        let client = self.client(service.ip());
        let mut draft = self.between(protocol, client, service);
        draft.flags = self.flags(&[SYN, SYN, SYN, SYN, ACK, FIN | ACK]);
        draft.numbers = Some([self.random.word() as u32, 0]);
        draft
    }

    fn client(&mut self, vip: IpAddr) -> SocketAddr {
        if self.random.once_in(40) {
            return self.somebody(vip.is_ipv6());
        }
        let number = self.random.below(40) as u8;
        let ip: IpAddr = match vip {
            IpAddr::V4(_) => Ipv4Addr::new(100, 64, 3, number).into(),
            IpAddr::V6(_) => {
                Ipv6Addr::new(0xfd01, 0, number.into(), 0, 7, 0, 0, number.into()).into()
            }
        };
        SocketAddr::new(ip, self.pick(&CLIENT_PORTS))
    }

    /// Any address that means something, ours among them.
    fn somebody(&mut self, v6: bool) -> SocketAddr {
        let port = match self.random.below(3) {
            0 => *PORTS.start() + self.random.below(PORTS.len()) as u16,
            1 => self.pick(&OTHER_PORTS),
            _ => self.pick(&[53, 80, 443, 5353, 8080]),
        };
        let known = &self.known[usize::from(v6)];
        let ip = known[self.random.below(known.len())];
        SocketAddr::new(ip, port)
    }

    fn stray(&mut self) -> Draft {
        let v6 = self.random.once_in(2);
        let protocol = self.pick(&[TCP, UDP, ICMP, ICMPV6, 132]);
        let (from, to) = (self.somebody(v6), self.somebody(v6));
        let mut draft = self.between(protocol, from, to);
        draft.flags = self.flags(&[SYN, ACK]);
        draft
    }

    /// A packet with whatever may vary in it.
    fn between(&mut self, protocol: u8, from: SocketAddr, to: SocketAddr) -> Draft {
        let word = self.random.word();
        let bits = |from: u32, count: u32| (word >> from) as usize & ((1 << count) - 1);
        let mut draft = Draft::new(protocol, from, to);
        draft.from_mac[5] = bits(0, 2) as u8;
        draft.hops = match bits(2, 6) {
            0 => 1,
            1 => 0,
            2 => 2,
            3 => 255,
            _ => 64,
        };
        draft.id = (word >> 32) as u32;
        draft.payload = match bits(8, 6) {
            0 if self.long_frames && bits(44, 3) == 0 => self.random.below(9000),
            0 => self.random.below(3000),
            1..4 => self.random.below(1460),
            _ => bits(14, 5),
        };
        draft.padding = if bits(20, 4) == 0 { bits(24, 3) } else { 0 };
        if self.long_frames && bits(47, 10) == 0 {
            draft.padding += 4000;
        }
        if bits(27, 3) == 0 {
            draft.options = self.random.below(11);
        }
        if bits(30, 3) == 0 {
            draft.l4_options = self.random.below(11);
        }
        draft.sum = match bits(33, 5) {
            0 => Sum::Wrong,
            1 | 2 => Sum::None,
            3 | 4 => Sum::Both,
            5..16 => Sum::Partial,
            _ => Sum::Right,
        };
        draft.tags = match bits(38, 5) {
            0 => [0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3].to_vec(),
            1..3 => [0x88, 0xa8, 0x20, 7, 0x81, 0, 0, 9].to_vec(),
            3..6 => [0x81, 0, 0, 10].to_vec(),
            _ => vec![],
        };
        draft
    }

    pub fn bytes(&mut self, draft: &Draft) -> Vec<u8> {
        let at = self.random.below(NOISE_BYTES - FRAME_BYTES);
        let noise = &self.noise[at..];
        draft.bytes(noise)
    }

    /// The first fragment of a datagram; the others wait, and may get lost.
    fn datagram_in_fragments(&mut self, world: &World) -> Vec<u8> {
        let mut draft = self.draft(world);
        draft.payload = self.random.below(256);
        // Few identifications, so that clients choose the same.
        draft.id = self.random.below(4) as u32;
        let unit = 8 * (1 + self.random.below(8));
        let mut parts = draft.fragments(&self.noise, unit);
        if self.random.once_in(4) {
            self.random.shuffle(&mut parts);
        }
        parts.reverse();
        if self.random.once_in(4) {
            let kept = self.random.below(parts.len());
            parts.truncate(kept.max(1));
        }
        self.waiting = parts;
        self.waiting.pop().expect("a datagram has a first fragment")
    }

    /// An error about a packet that we sent, or may have, or an echo.
    fn icmp(&mut self, world: &World) -> Vec<u8> {
        if self.random.once_in(4) {
            let to = world.served[self.random.below(world.served.len())]
                .listen
                .vip;
            let from = self.client(to);
            let protocol = if to.is_ipv6() { ICMPV6 } else { ICMP };
            let mut draft = self.between(protocol, from, SocketAddr::new(to, 0));
            draft.icmp = if to.is_ipv6() { (128, 0) } else { (8, 0) };
            return self.bytes(&draft);
        }
        // As the packet came to us, so it is turned to what we sent.
        let about = self.of_flow(world);
        let mut about = match world.sent_as(about.protocol, about.from, about.to) {
            Some((from, to)) => Draft { from, to, ..about },
            None => about,
        };
        about.sum = Sum::Right;
        about.tags.clear();
        let quote = self.bytes(&about);
        let router = match self.random.below(3) {
            0 => about.to,
            _ => self.somebody(about.from.is_ipv6()),
        };
        let v6 = router.is_ipv6();
        let mut draft = self.between(if v6 { ICMPV6 } else { ICMP }, router, about.from);
        draft.icmp = match (v6, self.random.below(4)) {
            (false, 0) => (3, 4),
            (false, 1) => (3, 3),
            (false, 2) => (11, 0),
            (false, _) => (12, 0),
            (true, kind) => (1 + kind as u8, 0),
        };
        let whole = quote.len() - ETHERNET;
        let kept = match self.random.below(4) {
            0 => self.random.below(whole + 1),
            1 => whole.min(28),
            _ => whole.min(128),
        };
        draft.quote = quote[ETHERNET..ETHERNET + kept].to_vec();
        draft.payload = 0;
        self.bytes(&draft)
    }

    /// A few changes; the checksums mended afterwards, or not.
    fn mutate(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..1 + self.random.below(3) {
            self.change(frame);
        }
        if self.random.once_in(2) {
            mend(frame);
        }
    }

    fn change(&mut self, frame: &mut Vec<u8>) {
        let packet = Packet::of(frame, true);
        let end = frame.len().min(packet.map_or(60, |packet| packet.l4 + 40));
        let random = &mut self.random;
        match (random.below(12), packet) {
            (0 | 1, _) => frame[random.below(end)] = random.word() as u8,
            (2, _) => frame[random.below(end)] ^= 1 << random.below(8),
            (3, _) => frame.truncate(random.below(frame.len()).max(ETHERNET)),
            (4, _) => {
                let bytes = 1 + random.below(32);
                frame.extend_from_slice(&random.bytes(bytes));
            }
            (5, Some(packet)) => {
                // The length, a little or quite another.
                let at = packet.l3 + if packet.v6 { 4 } else { 2 };
                let length = match random.below(3) {
                    0 => random.below(0x10000),
                    1 => number(frame, at)
                        .wrapping_add(random.below(9))
                        .wrapping_sub(4),
                    _ => random.below(frame.len()),
                };
                set_number(frame, at, length);
            }
            (6, Some(packet)) => frame[hops_at(&packet)] = random.below(3) as u8,
            (7, Some(packet)) if !packet.v6 => {
                let place = [0x2000, 0x2001, 0x0001, 0x4000, 0x6000, 0x1fff][random.below(6)];
                set_number(frame, packet.l3 + 6, place);
            }
            (8, Some(packet)) => {
                let kind = [TCP, UDP, ICMP, ICMPV6, 0, 43, 44, 60, 59][random.below(9)];
                frame[packet.l3 + if packet.v6 { 6 } else { 9 }] = kind;
            }
            (9, Some(packet)) if frame.len() >= packet.l4 + 14 => {
                let at = packet.l4 + if packet.protocol == UDP { 5 } else { 12 };
                frame[at] = random.word() as u8;
            }
            (10, Some(packet)) => {
                let (from, to) = (self.somebody(packet.v6).ip(), self.somebody(packet.v6).ip());
                match self.random.below(3) {
                    0 => set_addresses(frame, &packet, from, packet.to),
                    1 => set_addresses(frame, &packet, packet.from, to),
                    _ => set_addresses(frame, &packet, packet.to, packet.from),
                }
            }
            (11, Some(packet)) if frame.len() >= packet.l4 + 4 => {
                let port = self.somebody(packet.v6).port();
                let (from, to) = packet.ends(frame);
                match self.random.below(2) {
                    0 => set_ports(frame, &packet, port, to.port()),
                    _ => set_ports(frame, &packet, from.port(), port),
                }
            }
            _ => frame[random.below(6)] ^= 1,
        }
    }
}
