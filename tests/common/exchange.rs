// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What a client and a backend send each other through a loaded program, by
//! either protocol over either family; every byte that comes out is compared.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::service::Protocol;

use super::frame::*;
use super::icmp::*;
use super::rig::*;

/// What most tests serve.
pub const WEB: &str = "10.0.0.5:80";

/// The sequence numbers of both ends' segments.
pub const CLIENT_SEQUENCE: u32 = 1000;
pub const BACKEND_SEQUENCE: u32 = 5000;

/// How a flow looks from its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path {
    pub source: SocketAddr,
    pub backend: SocketAddr,
}

impl Path {
    /// That a packet took to a backend.
    pub fn of(frame: &[u8]) -> Path {
        let (source, backend) = ends_of(frame);
        Path { source, backend }
    }
}

pub struct Exchange<'rig> {
    pub rig: &'rig Rig,
    pub protocol: Protocol,
    pub client: SocketAddr,
    pub client_mac: [u8; 6],
    pub service: SocketAddr,
    /// Known once a packet reached the backend.
    pub path: Option<Path>,
    /// How both ends send.
    pub sum: Sum,
    /// Of the client's frames, and of its backend's.
    pub tags: [Vec<Tag>; 2],
}

/// A client's address, of the family of `service`, that differs for every
/// `number` below 2^24.
pub fn client_of(service: SocketAddr, number: u32) -> SocketAddr {
    let [_, a, b, c] = number.to_be_bytes();
    let ip: IpAddr = match service.ip() {
        IpAddr::V4(_) => Ipv4Addr::new(100, a, b, c).into(),
        IpAddr::V6(_) => {
            let word = number.wrapping_mul(0x9e37_79b1);
            let bits = (0xfd01_u128) << 112 | u128::from(word) << 40 | u128::from(number);
            Ipv6Addr::from(bits).into()
        }
    };
    let port = 1024 + (number.wrapping_mul(40_503) % 60_000) as u16;
    SocketAddr::new(ip, port)
}

impl<'rig> Exchange<'rig> {
    /// Of client `number` with `service`, as [`service`] takes it.
    pub fn new(rig: &'rig Rig, service: &str, number: u32) -> Exchange<'rig> {
        let (service, protocol) = match service.strip_suffix("/udp") {
            Some(service) => (service, Protocol::Udp),
            None => (service, Protocol::Tcp),
        };
        let service = service.parse().expect("an address");
        Exchange {
            rig,
            protocol,
            client: client_of(service, number),
            client_mac: CLIENT_MAC,
            service,
            path: None,
            sum: Sum::Complete,
            tags: Default::default(),
        }
    }

    /// The service, as [`Exchange::new`] takes it.
    pub fn listen(&self) -> String {
        match self.protocol {
            Protocol::Tcp => self.service.to_string(),
            Protocol::Udp => format!("{}/udp", self.service),
        }
    }

    pub fn with_sum(self, sum: Sum) -> Exchange<'rig> {
        Exchange { sum, ..self }
    }

    pub fn with_path(self, path: Path) -> Exchange<'rig> {
        let path = Some(path);
        Exchange { path, ..self }
    }

    pub fn path(&self) -> Path {
        self.path.expect("a packet reached a backend before")
    }

    /// That NAT picked.
    pub fn port(&self) -> u16 {
        self.path().source.port()
    }

    /// Flags are for TCP alone.
    pub fn client_frame(&self, flags: u8) -> Frame {
        let macs = (self.client_mac, LB_MAC);
        let mut frame = Frame::new(self.protocol, macs, self.client, self.service);
        frame.tags = self.tags[0].clone();
        if self.protocol == Protocol::Tcp {
            let tcp = frame.tcp();
            tcp.sequence_number = CLIENT_SEQUENCE;
            tcp.acknowledgment_number = u32::from(flags & ACK != 0) * (BACKEND_SEQUENCE + 1);
            tcp.window_size = 0xfaf0;
            set_flags(tcp, flags);
        }
        frame
    }

    pub fn backend_frame(&self, flags: u8) -> Frame {
        let Path { source, backend } = self.path();
        let macs = (backend_mac(backend.ip()), LB_MAC);
        let mut frame = Frame::new(self.protocol, macs, backend, source);
        frame.tags = self.tags[1].clone();
        if self.protocol == Protocol::Tcp {
            let tcp = frame.tcp();
            tcp.sequence_number = BACKEND_SEQUENCE;
            tcp.acknowledgment_number = CLIENT_SEQUENCE + 1;
            set_flags(tcp, flags);
        }
        frame
    }

    /// What must come out where `frame` reaches the backend.
    pub fn forwarded(&self, frame: &Frame) -> Frame {
        let Path { source, backend } = self.path();
        let mut out = frame.clone();
        (out.from_mac, out.to_mac) = (frame.to_mac, backend_mac(backend.ip()));
        out.tags = self.tags[1].clone();
        out.set_ends(source, backend);
        *out.hops() -= 1;
        out
    }

    /// What must come out where `frame` returns to the client.
    pub fn returned(&self, frame: &Frame) -> Frame {
        let mut out = frame.clone();
        (out.from_mac, out.to_mac) = (frame.to_mac, self.client_mac);
        out.tags = self.tags[0].clone();
        out.set_ends(self.service, self.client);
        *out.hops() -= 1;
        out
    }

    /// How a packet of [`Exchange::sum`] leaves this program.
    pub fn sum_out(&self) -> Sum {
        if self.rig.settings.complete_checksums {
            Sum::Complete
        } else {
            self.sum
        }
    }

    /// To the backend; notes the path, or checks that it is the one before.
    #[track_caller]
    pub fn forward_frame(&mut self, frame: &Frame) {
        let ran = self.counted(&frame.bytes(self.sum), OutcomeCode::OUTCOME_FORWARDED);
        assert_eq!(ran.verdict, XDP_TX, "the verdict on {frame:?}");
        self.path.get_or_insert_with(|| Path::of(&ran.frame));
        let wanted = self.forwarded(frame);
        assert_eq!(ran.frame, wanted.bytes(self.sum_out()), "{frame:?}");
    }

    #[track_caller]
    pub fn reply_frame(&self, frame: &Frame) {
        let wanted = self.returned(frame).bytes(self.sum_out());
        self.becomes(
            &frame.bytes(self.sum),
            &wanted,
            OutcomeCode::OUTCOME_RETURNED,
        );
    }

    /// One of each end's: to the backend, and to the client.
    #[track_caller]
    pub fn pass_both(&mut self, [out, back]: &[Frame; 2]) {
        self.forward_frame(out);
        self.reply_frame(back);
    }

    #[track_caller]
    pub fn forward(&mut self, flags: u8) {
        self.forward_frame(&self.client_frame(flags));
    }

    #[track_caller]
    pub fn reply(&self, flags: u8) {
        self.reply_frame(&self.backend_frame(flags));
    }

    /// TCP: the handshake. UDP: a datagram, its answer and another one, too soon after it
    /// to confirm the flow.
    #[track_caller]
    pub fn open(&mut self) {
        self.forward(SYN);
        self.reply(SYN | ACK);
        self.forward(ACK);
    }

    /// Goes on with flows of UDP that are open, so late that it confirms them.
    #[track_caller]
    pub fn confirm(flows: &mut [Exchange]) {
        std::thread::sleep(std::time::Duration::from_millis(1100));
        flows.iter_mut().for_each(|flow| flow.forward(ACK));
    }

    #[track_caller]
    pub fn close(&mut self) {
        self.forward(FIN | ACK);
        self.reply(FIN | ACK);
        self.forward(ACK);
    }

    /// Whether a whole handshake was let through: as [`Exchange::try_syn`].
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
        let frame = self.client_frame(SYN);
        let ran = self.rig.run(&frame.bytes(self.sum));
        assert_eq!(ran.verdict, XDP_TX, "the verdict on a SYN");
        if ran.frame == self.reset(&frame).bytes(self.sum_out()) {
            return false;
        }
        self.path = Some(Path::of(&ran.frame));
        let wanted = self.forwarded(&frame).bytes(self.sum_out());
        assert_eq!(ran.frame, wanted, "bytes of a SYN");
        true
    }

    /// Runs it; counted by this outcome, and so by no other, as all that the rig runs is
    /// counted once.
    #[track_caller]
    pub fn counted(&self, frame: &[u8], code: OutcomeCode) -> Ran {
        let before = self.rig.counter(code);
        let ran = self.rig.run(frame);
        let after = self.rig.counter(code);
        assert_eq!(after, before + 1, "{code:?}: {ran:?}");
        ran
    }

    #[track_caller]
    pub fn is_passed(&self, frame: &[u8]) {
        let ran = self.counted(frame, OutcomeCode::OUTCOME_PASSED);
        assert_eq!((ran.verdict, &ran.frame[..]), (XDP_PASS, frame));
    }

    #[track_caller]
    pub fn is_dropped(&self, frame: &[u8], code: OutcomeCode) {
        let ran = self.counted(frame, code);
        assert_eq!((ran.verdict, &ran.frame[..]), (XDP_DROP, frame));
    }

    /// The frame becomes these bytes, and is counted by this outcome.
    #[track_caller]
    pub fn becomes(&self, frame: &[u8], wanted: &[u8], code: OutcomeCode) {
        let ran = self.counted(frame, code);
        assert_eq!(ran.verdict, XDP_TX, "the verdict on {frame:02x?}");
        assert_eq!(ran.frame, wanted, "{code:?} of {frame:02x?}");
    }

    /// Answered by the RST.
    #[track_caller]
    pub fn is_reset(&self, frame: &Frame, code: OutcomeCode) {
        let reset = self.reset(frame).bytes(self.sum_out());
        self.becomes(&frame.bytes(self.sum), &reset, code);
    }

    /// The RST that answers a segment (RFC 9293, section 3.10.7.1), with all that was
    /// before the TCP header.
    pub fn reset(&self, frame: &Frame) -> Frame {
        let mut out = frame.clone();
        let tcp = out.tcp().clone();
        (out.from_mac, out.to_mac) = (frame.to_mac, frame.from_mac);
        out.set_ends(frame.destination(), frame.source());
        *out.hops() = 64;
        if let Network::V4(ip) = &mut out.network {
            (ip.identification, ip.dont_fragment) = (0, true);
        }
        (out.payload, out.padding) = (vec![], vec![]);
        let length = frame.payload.len() as u32 + u32::from(tcp.syn) + u32::from(tcp.fin);
        let mut reset = etherparse::TcpHeader::new(tcp.destination_port, tcp.source_port, 0, 0);
        if tcp.ack {
            reset.sequence_number = tcp.acknowledgment_number;
            set_flags(&mut reset, RST);
        } else {
            reset.acknowledgment_number = tcp.sequence_number.wrapping_add(length);
            set_flags(&mut reset, RST | ACK);
        }
        *out.tcp() = reset;
        out
    }

    /// Answered by ICMP, as if nobody had been told of anything before.
    #[track_caller]
    pub fn is_told(&self, frame: &Frame, told: Told, code: OutcomeCode) {
        let completed = self.sum_out() == Sum::Partial && !frame.unsummed;
        let completed_at = completed.then(|| frame.checksum_at());
        let bytes = frame.bytes(self.sum);
        self.is_answered(&bytes, frame.transport_at(), told, completed_at, code);
    }

    /// The same for a frame whose transport header is at `transport_at`;
    /// `completed_at` as [`icmp_answer`] takes it.
    #[track_caller]
    pub fn is_answered(
        &self,
        frame: &[u8],
        transport_at: usize,
        told: Told,
        completed_at: Option<usize>,
        code: OutcomeCode,
    ) {
        self.rig.forget_told();
        let wanted = icmp_answer(frame, transport_at, told, completed_at);
        self.becomes(frame, &wanted, code);
    }
}
