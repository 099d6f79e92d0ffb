// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A client's connection through a loaded program: sends the packets of both
//! ends and compares every byte that comes out.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use super::frames::*;
use super::rig::*;

/// The sequence numbers of both ends' segments.
pub const CLIENT_SEQUENCE: u32 = 1000;
pub const BACKEND_SEQUENCE: u32 = 5000;

/// How a connection looks from its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path {
    pub source: SocketAddrV4,
    pub backend: SocketAddrV4,
}

pub struct Connection<'rig> {
    pub rig: &'rig Rig,
    pub client: SocketAddrV4,
    pub client_mac: [u8; 6],
    pub service: SocketAddrV4,
    /// Known once a packet reached the backend.
    pub path: Option<Path>,
    /// How both ends send.
    pub sum: Sum,
}

/// A client's address that differs for every `number` below 2^24.
pub fn client(number: u32) -> SocketAddrV4 {
    let [_, a, b, c] = number.to_be_bytes();
    let port = 1024 + (number.wrapping_mul(40_503) % 60_000) as u16;
    SocketAddrV4::new(Ipv4Addr::new(100, a, b, c), port)
}

pub fn service_address() -> SocketAddrV4 {
    SocketAddrV4::new(VIP, 80)
}

pub fn mac_of(backend: SocketAddrV4) -> [u8; 6] {
    backend_mac(IpAddr::V4(*backend.ip()))
}

impl<'rig> Connection<'rig> {
    /// From client `number` to [`service_address`].
    pub fn new(rig: &'rig Rig, number: u32) -> Connection<'rig> {
        Connection::between(rig, client(number), service_address())
    }

    pub fn between(
        rig: &'rig Rig,
        client: SocketAddrV4,
        service: SocketAddrV4,
    ) -> Connection<'rig> {
        Connection {
            rig,
            client,
            client_mac: CLIENT_MAC,
            service,
            path: None,
            sum: Sum::Complete,
        }
    }

    /// The connection of client `number` that took this path before; where a
    /// test had to have the rig for itself in between.
    pub fn resumed(rig: &'rig Rig, number: u32, path: Path) -> Connection<'rig> {
        Connection {
            path: Some(path),
            ..Connection::new(rig, number)
        }
    }

    pub fn path(&self) -> Path {
        self.path.expect("a packet reached a backend before")
    }

    pub fn port(&self) -> u16 {
        self.path().source.port()
    }

    pub fn client_segment(&self, flags: u8) -> Segment {
        let mut segment = Segment::new((self.client_mac, LB_MAC), self.client, self.service);
        segment.tcp.sequence_number = CLIENT_SEQUENCE;
        segment.tcp.acknowledgment_number = if flags & ACK == 0 {
            0
        } else {
            BACKEND_SEQUENCE + 1
        };
        segment.tcp.window_size = 0xfaf0;
        segment.set_flags(flags);
        segment
    }

    pub fn backend_segment(&self, flags: u8) -> Segment {
        let Path { source, backend } = self.path();
        let mut segment = Segment::new((mac_of(backend), LB_MAC), backend, source);
        segment.tcp.sequence_number = BACKEND_SEQUENCE;
        segment.tcp.acknowledgment_number = CLIENT_SEQUENCE + 1;
        segment.tcp.window_size = 0x7d78;
        segment.set_flags(flags);
        segment
    }

    /// What must come out where `segment` reaches the backend by `path`.
    pub fn forwarded(segment: &Segment, path: Path) -> Segment {
        let mut out = segment.clone();
        out.from_mac = segment.to_mac;
        out.to_mac = mac_of(path.backend);
        out.set_source(path.source);
        out.set_destination(path.backend);
        out.ip.time_to_live -= 1;
        out
    }

    /// What must come out where `segment` returns to the client.
    pub fn returned(&self, segment: &Segment) -> Segment {
        let mut out = segment.clone();
        out.from_mac = segment.to_mac;
        out.to_mac = self.client_mac;
        out.set_source(self.service);
        out.set_destination(self.client);
        out.ip.time_to_live -= 1;
        out
    }

    /// Sends to the backend; notes the path it took, or checks that it is the
    /// one taken before. Every byte is compared.
    #[track_caller]
    pub fn forward_as(&mut self, segment: &Segment, sent: Sum, expected: Sum) {
        let ran = self.rig.run(&segment.bytes(sent));
        assert_eq!(ran.verdict, XDP_TX, "the verdict on {segment:?}");
        let out = Segment::parse(&ran.frame);
        let path = *self.path.get_or_insert(Path {
            source: out.source(),
            backend: out.destination(),
        });
        let wanted = Self::forwarded(segment, path);
        assert_eq!(out, wanted, "fields of the packet to the backend");
        assert_eq!(ran.frame, wanted.bytes(expected), "bytes to the backend");
    }

    /// Sends to the client; every byte is compared.
    #[track_caller]
    pub fn reply_as(&self, segment: &Segment, sent: Sum, expected: Sum) {
        let ran = self.rig.run(&segment.bytes(sent));
        assert_eq!(ran.verdict, XDP_TX, "the verdict on {segment:?}");
        let wanted = self.returned(segment);
        let out = Segment::parse(&ran.frame);
        assert_eq!(out, wanted, "fields of the packet to the client");
        assert_eq!(ran.frame, wanted.bytes(expected), "bytes to the client");
    }

    /// How a packet of [`Connection::sum`] leaves this program.
    pub fn sum_out(&self) -> Sum {
        if self.rig.settings.complete_checksums {
            Sum::Complete
        } else {
            self.sum
        }
    }

    #[track_caller]
    pub fn forward(&mut self, flags: u8) {
        let segment = self.client_segment(flags);
        self.forward_as(&segment, self.sum, self.sum_out());
    }

    #[track_caller]
    pub fn reply(&self, flags: u8) {
        let segment = self.backend_segment(flags);
        self.reply_as(&segment, self.sum, self.sum_out());
    }

    /// SYN, SYN+ACK, ACK.
    #[track_caller]
    pub fn open(&mut self) {
        self.forward(SYN);
        self.reply(SYN | ACK);
        self.forward(ACK);
    }

    /// FIN from the client, then from the backend, and the last ACK.
    #[track_caller]
    pub fn close(&mut self) {
        self.forward(FIN | ACK);
        self.reply(FIN | ACK);
        self.forward(ACK);
    }

    /// Whether a whole handshake was let through: as [`Connection::try_syn`].
    #[track_caller]
    pub fn try_open(&mut self) -> bool {
        let begun = self.try_syn();
        if begun {
            self.reply(SYN | ACK);
            self.forward(ACK);
        }
        begun
    }

    /// Sends a SYN that may be refused: true if it reached a backend.
    #[track_caller]
    pub fn try_syn(&mut self) -> bool {
        let segment = self.client_segment(SYN);
        let ran = self.rig.run(&segment.bytes(self.sum));
        assert_eq!(ran.verdict, XDP_TX, "the verdict on a SYN");
        let out = Segment::parse(&ran.frame);
        if out.tcp.rst {
            assert_eq!(ran.frame, self.reset(&segment).bytes(self.sum_out()));
            return false;
        }
        self.path = None;
        let path = Path {
            source: out.source(),
            backend: out.destination(),
        };
        let wanted = Self::forwarded(&segment, path);
        assert_eq!(ran.frame, wanted.bytes(self.sum_out()), "bytes of a SYN");
        self.path = Some(path);
        true
    }

    /// The RST that answers `segment` (RFC 9293, section 3.10.7.1).
    pub fn reset(&self, segment: &Segment) -> Segment {
        let tcp = &segment.tcp;
        let mut out = Segment::new(
            (segment.to_mac, segment.from_mac),
            segment.destination(),
            segment.source(),
        );
        out.ip.dscp = segment.ip.dscp;
        out.ip.ecn = segment.ip.ecn;
        out.ip.options = segment.ip.options.clone();
        out.ip.identification = 0;
        out.ip.dont_fragment = true;
        if tcp.ack {
            out.tcp.sequence_number = tcp.acknowledgment_number;
            out.set_flags(RST);
        } else {
            let length = segment.payload.len() as u32 + u32::from(tcp.syn) + u32::from(tcp.fin);
            out.tcp.acknowledgment_number = tcp.sequence_number.wrapping_add(length);
            out.set_flags(RST | ACK);
        }
        out
    }

    /// The client's segment is answered with a RST.
    #[track_caller]
    pub fn is_reset(&self, segment: &Segment) {
        let ran = self.rig.run(&segment.bytes(self.sum));
        assert_eq!(ran.verdict, XDP_TX, "the verdict on {segment:?}");
        assert_eq!(
            ran.frame,
            self.reset(segment).bytes(self.sum_out()),
            "bytes of the RST"
        );
    }

    /// The segment is none of ours: byte for byte to the host.
    #[track_caller]
    pub fn is_passed(&self, segment: &Segment) {
        let frame = segment.bytes(self.sum);
        let ran = self.rig.run(&frame);
        assert_eq!(ran.verdict, XDP_PASS, "the verdict on {segment:?}");
        assert_eq!(ran.frame, frame);
    }
}
