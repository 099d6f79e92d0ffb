// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Streams of frames that differ by their flow: etherparse builds the first one,
//! benches/bench.bpf.c varies it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use xdp_proxy::service::Protocol;

use crate::bpf::{ENDING, FRAME_BYTES, OPENING, Plan};
use crate::common::frame::{ACK, Frame, Network, RST, SYN, Sum, Transport};
use crate::common::rig::*;

/// Shorter frames are padded to it, as Ethernet does; bench.bpf.c writes 8 bytes
/// at a time.
const FRAME_BYTES_MIN: usize = 64;
/// TCP's header and a word of UDP's payload are within so many bytes.
const TRANSPORT_BYTES: usize = 20;
const TAG_BYTES: usize = 4;

#[derive(Clone)]
pub struct Stream {
    pub frame: Vec<u8>,
    /// What ends a flow that the frame opens; empty: nothing does.
    end_frame: Vec<u8>,
    pub flows: u32,
    /// Where the transport header begins, or 0: all frames are the same.
    transport_at: usize,
    protocol: Protocol,
    v6: bool,
    tag_bytes: usize,
    replies: Option<Vec<Reply>>,
}

/// A flow as its backend's packets show it.
#[derive(Clone, Copy)]
pub struct Reply {
    pub backend: SocketAddr,
    /// The port that NAT picked.
    pub port: u16,
}

impl Reply {
    fn last_word(&self) -> u16 {
        match self.backend.ip() {
            IpAddr::V4(v4) => u32::from(v4) as u16,
            IpAddr::V6(v6) => u128::from(v6) as u16,
        }
    }
}

/// What a frame is of.
#[derive(Clone, Copy)]
pub struct Kind {
    pub protocol: Protocol,
    pub v6: bool,
    pub flags: u8,
    pub sum: Sum,
    pub payload_bytes: usize,
    pub vlan: Option<u16>,
}

/// A TCP segment over IPv4 with its ACK flag and nothing else.
pub const SEGMENT: Kind = Kind {
    protocol: Protocol::Tcp,
    v6: false,
    flags: ACK,
    sum: Sum::Complete,
    payload_bytes: 0,
    vlan: None,
};

impl Kind {
    pub fn syn(self) -> Kind {
        Kind { flags: SYN, ..self }
    }

    pub fn syn_ack(self) -> Kind {
        Kind {
            flags: SYN | ACK,
            ..self
        }
    }

    pub fn rst(self) -> Kind {
        Kind { flags: RST, ..self }
    }

    fn address(self, v4: Ipv4Addr, last: u16) -> IpAddr {
        if self.v6 {
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).into()
        } else {
            v4.into()
        }
    }

    pub fn vip(self) -> SocketAddr {
        SocketAddr::new(self.address(VIP, 5), 80)
    }

    /// From clients to the VIP, of so many flows in turn.
    pub fn of_clients(self, flows: u32) -> Stream {
        self.to(self.vip(), flows)
    }

    /// From clients to any address.
    pub fn to(self, service: SocketAddr, flows: u32) -> Stream {
        // The last word of the address, and the port, are the flow's number.
        let client = if self.v6 {
            Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 0, 0).into()
        } else {
            Ipv4Addr::new(100, 64, 0, 0).into()
        };
        let frame = self.frame(CLIENT_MAC, SocketAddr::new(client, 0), service);
        self.stream(&frame, flows, None)
    }

    /// From backends, one packet of each flow in turn. Their addresses differ in
    /// the last 16 bits alone, and their ports don't.
    pub fn of_backends(self, flows: &[Reply]) -> Stream {
        let backend = flows[0].backend;
        let first = match backend.ip() {
            IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) & !0xffff).into(),
            IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !0xffff).into(),
        };
        let mut frame = self.frame(
            backend_mac(backend.ip()),
            SocketAddr::new(first, backend.port()),
            SocketAddr::new(self.address(SOURCE, 5), 0),
        );
        if let Transport::Tcp(tcp) = &mut frame.transport {
            tcp.acknowledgment_number = u32::MAX;
        }
        self.stream(&frame, flows.len() as u32, Some(flows.to_vec()))
    }

    fn frame(self, mac: [u8; 6], from: SocketAddr, to: SocketAddr) -> Frame {
        let mut frame = Frame::new(self.protocol, (mac, LB_MAC), from, to);
        // All ones: what is taken from them as number 0.
        match &mut frame.transport {
            Transport::Tcp(tcp) => {
                tcp.sequence_number = u32::MAX;
                tcp.window_size = 0xfaf0;
                tcp.syn = self.flags & SYN != 0;
                tcp.ack = self.flags & ACK != 0;
                tcp.rst = self.flags & RST != 0;
                frame.payload = vec![0; self.payload_bytes];
            }
            Transport::Udp(_) => {
                frame.payload = vec![0; self.payload_bytes.max(4)];
                frame.payload[..4].fill(0xff);
            }
            Transport::Icmp(_) => (), // no service's
        }
        if let Network::V4(ip) = &mut frame.network {
            ip.identification = u16::MAX;
        }
        frame
    }

    fn stream(self, frame: &Frame, flows: u32, replies: Option<Vec<Reply>>) -> Stream {
        let mut bytes = frame.bytes(self.sum);
        let tag = self.vlan.map(|id| {
            let [high, low] = id.to_be_bytes();
            [0x81, 0, high, low]
        });
        bytes.splice(12..12, tag.into_iter().flatten());
        let tag_bytes = if tag.is_some() { TAG_BYTES } else { 0 };
        pad(&mut bytes);
        Stream {
            frame: bytes,
            end_frame: Vec::new(),
            flows,
            transport_at: frame.transport_at() + tag_bytes,
            protocol: self.protocol,
            v6: self.v6,
            tag_bytes,
            replies,
        }
    }
}

impl Stream {
    /// The same frame over and over.
    pub fn of(mut frame: Vec<u8>) -> Stream {
        pad(&mut frame);
        Stream {
            frame,
            end_frame: Vec::new(),
            flows: 1,
            transport_at: 0,
            protocol: Protocol::Tcp,
            v6: false,
            tag_bytes: 0,
            replies: None,
        }
    }

    /// Each flow of it is ended by the client's packet of this kind.
    pub fn ended_by(self, kind: Kind) -> Stream {
        Stream {
            end_frame: kind.of_clients(self.flows).frame,
            ..self
        }
    }

    pub fn is_of_clients(&self) -> bool {
        self.replies.is_none()
    }

    pub fn plan(&self) -> Plan {
        let mut plan = Plan {
            flows: self.flows,
            ..Default::default()
        };
        let headers = match self.transport_at {
            0 => self.frame.len(),
            at => at + TRANSPORT_BYTES,
        };
        let bytes = headers.next_multiple_of(8).min(FRAME_BYTES);
        plan.frames[OPENING][..bytes].copy_from_slice(&self.frame[..bytes]);
        if !self.end_frame.is_empty() {
            plan.frames[ENDING][..bytes].copy_from_slice(&self.end_frame[..bytes]);
        }
        plan.restored_bytes = bytes as u32;
        if self.transport_at == 0 {
            return plan;
        }
        let at = self.transport_at as u16;
        // Of TCP, a client's sequence number, and what a backend acknowledges: so all
        // backends' answers have one number, which the clients' ACK of 0 fits.
        let (pad_at, ip_at) = match (self.protocol, &self.replies) {
            (Protocol::Tcp, None) => (at + 4, 14 + self.tag_bytes as u16),
            _ => (at + 8, 14 + self.tag_bytes as u16),
        };
        plan.port_pad_at = pad_at + 2;
        plan.address_pad_at = pad_at;
        plan.address_at = ip_at + if self.v6 { 22 } else { 14 };
        plan.identification_at = if self.v6 { 0 } else { ip_at + 4 };
        plan.port_at = at;
        if let Some(replies) = &self.replies {
            plan.port_at = at + 2;
            plan.listed = 1;
            for (reply, place) in replies.iter().zip(0..) {
                plan.ports[place] = reply.port.to_be();
                plan.addresses[place] = reply.last_word().to_be();
            }
        }
        plan
    }
}

fn pad(frame: &mut Vec<u8>) {
    let bytes = frame.len().max(FRAME_BYTES_MIN).next_multiple_of(8);
    frame.resize(bytes, 0);
}
